//! Between generated messages and domain values: every check on what a caller sent stands here.

use std::{collections::HashMap, time::Duration};

use prost_types::{Duration as PbDuration, Timestamp as PbTimestamp};
use tonic::{Extensions, Request};

use crate::{
    cache::{
        Answer, Ask, Expiration, MissReason, NewAnswer, Outcome, Receipt, Selector, Stats, Stored, Tier, Tiers, Timings,
    },
    config::Limits,
    embed::model::Spec,
    error::Invalid,
    grpc::pb,
    store::{Cursor, Entry, RequestId, Usage},
    types::{Attributes, Category, Deadline, EntryId, Namespace, Prompt, Similarity, Timestamp},
};

/// Media type of a response that brings none.
const CONTENT_TYPE_DEFAULT: &str = "text/plain; charset=utf-8";
/// Entries on a page that asks for no size.
const PAGE_SIZE_DEFAULT: usize = 50;

/// The deadline the edge put into the request.
pub(super) fn deadline<T>(request: &Request<T>) -> Option<Deadline> {
    deadline_of(request.extensions())
}

fn deadline_of(extensions: &Extensions) -> Option<Deadline> {
    extensions.get().copied()
}

pub(super) fn namespace(name: &str) -> Result<Namespace, Invalid> {
    Namespace::new(name)
}

pub(super) fn prompt(prompt: Option<pb::Prompt>, limits: &Limits) -> Result<Prompt, Invalid> {
    match prompt.and_then(|prompt| prompt.kind) {
        Some(pb::prompt::Kind::Text(text)) => Prompt::new(&text, limits.prompt_bytes_max),
        None => Err(Invalid::new("prompt", "is missing; set prompt.text")),
    }
}

fn attributes(pairs: HashMap<String, String>, limits: &Limits) -> Result<Attributes, Invalid> {
    Attributes::new(pairs, limits.attributes_max)
}

fn category(name: &str) -> Result<Option<Category>, Invalid> {
    if name.is_empty() { Ok(None) } else { Category::new(name).map(Some) }
}

pub(super) fn entry_id(id: &str) -> Result<EntryId, Invalid> {
    id.parse()
}

pub(super) fn request_id(id: &str) -> Result<Option<RequestId>, Invalid> {
    match id.len() {
        0 => Ok(None),
        1..=RequestId::BYTES_MAX => Ok(Some(RequestId(id.into()))),
        more => {
            Err(Invalid::new("request_id", format!("has {more} bytes; at most {} are allowed", RequestId::BYTES_MAX)))
        }
    }
}

fn duration(field: &'static str, value: PbDuration) -> Result<Duration, Invalid> {
    let invalid = || Invalid::new(field, "is negative or not a valid duration");
    // The conversion turns the sign of what is negative around, which the least number does not bear.
    if value.seconds < 0 {
        return Err(invalid());
    }
    Duration::try_from(value).map_err(|_| invalid())
}

pub(super) fn page_size(asked: u32, limits: &Limits) -> usize {
    match asked as usize {
        0 => PAGE_SIZE_DEFAULT.min(limits.page_size_max),
        asked => asked.min(limits.page_size_max),
    }
}

/// A question. The namespace is checked apart, since a batch has one for all.
pub(super) fn ask(request: pb::LookupRequest, limits: &Limits) -> Result<Ask, Invalid> {
    let min_similarity = match request.min_similarity {
        Some(value) if !(-1.0..=1.0).contains(&value) => {
            return Err(Invalid::new("min_similarity", "is not between -1 and 1"));
        }
        value => value,
    };
    Ok(Ask {
        prompt: prompt(request.prompt, limits)?,
        attributes: attributes(request.attributes, limits)?,
        min_similarity,
        max_age: request.max_age.map(|age| duration("max_age", age)).transpose()?,
        tiers: tiers(&request.tiers)?,
        bypass: request.bypass,
    })
}

