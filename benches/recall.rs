//! How many of the true nearest neighbors the Redis engine finds, before and after its move to
//! HNSW.
//!
//! Run with `cargo bench --bench recall -- --corpus PATH`, where PATH holds one JSON object a line
//! with a `text`, plain or gzipped. Distinct texts are embedded by the real model (kept under
//! `target/`, so that a second run is quick); the first go into the engine through its port, the
//! next are the queries. recall@10 is the share of returned entries that are at least as near as
//! the true tenth neighbor, give or take [`TIE`]: texts that differ in case have one vector, and
//! which of them is returned says nothing about a search.

#![expect(clippy::expect_used, clippy::panic, reason = "a bench that meets the unexpected ends there")]

#[path = "shared/figures.rs"]
mod figures;
#[path = "shared/forgetful.rs"]
mod forgetful;
#[path = "shared/redis.rs"]
mod redis_server;
#[path = "shared/settings.rs"]
mod settings;

use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use flate2::read::MultiGzDecoder;
use futures::{StreamExt as _, stream};
use refrain::{
    app,
    clock::Clock,
    embed::{Embedder, Lane, Purpose},
    store::{Engine, Entry, NearestQuery, NewEntry, Usage, redis::IndexPolicy},
    types::{Attributes, EntryId, Namespace, Prompt, Vector},
};

use crate::{
    figures::{micros, percentile},
    forgetful::Forgetful,
    redis_server::RedisServer,
};

/// Neighbors asked for.
const COUNT: usize = 10;
/// Similarities nearer to each other than this are equal: the rounding of fp32.
const TIE: f32 = 1e-6;
/// Texts embedded in one call.
const CHUNK: usize = 256;
/// Entries written at a time.
const PUTS: usize = 64;
/// How often it is looked whether the namespace has moved to HNSW, and how many times.
const PROMOTION_POLL: Duration = Duration::from_millis(200);
const PROMOTION_POLLS_MAX: usize = 3_000;

#[derive(Parser)]
struct Args {
    /// A file of JSON lines with a `text`, plain or gzipped.
    #[arg(long, value_name = "PATH")]
    corpus: Option<PathBuf>,
    /// Entries to store.
    #[arg(long, default_value_t = 20_000)]
    entries: usize,
    /// Queries to ask, texts that have no entry.
    #[arg(long, default_value_t = 500)]
    queries: usize,
    /// Past how many entries the namespace moves to HNSW.
    #[arg(long, default_value_t = 10_000)]
    flat_entries_max: u64,
    /// Breadths of the HNSW search to measure; by default the shipped one.
    #[arg(long, value_delimiter = ',')]
    ef_runtime: Vec<u32>,
    /// The folder of the model and the ONNX Runtime library.
    #[arg(long, value_name = "DIR")]
    model_assets: Option<PathBuf>,
    /// What cargo tells every bench.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let Some(corpus) = &args.corpus else {
        println!("recall needs texts: cargo bench --bench recall -- --corpus PATH, or make bench CORPUS=PATH");
        return;
    };
    let mut set = vec!["embedding.memo_bytes_max=0".to_owned()];
    set.extend(args.model_assets.iter().map(|folder| format!("embedding.assets_dir={}", folder.display())));
    let config = settings::config(&set);
    let model = app::load_model(&config).await.unwrap_or_else(|error| panic!("{error}"));
    let space = (model.spec().space(), model.spec().dimension);
    let embedder = Embedder::start(model, Arc::new(Forgetful), config.embedding.settings.clone(), Clock::system())
        .expect("the embedder starts");

    let texts = read_texts(corpus, args.entries + args.queries, &embedder);
    let vectors = embed(&embedder, &texts).await;
    embedder.close().await;
    let (entries, queries) = vectors.split_at(args.entries);
    let truth = Truth::new(&texts[..args.entries], entries, queries);

    let server = RedisServer::start().await;
    let open = async |flat_entries_max, ef_runtime| {
        let mut settings = config.store.redis.clone();
        (settings.url, settings.index) = (refrain::secret::Secret::new(server.url()), IndexPolicy::Auto);
        (settings.flat_entries_max, settings.ef_runtime) = (flat_entries_max, ef_runtime);
        refrain::store::redis::open(settings, space, Clock::system()).await.expect("the engine opens")
    };
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["index", "recall@10", "worst query", "p50 us", "p99 us"]);

    let flat = open(u64::MAX, config.store.redis.ef_runtime).await;
    fill(&flat, &texts, entries, &embedder).await;
    table.add_row(truth.measure("exact", &flat, queries, &embedder).await);
    flat.health.close().await;

    let breadths = if args.ef_runtime.is_empty() { vec![config.store.redis.ef_runtime] } else { args.ef_runtime };
    for (number, &breadth) in breadths.iter().enumerate() {
        let engine = open(args.flat_entries_max, breadth).await;
        if number == 0 {
            let begun = Clock::system().instant();
            // Any write notices that the namespace has outgrown the exact index.
            fill(&engine, &texts[..1], &entries[..1], &embedder).await;
            wait_for_promotion(&server).await;
            let took = Clock::system().instant() - begun;
            println!("{} entries moved to HNSW in {:.1} s", args.entries, took.as_secs_f64());
        }
        table.add_row(truth.measure(&format!("HNSW, ef_runtime {breadth}"), &engine, queries, &embedder).await);
        engine.health.close().await;
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{} entries, {} queries, {COUNT} neighbors, one caller\n{table}", args.entries, args.queries);
}

