//! What surrounds the model: picking a batch out of a long queue, and a memo hit.
//!
//! Run with `cargo bench --bench embed`. One thread, nothing else contends.

#![expect(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

#[path = "shared/forgetful.rs"]
mod forgetful;

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use refrain::{
    clock::Clock,
    embed::{
        Embedder, Lane, Purpose, Settings,
        fake::Fake,
        pick::{History, Limits, Role, Waiting, pick},
    },
    types::{Namespace, Vector},
};

use crate::forgetful::Forgetful;

fn picking(criterion: &mut Criterion) {
    let limits = Limits {
        batch_tokens_max: 1024,
        batch_rows_max: 32,
        bulk_rows_max: 4,
        bulk_wait_max: Duration::from_hours(1),
        idle_before_bulk: Duration::from_millis(50),
    };
    let now = Clock::system().instant();
    let waiting: Vec<_> = (0..1000_usize)
        .map(|at| Waiting {
            lane: if at % 4 == 0 { Lane::Interactive } else { Lane::Bulk },
            tokens: 8 + at * 7919 % 240,
            enqueued: now,
            deadline: None,
            abandoned: false,
        })
        .collect();
    criterion.bench_function("pick a batch, 1000 waiting", |bencher| {
        bencher.iter(|| pick(black_box(&waiting), Role::General, History::default(), now, &limits));
    });
}

fn settings() -> Settings {
    Settings {
        workers: 1,
        queue_tokens_max: 65_536,
        queue_rows_max: 4_096,
        batch_tokens_max: 1_024,
        batch_rows_max: 32,
        bulk_rows_max: 4,
        bulk_wait_max: Duration::from_millis(500),
        idle_before_bulk: Duration::from_millis(50),
        text_bytes_max: 65_536,
        texts_max: 256,
        memo_bytes_max: 1 << 24,
        memo_ttl: Duration::from_hours(1),
        memo_writes_in_flight_max: 4,
    }
}

fn memo(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime can be built on the machine that runs the bench");
    let inside = runtime.enter();
    let embedder = Embedder::start(Arc::new(Fake::new()), Arc::new(Forgetful), settings(), Clock::system());
    let embedder = embedder.expect("the fake model always starts");
    drop(inside);
    let namespace = Namespace::new("bench").expect("a plain word is a namespace");
    let text = "how do I reset the password of my account when I no longer have the phone";

    criterion.bench_function("memo key of a question", |bencher| {
        bencher.iter(|| embedder.memo_key(Purpose::Query, black_box(text)));
    });
    let key = embedder.memo_key(Purpose::Query, text);
    let vector = Vector::new(Fake::new().vector(text)).expect("the fake makes unit vectors");
    embedder.remember(&namespace, key, vector);
    criterion.bench_function("memo hit in this process", |bencher| {
        bencher.iter(|| embedder.recall(black_box(&namespace), black_box(&key)));
    });
    let texts: [Arc<str>; 1] = [text.into()];
    criterion.bench_function("embed, memoized", |bencher| {
        bencher.to_async(&runtime).iter(|| embedder.embed(&namespace, &texts, Purpose::Query, Lane::Interactive, None));
    });
    let new = std::sync::atomic::AtomicU64::new(0);
    criterion.bench_function("embed_new through queue and worker, fake model", |bencher| {
        bencher.to_async(&runtime).iter(|| {
            let text = format!("new {}", new.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
            embedder.embed_new(&namespace, text.into(), Purpose::Query, Lane::Interactive, None)
        });
    });
}

criterion_group!(benches, picking, memo);
criterion_main!(benches);
