//! Models in ONNX form, run by ONNX Runtime through fastembed.
//!
//! Two sources: a folder with a `model.toml` (below), and the models that fastembed knows by name,
//! which are downloaded at start-up. Both end in the same loader: hash the files, open a session,
//! embed a probe, and refuse what does not fit with the command that mends it.
//!
//! What is set here and why:
//!
//! - One thread a session, no spinning: sessions are as many as cores, and a sidecar that idles
//!   must not burn its host's CPU.
//! - Dynamic quantization is refused: it scales by the largest value of the whole batch, so a
//!   text's vector would depend on the texts beside it and could not be remembered.
//! - The revision is a hash of the graph and the tokenizer as they are, not a name somebody wrote
//!   down: two files that differ can never share a space.
//! - The runtime library is loaded from a given path, once per process. Environment variables play
//!   no part, since a wrong one would be a panic.

mod folder;
mod hub;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use fastembed::{
    InitOptionsUserDefined, OutputKey, Pooling, QuantizationMode, TextEmbedding, TokenizerFiles,
    UserDefinedEmbeddingModel,
};
use ort::environment::Environment;
use parking_lot::Mutex;
use tokenizers::Tokenizer;

use super::model::{Model, ModelError, Session, Spec};
use crate::types::PartsHasher;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder that holds `model.toml`, `model.onnx`, `tokenizer.json`, `config.json`,
    /// `special_tokens_map.json` and `tokenizer_config.json`.
    Folder(PathBuf),
    /// A model that fastembed knows, downloaded into `cache` if it is not there yet.
    Named {
        /// For example `bge-small-en-v1.5`.
        name: String,
        /// A folder for downloaded files.
        cache: PathBuf,
    },
}

/// The model that `make setup` builds; without its folder that is the remedy, not a download of
/// another export of the same weights.
const BUILT_HERE: &str = "all-MiniLM-L6-v2";

impl Source {
    /// What `name` means: a folder below `models` or a path to one, else a model that fastembed
    /// lists, fetched into `cache`. `hub:NAME` always means the latter.
    pub fn resolve(name: &str, models: &Path, cache: PathBuf) -> Self {
        if let Some(listed) = name.strip_prefix("hub:") {
            return Self::Named { name: listed.to_owned(), cache };
        }
        // A relative path below `models` and one from here are told apart by which exists.
        let below = models.join(name);
        let folder = if below.is_dir() || !Path::new(name).is_dir() { below } else { PathBuf::from(name) };
        if !folder.is_dir() && name != BUILT_HERE && hub::is_known(name) {
            return Self::Named { name: name.to_owned(), cache };
        }
        Self::Folder(folder)
    }
}

/// An ONNX model.
pub struct Onnx {
    spec: Spec,
    files: Files,
    /// Neither cuts nor pads, so that it counts.
    tokenizer: Tokenizer,
    /// The token of all that the vocabulary lacks; one that covers every byte has none.
    unknown: Option<u32>,
    environment: Environment,
    /// The session of the probe, for the first worker that asks.
    spare: Mutex<Option<TextEmbedding>>,
}

/// The files of a model and how they are to be read. The graph is large and stays on disk; each
/// session reads it anew.
struct Files {
    graph: PathBuf,
    /// Weights that lie beside the graph, by the name the graph knows them by.
    weights: Vec<(String, PathBuf)>,
    tokenizer: TokenizerFiles,
    pooling: Pooling,
    output: Option<OutputKey>,
    /// The command that mends a damaged file.
    remedy: String,
}

/// What has been read of a model and not been tried yet.
struct Draft {
    /// Without its revision.
    spec: Spec,
    files: Files,
}

/// Loads a model with the runtime library at `library`, off the async runtime's threads: it
/// takes a fraction of a second from a folder, and minutes where a download is needed.
pub async fn load(source: Source, library: PathBuf) -> Result<Onnx, ModelError> {
    let loaded = tokio::task::spawn_blocking(move || Onnx::open(&source, &library)).await;
    loaded.unwrap_or_else(|_| Err(ModelError::Inference("the model's loader panicked".into())))
}

