//! One computation per text, however many ask for it at once.
//!
//! A flight is a computation under way, found by its address. The first to ask starts it, the
//! others join. It belongs to the queue and then to a worker, to none of those who wait: a caller
//! that goes away cancels nothing others wait for, and only when all have gone is the text dropped
//! before inference. A waiter's own deadline ends its own wait only; the flight's is the latest of
//! all. A failure reaches all who wait and is forgotten with the flight.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    error::Error,
    memo::{Address, Memo, Remembered},
    metrics,
    pick::{Cause, Lane},
    queue::{Job, View},
};
use crate::types::{Deadline, Vector};

/// How a flight ended.
#[derive(Clone)]
pub(super) enum Outcome {
    /// The text was embedded.
    Landed {
        vector: Vector,
        /// When a worker took the text.
        taken: Instant,
        /// How long the model took for its batch.
        inference: Duration,
    },
    /// The model failed or the text was refused.
    Failed(Error),
    /// It left the queue because nobody seemed to wait any more. Whoever does starts anew.
    Dropped,
}

/// A computation under way.
pub(super) struct Flight {
    /// `None` for an inference that is not to be remembered.
    address: Option<Address>,
    /// The text as the model reads it.
    text: Arc<str>,
    /// Its length before any cut.
    tokens: usize,
    interactive: AtomicBool,
    waiters: AtomicUsize,
    /// The latest deadline of all who wait, in nanoseconds after `base`; `u64::MAX` for none.
    deadline_ns: AtomicU64,
    base: Instant,
    /// `None` once it has ended.
    replies: Mutex<Option<Vec<oneshot::Sender<Outcome>>>>,
}

/// One who waits for a flight.
pub(super) struct Waiter {
    flight: Arc<Flight>,
    reply: oneshot::Receiver<Outcome>,
}

impl Waiter {
    /// Waits for the end of the flight. Cancel-safe: dropping the future only ends this wait.
    pub(super) async fn outcome(&mut self) -> Outcome {
        // A flight answers before it is dropped; a lost answer could only mean that it never flew.
        (&mut self.reply).await.unwrap_or(Outcome::Failed(Error::Closed))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.flight.waiters.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What came of asking for a text.
pub(super) enum Boarding {
    /// It was embedded a moment ago.
    Remembered(Remembered),
    /// It is being embedded; `promoted` if this caller moved it to the interactive lane.
    Joined { waiter: Waiter, promoted: bool },
    /// Nobody embeds it yet: the caller must hand the job to the queue.
    Started { waiter: Waiter, job: Text },
}

/// Who asks: how urgently and until when.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    pub(super) lane: Lane,
    pub(super) deadline: Option<Deadline>,
}

/// All flights under way.
pub(super) struct Board {
    flights: Mutex<HashMap<Address, Arc<Flight>>>,
    memo: Arc<Memo>,
    base: Instant,
}

impl Board {
    pub(super) fn new(memo: Arc<Memo>, base: Instant) -> Self {
        Self { flights: Mutex::default(), memo, base }
    }

    /// Joins the flight of a text or starts one.
    pub(super) fn board(self: &Arc<Self>, address: &Address, text: &Arc<str>, tokens: usize, asker: Asker) -> Boarding {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(address)
            && let Some(waiter) = flight.join(asker)
        {
            let promoted = asker.lane == Lane::Interactive && !flight.interactive.swap(true, Ordering::AcqRel);
            return Boarding::Joined { waiter, promoted };
        }
        // A flight remembers its vector before it leaves the board, so that whoever misses the
        // flight finds the vector here.
        if let Some(remembered) = self.memo.peek(address) {
            return Boarding::Remembered(remembered);
        }
        let (waiter, job) = self.start(Some(address.clone()), text, tokens, asker);
        flights.insert(address.clone(), Arc::clone(&job.flight));
        Boarding::Started { waiter, job }
    }

    /// Starts a flight that nobody can join and whose vector is not remembered.
    pub(super) fn start_alone(self: &Arc<Self>, text: &Arc<str>, tokens: usize, asker: Asker) -> (Waiter, Text) {
        self.start(None, text, tokens, asker)
    }