/// The first distinct texts that the model reads whole.
fn read_texts(corpus: &Path, count: usize, embedder: &Embedder) -> Vec<Arc<str>> {
    let file = File::open(corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
    let gzipped = corpus.extension().is_some_and(|extension| extension == "gz");
    let reader: Box<dyn std::io::Read> = if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let (mut seen, mut texts) = (HashSet::new(), Vec::new());
    for line in BufReader::new(reader).lines() {
        let line = line.expect("the corpus is text in lines");
        let value: serde_json::Value = serde_json::from_str(&line).expect("a line of the corpus is JSON");
        let Some(text) = value["text"].as_str() else { continue };
        // The cache normalises prompts before anything else sees them.
        let Ok(prompt) = Prompt::new(text, usize::MAX) else { continue };
        let text = prompt.shared();
        if embedder.fits(&text).expect("the tokenizer counts") && seen.insert(Arc::clone(&text)) {
            texts.push(text);
            if texts.len() == count {
                return texts;
            }
        }
    }
    panic!("{} has {} distinct texts; --entries and --queries ask for {count}", corpus.display(), texts.len());
}

/// Embeds texts in bulk. Vectors are appended to a file of their space and taken from there.
async fn embed(embedder: &Embedder, texts: &[Arc<str>]) -> Vec<Vector> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("vectors-{}", embedder.space()));
    let mut known = read_vectors(&path, embedder.spec().dimension);
    let missing: Vec<_> =
        texts.iter().filter(|text| !known.contains_key(&embedder.memo_key(Purpose::Query, text).0)).cloned().collect();
    let mut file = OpenOptions::new().create(true).append(true).open(&path).expect("target/ can be written");
    let namespace = namespace();
    for (number, chunk) in missing.chunks(CHUNK).enumerate() {
        eprint!("\rembedding {} of {} texts", number * CHUNK + chunk.len(), missing.len());
        let done = embedder.embed(&namespace, chunk, Purpose::Query, Lane::Bulk, None);
        let mut records = Vec::new();
        for (text, one) in chunk.iter().zip(done.await.expect("texts are embedded")) {
            let key = embedder.memo_key(Purpose::Query, text).0;
            records.extend_from_slice(&key);
            records.extend(one.vector.to_le_bytes());
            known.insert(key, one.vector);
        }
        file.write_all(&records).expect("target/ can be written");
    }
    if !missing.is_empty() {
        eprintln!();
    }
    texts.iter().map(|text| known[&embedder.memo_key(Purpose::Query, text).0].clone()).collect()
}

/// Reads a file of keys, each with its vector. An interrupted run may leave half a record at the
/// end, which is cut off.
fn read_vectors(path: &Path, dimension: usize) -> HashMap<[u8; 32], Vector> {
    let mut bytes = Vec::new();
    let Ok(mut file) = OpenOptions::new().read(true).write(true).open(path) else { return HashMap::new() };
    file.read_to_end(&mut bytes).expect("target/ can be read");
    let record = 32 + 4 * dimension;
    file.set_len((bytes.len() / record * record) as u64).expect("target/ can be written");
    bytes
        .chunks_exact(record)
        .map(|record| {
            let (key, vector) = record.split_first_chunk().expect("a record begins with its key");
            (*key, Vector::from_le_bytes(vector, dimension).expect("the file holds vectors"))
        })
        .collect()
}

