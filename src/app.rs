//! The composition root: the one place that names an engine, a model, the services and the server.
//!
//! Start-up goes in order of what can fail soonest: sockets, the operator's port (so that probes
//! are answered while a model is loaded), model, engine, services, and only then readiness.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    cache::Cache,
    clock::Clock,
    config::{Config, EngineKind},
    embed::{
        self, Embedder, fake,
        model::{Model, ModelError},
        onnx::{self, Source},
    },
    grpc::{
        AdminApi, CacheApi, EmbeddingApi,
        health::HealthReporter,
        server::{self, Services, Sockets},
    },
    store::{self, Engine},
    telemetry::ops::{self, Readiness},
};

/// How often the engine is asked whether it answers, for `/readyz`.
const READINESS_INTERVAL: Duration = Duration::from_secs(1);

/// How often the samples of histograms are summed up.
const METRICS_UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long the operator's port may take to finish its answers when all else has ended.
const OPS_GRACE: Duration = Duration::from_millis(250);

/// Why the sidecar cannot start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket or file could not be had.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The embedder cannot be started.
    #[error(transparent)]
    Embed(#[from] embed::Error),
    /// The engine cannot be opened.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The transport failed.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A part of the server ended unexpectedly.
    #[error("a part of the server ended unexpectedly: {0}")]
    Ended(String),
}

/// A running sidecar.
#[derive(Debug)]
pub struct Running {
    addresses: Addresses,
    stop: CancellationToken,
    server: JoinHandle<Result<(), Error>>,
    /// Begins the stop of a sidecar that is dropped rather than stopped.
    _stop_on_drop: DropGuard,
}

/// Where a running sidecar is reached.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Addresses {
    /// gRPC over TCP.
    pub grpc: Option<SocketAddr>,
    /// gRPC over a Unix socket.
    pub unix_socket: Option<PathBuf>,
    /// Metrics and health over HTTP.
    pub ops: Option<SocketAddr>,
}

impl Running {
    /// Where it is reached.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// A token that stops it when cancelled.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Waits until it has stopped.
    pub async fn wait(self) -> Result<(), Error> {
        self.server.await.map_err(|problem| Error::Ended(problem.to_string()))?
    }

    /// Stops it and waits until it has drained.
    pub async fn stop(self) -> Result<(), Error> {
        self.stop.cancel();
        self.wait().await
    }
}

