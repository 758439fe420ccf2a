//! What an operator can choose about the Redis engine.

use std::time::Duration;

use serde::Deserialize;

use crate::secret::Secret;

/// Settings of the Redis engine. Every field is required: the defaults live in one commented
/// file, not here.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where Redis is: `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    pub url: Secret,
    /// Which kind of vector index a namespace gets.
    pub index: IndexPolicy,
    /// With [`IndexPolicy::Auto`], a namespace with more live entries than this moves to HNSW.
    pub flat_entries_max: u64,
    /// The least breadth of an HNSW search; at least 50 and four times the wanted count are used.
    pub ef_runtime: u32,
    /// How long making a connection may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long any reply may take, whatever the caller's deadline.
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
    /// How long the server may search; a caller's nearer deadline shortens it.
    #[serde(with = "humantime_serde")]
    pub search_timeout: Duration,
    /// How many searches may be on their way at once: the server answers them one by one.
    pub searches_in_flight_max: usize,
    /// How many more may wait for their turn; beyond, searches are refused.
    pub searches_waiting_max: usize,
    /// How fast the keys of an emptied namespace are removed.
    pub sweep_keys_per_second: u32,
}

/// Which kind of vector index a namespace gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexPolicy {
    /// Exact search while the namespace is small, then HNSW.
    Auto,
    /// Exact search, whatever the size.
    Flat,
    /// HNSW from the first entry.
    Hnsw,
}

impl Settings {
    /// The number of live entries past which an exact index is replaced by HNSW.
    pub(super) fn promotion_threshold(&self) -> u64 {
        match self.index {
            IndexPolicy::Auto => self.flat_entries_max,
            IndexPolicy::Flat => u64::MAX,
            IndexPolicy::Hnsw => 0,
        }
    }
}
