//! Settings: typed, layered, and with one manual.
//!
//! `defaults.toml` is the manual and the compiled-in default at once, so the two cannot drift.
//! Layers overrule each other key by key: defaults < file < environment < flags. A key that the
//! defaults do not know is refused with the nearest known one, wherever it was set.

mod layers;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

pub use self::layers::{Error, Sources};
use crate::{embed, store};

/// The manual: every setting with its default.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// All settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The gRPC and HTTP servers.
    pub server: Server,
    /// What callers may send.
    pub limits: Limits,
    /// Where things are kept.
    pub store: Store,
    /// How text becomes vectors.
    pub embedding: Embedding,
    /// The semantic cache.
    pub cache: Cache,
    /// Logs.
    pub telemetry: Telemetry,
}

/// The gRPC and HTTP servers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// gRPC over TCP; `None` is off.
    #[serde(deserialize_with = "layers::empty_as_none")]
    pub listen: Option<SocketAddr>,
    /// gRPC over a Unix socket; `None` is off.
    #[serde(deserialize_with = "layers::empty_as_none")]
    pub unix_socket: Option<PathBuf>,
    /// Metrics and health over HTTP; `None` is off.
    #[serde(deserialize_with = "layers::empty_as_none")]
    pub ops_listen: Option<SocketAddr>,
    /// Listen beyond loopback although nothing authenticates callers.
    pub allow_unauthenticated_remote: bool,
    /// Answer gRPC reflection.
    pub reflection: bool,
    /// Receives the addresses in use once the server listens.
    #[serde(deserialize_with = "layers::empty_as_none")]
    pub address_file: Option<PathBuf>,
    /// Longest message, in bytes.
    pub message_bytes_max: usize,
    /// Calls worked on at a time.
    pub requests_in_flight_max: usize,
    /// HTTP/2 streams a connection.
    pub streams_per_connection_max: u32,
    /// Deadline of a call that brings none.
    #[serde(with = "humantime_serde")]
    pub deadline_default: Duration,
    /// Longest deadline that is honoured.
    #[serde(with = "humantime_serde")]
    pub deadline_max: Duration,
    /// How long calls in flight may finish after the signal to stop.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// How often an idle peer is asked whether it is there.
    #[serde(with = "humantime_serde")]
    pub keepalive_interval: Duration,
    /// How long it may take to answer.
    #[serde(with = "humantime_serde")]
    pub keepalive_timeout: Duration,
}

/// What callers may send.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Longest prompt, in bytes.
    pub prompt_bytes_max: usize,
    /// Longest response, in bytes.
    pub response_bytes_max: usize,
    /// Longest content type, in bytes.
    pub content_type_bytes_max: usize,
    /// Most attributes of an entry or a lookup.
    pub attributes_max: usize,
    /// Most questions in a batch.
    pub batch_max: usize,
    /// Most ids in a selector.
    pub selector_ids_max: usize,
    /// Most entries on a page.
    pub page_size_max: usize,
}

/// Where things are kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Which of the two.
    pub engine: EngineKind,
    /// SQLite and exact search in the process.
    pub embedded: Embedded,
    /// Redis with the search module.
    pub redis: store::redis::Settings,
}

/// Which engine stands behind the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// SQLite and exact search in the process.
    Embedded,
    /// Redis with the search module.
    Redis,
}

/// The embedded engine and where its files lie.
#[derive(Clone, Debug, Deserialize)]
pub struct Embedded {
    /// The folder of the database; `None` means the user's data folder.
    #[serde(deserialize_with = "layers::empty_as_none")]
    pub data_dir: Option<PathBuf>,
    /// The engine's own settings.
    #[serde(flatten)]
    pub settings: store::embedded::Settings,
}

/// How text becomes vectors.
#[derive(Clone, Debug, Deserialize)]
pub struct Embedding {
    /// A folder name, a path, `hub:NAME` or `fake`.
    pub model: String,
    /// Where models and the runtime lie; `None` means the first known place that exists.
    #[serde(deserialize_with = "layers::empty_as_none")]
    pub assets_dir: Option<PathBuf>,
    /// The ONNX Runtime library; `None` means the one under the assets.
    #[serde(deserialize_with = "layers::empty_as_none")]
    pub onnxruntime: Option<PathBuf>,
    /// The room's own settings.
    #[serde(flatten)]
    pub settings: embed::Settings,
}

/// The semantic cache.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Least cosine similarity of a semantic hit.
    pub min_similarity: f32,
    /// Nearest entries that are considered.
    pub neighbors: usize,
    /// Life of an entry that brings none.
    #[serde(with = "humantime_serde")]
    pub ttl_default: Duration,
    /// Longest life an entry may bring.
    #[serde(with = "humantime_serde")]
    pub ttl_max: Duration,
    /// How often counters go to the engine.
    #[serde(with = "humantime_serde")]
    pub stats_interval: Duration,
    /// Longest a lookup waits for the engine.
    #[serde(with = "humantime_serde")]
    pub store_timeout: Duration,
    /// Life by category.
    pub categories: BTreeMap<String, CategoryTtl>,
}

/// The life of a category's entries.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(transparent)]
pub struct CategoryTtl(#[serde(with = "humantime_serde")] pub Duration);

/// Logs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// Level or filters.
    pub log: String,
    /// For whom.
    pub log_format: LogFormat,
}

