//! The names under which this engine reports, and the few shapes of reporting.

use std::time::Duration;

use metrics::{Gauge, counter, gauge, histogram};

use super::NAME;

/// How long an operation took, queue included; labels `engine`, `operation`.
pub const OPERATION_SECONDS: &str = "refrain_store_operation_seconds";
/// Operations that wait; labels `engine`, `queue` (`read` or `write`).
pub const QUEUE_LENGTH: &str = "refrain_store_queue_length";
/// Operations refused because their queue was full; labels `engine`, `queue`.
pub const REFUSED: &str = "refrain_store_refused_total";
/// Rows that one transaction committed; label `engine`.
pub const COMMIT_BATCH_ROWS: &str = "refrain_store_commit_batch_rows";
/// Vectors held in memory; label `engine`.
pub const VECTORS: &str = "refrain_store_vectors";
/// Rows that the background sweep removed; label `engine`.
pub const SWEPT_ROWS: &str = "refrain_store_swept_rows_total";

pub(super) fn operation(name: &'static str, took: Duration) {
    histogram!(OPERATION_SECONDS, "engine" => NAME, "operation" => name).record(took);
}

pub(super) fn queue_length(queue: &'static str) -> Gauge {
    gauge!(QUEUE_LENGTH, "engine" => NAME, "queue" => queue)
}

pub(super) fn refused(queue: &'static str) {
    counter!(REFUSED, "engine" => NAME, "queue" => queue).increment(1);
}

pub(super) fn committed(rows: usize) {
    histogram!(COMMIT_BATCH_ROWS, "engine" => NAME).record(rows as f64);
}

pub(super) fn vectors(count: usize) {
    gauge!(VECTORS, "engine" => NAME).set(count as f64);
}

pub(super) fn swept(rows: usize) {
    counter!(SWEPT_ROWS, "engine" => NAME).increment(rows as u64);
}
