//! The contract from another language: a Python client, made from the protos alone, drives every
//! rpc of a sidecar in this process.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::sidecar::Sidecar;

/// Fewer tests than this mean that the client did not find its own.
const TESTS_MIN: u32 = 30;

/// The interpreter with gRPC in it.
pub fn interpreter() -> PathBuf {
    let python = env::var_os("REFRAIN_TEST_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".refrain/venv-test/bin/python"), PathBuf::from);
    assert!(
        python.is_file(),
        "{} is missing: `make test` installs it, or set REFRAIN_TEST_PYTHON to a Python that has what \
         scripts/requirements-test.txt names",
        python.display()
    );
    python
}

/// Generates stubs below `dir` as the README says and returns their folder.
pub fn stubs(dir: &Path) -> PathBuf {
    let folder = dir.join("stubs");
    std::fs::create_dir_all(&folder).unwrap();
    let out = |kind: &str| format!("--{kind}_out={}", folder.display());
    let made = Command::new(interpreter())
        .args(["-m", "grpc_tools.protoc", "-Iproto", &out("python"), &out("grpc_python")])
        .args(["admin", "cache", "embedding"].map(|name| format!("proto/refrain/v1/{name}_service.proto")))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(made.success(), "the stubs cannot be generated");
    folder
}

/// The number in unittest's `Ran 65 tests in 1.234s`.
fn tests_run(output: &str) -> Option<u32> {
    output.lines().find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn python_client_drives_every_rpc() {
    // Lookups that a loaded machine makes slow are to wait rather than to miss.
    let sidecar = Sidecar::start(&["cache.store_timeout=10s"]).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut client = Command::new(interpreter());
    client
        .arg(root.join("tests/python/client.py"))
        .args(["--address", &sidecar.address.to_string(), "--proto"])
        .arg(root.join("proto"));
    let output = tokio::task::spawn_blocking(move || client.output()).await.unwrap().unwrap();
    // Through the macros, so that the harness shows it only when the test fails.
    let stderr = String::from_utf8_lossy(&output.stderr);
    println!("{}{stderr}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "the Python client failed ({}); what it says is above", output.status);
    let count = tests_run(&stderr).unwrap_or_default();
    assert!(count >= TESTS_MIN, "the Python client ran {count} tests; at least {TESTS_MIN} were expected");
}
