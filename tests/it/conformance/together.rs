//! Many at once.

use bytes::Bytes;
use futures::future::join_all;
use refrain::{
    store::{Detail, Entry},
    types::{Attributes, Namespace, Vector},
};

use super::{HOUR, Harness, ids};
use crate::data::{Random, clustered};

const TASKS: u64 = 16;
const STEPS: usize = 60;
const KEYS: usize = 12;

/// An entry every part of which tells its version.
fn version(harness: &Harness, key: usize, version: u64) -> Entry {
    let mut entry = harness.entry(&format!("q{key}"), &Attributes::default());
    entry.response = Bytes::from(version.to_string().repeat(2_000));
    entry.content_type = format!("version/{version}");
    entry.usage.input_tokens = version;
    entry.expires = entry.created.plus(HOUR);
    entry
}

fn assert_whole(entry: &Entry) {
    let version = entry.usage.input_tokens;
    assert_eq!(entry.content_type, format!("version/{version}"));
    assert!(entry.response == version.to_string().repeat(2_000).as_bytes(), "the body of another version");
}

pub async fn tasks_never_see_half_an_entry(harness: &mut Harness) {
    let harness = &*harness;
    let namespace = harness.namespace();
    let vectors = clustered(50, KEYS);
    join_all((0..TASKS).map(|task| one_task(harness, &namespace, &vectors, task))).await;

    // When all is quiet, the ways to see the namespace agree.
    let listed = harness.all(&namespace, 5).await;
    listed.iter().for_each(assert_whole);
    assert_eq!(harness.cache().count(&namespace).await.unwrap(), listed.len() as u64);
    let mut expected: Vec<_> = listed.iter().map(|entry| entry.id).collect();
    let (candidates, population) = harness.nearest(&namespace, &vectors[0], &Attributes::default(), KEYS).await;
    let mut found = ids(&candidates);
    found.sort();
    expected.sort();
    assert_eq!((found, population), (expected, listed.len() as u64));
}

async fn one_task(harness: &Harness, namespace: &Namespace, vectors: &[Vector], task: u64) {
    let mut random = Random(task);
    for step in 0..STEPS {
        let key = random.below(KEYS);
        let entry = version(harness, key, task * 1_000 + step as u64);
        match random.below(8) {
            0..3 => {
                harness.put(namespace, &entry, Some(&vectors[key])).await;
            }
            3 => {
                let deleted = harness.cache().delete(namespace, &[entry.id], None).await.unwrap();
                assert!(deleted <= 1, "one key holds one entry");
            }
            4..6 => {
                if let Some(read) = harness.get(namespace, &entry.id).await {
                    assert_whole(&read);
                }
            }
            6 => {
                let (candidates, _) = harness.nearest(namespace, &vectors[key], &Attributes::default(), 8).await;
                let mut found = ids(&candidates);
                found.sort();
                found.dedup();
                assert_eq!(found.len(), candidates.len(), "nobody is found twice");
                assert!(candidates.len() <= 8);
            }
            _ => harness
                .cache()
                .list(namespace, None, KEYS, Detail::Whole)
                .await
                .unwrap()
                .0
                .iter()
                .for_each(assert_whole),
        }
    }
}

/// Each task writes its own keys and looks at once: an acknowledged write is there.
pub async fn everyone_finds_what_they_wrote(harness: &mut Harness) {
    let harness = &*harness;
    let namespace = &harness.namespace();
    let vectors = &clustered(51, 16 * 12);
    join_all(vectors.chunks(12).enumerate().map(|(task, own)| async move {
        for (number, vector) in own.iter().enumerate() {
            let entry = harness.entry(&format!("q{task}/{number}"), &Attributes::default());
            assert!(harness.put(namespace, &entry, Some(vector)).await);
            assert_eq!(harness.get(namespace, &entry.id).await.as_ref(), Some(&entry));
            let (candidates, _) = harness.nearest(namespace, vector, &Attributes::default(), 1).await;
            assert_eq!(ids(&candidates), [entry.id]);
            if number % 3 == 0 {
                assert_eq!(harness.cache().delete(namespace, &[entry.id], None).await.unwrap(), 1);
                assert_eq!(harness.get(namespace, &entry.id).await, None);
                let (candidates, _) = harness.nearest(namespace, vector, &Attributes::default(), 1).await;
                assert_ne!(ids(&candidates), [entry.id]);
            }
        }
    }))
    .await;
    assert_eq!(harness.cache().count(namespace).await.unwrap(), 16 * 8);
}
