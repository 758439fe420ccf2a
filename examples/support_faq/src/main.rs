//! Replays a support desk's day through a sidecar: what customers ask again in other words is
//! answered from the cache, what only looks alike should not be.
//!
//! ```sh
//! cargo run --release --package support-faq -- --help
//! ```
//!
//! It starts a sidecar of its own in this process (the embedded engine in a temporary folder, any
//! free port) unless `--address` names one, and talks to it over gRPC as any service would.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use refrain::{
    app,
    clock::Clock,
    config::{Config, Sources},
    grpc::pb::{
        Entry, LookupRequest, MissReason, Outcome, Prompt, Receipt, StoreRequest, Tier, Usage,
        cache_service_client::CacheServiceClient, prompt::Kind,
    },
};
use serde::Deserialize;
use tonic::transport::{Channel, Endpoint};

/// Replay a support FAQ through a sidecar and show what the cache did.
#[derive(Debug, Parser)]
struct Args {
    /// The questions, as `examples/support_faq/README.md` describes them.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/faq.jsonl"))]
    faq: PathBuf,
    /// A running sidecar; without one, a sidecar is started for the replay.
    #[arg(long)]
    address: Option<String>,
    /// The namespace to work in; with --address it should be an empty one.
    #[arg(long, default_value = "support-faq")]
    namespace: String,
    /// Least similarity of a semantic hit; without it, the sidecar's own setting.
    #[arg(long)]
    min_similarity: Option<f32>,
    /// Rows of the table for each kind of outcome.
    #[arg(long, default_value_t = 4)]
    show: usize,
}

/// One question of the FAQ.
#[derive(Debug, Deserialize)]
struct Item {
    id: String,
    category: String,
    question: String,
    answer: String,
    paraphrases: Vec<String>,
    near_misses: Vec<String>,
}

/// What a customer asks, and which answer would be right.
struct Ask<'a> {
    text: &'a str,
    /// The item whose answer serves; `None` for a near miss, which none does.
    right: Option<&'a Item>,
}

/// What came of it.
struct Seen<'a> {
    ask: Ask<'a>,
    receipt: Receipt,
    answered_with: Option<String>,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    ExactHit,
    SemanticHit,
    WrongHit,
    RightMiss,
    LostHit,
}

impl Verdict {
    fn describe(self) -> &'static str {
        match self {
            Self::ExactHit => "exact hit",
            Self::SemanticHit => "semantic hit",
            Self::WrongHit => "WRONG hit",
            Self::RightMiss => "miss, rightly",
            Self::LostHit => "miss, a hit lost",
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let items = read_faq(&args.faq)?;
    let mut own = None;
    let address = if let Some(address) = &args.address {
        address.clone()
    } else {
        let (sidecar, data_dir) = start_sidecar().await?;
        let address = sidecar.addresses().grpc.context("the sidecar has no address")?;
        println!("sidecar: {address}, embedded engine, started for this replay");
        own = Some((sidecar, data_dir));
        format!("http://{address}")
    };
    let channel = Endpoint::from_shared(address.clone())?
        .connect_timeout(Duration::from_secs(3))
        .connect()
        .await
        .with_context(|| format!("no sidecar answers at {address}"))?;
    let mut client = CacheServiceClient::new(channel);

    store_answers(&mut client, &args.namespace, &items).await?;
    let seen = replay(&mut client, &args, &items).await?;
    print_receipts(&seen, args.show);
    print_summary(&seen, &items);
    if let Some((sidecar, _data_dir)) = own {
        sidecar.stop().await?;
    }
    Ok(())
}

fn read_faq(path: &PathBuf) -> Result<Vec<Item>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let items: Vec<Item> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(!items.is_empty(), "{} holds no question", path.display());
    Ok(items)
}

async fn start_sidecar() -> Result<(app::Running, tempfile::TempDir)> {
    let data_dir = tempfile::tempdir()?;
    let set = vec![
        "server.listen=127.0.0.1:0".to_owned(),
        "server.ops_listen=".to_owned(),
        "store.engine=embedded".to_owned(),
        format!("store.embedded.data_dir={}", data_dir.path().display()),
    ];
    let config = Config::load(&Sources::from_process(None, set))?;
    Ok((app::start(config, Clock::system(), None).await?, data_dir))
}

/// Stores every answer under its question, as an agent does after its first call of the model.
async fn store_answers(client: &mut CacheServiceClient<Channel>, namespace: &str, items: &[Item]) -> Result<()> {
    for item in items {
        let request = StoreRequest {
            namespace: namespace.to_owned(),
            prompt: Some(prompt(&item.question)),
            category: item.category.clone(),
            response: item.answer.clone().into(),
            usage: Some(usage_of(item)),
            ..StoreRequest::default()
        };
        client.store(request).await.with_context(|| format!("storing {}", item.id))?;
    }
    println!("stored {} answers\n", items.len());
    Ok(())
}

