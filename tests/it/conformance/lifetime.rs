//! When things end.

use std::time::Duration;

use refrain::{
    store::{Error, MemoKey, NearestQuery},
    types::{Attributes, Deadline},
};

use super::{HOUR, Harness, ids};
use crate::data::{clustered, space};

const MINUTE: Duration = Duration::from_mins(1);

pub async fn expired_entries_are_gone_everywhere(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vectors = clustered(30, 20);
    let mut entries = Vec::new();
    for (number, vector) in vectors.iter().enumerate() {
        let mut entry = harness.entry(&format!("q{number}"), &Attributes::default());
        entry.expires = entry.created.plus(if number < 12 { MINUTE } else { HOUR });
        harness.put(&namespace, &entry, Some(vector)).await;
        entries.push(entry);
    }
    assert_eq!(harness.cache().count(&namespace).await.unwrap(), 20);
    harness.clock.advance(MINUTE + Duration::from_secs(1));
    let (dead, alive) = entries.split_at(12);
    assert_eq!(harness.cache().count(&namespace).await.unwrap(), 8);
    assert_eq!(harness.all(&namespace, 3).await.len(), 8);
    for (entry, vector) in dead.iter().zip(&vectors) {
        assert_eq!(harness.get(&namespace, &entry.id).await, None);
        let (candidates, population) = harness.nearest(&namespace, vector, &Attributes::default(), 8).await;
        let mut found = ids(&candidates);
        let mut expected: Vec<_> = alive.iter().map(|entry| entry.id).collect();
        found.sort();
        expected.sort();
        assert_eq!((found, population), (expected, 8), "the dead do not take the places of the living");
    }
    let keys: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    assert_eq!(harness.cache().delete(&namespace, &keys, None).await.unwrap(), 8, "the dead do not count");
}

pub async fn an_expired_key_is_free(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vector = clustered(31, 1).remove(0);
    let mut entry = harness.entry("question", &Attributes::default());
    entry.expires = entry.created.plus(MINUTE);
    harness.put(&namespace, &entry, Some(&vector)).await;
    harness.clock.advance(MINUTE * 2);
    let again = harness.entry("question", &Attributes::default());
    assert!(harness.put(&namespace, &again, Some(&vector)).await, "what has expired does not hold the key");
    assert_eq!(harness.get(&namespace, &entry.id).await, Some(again));
    assert_eq!(harness.nearest(&namespace, &vector, &Attributes::default(), 4).await.1, 1);
}

pub async fn emptying_is_at_once_and_spares_what_follows(harness: &mut Harness) {
    let (namespace, neighbor) = (harness.namespace(), harness.namespace());
    let vectors = clustered(32, 100);
    let entries: Vec<_> = (0..100).map(|n| harness.entry(&format!("q{n}"), &Attributes::default())).collect();
    for (entry, vector) in entries.iter().zip(&vectors) {
        harness.put(&namespace, entry, Some(vector)).await;
    }
    harness.put(&neighbor, &entries[0], Some(&vectors[0])).await;
    for round in 0..3 {
        let expected = if round == 0 { 100 } else { 10 };
        assert_eq!(harness.cache().empty(&namespace, None).await.unwrap(), expected);
        assert_eq!(harness.cache().count(&namespace).await.unwrap(), 0);
        assert!(harness.all(&namespace, 10).await.is_empty());
        let (candidates, population) = harness.nearest(&namespace, &vectors[0], &Attributes::default(), 8).await;
        assert_eq!((candidates.len(), population), (0, 0));
        assert_eq!(harness.get(&namespace, &entries[0].id).await, None);

        // Some of the same keys come back while what was emptied is still being swept.
        for (entry, vector) in entries.iter().zip(&vectors).take(10) {
            assert!(harness.put(&namespace, entry, Some(vector)).await, "emptied keys are free");
        }
        for (entry, vector) in entries.iter().zip(&vectors).take(10) {
            assert_eq!(harness.get(&namespace, &entry.id).await.as_ref(), Some(entry));
            let (candidates, population) = harness.nearest(&namespace, vector, &Attributes::default(), 1).await;
            assert_eq!((ids(&candidates), population), (vec![entry.id], 10));
        }
        assert_eq!(harness.all(&namespace, 7).await.len(), 10);
        assert_eq!(harness.cache().count(&namespace).await.unwrap(), 10);
    }
    assert_eq!(harness.cache().count(&neighbor).await.unwrap(), 1);
    assert_eq!(harness.cache().empty(&harness.namespace(), None).await.unwrap(), 0);
}

/// Somebody who has stopped waiting must not be told that there is nothing.
pub async fn a_past_deadline_is_a_timeout(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vector = clustered(33, 1).remove(0);
    let entry = harness.entry("question", &Attributes::default());
    harness.put(&namespace, &entry, Some(&vector)).await;
    let past = Some(Deadline::at(harness.clock.instant()));
    for namespace in [&namespace, &harness.namespace()] {
        let query = NearestQuery {
            namespace,
            space: space(),
            vector: &vector,
            attributes: &Attributes::default(),
            count: 4,
            deadline: past,
        };
        let nearest = harness.cache().nearest(query).await.map(|nearest| nearest.candidates);
        assert!(matches!(nearest, Err(Error::Timeout { .. })), "{nearest:?}");
        let probe = harness.cache().probe(namespace, &entry.id, None, past).await;
        assert!(matches!(probe, Err(Error::Timeout { .. })), "{probe:?}");
        let memo = harness.memo().read(namespace, &[MemoKey([0; 32])], past).await;
        assert!(matches!(memo, Err(Error::Timeout { .. })), "{memo:?}");
    }
    let enough = Some(harness.clock.deadline_in(MINUTE));
    let probe = harness.cache().probe(&namespace, &entry.id, None, enough).await.unwrap();
    assert_eq!(probe.entry, Some(entry));
}
