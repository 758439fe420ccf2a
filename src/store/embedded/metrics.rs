//! The numbers this engine reports.

use std::time::Duration;

use metrics::{Gauge, counter, gauge, histogram};

use super::NAME;
use crate::telemetry::names;

pub(super) fn operation(name: &'static str, took: Duration) {
    histogram!(names::STORE_OPERATION_SECONDS, "engine" => NAME, "operation" => name).record(took);
}

pub(super) fn queue_length(queue: &'static str) -> Gauge {
    gauge!(names::STORE_QUEUE_LENGTH, "engine" => NAME, "queue" => queue)
}

pub(super) fn refused(queue: &'static str) {
    counter!(names::STORE_REFUSED, "engine" => NAME, "queue" => queue).increment(1);
}

pub(super) fn committed(rows: usize) {
    histogram!(names::STORE_COMMIT_BATCH_ROWS, "engine" => NAME).record(rows as f64);
}

pub(super) fn vectors(count: usize) {
    gauge!(names::STORE_VECTORS, "engine" => NAME).set(count as f64);
}

pub(super) fn swept(rows: usize) {
    counter!(names::STORE_SWEPT_ROWS, "engine" => NAME).increment(rows as u64);
}
