//! How long a caller of the sidecar waits, beside what the parts of an answer cost alone.
//!
//! Run with `cargo bench --bench latency -- --seconds 5`. Conditions: whole sidecars in this
//! process, one an engine, with the shipped settings and the real model, called over gRPC on
//! loopback through one connection; 1,000 entries with bodies of 1.5 KB; a closed loop of 1 or 16
//! callers. Rounds alternate between the engines and over all calls, so that a noisy moment of the
//! machine falls on all of them; a figure is the median of its rounds. Client, sidecars and Redis
//! share the cores, so ratios say more than absolutes. What the receipts say about a lookup stands
//! beside what its caller saw.

#![expect(clippy::expect_used, clippy::panic, reason = "a bench that meets the unexpected ends there")]

#[path = "shared/figures.rs"]
mod figures;
#[path = "shared/redis.rs"]
mod redis_server;
#[path = "shared/settings.rs"]
mod settings;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use refrain::{
    app::{self, Running},
    clock::Clock,
    embed::{Model, Session},
    grpc::pb::{
        GetModelRequest, LookupRequest, LookupResponse, Outcome, Prompt as PbPrompt, StoreRequest, Tier, Timings,
        cache_service_client::CacheServiceClient, embedding_service_client::EmbeddingServiceClient, prompt::Kind,
    },
    store::{Engine, Entry, NearestQuery, NewEntry, Usage},
    telemetry,
    types::{Attributes, EntryId, Namespace, Prompt, SpaceId, Vector},
};
use tempfile::TempDir;
use tokio::{runtime::Runtime, task::JoinSet};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    figures::{micros, percentile},
    redis_server::RedisServer,
};

const ROUNDS: usize = 3;
const CONCURRENCIES: [usize; 2] = [1, 16];
/// How long each call is made before the first round, as a share of a round.
const WARM_UP: f64 = 0.25;
const BODY_BYTES: usize = 1_500;
/// Distinct paraphrases that semantic hits go through.
const PARAPHRASES: u64 = 200;
const BODY_KEY: &str = "bench:body";

#[derive(Parser)]
struct Args {
    /// How long each figure is measured, over all rounds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// What cargo tells every bench.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    ExactHit,
    SemanticHit,
    NewText,
    GetModel,
    Inference,
    Nearest,
    Probe,
    RawGet,
}

impl Call {
    const ALL: [Self; 8] = [
        Self::ExactHit,
        Self::SemanticHit,
        Self::NewText,
        Self::GetModel,
        Self::Inference,
        Self::Nearest,
        Self::Probe,
        Self::RawGet,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::ExactHit => "Lookup, exact hit",
            Self::SemanticHit => "Lookup, semantic hit, text memoized",
            Self::NewText => "Lookup, new text, miss",
            Self::GetModel => "GetModel, an empty rpc",
            Self::Inference => "part: one short text through the model",
            Self::Nearest => "part: nearest through the port",
            Self::Probe => "part: probe through the port",
            Self::RawGet => "part: GET of 1.5 KB from Redis",
        }
    }

    /// Whether it goes over gRPC, hence runs on the client's thread.
    fn is_rpc(self) -> bool {
        matches!(self, Self::ExactHit | Self::SemanticHit | Self::NewText | Self::GetModel)
    }

    fn applies(self, target: &Target, concurrency: usize) -> bool {
        match self {
            Self::Inference => target.redis.is_none() && concurrency == 1,
            Self::RawGet => target.redis.is_some(),
            _ => true,
        }
    }
}

/// A sidecar on one engine, and the engine's parts for themselves.
struct Target {
    name: &'static str,
    runtime: Runtime,
    running: Mutex<Option<Running>>,
    cache: CacheServiceClient<Channel>,
    embedding: EmbeddingServiceClient<Channel>,
    parts: Engine,
    redis: Option<MultiplexedConnection>,
    neighbors: usize,
    fixtures: Arc<Fixtures>,
    numbers: AtomicU64,
    /// Answers that were not what a call is about.
    odd: Mutex<BTreeMap<String, u64>>,
    _dir: TempDir,
}

