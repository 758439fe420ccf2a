//! A model in a folder, described by its `model.toml`.

use std::{collections::BTreeMap, path::Path};

use fastembed::TokenizerFiles;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{DYNAMIC_REFUSED, Draft, Files, asset, pooling};
use crate::embed::model::{ModelError, Spec};

/// The command that mends a folder.
const REMEDY: &str = "Run `make setup`";

/// What a `model.toml` says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    name: String,
    /// Where the weights came from, for people; what counts is the hash of the files.
    #[serde(rename = "revision")]
    _revision: String,
    pooling: String,
    dimension: usize,
    tokens_max: usize,
    quantization: String,
    query_prefix: String,
    passage_prefix: String,
    /// SHA-256 of files, in hex; a file that is not listed is not checked.
    #[serde(default)]
    files: BTreeMap<String, String>,
}

/// Reads a folder's description and small files, and checks all files against their hashes.
pub(super) fn read(folder: &Path) -> Result<Draft, ModelError> {
    let path = folder.join("model.toml");
    let text = String::from_utf8(super::read(&path, REMEDY)?).map_err(|_| asset(&path, "it is not UTF-8", REMEDY))?;
    let manifest: Manifest = toml::from_str(&text).map_err(|error| asset(&path, error.message(), REMEDY))?;
    let wrong = |problem: String| asset(&path, &problem, REMEDY);
    let Some(pooling) = pooling(&manifest.pooling) else {
        return Err(wrong(format!("its pooling is {:?}; `mean` and `cls` are known", manifest.pooling)));
    };
    match manifest.quantization.as_str() {
        "none" | "static" | "weight-only" => {}
        "dynamic" => return Err(wrong(DYNAMIC_REFUSED.into())),
        other => {
            let problem = format!("its quantization is {other:?}; `none`, `static` and `weight-only` are known");
            return Err(wrong(problem));
        }
    }
    for (name, sha256) in &manifest.files {
        let file = folder.join(name);
        if hex::encode(Sha256::digest(super::read(&file, REMEDY)?)) != sha256.to_lowercase() {
            return Err(asset(&file, "its content is not what model.toml announces", REMEDY));
        }
    }
    let read = |name: &str| super::read(&folder.join(name), REMEDY);
    let tokenizer = TokenizerFiles {
        tokenizer_file: read("tokenizer.json")?,
        config_file: read("config.json")?,
        special_tokens_map_file: read("special_tokens_map.json")?,
        tokenizer_config_file: read("tokenizer_config.json")?,
    };
    let tokens_max = super::tokens_max(&tokenizer)
        .ok_or_else(|| asset(&folder.join("tokenizer_config.json"), "it has no number `model_max_length`", REMEDY))?;
    if tokens_max < manifest.tokens_max {
        let problem = format!("it announces {} tokens, and the tokenizer cuts at {tokens_max}", manifest.tokens_max);
        return Err(wrong(problem));
    }
    let spec = Spec {
        name: manifest.name,
        revision: String::new(),
        pooling: manifest.pooling,
        quantization: manifest.quantization,
        dimension: manifest.dimension,
        tokens_max: manifest.tokens_max,
        query_prefix: manifest.query_prefix,
        passage_prefix: manifest.passage_prefix,
    };
    let graph = folder.join("model.onnx");
    let files = Files { graph, weights: Vec::new(), tokenizer, pooling, output: None, remedy: REMEDY.into() };
    Ok(Draft { spec, files })
}
