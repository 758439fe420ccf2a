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
fn python() -> PathBuf {
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

/// The number in unittest's `Ran 65 tests in 1.234s`.
fn tests_run(output: &str) -> Option<u32> {
    output.lines().find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn python_client_drives_every_rpc() {
    // Lookups that a loaded machine makes slow are to wait rather than to miss.
    let sidecar = Sidecar::start(&["cache.store_timeout=10s"]).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut client = Command::new(python());
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