/// What a call of a model would have cost, estimated from the length of its texts.
fn usage_of(item: &Item) -> Usage {
    let tokens = |text: &str| text.len().div_ceil(4) as u64;
    let output_tokens = tokens(&item.answer);
    Usage {
        input_tokens: tokens(&item.question),
        output_tokens,
        cost_micros: output_tokens * 10,
        latency: Duration::from_millis(400 + 15 * output_tokens).try_into().ok(),
    }
}

fn prompt(text: &str) -> Prompt {
    Prompt { kind: Some(Kind::Text(text.to_owned())) }
}

async fn replay<'a>(client: &mut CacheServiceClient<Channel>, args: &Args, items: &'a [Item]) -> Result<Vec<Seen<'a>>> {
    let mut seen = Vec::new();
    for item in items {
        let again = [Ask { text: &item.question, right: Some(item) }];
        let paraphrases = item.paraphrases.iter().map(|text| Ask { text, right: Some(item) });
        let near_misses = item.near_misses.iter().map(|text| Ask { text, right: None });
        for ask in again.into_iter().chain(paraphrases).chain(near_misses) {
            let request = LookupRequest {
                namespace: args.namespace.clone(),
                prompt: Some(prompt(ask.text)),
                min_similarity: args.min_similarity,
                ..LookupRequest::default()
            };
            let response = client.lookup(request).await?.into_inner();
            let receipt = response.receipt.unwrap_or_default();
            let verdict = judge(&ask, &receipt, response.entry.as_ref());
            let answered_with =
                response.entry.and_then(|entry| entry.prompt?.kind).map(|Kind::Text(question)| question);
            seen.push(Seen { ask, receipt, answered_with, verdict });
        }
    }
    Ok(seen)
}

fn judge(ask: &Ask<'_>, receipt: &Receipt, entry: Option<&Entry>) -> Verdict {
    let Some(entry) = entry else {
        return if ask.right.is_some() { Verdict::LostHit } else { Verdict::RightMiss };
    };
    match ask.right {
        Some(item) if entry.response == item.answer.as_bytes() => {
            if receipt.tier() == Tier::Exact {
                Verdict::ExactHit
            } else {
                Verdict::SemanticHit
            }
        }
        _ => Verdict::WrongHit,
    }
}

fn print_receipts(seen: &[Seen<'_>], show: usize) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header([
        "asked",
        "outcome",
        "similarity",
        "answered with the answer to",
        "receipt",
    ]);
    let mut shown: BTreeMap<Verdict, usize> = BTreeMap::new();
    let mut rows: Vec<&Seen<'_>> = seen
        .iter()
        .filter(|one| {
            let count = shown.entry(one.verdict).or_default();
            *count += 1;
            *count <= show
        })
        .collect();
    rows.sort_by_key(|one| one.verdict);
    for one in rows {
        let receipt = &one.receipt;
        let timings = receipt.timings.unwrap_or_default();
        let reason = match receipt.outcome() {
            Outcome::Miss => match receipt.miss_reason() {
                MissReason::BelowFloor => format!("below {:.2}, ", receipt.min_similarity.unwrap_or_default()),
                other => format!("{}, ", other.as_str_name()),
            },
            Outcome::Hit | Outcome::Unspecified => String::new(),
        };
        table.add_row([
            one.ask.text.to_owned(),
            one.verdict.describe().to_owned(),
            receipt.similarity.map_or_else(String::new, |similarity| format!("{similarity:.3}")),
            one.answered_with.clone().unwrap_or_default(),
            format!(
                "{reason}{} us (embed {}, search {}, store {})",
                timings.total_us, timings.embed_us, timings.search_us, timings.store_us
            ),
        ]);
    }
    println!("{table}");
}

fn print_summary(seen: &[Seen<'_>], items: &[Item]) {
    let count = |verdict: Verdict| seen.iter().filter(|one| one.verdict == verdict).count();
    let times = |tier: Tier| {
        let mut times: Vec<u64> = seen
            .iter()
            .filter(|one| one.receipt.tier() == tier)
            .filter_map(|one| one.receipt.timings.as_ref().map(|timings| timings.total_us))
            .collect();
        times.sort_unstable();
        let at = |share: f64| times.get(((times.len() as f64 - 1.0) * share).round() as usize).copied().unwrap_or(0);
        format!("{}/{} us", at(0.5), at(0.99))
    };
    let hits = count(Verdict::ExactHit) + count(Verdict::SemanticHit) + count(Verdict::WrongHit);
    let wrong = count(Verdict::WrongHit);
    let of = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    println!(
        "\n{} questions stored, {} asked: exact {}, semantic {}, miss {} ({} of them near misses, rightly), wrong {} ({:.1} % of hits)",
        items.len(),
        seen.len(),
        count(Verdict::ExactHit),
        count(Verdict::SemanticHit),
        count(Verdict::RightMiss) + count(Verdict::LostHit),
        count(Verdict::RightMiss),
        wrong,
        of(wrong, hits),
    );
    println!(
        "p50/p99 by tier: exact {}, semantic {}, miss {}; calls saved: {} of {} ({:.0} %)",
        times(Tier::Exact),
        times(Tier::Semantic),
        times(Tier::Unspecified),
        hits - wrong,
        seen.len(),
        of(hits - wrong, seen.len()),
    );
}
