#!/usr/bin/env python3
"""Python environments under `.refrain/`, made once and made again when their pins change.

    python3 scripts/environment.py export    # what the model export and its proof need
    python3 scripts/environment.py test      # what the Python client in the tests needs

Prints the path of the environment's interpreter on stdout and what it does on stderr.
Nothing outside `.refrain/` is touched, and pip installs only what the requirements
file names, each file checked against its hash.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import pathlib
import shutil
import subprocess
import sys

SCRIPTS = pathlib.Path(__file__).resolve().parent
LOCAL = SCRIPTS.parent / ".refrain"
# The environment's folder and the requirements file that fills it.
ENVIRONMENTS = {
    "export": (LOCAL / "venv", SCRIPTS / "requirements-export.txt"),
    "test": (LOCAL / "venv-test", SCRIPTS / "requirements-test.txt"),
}


class SetupError(Exception):
    """Something that the reader has to mend; the text says how."""


def say(text):
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(path):
    """Hold an advisory lock, so that two set-ups at once do not undo each other's work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another set-up to finish ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command, failure):
    """Run a command with its output on stderr, or raise with the given sentence."""
    result = subprocess.run(command, stdout=sys.stderr, check=False)
    if result.returncode != 0:
        raise SetupError(failure)


def create(folder):
    """Make an empty environment with pip in it."""
    # Debian splits this module off into a package of its own.
    if not importlib.util.find_spec("ensurepip"):
        raise SetupError(
            f"{sys.executable} cannot create virtual environments: "
            "run `apt-get install python3-venv` as root and try again"
        )
    shutil.rmtree(folder, ignore_errors=True)
    run(
        [sys.executable, "-I", "-m", "venv", str(folder)],
        f"could not create {folder}: on Debian, `apt-get install python3-venv` as root may mend it",
    )


def ensure(name):
    """Return the interpreter of an environment, (re)built if its stamp does not match."""
    folder, requirements = ENVIRONMENTS[name]
    python = folder / "bin" / "python"
    stamp = folder / "refrain.stamp"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest() + f" {sys.version}\n"
    with locked(LOCAL / f".lock-venv-{name}"):
        if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
            return python
        say(f"python: installing {requirements.name} into {folder}")
        create(folder)
        run(
            [
                str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                "--no-input", "--no-deps", "--require-hashes", "--only-binary=:all:",
                "--requirement", str(requirements),
            ],
            f"pip could not install {requirements}: its message above says why; "
            "the pins cover CPython 3.11 to 3.14 on x86_64 Linux",
        )
        # Last, so that an interrupted installation counts as none.
        stamp.write_text(wanted, encoding="utf-8")
        return python


def pip_command():
    """A pip to download with: the interpreter's own, or one in a fresh environment."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    folder, _ = ENVIRONMENTS["export"]
    python = folder / "bin" / "python"
    with locked(LOCAL / ".lock-venv-export"):
        if not (folder / "bin" / "pip").exists():
            say(f"python: {sys.executable} has no pip; using one in {folder}")
            create(folder)
    return [str(python), "-m", "pip"]


def main():
    parser = argparse.ArgumentParser(description="Make a Python environment under .refrain/.")
    parser.add_argument("name", choices=sorted(ENVIRONMENTS))
    try:
        print(ensure(parser.parse_args().name))
    except SetupError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
