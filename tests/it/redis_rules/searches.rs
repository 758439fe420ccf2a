//! What a search must never return, and what it must never leave out.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::join_all, stream};
use refrain::{
    clock::Clock,
    store::{Error, NearestQuery, NewEntry, redis::IndexPolicy},
    types::{Attributes, SpaceId, Vector},
};

use super::{attribute, fill, indexes_of, run, try_nearest};
use crate::{
    conformance::ids,
    data::{CRAFTED, Random, clustered, space},
    redis_server::{RedisServer, eventually, open_redis},
};

/// Hundreds of equal vectors, as one prompt under many attribute sets makes them, cut an HNSW
/// graph into pieces. Below 5,500 entries the module scans a filtered search and hides it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_hide_nobody_from_hnsw() {
    let server = RedisServer::shared().await;
    let mut settings = server.settings();
    settings.index = IndexPolicy::Hnsw;
    let harness = server.harness(settings).await;
    let namespace = harness.namespace();
    let vectors = clustered(1, 6_001);
    let (same, original) = (attribute("same"), &vectors[6_000]);
    let copies = (0..500).map(|number| (harness.entry("one question", &attribute(&number.to_string())), original));
    let distinct = vectors[..6_000].iter().enumerate();
    let distinct: Vec<_> =
        distinct.map(|(number, vector)| (harness.entry(&format!("question {number}"), &same), vector)).collect();
    // The copies go first: whoever comes later must find a way through them.
    for batch in [copies.collect(), distinct.clone()] {
        let puts = batch.iter().map(|(entry, vector)| harness.put(&namespace, entry, Some(vector)));
        stream::iter(puts).buffer_unordered(16).for_each(async |created| assert!(created)).await;
    }
    let sample: Vec<_> = distinct.iter().step_by(5).collect();
    let searches = sample.iter().map(async |(entry, vector)| {
        let (found, population) = harness.nearest(&namespace, vector, &same, 4).await;
        assert_eq!(population, 6_500);
        ids(&found).contains(&entry.id)
    });
    let found = stream::iter(searches).buffer_unordered(4).filter(|found| std::future::ready(*found)).count().await;
    // HNSW is approximate: one in a hundred may be missed, not one in ten.
    assert!(found * 100 >= sample.len() * 99, "{found} of {} are found by their own vectors", sample.len());
}

/// The search module takes vectors that are no direction, and ranks them above real neighbors.
#[tokio::test]
async fn poisoned_vectors_neither_surface_nor_displace() {
    assert!(Vector::new(vec![f32::NAN; 4]).is_err());
    assert!(Vector::new(vec![0.0; 4]).is_err());
    for index in [IndexPolicy::Flat, IndexPolicy::Hnsw] {
        let server = RedisServer::shared().await;
        let mut settings = server.settings();
        settings.index = index;
        let harness = Arc::clone(&server).harness(settings).await;
        let namespace = harness.namespace();
        let vectors = clustered(2, 40);
        let entries = fill(&harness, &namespace, &vectors).await;

        let mut client = server.client().await;
        let epoch: String =
            redis::cmd("GET").arg(format!("refrain:{{{namespace}}}:epoch")).query_async(&mut client).await.unwrap();
        for number in 0..12 {
            let value = if number % 2 == 0 { f32::NAN } else { 0.0 };
            let bytes: Vec<u8> = (0..48).flat_map(|_| value.to_le_bytes()).collect();
            let key = format!("refrain:{{{namespace}}}:entry:{epoch}.{number:040x}");
            let mut plant = redis::cmd("HSET");
            plant.arg(&key).arg("expires").arg(i64::MAX / 2).arg("created").arg(1).arg("prompt").arg("poison");
            plant.arg("attributes").arg(Attributes::default().token());
            plant.arg(format!("v_{}", space())).arg(bytes);
            let _: i64 = plant.query_async(&mut client).await.unwrap();
            run(&mut client, &["PEXPIRE", &key, "600000"]).await;
        }

        for (entry, vector) in entries.iter().zip(&vectors) {
            for count in [1, 2, 8] {
                let (found, _) = harness.nearest(&namespace, vector, &Attributes::default(), count).await;
                assert_eq!(found.len(), count, "{index:?}");
                assert_eq!(found[0].id, entry.id, "{index:?}");
                assert!(found.iter().all(|candidate| candidate.prompt.as_str() != "poison"), "{index:?}");
            }
        }
    }
}