fn tiers(asked: &[i32]) -> Result<Tiers, Invalid> {
    if asked.is_empty() {
        return Ok(Tiers::ALL);
    }
    let mut tiers = Tiers { exact: false, semantic: false };
    for &tier in asked {
        match pb::Tier::try_from(tier) {
            Ok(pb::Tier::Exact) => tiers.exact = true,
            Ok(pb::Tier::Semantic) => tiers.semantic = true,
            Ok(pb::Tier::Unspecified) | Err(_) => {
                return Err(Invalid::new("tiers", format!("holds {tier}, which names no tier")));
            }
        }
    }
    Ok(tiers)
}

/// An answer to keep.
pub(super) fn new_answer(request: pb::StoreRequest, limits: &Limits) -> Result<NewAnswer, Invalid> {
    if request.response.is_empty() {
        return Err(Invalid::new("response", "is empty; an empty answer is not worth keeping"));
    }
    if request.response.len() > limits.response_bytes_max {
        return Err(Invalid::new(
            "response",
            format!(
                "has {} bytes; at most {} are allowed (limits.response_bytes_max)",
                request.response.len(),
                limits.response_bytes_max
            ),
        ));
    }
    let content_type = match request.content_type {
        given if given.len() > limits.content_type_bytes_max || given.chars().any(char::is_control) => {
            return Err(Invalid::new("content_type", "is too long or holds control characters; name a media type"));
        }
        given if given.is_empty() => CONTENT_TYPE_DEFAULT.to_owned(),
        given => given,
    };
    // A response that says it is text in UTF-8 must be.
    if claims_utf8(&content_type) && std::str::from_utf8(&request.response).is_err() {
        return Err(Invalid::new(
            "response",
            format!("is not valid UTF-8 although its content type is {content_type:?}; set content_type to what it is"),
        ));
    }
    Ok(NewAnswer {
        prompt: prompt(request.prompt, limits)?,
        attributes: attributes(request.attributes, limits)?,
        category: category(&request.category)?,
        response: request.response,
        content_type,
        usage: request.usage.map(usage).transpose()?.unwrap_or_default(),
        expiration: match request.expiration {
            None => Expiration::Default,
            Some(pb::store_request::Expiration::Ttl(ttl)) => Expiration::After(duration("ttl", ttl)?),
            Some(pb::store_request::Expiration::ExpireTime(time)) => Expiration::At(timestamp("expire_time", time)?),
        },
        request: request_id(&request.request_id)?,
    })
}

fn claims_utf8(content_type: &str) -> bool {
    let lower = content_type.to_ascii_lowercase();
    lower.contains("charset=utf-8") || lower.starts_with("application/json") || lower == "text/plain"
}

fn usage(usage: pb::Usage) -> Result<Usage, Invalid> {
    Ok(Usage {
        input_tokens: counter("usage.input_tokens", usage.input_tokens)?,
        output_tokens: counter("usage.output_tokens", usage.output_tokens)?,
        cost_micros: counter("usage.cost_micros", usage.cost_micros)?,
        latency: usage.latency.map(latency).transpose()?.unwrap_or_default(),
    })
}

/// Figures are added up over millions of hits; one absurd value must not overflow the sum.
const COUNTER_MAX: u64 = 1 << 40;

fn latency(value: PbDuration) -> Result<Duration, Invalid> {
    let latency = duration("usage.latency", value)?;
    // It is added up in microseconds.
    if latency > Duration::from_micros(COUNTER_MAX) {
        return Err(Invalid::new("usage.latency", "is longer than 12 days, which no call takes"));
    }
    Ok(latency)
}

fn counter(field: &'static str, value: u64) -> Result<u64, Invalid> {
    if value > COUNTER_MAX {
        return Err(Invalid::new(field, format!("is {value}; at most {COUNTER_MAX} is taken")));
    }
    Ok(value)
}

fn timestamp(field: &'static str, time: PbTimestamp) -> Result<Timestamp, Invalid> {
    if !(0..1_000_000_000).contains(&time.nanos) {
        return Err(Invalid::new(field, "is not a valid timestamp"));
    }
    time.seconds
        .checked_mul(1000)
        .and_then(|ms| ms.checked_add(i64::from(time.nanos / 1_000_000)))
        .map(Timestamp)
        .ok_or_else(|| Invalid::new(field, "is not a valid timestamp"))
}