/// What all targets share.
struct Fixtures {
    namespace: Namespace,
    attributes: Attributes,
    session: Mutex<Box<dyn Session>>,
    space: SpaceId,
    dimension: usize,
    stored: Vec<(EntryId, Vector)>,
    paraphrases: Vec<Vector>,
}

const ACTIONS: [&str; 25] = [
    "reset", "cancel", "renew", "find", "change", "delete", "share", "repair", "return", "upgrade", "export", "lock",
    "register", "pay for", "track", "move", "print", "restore", "activate", "disable", "rename", "compare", "order",
    "insure", "clean",
];
const SUBJECTS: [&str; 40] = [
    "my password",
    "a subscription",
    "my invoice",
    "the phone",
    "a parcel",
    "my bank card",
    "the printer",
    "a photo",
    "my account",
    "the thermostat",
    "a hotel room",
    "my bicycle",
    "the garden hose",
    "a passport",
    "my contract",
    "the washing machine",
    "a train ticket",
    "my calendar",
    "the router",
    "a gift card",
    "my insurance",
    "the oven",
    "a backup",
    "my mailbox",
    "the license plate",
    "a rental car",
    "my tax form",
    "the headphones",
    "a course",
    "my address",
    "the alarm",
    "a playlist",
    "my keyboard",
    "the coffee machine",
    "a warranty",
    "my profile",
    "the battery",
    "a domain name",
    "my savings plan",
    "the camera",
];

fn phrase(number: u64) -> String {
    let (actions, subjects) = (ACTIONS.len() as u64, SUBJECTS.len() as u64);
    let number = number % (actions * subjects);
    format!("{} {}", ACTIONS[(number % actions) as usize], SUBJECTS[(number / actions) as usize])
}

/// A question that has an entry.
fn question(number: u64) -> String {
    format!("How do I {}?", phrase(number))
}

/// Another way to ask it.
fn paraphrase(number: u64) -> String {
    format!("What is the best way to {}?", phrase(number * 7))
}

/// A question never asked before.
fn new_question(number: u64) -> String {
    format!("How do I {} at branch {number}?", phrase(number * 13))
}

fn entries() -> u64 {
    (ACTIONS.len() * SUBJECTS.len()) as u64
}

fn fixtures(model: &dyn Model) -> Fixtures {
    let mut session = model.session().expect("the model opens a session");
    let mut vector = |text: String| {
        let vectors = session.embed(&[text.into()]).expect("the model answers");
        vectors.into_iter().next().and_then(|values| Vector::new(values).ok()).expect("a text has a vector")
    };
    let id = |number| EntryId::derive(&Prompt::stored(question(number)), &Attributes::default());
    let stored = (0..entries()).map(|number| (id(number), vector(question(number)))).collect();
    let paraphrases = (0..PARAPHRASES).map(|number| vector(paraphrase(number))).collect();
    Fixtures {
        namespace: Namespace::new("bench").expect("the name is valid"),
        attributes: Attributes::default(),
        session: Mutex::new(session),
        space: model.spec().space(),
        dimension: model.spec().dimension,
        stored,
        paraphrases,
    }
}

fn body() -> Vec<u8> {
    "an answer that somebody paid for ".bytes().cycle().take(BODY_BYTES).collect()
}

