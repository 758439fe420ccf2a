//! Entries by similarity.

use refrain::{
    store::NewEntry,
    types::{Attributes, SpaceId},
};

use super::{Harness, ids};
use crate::data::{attributes, clustered, cosine};

pub async fn attribute_sets_must_be_equal(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vector = clustered(10, 1).remove(0);
    let sets = [
        attributes(&[]),
        attributes(&[("a", "1")]),
        attributes(&[("a", "2")]),
        attributes(&[("A", "1")]),
        attributes(&[("a", "1"), ("b", "2")]),
        attributes(&[("a", "1|b=2")]),
        attributes(&[("a", "")]),
        attributes(&[("a", "*")]),
        attributes(&[("a", "1,2")]),
        attributes(&[("a", "{1}")]),
    ];
    for set in &sets {
        harness.put(&namespace, &harness.entry("question", set), Some(&vector)).await;
    }
    for set in &sets {
        let (candidates, population) = harness.nearest(&namespace, &vector, set, 8).await;
        assert_eq!(ids(&candidates), [harness.entry("question", set).id], "{set:?}");
        assert_eq!(population, sets.len() as u64);
    }
    let (candidates, population) = harness.nearest(&namespace, &vector, &attributes(&[("b", "2")]), 8).await;
    assert_eq!((candidates.len(), population), (0, sets.len() as u64), "filtered out is not empty");
}

pub async fn nearest_is_exact_enough(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vectors = clustered(11, 330);
    let (stored, queries) = vectors.split_at(300);
    let mut entries = Vec::new();
    for (number, vector) in stored.iter().enumerate() {
        let entry = harness.entry(&format!("q{number}"), &Attributes::default());
        harness.put(&namespace, &entry, Some(vector)).await;
        entries.push((entry.id, vector));
    }
    for query in queries {
        let mut truth: Vec<_> = entries.iter().map(|(id, vector)| (cosine(query, vector), *id)).collect();
        truth.sort_by(|a, b| b.0.total_cmp(&a.0));
        for count in [1, 4, 8] {
            let (candidates, population) = harness.nearest(&namespace, query, &Attributes::default(), count).await;
            assert_eq!((candidates.len(), population), (count, 300));
            for (candidate, (best, _)) in candidates.iter().zip(&truth) {
                let own = truth.iter().find(|(_, id)| *id == candidate.id).expect("it was stored").0;
                let similarity = f64::from(candidate.similarity.get());
                assert!((similarity - own).abs() < 2e-3, "{similarity} where the cosine is {own}");
                assert!((similarity - best).abs() < 2e-3, "{similarity} where {best} is stored");
            }
            assert!(candidates.windows(2).all(|pair| pair[0].similarity >= pair[1].similarity), "nearest first");
        }
    }
    assert!(harness.nearest(&harness.namespace(), &queries[0], &Attributes::default(), 4).await.0.is_empty());
}

pub async fn an_entry_without_vector_is_exact_only(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vectors = clustered(12, 2);
    let (plain, found) =
        (harness.entry("plain", &Attributes::default()), harness.entry("found", &Attributes::default()));
    harness.put(&namespace, &plain, None).await;
    harness.put(&namespace, &found, Some(&vectors[0])).await;
    assert_eq!(harness.get(&namespace, &plain.id).await, Some(plain.clone()));
    let (candidates, population) = harness.nearest(&namespace, &vectors[1], &Attributes::default(), 8).await;
    assert_eq!((ids(&candidates), population), (vec![found.id], 2));

    // An entry can lose its vector, and get one.
    harness.put(&namespace, &found, None).await;
    harness.put(&namespace, &plain, Some(&vectors[1])).await;
    let (candidates, _) = harness.nearest(&namespace, &vectors[1], &Attributes::default(), 8).await;
    assert_eq!(ids(&candidates), [plain.id]);
}

pub async fn other_spaces_are_unseen_but_readable(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vector = clustered(13, 1).remove(0);
    let (own, foreign) =
        (harness.entry("own", &Attributes::default()), harness.entry("foreign", &Attributes::default()));
    harness.put(&namespace, &own, Some(&vector)).await;
    let elsewhere = SpaceId::derive(&[b"another model"]);
    let new = NewEntry { entry: foreign.clone(), vector: Some((elsewhere, vector.clone())) };
    harness.cache().put(&namespace, new, None).await.unwrap();
    for restarted in [false, true] {
        if restarted && !harness.reopen().await {
            return;
        }
        assert_eq!(harness.get(&namespace, &foreign.id).await, Some(foreign.clone()));
        let (candidates, population) = harness.nearest(&namespace, &vector, &Attributes::default(), 8).await;
        assert_eq!((ids(&candidates), population), (vec![own.id], 2));
        assert_eq!(harness.all(&namespace, 10).await.len(), 2);
    }
    assert_eq!(harness.cache().delete(&namespace, &[foreign.id], None).await.unwrap(), 1);
    assert_eq!(harness.cache().count(&namespace).await.unwrap(), 1);
}

/// One prompt under many attribute sets makes exact duplicates, which break graph indexes.
pub async fn duplicates_hide_nobody(harness: &mut Harness) {
    let namespace = harness.namespace();
    let mut vectors = clustered(14, 201);
    let duplicate = vectors.pop().expect("there are 201");
    let set = |number: usize| attributes(&[("user", &number.to_string())]);
    for (number, vector) in vectors.iter().enumerate() {
        harness.put(&namespace, &harness.entry("same", &set(number)), Some(&duplicate)).await;
        let distinct = harness.entry(&format!("distinct {number}"), &Attributes::default());
        harness.put(&namespace, &distinct, Some(vector)).await;
    }
    for (number, vector) in vectors.iter().enumerate() {
        let distinct = harness.entry(&format!("distinct {number}"), &Attributes::default());
        let (candidates, population) = harness.nearest(&namespace, vector, &Attributes::default(), 4).await;
        assert_eq!((ids(&candidates).first(), population), (Some(&distinct.id), 400), "{number}");
        let (candidates, _) = harness.nearest(&namespace, &duplicate, &set(number), 4).await;
        assert_eq!(ids(&candidates), [harness.entry("same", &set(number)).id], "{number}");
    }
}

pub async fn replacing_moves_the_vector(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vectors = clustered(15, 20);
    let entries: Vec<_> = (0..20).map(|n| harness.entry(&format!("q{n}"), &Attributes::default())).collect();
    for (entry, vector) in entries.iter().zip(&vectors) {
        harness.put(&namespace, entry, Some(vector)).await;
    }
    // Everyone moves to the neighbour's place, and every third one leaves.
    for (entry, vector) in entries.iter().zip(vectors.iter().cycle().skip(1)) {
        harness.put(&namespace, entry, Some(vector)).await;
    }
    let gone: Vec<_> = entries.iter().step_by(3).map(|entry| entry.id).collect();
    harness.cache().delete(&namespace, &gone, None).await.unwrap();
    for (entry, vector) in entries.iter().zip(vectors.iter().cycle().skip(1)) {
        let (candidates, population) = harness.nearest(&namespace, vector, &Attributes::default(), 1).await;
        let found = ids(&candidates) == [entry.id];
        assert_eq!((found, population), (!gone.contains(&entry.id), 13), "{:?}", entry.prompt.as_str());
    }
}
