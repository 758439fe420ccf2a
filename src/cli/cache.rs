//! `refrain cache`.

use std::{
    collections::HashMap,
    io::{IsTerminal as _, Read as _},
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::json;
use tonic::transport::Channel;

use super::{
    Failure, Output,
    client::ClientArgs,
    output::{
        clip, duration_text, entry_json, print_json, print_table, prompt_text, receipt_json, receipt_rows, time_text,
        timings_json, usage_json,
    },
};
use crate::grpc::pb::{self, cache_service_client::CacheServiceClient, prompt::Kind, store_request::Expiration};

/// Ask and manage the semantic cache of a running sidecar.
#[derive(Debug, Args)]
pub(super) struct CacheArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    verb: CacheVerb,
}

#[derive(Debug, Subcommand)]
enum CacheVerb {
    /// Look for an answer; prints it with its receipt. Exits with 3 on a miss.
    Lookup(LookupArgs),
    /// Store the answer to a prompt.
    Store(StoreArgs),
    /// Print one entry.
    Get {
        /// Its id, from a receipt or a listing.
        id: String,
    },
    /// List live entries, soonest to expire first.
    List {
        /// Most entries to print.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// Where to go on, from the listing before.
        #[arg(long, default_value = "")]
        page_token: String,
    },
    /// Delete one entry.
    Delete {
        /// Its id, from a receipt or a listing.
        id: String,
    },
    /// Delete every entry that matches all that is given.
    Invalidate(InvalidateArgs),
    /// Show hits, misses and savings.
    Stats,
}

#[derive(Debug, Args)]
struct LookupArgs {
    /// The prompt; `-` reads it from stdin.
    prompt: String,
    /// What an entry must agree on, as key=value; may stand several times.
    #[arg(long = "attribute", short, value_name = "KEY=VALUE", value_parser = key_value)]
    attributes: Vec<(String, String)>,
    /// Least cosine similarity of a semantic hit.
    #[arg(long, allow_negative_numbers = true)]
    min_similarity: Option<f32>,
    /// Oldest acceptable entry, for example 15m.
    #[arg(long, value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// Ask only for the same prompt.
    #[arg(long)]
    exact: bool,
}

#[derive(Debug, Args)]
struct StoreArgs {
    /// The prompt; `-` reads it from stdin.
    prompt: String,
    /// The response; `-` or nothing reads it from stdin.
    #[arg(default_value = "-")]
    response: String,
    /// What a lookup must agree on, as key=value; may stand several times.
    #[arg(long = "attribute", short, value_name = "KEY=VALUE", value_parser = key_value)]
    attributes: Vec<(String, String)>,
    /// The kind of question.
    #[arg(long, default_value = "")]
    category: String,
    /// How long to keep it, for example 24h.
    #[arg(long, value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Media type of the response.
    #[arg(long, default_value = "")]
    content_type: String,
}

#[derive(Debug, Args)]
struct InvalidateArgs {
    /// These ids.
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<String>,
    /// Exactly this prompt.
    #[arg(long)]
    prompt: Option<String>,
    /// Entries that carry this pair, as key=value; may stand several times.
    #[arg(long = "attribute", short, value_name = "KEY=VALUE", value_parser = key_value)]
    attributes: Vec<(String, String)>,
    /// This category.
    #[arg(long, default_value = "")]
    category: String,
    /// Stored longer ago than this, for example 7d.
    #[arg(long, value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Every entry of the namespace.
    #[arg(long)]
    all: bool,
    /// Only count what would be deleted.
    #[arg(long)]
    dry_run: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) async fn run(args: CacheArgs) -> Result<(), Failure> {
    let channel = args.client.connect().await?;
    let mut session = Session { client: CacheServiceClient::new(channel), args: args.client };
    match args.verb {
        CacheVerb::Lookup(lookup) => session.lookup(lookup).await,
        CacheVerb::Store(store) => session.store(store).await,
        CacheVerb::Get { id } => session.get(id).await,
        CacheVerb::List { limit, page_token } => session.list(limit, page_token).await,
        CacheVerb::Delete { id } => session.delete(id).await,
        CacheVerb::Invalidate(invalidate) => session.invalidate(invalidate).await,
        CacheVerb::Stats => session.stats().await,
    }
}

struct Session {
    client: CacheServiceClient<Channel>,
    args: ClientArgs,
}