/// Starts a sidecar with everything stored and every paraphrase asked once.
fn start(name: &'static str, server: &RedisServer, fixtures: &Arc<Fixtures>, client: &Runtime) -> Target {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory can be made");
    let set = |data_dir: &str| {
        settings::config(&[
            "server.listen=127.0.0.1:0".to_owned(),
            "server.ops_listen=127.0.0.1:0".to_owned(),
            format!("store.engine={name}"),
            format!("store.redis.url={}", server.url()),
            format!("store.embedded.data_dir={}", dir.path().join(data_dir).display()),
        ])
    };
    let (config, parts_config) = (set("sidecar"), set("parts"));
    let runtime = Runtime::new().expect("a runtime starts");
    let neighbors = config.cache.neighbors;
    let running = runtime.block_on(app::start(config, Clock::system(), None)).expect("the sidecar starts");
    let (parts, redis) = runtime.block_on(async {
        let (parts, redis) = if name == "redis" {
            let space = (fixtures.space, fixtures.dimension);
            let parts = refrain::store::redis::open(parts_config.store.redis, space, Clock::system()).await;
            let mut redis = server.client().await;
            let _: () =
                redis::cmd("SET").arg(BODY_KEY).arg(body()).query_async(&mut redis).await.expect("Redis takes a value");
            (parts, Some(redis))
        } else {
            let (space, settings) = (Some((fixtures.space, fixtures.dimension)), &parts_config.store.embedded.settings);
            let data_dir = parts_config.data_dir();
            (refrain::store::embedded::open(&data_dir, settings.clone(), space, Clock::system()).await, None)
        };
        let parts = parts.expect("the engine opens");
        fill_parts(&parts, fixtures).await;
        (parts, redis)
    });
    let address = running.addresses().grpc.expect("the sidecar listens on TCP");
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address is a URL");
    let channel = client.block_on(endpoint.tcp_nodelay(true).connect()).expect("the sidecar accepts connections");
    let target = Target {
        name,
        runtime,
        running: Mutex::new(Some(running)),
        cache: CacheServiceClient::new(channel.clone()),
        embedding: EmbeddingServiceClient::new(channel),
        parts,
        redis,
        neighbors,
        fixtures: Arc::clone(fixtures),
        numbers: AtomicU64::new(0),
        odd: Mutex::default(),
        _dir: dir,
    };
    client.block_on(fill_sidecar(&target));
    target
}

async fn fill_sidecar(target: &Target) {
    stream::iter(0..entries())
        .for_each_concurrent(16, |number| async move {
            let request = StoreRequest {
                namespace: target.fixtures.namespace.to_string(),
                prompt: prompt(question(number)),
                response: body().into(),
                ..StoreRequest::default()
            };
            target.cache.clone().store(request).await.expect("an entry is stored");
        })
        .await;
    for number in 0..PARAPHRASES {
        target.lookup(paraphrase(number), -1.0).await.expect("a lookup answers");
    }
}

async fn fill_parts(parts: &Engine, fixtures: &Fixtures) {
    // Redis is shared with the sidecar: another namespace keeps the two apart.
    let (namespace, created) = (part_namespace(), Clock::system().now());
    for (number, (id, vector)) in (0..).zip(&fixtures.stored) {
        let entry = Entry {
            id: *id,
            prompt: Prompt::stored(question(number)),
            attributes: Attributes::default(),
            category: None,
            response: body().into(),
            content_type: "text/plain".to_owned(),
            usage: Usage::default(),
            created,
            expires: created.plus(Duration::from_hours(24)),
        };
        let new = NewEntry { entry, vector: Some((fixtures.space, vector.clone())) };
        parts.cache.put(&namespace, new, None).await.expect("an entry is stored");
    }
}

fn part_namespace() -> Namespace {
    Namespace::new("parts").expect("the name is valid")
}

#[expect(clippy::unnecessary_wraps, reason = "message fields are optional on the wire")]
fn prompt(text: String) -> Option<PbPrompt> {
    Some(PbPrompt { kind: Some(Kind::Text(text)) })
}

