//! Values that must not be mixed up, each with a constructor that checks it once.
//!
//! What crosses the edge (gRPC, command line) is parsed into these types there; inside, they are
//! believed. Nothing in this file knows a server, a store or a model.

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::error::Invalid;

/// The unit of isolation: a tenant or an app. Every stored thing lies in exactly one.
///
/// 1 to 64 characters out of `A-Z a-z 0-9 _ - .`, so that a namespace can stand inside a Redis
/// hash tag and a metric label without escaping.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Longest accepted namespace, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Checks and takes a namespace.
    pub fn new(name: &str) -> Result<Self, Invalid> {
        if name.is_empty() {
            return Err(Invalid::new("namespace", "is empty; name the tenant or app, for example `default`"));
        }
        if name.len() > Self::BYTES_MAX {
            return Err(Invalid::new(
                "namespace",
                format!("has {} bytes; at most {} are allowed", name.len(), Self::BYTES_MAX),
            ));
        }
        if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))) {
            return Err(Invalid::new(
                "namespace",
                format!("holds the character {c:?}; use letters, digits, `_`, `-` and `.`"),
            ));
        }
        Ok(Self(name.into()))
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// What a caller asks, normalised so that invisible differences do not split the cache.
///
/// Normalised means: Unicode NFC, line ends as `\n`, no white space at either end. Inner white
/// space and case stay, since in code and data they carry meaning.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Prompt(Arc<str>);

impl Prompt {
    /// Normalises and checks a prompt of at most `bytes_max` bytes.
    pub fn new(text: &str, bytes_max: usize) -> Result<Self, Invalid> {
        // The limit is checked before normalising, so that hostile input costs nothing.
        if text.len() > bytes_max {
            return Err(Invalid::new(
                "prompt",
                format!("has {} bytes; at most {bytes_max} are allowed (limits.prompt_bytes_max)", text.len()),
            ));
        }
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(Invalid::new("prompt", "is empty"));
        }
        let needs_newlines = trimmed.contains('\r');
        let needs_nfc = is_nfc_quick(trimmed.chars()) != IsNormalized::Yes;
        let normalised: Arc<str> = match (needs_newlines, needs_nfc) {
            (false, false) => trimmed.into(),
            (false, true) => trimmed.nfc().collect::<String>().into(),
            (true, _) => trimmed.replace("\r\n", "\n").replace('\r', "\n").nfc().collect::<String>().into(),
        };
        Ok(Self(normalised))
    }

    /// Takes a prompt that was normalised when it was stored.
    pub fn stored(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The normalised text, shared rather than copied.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Debug for Prompt {
    /// Prompts are private: a debug print shows their length only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prompt({} bytes)", self.0.len())
    }
}

/// `key=value` pairs an entry and a lookup must agree on: LLM model, locale, user tier ...
///
/// A lookup and an entry agree when their sets are equal: an entry that carries a pair the lookup
/// does not name may hold an answer the caller must not see.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Attributes(BTreeMap<String, String>);

impl Attributes {
    /// Longest accepted key, in bytes.
    pub const KEY_BYTES_MAX: usize = 64;
    /// Longest accepted value, in bytes.
    pub const VALUE_BYTES_MAX: usize = 1024;

    /// Checks and takes at most `count_max` pairs.
    ///
    /// Keys are 1 to 64 characters out of `A-Z a-z 0-9 _ - .`; values are any text.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>, count_max: usize) -> Result<Self, Invalid> {
        let mut map = BTreeMap::new();
        for (key, value) in pairs {
            if key.is_empty() || key.len() > Self::KEY_BYTES_MAX {
                return Err(Invalid::new(
                    "attributes",
                    format!("a key has {} bytes; 1 to {} are allowed", key.len(), Self::KEY_BYTES_MAX),
                ));
            }
            if let Some(c) = key.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))) {
                return Err(Invalid::new(
                    "attributes",
                    format!("the key {key:?} holds {c:?}; use letters, digits, `_`, `-` and `.`"),
                ));
            }
            if value.len() > Self::VALUE_BYTES_MAX {
                return Err(Invalid::new(
                    "attributes",
                    format!(
                        "the value of {key:?} has {} bytes; at most {} are allowed",
                        value.len(),
                        Self::VALUE_BYTES_MAX
                    ),
                ));
            }
            if map.insert(key.clone(), value).is_some() {
                return Err(Invalid::new("attributes", format!("the key {key:?} stands twice")));
            }
        }
        if map.len() > count_max {
            return Err(Invalid::new(
                "attributes",
                format!("holds {} pairs; at most {count_max} are allowed (limits.attributes_max)", map.len()),
            ));
        }
        Ok(Self(map))
    }

    /// Takes pairs that were checked when they were stored.
    pub fn stored(map: BTreeMap<String, String>) -> Self {
        Self(map)
    }

    /// The pairs in key order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every pair of `other` stands here too.
    pub fn contains_all(&self, other: &Self) -> bool {
        other.0.iter().all(|(k, v)| self.0.get(k) == Some(v))
    }

    /// The map itself, for serialisers at the edges.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// A token that stands for the whole set: 32 hex characters of BLAKE3 over the
    /// length-prefixed pairs. It is safe inside any query language, whatever the values hold.
    pub fn token(&self) -> String {
        let mut hasher = PartsHasher::new("refrain attributes v1");
        for (key, value) in &self.0 {
            hasher.part(key.as_bytes()).part(value.as_bytes());
        }
        hex::encode(&hasher.finish()[..16])
    }
}

