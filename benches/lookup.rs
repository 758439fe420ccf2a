//! A lookup by the tier that answers it, in process, on both engines.
//!
//! Run with `cargo bench --bench lookup`. One caller at a time; 10,000 entries with bodies of
//! 1.1 KB, whose vectors have 384 components and lie in clusters; shipped settings, so that both
//! engines search exactly. Every vector is in the process's memo, so that no model runs. The
//! envelope these figures are measured against stands at `Cache::lookup`.

#![expect(clippy::expect_used, clippy::panic, reason = "a bench that meets the unexpected ends there")]

#[expect(dead_code, unreachable_pub, reason = "shared with the tests, which use all of it")]
#[path = "../tests/it/data.rs"]
mod data;
#[path = "shared/redis.rs"]
#[expect(dead_code, reason = "shared with a bench that needs a connection of its own")]
mod redis_server;
#[path = "shared/settings.rs"]
mod settings;

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use futures::{StreamExt as _, stream};
use refrain::{
    cache::{Answer, Ask, Cache, Outcome, Tier, Tiers},
    clock::Clock,
    config::Config,
    embed::{Embedder, Model as _, Purpose, fake::Fake},
    store::{self, Engine, Entry, NewEntry, Usage},
    types::{Attributes, EntryId, Namespace, Prompt, Vector},
};
use tokio::runtime::Runtime;

use crate::{data::Random, redis_server::RedisServer};

const DIMENSION: usize = 384;
const ENTRIES: usize = 10_000;
/// Distinct questions a bench goes through.
const QUESTIONS: usize = 1_000;
/// How far a paraphrase lies from its entry, by component before scaling: a similarity of about .98.
const PARAPHRASE_NOISE: f32 = 0.018;

fn entry_key(criterion: &mut Criterion) {
    let prompt = Prompt::stored("how do I reset the password of my account when I no longer have the phone");
    let attributes = data::attributes(&[("locale", "en"), ("model", "large"), ("tier", "paid")]);
    criterion.bench_function("entry key", |bencher| {
        bencher.iter(|| EntryId::derive(black_box(&prompt), black_box(&attributes)));
    });
}

fn question(number: usize) -> String {
    format!("what is the answer to question {number}?")
}

fn ask(text: String) -> Ask {
    Ask {
        prompt: Prompt::stored(text),
        attributes: Attributes::default(),
        min_similarity: None,
        max_age: None,
        tiers: Tiers::ALL,
        bypass: false,
    }
}

fn namespace() -> Namespace {
    Namespace::new("bench").expect("the name is valid")
}

/// A cache full of entries, and what to ask it.
struct Scene {
    engine: Engine,
    embedder: Embedder,
    cache: Cache,
    exact: Vec<Ask>,
    semantic: Vec<Ask>,
    misses: Vec<Ask>,
}

async fn scene(engine: Engine, config: &Config) -> Scene {
    let (namespace, clock) = (namespace(), Clock::system());
    let model = Arc::new(Fake::new());
    let embedder = Embedder::start(model, Arc::clone(&engine.memo), config.embedding.settings.clone(), clock.clone());
    let embedder = embedder.expect("the fake model always starts");
    let vectors = data::clustered_in(DIMENSION, 1, ENTRIES);
    let (space, created) = (embedder.space(), clock.now());
    stream::iter(vectors.iter().enumerate())
        .for_each_concurrent(64, |(number, vector)| {
            let prompt = Prompt::stored(question(number));
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
            let (engine, namespace, new) =
                (&engine, &namespace, NewEntry { entry, vector: Some((space, vector.clone())) });
            async move {
                engine.cache.put(namespace, new, None).await.expect("an entry is stored");
            }
        })
        .await;

    let mut random = Random(2);
    let mut memoized = |text: String, near: Option<&Vector>| {
        let noise = (0..DIMENSION).map(|_| PARAPHRASE_NOISE * random.unit());
        let values = match near {
            Some(vector) => vector.as_slice().iter().zip(noise).map(|(value, noise)| value + noise).collect(),
            None => noise.collect(),
        };
        let vector = Vector::new(values).expect("random components have a direction");
        embedder.remember(&namespace, embedder.memo_key(Purpose::Query, &text), vector);
        ask(text)
    };
    let numbers = (0..QUESTIONS).map(|number| number * 7 % ENTRIES);
    let semantic = numbers.clone().map(|n| memoized(format!("tell me about {n}"), Some(&vectors[n]))).collect();
    let misses = numbers.clone().map(|n| memoized(format!("something else, {n}"), None)).collect();
    let exact = numbers.map(|number| ask(question(number))).collect();
    let cache = Cache::new(Arc::clone(&engine.cache), embedder.clone(), config.cache.clone(), clock);
    Scene { engine, embedder, cache, exact, semantic, misses }
}

fn lookup(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory can be made");
    let server = runtime.block_on(RedisServer::start());
    let config = settings::config(&[format!("store.redis.url={}", server.url())]);
    let space = (Fake::new().spec().space(), DIMENSION);
    for engine in ["embedded", "redis"] {
        let scene = runtime.block_on(async {
            let engine = if engine == "redis" {
                store::redis::open(config.store.redis.clone(), space, Clock::system()).await
            } else {
                let settings = config.store.embedded.settings.clone();
                store::embedded::open(dir.path(), settings, Some(space), Clock::system()).await
            };
            scene(engine.expect("the engine opens"), &config).await
        });
        let mut group = criterion.benchmark_group(format!("lookup/{engine}"));
        let (hit, miss) = (Outcome::Hit, Outcome::Miss);
        for (label, asks, outcome, tier) in [
            ("exact hit", &scene.exact, hit, Some(Tier::Exact)),
            ("semantic hit, memoized", &scene.semantic, hit, Some(Tier::Semantic)),
            ("miss, memoized", &scene.misses, miss, None),
        ] {
            let namespace = namespace();
            let look = async |at: usize| scene.cache.lookup(&namespace, asks[at].clone(), None).await;
            for at in 0..QUESTIONS {
                let answer = runtime.block_on(look(at)).expect("a lookup answers");
                check(&answer, outcome, tier);
            }
            let mut turn = 0;
            group.bench_function(label, |bencher| {
                bencher.to_async(&runtime).iter(|| {
                    turn = (turn + 1) % QUESTIONS;
                    look(turn)
                });
            });
        }
        group.finish();
        runtime.block_on(async {
            scene.embedder.close().await;
            scene.engine.health.close().await;
        });
    }
}

/// A bench of hits that are misses would measure something else.
fn check(answer: &Answer, outcome: Outcome, tier: Option<Tier>) {
    let receipt = &answer.receipt;
    let right = receipt.outcome == outcome && receipt.tier == tier && receipt.degraded.is_none();
    assert!(right, "{receipt:?}");
}

criterion_group!(benches, entry_key, lookup);
criterion_main!(benches);