impl Target {
    /// Makes a call; returns what its receipt says about the time, if it has one.
    async fn call(&self, call: Call) -> Option<Timings> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        match call {
            Call::ExactHit => {
                let answer = self.lookup(question(number % entries()), 0.9).await;
                return self.expect(call, answer, Outcome::Hit, Tier::Exact, false);
            }
            Call::SemanticHit => {
                let answer = self.lookup(paraphrase(number % PARAPHRASES), -1.0).await;
                return self.expect(call, answer, Outcome::Hit, Tier::Semantic, true);
            }
            Call::NewText => {
                let answer = self.lookup(new_question(number), 1.0).await;
                return self.expect(call, answer, Outcome::Miss, Tier::Unspecified, false);
            }
            Call::GetModel => {
                if let Err(status) = self.embedding.clone().get_model(GetModelRequest {}).await {
                    self.note(call, &status.to_string());
                }
            }
            Call::Inference => {
                let vectors = self.fixtures.session.lock().embed(&[new_question(number).into()]);
                assert!(vectors.is_ok_and(|vectors| vectors.len() == 1), "the model embeds");
            }
            Call::Nearest => self.nearest(number).await,
            Call::Probe => {
                let (id, _) = &self.fixtures.stored[(number % entries()) as usize];
                let probe = self.parts.cache.probe(&part_namespace(), id, None, None).await;
                if !probe.is_ok_and(|probe| probe.entry.is_some()) {
                    self.note(call, "no entry");
                }
            }
            Call::RawGet => {
                let mut redis = self.redis.clone().expect("only the Redis engine is asked");
                let value: Result<Vec<u8>, _> = redis::cmd("GET").arg(BODY_KEY).query_async(&mut redis).await;
                assert!(value.is_ok_and(|value| value.len() == BODY_BYTES), "Redis returns the value");
            }
        }
        None
    }

    async fn lookup(&self, text: String, min_similarity: f32) -> Result<LookupResponse, Status> {
        let request = LookupRequest {
            namespace: self.fixtures.namespace.to_string(),
            prompt: prompt(text),
            min_similarity: Some(min_similarity),
            ..LookupRequest::default()
        };
        Ok(self.cache.clone().lookup(request).await?.into_inner())
    }

    async fn nearest(&self, number: u64) {
        let namespace = part_namespace();
        let nearest = self.parts.cache.nearest(NearestQuery {
            namespace: &namespace,
            space: self.fixtures.space,
            vector: &self.fixtures.paraphrases[(number % PARAPHRASES) as usize],
            attributes: &self.fixtures.attributes,
            count: self.neighbors,
            deadline: None,
        });
        match nearest.await {
            Ok(nearest) if nearest.candidates.len() == self.neighbors && !nearest.partial => {}
            Ok(_) => self.note(Call::Nearest, "not all neighbors"),
            Err(error) => self.note(Call::Nearest, &error.to_string()),
        }
    }

    /// Notes an answer that is not what the call is about.
    fn expect(
        &self,
        call: Call,
        answer: Result<LookupResponse, Status>,
        outcome: Outcome,
        tier: Tier,
        memoized: bool,
    ) -> Option<Timings> {
        let receipt = match answer {
            Ok(answer) => answer.receipt.unwrap_or_default(),
            Err(status) => {
                self.note(call, &status.to_string());
                return None;
            }
        };
        // An exact hit needs no vector, so that it does not matter whether one is known.
        let memoized = receipt.memoized == memoized || tier == Tier::Exact;
        if !receipt.degraded.is_empty() {
            self.note(call, &format!("degraded: {}", receipt.degraded));
        } else if (receipt.outcome(), receipt.tier(), memoized) != (outcome, tier, true) {
            let (outcome, tier) = (receipt.outcome(), receipt.tier());
            self.note(call, &format!("{outcome:?} {tier:?}, memoized: {}", receipt.memoized));
        }
        receipt.timings
    }

    fn note(&self, call: Call, what: &str) {
        *self.odd.lock().entry(format!("{}, {}: {what}", call.label(), self.name)).or_default() += 1;
    }
}

/// What one round of one call came to.
struct Round {
    p50: Duration,
    p99: Duration,
    per_second: f64,
    /// Medians of what the receipts say, in the order of [`RECEIPT_PARTS`].
    receipts: Option<[Duration; RECEIPT_PARTS.len()]>,
}

const RECEIPT_PARTS: [&str; 5] = ["queue", "embed", "search", "store", "total"];

fn receipt_parts(timings: &Timings) -> [Duration; RECEIPT_PARTS.len()] {
    [timings.queue_us, timings.embed_us, timings.search_us, timings.store_us, timings.total_us]
        .map(Duration::from_micros)
}

