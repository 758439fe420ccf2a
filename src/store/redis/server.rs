//! What stands at the other end of the connection, and the engine's shared parts.
//!
//! Before the first command after every (re)connect the server is inspected: a failover or an
//! upgrade may have put another one there.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use parking_lot::RwLock;
use redis::{Pipeline, Value};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    NAME,
    connection::{Connection, Repeat},
    failure::{Failure, Refusal, no_resp3, no_search_module},
    keys::{LAYOUT, SCHEMA},
    metrics,
    reply::{Replies, field, integer, items, text},
    scripts,
    settings::Settings,
    state::NamespaceState,
};
use crate::{
    clock::Clock,
    store::Error,
    types::{Deadline, Namespace, SpaceId},
};

/// How many namespaces are remembered; forgetting one costs a round trip at its next use.
const NAMESPACES_MAX: u64 = 10_000;
/// The oldest search module whose replies can be read.
const SEARCH_VERSION_MIN: i64 = 20_800;
/// Older ones have crashes and vulnerabilities that are mended in this one.
const SEARCH_VERSION_SAFE: i64 = 21_010;

/// The parts that all ports of the engine share.
pub(super) struct Store {
    /// What the operator chose.
    pub(super) settings: Settings,
    /// The space this process embeds into, and its dimension.
    pub(super) space: (SpaceId, usize),
    /// The source of time.
    pub(super) clock: Clock,
    /// Background work, counted so that [`Store::close`] can wait for it.
    pub(super) tasks: TaskTracker,
    /// Cancelled when the engine closes.
    pub(super) closing: CancellationToken,
    /// Bounds the searches under way.
    pub(super) searches: Gate,
    /// Bounds the clean-ups of ghosts under way.
    pub(super) purges: Arc<Semaphore>,
    connection: Connection,
    namespaces: Cache<Namespace, Arc<NamespaceState>>,
    inspecting: tokio::sync::Mutex<()>,
    inspected: AtomicU64,
    facts: RwLock<Facts>,
    pub(super) sweeps_resumed: AtomicBool,
}

/// What the server is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Version of the server.
    pub(super) server: String,
    /// `standalone`, `cluster` or `sentinel`.
    pub(super) mode: String,
    /// Version of the search module as its number, 21005 for 2.10.5; `None` if it cannot be seen.
    pub(super) search: Option<i64>,
}

