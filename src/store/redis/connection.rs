//! The connection to the server: made when first needed, multiplexed, and replaced when it dies.
//!
//! The manager underneath reconnects after a dropped connection but believes for ever in one that
//! stays open and silent (a frozen server, a black-holed route). So timeouts without any reply in
//! between are counted here, and past a limit the manager is thrown away for a new one.
//!
//! Only what the caller marks as repeatable is sent twice, once, and only after the connection
//! broke. Dropping a call abandons its reply; the connection stays usable for others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use redis::{
    Client, IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo, PushKind,
    aio::{ConnectionManager, ConnectionManagerConfig},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use super::{NAME, failure::Failure, metrics, reply::Replies, settings::Settings};
use crate::{clock::Clock, store::Error, types::Deadline};

/// Commands that may wait for the socket at once.
const PIPELINE_BUFFER: usize = 1024;
/// Timeouts in a row, without one reply, after which a connection may be given up.
const TIMEOUTS_MAX: u32 = 3;
/// When the kernel starts to ask whether a silent peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long the kernel waits for sent bytes to be acknowledged.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// Whether a call may be sent again after the connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Pure reads and writes that come to the same when done twice.
    Once,
    /// Anything whose reply would differ the second time.
    Never,
}

/// One logical connection for data.
pub(super) struct Connection {
    client: Client,
    config: ConnectionManagerConfig,
    manager: RwLock<ConnectionManager>,
    response_timeout: Duration,
    clock: Clock,
    silence: Mutex<Silence>,
    generation: Arc<AtomicU64>,
}

/// Timeouts since the last reply.
#[derive(Default)]
struct Silence {
    timeouts: u32,
    since: Option<Instant>,
}

impl Connection {
    /// Prepares a connection; nothing is sent yet. Fails only for a URL that makes no sense.
    pub(super) fn new(settings: &Settings, clock: Clock) -> Result<Self, Error> {
        let client = client(settings)?;
        let generation = Arc::new(AtomicU64::new(1));
        let on_push = {
            let generation = Arc::clone(&generation);
            move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    generation.fetch_add(1, Ordering::SeqCst);
                    metrics::add(metrics::RECONNECTS, 1);
                }
                Ok::<(), std::convert::Infallible>(())
            }
        };
        // No retries inside: a caller waits for one attempt at most, and the next call makes the
        // next attempt.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout))
            .set_pipeline_buffer_size(PIPELINE_BUFFER)
            .set_push_sender(on_push);
        let manager = lazy(&client, &config)?;
        Ok(Self {
            client,
            config,
            manager: RwLock::new(manager),
            response_timeout: settings.response_timeout,
            clock,
            silence: Mutex::default(),
            generation,
        })
    }

    /// Grows whenever the server at the other end may have become another one.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Host and port, without user and password.
    pub(super) fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    /// Sends a pipeline and returns its replies: one round trip.
    pub(super) async fn send(
        &self,
        pipeline: &Pipeline,
        deadline: Option<Deadline>,
        repeat: Repeat,
    ) -> Result<Replies, Failure> {
        match (self.send_once(pipeline, deadline).await, repeat) {
            (Err(Failure::Lost(_)), Repeat::Once) => self.send_once(pipeline, deadline).await,
            (outcome, _) => outcome,
        }
    }

    async fn send_once(&self, pipeline: &Pipeline, deadline: Option<Deadline>) -> Result<Replies, Failure> {
        let started = self.clock.instant();
        let budget = match deadline {
            Some(deadline) => deadline.remaining(started).ok_or(Failure::Silent)?.min(self.response_timeout),
            None => self.response_timeout,
        };
        metrics::add(metrics::ROUND_TRIPS, 1);
        // The lock is held for the clone only.
        let mut manager = self.manager.read().clone();
        let reply = tokio::time::timeout(budget, manager.send_packed_commands(pipeline, 0, pipeline.len())).await;
        let outcome = match reply {
            Ok(Ok(values)) => Ok(Replies::new(values)),
            Ok(Err(error)) => Err(Failure::from(error)),
            Err(_elapsed) => Err(Failure::Silent),
        };
        match &outcome {
            Ok(_) => *self.silence.lock() = Silence::default(),
            // Replies to commands stand inside the pipeline's; an error here ended the handshake
            // (a refused password, a server too old), and the manager would keep it for ever.
            Err(Failure::Reply(..) | Failure::Final(_)) => {
                *self.silence.lock() = Silence::default();
                self.replace_manager();
            }
            Err(Failure::Silent) => self.note_silence(started),
            Err(Failure::Lost(_)) => {
                *self.silence.lock() = Silence::default();
                self.generation.fetch_add(1, Ordering::SeqCst);
            }
        }
        outcome
    }

    /// Counts a timeout. The connection is replaced once several calls in a row got no reply and
    /// nothing was heard for a whole response timeout: short deadlines alone do not cost it.
    fn note_silence(&self, started: Instant) {
        let mut silence = self.silence.lock();
        silence.timeouts += 1;
        let since = *silence.since.get_or_insert(started);
        let quiet = self.clock.instant().saturating_duration_since(since);
        if silence.timeouts < TIMEOUTS_MAX || quiet < self.response_timeout {
            return;
        }
        *silence = Silence::default();
        drop(silence);
        tracing::warn!(address = self.address(), quiet_ms = quiet.as_millis() as u64, "Redis is silent: reconnecting");
        metrics::add(metrics::RECONNECTS, 1);
        self.replace_manager();
    }

    fn replace_manager(&self) {
        // A URL that made a manager once makes one again.
        if let Ok(fresh) = lazy(&self.client, &self.config) {
            *self.manager.write() = fresh;
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn lazy(client: &Client, config: &ConnectionManagerConfig) -> Result<ConnectionManager, Error> {
    ConnectionManager::new_lazy_with_config(client.clone(), config.clone()).map_err(|error| Error::Unavailable {
        engine: NAME,
        problem: format!("the connection cannot be prepared: {}", error.category()),
    })
}

/// Reads the URL. Nothing of it is repeated in an error, since it may carry a password.
fn client(settings: &Settings) -> Result<Client, Error> {
    let unusable = |problem: &str| Error::Unavailable {
        engine: NAME,
        problem: format!(
            "store.redis.url {problem}; write redis://[user:password@]host[:port][/db] (rediss:// for TLS), \
             with special characters of the password percent-encoded"
        ),
    };
    let url = settings.url.expose().trim();
    if url.is_empty() {
        return Err(unusable("is empty"));
    }
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !matches!(scheme, Some("redis" | "rediss" | "valkey" | "valkeys" | "redis+unix" | "unix")) {
        return Err(unusable("does not start with redis:// or rediss://"));
    }
    if cfg!(not(feature = "tls")) && matches!(scheme, Some("rediss" | "valkeys")) {
        return Err(unusable("asks for TLS, which this build lacks (feature `tls`)"));
    }
    let info = url.into_connection_info().map_err(|_| unusable("is not a Redis URL"))?;
    // Indexes exist in database 0 only.
    if info.redis_settings().db() != 0 {
        return Err(unusable("names a logical database; the search module serves database 0 only"));
    }
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let tcp = tcp_settings();
    Client::open(info.set_redis_settings(redis).set_tcp_settings(tcp)).map_err(|_| unusable("is not a Redis URL"))
}

fn tcp_settings() -> TcpSettings {
    let settings = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3));
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(UNACKNOWLEDGED_MAX);
    settings
}
