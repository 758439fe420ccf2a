//! The only source of time.
//!
//! Everything that compares, stamps or expires asks a [`Clock`], so that tests move time instead
//! of waiting for it. `.clippy.toml` bans the standard library's own clocks elsewhere.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use crate::types::{Deadline, Timestamp};

/// A source of wall-clock and monotonic time; clones share it.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    /// The system's time shifted by milliseconds, for tests.
    Shifted(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// The machine's clocks plus an offset that [`Clock::advance`] moves.
    pub fn shifted() -> Self {
        Self(Source::Shifted(Arc::default()))
    }

    /// Moves a shifted clock forward; a system clock stays.
    pub fn advance(&self, by: Duration) {
        if let Source::Shifted(offset) = &self.0 {
            offset.fetch_add(by.as_millis() as i64, Ordering::SeqCst);
        }
    }

    /// Wall-clock time.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub fn now(&self) -> Timestamp {
        // A machine whose clock stands before 1970 gets the epoch; nothing stored could be older.
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp(since_epoch.as_millis() as i64 + self.offset_ms())
    }

    /// Monotonic time, for durations and deadlines.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub fn instant(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.offset_ms().max(0) as u64)
    }

    /// A deadline `budget` from now.
    pub fn deadline_in(&self, budget: Duration) -> Deadline {
        Deadline::at(self.instant() + budget)
    }

    fn offset_ms(&self) -> i64 {
        match &self.0 {
            Source::System => 0,
            Source::Shifted(offset) => offset.load(Ordering::SeqCst),
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}