/// Expired keys stay in the index until the server gets to them: there they take places.
#[tokio::test]
async fn ghosts_neither_surface_nor_take_places() {
    let server = Arc::new(RedisServer::with_args(&["--enable-debug-command", "yes"]).await);
    let mut client = server.client().await;
    run(&mut client, &["DEBUG", "SET-ACTIVE-EXPIRE", "0"]).await;
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    // Twenty ghosts right at the query, four living ones further away.
    let base = clustered(3, 1).remove(0);
    let mut random = Random(4);
    let mut near = |distance: f32| {
        Vector::new(base.as_slice().iter().map(|value| value + distance * random.unit()).collect()).unwrap()
    };
    let expires = Clock::system().now().plus(Duration::from_millis(300));
    for number in 0..20 {
        let mut entry = harness.entry(&format!("ghost {number}"), &Attributes::default());
        entry.expires = expires;
        harness.put(&namespace, &entry, Some(&near(0.001))).await;
    }
    let mut living = Vec::new();
    for number in 0..4 {
        let entry = harness.entry(&format!("living {number}"), &Attributes::default());
        harness.put(&namespace, &entry, Some(&near(0.1))).await;
        living.push(entry.id);
    }
    eventually("the ghosts expire", async || (Clock::system().now() > expires).then_some(())).await;
    let index = indexes_of(&mut client, &namespace).await.remove(0);
    assert_eq!(documents(&server, &index).await, 24, "the index still holds the ghosts");

    let (found, population) = harness.nearest(&namespace, &base, &Attributes::default(), 4).await;
    let mut found = ids(&found);
    found.sort_unstable();
    living.sort_unstable();
    assert_eq!(found, living);
    assert_eq!(population, 4);
    let cleared = async || {
        let (found, _) = harness.nearest(&namespace, &base, &Attributes::default(), 8).await;
        assert_eq!(found.len(), 4);
        (documents(&server, &index).await == 4).then_some(())
    };
    eventually("searches clear the ghosts away", cleared).await;
}

async fn documents(server: &RedisServer, index: &str) -> i64 {
    let info = run(&mut server.client().await, &["FT.INFO", index]).await;
    let pairs: std::collections::HashMap<String, redis::Value> = redis::from_redis_value(info).unwrap();
    redis::from_redis_value(pairs["num_docs"].clone()).unwrap()
}