impl Onnx {
    /// Loads a model with the runtime library at `library`. Blocks; see [`load`].
    pub fn open(source: &Source, library: &Path) -> Result<Self, ModelError> {
        let draft = match source {
            Source::Folder(folder) => folder::read(folder)?,
            Source::Named { name, cache } => hub::fetch(name, cache)?,
        };
        // Batches are the unit of parallelism here; the tokenizers' own thread pool would compete
        // with the workers. This call does what its environment variable does.
        tokenizers::utils::parallelism::set_parallelism(false);
        Self::try_out(draft, environment(library)?)
    }

    /// Opens a session and embeds a probe, so that whatever is wrong shows itself at start-up.
    fn try_out(draft: Draft, environment: Environment) -> Result<Self, ModelError> {
        let Draft { mut spec, files } = draft;
        let (graph, weights) = files.read_graph()?;
        spec.revision = files.revision(&graph, &weights);
        let mut session = files.session(&spec, graph, weights, &environment)?;
        let probe = session.embed(["a probe"], None).map_err(|error| files.damaged(&error.to_string()))?;
        let components = probe.first().map_or(0, Vec::len);
        if components != spec.dimension {
            let problem = format!("its vectors have {components} components, and {} were announced", spec.dimension);
            return Err(files.damaged(&problem));
        }
        if !probe.iter().flatten().all(|value| value.is_finite()) {
            return Err(files.damaged("it returns vectors that are not numbers"));
        }
        let mut tokenizer = session.tokenizer.clone();
        tokenizer.with_truncation(None).map_err(|error| files.damaged(&error.to_string()))?.with_padding(None);
        tracing::info!(
            model = spec.name,
            revision = spec.revision,
            dimension = spec.dimension,
            tokens_max = spec.tokens_max,
            quantization = spec.quantization,
            "model loaded"
        );
        let unknown = unknown_token(&files.tokenizer).and_then(|token| tokenizer.token_to_id(&token));
        Ok(Self { spec, files, tokenizer, unknown, environment, spare: Mutex::new(Some(session)) })
    }
}

impl Model for Onnx {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn count_tokens(&self, text: &str) -> Result<usize, ModelError> {
        let encoding = self.tokenizer.encode_fast(text, true);
        encoding.map(|encoding| encoding.len()).map_err(|error| ModelError::Inference(error.to_string()))
    }

    fn knows(&self, text: &str) -> Result<bool, ModelError> {
        let Some(unknown) = self.unknown else { return Ok(true) };
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|error| ModelError::Inference(error.to_string()))?;
        Ok(!encoding.get_ids().contains(&unknown))
    }

    fn session(&self) -> Result<Box<dyn Session>, ModelError> {
        if let Some(spare) = self.spare.lock().take() {
            return Ok(Box::new(OnnxSession(spare)));
        }
        let (graph, weights) = self.files.read_graph()?;
        // A file replaced under a running process would mix two spaces.
        if self.files.revision(&graph, &weights) != self.spec.revision {
            return Err(self.files.damaged("it has changed since the process started; restart to use it"));
        }
        let session = self.files.session(&self.spec, graph, weights, &self.environment)?;
        Ok(Box::new(OnnxSession(session)))
    }
}

struct OnnxSession(TextEmbedding);

impl Session for OnnxSession {
    fn embed(&mut self, texts: &[Arc<str>]) -> Result<Vec<Vec<f32>>, ModelError> {
        // The batch was formed already: all of it in one run.
        self.0.embed(texts, Some(texts.len().max(1))).map_err(|error| ModelError::Inference(error.to_string()))
    }
}

/// Named contents of files.
type Weights = Vec<(String, Vec<u8>)>;

impl Files {
    fn read_graph(&self) -> Result<(Vec<u8>, Weights), ModelError> {
        let weights = self.weights.iter().map(|(name, path)| Ok((name.clone(), read(path, &self.remedy)?)));
        Ok((read(&self.graph, &self.remedy)?, weights.collect::<Result<_, ModelError>>()?))
    }

    /// 64 bits of BLAKE3 over all that turns a text into a vector.
    fn revision(&self, graph: &[u8], weights: &Weights) -> String {
        let mut hasher = PartsHasher::new("refrain model revision v1");
        hasher.part(graph).part(&self.tokenizer.tokenizer_file);
        for (name, bytes) in weights {
            hasher.part(name.as_bytes()).part(bytes);
        }
        hex::encode(&hasher.finish()[..8])
    }

