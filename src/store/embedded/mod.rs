//! The embedded engine: SQLite for what must last, memory for what must be found fast.
//!
//! For one sidecar with a disk of its own and up to about 100,000 entries a namespace; several
//! sidecars that share a cache, or more entries, take the Redis engine.
//!
//! - One writer thread commits everything that waits as one transaction (`writer`); reader
//!   threads with connections of their own serve reads and vector scans. Both stand behind bounded
//!   queues: a full one refuses before any work. No SQL and no scan runs on the async runtime.
//! - Search is exact: a scan over the vectors of the namespace (`scan`). They are kept in memory
//!   for the one space the engine was opened with, and read from SQLite at the start. Entries of
//!   other spaces stay readable by key.
//! - Emptying a namespace retires its epoch, one row. What expired or was emptied is invisible at
//!   once and swept later (`sweep`).
//!
//! *What a crash loses:* of acknowledged writes nothing when the process dies, however it dies;
//! what a power cut may take is [`Durability`]'s choice. An unacknowledged write is there whole or
//! not at all.
//!
//! *Architecture invariant:* one process a data directory (`lock`), and only the writer thread
//! changes the file or the vectors. No `rusqlite` type leaves this folder.

mod failure;
mod lock;
pub mod metrics;
mod ports;
mod queue;
mod reads;
mod scan;
mod schema;
mod sweep;
mod top;
mod vectors;
mod writer;
mod writes;

#[cfg(test)]
mod tests;

use std::{
    num::{NonZeroU32, NonZeroUsize},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::Connection;
use serde::Deserialize;
use tokio::sync::oneshot;

use self::{
    failure::unavailable,
    lock::DirLock,
    queue::{Queue, Refused},
    vectors::{Change, Effect, Vectors},
    writer::{Command, Writer},
    writes::Verb,
};
use super::{Engine, Error, RequestId, Result};
use crate::{
    clock::Clock,
    types::{Deadline, Namespace, SpaceId},
};

/// The engine's name in receipts, logs and metrics.
const NAME: &str = "embedded";
/// The database inside the data directory.
const FILE_NAME: &str = "refrain.sqlite";

/// What an operator can set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Threads that read and search; 0 takes one a core.
    pub readers: usize,
    /// Operations that may wait, reads and writes each; more are refused.
    pub queue_length_max: NonZeroUsize,
    /// Rows that one transaction writes at most.
    pub write_batch_rows_max: NonZeroUsize,
    /// How often expired rows are looked for.
    #[serde(with = "humantime_serde")]
    pub sweep_interval: Duration,
    /// Rows that one step of the sweep removes at most; callers' writes run between two steps.
    pub sweep_rows_max: NonZeroUsize,
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// Page cache of each connection, in KiB.
    pub cache_kib: NonZeroU32,
}

/// What an acknowledged write survives.
///
/// [`Durability::PowerCut`] is the one to choose: since one commit serves all that wait, 64
/// callers who write together pay about half as much again for it (0.16 ms a write instead of
/// 0.10 ms), and one who writes alone waits 0.4 to 2.5 ms longer, which no lookup waits for
/// (`cargo bench --bench store`, two busy cores, a virtual disk).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// The death of the process, not a power cut: that may take the writes since the last
    /// checkpoint (some thousand), but damages nothing.
    ProcessCrash,
    /// A power cut too: every commit waits for the disk.
    PowerCut,
}

/// Opens the data directory, creating it if need be, and reads the vectors of `space` into memory.
///
/// `space` is the embedding space of the model in use and its dimension; without one, nothing is
/// found by similarity. Fails if another process has the directory, or if the file is damaged, is
/// not ours or was written by a newer version.
pub async fn open(dir: &Path, settings: Settings, space: Option<(SpaceId, usize)>, clock: Clock) -> Result<Engine> {
    let dir = dir.to_owned();
    let opened = tokio::task::spawn_blocking(move || Embedded::open(&dir, settings, space, clock)).await;
    let embedded = Arc::new(opened.map_err(|e| unavailable(format!("opening it failed: {e}")))??);
    let (cache, memo, health) = (Arc::clone(&embedded), Arc::clone(&embedded), embedded);
    Ok(Engine { name: NAME, cache, memo, health })
}

/// Work for a reader thread.
type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The async side of the engine; the other side is its threads.
struct Embedded {
    read_queue: Arc<Queue<Job>>,
    write_queue: Arc<Queue<Command>>,
    vectors: Arc<Vectors>,
    clock: Clock,
    path: PathBuf,
    settings: Settings,
    /// Joined by `close`: readers first, so that the writer's last checkpoint has the file alone.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Lets the threads end when the engine is dropped without being closed.
impl Drop for Embedded {
    fn drop(&mut self) {
        self.read_queue.close();
        self.write_queue.close();
    }
}

impl Embedded {
    fn open(dir: &Path, settings: Settings, space: Option<(SpaceId, usize)>, clock: Clock) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| {
            unavailable(format!("{} cannot be created: {e}. Choose a writable data directory", dir.display()))
        })?;
        let lock = DirLock::take(dir)?;
        let path = dir.join(FILE_NAME);
        let connection = schema::open_writer(&path, &settings)?;
        let vectors = Arc::new(Vectors::new(space));
        load(&connection, &vectors, &clock)?;