/// By default a search that ran out of time answers with nothing, and no error.
#[tokio::test]
async fn a_search_out_of_time_is_an_error_and_never_a_miss() {
    const WIDE: usize = 4_096;
    let server = RedisServer::start().await;
    let mut settings = server.settings();
    settings.search_timeout = Duration::from_millis(1);
    let space = SpaceId::derive(&[b"wide"]);
    let engine = refrain::store::redis::open(settings, (space, WIDE), Clock::system()).await.unwrap();
    let harness = open_redis().await;
    let namespace = harness.namespace();
    let mut random = Random(5);
    let vectors: Vec<Vector> =
        (0..3_000).map(|_| Vector::new((0..WIDE).map(|_| random.unit()).collect()).unwrap()).collect();
    for (number, vector) in vectors.iter().enumerate() {
        let entry = harness.entry(&format!("question {number}"), &Attributes::default());
        let new = NewEntry { entry, vector: Some((space, vector.clone())) };
        engine.cache.put(&namespace, new, None).await.unwrap();
    }
    let mut timeouts = 0;
    for vector in &vectors[..50] {
        let attributes = Attributes::default();
        let query =
            NearestQuery { namespace: &namespace, space, vector, attributes: &attributes, count: 100, deadline: None };
        match engine.cache.nearest(query).await {
            Ok(nearest) => assert_eq!(nearest.candidates.len(), 100, "an answer is complete"),
            Err(Error::Timeout { operation: "nearest", .. }) => timeouts += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(timeouts > 0, "some of 50 searches over 50 MB take longer than a millisecond");
    engine.health.close().await;
}

/// Two stop words in an inline query kill some servers; other values could widen a filter.
#[tokio::test]
async fn crafted_attribute_values_match_themselves_only() {
    let harness = open_redis().await;
    let namespace = harness.namespace();
    let vector = clustered(6, 1).remove(0);
    let hostile =
        ["is|the|fox", "(is|the|fox)", "the", "", " ", "*", "a*", "{$a}", "$a", "w'*'", "} @expires:[0 inf] {"];
    let values: Vec<&str> = CRAFTED.iter().copied().chain(hostile).collect();
    let mut expected = Vec::new();
    for value in &values {
        let entry = harness.entry("one question", &attribute(value));
        harness.put(&namespace, &entry, Some(&vector)).await;
        expected.push(entry.id);
    }
    for (value, id) in values.iter().zip(&expected) {
        let (found, _) = harness.nearest(&namespace, &vector, &attribute(value), 8).await;
        assert_eq!(ids(&found), [*id], "{value:?}");
        let other = format!("{value}|");
        let (found, _) = harness.nearest(&namespace, &vector, &attribute(&other), 8).await;
        let itself: Vec<_> = values.iter().zip(&expected).filter(|(v, _)| **v == other).map(|(_, id)| *id).collect();
        assert_eq!(ids(&found), itself, "{other:?}");
    }
    harness.engine.health.check().await.unwrap();
}

/// An index also takes hashes of its prefix from other logical databases.
#[tokio::test]
async fn other_logical_databases_do_not_surface() {
    let server = RedisServer::shared().await;
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    let vectors = clustered(7, 4);
    let entries = fill(&harness, &namespace, &vectors).await;
    let mut client = server.client().await;
    let epoch: String =
        redis::cmd("GET").arg(format!("refrain:{{{namespace}}}:epoch")).query_async(&mut client).await.unwrap();
    run(&mut client, &["SELECT", "1"]).await;
    for number in 0..10 {
        let mut plant = redis::cmd("HSET");
        plant.arg(format!("refrain:{{{namespace}}}:entry:{epoch}.{number:040x}"));
        plant.arg("expires").arg(i64::MAX / 2).arg("created").arg(1).arg("prompt").arg("foreign");
        plant.arg("attributes").arg(Attributes::default().token());
        plant.arg(format!("v_{}", space())).arg(vectors[0].to_le_bytes());
        let _: i64 = plant.query_async(&mut client).await.unwrap();
    }
    for _ in 0..3 {
        let (found, population) = harness.nearest(&namespace, &vectors[0], &Attributes::default(), 2).await;
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].id, entries[0].id);
        assert!(found.iter().all(|candidate| candidate.prompt.as_str() != "foreign"));
        assert_eq!(population, 4);
    }
}

/// The server searches on one thread: what it cannot take in time is refused at once.
#[tokio::test]
async fn searches_beyond_the_limit_are_refused() {
    let server = Arc::new(RedisServer::start().await);
    let mut settings = server.settings();
    (settings.searches_in_flight_max, settings.searches_waiting_max) = (1, 2);
    settings.response_timeout = Duration::from_secs(1);
    let harness = Arc::clone(&server).harness(settings).await;
    let namespace = harness.namespace();
    let vectors = clustered(8, 2);
    fill(&harness, &namespace, &vectors).await;
    server.pause();
    let outcomes = join_all((0..10).map(|_| try_nearest(&harness, &namespace, &vectors[0], 2))).await;
    server.resume();
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(Error::Overloaded { .. }))).count();
    assert_eq!(refused, 7, "one searches, two wait: {outcomes:?}");
    let recovered = async || try_nearest(&harness, &namespace, &vectors[0], 2).await.ok();
    assert_eq!(eventually("searches work again", recovered).await.candidates.len(), 2);
}
