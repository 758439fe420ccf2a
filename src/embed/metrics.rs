//! The numbers of this room, each under one name.

use std::time::Duration;

use super::pick::{Cause, Lane};

/// Tokens that wait in the queue; gauge.
pub const QUEUE_TOKENS: &str = "refrain_embed_queue_tokens";
/// How long a text waited for a worker, by `lane`; histogram of seconds.
pub const QUEUE_WAIT: &str = "refrain_embed_queue_wait_seconds";
/// Rows of a batch; histogram.
pub const BATCH_ROWS: &str = "refrain_embed_batch_rows";
/// Rows of a batch times its longest row in tokens; histogram.
pub const BATCH_PADDED_TOKENS: &str = "refrain_embed_batch_padded_tokens";
/// How long the model took for a batch; histogram of seconds.
pub const INFERENCE: &str = "refrain_embed_inference_seconds";
/// Batches whose inference failed; counter.
pub const FAILED: &str = "refrain_embed_failed_batches_total";
/// Texts dropped before inference, by `cause`; counter.
pub const DROPPED: &str = "refrain_embed_dropped_total";
/// Texts refused because the queue was full; counter.
pub const REFUSED: &str = "refrain_embed_refused_total";
/// Vectors found in the memo, by `tier` (`process` or `engine`); counter.
pub const MEMO_HITS: &str = "refrain_embed_memo_hits_total";
/// Vectors that had to be computed; counter.
pub const MEMO_MISSES: &str = "refrain_embed_memo_misses_total";
/// Reads and writes of the engine's memo that failed, by `operation`; counter. They cost time, never an answer.
pub const MEMO_FAILURES: &str = "refrain_embed_memo_failures_total";
/// Vectors not written to the engine's memo because too many writes were under way; counter.
pub const MEMO_WRITES_SKIPPED: &str = "refrain_embed_memo_writes_skipped_total";

pub(super) fn queue_tokens(tokens: usize) {
    ::metrics::gauge!(QUEUE_TOKENS).set(tokens as f64);
}

pub(super) fn queue_wait(lane: Lane, wait: Duration) {
    ::metrics::histogram!(QUEUE_WAIT, "lane" => lane.as_str()).record(wait.as_secs_f64());
}

pub(super) fn batch(rows: usize, padded_tokens: usize) {
    ::metrics::histogram!(BATCH_ROWS).record(rows as f64);
    ::metrics::histogram!(BATCH_PADDED_TOKENS).record(padded_tokens as f64);
}

pub(super) fn inference(took: Duration) {
    ::metrics::histogram!(INFERENCE).record(took.as_secs_f64());
}

pub(super) fn failed() {
    ::metrics::counter!(FAILED).increment(1);
}

pub(super) fn dropped(cause: Cause) {
    ::metrics::counter!(DROPPED, "cause" => cause.as_str()).increment(1);
}

pub(super) fn refused(texts: usize) {
    ::metrics::counter!(REFUSED).increment(texts as u64);
}

pub(super) fn memo_hits(tier: &'static str, count: u64) {
    ::metrics::counter!(MEMO_HITS, "tier" => tier).increment(count);
}

pub(super) fn memo_misses(count: u64) {
    ::metrics::counter!(MEMO_MISSES).increment(count);
}

pub(super) fn memo_failure(operation: &'static str) {
    ::metrics::counter!(MEMO_FAILURES, "operation" => operation).increment(1);
}

pub(super) fn memo_writes_skipped(count: u64) {
    ::metrics::counter!(MEMO_WRITES_SKIPPED).increment(count);
}
