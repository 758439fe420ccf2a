//! The stores: ports that speak the domain's verbs, and the engines behind them.
//!
//! *Architecture invariant:* a port's method is one atomic verb of the domain, never get or put;
//! how an engine makes it atomic (a Lua script, a transaction) is its own business. Domain modules
//! see only the traits of this file.

pub mod embedded;
pub mod redis;

mod error;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

pub use self::error::Error;
use crate::types::{
    Attributes, Category, Deadline, EntryId, Namespace, PartsHasher, Prompt, Similarity, SpaceId, Timestamp, Vector,
};

/// What every engine call returns.
pub type Result<T> = std::result::Result<T, Error>;

/// An engine: one store seen through its ports.
#[derive(Clone)]
pub struct Engine {
    /// `embedded` or `redis`, for receipts, logs and metrics.
    pub name: &'static str,
    /// Where cache entries live.
    pub cache: Arc<dyn CacheStore>,
    /// Where embeddings are remembered.
    pub memo: Arc<dyn MemoStore>,
    /// Whether the engine answers.
    pub health: Arc<dyn Health>,
}

/// A cached response with everything that is known about it, except its vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key, derived from prompt and attributes.
    pub id: EntryId,
    /// The normalised prompt this answers.
    pub prompt: Prompt,
    /// What a lookup must agree on.
    pub attributes: Attributes,
    /// The kind of question.
    pub category: Option<Category>,
    /// The response, any bytes.
    pub response: Bytes,
    /// Media type of the response, for example `text/plain; charset=utf-8`.
    pub content_type: String,
    /// What the response cost when it was made, hence what each hit saves.
    pub usage: Usage,
    /// When it was stored.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

/// What one model call cost; a hit saves it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt as billed.
    pub input_tokens: u64,
    /// Tokens of the response as billed.
    pub output_tokens: u64,
    /// Millionths of the caller's currency unit.
    pub cost_micros: u64,
    /// How long the call took.
    pub latency: Duration,
}

/// A position in a listing: the last entry already seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Its expiry, the order of a listing.
    pub expires: Timestamp,
    /// Its key, which orders entries of one expiry.
    pub id: EntryId,
}

/// How much of each entry a listing brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// All of it.
    Whole,
    /// All but the response, which comes back empty: bodies may be large and most readers of a
    /// listing do not look at them.
    Head,
}

/// Everything about a key that one round trip can tell.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    /// The entry under the key, if one is alive.
    pub entry: Option<Entry>,
    /// The prompt's memoized vector, if it was asked for and is known.
    pub vector: Option<Vector>,
}

/// A search for the nearest entries of a namespace.
#[derive(Clone, Copy, Debug)]
pub struct NearestQuery<'a> {
    /// Where to search.
    pub namespace: &'a Namespace,
    /// The space of `vector`; entries of other spaces are not seen.
    pub space: SpaceId,
    /// The query, unit length.
    pub vector: &'a Vector,
    /// Entries must have exactly this set.
    pub attributes: &'a Attributes,
    /// How many to return at most.
    pub count: usize,
    /// When nobody waits any more; a search that runs out of time is an error, never a miss.
    pub deadline: Option<Deadline>,
}

/// A near entry, without its body.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its key.
    pub id: EntryId,
    /// Cosine similarity to the query.
    pub similarity: Similarity,
    /// The prompt it answers, which guards compare with the one asked.
    pub prompt: Prompt,
    /// The kind of question.
    pub category: Option<Category>,
    /// When it was stored.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

/// The answer to a [`NearestQuery`].
#[derive(Clone, Debug, Default)]
pub struct Nearest {
    /// Nearest first; live ones only.
    pub candidates: Vec<Candidate>,
    /// Live entries of the namespace, whatever their attributes. Tells an empty cache from one
    /// whose entries were filtered out.
    pub population: u64,
    /// The index was still being built: an entry may be missing from the answer.
    pub partial: bool,
}

/// An entry to write with the vector that finds it.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// The entry.
    pub entry: Entry,
    /// Its vector and the space it lies in; `None` keeps the entry out of the semantic tier.
    pub vector: Option<(SpaceId, Vector)>,
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// Whether the key was free before; otherwise the old entry was replaced.
    pub created: bool,
    /// When the entry ends: for a repeated request, as the first one set it.
    pub expires: Timestamp,
}