fn namespace() -> Namespace {
    Namespace::new("bench").expect("the name is valid")
}

fn id(text: &Arc<str>) -> EntryId {
    EntryId::derive(&Prompt::stored(Arc::clone(text)), &Attributes::default())
}

async fn fill(engine: &Engine, texts: &[Arc<str>], vectors: &[Vector], embedder: &Embedder) {
    let (namespace, space, created) = (namespace(), embedder.space(), Clock::system().now());
    stream::iter(texts.iter().zip(vectors))
        .for_each_concurrent(PUTS, |(text, vector)| {
            let entry = Entry {
                id: id(text),
                prompt: Prompt::stored(Arc::clone(text)),
                attributes: Attributes::default(),
                category: None,
                response: "an answer".into(),
                content_type: "text/plain".to_owned(),
                usage: Usage::default(),
                created,
                expires: created.plus(Duration::from_hours(24)),
            };
            let (namespace, new) = (&namespace, NewEntry { entry, vector: Some((space, vector.clone())) });
            async move {
                engine.cache.put(namespace, new, None).await.expect("an entry is stored");
            }
        })
        .await;
}

/// Waits until the exact index is gone, which happens once HNSW is complete.
async fn wait_for_promotion(server: &RedisServer) {
    let mut client = server.client().await;
    for _ in 0..PROMOTION_POLLS_MAX {
        let names: Vec<String> =
            redis::cmd("FT._LIST").query_async(&mut client).await.expect("Redis lists its indexes");
        if !names.is_empty() && names.iter().all(|name| name.rsplit('.').next() == Some("hnsw")) {
            return;
        }
        tokio::time::sleep(PROMOTION_POLL).await;
    }
    panic!("the namespace did not move to HNSW; are there more --entries than --flat-entries-max?");
}

/// What an exact search would return.
struct Truth<'a> {
    vectors: HashMap<EntryId, &'a Vector>,
    /// The similarity of each query's last true neighbor.
    floors: Vec<f32>,
}

impl<'a> Truth<'a> {
    fn new(texts: &[Arc<str>], entries: &'a [Vector], queries: &[Vector]) -> Self {
        let floor = |query: &Vector| {
            let mut similarities: Vec<f32> = entries.iter().map(|entry| dot(query, entry)).collect();
            let last = COUNT.min(similarities.len()) - 1;
            *similarities.select_nth_unstable_by(last, |a, b| b.total_cmp(a)).1
        };
        Self { vectors: texts.iter().map(id).zip(entries).collect(), floors: queries.iter().map(floor).collect() }
    }

    /// Asks every query once to warm up and once to measure; a row of the table.
    async fn measure(&self, label: &str, engine: &Engine, queries: &[Vector], embedder: &Embedder) -> Vec<String> {
        let (namespace, attributes, clock) = (namespace(), Attributes::default(), Clock::system());
        let nearest = async |vector| {
            let query = NearestQuery {
                namespace: &namespace,
                space: embedder.space(),
                vector,
                attributes: &attributes,
                count: COUNT,
                deadline: None,
            };
            engine.cache.nearest(query).await.expect("the engine searches")
        };
        for query in queries {
            nearest(query).await;
        }
        let (mut latencies, mut recalls) = (Vec::new(), Vec::new());
        for (query, floor) in queries.iter().zip(&self.floors) {
            let begun = clock.instant();
            let nearest = nearest(query).await;
            latencies.push(clock.instant() - begun);
            assert!(!nearest.partial, "the index is complete");
            let found: HashSet<EntryId> = nearest.candidates.iter().map(|candidate| candidate.id).collect();
            let right = found.iter().filter(|id| dot(query, self.vectors[id]) >= floor - TIE).count();
            recalls.push(right as f64 / COUNT.min(self.vectors.len()) as f64);
        }
        let worst = recalls.iter().copied().fold(1.0, f64::min);
        vec![
            label.to_owned(),
            format!("{:.4}", recalls.iter().sum::<f64>() / recalls.len() as f64),
            format!("{worst:.1}"),
            micros(percentile(&mut latencies, 0.5)),
            micros(percentile(&mut latencies, 0.99)),
        ]
    }
}

fn dot(a: &Vector, b: &Vector) -> f32 {
    a.as_slice().iter().zip(b.as_slice()).map(|(a, b)| a * b).sum()
}
