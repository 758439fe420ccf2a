//! What every engine must do, written once against the ports and run on each.
//!
//! A case is an async function over a [`Harness`]; [`conformance!`] makes one test a case and
//! engine. Engines answer alike, so a case never asks which one it has.

mod entries;
mod isolation;
mod lifetime;
mod nearest;
mod small;
mod together;

use std::{
    any::Any,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use refrain::{
    clock::Clock,
    store::{CacheStore, Candidate, Detail, Engine, Entry, MemoStore, NearestQuery, NewEntry, Usage},
    types::{Attributes, Category, EntryId, Namespace, Prompt, Vector},
};

use crate::data::space;

/// An engine under test.
///
/// It is opened with the space of [`crate::data`], and everything it compares or stamps with time
/// comes from `clock`, a shifted one.
pub struct Harness {
    pub engine: Engine,
    pub clock: Clock,
    /// Tells the namespaces of this run from those an earlier one left on a server.
    run: i64,
    reopen: Option<Reopen>,
    /// Directories and servers that must outlive the engine.
    _kept: Box<dyn Any + Send + Sync>,
}

type Reopen = Box<dyn Fn() -> BoxFuture<'static, Engine> + Send + Sync>;

/// Namespaces are numbered over the whole process, since engines may share a server.
static NAMESPACES: AtomicU64 = AtomicU64::new(0);

impl Harness {
    /// An engine that follows `clock`; `kept` is dropped after it.
    pub fn new(engine: Engine, clock: Clock, kept: impl Any + Send + Sync) -> Self {
        let run = Clock::system().now().0;
        Self { engine, clock, run, reopen: None, _kept: Box::new(kept) }
    }

    /// How to open the same data again, after the engine was closed.
    pub fn with_reopen(self, reopen: impl Fn() -> BoxFuture<'static, Engine> + Send + Sync + 'static) -> Self {
        Self { reopen: Some(Box::new(reopen)), ..self }
    }

    /// Closes the engine and opens it again, as a restart would; false if this engine cannot.
    pub async fn reopen(&mut self) -> bool {
        let Some(reopen) = &self.reopen else { return false };
        self.engine.health.close().await;
        self.engine = reopen().await;
        true
    }

    pub fn cache(&self) -> &dyn CacheStore {
        &*self.engine.cache
    }

    pub fn memo(&self) -> &dyn MemoStore {
        &*self.engine.memo
    }

    /// A namespace that no other test and no earlier run has used.
    pub fn namespace(&self) -> Namespace {
        let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
        Namespace::new(&format!("t.{}.{}.{number}", std::process::id(), self.run)).expect("the name is valid")
    }

    /// An entry that lives for an hour and tells the prompt back.
    pub fn entry(&self, prompt: &str, attributes: &Attributes) -> Entry {
        let prompt = Prompt::new(prompt, 1 << 20).expect("test prompts are valid");
        let created = self.clock.now();
        Entry {
            id: EntryId::derive(&prompt, attributes),
            response: Bytes::from(format!("answer to {}", prompt.as_str())),
            prompt,
            attributes: attributes.clone(),
            category: Some(Category::new("test").expect("the category is valid")),
            content_type: "text/plain; charset=utf-8".to_owned(),
            usage: Usage { input_tokens: 7, output_tokens: 11, cost_micros: 13, latency: Duration::from_millis(17) },
            created,
            expires: created.plus(HOUR),
        }
    }

    /// Stores an entry, findable by `vector` if there is one; whether its key was free.
    pub async fn put(&self, namespace: &Namespace, entry: &Entry, vector: Option<&Vector>) -> bool {
        let new = NewEntry { entry: entry.clone(), vector: vector.map(|vector| (space(), vector.clone())) };
        self.cache().put(namespace, new, None).await.expect("put succeeds").created
    }

    pub async fn get(&self, namespace: &Namespace, id: &EntryId) -> Option<Entry> {
        self.cache().probe(namespace, id, None, None).await.expect("probe succeeds").entry
    }

    /// The nearest entries and the population.
    pub async fn nearest(
        &self,
        namespace: &Namespace,
        vector: &Vector,
        attributes: &Attributes,
        count: usize,
    ) -> (Vec<Candidate>, u64) {
        let query = NearestQuery { namespace, space: space(), vector, attributes, count, deadline: None };
        let nearest = self.cache().nearest(query).await.expect("nearest succeeds");
        assert!(!nearest.partial, "a small index is complete");
        (nearest.candidates, nearest.population)
    }

    /// Everything alive, read page by page.
    pub async fn all(&self, namespace: &Namespace, page_size: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut after = None;
        loop {
            let (page, next) =
                self.cache().list(namespace, after, page_size, Detail::Whole).await.expect("list succeeds");
            assert!(page.len() <= page_size, "a page of {} where {page_size} were asked", page.len());
            entries.extend(page);
            if next.is_none() {
                return entries;
            }
            assert_ne!(after, next, "a listing that does not move never ends");
            after = next;
        }
    }
}

pub const HOUR: Duration = Duration::from_hours(1);

/// Ids of candidates, in their order.
pub fn ids(candidates: &[Candidate]) -> Vec<EntryId> {
    candidates.iter().map(|candidate| candidate.id).collect()
}

/// One test for each case, on the engine that `open` makes.
macro_rules! conformance {
    ($engine:ident, $open:path) => {
        mod $engine {
            conformance! { @cases $open:
                entries: every_field_survives,
                entries: responses_of_any_kind_survive,
                entries: replacing_keeps_one_entry,
                entries: deleting_counts_the_living,
                entries: listing_is_complete_and_without_repeats,
                entries: requests_happen_once,
                entries: a_restart_keeps_everything,
                nearest: attribute_sets_must_be_equal,
                nearest: nearest_is_exact_enough,
                nearest: an_entry_without_vector_is_exact_only,
                nearest: other_spaces_are_unseen_but_readable,
                nearest: duplicates_hide_nobody,
                nearest: replacing_moves_the_vector,
                isolation: namespaces_never_meet,
                lifetime: expired_entries_are_gone_everywhere,
                lifetime: an_expired_key_is_free,
                lifetime: emptying_is_at_once_and_spares_what_follows,
                lifetime: a_past_deadline_is_a_timeout,
                small: counters_add_up_under_contention,
                small: memos_keep_order_and_namespace,
                small: memos_end,
                small: probe_reads_entry_and_memo,
                small: the_engine_is_healthy_and_describes_itself,
                together: tasks_never_see_half_an_entry,
                together: everyone_finds_what_they_wrote,
            }
        }
    };
    (@cases $open:path: $($group:ident: $case:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let mut harness = $open().await;
            super::$group::$case(&mut harness).await;
            harness.engine.health.close().await;
        }
    )*};
}

conformance!(embedded, crate::embedded_dir::open_embedded);
conformance!(redis, crate::redis_server::open_redis);
conformance!(embedded_sweeping, crate::embedded_dir::open_embedded_sweeping);
