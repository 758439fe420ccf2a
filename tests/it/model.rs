//! The real model: the same vectors in any batch, known similarities, cuts reported, damage
//! noticed. The files come from `make setup`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers included")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use refrain::embed::{
    Model, ModelError,
    onnx::{Onnx, Source},
};

/// Where `make setup` puts its files; `REFRAIN_ASSETS` names another place.
fn assets() -> PathBuf {
    let folder = std::env::var_os("REFRAIN_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".refrain/assets"), PathBuf::from);
    let here = folder.join("models/all-MiniLM-L6-v2/model.onnx").is_file() && library(&folder).is_file();
    assert!(here, "the model is not in {}: run `make setup`", folder.display());
    folder
}

fn library(assets: &Path) -> PathBuf {
    assets.join("onnxruntime/libonnxruntime.so")
}

fn open(folder: &Path) -> Result<Onnx, ModelError> {
    Onnx::open(&Source::Folder(folder.to_owned()), &library(&assets()))
}

fn model() -> Onnx {
    open(&assets().join("models/all-MiniLM-L6-v2")).unwrap()
}

fn embed(model: &Onnx, texts: &[&str]) -> Vec<Vec<f32>> {
    let texts: Vec<Arc<str>> = texts.iter().map(|&text| text.into()).collect();
    model.session().unwrap().embed(&texts).unwrap()
}

fn similarity(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A copy of the model's folder that a test may damage; large files are linked, not copied.
fn copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(assets().join("models/all-MiniLM-L6-v2")).unwrap() {
        let file = file.unwrap();
        let there = copy.path().join(file.file_name());
        if fs::hard_link(file.path(), &there).is_err() {
            fs::copy(file.path(), &there).unwrap();
        }
    }
    copy
}

/// Replaces a file of a copy. The old one is removed first, since it may be a link.
fn replace(folder: &Path, name: &str, content: &[u8]) {
    fs::remove_file(folder.join(name)).unwrap();
    fs::write(folder.join(name), content).unwrap();
}

/// Changes the description of a copy, without its hashes if the test damages a file behind them.
fn describe(folder: &Path, change: impl Fn(&str) -> String) {
    let description = fs::read_to_string(folder.join("model.toml")).unwrap();
    replace(folder, "model.toml", change(&description).as_bytes());
}

fn without_hashes(description: &str) -> String {
    description.split("[files]").next().unwrap().to_owned()
}

/// What an `Asset` error says.
#[track_caller]
fn damage(outcome: Result<Onnx, ModelError>) -> String {
    match outcome {
        Err(error @ ModelError::Asset { .. }) => error.to_string(),
        Err(error) => panic!("another error came: {error}"),
        Ok(_) => panic!("the model was accepted"),
    }
}

#[test]
fn a_vector_is_the_same_in_any_batch() {
    let model = model();
    let long = "a sentence about nothing in particular ".repeat(30);
    let texts = ["one", "How do I reset my password?", "重置密码", "an order of words that matters", &long];
    let together = embed(&model, &texts);
    let mut session = model.session().unwrap();
    for (text, in_batch) in texts.iter().zip(&together) {
        let alone = session.embed(&[(*text).into()]).unwrap();
        let farthest = alone[0].iter().zip(in_batch).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(farthest <= 1e-6, "{text:.20} differs by {farthest}");
    }
}

#[test]
fn near_is_near_and_far_is_far() {
    let model = model();
    let vectors = embed(
        &model,
        &["How do I reset my password?", "I forgot my password, how can I set a new one?", "The weather in Lisbon"],
    );
    assert_eq!(vectors[0].len(), model.spec().dimension);
    assert!((similarity(&vectors[0], &vectors[0]) - 1.0).abs() < 1e-5);
    let (near, far) = (similarity(&vectors[0], &vectors[1]), similarity(&vectors[0], &vectors[2]));
    assert!(near > 0.75 && far < 0.2, "near {near}, far {far}");
}

#[test]
fn tokens_are_counted_beyond_the_cut() {
    let model = model();
    assert_eq!(model.spec().tokens_max, 256);
    assert_eq!(model.count_tokens("hello world").unwrap(), 4);
    let long = "word ".repeat(1000);
    assert_eq!(model.count_tokens(&long).unwrap(), 1002);
    // What is past the cut changes nothing.
    let longer = format!("{long} and something else entirely");
    let vectors = embed(&model, &[&long, &longer]);
    assert!((similarity(&vectors[0], &vectors[1]) - 1.0).abs() < 1e-5);
}

#[test]
fn a_changed_file_is_told_by_its_hash() {
    let copy = copy();
    let mut graph = fs::read(copy.path().join("model.onnx")).unwrap();
    let middle = graph.len() / 2;
    graph[middle] ^= 1;
    replace(copy.path(), "model.onnx", &graph);
    let message = damage(open(copy.path()));
    assert!(message.contains("model.onnx") && message.contains("make setup"), "{message}");
}

#[test]
fn a_damaged_file_is_told_without_hashes_too() {
    let spoil: [(&str, &[u8]); 3] =
        [("model.onnx", b"not a graph"), ("tokenizer.json", b"{}"), ("tokenizer_config.json", b"{}")];
    for (name, content) in spoil {
        let copy = copy();
        describe(copy.path(), without_hashes);
        replace(copy.path(), name, content);
        let message = damage(open(copy.path()));
        assert!(message.contains("make setup"), "{name}: {message}");
    }
    let copy = copy();
    describe(copy.path(), without_hashes);
    let graph = fs::read(copy.path().join("model.onnx")).unwrap();
    replace(copy.path(), "model.onnx", &graph[..graph.len() / 2]);
    assert!(damage(open(copy.path())).contains("model.onnx"));
    fs::remove_file(copy.path().join("model.onnx")).unwrap();
    assert!(damage(open(copy.path())).contains("make setup"));
}

#[test]
fn a_description_that_does_not_fit_is_refused() {
    for (from, to, says) in [
        ("dimension = 384", "dimension = 512", "384 components"),
        ("pooling = \"mean\"", "pooling = \"last\"", "pooling"),
        ("quantization = \"none\"", "quantization = \"dynamic\"", "dynamically"),
        ("tokens_max = 256", "tokens_max = 100000", "cuts at"),
    ] {
        let copy = copy();
        describe(copy.path(), |description| description.replace(from, to));
        let message = damage(open(copy.path()));
        assert!(message.contains(says), "{to}: {message}");
    }
}

#[test]
fn what_shapes_a_vector_makes_another_space() {
    let spec = model().spec().clone();
    assert_eq!(model().spec().space(), spec.space(), "and nothing else does");
    let copy = copy();
    let tokenizer = fs::read_to_string(copy.path().join("tokenizer.json")).unwrap() + "\n";
    describe(copy.path(), without_hashes);
    replace(copy.path(), "tokenizer.json", tokenizer.as_bytes());
    assert_ne!(open(copy.path()).unwrap().spec().space(), spec.space());
}

#[test]
fn a_graph_replaced_under_a_running_process_is_not_used() {
    let copy = copy();
    let model = open(copy.path()).unwrap();
    let _first = model.session().unwrap();
    describe(copy.path(), without_hashes);
    let mut graph = fs::read(copy.path().join("model.onnx")).unwrap();
    graph.push(0);
    replace(copy.path(), "model.onnx", &graph);
    assert!(matches!(model.session(), Err(ModelError::Asset { .. })));
}

/// What a vocabulary lacks becomes one token: these pairs have one vector each, and would be hits for
/// each other at any threshold.
#[test]
fn texts_that_the_vocabulary_cannot_tell_apart_are_known_as_such() {
    let model = model();
    let long_words = ["a1b2c3d4".repeat(16), "0f9e8d7c".repeat(16)].map(|hash| format!("what has the hash {hash}"));
    for [one, other] in [
        ["what does \u{1f980} mean", "what does \u{1f40d} mean"],
        ["如何重置我的密码", "怎样删除我的账户"],
        [&long_words[0], &long_words[1]],
    ] {
        let vectors = embed(&model, &[one, other]);
        assert!(similarity(&vectors[0], &vectors[1]) > 0.9999, "the premise");
        assert!(!model.knows(one).unwrap() && !model.knows(other).unwrap(), "{one}");
    }
    for known in ["how do I reset my password?", "où est le café ?", "for (i = 0; i < n; i++) { x[i] *= 2; }"] {
        assert!(model.knows(known).unwrap(), "{known}");
    }
}
