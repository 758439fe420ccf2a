//! The server stack, readable top-down: sockets, HTTP/2 limits, the edge layer, the services; and
//! the way it stops.
//!
//! Stopping goes in steps, each bounded: health says NOT_SERVING; streams of ours end; new
//! connections are refused; calls in flight finish; and after the drain timeout whatever is left is
//! cut. Peers that connected and never spoke would keep the transport waiting for ever, so once no
//! call is in flight the rest gets only a short grace.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    service::Routes,
    transport::server::{Connected, Server as TonicServer, TcpIncoming},
};
use tonic_health::pb::health_server::HealthServer;

use super::{
    AdminApi, CacheApi, EmbeddingApi,
    health::{HealthApi, HealthReporter},
    layers::{EdgeLayer, EdgeLimits, InFlight},
    pb::{
        self, admin_service_server::AdminServiceServer, cache_service_server::CacheServiceServer,
        embedding_service_server::EmbeddingServiceServer,
    },
};
use crate::{clock::Clock, config};

/// Services whose health is reported by name.
const SERVICES: &[&str] = &["refrain.v1.AdminService", "refrain.v1.CacheService", "refrain.v1.EmbeddingService"];

/// Every rpc this server answers: the only paths that become metric labels. A test compares it with
/// the protos.
pub(super) const RPCS: &[&str] = &[
    "/refrain.v1.AdminService/GetServerInfo",
    "/refrain.v1.CacheService/Lookup",
    "/refrain.v1.CacheService/BatchLookup",
    "/refrain.v1.CacheService/Store",
    "/refrain.v1.CacheService/GetEntry",
    "/refrain.v1.CacheService/ListEntries",
    "/refrain.v1.CacheService/DeleteEntry",
    "/refrain.v1.CacheService/InvalidateEntries",
    "/refrain.v1.CacheService/GetCacheStats",
    "/refrain.v1.EmbeddingService/Embed",
    "/refrain.v1.EmbeddingService/GetModel",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// How long the transport may take to say goodbye to idle peers once no call is in flight.
const GOODBYE_GRACE: Duration = Duration::from_millis(250);
/// Longest header list taken, in bytes; metadata of a real call is a fraction of it.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Reset streams a peer may pile up before its connection is closed: the bound against rapid resets.
const RESET_STREAMS_MAX: usize = 64;
/// How often TCP asks whether a silent peer's machine is still there.
const TCP_KEEPALIVE: Duration = Duration::from_mins(1);

/// The sockets gRPC is served on.
#[derive(Debug)]
pub struct Sockets {
    /// TCP.
    pub tcp: Option<TcpListener>,
    /// A Unix socket and its file, which goes when the server stops.
    pub unix: Option<(UnixListener, PathBuf)>,
}

impl Sockets {
    /// Binds what the settings name.
    pub async fn bind(settings: &config::Server) -> io::Result<Self> {
        let tcp = match settings.listen {
            Some(address) => Some(bind_tcp(address).await?),
            None => None,
        };
        let unix = match &settings.unix_socket {
            Some(path) => Some((bind_unix(path.clone()).await?, path.clone())),
            None => None,
        };
        Ok(Self { tcp, unix })
    }
}

/// Binds a TCP address; the error names it.
pub async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))
}

/// Binds a Unix socket, taking over a file that nobody listens on any more.
async fn bind_unix(path: PathBuf) -> io::Result<UnixListener> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot listen on {}: {e}", path.display()));
    match UnixListener::bind(&path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if tokio::net::UnixStream::connect(&path).await.is_ok() {
                return Err(named(e));
            }
            std::fs::remove_file(&path).map_err(named)?;
            UnixListener::bind(&path).map_err(named)
        }
        bound => bound.map_err(named),
    }
}

/// The services behind the edge.
pub struct Services {
    /// CacheService.
    pub cache: CacheApi,
    /// EmbeddingService.
    pub embedding: EmbeddingApi,
    /// AdminService.
    pub admin: AdminApi,
    /// What the health service says.
    pub health: HealthReporter,
}