    fn start(
        self: &Arc<Self>,
        address: Option<Address>,
        text: &Arc<str>,
        tokens: usize,
        asker: Asker,
    ) -> (Waiter, Text) {
        let (sender, reply) = oneshot::channel();
        let flight = Arc::new(Flight {
            address,
            text: Arc::clone(text),
            tokens,
            interactive: AtomicBool::new(asker.lane == Lane::Interactive),
            waiters: AtomicUsize::new(1),
            deadline_ns: AtomicU64::new(deadline_ns(asker.deadline, self.base)),
            base: self.base,
            replies: Mutex::new(Some(vec![sender])),
        });
        let waiter = Waiter { flight: Arc::clone(&flight), reply };
        (waiter, Text { flight, board: Arc::clone(self) })
    }

    /// How many wait for a text, in any namespace.
    #[cfg(test)]
    pub(super) fn waiters(&self, text: &str) -> usize {
        let flights = self.flights.lock();
        let flights = flights.values().filter(|flight| *flight.text == *text);
        flights.map(|flight| flight.waiters.load(Ordering::Acquire)).sum()
    }

    /// Ends a flight: remembers its vector, takes it off the board and answers all who wait.
    fn end(&self, flight: &Arc<Flight>, outcome: &Outcome) {
        if let Some(address) = &flight.address {
            if let Outcome::Landed { vector, .. } = outcome {
                let remembered = Remembered { vector: vector.clone(), tokens: Some(flight.tokens) };
                self.memo.keep(address.clone(), remembered);
            }
            let mut flights = self.flights.lock();
            if flights.get(address).is_some_and(|there| Arc::ptr_eq(there, flight)) {
                flights.remove(address);
            }
        }
        let replies = flight.replies.lock().take().unwrap_or_default();
        for reply in replies {
            // A waiter that has gone needs no answer.
            let _ = reply.send(outcome.clone());
        }
    }
}

impl Flight {
    /// Adds a waiter, unless the flight has ended.
    fn join(self: &Arc<Self>, asker: Asker) -> Option<Waiter> {
        let mut replies = self.replies.lock();
        let (sender, reply) = oneshot::channel();
        replies.as_mut()?.push(sender);
        self.waiters.fetch_add(1, Ordering::AcqRel);
        self.deadline_ns.fetch_max(deadline_ns(asker.deadline, self.base), Ordering::AcqRel);
        Some(Waiter { flight: Arc::clone(self), reply })
    }

    fn deadline(&self) -> Option<Instant> {
        match self.deadline_ns.load(Ordering::Acquire) {
            u64::MAX => None,
            ns => Some(self.base + Duration::from_nanos(ns)),
        }
    }
}

/// A text in the queue or with a worker. Whatever becomes of it, its flight ends.
pub(super) struct Text {
    flight: Arc<Flight>,
    board: Arc<Board>,
}

impl Text {
    /// The text as the model reads it.
    pub(super) fn text(&self) -> &Arc<str> {
        &self.flight.text
    }

    /// Where its vector is remembered.
    pub(super) fn address(&self) -> Option<&Address> {
        self.flight.address.as_ref()
    }

    pub(super) fn end(self, outcome: &Outcome) {
        self.board.end(&self.flight, outcome);
    }
}

impl Job for Text {
    fn view(&self) -> View {
        let interactive = self.flight.interactive.load(Ordering::Acquire);
        View {
            lane: if interactive { Lane::Interactive } else { Lane::Bulk },
            deadline: self.flight.deadline(),
            abandoned: self.flight.waiters.load(Ordering::Acquire) == 0,
        }
    }

    fn dropped(self, cause: Cause) {
        metrics::dropped(cause);
        self.end(&Outcome::Dropped);
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        // Only a text that never met its end gets here with replies left: nobody may wait for ever.
        if self.flight.replies.lock().is_some() {
            self.board.end(&self.flight, &Outcome::Failed(Error::Closed));
        }
    }
}

/// A deadline on the flights' own scale.
fn deadline_ns(deadline: Option<Deadline>, base: Instant) -> u64 {
    let Some(deadline) = deadline else { return u64::MAX };
    let after = deadline.instant().saturating_duration_since(base).as_nanos();
    u64::try_from(after).unwrap_or(u64::MAX)
}
