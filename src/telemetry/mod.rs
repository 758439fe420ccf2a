//! What operators see: logs on stderr, metrics and health over HTTP.
//!
//! *Architecture invariant:* no prompt, response, vector or secret is logged or becomes a label;
//! hashes, lengths and namespaces are.

pub mod names;
pub mod ops;

use std::io::{self, IsTerminal as _};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{LogFormat, Telemetry};

/// Upper bounds of the latency buckets, in seconds: from a memo hit to a stuck store.
const LATENCY_BUCKETS_SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Upper bounds of the buckets that count rows of a batch.
const ROWS_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// Upper bounds of the buckets that count tokens of a batch.
const TOKENS_BUCKETS: &[f64] = &[16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// Sends logs to stderr. Fails if the filter cannot be read or a logger stands already.
pub fn init_logs(settings: &Telemetry) -> Result<(), String> {
    let filter = EnvFilter::try_new(&settings.log)
        .map_err(|problem| format!("telemetry.log = {:?}: {problem}", settings.log))?;
    let registry = tracing_subscriber::registry().with(filter);
    match settings.log_format {
        LogFormat::Text => {
            let colors = io::stderr().is_terminal();
            registry.with(fmt::layer().with_ansi(colors).with_writer(io::stderr)).try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init(),
    }
    .map_err(|problem| problem.to_string())
}

/// Makes the process's metric recorder and names every metric, so that a scrape shows all of them
/// from the start.
pub fn init_metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), LATENCY_BUCKETS_SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_rows".into()), ROWS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_tokens".into()), TOKENS_BUCKETS)?
        .install_recorder()?;
    names::describe();
    metrics::gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}
