//! Entries by key: what goes in comes out, once.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use refrain::{
    store::{NewEntry, Put, RequestId, Usage},
    types::{Attributes, EntryId},
};

use super::{HOUR, Harness, ids};
use crate::data::{CRAFTED, attributes, clustered, space};

pub async fn every_field_survives(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vectors = clustered(1, CRAFTED.len());
    let mut written = Vec::new();
    for (number, text) in CRAFTED.iter().enumerate() {
        let mut entry = harness.entry(text, &attributes(&[("model", text), ("empty", "")]));
        entry.response = Bytes::from(format!("{text}{text}"));
        entry.content_type = (*text).to_owned();
        entry.category = entry.category.filter(|_| number % 2 == 0);
        entry.usage = Usage {
            input_tokens: number as u64,
            output_tokens: u64::from(u32::MAX) + 1,
            cost_micros: i64::MAX as u64,
            latency: Duration::from_millis(u64::from(u32::MAX)),
        };
        entry.expires = entry.created.plus(HOUR + Duration::from_millis(number as u64));
        assert!(harness.put(&namespace, &entry, Some(&vectors[number])).await, "{text:?} is new");
        written.push((entry, &vectors[number]));
    }
    for (entry, vector) in &written {
        assert_eq!(harness.get(&namespace, &entry.id).await.as_ref(), Some(entry));
        let (candidates, population) = harness.nearest(&namespace, vector, &entry.attributes, 4).await;
        assert_eq!(population, written.len() as u64);
        assert_eq!(ids(&candidates), [entry.id], "{:?}", entry.prompt.as_str());
        let found = &candidates[0];
        assert_eq!(found.prompt, entry.prompt);
        assert_eq!((&found.category, found.created, found.expires), (&entry.category, entry.created, entry.expires));
    }
    let listed = harness.all(&namespace, 4).await;
    assert_eq!(listed, written.iter().map(|(entry, _)| entry.clone()).collect::<Vec<_>>());
    for (entry, vector) in &written {
        assert_eq!(harness.cache().delete(&namespace, &[entry.id], None).await.unwrap(), 1);
        assert_eq!(harness.get(&namespace, &entry.id).await, None);
        assert!(harness.nearest(&namespace, vector, &entry.attributes, 4).await.0.is_empty());
    }
    assert_eq!(harness.cache().count(&namespace).await.unwrap(), 0);
}

pub async fn responses_of_any_kind_survive(harness: &mut Harness) {
    let namespace = harness.namespace();
    let binary: Vec<u8> = (0..=255).cycle().take(1_000).collect();
    let large = "x\u{1f980}\n".repeat(300 * 1_024 / 6);
    for (name, response) in [("empty", Vec::new()), ("binary", binary), ("large", large.into_bytes())] {
        let mut entry = harness.entry(name, &Attributes::default());
        entry.response = response.into();
        harness.put(&namespace, &entry, None).await;
        let read = harness.get(&namespace, &entry.id).await.expect("it was stored");
        assert!(read == entry, "the {name} response came back as {} bytes", read.response.len());
    }
}

pub async fn replacing_keeps_one_entry(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vectors = clustered(2, 2);
    let old = harness.entry("question", &Attributes::default());
    let mut new = old.clone();
    new.response = Bytes::from_static(b"better");
    new.category = None;
    new.expires = old.expires.plus(HOUR);
    assert!(harness.put(&namespace, &old, Some(&vectors[0])).await);
    assert!(!harness.put(&namespace, &new, Some(&vectors[1])).await, "the key was taken");
    assert_eq!(harness.get(&namespace, &old.id).await, Some(new.clone()));
    assert_eq!(harness.all(&namespace, 10).await, [new]);
    assert_eq!(harness.cache().count(&namespace).await.unwrap(), 1);
    let (candidates, population) = harness.nearest(&namespace, &vectors[1], &Attributes::default(), 4).await;
    assert_eq!((candidates.len(), population), (1, 1));
    assert!(candidates[0].similarity.get() > 0.998, "found by its new vector: {:?}", candidates[0].similarity);
}

pub async fn deleting_counts_the_living(harness: &mut Harness) {
    let namespace = harness.namespace();
    let entries: Vec<_> = (0..5).map(|n| harness.entry(&format!("q{n}"), &Attributes::default())).collect();
    for entry in &entries {
        harness.put(&namespace, entry, None).await;
    }
    let never = harness.entry("never stored", &Attributes::default()).id;
    let victims = [entries[0].id, never, entries[1].id, entries[0].id];
    assert_eq!(harness.cache().delete(&namespace, &victims, None).await.unwrap(), 2);
    assert_eq!(harness.cache().delete(&namespace, &victims, None).await.unwrap(), 0);
    assert_eq!(harness.cache().delete(&namespace, &[], None).await.unwrap(), 0);
    assert_eq!(harness.cache().count(&namespace).await.unwrap(), 3);
    assert_eq!(harness.cache().delete(&harness.namespace(), &[never], None).await.unwrap(), 0);
}