        let queue_length_max = settings.queue_length_max.get();
        let write_queue = Arc::new(Queue::new(queue_length_max, metrics::queue_length("write")));
        let read_queue = Arc::new(Queue::new(queue_length_max, metrics::queue_length("read")));
        let writer = Writer {
            connection,
            queue: Arc::clone(&write_queue),
            vectors: Arc::clone(&vectors),
            clock: clock.clone(),
            settings: settings.clone(),
            lock,
        };
        // Made first: should a thread fail to start, dropping it ends those that run.
        let embedded = Self { read_queue, write_queue, vectors, clock, path, settings, threads: Mutex::default() };
        for number in 0..embedded.reader_count() {
            let connection = schema::open_reader(&embedded.path, &embedded.settings)?;
            let jobs = Arc::clone(&embedded.read_queue);
            embedded.spawn(format!("refrain-read-{number}"), move || serve(&jobs, connection))?;
        }
        embedded.spawn("refrain-write".to_owned(), move || writer.run())?;
        Ok(embedded)
    }

    fn reader_count(&self) -> usize {
        match self.settings.readers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            readers => readers,
        }
    }

    fn spawn(&self, name: String, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(|e| unavailable(format!("a thread cannot be started: {e}. Raise the limit of processes")))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Runs `work` on a reader thread. Cancelling abandons it: if it has not begun, it never will.
    async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        deadline: Option<Deadline>,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let began = self.clock.instant();
        let timeout = || Error::Timeout { engine: NAME, operation };
        let budget = match deadline {
            None => Duration::MAX,
            Some(deadline) => deadline.remaining(began).ok_or_else(timeout)?,
        };
        let (reply, answer) = oneshot::channel();
        let clock = self.clock.clone();
        let job = move |connection: &mut Connection| {
            if reply.is_closed() {
                return;
            }
            let late = deadline.is_some_and(|deadline| deadline.is_past(clock.instant()));
            let result = if late { Err(Error::Timeout { engine: NAME, operation }) } else { work(connection) };
            // Whoever asked may have left meanwhile.
            let _ = reply.send(result);
        };
        self.read_queue.push(Box::new(job)).map_err(|refused| refusal(refused, "read"))?;
        let answer = tokio::time::timeout(budget, answer).await;
        metrics::operation(operation, self.clock.instant().saturating_duration_since(began));
        // The thread drops a reply unsent only if the work panicked, which was logged there.
        answer.map_err(|_| timeout())?.unwrap_or_else(|_| Err(unavailable(format!("{operation} broke off"))))
    }

    /// Has the writer thread run `verb`. Cancelling before it begins leaves nothing; after that it
    /// completes unseen.
    async fn write(&self, namespace: &Namespace, verb: Verb, request: Option<&RequestId>) -> Result<u64> {
        let (began, operation) = (self.clock.instant(), verb.name());
        let (reply, answer) = oneshot::channel();
        let command = Command { namespace: namespace.clone(), verb, request: request.cloned(), reply };
        self.write_queue.push(command).map_err(|refused| refusal(refused, "write"))?;
        let answer = answer.await;
        metrics::operation(operation, self.clock.instant().saturating_duration_since(began));
        answer.unwrap_or_else(|_| Err(failure::closed()))
    }

    async fn shut_down(&self) {
        let mut threads = std::mem::take(&mut *self.threads.lock());
        let writer = threads.pop();
        self.read_queue.close();
        join(threads).await;
        self.write_queue.close();
        join(Vec::from_iter(writer)).await;
    }
}

fn load(connection: &Connection, vectors: &Vectors, clock: &Clock) -> Result<()> {
    let began = clock.instant();
    let mut entries = 0_u64;
    reads::load(connection, vectors.space(), clock.now(), |namespace, id, expires, row| {
        entries += 1;
        vectors.apply_one(Effect { namespace, change: Change::Written { id, replaced: None, expires, row } });
    })
    .map_err(|e| failure::sql("reading the vectors", &e))?;
    metrics::vectors(vectors.held());
    let took_ms = clock.instant().saturating_duration_since(began).as_millis() as u64;
    tracing::info!(entries, vectors = vectors.held(), took_ms, "opened the embedded store");
    Ok(())
}

/// The body of a reader thread.
fn serve(jobs: &Queue<Job>, mut connection: Connection) {
    while let Some(job) = jobs.pop() {
        // A panic costs the one caller its answer, not the engine a thread. The connection is
        // sound: an open transaction ends while the panic unwinds.
        if catch_unwind(AssertUnwindSafe(|| job(&mut connection))).is_err() {
            tracing::error!("a read of the embedded store panicked");
        }
    }
}

async fn join(threads: Vec<JoinHandle<()>>) {
    // A thread that panicked has logged it; there is nothing else to do about it here.
    let _ = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join()))).await;
}

fn refusal(refused: Refused, queue: &'static str) -> Error {
    match refused {
        Refused::Full { waiting } => {
            metrics::refused(queue);
            Error::Overloaded { engine: NAME, waiting }
        }
        Refused::Closed => failure::closed(),
    }
}
