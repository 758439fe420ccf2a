//! The numbers this engine reports.

use std::time::Duration;

use crate::telemetry::names;
pub(super) use crate::telemetry::names::{
    REDIS_GHOSTS as GHOSTS, REDIS_INDEX_REBUILDS as INDEX_REBUILDS, REDIS_INDEX_STATE as INDEX_STATE,
    REDIS_PROMOTIONS as PROMOTIONS, REDIS_RECONNECTS as RECONNECTS, REDIS_ROUND_TRIPS as ROUND_TRIPS,
    REDIS_SWEPT_KEYS as SWEPT_KEYS,
};
/// Records how long a verb took.
pub(super) fn operation(operation: &'static str, took: Duration) {
    metrics::histogram!(names::STORE_OPERATION_SECONDS, "engine" => super::NAME, "operation" => operation).record(took);
}

/// Adds to a counter without labels.
pub(super) fn add(name: &'static str, count: u64) {
    metrics::counter!(name).increment(count);
}
