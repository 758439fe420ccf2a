//! Emptying a namespace, and what must never come back.

use std::sync::Arc;

use refrain::types::Attributes;

use super::{fill, indexes_of, keys_of, run, try_nearest};
use crate::{
    data::clustered,
    redis_server::{RedisServer, eventually},
};

#[tokio::test]
async fn another_sidecar_sees_the_namespace_emptied_with_its_next_call() {
    let server = RedisServer::shared().await;
    let (one, two) =
        (Arc::clone(&server).harness(server.settings()).await, Arc::clone(&server).harness(server.settings()).await);
    let vectors = clustered(20, 10);
    // One case a verb, so that none profits from what another has noticed.
    for verb in 0..4 {
        let namespace = one.namespace();
        let entries = fill(&one, &namespace, &vectors).await;
        assert_eq!(two.nearest(&namespace, &vectors[0], &Attributes::default(), 1).await.0.len(), 1);
        assert_eq!(one.cache().empty(&namespace, None).await.unwrap(), 10);
        match verb {
            0 => assert!(two.get(&namespace, &entries[0].id).await.is_none()),
            1 => assert!(two.nearest(&namespace, &vectors[0], &Attributes::default(), 1).await.0.is_empty()),
            2 => assert_eq!(two.cache().count(&namespace).await.unwrap(), 0),
            _ => assert!(two.all(&namespace, 4).await.is_empty()),
        }
    }
}

#[tokio::test]
async fn a_write_under_an_old_epoch_is_not_lost() {
    let server = RedisServer::shared().await;
    let (one, two) =
        (Arc::clone(&server).harness(server.settings()).await, Arc::clone(&server).harness(server.settings()).await);
    let namespace = one.namespace();
    let vectors = clustered(21, 10);
    fill(&two, &namespace, &vectors).await;
    one.cache().empty(&namespace, None).await.unwrap();
    // The second engine still believes in the old epoch and its index.
    let entry = two.entry("fresh", &Attributes::default());
    assert!(two.put(&namespace, &entry, Some(&vectors[3])).await);
    for harness in [&one, &two] {
        assert_eq!(harness.get(&namespace, &entry.id).await.as_ref(), Some(&entry));
        let (found, population) = harness.nearest(&namespace, &vectors[3], &Attributes::default(), 4).await;
        assert_eq!((found.len(), population), (1, 1));
        assert_eq!(found[0].id, entry.id);
        assert_eq!(harness.cache().delete(&namespace, &[entry.id], None).await.unwrap(), 1);
        assert!(harness.put(&namespace, &entry, Some(&vectors[3])).await);
    }
}

#[tokio::test]
async fn a_lost_epoch_reads_as_empty_and_never_brings_entries_back() {
    let server = RedisServer::shared().await;
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    let vectors = clustered(22, 10);
    let entries = fill(&harness, &namespace, &vectors).await;
    let mut client = server.client().await;
    let old = indexes_of(&mut client, &namespace).await;
    run(&mut client, &["DEL", &format!("refrain:{{{namespace}}}:epoch")]).await;

    let fresh = Arc::clone(&server).harness(server.settings()).await;
    for harness in [&harness, &fresh] {
        assert!(harness.get(&namespace, &entries[0].id).await.is_none());
        assert!(harness.nearest(&namespace, &vectors[0], &Attributes::default(), 4).await.0.is_empty());
        assert_eq!(harness.cache().count(&namespace).await.unwrap(), 0);
        assert!(harness.all(&namespace, 4).await.is_empty());
        assert_eq!(harness.cache().delete(&namespace, &[entries[0].id], None).await.unwrap(), 0);
    }
    let entry = harness.entry("after", &Attributes::default());
    harness.put(&namespace, &entry, Some(&vectors[0])).await;
    for harness in [&harness, &fresh] {
        assert_eq!(harness.all(&namespace, 4).await, std::slice::from_ref(&entry));
        let (found, population) = harness.nearest(&namespace, &vectors[0], &Attributes::default(), 4).await;
        assert_eq!((found.len(), population), (1, 1));
    }
    let dropped = async || {
        let indexes = indexes_of(&mut server.client().await, &namespace).await;
        (indexes.len() == 1 && indexes != old).then_some(())
    };
    eventually("the index of the lost epoch is dropped", dropped).await;
}