impl Store {
    /// Puts the parts together; nothing is sent yet.
    pub(super) fn new(settings: Settings, space: (SpaceId, usize), clock: Clock) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            connection: Connection::new(&settings, clock.clone())?,
            searches: Gate::new(settings.searches_in_flight_max, settings.searches_waiting_max),
            settings,
            space,
            clock,
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            purges: Arc::new(Semaphore::new(4)),
            namespaces: Cache::new(NAMESPACES_MAX),
            inspecting: tokio::sync::Mutex::default(),
            inspected: AtomicU64::new(0),
            facts: RwLock::default(),
            sweeps_resumed: AtomicBool::new(false),
        }))
    }

    /// What is remembered about a namespace.
    pub(super) fn namespace(&self, namespace: &Namespace) -> Arc<NamespaceState> {
        self.namespaces.get_with_by_ref(namespace, Arc::default)
    }

    /// The server as last inspected.
    pub(super) fn facts(&self) -> Facts {
        self.facts.read().clone()
    }

    /// Host and port of the server.
    pub(super) fn address(&self) -> String {
        self.connection.address()
    }

    /// Sends a pipeline to an inspected server: one round trip.
    pub(super) async fn run(
        self: &Arc<Self>,
        pipeline: &Pipeline,
        deadline: Option<Deadline>,
        repeat: Repeat,
    ) -> Result<Replies, Failure> {
        // The inspection counts against the same budget as the call that needs it.
        let limit = self.clock.deadline_in(self.settings.response_timeout);
        let deadline = deadline.map_or(limit, |deadline| deadline.min(limit));
        if self.inspected.load(Ordering::SeqCst) != self.connection.generation() {
            self.inspect_once(deadline).await?;
        }
        self.connection.send(pipeline, Some(deadline), repeat).await
    }

    /// Sends a pipeline that calls scripts; loads them if the server has forgotten them. A script
    /// that is not known does nothing, and the other commands beside one must bear repetition.
    pub(super) async fn run_script(
        self: &Arc<Self>,
        pipeline: &Pipeline,
        deadline: Option<Deadline>,
        repeat: Repeat,
    ) -> Result<Replies, Failure> {
        let replies = self.run(pipeline, deadline, repeat).await?;
        if !replies.any_is(Refusal::NoScript) {
            return Ok(replies);
        }
        self.run(&scripts::load_all(), deadline, Repeat::Once).await?;
        self.run(pipeline, deadline, repeat).await
    }

    /// Starts tracked background work.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Waits, unless the engine closes first; false then.
    pub(super) async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.closing.cancelled() => false,
        }
    }

    /// Looks at the server again, whatever is remembered.
    pub(super) async fn inspect_now(self: &Arc<Self>) -> Result<(), Failure> {
        let deadline = self.clock.deadline_in(self.settings.response_timeout);
        self.inspect(deadline).await
    }

    async fn inspect_once(self: &Arc<Self>, deadline: Deadline) -> Result<(), Failure> {
        let left = deadline.remaining(self.clock.instant()).ok_or(Failure::Silent)?;
        // Waiting is bounded: behind a frozen server every caller would stand in line here.
        let _turn = tokio::time::timeout(left, self.inspecting.lock()).await.map_err(|_| Failure::Silent)?;
        if self.inspected.load(Ordering::SeqCst) == self.connection.generation() {
            return Ok(());
        }
        self.inspect(deadline).await
    }

    async fn inspect(self: &Arc<Self>, deadline: Deadline) -> Result<(), Failure> {
        let mut pipeline = scripts::load_all();
        let loads = pipeline.len();
        pipeline.cmd("INFO").arg("server");
        pipeline.cmd("MODULE").arg("LIST");
        pipeline.cmd("COMMAND").arg("INFO").arg("FT.SEARCH");
        pipeline.cmd("SET").arg(SCHEMA).arg(LAYOUT).arg("NX");
        pipeline.cmd("GET").arg(SCHEMA);
        // Taken before sending: if the connection breaks meanwhile, the next call inspects again.
        let generation = self.connection.generation();
        let mut replies = self.connection.send(&pipeline, Some(deadline), Repeat::Once).await?;
        for _ in 0..loads {
            replies.skip();
        }
        let facts = read_facts(&mut replies)?;
        // A replica refuses to write the layout; reading it is what counts.
        replies.skip();
        check_layout(&replies.take()?)?;
        let changed = std::mem::replace(&mut *self.facts.write(), facts.clone()) != facts;
        if changed {
            announce(&facts, &self.address());
        }
        self.inspected.store(generation, Ordering::SeqCst);
        if !self.sweeps_resumed.swap(true, Ordering::SeqCst) {
            let store = Arc::clone(self);
            self.spawn(store.resume_sweeps());
        }
        Ok(())
    }

    /// Ends background work and waits for it, at most for `patience`.
    pub(super) async fn close(&self, patience: Duration) {
        self.closing.cancel();
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!("background work on Redis did not end in time; it is taken up at the next start");
        }
    }
}

fn announce(facts: &Facts, address: &str) {
    let search = facts.search.map_or_else(|| "unknown".to_owned(), version_text);
    tracing::info!(address, server = facts.server, search, mode = facts.mode, "connected to Redis");
    if facts.search.is_some_and(|version| version < SEARCH_VERSION_SAFE) {
        tracing::warn!(
            address,
            search,
            "this search module has known crashes and vulnerabilities: upgrade to RediSearch 2.10.10 or Redis 8"
        );
    }
}

