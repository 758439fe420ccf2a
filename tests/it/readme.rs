//! The README tells the truth: its shell and Python snippets are run as they stand.

use std::process::{Command, Stdio};

use crate::{python, sidecar::Sidecar};

const README: &str = include_str!("../../README.md");

/// The fenced blocks of a language, in order.
fn blocks(language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = README.lines();
    while let Some(line) = lines.next() {
        if line == format!("```{language}") {
            blocks.push(lines.by_ref().take_while(|line| *line != "```").collect::<Vec<_>>().join("\n"));
        }
    }
    assert!(!blocks.is_empty(), "the README has no {language} block");
    blocks
}

#[tokio::test(flavor = "multi_thread")]
async fn shell_snippets_run() {
    let sidecar = Sidecar::start(&[]).await;
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_refrain")).parent().unwrap();
    for block in blocks("sh") {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &block])
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("HOME", sidecar.dir())
            .env("REFRAIN_ADDRESS", format!("http://{}", sidecar.address))
            .env("REFRAIN_EMBEDDING__MODEL", "fake")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{block}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn python_snippets_run() {
    let sidecar = Sidecar::start(&[]).await;
    let stubs = python::stubs(&sidecar.dir());
    for block in blocks("python") {
        let output = Command::new(python::interpreter())
            .args(["-c", &block.replace("127.0.0.1:7411", &sidecar.address.to_string())])
            .env("PYTHONPATH", &stubs)
            .output()
            .unwrap();
        assert!(output.status.success(), "{block}\n{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines[0], lines[1], "the second answer comes from the cache");
    }
}

#[test]
fn settings_snippets_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    for block in blocks("toml") {
        let path = dir.path().join("config.toml");
        std::fs::write(&path, &block).unwrap();
        let sources = refrain::config::Sources { file: Some(path), set: Vec::new(), env: Vec::new() };
        refrain::config::Config::load(&sources).unwrap();
    }
}
