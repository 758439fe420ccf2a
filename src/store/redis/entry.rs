//! An entry as a hash: what is written, what is read back, and the jitter of its vector.
//!
//! Only the token of the attributes and the vector are indexed. Nothing is ever added to the hash
//! later: any write to an indexed hash inserts its vector anew.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use redis::Value;

use super::{
    failure::Failure,
    keys::vector_field,
    reply::{bytes, corrupt, text, timestamp},
    search::ATTRIBUTES_FIELD,
};
use crate::{
    store::{Detail, Entry, NewEntry, Usage},
    types::{Attributes, Category, EntryId, Prompt, Timestamp, Vector},
};

/// The fields in the order of [`read`]: everything but token and vector.
const FIELDS: [&str; 8] = ["expires", "created", "prompt", "pairs", "category", "content_type", "usage", "response"];

/// How far a vector is moved: a cosine of 0.99995 to where it was.
const JITTER_NORM: f32 = 0.01;

/// Fields and values of a new entry.
pub(super) fn write(new: &NewEntry) -> Result<Vec<Vec<u8>>, Failure> {
    let entry = &new.entry;
    let usage = &entry.usage;
    let pairs = serde_json::to_vec(entry.attributes.as_map())
        .map_err(|error| corrupt("the attributes of a new entry", error.to_string()))?;
    let mut fields: Vec<Vec<u8>> = Vec::with_capacity(2 * FIELDS.len() + 4);
    let mut add = |name: &str, value: Vec<u8>| {
        fields.push(name.as_bytes().to_vec());
        fields.push(value);
    };
    add("expires", entry.expires.0.to_string().into_bytes());
    add("created", entry.created.0.to_string().into_bytes());
    add("prompt", entry.prompt.as_str().as_bytes().to_vec());
    add("pairs", pairs);
    if let Some(category) = &entry.category {
        add("category", category.as_str().as_bytes().to_vec());
    }
    add("content_type", entry.content_type.as_bytes().to_vec());
    let latency_us = usage.latency.as_micros() as u64;
    add(
        "usage",
        format!("{} {} {} {latency_us}", usage.input_tokens, usage.output_tokens, usage.cost_micros).into_bytes(),
    );
    add("response", entry.response.to_vec());
    add(ATTRIBUTES_FIELD, entry.attributes.token().into_bytes());
    if let Some((space, vector)) = &new.vector {
        let stored = if entry.attributes.is_empty() { vector.clone() } else { jittered(vector, &entry.id) };
        add(&vector_field(*space), stored.to_le_bytes());
    }
    Ok(fields)
}

/// The fields a reader asks for: a listing that leaves bodies out asks for all but the last.
pub(super) fn fields(detail: Detail) -> &'static [&'static str] {
    match detail {
        Detail::Whole => &FIELDS,
        Detail::Head => &FIELDS[..FIELDS.len() - 1],
    }
}

/// Reads [`fields`] back; `None` if nothing stands there or it ended before `now`.
pub(super) fn read(id: &EntryId, reply: Value, now: Timestamp) -> Result<Option<Entry>, Failure> {
    let Value::Array(mut values) = reply else {
        return Err(corrupt(format!("entry {id}"), "its reply is not a list of fields"));
    };
    if values.len() == FIELDS.len() - 1 {
        values.push(Value::BulkString(Vec::new()));
    }
    let [expires, created, prompt, pairs, category, content_type, usage, response] =
        <[Value; 8]>::try_from(values).map_err(|_| corrupt(format!("entry {id}"), "its reply misses fields"))?;
    // Without an expiry the hash is gone or was never ours.
    let Some(expires) = timestamp(&expires).filter(|expires| *expires > now) else { return Ok(None) };
    let missing = |field: &str| corrupt(format!("entry {id}"), format!("its field `{field}` is missing or damaged"));
    let attributes: BTreeMap<String, String> =
        bytes(&pairs).and_then(|pairs| serde_json::from_slice(pairs).ok()).ok_or_else(|| missing("pairs"))?;
    let Value::BulkString(response) = response else { return Err(missing("response")) };
    Ok(Some(Entry {
        id: *id,
        prompt: Prompt::stored(text(&prompt).ok_or_else(|| missing("prompt"))?),
        attributes: Attributes::stored(attributes),
        category: text(&category).and_then(|name| Category::new(name).ok()),
        response: Bytes::from(response),
        content_type: text(&content_type).ok_or_else(|| missing("content_type"))?.to_owned(),
        usage: text(&usage).and_then(read_usage).ok_or_else(|| missing("usage"))?,
        created: timestamp(&created).ok_or_else(|| missing("created"))?,
        expires,
    }))
}

fn read_usage(text: &str) -> Option<Usage> {
    let mut numbers = text.split(' ').map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    Some(Usage {
        input_tokens: next()?,
        output_tokens: next()?,
        cost_micros: next()?,
        latency: Duration::from_micros(next()?),
    })
}

/// Moves a vector by a small step that depends on the entry alone.
///
/// One prompt under many attribute sets makes exact duplicates, and hundreds of those cut an HNSW
/// graph into pieces that cannot be reached from each other.
pub(super) fn jittered(vector: &Vector, id: &EntryId) -> Vector {
    let mut seed = [0; 8];
    seed.copy_from_slice(&id.as_bytes()[..8]);
    let mut state = u64::from_le_bytes(seed);
    let noise: Vec<f32> = (0..vector.dimension()).map(|_| symmetric(&mut state)).collect();
    let norm = noise.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    let moved = vector.as_slice().iter().zip(&noise).map(|(value, noise)| value + noise * JITTER_NORM / norm);
    // A unit vector moved by a hundredth stays finite and far from zero.
    Vector::new(moved.collect()).unwrap_or_else(|_| vector.clone())
}

/// The next number of a `splitmix64` sequence, spread over [-1, 1).
fn symmetric(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn jitter_is_small_deterministic_and_different_for_each_entry(a: [u8; 20], b: [u8; 20], x in -1.0f32..1.0) {
            prop_assume!(a[..8] != b[..8]);
            let mut values = vec![0.3; 64];
            values[0] = x;
            let vector = Vector::new(values).unwrap();
            let (a, b) = (EntryId::from_bytes(&a).unwrap(), EntryId::from_bytes(&b).unwrap());
            let moved = jittered(&vector, &a);
            let cosine: f32 = moved.as_slice().iter().zip(vector.as_slice()).map(|(x, y)| x * y).sum();
            prop_assert!((0.9999..0.99999).contains(&cosine), "{cosine}");
            prop_assert_eq!(&moved, &jittered(&vector, &a));
            prop_assert_ne!(&moved, &jittered(&vector, &b));
        }
    }
}
