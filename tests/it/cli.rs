//! The binary as a person or a script uses it: output, exit codes, signals, survival.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::redis_server::eventually;

const REFRAIN: &str = env!("CARGO_BIN_EXE_refrain");

/// A command that sees none of this machine's own settings.
fn refrain(dir: &Path) -> Command {
    let mut command = Command::new(REFRAIN);
    command
        .env_clear()
        .env("HOME", dir)
        .env("REFRAIN_EMBEDDING__MODEL", "fake")
        .env("REFRAIN_SERVER__LISTEN", "127.0.0.1:0")
        .env("REFRAIN_SERVER__OPS_LISTEN", "")
        .stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A sidecar as a process of its own; killed with the test.
struct Process {
    child: Child,
    address: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    async fn start(dir: &Path) -> Self {
        let file = dir.join("addresses.json");
        let _ = std::fs::remove_file(&file);
        let child = refrain(dir)
            .args(["serve", "--set", &format!("server.address_file={}", file.display())])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = eventually("the sidecar has written its addresses", || async {
            let addresses: Value = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
            Some(format!("http://{}", addresses["grpc"].as_str()?))
        })
        .await;
        Self { child, address }
    }

    fn cache(&self, dir: &Path, args: &[&str]) -> Output {
        refrain(dir).args(["cache", "--address", &self.address]).args(args).output().unwrap()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_used_from_the_shell() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let sidecar = Process::start(dir).await;

    let miss = sidecar.cache(dir, &["lookup", "what is a refrain", "--output", "json"]);
    assert_eq!(miss.status.code(), Some(3), "{}", stderr(&miss));
    let receipt: Value = serde_json::from_str(&stdout(&miss)).unwrap();
    assert_eq!(receipt["receipt"]["miss_reason"], "empty");
    assert_eq!(receipt["entry"], Value::Null);

    let stored = sidecar.cache(
        dir,
        &["store", "what is a refrain", "A line that returns.", "-a", "locale=en", "--ttl", "1h", "-o", "json"],
    );
    assert!(stored.status.success(), "{}", stderr(&stored));
    let id = serde_json::from_str::<Value>(&stdout(&stored)).unwrap()["entry_id"].as_str().unwrap().to_owned();

    let hit = sidecar.cache(dir, &["lookup", "what is a refrain", "-a", "locale=en"]);
    assert!(hit.status.success());
    assert!(stdout(&hit).starts_with("A line that returns.\n") && stdout(&hit).contains("exact"), "{}", stdout(&hit));

    let listing = sidecar.cache(dir, &["list", "-o", "json"]);
    let listing: Value = serde_json::from_str(&stdout(&listing)).unwrap();
    assert_eq!(listing["entries"][0]["id"], id.as_str());
    assert_eq!(listing["entries"][0]["response"]["text"], "A line that returns.");
    assert!(stdout(&sidecar.cache(dir, &["list"])).contains("what is a refrain"));
    assert!(stdout(&sidecar.cache(dir, &["get", &id])).contains("A line that returns."));

    let dry = sidecar.cache(dir, &["invalidate", "--all", "--dry-run"]);
    assert_eq!(stdout(&dry), "would delete 1 entries\n");
    assert!(sidecar.cache(dir, &["delete", &id]).status.success());
    let again = sidecar.cache(dir, &["delete", &id]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).starts_with("error: ENTRY_NOT_FOUND: "), "{}", stderr(&again));
    assert!(stdout(&sidecar.cache(dir, &["stats"])).contains("lookups"));

    let embedded =
        refrain(dir).args(["embed", "--address", &sidecar.address, "-o", "json", "one", "two"]).output().unwrap();
    let embedded: Value = serde_json::from_str(&stdout(&embedded)).unwrap();
    assert_eq!(embedded["embeddings"].as_array().unwrap().len(), 2);
    assert_eq!(
        embedded["embeddings"][0]["vector"].as_array().unwrap().len() as u64,
        embedded["dimension"].as_u64().unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sigterm_ends_it_and_a_sigkill_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut sidecar = Process::start(dir).await;
    assert!(sidecar.cache(dir, &["store", "q", "r"]).status.success());
    sidecar.signal("KILL");
    sidecar.child.wait().unwrap();

    let mut sidecar = Process::start(dir).await;
    assert!(sidecar.cache(dir, &["lookup", "q"]).status.success(), "an acknowledged entry survives");
    sidecar.signal("TERM");
    let ended = tokio::task::spawn_blocking(move || sidecar.child.wait().unwrap().code());
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap().unwrap(), Some(0));
}

#[test]
fn what_cannot_work_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let check = |args: &[&str], code: i32, says: &str| {
        let output = refrain(dir).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}: only data goes to stdout");
    };
    check(&["cache", "--address", "http://127.0.0.1:1", "stats"], 4, "refrain serve");
    check(&["serve", "--set", "cache.min_similarty=1"], 2, "did you mean `cache.min_similarity`");
    check(&["serve", "--listen", "0.0.0.0:0"], 2, "allow_unauthenticated_remote");
    check(&["serve", "--model", "no-such-model"], 1, "make setup");
    check(&["cache", "lookup", "q", "-a", "novalue"], 2, "key=value");
    check(&["config", "check", "--config", "/no/such/file"], 2, "/no/such/file");
}

#[test]
fn the_doctor_names_each_dependency_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let well = refrain(dir).args(["doctor", "-o", "json"]).output().unwrap();
    assert!(well.status.success(), "{}", stdout(&well));
    assert!(!dir.join(".local").exists(), "a look makes no folder");

    let ill = refrain(dir)
        .args([
            "doctor",
            "-o",
            "json",
            "--set",
            "store.engine=redis",
            "--set",
            "store.redis.url=redis://:secret@127.0.0.1:1",
        ])
        .output()
        .unwrap();
    assert_eq!(ill.status.code(), Some(1));
    let findings: Value = serde_json::from_str(&stdout(&ill)).unwrap();
    let redis = findings.as_array().unwrap().iter().find(|finding| finding["what"] == "redis engine").unwrap();
    assert_eq!(redis["good"], false);
    assert!(!stdout(&ill).contains("secret") && !stderr(&ill).contains("secret"));
}

#[test]
fn the_settings_in_force_are_dumped_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let dump = refrain(dir.path())
        .env("REFRAIN_STORE__REDIS__URL", "redis://user:secret@db:6379")
        .args(["config", "dump", "--set", "cache.neighbors=3"])
        .output()
        .unwrap();
    assert!(dump.status.success());
    let dump: toml::Table = stdout(&dump).parse().unwrap();
    assert_eq!(dump["cache"]["neighbors"].as_integer(), Some(3));
    assert_eq!(dump["store"]["redis"]["url"].as_str(), Some("redis://user:***@db:6379"));
    assert!(refrain(dir.path()).args(["config", "check"]).status().unwrap().success());
}
