//! The metric catalogue: every name once, with what it counts.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// Calls by rpc and status code.
pub const RPC_CALLS: &str = "refrain_rpc_calls_total";
/// Time of a call, by rpc.
pub const RPC_SECONDS: &str = "refrain_rpc_seconds";
/// Calls being worked on.
pub const RPC_IN_FLIGHT: &str = "refrain_rpc_in_flight";
/// Calls refused because too many were in flight.
pub const RPC_SHED: &str = "refrain_rpc_shed_total";

/// Lookups by outcome and, in `detail`, the tier of a hit or the reason of a miss.
pub const CACHE_LOOKUPS: &str = "refrain_cache_lookups_total";
/// Time of a lookup by tier; `none` for misses.
pub const CACHE_LOOKUP_SECONDS: &str = "refrain_cache_lookup_seconds";
/// Entries stored.
pub const CACHE_STORES: &str = "refrain_cache_stores_total";
/// Time of a store.
pub const CACHE_STORE_SECONDS: &str = "refrain_cache_store_seconds";
/// Statistics dropped while the engine was away.
pub const CACHE_STATS_DROPPED: &str = "refrain_cache_stats_dropped_total";

/// Whether the server answers that it is ready: 1 or 0.
pub const READY: &str = "refrain_ready";
/// Version of the running server, as a label on a constant 1.
pub const BUILD_INFO: &str = "refrain_build_info";

/// Gives every metric of this file its help text.
pub fn describe() {
    describe_counter!(RPC_CALLS, "Calls by rpc and status code");
    describe_histogram!(RPC_SECONDS, "Time of a call, by rpc");
    describe_gauge!(RPC_IN_FLIGHT, "Calls being worked on");
    describe_counter!(RPC_SHED, "Calls refused because too many were in flight");
    describe_counter!(CACHE_LOOKUPS, "Lookups by outcome, and by tier of a hit or reason of a miss");
    describe_histogram!(CACHE_LOOKUP_SECONDS, "Time of a lookup by tier; none for misses");
    describe_counter!(CACHE_STORES, "Entries stored");
    describe_histogram!(CACHE_STORE_SECONDS, "Time of a store");
    describe_counter!(CACHE_STATS_DROPPED, "Statistics dropped while the engine was away");
    describe_gauge!(READY, "Whether the server answers that it is ready");
    describe_gauge!(BUILD_INFO, "Version of the running server");
}
