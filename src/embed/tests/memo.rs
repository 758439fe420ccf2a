//! Both tiers of the memo.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn one_read_serves_a_whole_call_and_one_write_a_batch() {
    let room = Room::new(settings());
    let first = room.embed(&["alpha", "beta", "alpha", "gamma"]).await.unwrap();
    assert_eq!(first.len(), 4);
    assert_eq!(first[0].vector, first[2].vector);
    assert_eq!(room.engine.reads.load(Ordering::SeqCst), 1);
    assert_eq!(room.engine.keys_read.load(Ordering::SeqCst), 3, "a repeated text is read once");
    room.until(|| room.engine.len() == 3).await;
    assert_eq!(room.engine.writes.load(Ordering::SeqCst), 1);

    let again = room.embed(&["gamma", "alpha"]).await.unwrap();
    assert!(again.iter().all(|embedded| embedded.memoized && embedded.inference.is_zero()));
    assert_eq!(room.engine.reads.load(Ordering::SeqCst), 1, "this process knew them");
    assert_eq!(room.model.calls().concat().len(), 3);

    let stats = room.embedder.stats();
    assert_eq!((stats.process_hits, stats.engine_hits, stats.misses), (2, 0, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_remembers_for_the_next_process() {
    let room = Room::new(settings());
    let computed = room.embed(&["known to the engine"]).await.unwrap();
    room.embedder.close().await;

    let memo = Arc::clone(&room.engine) as Arc<dyn MemoStore>;
    let next = Embedder::start(Arc::new(room.model.clone()), memo, settings(), room.clock.clone()).unwrap();
    let next = Room { embedder: next, ..room };
    let read = next.embed(&["known to the engine"]).await.unwrap();
    assert!(read[0].memoized);
    assert_eq!(read[0].vector, computed[0].vector);
    assert_eq!(read[0].tokens, computed[0].tokens);
    assert_eq!(next.model.calls().len(), 1);
    assert_eq!(next.embedder.stats().engine_hits, 1);
    // And it is in this process's tier now.
    let key = next.embedder.memo_key(Purpose::Query, "known to the engine");
    assert!(next.embedder.recall(&next.namespace, &key).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_engine_costs_an_inference_and_no_answer() {
    let room = Room::new(settings());
    room.engine.fails.store(true, Ordering::SeqCst);
    assert!(!room.embed(&["embedded all the same"]).await.unwrap()[0].memoized);
    room.until(|| room.embedder.stats().writes_failed == 1).await;
    assert_eq!(room.embedder.stats().reads_failed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_beyond_the_bound_are_skipped() {
    let engine = Engine { gate: Some(Semaphore::new(0)), ..Engine::default() };
    let room = Room::with(Fake::new(), engine, Settings { memo_writes_in_flight_max: 1, ..settings() });
    for text in ["first", "second", "third"] {
        room.embed_new(text).await.unwrap();
    }
    room.until(|| room.embedder.stats().writes_skipped == 2).await;
    room.engine.gate.as_ref().unwrap().add_permits(1);
    room.embedder.close().await;
    assert_eq!(room.engine.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_is_remembered_for_its_lifetime() {
    let room = Room::new(Settings { memo_ttl: Duration::from_mins(1), ..settings() });
    let vector = room.embed_new("short-lived").await.unwrap().vector;
    let key = room.embedder.memo_key(Purpose::Query, "short-lived");
    assert_eq!(room.embedder.recall(&room.namespace, &key), Some(vector));
    assert_eq!(room.embedder.recall(&Namespace::new("other").unwrap(), &key), None);
    room.clock.advance(Duration::from_secs(61));
    assert_eq!(room.embedder.recall(&room.namespace, &key), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memo_keeps_to_its_size() {
    let room = Room::new(Settings { memo_bytes_max: 20 * 1024, ..settings() });
    for at in 0..40 {
        room.embed_new(&format!("text number {at}")).await.unwrap();
    }
    room.embedder.0.shop.memo.settle();
    let stats = room.embedder.stats();
    assert!(stats.bytes <= 20 * 1024 && stats.entries <= 11, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_probe_brings_is_kept() {
    let room = Room::new(settings());
    let key = room.embedder.memo_key(Purpose::Query, "brought along");
    let vector = Vector::new(room.model.vector("brought along")).unwrap();
    room.embedder.remember(&room.namespace, key, vector.clone());
    assert_eq!(room.embedder.recall(&room.namespace, &key), Some(vector));
    // A vector of another length is not of this space and is not kept.
    let stray = room.embedder.memo_key(Purpose::Query, "a stray");
    room.embedder.remember(&room.namespace, stray, Vector::new(vec![1.0, 0.0]).unwrap());
    assert_eq!(room.embedder.recall(&room.namespace, &stray), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_tell_texts_purposes_and_spaces_apart() {
    let plain = Room::new(settings());
    let key = |room: &Room, purpose, text| room.embedder.memo_key(purpose, text);
    // Without prefixes a query and a passage are the same text to the model.
    assert_eq!(key(&plain, Purpose::Query, "a"), key(&plain, Purpose::Passage, "a"));
    assert_ne!(key(&plain, Purpose::Query, "a"), key(&plain, Purpose::Query, "b"));

    let spec = Spec { query_prefix: "query: ".into(), ..Fake::new().spec().clone() };
    let marked = Room::with(Fake::with_spec(spec), Engine::default(), settings());
    assert_ne!(key(&marked, Purpose::Query, "a"), key(&marked, Purpose::Passage, "a"));
    assert_ne!(key(&marked, Purpose::Passage, "query: a"), key(&marked, Purpose::Query, "a"));
    assert_ne!(key(&plain, Purpose::Passage, "a"), key(&marked, Purpose::Passage, "a"), "another space");
}
