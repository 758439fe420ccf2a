//! The rings hold: who may name whom, read from the sources themselves.

use std::{fs, path::Path};

/// Every source file below `folder` with its text, comments left out.
fn sources(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder);
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            found.push((path.display().to_string(), code.join("\n")));
        }
    }
    assert!(!found.is_empty(), "src/{folder} holds no source");
    found
}

#[track_caller]
fn check(folder: &str, never: &[&str]) {
    for (path, code) in sources(folder) {
        for word in never {
            assert!(!code.contains(word), "{path} names `{word}`");
        }
    }
}

#[test]
fn the_domain_knows_no_adapter() {
    for folder in ["cache", "embed"] {
        check(folder, &["tonic::", "redis::", "rusqlite::", "axum::", "crate::grpc", "crate::cli", "crate::app"]);
        check(folder, &["store::embedded", "store::redis"]);
    }
}

#[test]
fn the_ports_and_values_know_no_adapter() {
    for file in ["types.rs", "clock.rs", "error.rs", "secret.rs", "store/error.rs", "embed/model.rs"] {
        check(file, &["tonic", "rusqlite", "redis::", "prost", "tokio::"]);
    }
}

#[test]
fn the_engines_know_neither_the_edge_nor_each_other() {
    check("store/embedded", &["tonic::", "crate::grpc", "store::redis", "crate::cache"]);
    check("store/redis", &["tonic::", "crate::grpc", "rusqlite", "store::embedded", "crate::cache"]);
}

#[test]
fn one_place_builds_search_queries() {
    for (path, code) in sources("store/redis") {
        let builds = ["cmd(\"FT.SEARCH\")", "cmd(\"FT.CREATE\")", "=>[KNN"].iter().any(|word| code.contains(word));
        assert!(!builds || path.contains("store/redis/search"), "{path} builds a search command");
    }
}

#[test]
fn one_place_reads_the_clock() {
    for (path, code) in sources("") {
        let reads = code.contains("SystemTime::now") || code.contains("Instant::now");
        assert!(!reads || path.ends_with("src/clock.rs"), "{path} reads the clock");
    }
}

#[test]
fn one_place_names_metrics() {
    for (path, code) in sources("") {
        let names = code.contains("\"refrain_") && !code.contains("\"refrain_v1");
        assert!(!names || path.ends_with("src/telemetry/names.rs"), "{path} names a metric");
    }
}