    fn session(
        &self,
        spec: &Spec,
        graph: Vec<u8>,
        weights: Weights,
        environment: &Environment,
    ) -> Result<TextEmbedding, ModelError> {
        // Dynamic quantization was refused before, and the two other modes differ in nothing here.
        let mut model = UserDefinedEmbeddingModel::new(graph, self.tokenizer.clone())
            .with_quantization(QuantizationMode::None)
            .with_pooling(self.pooling.clone());
        model.output_key.clone_from(&self.output);
        for (name, bytes) in weights {
            model = model.with_external_initializer(name, bytes);
        }

        let mut options = InitOptionsUserDefined::new()
            .with_environment(environment.clone())
            .with_max_length(spec.tokens_max)
            .with_intra_threads(1)
            .with_session_config("session.intra_op.allow_spinning", "0");
        if spec.quantization == "static" && !multiplies_int8_exactly() {
            tracing::warn!("this CPU lacks VNNI: int8 runs slower here, in a mode that does not saturate");
            options = options.with_session_config("session.x64quantprecision", "1");
        }
        TextEmbedding::try_new_from_user_defined(model, options).map_err(|error| self.damaged(&error.to_string()))
    }

    fn damaged(&self, problem: &str) -> ModelError {
        asset(&self.graph, problem, &self.remedy)
    }
}

/// Whether products of int8 are summed without saturation, which x86 does only with VNNI.
fn multiplies_int8_exactly() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512vnni") || std::arch::is_x86_feature_detected!("avxvnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        true
    }
}

/// The version and build of the runtime library, for `doctor`. Loads it if it is not loaded yet.
pub fn runtime_build(library: &Path) -> Result<String, ModelError> {
    environment(library)?;
    // A library that is older than the interface would have been refused.
    Ok(format!("version 1.{} or newer, {}", ort::MINOR_VERSION, ort::info()))
}

/// The process's one environment of ONNX Runtime. The first library that loads stays; a path that
/// does not load is an error each time and leaves the way open for a better one.
fn environment(library: &Path) -> Result<Environment, ModelError> {
    static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);
    let mut environment = ENVIRONMENT.lock();
    if let Some(environment) = &*environment {
        return Ok(environment.clone());
    }
    let remedy = "Run `make setup`, or point embedding.onnxruntime at an ONNX Runtime library";
    if !library.is_file() {
        return Err(asset(library, "the file does not exist", remedy));
    }
    let loaded = ort::init_from(library).map_err(|error| asset(library, &error.to_string(), remedy))?;
    let built = loaded.with_telemetry(false).build().map_err(|error| asset(library, &error.to_string(), remedy))?;
    *environment = Some(built.clone());
    Ok(built)
}

fn read(path: &Path, remedy: &str) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|error| asset(path, &error.to_string(), remedy))
}

fn asset(what: &Path, problem: &str, remedy: &str) -> ModelError {
    ModelError::Asset { what: what.display().to_string(), problem: problem.into(), remedy: remedy.into() }
}

/// Where a tokenizer cuts, by its own files.
fn tokens_max(tokenizer: &TokenizerFiles) -> Option<usize> {
    let config: serde_json::Value = serde_json::from_slice(&tokenizer.tokenizer_config_file).ok()?;
    // Some files say 1e30 for "no limit", which saturates.
    config["model_max_length"].as_f64().map(|tokens| tokens as usize)
}

/// What stands for words outside the vocabulary, by the tokenizer's own files.
fn unknown_token(tokenizer: &TokenizerFiles) -> Option<String> {
    let map: serde_json::Value = serde_json::from_slice(&tokenizer.special_tokens_map_file).ok()?;
    let token = &map["unk_token"];
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

fn pooling(name: &str) -> Option<Pooling> {
    match name {
        "mean" => Some(Pooling::Mean),
        "cls" => Some(Pooling::Cls),
        _ => None,
    }
}

/// Why dynamically quantized models are not run.
const DYNAMIC_REFUSED: &str = "it is quantized dynamically, so that the vector of a text depends on the texts \
    embedded beside it and cannot be remembered";
