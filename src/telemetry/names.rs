//! The metric catalogue: every name of every room, once, with its help text.

/// Declares each metric's name and describes all of them in one function.
macro_rules! catalogue {
    ($($kind:ident $name:ident = $metric:literal, $help:literal;)*) => {
        $(#[doc = concat!($help, " (", stringify!($kind), ").")] pub const $name: &str = $metric;)*

        /// Gives every metric its help text.
        pub fn describe() {
            $(catalogue!(@describe $kind $name, $help);)*
        }
    };
    (@describe counter $name:ident, $help:literal) => { metrics::describe_counter!($name, $help) };
    (@describe gauge $name:ident, $help:literal) => { metrics::describe_gauge!($name, $help) };
    (@describe histogram $name:ident, $help:literal) => { metrics::describe_histogram!($name, $help) };
}

catalogue! {
    // The server.
    gauge BUILD_INFO = "refrain_build_info", "Version of the running server, as a label on a constant 1";
    gauge READY = "refrain_ready", "Whether the server says that it is ready: 1 or 0";
    counter RPC_CALLS = "refrain_rpc_calls_total", "Calls by rpc and status code";
    histogram RPC_SECONDS = "refrain_rpc_seconds", "Time of a call, by rpc";
    gauge RPC_IN_FLIGHT = "refrain_rpc_in_flight", "Calls being worked on";
    counter RPC_SHED = "refrain_rpc_shed_total", "Calls refused because too many were in flight";

    // The cache.
    counter CACHE_LOOKUPS = "refrain_cache_lookups_total", "Lookups by outcome and, in detail, the tier of a hit or the reason of a miss";
    histogram CACHE_LOOKUP_SECONDS = "refrain_cache_lookup_seconds", "Time of a lookup by tier; none for misses";
    counter CACHE_STORES = "refrain_cache_stores_total", "Entries stored";
    histogram CACHE_STORE_SECONDS = "refrain_cache_store_seconds", "Time of a store";
    counter CACHE_STATS_DROPPED = "refrain_cache_stats_dropped_total", "Statistics dropped while the engine was away";

    // Embedding.
    gauge EMBED_QUEUE_TOKENS = "refrain_embed_queue_tokens", "Tokens that wait in the queue";
    histogram EMBED_QUEUE_WAIT_SECONDS = "refrain_embed_queue_wait_seconds", "How long a text waited for a worker, by lane";
    histogram EMBED_BATCH_ROWS = "refrain_embed_batch_rows", "Texts of a batch";
    histogram EMBED_BATCH_PADDED_TOKENS = "refrain_embed_batch_padded_tokens", "Texts of a batch times its longest text in tokens";
    histogram EMBED_INFERENCE_SECONDS = "refrain_embed_inference_seconds", "How long the model took for a batch";
    counter EMBED_FAILED_BATCHES = "refrain_embed_failed_batches_total", "Batches whose inference failed";
    counter EMBED_DROPPED = "refrain_embed_dropped_total", "Texts dropped before inference, by cause";
    counter EMBED_REFUSED = "refrain_embed_refused_total", "Texts refused because the queue was full";
    counter EMBED_MEMO_HITS = "refrain_embed_memo_hits_total", "Vectors found in the memo, by tier";
    counter EMBED_MEMO_MISSES = "refrain_embed_memo_misses_total", "Vectors that had to be computed";
    counter EMBED_MEMO_FAILURES = "refrain_embed_memo_failures_total", "Failed reads and writes of the engine's memo, by operation; they cost time, never an answer";
    counter EMBED_MEMO_WRITES_SKIPPED = "refrain_embed_memo_writes_skipped_total", "Vectors not written to the engine's memo because too many writes were under way";

    // Every engine.
    histogram STORE_OPERATION_SECONDS = "refrain_store_operation_seconds", "How long a verb of the engine took, waiting included, by engine and operation";

    // The embedded engine.
    gauge STORE_QUEUE_LENGTH = "refrain_store_queue_length", "Operations that wait, by queue";
    counter STORE_REFUSED = "refrain_store_refused_total", "Operations refused because their queue was full, by queue";
    histogram STORE_COMMIT_BATCH_ROWS = "refrain_store_commit_batch_rows", "Rows that one transaction committed";
    gauge STORE_VECTORS = "refrain_store_vectors", "Vectors held in memory";
    counter STORE_SWEPT_ROWS = "refrain_store_swept_rows_total", "Rows that the background sweep removed";

    // The Redis engine.
    counter REDIS_RECONNECTS = "refrain_redis_reconnects_total", "Connections lost or given up";
    counter REDIS_ROUND_TRIPS = "refrain_redis_round_trips_total", "Pipelines sent, each one round trip";
    gauge REDIS_INDEX_STATE = "refrain_redis_index_state", "Indexes this process works with, by state (flat or hnsw)";
    counter REDIS_GHOSTS = "refrain_redis_ghosts_dropped_total", "Search results dropped because their entry was gone, expired or unreadable";
    counter REDIS_PROMOTIONS = "refrain_redis_promotions_total", "Exact indexes replaced by HNSW";
    counter REDIS_INDEX_REBUILDS = "refrain_redis_index_rebuilds_total", "Indexes found missing and built again";
    counter REDIS_SWEPT_KEYS = "refrain_redis_swept_keys_total", "Keys of emptied namespaces removed";
}