/// Serves until `stop` is cancelled, then drains; returns once no call of ours is left or the drain
/// timeout has passed.
pub async fn serve(
    sockets: Sockets,
    services: Services,
    settings: config::Server,
    clock: Clock,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let in_flight = InFlight::default();
    let limits = EdgeLimits {
        in_flight_max: settings.requests_in_flight_max,
        deadline_default: settings.deadline_default,
        deadline_max: settings.deadline_max,
    };
    let layer = EdgeLayer { limits, in_flight: in_flight.clone(), clock };
    let health = services.health.clone();
    let routes = routes(services, &settings, &stop);

    let tracker = TaskTracker::new();
    let mut servers = tokio::task::JoinSet::new();
    if let Some(listener) = sockets.tcp {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(TCP_KEEPALIVE));
        let server = serve_on(incoming, routes.clone(), layer.clone(), settings.clone(), stop.clone());
        servers.spawn(tracker.track_future(server));
    }
    let mut socket_file = None;
    if let Some((listener, path)) = sockets.unix {
        let server = serve_on(UnixListenerStream::new(listener), routes, layer, settings.clone(), stop.clone());
        servers.spawn(tracker.track_future(server));
        socket_file = Some(path);
    }
    tracker.close();

    // A transport that fails before it was told to stop ends the server.
    let mut outcome = Ok(());
    tokio::select! {
        () = stop.cancelled() => {}
        Some(Ok(ended)) = servers.join_next() => outcome = ended,
    }
    health.set_serving(false);
    stop.cancel();
    let goodbye = async {
        in_flight.idle().await;
        // Aborting cuts connections, so idle peers get a moment to read their GOAWAY.
        let _ = tokio::time::timeout(GOODBYE_GRACE, tracker.wait()).await;
    };
    if tokio::time::timeout(settings.drain_timeout, goodbye).await.is_err() {
        tracing::warn!(drain_timeout = ?settings.drain_timeout, "calls were still in flight after the drain timeout and are cut");
    }
    servers.shutdown().await;
    if let Some(path) = socket_file {
        let _ = std::fs::remove_file(path);
    }
    outcome
}

/// All services with their limits on message size.
fn routes(services: Services, settings: &config::Server, stop: &CancellationToken) -> Routes {
    let bytes_max = settings.message_bytes_max;
    let mut routes = Routes::new(
        CacheServiceServer::new(services.cache)
            .max_decoding_message_size(bytes_max)
            .max_encoding_message_size(bytes_max),
    )
    .add_service(
        EmbeddingServiceServer::new(services.embedding)
            .max_decoding_message_size(bytes_max)
            .max_encoding_message_size(bytes_max),
    )
    .add_service(AdminServiceServer::new(services.admin))
    .add_service(HealthServer::new(HealthApi::new(services.health, SERVICES, stop.clone())));
    if settings.reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        // Old clients ask v1alpha, new ones v1.
        match (builder().build_v1(), builder().build_v1alpha()) {
            (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
            (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "reflection is off"),
        }
    }
    routes
}

async fn serve_on<I, IO, E>(
    incoming: I,
    routes: Routes,
    layer: EdgeLayer,
    settings: config::Server,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    I: Stream<Item = Result<IO, E>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    IO::ConnectInfo: Clone + Send + Sync + 'static,
    E: Into<tonic::codegen::StdError>,
{
    TonicServer::builder()
        .max_concurrent_streams(settings.streams_per_connection_max)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
        .http2_keepalive_interval(Some(settings.keepalive_interval))
        .http2_keepalive_timeout(Some(settings.keepalive_timeout))
        .layer(layer)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_rpc_of_the_protos_is_known() {
        let set = FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
        let ours = set.file.iter().filter(|file| file.package() == "refrain.v1");
        let mut paths: Vec<String> = ours
            .flat_map(|file| &file.service)
            .flat_map(|service| service.method.iter().map(|m| format!("/refrain.v1.{}/{}", service.name(), m.name())))
            .collect();
        let mut known: Vec<&str> = RPCS.iter().copied().filter(|path| path.starts_with("/refrain.")).collect();
        paths.sort();
        known.sort_unstable();
        assert_eq!(paths, known);
    }
}