fn round(target: &Arc<Target>, client: &Runtime, call: Call, concurrency: usize, time: Duration) -> Round {
    let runtime = if call.is_rpc() { client } else { &target.runtime };
    let clock = Clock::system();
    let begun = clock.instant();
    let end = begun + time;
    let measured = runtime.block_on(async {
        let mut callers = JoinSet::new();
        for _ in 0..concurrency {
            let (target, clock) = (Arc::clone(target), clock.clone());
            callers.spawn(async move {
                let mut measured = Vec::new();
                let mut now = clock.instant();
                while now < end {
                    let timings = target.call(call).await;
                    let done = clock.instant();
                    measured.push((done - now, timings));
                    now = done;
                }
                measured
            });
        }
        callers.join_all().await.concat()
    });
    let per_second = measured.len() as f64 / (clock.instant() - begun).as_secs_f64();
    let mut latencies: Vec<_> = measured.iter().map(|(latency, _)| *latency).collect();
    let receipts: Vec<_> = measured.iter().filter_map(|(_, timings)| timings.as_ref()).map(receipt_parts).collect();
    let receipts = (!receipts.is_empty()).then(|| {
        std::array::from_fn(|part| percentile(&mut receipts.iter().map(|parts| parts[part]).collect::<Vec<_>>(), 0.5))
    });
    Round { p50: percentile(&mut latencies, 0.5), p99: percentile(&mut latencies, 0.99), per_second, receipts }
}

fn main() {
    let args = Args::parse();
    telemetry::init_logs(&settings::config(&["telemetry.log=warn".to_owned()]).telemetry).expect("logs can be written");
    // The recorder costs what it costs in a sidecar.
    let _metrics = telemetry::init_metrics().expect("metrics are recorded");
    let client = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let client = client.expect("a runtime starts");

    let model = client.block_on(app::load_model(&settings::config(&[])));
    let model = model.unwrap_or_else(|error| panic!("{error}"));
    let fixtures = Arc::new(fixtures(&*model));
    let server = client.block_on(RedisServer::start());
    let targets = ["embedded", "redis"].map(|name| Arc::new(start(name, &server, &fixtures, &client)));

    let time = Duration::from_secs_f64(args.seconds / ROUNDS as f64);
    let mut rounds: BTreeMap<(Call, usize, usize), Vec<Round>> = BTreeMap::new();
    for number in 0..=ROUNDS {
        let time = if number == 0 { time.mul_f64(WARM_UP) } else { time };
        for call in Call::ALL {
            for concurrency in CONCURRENCIES {
                for (at, target) in targets.iter().enumerate() {
                    if !call.applies(target, concurrency) {
                        continue;
                    }
                    let measured = round(target, &client, call, concurrency, time);
                    if number > 0 {
                        rounds.entry((call, at, concurrency)).or_default().push(measured);
                    }
                }
            }
        }
    }

    print(&targets, &mut rounds);
    for target in targets {
        let running = target.running.lock().take().expect("the sidecar runs until now");
        target.runtime.block_on(async {
            target.parts.health.close().await;
            running.stop().await.expect("the sidecar stops");
        });
    }
}

fn print(targets: &[Arc<Target>], rounds: &mut BTreeMap<(Call, usize, usize), Vec<Round>>) {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let header = ["call", "engine", "callers", "p50 us", "p99 us", "calls/s"];
    table.set_header(header.iter().chain(&RECEIPT_PARTS));
    for ((call, at, concurrency), rounds) in rounds {
        let engine = if *call == Call::Inference { "none" } else { targets[*at].name };
        let per_second = median(rounds, |round| Duration::from_secs_f64(round.per_second)).as_secs_f64();
        let mut row = vec![
            call.label().to_owned(),
            engine.to_owned(),
            concurrency.to_string(),
            micros(median(rounds, |round| round.p50)),
            micros(median(rounds, |round| round.p99)),
            format!("{per_second:.0}"),
        ];
        if rounds.iter().all(|round| round.receipts.is_some()) {
            let part = |part: usize| micros(median(rounds, |round| round.receipts.unwrap_or_default()[part]));
            row.extend((0..RECEIPT_PARTS.len()).map(part));
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}\nThe last columns are medians of the receipts, in us.");
    for target in targets {
        for (what, count) in &*target.odd.lock() {
            println!("odd, {count} times: {what}");
        }
    }
}

fn median(rounds: &[Round], figure: impl Fn(&Round) -> Duration) -> Duration {
    percentile(&mut rounds.iter().map(figure).collect::<Vec<_>>(), 0.5)
}
