//! The port behind which an embedding model stands.

use std::sync::Arc;

use crate::types::SpaceId;

/// What a text is for: some models mark queries and passages with different prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A question that looks for something.
    Query,
    /// Something to be found.
    Passage,
}

/// Everything that shapes a vector. Two specs that differ in any field are two spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The model's name, for example `all-MiniLM-L6-v2`.
    pub name: String,
    /// Which weights: a hash of the model's files.
    pub revision: String,
    /// How token vectors become one: `mean` or `cls`.
    pub pooling: String,
    /// `none` for fp32, else the scheme of the quantised weights.
    pub quantization: String,
    /// Components of a vector.
    pub dimension: usize,
    /// Longest text the model reads, special tokens included; the rest is cut.
    pub tokens_max: usize,
    /// Put before a query.
    pub query_prefix: String,
    /// Put before a passage.
    pub passage_prefix: String,
}

impl Spec {
    /// The fingerprint of the space.
    pub fn space(&self) -> SpaceId {
        SpaceId::derive(&[
            self.name.as_bytes(),
            self.revision.as_bytes(),
            self.pooling.as_bytes(),
            self.quantization.as_bytes(),
            &(self.dimension as u64).to_le_bytes(),
            &(self.tokens_max as u64).to_le_bytes(),
            self.query_prefix.as_bytes(),
            self.passage_prefix.as_bytes(),
        ])
    }

    /// The prefix for a purpose.
    pub fn prefix(&self, purpose: Purpose) -> &str {
        match purpose {
            Purpose::Query => &self.query_prefix,
            Purpose::Passage => &self.passage_prefix,
        }
    }
}

/// A loaded model: makes sessions that embed and counts tokens.
pub trait Model: Send + Sync {
    /// What shapes its vectors.
    fn spec(&self) -> &Spec;

    /// Tokens of `text` as the model would read it if nothing were cut, special tokens included.
    /// The prefix is the caller's to add.
    fn count_tokens(&self, text: &str) -> Result<usize, ModelError>;

    /// Whether the vocabulary covers all of `text`. What it lacks, such as a script or an emoji it was
    /// not trained on or a very long word, becomes one and the same token: texts that differ there only
    /// have one vector.
    fn knows(&self, text: &str) -> Result<bool, ModelError>;

    /// Opens a session; each worker thread owns one.
    fn session(&self) -> Result<Box<dyn Session>, ModelError>;
}

/// One inference session, owned by one thread.
pub trait Session: Send {
    /// Embeds texts (prefix included) as one batch. Returns one vector a text, not necessarily of
    /// unit length, in order. Longer texts are cut at [`Spec::tokens_max`].
    fn embed(&mut self, texts: &[Arc<str>]) -> Result<Vec<Vec<f32>>, ModelError>;
}

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the model or the runtime is missing or damaged.
    #[error("{what} cannot be used: {problem}. {remedy}")]
    Asset {
        /// The file or folder.
        what: String,
        /// What is wrong with it.
        problem: String,
        /// The command that mends it.
        remedy: String,
    },
    /// Inference or tokenising failed.
    #[error("the model failed: {0}")]
    Inference(String),
}