/// A key chosen by the caller that makes a mutation happen once: a repeat within
/// [`RequestId::REMEMBERED`] returns what the first one did.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub Arc<str>);

impl RequestId {
    /// How long the outcome of a request is remembered.
    pub const REMEMBERED: Duration = Duration::from_mins(10);
    /// Longest accepted id, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// This id for one request alone, told by what it is about: a caller that takes the same id for
    /// another gets that one done too, and no outcome of something else.
    #[must_use]
    pub fn about<'a>(&self, what: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = PartsHasher::new("refrain request about v1");
        hasher.part(self.0.as_bytes());
        for part in what {
            hasher.part(part);
        }
        Self(hex::encode(&hasher.finish()[..16]).into())
    }
}

/// Where cache entries live.
///
/// All verbs are confined to one namespace. Cancelling a future of a read abandons it; a write,
/// once begun, completes or leaves nothing.
#[async_trait]
pub trait CacheStore: Send + Sync {
    /// Reads the entry under a key and, if `memo` is given, the vector under that memo key, in
    /// one round trip.
    async fn probe(
        &self,
        namespace: &Namespace,
        id: &EntryId,
        memo: Option<&MemoKey>,
        deadline: Option<Deadline>,
    ) -> Result<Probe>;

    /// Finds the nearest live entries.
    async fn nearest(&self, query: NearestQuery<'_>) -> Result<Nearest>;

    /// Writes an entry with its expiry in one atomic step, replacing what stood under its key.
    async fn put(&self, namespace: &Namespace, entry: NewEntry, request: Option<&RequestId>) -> Result<Put>;

    /// Deletes entries; returns how many of the ids were alive.
    async fn delete(&self, namespace: &Namespace, ids: &[EntryId], request: Option<&RequestId>) -> Result<u64>;

    /// Lists live entries after `after`, by expiry and key, at most `count`. The second value is
    /// where to go on; `None` at the end.
    async fn list(
        &self,
        namespace: &Namespace,
        after: Option<Cursor>,
        count: usize,
        detail: Detail,
    ) -> Result<(Vec<Entry>, Option<Cursor>)>;

    /// Empties a namespace at once, however large; returns how many entries were alive.
    async fn empty(&self, namespace: &Namespace, request: Option<&RequestId>) -> Result<u64>;

    /// What a mutation of many steps reported under this request id, if that is still remembered.
    /// The verbs above look by themselves.
    async fn recall_outcome(&self, namespace: &Namespace, request: &RequestId) -> Result<Option<u64>>;

    /// Remembers what a mutation of many steps reported. The first outcome stays.
    async fn remember_outcome(&self, namespace: &Namespace, request: &RequestId, outcome: u64) -> Result<()>;

    /// How many entries are alive.
    async fn count(&self, namespace: &Namespace) -> Result<u64>;

    /// Adds to the counters of a namespace, which live as long as it is used.
    /// Counters are named by the domain; an engine only adds them up.
    async fn add_counters(&self, namespace: &Namespace, deltas: &[(String, u64)]) -> Result<()>;

    /// The counters of a namespace.
    async fn counters(&self, namespace: &Namespace) -> Result<Vec<(String, u64)>>;
}

/// The key of a memoized embedding: BLAKE3 over the space and the text as the model sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MemoKey(pub [u8; 32]);

/// Where embeddings are remembered, per namespace, so that what one tenant asked cannot be seen
/// by another, not even by timing.
#[async_trait]
pub trait MemoStore: Send + Sync {
    /// Reads vectors in one round trip; the result has the order and length of `keys`.
    async fn read(
        &self,
        namespace: &Namespace,
        keys: &[MemoKey],
        deadline: Option<Deadline>,
    ) -> Result<Vec<Option<Vector>>>;

    /// Writes vectors with a lifetime, pipelined.
    async fn write(&self, namespace: &Namespace, vectors: &[(MemoKey, Vector)], ttl: Duration) -> Result<()>;
}

/// Whether an engine answers, and what it is.
#[async_trait]
pub trait Health: Send + Sync {
    /// Checks that the engine can serve; the error says what to do.
    async fn check(&self) -> Result<()>;

    /// Name and version of the parts, and settings that matter, for `doctor` and GetServerInfo.
    async fn describe(&self) -> Result<Vec<(String, String)>>;

    /// Finishes background work and flushes what is buffered; called once when the server stops.
    async fn close(&self);
}