/// Reads the replies to INFO, MODULE LIST and COMMAND INFO; a user may lack the right to any.
fn read_facts(replies: &mut Replies) -> Result<Facts, Failure> {
    let info = permitted(replies.take())?;
    let info = info.as_ref().and_then(text).unwrap_or_default();
    let line = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("unknown").to_owned()
    };
    let modules = permitted(replies.take())?;
    let command = permitted(replies.take())?;
    let search = modules.as_ref().and_then(items).and_then(|modules| {
        let named = |name: &str| modules.iter().find(|module| field(module, "name").and_then(text) == Some(name));
        named("search").or_else(|| named("searchlight"))
    });
    let has_command = command.as_ref().and_then(items).map(|found| found.iter().any(|item| *item != Value::Nil));
    if search.is_none() && (modules.is_some() && has_command.is_none() || has_command == Some(false)) {
        return Err(Failure::Final(no_search_module()));
    }
    let version = search.and_then(|module| field(module, "ver").and_then(integer));
    if version.is_some_and(|version| version < SEARCH_VERSION_MIN) {
        return Err(Failure::Final(no_resp3()));
    }
    Ok(Facts { server: line("redis_version"), mode: line("redis_mode"), search: version })
}

/// A reply, or `None` if the user may not ask.
fn permitted(reply: Result<Value, Failure>) -> Result<Option<Value>, Failure> {
    match reply {
        Ok(value) => Ok(Some(value)),
        Err(failure) if failure.is(Refusal::NoPermission) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn check_layout(found: &Value) -> Result<(), Failure> {
    match text(found) {
        Some(found) if found != LAYOUT => Err(Failure::Final(Error::SchemaMismatch {
            what: format!("the layout of the keys in Redis (key {SCHEMA})"),
            difference: format!("it is version {found}, this program writes version {LAYOUT}"),
            remedy: "Run the version of Refrain that wrote it, use another Redis server, or delete the keys \
                     refrain:* and start with an empty cache"
                .to_owned(),
        })),
        _ => Ok(()),
    }
}

/// A module's version number as people write it.
pub(super) fn version_text(version: i64) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// Lets a bounded number in and a bounded number wait: the server searches on one thread, so more
/// at once only make each other wait.
pub(super) struct Gate {
    inside: Semaphore,
    waiting: AtomicUsize,
    waiting_max: usize,
}

impl Gate {
    fn new(inside_max: usize, waiting_max: usize) -> Self {
        Self { inside: Semaphore::new(inside_max.max(1)), waiting: AtomicUsize::new(0), waiting_max }
    }

    /// Enters, waiting until `left` has passed; refused at once if too many wait already.
    pub(super) async fn enter(&self, left: Duration) -> Result<SemaphorePermit<'_>, Failure> {
        if let Ok(permit) = self.inside.try_acquire() {
            return Ok(permit);
        }
        let waiting = Waiting::begin(&self.waiting);
        if waiting.number > self.waiting_max {
            return Err(Failure::Final(Error::Overloaded { engine: NAME, waiting: self.waiting_max }));
        }
        match tokio::time::timeout(left, self.inside.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed, so only time runs out here.
            Ok(Err(_)) | Err(_) => Err(Failure::Silent),
        }
    }
}

/// One that waits, counted until it is dropped: a caller may go away at any time.
struct Waiting<'a> {
    count: &'a AtomicUsize,
    number: usize,
}

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        Self { count, number: count.fetch_add(1, Ordering::SeqCst) + 1 }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Measures a verb of the port and turns its failure into the port's error.
pub(super) async fn measured<T>(
    clock: &Clock,
    operation: &'static str,
    work: impl Future<Output = Result<T, Failure>> + Send,
) -> Result<T, Error> {
    let started = clock.instant();
    let outcome = work.await;
    metrics::operation(operation, clock.instant().saturating_duration_since(started));
    outcome.map_err(|failure| failure.into_error(operation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_gate_refuses_whom_it_cannot_let_wait() {
        let gate = Gate::new(1, 1);
        let inside = gate.enter(Duration::ZERO).await.unwrap();
        let waiting = gate.enter(Duration::from_secs(5));
        let refused = async {
            // By now the one before stands in line.
            tokio::task::yield_now().await;
            let refused = gate.enter(Duration::from_secs(5)).await;
            drop(inside);
            refused.map(drop)
        };
        let (waited, refused) = tokio::join!(waiting, refused);
        assert!(waited.is_ok());
        assert!(matches!(refused, Err(Failure::Final(Error::Overloaded { waiting: 1, .. }))));
        drop(waited);
        assert!(gate.enter(Duration::ZERO).await.is_ok());
    }
}
