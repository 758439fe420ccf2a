//! Hits, misses and savings: counted in the process, added to the engine's counters now and then,
//! so that a lookup never waits for its own statistics.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use metrics::{counter, histogram};
use parking_lot::Mutex;

use super::{
    Answer,
    receipt::{Outcome, Tier, Timings},
};
use crate::{
    error::{Fault as _, Kind},
    store::{CacheStore, Usage},
    telemetry::names,
    types::Namespace,
};

/// Namespaces whose counts may wait for the engine at a time. While the engine is away and more
/// than these are active, further counts are dropped and the drop is counted.
const NAMESPACES_WAITING_MAX: usize = 10_000;

const LOOKUPS: &str = "lookups";
const STORES: &str = "stores";
const HITS: &str = "hits.";
const MISSES: &str = "misses.";
const SAVED_INPUT_TOKENS: &str = "saved.input_tokens";
const SAVED_OUTPUT_TOKENS: &str = "saved.output_tokens";
const SAVED_COST_MICROS: &str = "saved.cost_micros";
const SAVED_LATENCY_US: &str = "saved.latency_us";

/// The counters of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Live entries.
    pub entries: u64,
    /// Lookups asked.
    pub lookups: u64,
    /// Hits of the exact tier.
    pub exact_hits: u64,
    /// Hits of the semantic tier.
    pub semantic_hits: u64,
    /// Misses by reason.
    pub misses: BTreeMap<String, u64>,
    /// Entries stored.
    pub stores: u64,
    /// What all hits together saved.
    pub saved: Usage,
}

type Counts = BTreeMap<String, u64>;

/// Collects counts until they are flushed.
#[derive(Debug, Default)]
pub(super) struct Collector {
    waiting: Mutex<HashMap<Namespace, Counts>>,
}

impl Collector {
    /// Counts a lookup and what it saved.
    pub(super) fn count_lookup(&self, namespace: &Namespace, answer: &Answer) {
        let receipt = &answer.receipt;
        let (outcome, detail) = match receipt.outcome {
            Outcome::Hit => ("hit", receipt.tier.map_or("", Tier::as_str)),
            Outcome::Miss => ("miss", receipt.miss_reason.map_or("", |reason| reason.as_str())),
        };
        counter!(names::CACHE_LOOKUPS, "outcome" => outcome, "detail" => detail).increment(1);
        let tier = receipt.tier.map_or("none", Tier::as_str);
        histogram!(names::CACHE_LOOKUP_SECONDS, "tier" => tier).record(receipt.timings.total.as_secs_f64());
        self.add(namespace, |counts| {
            *counts.entry(LOOKUPS.into()).or_default() += 1;
            let group = if receipt.outcome == Outcome::Hit { HITS } else { MISSES };
            *counts.entry(format!("{group}{detail}")).or_default() += 1;
            if let Some(entry) = &answer.entry {
                let usage = &entry.usage;
                for (name, saved) in [
                    (SAVED_INPUT_TOKENS, usage.input_tokens),
                    (SAVED_OUTPUT_TOKENS, usage.output_tokens),
                    (SAVED_COST_MICROS, usage.cost_micros),
                    (SAVED_LATENCY_US, usage.latency.as_micros() as u64),
                ] {
                    if saved > 0 {
                        let sum = counts.entry(name.into()).or_default();
                        *sum = sum.saturating_add(saved);
                    }
                }
            }
        });
    }

    /// Counts a store.
    pub(super) fn count_store(&self, namespace: &Namespace, timings: &Timings) {
        counter!(names::CACHE_STORES).increment(1);
        histogram!(names::CACHE_STORE_SECONDS).record(timings.total.as_secs_f64());
        self.add(namespace, |counts| *counts.entry(STORES.into()).or_default() += 1);
    }

    fn add(&self, namespace: &Namespace, count: impl FnOnce(&mut Counts)) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= NAMESPACES_WAITING_MAX && !waiting.contains_key(namespace) {
            counter!(names::CACHE_STATS_DROPPED).increment(1);
            return;
        }
        count(waiting.entry(namespace.clone()).or_default());
    }

    /// Hands all that waits to the engine; what it does not take goes on waiting.
    ///
    /// An engine that does not answer is asked once and not once a namespace: each of thousands
    /// would wait for a timeout, and a stopping server with them.
    pub(super) async fn flush(&self, store: &dyn CacheStore) {
        let batch = std::mem::take(&mut *self.waiting.lock());
        let mut answers = true;
        for (namespace, counts) in batch {
            let deltas: Vec<(String, u64)> = counts.into_iter().collect();
            let added = if answers { Some(store.add_counters(&namespace, &deltas).await) } else { None };
            if let Some(Err(error)) = &added {
                answers = error.kind() != Kind::Unavailable;
            }
            if !matches!(added, Some(Ok(()))) {
                self.add(&namespace, |counts| {
                    for (name, delta) in deltas {
                        *counts.entry(name).or_default() += delta;
                    }
                });
            }
        }
    }

    /// The engine's counters plus those that still wait here.
    pub(super) fn total(&self, namespace: &Namespace, counters: Vec<(String, u64)>, entries: u64) -> Stats {
        let mut counts: Counts = counters.into_iter().collect();
        if let Some(waiting) = self.waiting.lock().get(namespace) {
            for (name, delta) in waiting {
                let sum = counts.entry(name.clone()).or_default();
                *sum = sum.saturating_add(*delta);
            }
        }
        let read = |name: &str| counts.get(name).copied().unwrap_or_default();
        Stats {
            entries,
            lookups: read(LOOKUPS),
            exact_hits: read(&format!("{HITS}{}", Tier::Exact.as_str())),
            semantic_hits: read(&format!("{HITS}{}", Tier::Semantic.as_str())),
            misses: counts
                .iter()
                .filter_map(|(name, count)| Some((name.strip_prefix(MISSES)?.to_owned(), *count)))
                .collect(),
            stores: read(STORES),
            saved: Usage {
                input_tokens: read(SAVED_INPUT_TOKENS),
                output_tokens: read(SAVED_OUTPUT_TOKENS),
                cost_micros: read(SAVED_COST_MICROS),
                latency: Duration::from_micros(read(SAVED_LATENCY_US)),
            },
        }
    }
}