/// Starts a sidecar and returns once it is serving.
pub async fn start(config: Config, clock: Clock, metrics: Option<PrometheusHandle>) -> Result<Running, Error> {
    let sockets = Sockets::bind(&config.server).await?;
    let ops_listener = match config.server.ops_listen {
        Some(address) => Some(server::bind_tcp(address).await?),
        None => None,
    };
    let addresses = Addresses {
        grpc: sockets.tcp.as_ref().map(tokio::net::TcpListener::local_addr).transpose()?,
        unix_socket: sockets.unix.as_ref().map(|(_, path)| path.clone()),
        ops: ops_listener.as_ref().map(tokio::net::TcpListener::local_addr).transpose()?,
    };

    let stop = CancellationToken::new();
    // A start that fails half-way stops what it has started.
    let stop_on_drop = stop.clone().drop_guard();
    // The operator's port outlives the drain, so that probes see a stopping server.
    let ops_stop = CancellationToken::new();
    let ops_stop_on_drop = ops_stop.clone().drop_guard();
    let readiness = Readiness::default();
    let upkeep = tokio::spawn(keep_metrics(metrics.clone(), ops_stop.clone()));
    let ops =
        ops_listener.map(|listener| tokio::spawn(ops::serve(listener, readiness.clone(), metrics, ops_stop.clone())));

    let started = clock.now();
    let model = load_model(&config).await?;
    let engine = open_engine(&config, &*model, clock.clone()).await?;
    let settings = config.embedding.settings.clone();
    let embedder = Embedder::start(model, Arc::clone(&engine.memo), settings, clock.clone())?;
    let cache = Cache::new(Arc::clone(&engine.cache), embedder.clone(), config.cache.clone(), clock.clone());

    let health = HealthReporter::new();
    let services = Services {
        cache: CacheApi::new(cache.clone(), Arc::new(config.limits.clone()), config.server.message_bytes_max),
        embedding: EmbeddingApi::new(embedder.clone()),
        admin: AdminApi::new(engine.clone(), embedder.clone(), &config, started),
        health: health.clone(),
    };
    let serving = server::serve(sockets, services, config.server.clone(), clock, stop.clone());
    let serving = tokio::spawn(serving);
    // A real inference, so that SERVING means the model has answered.
    embedder.warm_up().await?;
    health.set_serving(true);
    let watching = tokio::spawn(watch_engine(engine.clone(), readiness.clone(), stop.clone()));
    let flushing = tokio::spawn(flush_stats(cache.clone(), config.cache.stats_interval, stop.clone()));
    if let Some(path) = &config.server.address_file {
        write_addresses(path, &addresses)?;
    }

    let server = tokio::spawn(async move {
        let served = serving.await.map_err(|problem| Error::Ended(problem.to_string()));
        readiness.set(false);
        let _ = tokio::join!(watching, flushing);
        embedder.close().await;
        engine.health.close().await;
        drop(ops_stop_on_drop);
        let _ = upkeep.await;
        if let Some(mut ops) = ops
            && tokio::time::timeout(OPS_GRACE, &mut ops).await.is_err()
        {
            // A peer in the middle of a request, or one that does not read its answer.
            ops.abort();
        }
        Ok(served??)
    });
    Ok(Running { addresses, stop, server, _stop_on_drop: stop_on_drop })
}

/// Loads the model that the settings name, off the runtime's threads.
pub async fn load_model(config: &Config) -> Result<Arc<dyn Model>, ModelError> {
    let name = &config.embedding.model;
    if name == "fake" {
        return Ok(Arc::new(fake::Fake::new()));
    }
    let library = config.onnxruntime();
    let assets = config.assets_dir();
    let source = Source::resolve(name, &assets.join("models"), assets.join("hub"));
    Ok(Arc::new(onnx::load(source, library).await?))
}

/// Opens the engine that the settings name.
pub async fn open_engine(config: &Config, model: &dyn Model, clock: Clock) -> Result<Engine, store::Error> {
    let space = (model.spec().space(), model.spec().dimension);
    match config.store.engine {
        EngineKind::Embedded => {
            let settings = config.store.embedded.settings.clone();
            store::embedded::open(&config.data_dir(), settings, Some(space), clock).await
        }
        EngineKind::Redis => store::redis::open(config.store.redis.clone(), space, clock).await,
    }
}

async fn watch_engine(engine: Engine, readiness: Readiness, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(READINESS_INTERVAL);
    let mut was_ready = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let checked = engine.health.check().await;
        readiness.set(checked.is_ok());
        if let Err(problem) = &checked
            && was_ready
        {
            tracing::warn!(engine = engine.name, %problem, "the engine does not answer; lookups miss until it does");
        }
        if checked.is_ok() && !was_ready {
            tracing::info!(engine = engine.name, "the engine answers again");
        }
        was_ready = checked.is_ok();
    }
}

async fn flush_stats(cache: Cache, every: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(every);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => cache.flush_stats().await,
        }
    }
    cache.flush_stats().await;
}

/// Sums the samples of histograms up. They are kept one by one until then, and nobody may ever come
/// to scrape them.
async fn keep_metrics(metrics: Option<PrometheusHandle>, stop: CancellationToken) {
    let Some(metrics) = metrics else { return };
    let mut ticks = tokio::time::interval(METRICS_UPKEEP_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => metrics.run_upkeep(),
        }
    }
}

/// Writes the addresses in one step, so that whoever waits for the file never reads half of it.
fn write_addresses(path: &Path, addresses: &Addresses) -> io::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, serde_json::to_vec(addresses)?)?;
    std::fs::rename(partial, path)
}