/// For whom logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

impl Config {
    /// Reads all layers and checks the result.
    pub fn load(sources: &Sources) -> Result<Self, Error> {
        let config: Self = layers::merge(sources)?.try_into().map_err(Error::value)?;
        config.check()?;
        Ok(config)
    }

    /// What is in force, as TOML, secrets masked.
    pub fn dump(sources: &Sources) -> Result<String, Error> {
        Self::load(sources)?;
        let mut table = layers::merge(sources)?;
        layers::mask_secrets(&mut table);
        toml::to_string_pretty(&table).map_err(|problem| Error::Value(problem.to_string()))
    }

    /// Rules that span several settings or that types cannot say.
    fn check(&self) -> Result<(), Error> {
        let server = &self.server;
        if server.listen.is_none() && server.unix_socket.is_none() {
            return Err(Error::Rule("server.listen and server.unix_socket are both empty; set one of them".into()));
        }
        for (key, address) in [("server.listen", server.listen), ("server.ops_listen", server.ops_listen)] {
            if let Some(address) = address
                && !address.ip().is_loopback()
                && !server.allow_unauthenticated_remote
            {
                return Err(Error::Rule(format!(
                    "{key} = {address} is reachable from other machines and nothing authenticates callers; \
                     listen on 127.0.0.1 or a Unix socket, or set server.allow_unauthenticated_remote = true \
                     if the network around it is trusted"
                )));
            }
        }
        self.check_durations()?;
        if !(-1.0..=1.0).contains(&self.cache.min_similarity) {
            return Err(Error::Rule("cache.min_similarity is a cosine: it lies between -1 and 1".into()));
        }
        if !(1..=64).contains(&self.cache.neighbors) {
            return Err(Error::Rule("cache.neighbors lies between 1 and 64".into()));
        }
        if self.cache.ttl_default.is_zero() || self.cache.ttl_default > self.cache.ttl_max {
            return Err(Error::Rule("cache.ttl_default is more than zero and at most cache.ttl_max".into()));
        }
        for (name, ttl) in &self.cache.categories {
            crate::types::Category::new(name).map_err(|invalid| Error::Rule(format!("cache.categories: {invalid}")))?;
            if ttl.0.is_zero() || ttl.0 > self.cache.ttl_max {
                return Err(Error::Rule(format!(
                    "cache.categories.{name} is more than zero and at most cache.ttl_max"
                )));
            }
        }
        let room_for_message = self.limits.response_bytes_max + self.limits.prompt_bytes_max;
        if room_for_message > server.message_bytes_max {
            return Err(Error::Rule(format!(
                "limits.prompt_bytes_max + limits.response_bytes_max = {room_for_message} does not fit \
                 server.message_bytes_max = {}",
                server.message_bytes_max
            )));
        }
        Ok(())
    }

    /// A period of zero ends its timer by a panic, and a time that lies centuries ahead cannot be
    /// added to a clock.
    fn check_durations(&self) -> Result<(), Error> {
        const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);
        let (server, redis) = (&self.server, &self.store.redis);
        for (key, duration) in [
            ("server.deadline_default", server.deadline_default),
            ("server.deadline_max", server.deadline_max),
            ("server.keepalive_interval", server.keepalive_interval),
            ("server.keepalive_timeout", server.keepalive_timeout),
            ("store.embedded.sweep_interval", self.store.embedded.settings.sweep_interval),
            ("store.redis.connect_timeout", redis.connect_timeout),
            ("store.redis.response_timeout", redis.response_timeout),
            ("store.redis.search_timeout", redis.search_timeout),
            ("embedding.memo_ttl", self.embedding.settings.memo_ttl),
            ("cache.ttl_max", self.cache.ttl_max),
            ("cache.stats_interval", self.cache.stats_interval),
            ("cache.store_timeout", self.cache.store_timeout),
        ] {
            if duration.is_zero() || duration > LONGEST {
                return Err(Error::Rule(format!("{key} is more than zero and at most 100 years")));
            }
        }
        Ok(())
    }

    /// The folder of the embedded database.
    pub fn data_dir(&self) -> PathBuf {
        self.store.embedded.data_dir.clone().unwrap_or_else(|| user_data_dir().join("store"))
    }

    /// The folder of models and runtime.
    pub fn assets_dir(&self) -> PathBuf {
        if let Some(dir) = &self.embedding.assets_dir {
            return dir.clone();
        }
        let places =
            [PathBuf::from(".refrain/assets"), user_data_dir().join("assets"), "/usr/share/refrain/assets".into()];
        places.iter().find(|place| place.is_dir()).unwrap_or(&places[0]).clone()
    }

    /// The ONNX Runtime library.
    pub fn onnxruntime(&self) -> PathBuf {
        self.embedding
            .onnxruntime
            .clone()
            .unwrap_or_else(|| self.assets_dir().join("onnxruntime").join("libonnxruntime.so"))
    }
}

/// `$XDG_DATA_HOME/refrain`, by default `~/.local/share/refrain`.
fn user_data_dir() -> PathBuf {
    layers::xdg_dir("XDG_DATA_HOME", ".local/share").join("refrain")
}
