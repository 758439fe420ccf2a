//! What has been embedded before: a tier in this process and a tier in the engine.
//!
//! Both are per namespace, so that what one tenant asked cannot be seen by another, not even by
//! timing. Both are hints: a failing engine costs an inference, never an answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use moka::sync::Cache;
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::task::TaskTracker;

use super::metrics;
use crate::{
    clock::Clock,
    store::{MemoKey, MemoStore},
    types::{Deadline, Namespace, Vector},
};

/// Where a vector is remembered: what one namespace asked is not seen by another.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) namespace: Namespace,
    pub(super) key: MemoKey,
}

/// A vector with what else is known of its text.
#[derive(Clone)]
pub(super) struct Remembered {
    pub(super) vector: Vector,
    /// Length of the text in tokens before any cut; unknown if the vector came from the engine.
    pub(super) tokens: Option<usize>,
}

/// How the memo does, since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoStats {
    /// Vectors found in this process.
    pub process_hits: u64,
    /// Vectors found in the engine.
    pub engine_hits: u64,
    /// Vectors that had to be computed.
    pub misses: u64,
    /// Reads of the engine that failed.
    pub reads_failed: u64,
    /// Writes to the engine that failed.
    pub writes_failed: u64,
    /// Vectors not written to the engine because too many writes were under way.
    pub writes_skipped: u64,
    /// Vectors held in this process, about.
    pub entries: u64,
    /// Bytes held in this process, about.
    pub bytes: u64,
}

/// Both tiers.
pub(super) struct Memo {
    process: Cache<Address, Held>,
    engine: Arc<dyn MemoStore>,
    writes: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Workers are threads outside the runtime; their writes are spawned through this.
    runtime: Handle,
    ttl: Duration,
    dimension: usize,
    clock: Clock,
    counters: Arc<Counters>,
}

/// The bounds of both tiers.
pub(super) struct Options {
    pub(super) bytes_max: u64,
    pub(super) ttl: Duration,
    pub(super) writes_in_flight_max: usize,
    pub(super) dimension: usize,
}

#[derive(Clone)]
struct Held {
    remembered: Remembered,
    expires: Instant,
}

#[derive(Default)]
struct Counters {
    process_hits: AtomicU64,
    engine_hits: AtomicU64,
    misses: AtomicU64,
    reads_failed: AtomicU64,
    writes_failed: AtomicU64,
    writes_skipped: AtomicU64,
}

/// What an entry weighs beside its vector: key, pointers and the cache's own records, rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 256;

impl Memo {
    pub(super) fn new(engine: Arc<dyn MemoStore>, options: &Options, runtime: Handle, clock: Clock) -> Self {
        let weigh = |_: &Address, held: &Held| (held.remembered.vector.dimension() * 4 + ENTRY_OVERHEAD_BYTES) as u32;
        let process = Cache::builder().max_capacity(options.bytes_max).weigher(weigh).build();
        Self {
            process,
            engine,
            writes: Arc::new(Semaphore::new(options.writes_in_flight_max.min(Semaphore::MAX_PERMITS))),
            tasks: TaskTracker::new(),
            runtime,
            ttl: options.ttl,
            dimension: options.dimension,
            clock,
            counters: Arc::default(),
        }
    }

    /// Looks in this process; counts a hit.
    pub(super) fn recall(&self, address: &Address) -> Option<Remembered> {
        let remembered = self.peek(address)?;
        self.counters.process_hits.fetch_add(1, Ordering::Relaxed);
        metrics::memo_hits("process", 1);
        Some(remembered)
    }

    /// Looks in this process without counting, for a second look at the same text.
    pub(super) fn peek(&self, address: &Address) -> Option<Remembered> {
        let held = self.process.get(address)?;
        if held.expires <= self.clock.instant() {
            self.process.invalidate(address);
            return None;
        }
        Some(held.remembered)
    }

    /// Puts a vector into this process's tier.
    pub(super) fn keep(&self, address: Address, remembered: Remembered) {
        if remembered.vector.dimension() == self.dimension {
            let expires = self.clock.instant() + self.ttl;
            self.process.insert(address, Held { remembered, expires });
        }
    }

    /// Counts vectors that an engine had.
    pub(super) fn count_engine_hits(&self, count: u64) {
        self.counters.engine_hits.fetch_add(count, Ordering::Relaxed);
        metrics::memo_hits("engine", count);
    }

    /// Counts texts that have to be computed.
    pub(super) fn count_misses(&self, count: u64) {
        self.counters.misses.fetch_add(count, Ordering::Relaxed);
        metrics::memo_misses(count);
    }

    /// Reads the engine's tier in one round trip; as long as `keys`. Hits are kept in this
    /// process. A failure is counted and reads as nothing found.
    pub(super) async fn read(
        &self,
        namespace: &Namespace,
        keys: &[MemoKey],
        deadline: Option<Deadline>,
    ) -> Vec<Option<Vector>> {
        let mut found = match self.engine.read(namespace, keys, deadline).await {
            Ok(found) if found.len() == keys.len() => found,
            Ok(found) => {
                tracing::warn!(asked = keys.len(), got = found.len(), "the engine's memo answered out of step");
                return self.read_failed(keys.len());
            }
            Err(error) => {
                tracing::debug!(%error, "the engine's memo could not be read");
                return self.read_failed(keys.len());
            }
        };
        let mut hits = 0;
        for (key, slot) in keys.iter().zip(&mut found) {
            // A vector of another length cannot be of this space, whatever its key says.
            *slot = slot.take().filter(|vector| vector.dimension() == self.dimension);
            if let Some(vector) = slot {
                hits += 1;
                let address = Address { namespace: namespace.clone(), key: *key };
                self.keep(address, Remembered { vector: vector.clone(), tokens: None });
            }
        }
        self.count_engine_hits(hits);
        found
    }

    /// Writes vectors to the engine in the background. Beyond the bound they are not written.
    pub(super) fn write_behind(&self, namespace: Namespace, vectors: Vec<(MemoKey, Vector)>) {
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else {
            let count = vectors.len() as u64;
            self.counters.writes_skipped.fetch_add(count, Ordering::Relaxed);
            metrics::memo_writes_skipped(count);
            return;
        };
        let (engine, counters, ttl) = (Arc::clone(&self.engine), Arc::clone(&self.counters), self.ttl);
        let write = async move {
            if let Err(error) = engine.write(&namespace, &vectors, ttl).await {
                counters.writes_failed.fetch_add(1, Ordering::Relaxed);
                metrics::memo_failure("write");
                tracing::debug!(%error, vectors = vectors.len(), "vectors could not be remembered by the engine");
            }
            drop(permit);
        };
        self.tasks.spawn_on(write, &self.runtime);
    }

    /// Waits for the writes under way.
    pub(super) async fn flush(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Lets the cache finish its own housekeeping, which it otherwise does by and by.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        self.process.run_pending_tasks();
    }

    pub(super) fn stats(&self) -> MemoStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MemoStats {
            process_hits: read(&self.counters.process_hits),
            engine_hits: read(&self.counters.engine_hits),
            misses: read(&self.counters.misses),
            reads_failed: read(&self.counters.reads_failed),
            writes_failed: read(&self.counters.writes_failed),
            writes_skipped: read(&self.counters.writes_skipped),
            entries: self.process.entry_count(),
            bytes: self.process.weighted_size(),
        }
    }

    fn read_failed(&self, count: usize) -> Vec<Option<Vector>> {
        self.counters.reads_failed.fetch_add(1, Ordering::Relaxed);
        metrics::memo_failure("read");
        vec![None; count]
    }
}