pub(super) fn selector(selector: Option<pb::EntrySelector>, limits: &Limits) -> Result<Selector, Invalid> {
    let selector = selector.unwrap_or_default();
    if selector.entry_ids.len() > limits.selector_ids_max {
        return Err(Invalid::new(
            "selector.entry_ids",
            format!(
                "holds {} ids; at most {} are allowed (limits.selector_ids_max)",
                selector.entry_ids.len(),
                limits.selector_ids_max
            ),
        ));
    }
    let id = |(at, id): (usize, &String)| {
        entry_id(id).map_err(|e| Invalid::new(format!("selector.entry_ids[{at}]"), e.problem().to_owned()))
    };
    let mut ids: Vec<EntryId> = selector.entry_ids.iter().enumerate().map(id).collect::<Result<_, _>>()?;
    // One that stands twice is one entry, also where entries are only counted.
    ids.sort_unstable();
    ids.dedup();
    let parsed = Selector {
        ids: (!ids.is_empty()).then_some(ids),
        prompt: match selector.prompt {
            None => None,
            given => Some(prompt(given, limits).map_err(|e| e.within("selector"))?),
        },
        attributes: attributes(selector.attributes, limits).map_err(|e| e.within("selector"))?,
        category: category(&selector.category).map_err(|e| e.within("selector"))?,
        older_than: selector.older_than.map(|age| duration("selector.older_than", age)).transpose()?,
        all: selector.all,
    };
    parsed.check()?;
    Ok(parsed)
}

pub(super) fn answer_to_pb(answer: Answer) -> pb::LookupResponse {
    pb::LookupResponse { entry: answer.entry.map(entry_to_pb), receipt: Some(receipt_to_pb(answer.receipt)) }
}

fn receipt_to_pb(receipt: Receipt) -> pb::Receipt {
    pb::Receipt {
        outcome: match receipt.outcome {
            Outcome::Hit => pb::Outcome::Hit,
            Outcome::Miss => pb::Outcome::Miss,
        }
        .into(),
        tier: receipt
            .tier
            .map_or(pb::Tier::Unspecified, |tier| match tier {
                Tier::Exact => pb::Tier::Exact,
                Tier::Semantic => pb::Tier::Semantic,
            })
            .into(),
        miss_reason: receipt
            .miss_reason
            .map_or(pb::MissReason::Unspecified, |reason| match reason {
                MissReason::Empty => pb::MissReason::Empty,
                MissReason::BelowFloor => pb::MissReason::BelowFloor,
                MissReason::Expired => pb::MissReason::Expired,
                MissReason::Filtered => pb::MissReason::Filtered,
                MissReason::Bypassed => pb::MissReason::Bypassed,
                MissReason::Degraded => pb::MissReason::Degraded,
                MissReason::PartlyRead => pb::MissReason::PartlyRead,
            })
            .into(),
        entry_id: receipt.entry.map(|id| id.to_string()).unwrap_or_default(),
        similarity: receipt.similarity.map(Similarity::get),
        runner_up: receipt
            .runner_up
            .map(|next| pb::RunnerUp { entry_id: next.id.to_string(), similarity: next.similarity.get() }),
        min_similarity: receipt.min_similarity,
        space: receipt.space.to_string(),
        age: receipt.age.map(duration_to_pb),
        memoized: receipt.memoized,
        degraded: receipt.degraded.unwrap_or_default(),
        timings: Some(timings_to_pb(&receipt.timings)),
    }
}

fn timings_to_pb(timings: &Timings) -> pb::Timings {
    pb::Timings {
        queue_us: timings.queue.as_micros() as u64,
        embed_us: timings.embed.as_micros() as u64,
        search_us: timings.search.as_micros() as u64,
        store_us: timings.store.as_micros() as u64,
        total_us: timings.total.as_micros() as u64,
    }
}

