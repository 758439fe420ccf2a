//! The life of an index, and of a server that is not as it should be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use refrain::{
    clock::Clock,
    store::{Error, NearestQuery, redis::open},
    types::{Attributes, EntryId, Vector},
};

use super::{fill, indexes_of, run, try_nearest, try_put};
use crate::{
    conformance::ids,
    data::{DIMENSION, clustered, space},
    redis_server::{RedisServer, eventually},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lookup_loses_an_entry_while_hnsw_is_built() {
    let server = RedisServer::shared().await;
    let mut settings = server.settings();
    settings.flat_entries_max = 2_000;
    let writer = Arc::clone(&server).harness(settings.clone()).await;
    // Another sidecar, which learns of the new index only by finding the old one gone.
    let reader = Arc::clone(&server).harness(settings).await;
    let namespace = writer.namespace();
    let vectors = clustered(9, 2_500);
    let stored: Mutex<Vec<(EntryId, Vector)>> = Mutex::default();
    let (done, searches) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut client = server.client().await;

    let write = async {
        for (number, vector) in vectors.iter().enumerate() {
            let entry = writer.entry(&format!("question {number}"), &Attributes::default());
            writer.put(&namespace, &entry, Some(vector)).await;
            stored.lock().push((entry.id, vector.clone()));
        }
        let promoted = async || {
            let indexes = indexes_of(&mut client.clone(), &namespace).await;
            (indexes.len() == 1 && indexes[0].rsplit('.').next() == Some("hnsw")).then_some(())
        };
        eventually("one index remains, and it is HNSW", promoted).await;
        done.store(true, Ordering::SeqCst);
    };
    let read = async {
        let mut turn = 0;
        // A whole round more once the move is over.
        let mut rounds_left = 600;
        while rounds_left > 0 {
            if done.load(Ordering::SeqCst) {
                rounds_left -= 1;
            }
            let known = stored.lock().len();
            if known == 0 {
                tokio::task::yield_now().await;
                continue;
            }
            turn += 1;
            let (id, vector) = stored.lock()[turn * 7 % known].clone();
            let harness = if turn % 2 == 0 { &writer } else { &reader };
            let (found, _) = harness.nearest(&namespace, &vector, &Attributes::default(), 4).await;
            assert!(ids(&found).contains(&id), "search {turn} loses an entry of {known}");
            searches.fetch_add(1, Ordering::SeqCst);
        }
    };
    tokio::join!(write, read);
    assert!(searches.load(Ordering::SeqCst) >= 600);
    assert_eq!(indexes_of(&mut client, &namespace).await.len(), 1);
}

#[tokio::test]
async fn an_index_dropped_behind_our_back_is_built_again() {
    let server = RedisServer::shared().await;
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    let vectors = clustered(10, 200);
    let entries = fill(&harness, &namespace, &vectors).await;
    let mut client = server.client().await;
    let index = indexes_of(&mut client, &namespace).await.remove(0);
    run(&mut client, &["FT.DROPINDEX", &index]).await;

    let first = try_nearest(&harness, &namespace, &vectors[0], 4).await.unwrap();
    assert!(first.partial, "while the scan runs an answer says that it may be incomplete");
    assert_eq!(first.population, 200);
    // Another sidecar says so too, although it has never seen the index missing.
    let healed = async || {
        let nearest = try_nearest(&harness, &namespace, &vectors[0], 4).await.unwrap();
        (!nearest.partial).then_some(())
    };
    eventually("the index is complete again", healed).await;
    for (entry, vector) in entries.iter().zip(&vectors) {
        let (found, _) = harness.nearest(&namespace, vector, &Attributes::default(), 1).await;
        assert_eq!(ids(&found), [entry.id]);
    }
}

#[tokio::test]
async fn another_sidecar_knows_that_an_index_is_being_filled() {
    let server = RedisServer::shared().await;
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let other = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    let vectors = clustered(11, 20);
    fill(&harness, &namespace, &vectors).await;
    assert!(!try_nearest(&other, &namespace, &vectors[0], 4).await.unwrap().partial);
    let mut client = server.client().await;
    let index = indexes_of(&mut client, &namespace).await.remove(0);
    run(&mut client, &["FT.DROPINDEX", &index]).await;
    assert!(try_nearest(&harness, &namespace, &vectors[0], 4).await.unwrap().partial);
    assert!(try_nearest(&other, &namespace, &vectors[0], 4).await.unwrap().partial);
}

#[tokio::test]
async fn an_index_of_another_shape_is_refused_with_the_remedy() {
    let server = RedisServer::shared().await;
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    let vectors = clustered(12, 3);
    fill(&harness, &namespace, &vectors).await;
    let mut client = server.client().await;
    let index = indexes_of(&mut client, &namespace).await.remove(0);
    let epoch = index.rsplit("entry.").next().unwrap().split('.').next().unwrap().to_owned();
    run(&mut client, &["FT.DROPINDEX", &index]).await;
    let (prefix, field) = (format!("refrain:{{{namespace}}}:entry:{epoch}."), format!("v_{}", space()));
    let create = [
        "FT.CREATE",
        &index,
        "ON",
        "HASH",
        "PREFIX",
        "1",
        &prefix,
        "SCHEMA",
        "attributes",
        "TAG",
        "CASESENSITIVE",
        &field,
        "VECTOR",
        "FLAT",
        "6",
        "TYPE",
        "FLOAT32",
        "DIM",
        "4",
        "DISTANCE_METRIC",
        "L2",
    ];
    run(&mut client, &create).await;

    let other = Arc::clone(&server).harness(server.settings()).await;
    let entry = other.entry("new", &Attributes::default());
    for error in [
        try_nearest(&other, &namespace, &vectors[0], 4).await.unwrap_err(),
        try_put(&other, &namespace, &entry, &vectors[0]).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::SchemaMismatch { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("dimension is 4, expected 48"), "{text}");
        assert!(text.contains("metric is L2, expected COSINE"), "{text}");
        assert!(text.contains(&format!("FT.DROPINDEX {index}")), "{text}");
    }
    // The remedy works.
    run(&mut client, &["FT.DROPINDEX", &index]).await;
    let healed = async || {
        let nearest = try_nearest(&other, &namespace, &vectors[0], 4).await.unwrap();
        (nearest.candidates.len() == 3 && !nearest.partial).then_some(())
    };
    eventually("the remedy heals the search", healed).await;
}

#[tokio::test]
async fn vectors_of_another_length_are_refused() {
    let server = RedisServer::shared().await;
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    fill(&harness, &namespace, &clustered(13, 1)).await;
    let short = Vector::new(vec![1.0; DIMENSION / 2]).unwrap();
    let entry = harness.entry("short", &Attributes::default());
    let error = try_put(&harness, &namespace, &entry, &short).await.unwrap_err();
    assert!(matches!(error, Error::SchemaMismatch { .. }), "{error}");
    let error = try_nearest(&harness, &namespace, &short, 4).await.unwrap_err();
    assert!(matches!(error, Error::SchemaMismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_server_without_the_search_module_is_told_apart() {
    let server = RedisServer::without_search().await;
    let opened = open(server.settings(), (space(), DIMENSION), Clock::system()).await;
    let Err(error) = opened.map(|_| ()) else { panic!("a server without search cannot serve") };
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    assert!(error.to_string().contains("redis:8"), "{error}");
}

#[tokio::test]
async fn keys_of_another_layout_are_left_alone() {
    let server = RedisServer::start().await;
    run(&mut server.client().await, &["SET", "refrain:schema", "999"]).await;
    let opened = open(server.settings(), (space(), DIMENSION), Clock::system()).await;
    let Err(error) = opened.map(|_| ()) else { panic!("another layout cannot be served") };
    assert!(matches!(error, Error::SchemaMismatch { .. }), "{error}");
    assert!(error.to_string().contains("version 999"), "{error}");
}

/// A deadline shortens the search on the server, and a past one is not searched at all.
#[tokio::test]
async fn a_search_ends_before_its_deadline() {
    let server = Arc::new(RedisServer::start().await);
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    let vectors = clustered(14, 3);
    fill(&harness, &namespace, &vectors).await;
    server.pause();
    let budget = Duration::from_millis(200);
    let started = harness.clock.instant();
    let attributes = Attributes::default();
    let query = NearestQuery {
        namespace: &namespace,
        space: space(),
        vector: &vectors[0],
        attributes: &attributes,
        count: 4,
        deadline: Some(harness.clock.deadline_in(budget)),
    };
    let error = harness.cache().nearest(query).await.unwrap_err();
    let took = harness.clock.instant() - started;
    server.resume();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    // The response timeout is ten seconds; half of it tells the two apart on any machine.
    assert!(took < Duration::from_secs(5), "{took:?}");
}
