//! Counters, memos and health.

use std::time::Duration;

use futures::future::join_all;
use refrain::{store::MemoKey, types::Attributes};

use super::{HOUR, Harness};
use crate::data::clustered;

pub async fn counters_add_up_under_contention(harness: &mut Harness) {
    let (namespace, other) = (harness.namespace(), harness.namespace());
    assert!(harness.cache().counters(&namespace).await.unwrap().is_empty());
    let adding = (0..16).map(|_| async {
        for step in 0..25 {
            let deltas = [("hits".to_owned(), 1), ("tokens {saved}|*".to_owned(), step)];
            harness.cache().add_counters(&namespace, &deltas).await.unwrap();
        }
    });
    join_all(adding).await;
    harness.cache().add_counters(&namespace, &[]).await.unwrap();
    harness.cache().add_counters(&other, &[("hits".to_owned(), 5)]).await.unwrap();
    // Emptying a namespace removes its entries, not what is known about its use.
    harness.cache().empty(&namespace, None).await.unwrap();
    let mut counters = harness.cache().counters(&namespace).await.unwrap();
    counters.sort();
    assert_eq!(counters, [("hits".to_owned(), 400), ("tokens {saved}|*".to_owned(), 16 * 300)]);
    assert_eq!(harness.cache().counters(&other).await.unwrap(), [("hits".to_owned(), 5)]);
}

pub async fn memos_keep_order_and_namespace(harness: &mut Harness) {
    let (namespace, other) = (harness.namespace(), harness.namespace());
    let vectors = clustered(40, 100);
    let key = |number: usize| MemoKey(*blake3::hash(&number.to_le_bytes()).as_bytes());
    let written: Vec<_> = vectors.iter().enumerate().map(|(number, vector)| (key(number), vector.clone())).collect();
    harness.memo().write(&namespace, &written, HOUR).await.unwrap();
    harness.memo().write(&namespace, &[], HOUR).await.unwrap();

    let asked = [key(7), key(1_000), key(99), key(7), key(0)];
    let read = harness.memo().read(&namespace, &asked, None).await.unwrap();
    let expected = [Some(&vectors[7]), None, Some(&vectors[99]), Some(&vectors[7]), Some(&vectors[0])];
    assert_eq!(read.iter().map(Option::as_ref).collect::<Vec<_>>(), expected, "to the bit");
    assert!(harness.memo().read(&namespace, &[], None).await.unwrap().is_empty());
    assert_eq!(harness.memo().read(&other, &asked, None).await.unwrap(), vec![None; 5]);

    // The last write stands.
    harness.memo().write(&namespace, &[(key(0), vectors[50].clone())], HOUR).await.unwrap();
    assert_eq!(harness.memo().read(&namespace, &[key(0)], None).await.unwrap(), [Some(vectors[50].clone())]);
}

/// An engine may leave the lifetime to its server's clock, so this one passes in real time.
pub async fn memos_end(harness: &mut Harness) {
    let namespace = harness.namespace();
    let vector = clustered(41, 1).remove(0);
    let (brief, lasting) = (MemoKey([1; 32]), MemoKey([2; 32]));
    harness.memo().write(&namespace, &[(lasting, vector.clone())], HOUR).await.unwrap();
    harness.memo().write(&namespace, &[(brief, vector.clone())], Duration::from_millis(30)).await.unwrap();
    let gone = async {
        while harness.memo().read(&namespace, &[brief], None).await.unwrap()[0].is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the memo ends");
    assert_eq!(harness.memo().read(&namespace, &[lasting], None).await.unwrap(), [Some(vector)]);
}

pub async fn probe_reads_entry_and_memo(harness: &mut Harness) {
    let (namespace, other) = (harness.namespace(), harness.namespace());
    let vector = clustered(42, 1).remove(0);
    let entry = harness.entry("question", &Attributes::default());
    let (known, unknown) = (MemoKey([3; 32]), MemoKey([4; 32]));
    harness.memo().write(&namespace, &[(known, vector.clone())], HOUR).await.unwrap();
    let probe = async |namespace, memo: Option<&MemoKey>| {
        let probe = harness.cache().probe(namespace, &entry.id, memo, None).await.unwrap();
        (probe.entry, probe.vector)
    };
    assert_eq!(probe(&namespace, Some(&known)).await, (None, Some(vector.clone())), "before the first entry");
    harness.put(&namespace, &entry, Some(&vector)).await;
    assert_eq!(probe(&namespace, Some(&known)).await, (Some(entry.clone()), Some(vector)));
    assert_eq!(probe(&namespace, Some(&unknown)).await, (Some(entry.clone()), None));
    assert_eq!(probe(&namespace, None).await, (Some(entry.clone()), None), "not asked for");
    assert_eq!(probe(&other, Some(&known)).await, (None, None));
}

pub async fn the_engine_is_healthy_and_describes_itself(harness: &mut Harness) {
    let namespace = harness.namespace();
    let entry = harness.entry("question", &Attributes::default());
    harness.put(&namespace, &entry, Some(&clustered(43, 1)[0])).await;
    harness.engine.health.check().await.unwrap();
    let facts = harness.engine.health.describe().await.unwrap();
    assert!(!format!("{facts:?}").contains(namespace.as_str()), "tenants are not named: {facts:?}");
    assert!(facts.iter().any(|(name, value)| name.ends_with("version") && !value.is_empty()), "{facts:?}");
}
