//! What one tenant stores is nothing to another, whatever either of them writes.

use std::time::Duration;

use bytes::Bytes;
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use refrain::{
    store::{Entry, MemoKey},
    types::{Namespace, Vector},
};

use super::{Harness, ids};
use crate::data::{CRAFTED, attributes, clustered};

/// One prompt with its attributes, both out of the crafted texts, and a vector.
#[derive(Clone, Debug)]
struct Item {
    text: usize,
    value: usize,
    vector: usize,
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let text = 0..CRAFTED.len();
    let item = (text.clone(), text, 0_usize..8).prop_map(|(text, value, vector)| Item { text, value, vector });
    proptest::collection::vec(item, 1..5)
}

pub async fn namespaces_never_meet(harness: &mut Harness) {
    let harness = &*harness;
    let vectors = clustered(20, 8);
    let config = Config { cases: 64, failure_persistence: None, max_shrink_iters: 64, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let handle = tokio::runtime::Handle::current();
    let verdict = tokio::task::block_in_place(|| {
        runner.run(&(items(), ".{1,40}"), |(items, free)| {
            handle.block_on(one_case(harness, &items, &free, &vectors));
            Ok(())
        })
    });
    if let Err(error) = verdict {
        panic!("{error}");
    }
}

async fn one_case(harness: &Harness, items: &[Item], free: &str, vectors: &[Vector]) {
    let ours = harness.namespace();
    // Theirs begins like ours, as `acme` and `acme.test` do.
    let theirs = Namespace::new(&format!("{}.x", ours.as_str())).expect("still short enough");
    let mut entries: Vec<(Entry, &Vector)> = Vec::new();
    for item in items {
        let set = attributes(&[("value", CRAFTED[item.value]), ("free", free)]);
        let entry = harness.entry(CRAFTED[item.text], &set);
        entries.retain(|(earlier, _)| earlier.id != entry.id);
        entries.push((entry, &vectors[item.vector]));
    }
    let memo = MemoKey(*blake3_of(free).as_bytes());
    for (entry, vector) in &entries {
        harness.put(&ours, entry, Some(vector)).await;
    }
    harness.memo().write(&ours, &[(memo, vectors[0].clone())], Duration::from_mins(1)).await.unwrap();

    assert_sees(harness, &theirs, &[], &entries).await;
    assert_eq!(harness.memo().read(&theirs, &[memo], None).await.unwrap(), [None]);
    let keys: Vec<_> = entries.iter().map(|(entry, _)| entry.id).collect();
    assert_eq!(harness.cache().delete(&theirs, &keys, None).await.unwrap(), 0);
    assert_eq!(harness.cache().empty(&theirs, None).await.unwrap(), 0);
    assert_sees(harness, &ours, &entries, &entries).await;

    // The same prompts under the same keys, answered otherwise.
    let their_entries: Vec<_> = entries
        .iter()
        .map(|(entry, vector)| (Entry { response: Bytes::from_static(b"theirs"), ..entry.clone() }, *vector))
        .collect();
    for (entry, vector) in &their_entries {
        assert!(harness.put(&theirs, entry, Some(vector)).await, "free in their namespace");
    }
    assert_sees(harness, &ours, &entries, &entries).await;
    assert_sees(harness, &theirs, &their_entries, &entries).await;

    assert_eq!(harness.cache().delete(&theirs, &keys[..1], None).await.unwrap(), 1);
    assert_sees(harness, &ours, &entries, &entries).await;
    assert_eq!(harness.cache().empty(&ours, None).await.unwrap(), entries.len() as u64);
    assert_sees(harness, &ours, &[], &entries).await;
    assert_sees(harness, &theirs, &their_entries[1..], &entries).await;
}

/// Both tiers, the listing and the count show `seen` and nothing else, whatever of `asked` is
/// looked for.
async fn assert_sees(harness: &Harness, namespace: &Namespace, seen: &[(Entry, &Vector)], asked: &[(Entry, &Vector)]) {
    for (entry, vector) in asked {
        let expected = seen.iter().find(|(other, _)| other.id == entry.id).map(|(entry, _)| entry.clone());
        assert_eq!(harness.get(namespace, &entry.id).await, expected);
        let (candidates, population) = harness.nearest(namespace, vector, &entry.attributes, 8).await;
        let mut found = ids(&candidates);
        let agree = seen.iter().filter(|(other, _)| other.attributes == entry.attributes);
        let mut expected: Vec<_> = agree.map(|(other, _)| other.id).collect();
        found.sort();
        expected.sort();
        assert_eq!((found, population), (expected, seen.len() as u64));
    }
    let mut listed = harness.all(namespace, 2).await;
    let mut expected: Vec<_> = seen.iter().map(|(entry, _)| entry.clone()).collect();
    listed.sort_by_key(|entry| entry.id);
    expected.sort_by_key(|entry| entry.id);
    assert_eq!(listed, expected);
    assert_eq!(harness.cache().count(namespace).await.unwrap(), seen.len() as u64);
}

fn blake3_of(text: &str) -> blake3::Hash {
    blake3::hash(text.as_bytes())
}