pub(super) fn entry_to_pb(entry: Entry) -> pb::Entry {
    pb::Entry {
        id: entry.id.to_string(),
        prompt: Some(pb::Prompt { kind: Some(pb::prompt::Kind::Text(entry.prompt.as_str().to_owned())) }),
        attributes: entry.attributes.as_map().clone().into_iter().collect(),
        category: entry.category.map(|category| category.as_str().to_owned()).unwrap_or_default(),
        response: entry.response,
        content_type: entry.content_type,
        usage: Some(usage_to_pb(&entry.usage)),
        create_time: Some(timestamp_to_pb(entry.created)),
        expire_time: Some(timestamp_to_pb(entry.expires)),
    }
}

/// As many entries of a page as a message holds, at least one, and where to go on after them.
pub(super) fn page_to_pb(
    entries: Vec<Entry>,
    next: Option<Cursor>,
    message_bytes_max: usize,
) -> (Vec<pb::Entry>, Option<Cursor>) {
    let mut room = Room::new(message_bytes_max);
    let mut page = Vec::with_capacity(entries.len());
    let mut last = None;
    for entry in entries {
        let cursor = Cursor { expires: entry.expires, id: entry.id };
        let entry = entry_to_pb(entry);
        if !room.take(&entry) && !page.is_empty() {
            return (page, last);
        }
        page.push(entry);
        last = Some(cursor);
    }
    (page, next)
}

/// What is left of a message while its parts are put together.
pub(super) struct Room(usize);

impl Room {
    /// What a part costs beside its own bytes, and what stands in a message beside its parts.
    const PART_BYTES: usize = 16;
    const FRAME_BYTES: usize = 256;

    pub(super) fn new(message_bytes_max: usize) -> Self {
        Self(message_bytes_max.saturating_sub(Self::FRAME_BYTES))
    }

    /// Takes the room a part needs, if it is there.
    pub(super) fn take(&mut self, part: &impl prost::Message) -> bool {
        let left = self.0.checked_sub(part.encoded_len() + Self::PART_BYTES);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

fn usage_to_pb(usage: &Usage) -> pb::Usage {
    pb::Usage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cost_micros: usage.cost_micros,
        latency: Some(duration_to_pb(usage.latency)),
    }
}

pub(super) fn stored_to_pb(stored: &Stored) -> pb::StoreResponse {
    pb::StoreResponse {
        entry_id: stored.id.to_string(),
        created: stored.created,
        expire_time: Some(timestamp_to_pb(stored.expires)),
        exact_only: stored.exact_only,
        timings: Some(timings_to_pb(&stored.timings)),
    }
}

pub(super) fn stats_to_pb(stats: Stats) -> pb::GetCacheStatsResponse {
    pb::GetCacheStatsResponse {
        entries: stats.entries,
        lookups: stats.lookups,
        exact_hits: stats.exact_hits,
        semantic_hits: stats.semantic_hits,
        misses: stats.misses.values().sum(),
        misses_by_reason: stats.misses.into_iter().collect(),
        stores: stats.stores,
        saved: Some(usage_to_pb(&stats.saved)),
    }
}

pub(super) fn spec_to_pb(spec: &Spec) -> pb::Model {
    pb::Model {
        name: spec.name.clone(),
        revision: spec.revision.clone(),
        pooling: spec.pooling.clone(),
        quantization: spec.quantization.clone(),
        dimension: spec.dimension as u32,
        tokens_max: spec.tokens_max as u32,
        query_prefix: spec.query_prefix.clone(),
        passage_prefix: spec.passage_prefix.clone(),
        space: spec.space().to_string(),
    }
}

pub(super) fn duration_to_pb(duration: Duration) -> PbDuration {
    PbDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

pub(super) fn timestamp_to_pb(time: Timestamp) -> PbTimestamp {
    PbTimestamp { seconds: time.0.div_euclid(1000), nanos: (time.0.rem_euclid(1000) * 1_000_000) as i32 }
}
