//! The server as a process of a fleet sees it: probes, limits, deadlines, sockets, and the end.

use std::time::Duration;

use refrain::{app, clock::Clock, grpc::pb::cache_service_client::CacheServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::{
    redis_server::{RedisServer, eventually},
    sidecar::{BOUND, Sidecar, answer, ask, config},
};

async fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_are_served() {
    let sidecar = Sidecar::start(&[]).await;
    assert!(http_get(sidecar.ops, "/healthz").await.starts_with("HTTP/1.1 200"));
    eventually("the sidecar is ready", || async {
        http_get(sidecar.ops, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    let mut cache = sidecar.cache().await;
    cache.lookup(ask("a", "q")).await.unwrap();
    cache.lookup(ask("", "q")).await.unwrap_err();
    let metrics = http_get(sidecar.ops, "/metrics").await;
    for line in [
        r#"refrain_cache_lookups_total{outcome="miss",detail="empty"}"#,
        r#"refrain_rpc_calls_total{rpc="refrain.v1.CacheService/Lookup",code="Ok"}"#,
        r#"refrain_rpc_calls_total{rpc="refrain.v1.CacheService/Lookup",code="InvalidArgument"}"#,
        "refrain_rpc_seconds_bucket",
        "refrain_build_info",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_known_by_service_and_watched() {
    let sidecar = Sidecar::start(&[]).await;
    let mut health = HealthClient::new(sidecar.channel().await);
    for service in ["", "refrain.v1.CacheService", "refrain.v1.EmbeddingService", "refrain.v1.AdminService"] {
        let response = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(response.status(), ServingStatus::Serving, "{service:?}");
    }
    let unknown = health.check(HealthCheckRequest { service: "no.such".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    sidecar.begin_stop();
    // A watcher hears NOT_SERVING or, if the end comes first, the end of the stream.
    if let Ok(Some(update)) = watch.message().await {
        assert_eq!(update.status(), ServingStatus::NotServing);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_is_served_on_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("refrain.sock");
    // A stale file of a process that died must not keep the next one from starting.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let set = format!("server.unix_socket={}", path.display());
    let running =
        app::start(config(&dir, &["server.listen=", "server.ops_listen=", &set]), Clock::system(), None).await.unwrap();
    let channel = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap();
    let mut cache = CacheServiceClient::new(channel);
    cache.store(answer("a", "q", "r")).await.unwrap();
    assert!(cache.lookup(ask("a", "q")).await.unwrap().into_inner().entry.is_some());

    let second = tempfile::tempdir().unwrap();
    let taken =
        app::start(config(&second, &["server.listen=", "server.ops_listen=", &set]), Clock::system(), None).await;
    assert!(taken.is_err(), "a socket that is served is not taken over");
    drop(cache);
    running.stop().await.unwrap();
    assert!(!path.exists(), "the socket's file goes with the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused() {
    let sidecar = Sidecar::start(&[
        "server.message_bytes_max=10000",
        "limits.prompt_bytes_max=1000",
        "limits.response_bytes_max=1000",
    ])
    .await;
    let status = sidecar.cache().await.store(answer("a", "q", &"x".repeat(20_000))).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_kept_and_excess_calls_are_shed_while_the_store_hangs() {
    let redis = RedisServer::start().await;
    let url = format!("store.redis.url={}", redis.url());
    let sidecar = Sidecar::start(&["store.engine=redis", &url, "server.requests_in_flight_max=1"]).await;
    let mut cache = sidecar.cache().await;
    cache.store(answer("a", "q", "r")).await.unwrap();
    redis.pause();

    let mut hasty = tonic::Request::new(answer("a", "q", "r"));
    hasty.set_timeout(Duration::from_millis(200));
    let status = cache.store(hasty).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "DEADLINE_PASSED");

    // A lookup does not fail with its store: it misses and says why.
    let receipt = cache.lookup(ask("a", "q")).await.unwrap().into_inner().receipt.unwrap();
    assert_eq!(receipt.miss_reason(), refrain::grpc::pb::MissReason::Degraded);
    assert!(receipt.degraded.starts_with("store: STORE_"), "{}", receipt.degraded);

    let hanging = {
        let mut cache = cache.clone();
        // It may itself be shed for one of the lookups below, and then comes again.
        tokio::spawn(async move { while cache.store(answer("a", "q", "r")).await.is_err() {} })
    };
    let status = eventually("a call is shed", || {
        let mut cache = cache.clone();
        async move {
            let status = cache.lookup(ask("a", "q")).await.err()?;
            (status.get_details_error_info()?.reason == "OVERLOADED").then_some(status)
        }
    })
    .await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    // A busy server is not a sick one, and an orchestrator would kill it for that.
    let check = HealthClient::new(sidecar.channel().await).check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(check.into_inner().status(), ServingStatus::Serving);
    hanging.abort();
    redis.resume();
    eventually("the store answers again", || {
        let mut cache = cache.clone();
        async move { cache.lookup(ask("a", "q")).await.ok()?.into_inner().entry }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_drains_in_spite_of_a_silent_peer_and_an_open_watch() {
    let sidecar = Sidecar::start(&["server.drain_timeout=60s"]).await;
    let silent = TcpStream::connect(sidecar.address).await.unwrap();
    let mut health = HealthClient::new(sidecar.channel().await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    // Far less than the drain timeout: neither of the two is a call in flight.
    tokio::time::timeout(BOUND, sidecar.stop()).await.expect("the drain ended by itself");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_in_flight_finishes_and_what_hangs_is_cut() {
    let redis = RedisServer::start().await;
    let url = format!("store.redis.url={}", redis.url());
    let sidecar =
        Sidecar::start(&["store.engine=redis", &url, "store.redis.response_timeout=60s", "cache.store_timeout=60s"])
            .await;
    let mut cache = sidecar.cache().await;
    cache.store(answer("a", "q", "r")).await.unwrap();
    redis.pause();
    let in_flight = tokio::spawn(async move { cache.lookup(ask("a", "q")).await });
    wait_for_calls(&sidecar, 1).await;
    sidecar.begin_stop();
    redis.resume();
    let found = in_flight.await.unwrap().unwrap().into_inner();
    assert!(found.entry.is_some(), "the call that was in flight got its answer");
    sidecar.stop().await;

    let sidecar = Sidecar::start(&[
        "store.engine=redis",
        &url,
        "store.redis.response_timeout=60s",
        "cache.store_timeout=60s",
        "server.drain_timeout=100ms",
    ])
    .await;
    let mut cache = sidecar.cache().await;
    redis.pause();
    let hanging = tokio::spawn(async move { cache.lookup(ask("a", "q")).await });
    wait_for_calls(&sidecar, 1).await;
    sidecar.begin_stop();
    hanging.await.unwrap().unwrap_err();
    redis.resume();
    sidecar.stop().await;
}

/// Each namespace has counters to hand over, and each would wait for a timeout of its own.
#[tokio::test(flavor = "multi_thread")]
async fn it_stops_soon_while_the_store_hangs_and_many_namespaces_have_counters() {
    let redis = RedisServer::start().await;
    let url = format!("store.redis.url={}", redis.url());
    let sidecar =
        Sidecar::start(&["store.engine=redis", &url, "store.redis.response_timeout=1s", "cache.stats_interval=1h"])
            .await;
    let mut cache = sidecar.cache().await;
    for number in 0..100 {
        cache.lookup(ask(&format!("tenant-{number}"), "q")).await.unwrap();
    }
    redis.pause();
    tokio::time::timeout(BOUND, sidecar.stop()).await.expect("it stopped");
    redis.resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_in_spite_of_silent_peers_on_the_operators_port() {
    let sidecar = Sidecar::start(&[]).await;
    let silent = TcpStream::connect(sidecar.ops).await.unwrap();
    let mut halfway = TcpStream::connect(sidecar.ops).await.unwrap();
    halfway.write_all(b"GET /healthz HTTP/1.1\r\nHost:").await.unwrap();
    // Connections are taken in order, so these two have been.
    assert!(http_get(sidecar.ops, "/healthz").await.starts_with("HTTP/1.1 200"));
    tokio::time::timeout(BOUND, sidecar.stop()).await.expect("it stopped");
    drop((silent, halfway));
}

/// Waits until the sidecar works on a call. The gauge is the process's, so other tests may add.
async fn wait_for_calls(sidecar: &Sidecar, at_least: u64) {
    eventually("a call is in flight", || async {
        let metrics = http_get(sidecar.ops, "/metrics").await;
        metrics
            .lines()
            .find_map(|line| line.strip_prefix("refrain_rpc_in_flight "))
            .and_then(|value| value.parse::<f64>().ok())
            .filter(|calls| *calls >= at_least as f64)
    })
    .await;
}