impl Session {
    async fn lookup(&mut self, args: LookupArgs) -> Result<(), Failure> {
        let request = pb::LookupRequest {
            namespace: self.args.namespace.clone(),
            prompt: prompt(text_or_stdin(args.prompt)?),
            attributes: pairs(args.attributes)?,
            min_similarity: args.min_similarity,
            max_age: args.max_age.map(to_pb).transpose()?,
            tiers: if args.exact { vec![pb::Tier::Exact.into()] } else { Vec::new() },
            bypass: false,
        };
        let response = self.client.lookup(request).await?.into_inner();
        let receipt = response.receipt.unwrap_or_default();
        match self.args.output {
            Output::Json => print_json(&json!({
                "entry": response.entry.as_ref().map(entry_json),
                "receipt": receipt_json(&receipt),
            })),
            Output::Table => {
                if let Some(entry) = &response.entry {
                    println!("{}\n", String::from_utf8_lossy(&entry.response));
                }
                print_table(&["receipt", ""], receipt_rows(&receipt));
            }
        }
        if response.entry.is_some() { Ok(()) } else { Err(Failure::Miss) }
    }

    async fn store(&mut self, args: StoreArgs) -> Result<(), Failure> {
        if args.prompt == "-" && args.response == "-" {
            return Err(Failure::Usage("prompt and response cannot both come from stdin; name one".into()));
        }
        let request = pb::StoreRequest {
            namespace: self.args.namespace.clone(),
            prompt: prompt(text_or_stdin(args.prompt)?),
            attributes: pairs(args.attributes)?,
            category: args.category,
            response: text_or_stdin(args.response)?.into(),
            content_type: args.content_type,
            usage: None,
            expiration: args.ttl.map(to_pb).transpose()?.map(Expiration::Ttl),
            request_id: String::new(),
        };
        let stored = self.client.store(request).await?.into_inner();
        match self.args.output {
            Output::Json => print_json(&json!({
                "entry_id": stored.entry_id,
                "created": stored.created,
                "expire_time": time_text(stored.expire_time),
                "exact_only": stored.exact_only,
                "timings_us": stored.timings.as_ref().map(timings_json),
            })),
            Output::Table => println!(
                "{} {} until {}{}",
                if stored.created { "stored" } else { "replaced" },
                stored.entry_id,
                time_text(stored.expire_time),
                if stored.exact_only {
                    "; the model does not read all of the prompt, so only the same prompt finds it"
                } else {
                    ""
                },
            ),
        }
        Ok(())
    }

