//! What the embedded engine costs through its ports, queue and thread hop included.
//!
//! One caller at a time, so the figures are latencies, except where a name says how many write
//! together. Vectors have 384 components and lie in clusters. The envelope that the searches are
//! measured against stands at the head of `src/store/embedded/scan.rs`.

#![expect(clippy::expect_used, reason = "a bench that meets the unexpected ends there")]

#[expect(dead_code, unreachable_pub, reason = "shared with the tests, which use all of it")]
#[path = "../tests/it/data.rs"]
mod data;

use std::{
    num::NonZero,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use futures::{StreamExt, future::join_all, stream};
use refrain::{
    clock::Clock,
    store::{
        Engine, Entry, MemoKey, NearestQuery, NewEntry, Usage,
        embedded::{self, Durability, Settings},
    },
    types::{Attributes, EntryId, Namespace, Prompt, Vector},
};
use tokio::runtime::Runtime;

const DIMENSION: usize = 384;
const TOGETHER: usize = 64;

fn settings(durability: Durability) -> Settings {
    let number = |n| NonZero::new(n).expect("bench settings are not zero");
    Settings {
        readers: 0,
        queue_length_max: number(4_096),
        write_batch_rows_max: number(512),
        sweep_interval: Duration::from_secs(30),
        sweep_rows_max: number(500),
        durability,
        cache_kib: NonZero::new(8_192).expect("bench settings are not zero"),
    }
}

async fn open(dir: &Path, durability: Durability) -> Engine {
    let space = Some((data::space(), DIMENSION));
    embedded::open(dir, settings(durability), space, Clock::system()).await.expect("the engine opens")
}

fn namespace() -> Namespace {
    Namespace::new("bench").expect("the name is valid")
}

fn new_entry(number: u64, vector: &Vector) -> NewEntry {
    let prompt = Prompt::stored(format!("what is the answer to question {number}?"));
    let created = Clock::system().now();
    let entry = Entry {
        id: EntryId::derive(&prompt, &Attributes::default()),
        prompt,
        attributes: Attributes::default(),
        category: None,
        response: "the answer ".repeat(100).into(),
        content_type: "text/plain".to_owned(),
        usage: Usage::default(),
        created,
        expires: created.plus(Duration::from_hours(24)),
    };
    NewEntry { entry, vector: Some((data::space(), vector.clone())) }
}

async fn fill(engine: &Engine, vectors: &[Vector]) {
    stream::iter(vectors.iter().enumerate())
        .for_each_concurrent(512, |(number, vector)| async move {
            engine.cache.put(&namespace(), new_entry(number as u64, vector), None).await.expect("put succeeds");
        })
        .await;
}

fn search(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let mut group = criterion.benchmark_group("nearest");
    group.sample_size(30);
    for rows in [1_000, 10_000, 50_000] {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let vectors = data::clustered_in(DIMENSION, 1, rows);
        let engine = runtime.block_on(open(dir.path(), Durability::ProcessCrash));
        runtime.block_on(fill(&engine, &vectors));
        let (namespace, attributes) = (namespace(), Attributes::default());
        let mut turn = 0;
        group.bench_function(BenchmarkId::from_parameter(rows), |bencher| {
            bencher.to_async(&runtime).iter(|| {
                turn = (turn + 7) % rows;
                let vector = &vectors[turn];
                let (namespace, attributes) = (&namespace, &attributes);
                let query =
                    NearestQuery { namespace, space: data::space(), vector, attributes, count: 8, deadline: None };
                engine.cache.nearest(query)
            });
        });
        runtime.block_on(engine.health.close());
    }
    group.finish();
}

fn probe(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let vectors = data::clustered_in(DIMENSION, 2, 10_000);
    let engine = runtime.block_on(open(dir.path(), Durability::ProcessCrash));
    runtime.block_on(fill(&engine, &vectors));
    let memo = MemoKey([7; 32]);
    let remembered = [(memo, vectors[0].clone())];
    runtime
        .block_on(engine.memo.write(&namespace(), &remembered, Duration::from_hours(1)))
        .expect("the memo is written");
    let ids: Vec<_> = vectors.iter().enumerate().map(|(n, vector)| new_entry(n as u64, vector).entry.id).collect();
    let (namespace, mut turn) = (namespace(), 0);
    criterion.bench_function("probe/hit_with_memo", |bencher| {
        bencher.to_async(&runtime).iter(|| {
            turn = (turn + 7) % ids.len();
            engine.cache.probe(&namespace, &ids[turn], Some(&memo), None)
        });
    });
    runtime.block_on(engine.health.close());
}

fn put(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let mut group = criterion.benchmark_group("put");
    group.sample_size(20);
    let vectors = data::clustered_in(DIMENSION, 3, 512);
    let numbers = AtomicU64::new(0);
    let fresh = || {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        new_entry(number, &vectors[(number % 512) as usize])
    };
    for durability in [Durability::ProcessCrash, Durability::PowerCut] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory can be made");
        let engine = runtime.block_on(open(dir.path(), durability));
        let namespace = namespace();
        let put = async |new| engine.cache.put(&namespace, new, None).await.expect("put succeeds");
        group.bench_function(format!("{durability:?}/one"), |bencher| {
            bencher.to_async(&runtime).iter_batched(fresh, put, BatchSize::SmallInput);
        });
        group.bench_function(format!("{durability:?}/{TOGETHER}_together"), |bencher| {
            bencher.to_async(&runtime).iter_batched(
                || (0..TOGETHER).map(|_| fresh()).collect::<Vec<_>>(),
                |batch| async { join_all(batch.into_iter().map(&put)).await },
                BatchSize::SmallInput,
            );
        });
        runtime.block_on(engine.health.close());
    }
    group.finish();
}

criterion_group!(benches, search, probe, put);
criterion_main!(benches);
