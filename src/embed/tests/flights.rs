//! One computation per text; cancellation, deadlines, overload, failures.

use super::*;
use crate::{
    embed::fake::Mishap,
    error::{Fault, Kind},
};

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_one_computation() {
    let room = Room::new(settings());
    let busy = room.occupy().await;
    let calls: Vec<_> = (0..20).map(|_| room.spawn("asked by many", Lane::Interactive, None)).collect();
    room.rows(1).await;
    room.until(|| room.embedder.0.board.waiters("asked by many") == 20).await;
    room.model.release();
    let mut vectors = Vec::new();
    for call in calls {
        let embedded = call.await.unwrap().unwrap();
        assert!(!embedded.memoized);
        vectors.push(embedded.vector);
    }
    assert!(vectors.windows(2).all(|pair| pair[0] == pair[1]));
    busy.await.unwrap().unwrap();
    assert_eq!(room.model.calls().concat().iter().filter(|text| &***text == "asked by many").count(), 1);
    assert_eq!(room.embedder.stats().misses, 2);
    assert!(room.embed_new("asked by many").await.unwrap().memoized);
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_do_not_share_computations() {
    let room = Room::new(settings());
    let other = Namespace::new("other").unwrap();
    room.embed(&["the same words"]).await.unwrap();
    let texts = ["the same words".into()];
    let there = room.embedder.embed(&other, &texts, Purpose::Query, Lane::Bulk, None).await.unwrap();
    assert!(!there[0].memoized);
    assert_eq!(room.model.calls().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_cancels_nothing_others_wait_for() {
    let room = Room::new(settings());
    let busy = room.occupy().await;
    let first = room.spawn("wanted by two", Lane::Interactive, None);
    room.rows(1).await;
    let second = room.spawn("wanted by two", Lane::Interactive, None);
    room.until(|| room.embedder.0.board.waiters("wanted by two") == 2).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    room.model.release();
    assert!(second.await.unwrap().is_ok());
    busy.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_nobody_waits_for_is_not_embedded() {
    let room = Room::new(settings());
    let busy = room.occupy().await;
    let gone = room.spawn("wanted by nobody", Lane::Interactive, None);
    room.rows(1).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    room.model.release();
    busy.await.unwrap().unwrap();
    room.rows(0).await;
    assert_eq!(room.model.calls().len(), 1);
    // The address is free again.
    assert!(!room.embed_new("wanted by nobody").await.unwrap().memoized);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_wait_and_drops_the_text() {
    let room = Room::new(settings());
    let busy = room.occupy().await;
    let deadline = room.clock.deadline_in(Duration::from_millis(30));
    let late = room.spawn("too late", Lane::Interactive, Some(deadline)).await.unwrap().unwrap_err();
    assert!(matches!(late, Error::DeadlinePassed), "{late:?}");
    room.model.release();
    busy.await.unwrap().unwrap();
    room.rows(0).await;
    assert_eq!(room.model.calls().len(), 1, "what expired is not embedded");

    let past = room.clock.deadline_in(Duration::ZERO);
    let refused = room.spawn("later still", Lane::Interactive, Some(past)).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), Kind::DeadlinePassed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_of_one_caller_is_not_that_of_another() {
    let room = Room::new(settings());
    let busy = room.occupy().await;
    let hasty = room.spawn("asked by two", Lane::Interactive, Some(room.clock.deadline_in(Duration::from_millis(50))));
    room.rows(1).await;
    let patient = room.spawn("asked by two", Lane::Interactive, None);
    room.until(|| room.embedder.0.board.waiters("asked by two") == 2).await;
    assert!(matches!(hasty.await.unwrap(), Err(Error::DeadlinePassed)));
    room.model.release();
    assert!(patient.await.unwrap().is_ok());
    busy.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_lane_refuses_and_leaves_the_other_open() {
    let room = Room::new(Settings { queue_rows_max: 2, ..settings() });
    let busy = room.occupy().await;
    let waiting = [room.spawn("bulk one", Lane::Bulk, None), room.spawn("bulk two", Lane::Bulk, None)];
    room.rows(2).await;
    let refused = room.spawn("bulk three", Lane::Bulk, None).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), Kind::Overloaded);
    assert!(refused.retry_after().is_some());
    let question = room.spawn("a question", Lane::Interactive, None);
    room.rows(3).await;
    room.model.release();
    for call in waiting.into_iter().chain([question, busy]) {
        call.await.unwrap().unwrap();
    }
    // A refusal is not remembered.
    room.embed_new("bulk three").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_promotes_the_document_it_waits_for() {
    let room = Room::new(Settings { bulk_rows_max: 1, ..settings() });
    let busy = room.occupy().await;
    let mut calls = vec![busy];
    for text in ["document a", "document b", "document c"] {
        calls.push(room.spawn(text, Lane::Bulk, None));
        room.rows(calls.len() - 1).await;
    }
    calls.push(room.spawn("document c", Lane::Interactive, None));
    room.until(|| room.embedder.0.board.waiters("document c") == 2).await;
    room.model.release();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let order: Vec<_> = room.model.calls().concat().iter().map(ToString::to_string).collect();
    assert_eq!(order[1..], ["document c", "document a", "document b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_batch_fails_its_texts_only() {
    for mishap in [Mishap::Error, Mishap::Panic] {
        let room = Room::new(settings());
        let busy = room.occupy().await;
        let doomed = [
            room.spawn("one doomed text", Lane::Interactive, None),
            room.spawn("one doomed text", Lane::Interactive, None),
            room.spawn("another doomed text", Lane::Interactive, None),
        ];
        room.rows(2).await;
        room.until(|| room.embedder.0.board.waiters("one doomed text") == 2).await;
        // The held inference goes first and takes the first mishap; the batch behind it the second.
        room.model.fail_next(mishap);
        room.model.fail_next(mishap);
        room.model.release();
        for call in [busy].into_iter().chain(doomed) {
            let error = call.await.unwrap().unwrap_err();
            assert_eq!(error.reason(), "INFERENCE_FAILED");
        }
        assert_eq!(room.model.calls().len(), 2);
        // Nothing is poisoned: worker, session and addresses serve on.
        assert!(!room.embed_new("one doomed text").await.unwrap().memoized);
        assert_eq!(room.model.sessions(), 3, "a session was opened at start and after each failure but the last");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn warming_up_is_a_real_inference_each_time() {
    let room = Room::new(settings());
    room.embedder.warm_up().await.unwrap();
    room.embedder.warm_up().await.unwrap();
    assert_eq!(room.model.calls().len(), 2);
    room.model.fail_next(Mishap::Error);
    assert!(room.embedder.warm_up().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_embeds_what_waits_and_takes_no_more() {
    let room = Room::new(settings());
    let busy = room.occupy().await;
    let waiting = room.spawn("still embedded", Lane::Bulk, None);
    room.rows(1).await;
    let closing = tokio::spawn({
        let embedder = room.embedder.clone();
        async move { embedder.close().await }
    });
    room.until(|| {
        let queue = &room.embedder.0.shop.queue;
        queue.push(Lane::Bulk, Vec::new()).is_err()
    })
    .await;
    let refused = room.spawn("too late", Lane::Interactive, None).await.unwrap().unwrap_err();
    assert_eq!(refused.reason(), "SHUTTING_DOWN");
    room.model.release();
    busy.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    closing.await.unwrap();
    assert_eq!(room.engine.len(), 2, "the memo's writes were waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reserved_worker_answers_while_documents_fill_the_others() {
    let room = Room::new(Settings { workers: 2, idle_before_bulk: Duration::from_hours(1), ..settings() });
    // The reserved worker has seen a question lately, so it stays away from documents.
    room.embed_new("a first question").await.unwrap();
    room.model.hold();
    let documents: Vec<_> = (0..6).map(|at| room.spawn(&format!("document {at}"), Lane::Bulk, None)).collect();
    room.arrivals(2).await;
    let question = room.spawn("a second question", Lane::Interactive, None);
    room.arrivals(3).await;
    assert_eq!(room.model.calls()[2], [Arc::<str>::from("a second question")]);
    room.model.release();
    question.await.unwrap().unwrap();
    for document in documents {
        document.await.unwrap().unwrap();
    }
}
