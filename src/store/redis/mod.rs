//! The Redis engine: entries as hashes, found by key or through a vector index of the search
//! module.
//!
//! - `keys` makes all names, `search` all FT.* commands; nothing else does either.
//! - Every verb is one pipeline or one script; a write has its expiry from the first moment.
//! - A namespace has an epoch in its keys and in the name of its index. Emptying it moves the
//!   epoch on; every reply tells the epoch, so every sidecar notices with its next call. An epoch
//!   is never used twice: one that is lost reads as an emptied namespace, never as an old one.
//! - A search that ran out of time is an error, never a miss. Dead entries that the index still
//!   holds are dropped here and never take the places of live ones.
//! - Nothing is written to an entry after it was stored.
//!
//! What it does not do: Redis Cluster (names are ready for it, the connection is not), Sentinel,
//! and deciding whether a near entry is a hit.

mod cache;
mod connection;
mod entry;
mod failure;
mod health;
mod index;
mod keys;
mod memo;
pub mod metrics;
mod nearest;
mod reply;
mod scripts;
mod search;
mod server;
mod settings;
mod state;
mod sweep;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::settings::{IndexPolicy, Settings};
use self::{
    failure::Failure,
    failure::Refusal,
    server::{Store, measured},
};
use crate::{
    clock::Clock,
    store::{
        CacheStore, Cursor, Detail, Engine, Entry, Health, MemoKey, MemoStore, Nearest, NearestQuery, NewEntry, Probe,
        Put, RequestId, Result,
    },
    types::{Deadline, EntryId, Namespace, SpaceId, Vector},
};

/// The engine's name in receipts, logs and metrics.
pub const NAME: &str = "redis";

/// How long closing waits for background work.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Opens the engine for a space and the dimension of its vectors.
///
/// A server that cannot be reached is no error here: the engine's calls answer `Unavailable`
/// until it comes, and heal by themselves. A server that is reached and cannot serve is one: the
/// search module is missing, the layout is another version's, user or password are refused.
pub async fn open(settings: Settings, space: (SpaceId, usize), clock: Clock) -> Result<Engine> {
    let store = Store::new(settings, space, clock)?;
    match store.inspect_now().await {
        Ok(()) => {}
        Err(failure) if is_permanent(&failure) => return Err(failure.into_error("open")),
        Err(failure) => {
            tracing::warn!(address = store.address(), ?failure, "Redis does not answer yet; calls fail until it does");
        }
    }
    let redis = Arc::new(Redis(store));
    Ok(Engine { name: NAME, cache: redis.clone(), memo: redis.clone(), health: redis })
}

fn is_permanent(failure: &Failure) -> bool {
    match failure {
        Failure::Final(_) => true,
        Failure::Reply(refusal, _) => matches!(refusal, Refusal::NoAuthentication | Refusal::NoPermission),
        Failure::Lost(_) | Failure::Silent => false,
    }
}

/// The ports, all on one store.
struct Redis(Arc<Store>);

#[async_trait]
impl CacheStore for Redis {
    async fn probe(
        &self,
        namespace: &Namespace,
        id: &EntryId,
        memo: Option<&MemoKey>,
        deadline: Option<Deadline>,
    ) -> Result<Probe> {
        measured(&self.0.clock, "probe", self.0.probe(namespace, id, memo, deadline)).await
    }

    async fn nearest(&self, query: NearestQuery<'_>) -> Result<Nearest> {
        measured(&self.0.clock, "nearest", self.0.nearest(query)).await
    }

    async fn put(&self, namespace: &Namespace, entry: NewEntry, request: Option<&RequestId>) -> Result<Put> {
        measured(&self.0.clock, "put", self.0.put(namespace, entry, request)).await
    }

    async fn delete(&self, namespace: &Namespace, ids: &[EntryId], request: Option<&RequestId>) -> Result<u64> {
        measured(&self.0.clock, "delete", self.0.delete(namespace, ids, request)).await
    }

    async fn list(
        &self,
        namespace: &Namespace,
        after: Option<Cursor>,
        count: usize,
        detail: Detail,
    ) -> Result<(Vec<Entry>, Option<Cursor>)> {
        measured(&self.0.clock, "list", self.0.list(namespace, after, count, detail)).await
    }

    async fn empty(&self, namespace: &Namespace, request: Option<&RequestId>) -> Result<u64> {
        measured(&self.0.clock, "empty", self.0.empty(namespace, request)).await
    }

    async fn recall_outcome(&self, namespace: &Namespace, request: &RequestId) -> Result<Option<u64>> {
        measured(&self.0.clock, "recall_outcome", self.0.recall_outcome(namespace, request)).await
    }

    async fn remember_outcome(&self, namespace: &Namespace, request: &RequestId, outcome: u64) -> Result<()> {
        measured(&self.0.clock, "remember_outcome", self.0.remember_outcome(namespace, request, outcome)).await
    }

    async fn count(&self, namespace: &Namespace) -> Result<u64> {
        measured(&self.0.clock, "count", self.0.count(namespace)).await
    }

    async fn add_counters(&self, namespace: &Namespace, deltas: &[(String, u64)]) -> Result<()> {
        measured(&self.0.clock, "add_counters", self.0.add_counters(namespace, deltas)).await
    }

    async fn counters(&self, namespace: &Namespace) -> Result<Vec<(String, u64)>> {
        measured(&self.0.clock, "counters", self.0.counters(namespace)).await
    }
}

#[async_trait]
impl MemoStore for Redis {
    async fn read(
        &self,
        namespace: &Namespace,
        keys: &[MemoKey],
        deadline: Option<Deadline>,
    ) -> Result<Vec<Option<Vector>>> {
        measured(&self.0.clock, "memo_read", self.0.read_memo(namespace, keys, deadline)).await
    }

    async fn write(&self, namespace: &Namespace, vectors: &[(MemoKey, Vector)], ttl: Duration) -> Result<()> {
        measured(&self.0.clock, "memo_write", self.0.write_memo(namespace, vectors, ttl)).await
    }
}

#[async_trait]
impl Health for Redis {
    async fn check(&self) -> Result<()> {
        measured(&self.0.clock, "check", self.0.check()).await
    }

    async fn describe(&self) -> Result<Vec<(String, String)>> {
        measured(&self.0.clock, "describe", self.0.describe()).await
    }

    async fn close(&self) {
        self.0.close(CLOSE_PATIENCE).await;
    }
}