    async fn get(&mut self, id: String) -> Result<(), Failure> {
        let request = pb::GetEntryRequest { namespace: self.args.namespace.clone(), entry_id: id };
        let entry = self.client.get_entry(request).await?.into_inner().entry.unwrap_or_default();
        match self.args.output {
            Output::Json => print_json(&entry_json(&entry)),
            Output::Table => {
                println!("{}\n", String::from_utf8_lossy(&entry.response));
                let attributes: Vec<String> = entry.attributes.iter().map(|(k, v)| format!("{k}={v}")).collect();
                let rows = [
                    ("id", entry.id.clone()),
                    ("prompt", prompt_text(entry.prompt.as_ref()).to_owned()),
                    ("attributes", attributes.join(", ")),
                    ("category", entry.category.clone()),
                    ("content type", entry.content_type.clone()),
                    ("stored", time_text(entry.create_time)),
                    ("expires", time_text(entry.expire_time)),
                ];
                print_table(&["entry", ""], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]));
            }
        }
        Ok(())
    }

    async fn list(&mut self, limit: u32, page_token: String) -> Result<(), Failure> {
        let request = pb::ListEntriesRequest {
            namespace: self.args.namespace.clone(),
            page_size: limit,
            page_token,
            omit_responses: self.args.output == Output::Table,
        };
        let page = self.client.list_entries(request).await?.into_inner();
        match self.args.output {
            Output::Json => print_json(&json!({
                "entries": page.entries.iter().map(entry_json).collect::<Vec<_>>(),
                "next_page_token": page.next_page_token,
            })),
            Output::Table => {
                let rows = page.entries.iter().map(|entry| {
                    let attributes: Vec<String> = entry.attributes.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    vec![
                        entry.id.clone(),
                        clip(prompt_text(entry.prompt.as_ref())),
                        attributes.join(", "),
                        entry.category.clone(),
                        time_text(entry.expire_time),
                    ]
                });
                print_table(&["id", "prompt", "attributes", "category", "expires"], rows);
                if !page.next_page_token.is_empty() {
                    eprintln!("more: --page-token {}", page.next_page_token);
                }
            }
        }
        Ok(())
    }

    async fn delete(&mut self, id: String) -> Result<(), Failure> {
        let request = pb::DeleteEntryRequest {
            namespace: self.args.namespace.clone(),
            entry_id: id.clone(),
            request_id: String::new(),
        };
        self.client.delete_entry(request).await?;
        match self.args.output {
            Output::Json => print_json(&json!({ "deleted": id })),
            Output::Table => println!("deleted {id}"),
        }
        Ok(())
    }

    async fn invalidate(&mut self, args: InvalidateArgs) -> Result<(), Failure> {
        let request = pb::InvalidateEntriesRequest {
            namespace: self.args.namespace.clone(),
            selector: Some(pb::EntrySelector {
                entry_ids: args.ids,
                prompt: args.prompt.and_then(prompt),
                attributes: pairs(args.attributes)?,
                category: args.category,
                older_than: args.older_than.map(to_pb).transpose()?,
                all: args.all,
            }),
            dry_run: args.dry_run,
            request_id: String::new(),
        };
        let count = self.client.invalidate_entries(request).await?.into_inner().count;
        match (self.args.output, args.dry_run) {
            (Output::Json, dry_run) => print_json(&json!({ "count": count, "dry_run": dry_run })),
            (Output::Table, true) => println!("would delete {count} entries"),
            (Output::Table, false) => println!("deleted {count} entries"),
        }
        Ok(())
    }

    async fn stats(&mut self) -> Result<(), Failure> {
        let request = pb::GetCacheStatsRequest { namespace: self.args.namespace.clone() };
        let stats = self.client.get_cache_stats(request).await?.into_inner();
        let saved = stats.saved.unwrap_or_default();
        let hits = stats.exact_hits + stats.semantic_hits;
        match self.args.output {
            Output::Json => print_json(&json!({
                "entries": stats.entries,
                "lookups": stats.lookups,
                "exact_hits": stats.exact_hits,
                "semantic_hits": stats.semantic_hits,
                "misses": stats.misses,
                "misses_by_reason": stats.misses_by_reason,
                "stores": stats.stores,
                "saved": usage_json(&saved),
            })),
            Output::Table => {
                let share = if stats.lookups == 0 { 0.0 } else { 100.0 * hits as f64 / stats.lookups as f64 };
                let mut rows = vec![
                    vec!["entries".into(), stats.entries.to_string()],
                    vec!["lookups".into(), stats.lookups.to_string()],
                    vec!["hits".into(), format!("{hits} ({share:.1} %)")],
                    vec!["  exact".into(), stats.exact_hits.to_string()],
                    vec!["  semantic".into(), stats.semantic_hits.to_string()],
                    vec!["misses".into(), stats.misses.to_string()],
                ];
                let mut reasons: Vec<_> = stats.misses_by_reason.into_iter().collect();
                reasons.sort();
                rows.extend(reasons.into_iter().map(|(reason, count)| vec![format!("  {reason}"), count.to_string()]));
                rows.extend([
                    vec!["stores".into(), stats.stores.to_string()],
                    vec!["saved tokens".into(), format!("{} in, {} out", saved.input_tokens, saved.output_tokens)],
                    vec!["saved cost".into(), format!("{:.6}", saved.cost_micros as f64 / 1e6)],
                    vec!["saved time".into(), duration_text(saved.latency)],
                ]);
                print_table(&["cache", ""], rows);
            }
        }
        Ok(())
    }
}

/// An empty prompt is sent as one, so that the server names what is wrong.
#[expect(clippy::unnecessary_wraps, reason = "message fields are optional on the wire")]
fn prompt(text: String) -> Option<pb::Prompt> {
    Some(pb::Prompt { kind: Some(Kind::Text(text)) })
}

fn pairs(pairs: Vec<(String, String)>) -> Result<HashMap<String, String>, Failure> {
    let mut map = HashMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value).is_some() {
            return Err(Failure::Usage(format!("--attribute {key} stands twice")));
        }
    }
    Ok(map)
}

fn to_pb(duration: Duration) -> Result<prost_types::Duration, Failure> {
    duration.try_into().map_err(|problem| Failure::Usage(format!("a duration is out of range: {problem}")))
}

fn text_or_stdin(text: String) -> Result<String, Failure> {
    if text != "-" {
        return Ok(text);
    }
    if std::io::stdin().is_terminal() {
        eprintln!("reading from stdin until end of input (Ctrl-D)");
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(Failure::failed)?;
    Ok(text)
}