impl fmt::Debug for Attributes {
    /// Values may be private: a debug print shows the keys only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The label of a kind of question, with a lifetime and (later) a calibration of its own.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Category(Arc<str>);

impl Category {
    /// Longest accepted category, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Checks and takes a category: 1 to 64 characters out of `A-Z a-z 0-9 _ - .`.
    pub fn new(name: &str) -> Result<Self, Invalid> {
        if name.is_empty() || name.len() > Self::BYTES_MAX {
            return Err(Invalid::new(
                "category",
                format!("has {} bytes; 1 to {} are allowed", name.len(), Self::BYTES_MAX),
            ));
        }
        if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))) {
            return Err(Invalid::new(
                "category",
                format!("holds the character {c:?}; use letters, digits, `_`, `-` and `.`"),
            ));
        }
        Ok(Self(name.into()))
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The key of an entry: BLAKE3 over the normalised prompt and its attributes, cut to 160 bits.
///
/// It is deterministic, so storing the same prompt twice replaces rather than doubles, and long
/// enough that no two prompts of a namespace meet by accident or by design.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId([u8; 20]);

impl EntryId {
    /// Derives the key of a prompt under its attributes. Parts are length-prefixed: nothing a
    /// caller writes into one part can look like another.
    pub fn derive(prompt: &Prompt, attributes: &Attributes) -> Self {
        let mut hasher = PartsHasher::new("refrain entry v1");
        hasher.part(prompt.as_str().as_bytes());
        for (key, value) in attributes.iter() {
            hasher.part(key.as_bytes()).part(value.as_bytes());
        }
        let mut id = [0; 20];
        id.copy_from_slice(&hasher.finish()[..20]);
        Self(id)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// Takes raw bytes that an engine stored.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl FromStr for EntryId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut id = [0; 20];
        hex::decode_to_slice(text, &mut id)
            .map_err(|_| Invalid::new("entry_id", "is not 40 hex characters; take it from a receipt or a listing"))?;
        Ok(Self(id))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The fingerprint of an embedding space: model, revision, pooling, prefixes, quantisation and
/// dimension. Vectors of two spaces never meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpaceId([u8; 8]);

impl SpaceId {
    /// Derives the fingerprint from the parts that shape a vector.
    pub fn derive(parts: &[&[u8]]) -> Self {
        let mut hasher = PartsHasher::new("refrain space v1");
        for part in parts {
            hasher.part(part);
        }
        let mut id = [0; 8];
        id.copy_from_slice(&hasher.finish()[..8]);
        Self(id)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for SpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A unit-length embedding, shape `[dim]`, shared rather than copied.
#[derive(Clone, PartialEq)]
pub struct Vector(Arc<[f32]>);

impl Vector {
    /// Shortest norm that can be scaled to one without blowing noise up.
    const NORM_MIN: f64 = 1e-6;

    /// Checks `values` and scales them to unit length.
    ///
    /// NaN, infinity and (near) zero vectors are refused: RediSearch accepts them silently and
    /// lets them push real neighbours out of the top K.
    pub fn new(mut values: Vec<f32>) -> Result<Self, Invalid> {
        if values.is_empty() {
            return Err(Invalid::new("vector", "has no component"));
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Invalid::new("vector", format!("component {at} is not a finite number")));
        }
        // In double precision, so that large but finite components do not overflow.
        let norm = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        if norm < Self::NORM_MIN {
            return Err(Invalid::new("vector", "has no direction (its norm is zero)"));
        }
        // Vectors already of unit length stay as they are, so that a round trip through a store
        // changes no bit.
        if (norm - 1.0).abs() > 1e-6 {
            for value in &mut values {
                *value = (f64::from(*value) / norm) as f32;
            }
        }
        Ok(Self(values.into()))
    }

    /// Reads raw little-endian floats of exactly `dimension` components.
    pub fn from_le_bytes(bytes: &[u8], dimension: usize) -> Result<Self, Invalid> {
        if bytes.len() != dimension * 4 {
            return Err(Invalid::new(
                "vector",
                format!("has {} bytes; {dimension} floats need {}", bytes.len(), dimension * 4),
            ));
        }
        let values = bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        Self::new(values)
    }

    /// The components as raw little-endian floats.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * 4);
        for value in self.0.iter() {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// The components.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// Number of components.
    pub fn dimension(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vector(dim {})", self.0.len())
    }
}

/// Cosine similarity of two unit vectors, in [-1, 1].
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub struct Similarity(f32);

impl Similarity {
    /// Clamps rounding noise into [-1, 1]; `None` for NaN.
    pub fn new(value: f32) -> Option<Self> {
        (!value.is_nan()).then(|| Self(value.clamp(-1.0, 1.0)))
    }

    /// The similarity behind a cosine distance in [0, 2].
    pub fn from_distance(distance: f32) -> Option<Self> {
        Self::new(1.0 - distance)
    }

    /// The number itself.
    pub fn get(self) -> f32 {
        self.0
    }
}

impl fmt::Debug for Similarity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}", self.0)
    }
}

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This time plus a duration, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0) as u64)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// The instant after which nobody waits for the answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// A deadline at `instant`.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// What is left at `now`; `None` once it has passed.
    pub fn remaining(self, now: Instant) -> Option<Duration> {
        self.0.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Whether it has passed at `now`.
    pub fn is_past(self, now: Instant) -> bool {
        self.remaining(now).is_none()
    }

    /// The instant itself, for timers.
    pub fn instant(self) -> Instant {
        self.0
    }
}

/// BLAKE3 over length-prefixed parts under a purpose, so that no two lists of parts collide by
/// concatenation and no two purposes share a hash.
pub struct PartsHasher(blake3::Hasher);

impl PartsHasher {
    /// Starts a hash for one purpose.
    pub fn new(purpose: &str) -> Self {
        Self(blake3::Hasher::new_derive_key(purpose))
    }

    /// Adds one part.
    pub fn part(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The 256-bit hash.
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests;
