//! The limits of the room, as the config file gives them.

use std::time::Duration;

use serde::Deserialize;

use super::{pick::Limits, queue::Bounds};

/// How many workers there are, what may wait, what a batch may hold and what is remembered.
///
/// All fields are required: the commented config file supplies them and is their manual.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Worker threads, each with a model session of its own; 0 means one per core. With two or
    /// more, the first is reserved for the interactive lane.
    pub workers: usize,
    /// Most tokens that wait in a lane; more are refused.
    pub queue_tokens_max: usize,
    /// Most texts that wait in a lane; more are refused.
    pub queue_rows_max: usize,
    /// Most padded tokens (rows times longest) in a batch.
    pub batch_tokens_max: usize,
    /// Most texts in an interactive batch.
    pub batch_rows_max: usize,
    /// Most texts in a bulk batch, the slice that a question may have to wait for.
    pub bulk_rows_max: usize,
    /// A bulk text that has waited this long gets a turn also while interactive texts wait.
    #[serde(with = "humantime_serde")]
    pub bulk_wait_max: Duration,
    /// The reserved worker helps with bulk after this long without an interactive text.
    #[serde(with = "humantime_serde")]
    pub idle_before_bulk: Duration,
    /// Longest text, in bytes.
    pub text_bytes_max: usize,
    /// Most texts in one call.
    pub texts_max: usize,
    /// Size of the memo in this process, in bytes; 0 turns it off.
    pub memo_bytes_max: u64,
    /// How long a vector is remembered, here and in the engine.
    #[serde(with = "humantime_serde")]
    pub memo_ttl: Duration,
    /// Most writes to the engine's memo under way at once; vectors beyond that are not written.
    pub memo_writes_in_flight_max: usize,
}

impl Settings {
    /// The number of worker threads, at least one.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            batch_tokens_max: self.batch_tokens_max,
            batch_rows_max: self.batch_rows_max.max(1),
            bulk_rows_max: self.bulk_rows_max.max(1),
            bulk_wait_max: self.bulk_wait_max,
            idle_before_bulk: self.idle_before_bulk,
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds { tokens_max: self.queue_tokens_max, rows_max: self.queue_rows_max }
    }
}
