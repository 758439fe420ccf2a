//! The numbers this room reports.

use std::time::Duration;

use super::pick::{Cause, Lane};
use crate::telemetry::names;

pub(super) fn queue_tokens(tokens: usize) {
    ::metrics::gauge!(names::EMBED_QUEUE_TOKENS).set(tokens as f64);
}

pub(super) fn queue_wait(lane: Lane, wait: Duration) {
    ::metrics::histogram!(names::EMBED_QUEUE_WAIT_SECONDS, "lane" => lane.as_str()).record(wait.as_secs_f64());
}

pub(super) fn batch(rows: usize, padded_tokens: usize) {
    ::metrics::histogram!(names::EMBED_BATCH_ROWS).record(rows as f64);
    ::metrics::histogram!(names::EMBED_BATCH_PADDED_TOKENS).record(padded_tokens as f64);
}

pub(super) fn inference(took: Duration) {
    ::metrics::histogram!(names::EMBED_INFERENCE_SECONDS).record(took.as_secs_f64());
}

pub(super) fn failed() {
    ::metrics::counter!(names::EMBED_FAILED_BATCHES).increment(1);
}

pub(super) fn dropped(cause: Cause) {
    ::metrics::counter!(names::EMBED_DROPPED, "cause" => cause.as_str()).increment(1);
}

pub(super) fn refused(texts: usize) {
    ::metrics::counter!(names::EMBED_REFUSED).increment(texts as u64);
}

pub(super) fn memo_hits(tier: &'static str, count: u64) {
    ::metrics::counter!(names::EMBED_MEMO_HITS, "tier" => tier).increment(count);
}

pub(super) fn memo_misses(count: u64) {
    ::metrics::counter!(names::EMBED_MEMO_MISSES).increment(count);
}

pub(super) fn memo_failure(operation: &'static str) {
    ::metrics::counter!(names::EMBED_MEMO_FAILURES, "operation" => operation).increment(1);
}

pub(super) fn memo_writes_skipped(count: u64) {
    ::metrics::counter!(names::EMBED_MEMO_WRITES_SKIPPED).increment(count);
}