#[tokio::test]
async fn emptying_sweeps_keys_and_indexes() {
    let server = RedisServer::shared().await;
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    fill(&harness, &namespace, &clustered(23, 300)).await;
    harness.cache().add_counters(&namespace, &[("hits".to_owned(), 2)]).await.unwrap();
    assert_eq!(harness.cache().empty(&namespace, None).await.unwrap(), 300);
    let swept = async || {
        let mut client = server.client().await;
        let mut keys = keys_of(&mut client, &namespace).await;
        keys.sort();
        let left = [format!("refrain:{{{namespace}}}:counters"), format!("refrain:{{{namespace}}}:epoch")];
        (keys == left && indexes_of(&mut client, &namespace).await.is_empty()).then_some(())
    };
    eventually("only epoch and counters are left", swept).await;
    assert_eq!(harness.cache().counters(&namespace).await.unwrap(), [("hits".to_owned(), 2)]);
}

#[tokio::test]
async fn an_interrupted_sweep_is_taken_up_by_the_next_process() {
    let server = Arc::new(RedisServer::start().await);
    let mut settings = server.settings();
    settings.sweep_keys_per_second = 20;
    let harness = Arc::clone(&server).harness(settings).await;
    let namespace = harness.namespace();
    fill(&harness, &namespace, &clustered(24, 300)).await;
    harness.cache().empty(&namespace, None).await.unwrap();
    harness.engine.health.close().await;
    let mut client = server.client().await;
    assert!(keys_of(&mut client, &namespace).await.len() > 100, "most keys still stand");

    let next = server.engine().await;
    let epoch = format!("refrain:{{{namespace}}}:epoch");
    let swept = async || (keys_of(&mut server.client().await, &namespace).await == [epoch.clone()]).then_some(());
    eventually("nobody touches the namespace, and it is swept all the same", swept).await;
    let noted = async || {
        let noted: Vec<String> =
            redis::cmd("SMEMBERS").arg("refrain:sweeps").query_async(&mut server.client().await).await.unwrap();
        noted.is_empty().then_some(())
    };
    eventually("nothing is noted any more", noted).await;
    next.health.close().await;
}

#[tokio::test]
async fn everything_but_epoch_counters_and_layout_ends_by_itself() {
    let server = Arc::new(RedisServer::start().await);
    let mut settings = server.settings();
    settings.sweep_keys_per_second = 1;
    let harness = Arc::clone(&server).harness(settings).await;
    let vectors = clustered(25, 20);
    for step in 0..2 {
        let namespace = harness.namespace();
        let entries = fill(&harness, &namespace, &vectors).await;
        // Every way of writing: a replacement, requests, counters, memos, a rebuilt index.
        fill(&harness, &namespace, &vectors[..5]).await;
        let request = refrain::store::RequestId("once".into());
        let cache = harness.cache();
        cache.delete(&namespace, &[entries[0].id], Some(&request)).await.unwrap();
        cache.add_counters(&namespace, &[("hits".to_owned(), 1)]).await.unwrap();
        let memo = [(refrain::store::MemoKey([7; 32]), vectors[0].clone())];
        harness.memo().write(&namespace, &memo, crate::conformance::HOUR).await.unwrap();
        let mut client = server.client().await;
        let index = indexes_of(&mut client, &namespace).await.remove(0);
        run(&mut client, &["FT.DROPINDEX", &index]).await;
        try_nearest(&harness, &namespace, &vectors[0], 1).await.unwrap();
        if step == 1 {
            cache.empty(&namespace, Some(&request)).await.unwrap();
        }
    }
    let mut client = server.client().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut client).await.unwrap();
    assert!(keys.len() > 40, "{keys:?}");
    for key in keys {
        let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut client).await.unwrap();
        // A volatile-* policy must not evict the live set of an epoch that counts.
        let counts = match key.split_once(":entries:") {
            Some((namespace, epoch)) => {
                let current: Option<String> =
                    redis::cmd("GET").arg(format!("{namespace}:epoch")).query_async(&mut client).await.unwrap();
                current.as_deref() == Some(epoch)
            }
            None => false,
        };
        let stays = key.ends_with(":epoch") || counts || key == "refrain:schema";
        assert_eq!(left == -1, stays, "{key} has {left} ms left");
    }
}
