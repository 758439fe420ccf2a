//! A whole sidecar in this process, on free ports, with the deterministic model.

use std::{net::SocketAddr, path::PathBuf, sync::OnceLock, time::Duration};

use refrain::{
    app::{self, Running},
    clock::Clock,
    config::{Config, Sources},
    grpc::pb::{
        LookupRequest, Prompt, StoreRequest, admin_service_client::AdminServiceClient,
        cache_service_client::CacheServiceClient, embedding_service_client::EmbeddingServiceClient, prompt::Kind,
    },
    telemetry,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// Longest any condition is waited for; far beyond what a loaded machine needs.
pub const BOUND: Duration = Duration::from_secs(30);

/// A running sidecar; it ends with the test.
pub struct Sidecar {
    /// Where gRPC listens.
    pub address: SocketAddr,
    /// Where metrics and health are served.
    pub ops: SocketAddr,
    /// Moves its time.
    pub clock: Clock,
    running: Option<Running>,
    dir: TempDir,
}

impl Sidecar {
    /// Starts one with settings that overrule: the deterministic model, the embedded engine in a
    /// folder of its own, free ports.
    pub async fn start(set: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::shifted();
        let config = config(&dir, set);
        let running = app::start(config, clock.clone(), Some(metrics())).await.unwrap();
        let addresses = running.addresses().clone();
        Self { address: addresses.grpc.unwrap(), ops: addresses.ops.unwrap(), clock, running: Some(running), dir }
    }

    /// A folder that lives as long as the sidecar.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub async fn cache(&self) -> CacheServiceClient<Channel> {
        CacheServiceClient::new(self.channel().await)
    }

    pub async fn embedding(&self) -> EmbeddingServiceClient<Channel> {
        EmbeddingServiceClient::new(self.channel().await)
    }

    pub async fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel().await)
    }

    /// Begins to stop and does not wait for it.
    pub fn begin_stop(&self) {
        self.running.as_ref().unwrap().stop_token().cancel();
    }

    /// Stops it and waits until it has drained.
    pub async fn stop(mut self) {
        self.running.take().unwrap().stop().await.unwrap();
    }
}

/// The settings of a test's sidecar.
pub fn config(dir: &TempDir, set: &[&str]) -> Config {
    let mut all = vec![
        "server.listen=127.0.0.1:0".to_owned(),
        "server.ops_listen=127.0.0.1:0".to_owned(),
        "embedding.model=fake".to_owned(),
        format!("store.embedded.data_dir={}", dir.path().join("store").display()),
    ];
    all.extend(set.iter().map(ToString::to_string));
    // A file that exists keeps the user's own settings out of the test.
    let sources = Sources { file: Some("/dev/null".into()), set: all, env: Vec::new() };
    Config::load(&sources).unwrap()
}

/// The process's recorder, which can be installed only once.
fn metrics() -> metrics_exporter_prometheus::PrometheusHandle {
    static METRICS: OnceLock<metrics_exporter_prometheus::PrometheusHandle> = OnceLock::new();
    METRICS.get_or_init(|| telemetry::init_metrics().unwrap()).clone()
}

#[expect(clippy::unnecessary_wraps, reason = "message fields are optional on the wire")]
pub fn prompt(text: &str) -> Option<Prompt> {
    Some(Prompt { kind: Some(Kind::Text(text.to_owned())) })
}

pub fn ask(namespace: &str, text: &str) -> LookupRequest {
    LookupRequest { namespace: namespace.to_owned(), prompt: prompt(text), ..LookupRequest::default() }
}

pub fn answer(namespace: &str, text: &str, response: &str) -> StoreRequest {
    StoreRequest {
        namespace: namespace.to_owned(),
        prompt: prompt(text),
        response: response.to_owned().into(),
        ..StoreRequest::default()
    }
}
