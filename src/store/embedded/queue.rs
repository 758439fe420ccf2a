//! A bounded queue between the async side and the engine's threads.
//!
//! Pushing never waits: a full queue refuses at once, before any work is done for the caller.
//! Several threads may pop. A closed queue takes nothing more, but what it holds is still popped,
//! so that closing drains.

use std::{collections::VecDeque, time::Duration};

use metrics::Gauge;
use parking_lot::{Condvar, Mutex};

/// Why a push was refused; the item is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The queue holds its maximum.
    Full { waiting: usize },
    /// The engine is closed, or its thread has ended.
    Closed,
}

/// What a pop with a time limit found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Popped<T> {
    Item(T),
    /// Nothing came in time.
    Idle,
    /// The queue is closed and empty: the thread may end.
    Closed,
}

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    length_max: usize,
    length: Gauge,
}

struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    /// A queue of at most `length_max` items whose length is reported to `length`.
    pub(super) fn new(length_max: usize, length: Gauge) -> Self {
        let state = Mutex::new(State { items: VecDeque::new(), closed: false });
        Self { state, arrived: Condvar::new(), length_max, length }
    }

    /// Adds an item or refuses at once.
    pub(super) fn push(&self, item: T) -> Result<(), Refused> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        let waiting = state.items.len();
        if waiting >= self.length_max {
            return Err(Refused::Full { waiting });
        }
        state.items.push_back(item);
        self.length.set((waiting + 1) as f64);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for an item; `None` once the queue is closed and empty.
    pub(super) fn pop(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if let Some(item) = self.take(&mut state) {
                return Some(item);
            }
            if state.closed {
                return None;
            }
            self.arrived.wait(&mut state);
        }
    }

    /// Waits for an item, at most for `patience`.
    pub(super) fn pop_within(&self, patience: Duration) -> Popped<T> {
        let mut state = self.state.lock();
        loop {
            if let Some(item) = self.take(&mut state) {
                return Popped::Item(item);
            }
            if state.closed {
                return Popped::Closed;
            }
            if self.arrived.wait_for(&mut state, patience).timed_out() {
                return self.take(&mut state).map_or(Popped::Idle, Popped::Item);
            }
        }
    }

    /// Takes the next item if one waits and `suits` agrees.
    pub(super) fn pop_if(&self, suits: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut state = self.state.lock();
        if suits(state.items.front()?) { self.take(&mut state) } else { None }
    }

    /// Refuses all further items; what waits is still popped.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Refuses all further items and drops those that wait, whose callers then see their reply
    /// channel close. For a thread that ends before its queue is empty.
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.items);
        drop(state);
        self.length.set(0.0);
        self.arrived.notify_all();
        drop(dropped);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    fn take(&self, state: &mut State<T>) -> Option<T> {
        let item = state.items.pop_front()?;
        self.length.set(state.items.len() as f64);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(length_max: usize) -> Queue<u32> {
        Queue::new(length_max, Gauge::noop())
    }

    #[test]
    fn a_full_queue_refuses_and_tells_how_many_wait() {
        let queue = queue(2);
        assert_eq!((queue.push(1), queue.push(2)), (Ok(()), Ok(())));
        assert_eq!(queue.push(3), Err(Refused::Full { waiting: 2 }));
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.push(3), Ok(()));
    }

    #[test]
    fn a_closed_queue_drains() {
        let queue = queue(2);
        queue.push(1).unwrap();
        queue.close();
        assert_eq!(queue.push(2), Err(Refused::Closed));
        assert_eq!(queue.pop_within(Duration::ZERO), Popped::Item(1));
        assert_eq!((queue.pop(), queue.pop_within(Duration::ZERO)), (None, Popped::Closed));
    }

    #[test]
    fn an_abandoned_queue_drops_what_waits() {
        let queue = queue(2);
        queue.push(1).unwrap();
        queue.abandon();
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn an_empty_queue_lets_the_thread_do_other_things() {
        assert_eq!(queue(1).pop_within(Duration::from_millis(1)), Popped::Idle);
    }

    #[test]
    fn the_next_item_can_be_left_where_it_is() {
        let queue = queue(2);
        queue.push(1).unwrap();
        assert_eq!(queue.pop_if(|&item| item == 2), None);
        assert_eq!(queue.pop_if(|&item| item == 1), Some(1));
        assert_eq!(queue.pop_if(|_| true), None);
    }
}
