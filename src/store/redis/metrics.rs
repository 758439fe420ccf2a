//! The names of the metrics this engine emits, and the few helpers that emit them.

use std::time::Duration;

/// Histogram, labels `engine` and `operation`: how long a verb of the port took.
pub const OPERATION_SECONDS: &str = "refrain_store_operation_seconds";
/// Counter: connections lost or given up.
pub const RECONNECTS: &str = "refrain_redis_reconnects_total";
/// Counter: pipelines sent, each one round trip.
pub const ROUND_TRIPS: &str = "refrain_redis_round_trips_total";
/// Gauge, label `state` (`flat`, `hnsw`): indexes this process works with.
pub const INDEX_STATE: &str = "refrain_redis_index_state";
/// Counter: search results dropped because their entry was gone, expired or unreadable.
pub const GHOSTS: &str = "refrain_redis_ghosts_dropped_total";
/// Counter: exact indexes replaced by HNSW.
pub const PROMOTIONS: &str = "refrain_redis_promotions_total";
/// Counter: indexes found missing and built again.
pub const INDEX_REBUILDS: &str = "refrain_redis_index_rebuilds_total";
/// Counter: keys of emptied namespaces removed.
pub const SWEPT_KEYS: &str = "refrain_redis_swept_keys_total";

/// Records how long a verb took.
pub(super) fn operation(operation: &'static str, took: Duration) {
    metrics::histogram!(OPERATION_SECONDS, "engine" => super::NAME, "operation" => operation).record(took);
}

/// Adds to a counter without labels.
pub(super) fn add(name: &'static str, count: u64) {
    metrics::counter!(name).increment(count);
}
