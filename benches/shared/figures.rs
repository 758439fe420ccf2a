//! Latencies and how they are told.

use std::time::Duration;

/// The value below which `share` of the latencies lie.
pub(crate) fn percentile(latencies: &mut [Duration], share: f64) -> Duration {
    latencies.sort_unstable();
    let at = (latencies.len() as f64 * share) as usize;
    latencies.get(at.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Microseconds, in three digits of which the last may be noise.
pub(crate) fn micros(latency: Duration) -> String {
    let micros = latency.as_secs_f64() * 1e6;
    if micros < 100.0 { format!("{micros:.1}") } else { format!("{micros:.0}") }
}
