//! Printing: tables for people, JSON for programs.

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

use crate::grpc::pb;

/// Longest cell of a table, in characters; the whole text is in the JSON.
const CELL_CHARS_MAX: usize = 80;

pub(super) fn print_json(value: &Value) {
    println!("{value:#}");
}

pub(super) fn print_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row.into_iter().map(|cell| clean(&cell)));
    }
    println!("{table}");
}

/// Without control characters: a prompt must not steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// At most [`CELL_CHARS_MAX`] characters, for texts of any length.
pub(super) fn clip(text: &str) -> String {
    if text.chars().nth(CELL_CHARS_MAX).is_none() {
        return text.to_owned();
    }
    text.chars().take(CELL_CHARS_MAX - 1).chain(['…']).collect()
}

/// `text` if the bytes are UTF-8, else `base64`.
pub(super) fn bytes_json(bytes: &[u8]) -> Value {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "text": text }),
        Err(_) => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
    }
}

pub(super) fn duration_json(duration: Option<prost_types::Duration>) -> Value {
    duration.map_or(Value::Null, |d| json!(d.seconds as f64 + f64::from(d.nanos) / 1e9))
}

pub(super) fn duration_text(duration: Option<prost_types::Duration>) -> String {
    duration.and_then(|d| std::time::Duration::try_from(d).ok()).map_or_else(
        || "-".into(),
        |d| humantime::format_duration(std::time::Duration::from_millis(d.as_millis() as u64)).to_string(),
    )
}

/// RFC 3339, as programs and people both read it.
pub(super) fn time_text(time: Option<prost_types::Timestamp>) -> String {
    time.map_or_else(|| "-".into(), |time| time.to_string())
}

pub(super) fn prompt_text(prompt: Option<&pb::Prompt>) -> &str {
    match prompt.and_then(|prompt| prompt.kind.as_ref()) {
        Some(pb::prompt::Kind::Text(text)) => text,
        None => "",
    }
}

/// `TIER_EXACT` as `exact`: the words of docs and metrics.
pub(super) fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        Some("UNSPECIFIED") | None => String::new(),
        Some(word) => word.to_lowercase(),
    }
}

pub(super) fn entry_json(entry: &pb::Entry) -> Value {
    json!({
        "id": entry.id,
        "prompt": prompt_text(entry.prompt.as_ref()),
        "attributes": entry.attributes,
        "category": entry.category,
        "response": bytes_json(&entry.response),
        "content_type": entry.content_type,
        "usage": entry.usage.as_ref().map(usage_json),
        "create_time": time_text(entry.create_time),
        "expire_time": time_text(entry.expire_time),
    })
}

pub(super) fn usage_json(usage: &pb::Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_micros": usage.cost_micros,
        "latency_seconds": duration_json(usage.latency),
    })
}

pub(super) fn receipt_json(receipt: &pb::Receipt) -> Value {
    json!({
        "outcome": word(receipt.outcome().as_str_name(), "OUTCOME_"),
        "tier": word(receipt.tier().as_str_name(), "TIER_"),
        "miss_reason": word(receipt.miss_reason().as_str_name(), "MISS_REASON_"),
        "entry_id": receipt.entry_id,
        "similarity": receipt.similarity,
        "runner_up": receipt.runner_up.as_ref().map(|next| json!({"entry_id": next.entry_id, "similarity": next.similarity})),
        "min_similarity": receipt.min_similarity,
        "space": receipt.space,
        "age_seconds": duration_json(receipt.age),
        "memoized": receipt.memoized,
        "degraded": receipt.degraded,
        "timings_us": receipt.timings.as_ref().map(timings_json),
    })
}

pub(super) fn timings_json(timings: &pb::Timings) -> Value {
    json!({
        "queue": timings.queue_us,
        "embed": timings.embed_us,
        "search": timings.search_us,
        "store": timings.store_us,
        "total": timings.total_us,
    })
}

/// A receipt as rows of name and value, leaving out what does not apply.
pub(super) fn receipt_rows(receipt: &pb::Receipt) -> Vec<Vec<String>> {
    let timings = receipt.timings.unwrap_or_default();
    let optional = |value: Option<f32>| value.map(|v| format!("{v:.4}")).unwrap_or_default();
    let runner_up = receipt.runner_up.as_ref();
    [
        ("outcome", word(receipt.outcome().as_str_name(), "OUTCOME_")),
        ("tier", word(receipt.tier().as_str_name(), "TIER_")),
        ("miss reason", word(receipt.miss_reason().as_str_name(), "MISS_REASON_")),
        ("entry", receipt.entry_id.clone()),
        ("similarity", optional(receipt.similarity)),
        ("threshold", optional(receipt.min_similarity)),
        ("runner-up", runner_up.map(|next| format!("{} at {:.4}", next.entry_id, next.similarity)).unwrap_or_default()),
        ("age", receipt.age.map(|age| duration_text(Some(age))).unwrap_or_default()),
        ("degraded", receipt.degraded.clone()),
        ("space", receipt.space.clone()),
        ("vector", if receipt.memoized { "from the memo".into() } else { String::new() }),
        (
            "time",
            format!(
                "{} us (queue {}, embed {}, search {}, store {})",
                timings.total_us, timings.queue_us, timings.embed_us, timings.search_us, timings.store_us
            ),
        ),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| vec![name.to_owned(), value])
    .collect()
}