pub async fn listing_is_complete_and_without_repeats(harness: &mut Harness) {
    let namespace = harness.namespace();
    let created = harness.clock.now();
    let mut expected = BTreeSet::new();
    for number in 0..60 {
        let mut entry = harness.entry(&format!("q{number}"), &Attributes::default());
        // Three expiries, so that most pages end among equals.
        entry.expires = created.plus(HOUR * (1 + number % 3));
        expected.insert((entry.expires, entry.id));
        harness.put(&namespace, &entry, None).await;
    }
    let expected: Vec<_> = expected.into_iter().collect();
    for page_size in [1, 2, 7, 20, 59, 60, 61, 1_000] {
        let listed: Vec<_> = harness.all(&namespace, page_size).await.iter().map(|e| (e.expires, e.id)).collect();
        assert_eq!(listed, expected, "pages of {page_size}");
    }
    assert!(harness.all(&harness.namespace(), 3).await.is_empty());
}

pub async fn requests_happen_once(harness: &mut Harness) {
    let (namespace, other) = (harness.namespace(), harness.namespace());
    let request = RequestId(Arc::from(CRAFTED.join("/").chars().take(40).collect::<String>()));
    let named = request;
    let request = Some(&named);
    let entry = harness.entry("question", &Attributes::default());
    let put = |response: &'static str| {
        let mut entry = entry.clone();
        entry.response = Bytes::from_static(response.as_bytes());
        NewEntry { entry, vector: Some((space(), clustered(3, 1).remove(0))) }
    };
    let later = |mut new: NewEntry| {
        new.entry.expires = new.entry.expires.plus(Duration::from_secs(5));
        new
    };
    let done = |created| Put { created, expires: entry.expires };
    let response = async |namespace| harness.get(namespace, &entry.id).await.map(|entry| entry.response);

    let cache = harness.cache();
    assert_eq!(cache.put(&namespace, put("first"), request).await.unwrap(), done(true));
    assert_eq!(cache.put(&namespace, later(put("second")), request).await.unwrap(), done(true), "a repeat");
    assert_eq!(response(&namespace).await.as_deref(), Some(&b"first"[..]));
    assert_eq!(cache.put(&other, put("other"), request).await.unwrap(), done(true));
    assert_eq!(response(&other).await.as_deref(), Some(&b"other"[..]), "a request id belongs to its namespace");

    assert_eq!(cache.delete(&namespace, &[entry.id], request).await.unwrap(), 1, "and to its verb");
    assert_eq!(cache.put(&namespace, put("third"), None).await.unwrap(), done(true));
    assert_eq!(cache.delete(&namespace, &[entry.id], request).await.unwrap(), 1, "a repeat");
    assert_eq!(response(&namespace).await.as_deref(), Some(&b"third"[..]), "which deletes nothing");

    assert_eq!(cache.empty(&namespace, request).await.unwrap(), 1);
    assert_eq!(cache.put(&namespace, put("fourth"), None).await.unwrap(), done(true));
    assert_eq!(cache.empty(&namespace, request).await.unwrap(), 1, "a repeat");
    assert_eq!(response(&namespace).await.as_deref(), Some(&b"fourth"[..]), "which empties nothing");

    assert_eq!(cache.recall_outcome(&namespace, &named).await.unwrap(), None);
    cache.remember_outcome(&namespace, &named, 7).await.unwrap();
    cache.remember_outcome(&namespace, &named, 8).await.unwrap();
    assert_eq!(cache.recall_outcome(&namespace, &named).await.unwrap(), Some(7), "the first outcome stays");
    assert_eq!(cache.recall_outcome(&other, &named).await.unwrap(), None);

    // What no request names happens each time.
    let again = Some(&RequestId(Arc::from("another"))).cloned();
    assert_eq!(cache.put(&namespace, put("fifth"), again.as_ref()).await.unwrap(), done(false));
    assert_eq!(response(&namespace).await.as_deref(), Some(&b"fifth"[..]));
}

pub async fn a_restart_keeps_everything(harness: &mut Harness) {
    let (namespace, emptied) = (harness.namespace(), harness.namespace());
    let vectors = clustered(4, 40);
    let mut entries = Vec::new();
    for (number, vector) in vectors.iter().enumerate() {
        let mut entry = harness.entry(&format!("q{number}"), &Attributes::default());
        entry.expires = entry.expires.plus(Duration::from_millis(number as u64));
        harness.put(&namespace, &entry, Some(vector)).await;
        harness.put(&emptied, &entry, Some(vector)).await;
        entries.push(entry);
    }
    harness.cache().empty(&emptied, None).await.unwrap();
    harness.put(&emptied, &entries[0], Some(&vectors[0])).await;
    harness.cache().add_counters(&namespace, &[("hits".to_owned(), 3)]).await.unwrap();
    let gone: Vec<EntryId> = entries.drain(..8).map(|entry| entry.id).collect();
    assert_eq!(harness.cache().delete(&namespace, &gone, None).await.unwrap(), 8);
    if !harness.reopen().await {
        return;
    }
    assert_eq!(harness.all(&namespace, 100).await, entries);
    assert_eq!(harness.cache().count(&namespace).await.unwrap(), 32);
    assert_eq!(harness.cache().count(&emptied).await.unwrap(), 1);
    assert_eq!(harness.cache().counters(&namespace).await.unwrap(), [("hits".to_owned(), 3)]);
    for (entry, vector) in entries.iter().zip(&vectors[8..]) {
        let (candidates, population) = harness.nearest(&namespace, vector, &entry.attributes, 1).await;
        assert_eq!((ids(&candidates), population), (vec![entry.id], 32));
    }
    let (candidates, _) = harness.nearest(&emptied, &vectors[1], &Attributes::default(), 8).await;
    assert_eq!(candidates.len(), 1, "what was emptied stays gone");
}
