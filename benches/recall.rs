//! How many of the true nearest neighbors the Redis engine finds, before and after its move to
//! HNSW.
//!
//! Run with `cargo bench --bench recall -- --corpus PATH`, where PATH holds one JSON object a line
//! with a `text`, plain or gzipped. Distinct texts are embedded by the real model (kept under
//! `target/`, so that a second run is quick); the first go into the engine through its port, the
//! next are the queries. recall@10 is the share of returned entries that are at least as near as
//! the true tenth neighbor, give or take [`TIE`]: texts that differ in case have one vector, and
//! which of them is returned says nothing about a search.
//!
//! A search that filters need not walk the graph: the server compares all entries that pass, if it
//! thinks that cheaper, and then neither recall nor `ef_runtime` says anything about HNSW. So each
//! row tells how the server searched, and the rows named `graph` make it walk.

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
use redis::aio::MultiplexedConnection;
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
    table.set_header(["search", "server's way", "recall@10", "worst query", "p50 us", "p99 us"]);
    let mut raw = Raw::open(&server, &embedder).await;

    let flat = open(u64::MAX, config.store.redis.ef_runtime).await;
    fill(&flat, &texts, entries, &embedder).await;
    let measured = truth.measure(queries, async |query| nearest(&flat, query, &embedder).await).await;
    table.add_row(row("port, before the move", raw.search_mode().await, measured));
    flat.health.close().await;

    let breadths = if args.ef_runtime.is_empty() { vec![config.store.redis.ef_runtime] } else { args.ef_runtime };
    for (number, &breadth) in breadths.iter().enumerate() {
        let engine = open(args.flat_entries_max, breadth).await;
        if number == 0 {
            let begun = Clock::system().instant();
            // Any write notices that the namespace has outgrown the exact index.
            fill(&engine, &texts[..1], &entries[..1], &embedder).await;
            raw.wait_for_promotion().await;
            let took = Clock::system().instant() - begun;
            println!("{} entries moved to HNSW in {:.1} s", args.entries, took.as_secs_f64());
        }
        let measured = truth.measure(queries, async |query| nearest(&engine, query, &embedder).await).await;
        table.add_row(row(&format!("port, ef_runtime {breadth}"), raw.search_mode().await, measured));
        engine.health.close().await;
        let index = raw.index().await;
        let measured = truth.measure(queries, async |query| raw.walk(&index, query, breadth).await).await;
        table.add_row(row(&format!("graph, ef_runtime {breadth}"), raw.search_mode().await, measured));
    }
    for column in table.column_iter_mut().skip(2) {
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

/// Asks the engine through its port.
async fn nearest(engine: &Engine, vector: &Vector, embedder: &Embedder) -> HashSet<EntryId> {
    let (namespace, attributes) = (namespace(), Attributes::default());
    let query = NearestQuery {
        namespace: &namespace,
        space: embedder.space(),
        vector,
        attributes: &attributes,
        count: COUNT,
        deadline: None,
    };
    let nearest = engine.cache.nearest(query).await.expect("the engine searches");
    assert!(!nearest.partial, "the index is complete");
    nearest.candidates.into_iter().map(|candidate| candidate.id).collect()
}

/// The server itself, past the engine.
struct Raw {
    client: MultiplexedConnection,
    field: String,
    token: String,
}

impl Raw {
    async fn open(server: &RedisServer, embedder: &Embedder) -> Self {
        let (field, token) = (format!("v_{}", embedder.space()), Attributes::default().token());
        Self { client: server.client().await, field, token }
    }

    async fn indexes(&mut self) -> Vec<String> {
        redis::cmd("FT._LIST").query_async(&mut self.client).await.expect("Redis lists its indexes")
    }

    async fn index(&mut self) -> String {
        self.indexes().await.pop().expect("the namespace has an index")
    }

    /// Waits until the exact index is gone, which happens once HNSW is complete.
    async fn wait_for_promotion(&mut self) {
        for _ in 0..PROMOTION_POLLS_MAX {
            let names = self.indexes().await;
            if !names.is_empty() && names.iter().all(|name| name.rsplit('.').next() == Some("hnsw")) {
                return;
            }
            tokio::time::sleep(PROMOTION_POLL).await;
        }
        panic!("the namespace did not move to HNSW; are there more --entries than --flat-entries-max?");
    }

    /// What the server tells about its last search of the index.
    async fn search_mode(&mut self) -> String {
        let index = self.index().await;
        let mut info = redis::cmd("FT.DEBUG");
        info.arg("VECSIM_INFO").arg(index).arg(&self.field);
        // Servers may refuse debug commands; the figures stand without them.
        let Ok(info) = info.query_async::<HashMap<String, redis::Value>>(&mut self.client).await else {
            return "not told".to_owned();
        };
        let mode = info.get("LAST_SEARCH_MODE").and_then(|mode| redis::from_redis_value_ref(mode).ok());
        mode.unwrap_or_else(|| "not told".to_owned())
    }

    /// The engine's search, except that the server must walk the graph.
    async fn walk(&mut self, index: &str, query: &Vector, ef_runtime: u32) -> HashSet<EntryId> {
        let text = format!(
            "(@attributes:{{$a}})=>[KNN $k @{} $b EF_RUNTIME $ef HYBRID_POLICY BATCHES AS distance]",
            self.field
        );
        let mut search = redis::cmd("FT.SEARCH");
        search.arg(index).arg(text).arg("PARAMS").arg(8).arg("a").arg(&self.token).arg("k").arg(COUNT);
        search.arg("b").arg(query.to_le_bytes()).arg("ef").arg(ef_runtime);
        search.arg("RETURN").arg(2).arg("prompt").arg("expires");
        search.arg("LIMIT").arg(0).arg(COUNT).arg("DIALECT").arg(2);
        let reply: HashMap<String, redis::Value> =
            search.query_async(&mut self.client).await.expect("the server searches");
        let results: Vec<HashMap<String, redis::Value>> =
            redis::from_redis_value_ref(&reply["results"]).expect("the server lists results");
        let id = |result: &HashMap<String, redis::Value>| {
            let key: String = redis::from_redis_value_ref(&result["id"]).expect("a result has a key");
            key.rsplit('.').next().and_then(|id| id.parse().ok()).expect("a key ends with an entry's id")
        };
        results.iter().map(id).collect()
    }
}

/// What a series of queries came to.
struct Measured {
    recalls: Vec<f64>,
    latencies: Vec<Duration>,
}

fn row(label: &str, mode: String, mut measured: Measured) -> Vec<String> {
    let recalls = &measured.recalls;
    vec![
        label.to_owned(),
        mode,
        format!("{:.4}", recalls.iter().sum::<f64>() / recalls.len() as f64),
        format!("{:.1}", recalls.iter().copied().fold(1.0, f64::min)),
        micros(percentile(&mut measured.latencies, 0.5)),
        micros(percentile(&mut measured.latencies, 0.99)),
    ]
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

    /// Asks every query once to warm up and once to measure.
    async fn measure(&self, queries: &[Vector], mut search: impl AsyncFnMut(&Vector) -> HashSet<EntryId>) -> Measured {
        let clock = Clock::system();
        let mut measured = Measured { recalls: Vec::new(), latencies: Vec::new() };
        for query in queries {
            search(query).await;
        }
        for (query, floor) in queries.iter().zip(&self.floors) {
            let begun = clock.instant();
            let found = search(query).await;
            measured.latencies.push(clock.instant() - begun);
            let right = found.iter().filter(|id| dot(query, self.vectors[id]) >= floor - TIE).count();
            measured.recalls.push(right as f64 / COUNT.min(self.vectors.len()) as f64);
        }
        measured
    }
}

fn dot(a: &Vector, b: &Vector) -> f32 {
    a.as_slice().iter().zip(b.as_slice()).map(|(a, b)| a * b).sum()
}
