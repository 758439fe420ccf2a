//! The one thread that writes.
//!
//! Group commit: whatever waits when the thread looks is written in one transaction, each verb
//! under a savepoint of its own, so that one that fails takes no other with it. Replies go out
//! after the commit, and after the vectors in memory have followed. There is no timer: under load
//! the batch is what arrived during the last commit, without load it is one write.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::{
    Settings, failure,
    lock::DirLock,
    metrics,
    queue::{Popped, Queue},
    sweep,
    vectors::{Effect, Vectors},
    writes::{Scene, Verb},
};
use crate::{
    clock::Clock,
    store::{RequestId, Result},
    types::{Namespace, SpaceId},
};

/// A write that waits for its turn.
pub(super) struct Command {
    pub(super) namespace: Namespace,
    pub(super) verb: Verb,
    pub(super) request: Option<RequestId>,
    pub(super) reply: oneshot::Sender<Result<u64>>,
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) queue: Arc<Queue<Command>>,
    pub(super) vectors: Arc<Vectors>,
    pub(super) clock: Clock,
    pub(super) settings: Settings,
    /// Given up when the thread ends, after the last write.
    pub(super) lock: DirLock,
}

/// Refuses what still waits when the thread ends by a panic; after a clean end nothing waits.
struct Abandon(Arc<Queue<Command>>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Writer {
    /// Writes and sweeps until the queue is closed and empty, then checkpoints.
    pub(super) fn run(mut self) {
        let _abandon = Abandon(Arc::clone(&self.queue));
        let mut sweep_due = self.clock.instant();
        loop {
            match self.queue.pop_within(sweep_due.saturating_duration_since(self.clock.instant())) {
                Popped::Item(first) => {
                    let batch = self.gather(first);
                    self.commit(batch);
                }
                Popped::Idle => {}
                Popped::Closed => break,
            }
            sweep_due = self.sweep_if_due(sweep_due);
        }
        self.finish();
    }

    /// The first command and those that wait behind it, up to a limit of rows. Emptying a
    /// namespace stands alone, because it counts what the writes before it left.
    fn gather(&self, first: Command) -> Vec<Command> {
        let alone = |command: &Command| matches!(command.verb, Verb::Empty);
        let rows_max = self.settings.write_batch_rows_max.get();
        let mut rows = first.verb.rows();
        if alone(&first) {
            return vec![first];
        }
        let mut batch = vec![first];
        while let Some(next) = self.queue.pop_if(|next| !alone(next) && rows + next.verb.rows() <= rows_max) {
            rows += next.verb.rows();
            batch.push(next);
        }
        batch
    }

    fn commit(&mut self, mut batch: Vec<Command>) {
        // Nobody waits for these any more, and they have not begun.
        batch.retain(|command| !command.reply.is_closed());
        let rows = batch.iter().map(|command| command.verb.rows()).sum();
        let (work, replies): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|Command { namespace, verb, request, reply }| ((namespace, verb, request), reply))
            .unzip();
        if work.is_empty() {
            return;
        }
        let mut effects = Vec::new();
        match self.transact(work, &mut effects) {
            Ok(outcomes) => {
                self.vectors.apply(effects);
                metrics::committed(rows);
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    // Whoever left meanwhile finds the write done.
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                tracing::error!(%error, writes = replies.len(), "a transaction of the embedded store failed");
                for reply in replies {
                    let _ = reply.send(Err(failure::sql("writing", &error)));
                }
            }
        }
    }

    /// Runs every verb in one transaction. An error means that nothing was written.
    fn transact(
        &mut self,
        work: Vec<(Namespace, Verb, Option<RequestId>)>,
        effects: &mut Vec<Effect>,
    ) -> rusqlite::Result<Vec<Result<u64>>> {
        let now = self.clock.now();
        let space: Option<SpaceId> = self.vectors.space().map(|(space, _)| space);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let step = |sql: &str| transaction.prepare_cached(sql)?.execute(());
        let mut outcomes = Vec::with_capacity(work.len());
        for (namespace, verb, request) in work {
            let population = match verb {
                Verb::Empty => self.vectors.population(&namespace, now),
                _ => 0,
            };
            let scene = Scene { connection: &transaction, now, space, namespace: &namespace, population };
            let (name, effects_before) = (verb.name(), effects.len());
            step("SAVEPOINT verb")?;
            match scene.run(verb, request.as_ref(), effects) {
                Ok(outcome) => outcomes.push(Ok(outcome)),
                // A full disk or a failing one makes SQLite drop the whole transaction itself.
                Err(error) if transaction.is_autocommit() => return Err(error),
                Err(error) => {
                    effects.truncate(effects_before);
                    step("ROLLBACK TO verb")?;
                    outcomes.push(Err(failure::sql(name, &error)));
                }
            }
            step("RELEASE verb")?;
        }
        transaction.commit()?;
        Ok(outcomes)
    }

    fn sweep_if_due(&mut self, due: Instant) -> Instant {
        let began = self.clock.instant();
        if began < due {
            return due;
        }
        let pause = self.sweep(began).unwrap_or_else(|error| {
            tracing::warn!(%error, "a sweep of the embedded store failed; it is tried again");
            self.settings.sweep_interval.max(Duration::from_secs(1))
        });
        self.clock.instant() + pause
    }

    /// One chunk; returns how long to wait before the next.
    fn sweep(&mut self, began: Instant) -> rusqlite::Result<Duration> {
        let mut effects = Vec::new();
        let now = self.clock.now();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut swept = sweep::chunk(&transaction, now, self.settings.sweep_rows_max.get(), &mut effects)?;
        transaction.commit()?;
        self.vectors.apply(effects);
        if swept.rows > 0 {
            metrics::swept(swept.rows);
        }
        swept.more |= sweep::release_pages(&self.connection)?;
        let took = self.clock.instant().saturating_duration_since(began);
        Ok(sweep::pause(&swept, took, self.settings.sweep_interval))
    }

    /// Moves the log into the file, so that the next start reads one file.
    fn finish(self) {
        let checkpoint = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, i64>(0));
        if let Err(error) = checkpoint {
            tracing::warn!(%error, "the last checkpoint failed; the log is replayed at the next start");
        }
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "the embedded store did not close cleanly");
        }
        drop(self.lock);
    }
}
