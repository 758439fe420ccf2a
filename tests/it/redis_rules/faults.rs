//! A Redis that goes away, freezes, forgets, refuses, and comes back.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use refrain::{
    clock::Clock,
    secret::Secret,
    store::{Error, redis::open},
    types::Attributes,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{fill, run, try_nearest, try_put};
use crate::{
    conformance::ids,
    data::{DIMENSION, clustered, space},
    redis_server::{RedisServer, eventually},
};

#[tokio::test]
async fn dropped_connections_heal_without_a_failed_read() {
    let server = Arc::new(RedisServer::start().await);
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    let vectors = clustered(30, 10);
    let entries = fill(&harness, &namespace, &vectors).await;
    let mut client = server.client().await;
    for _ in 0..5 {
        run(&mut client, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
        assert_eq!(harness.get(&namespace, &entries[1].id).await.as_ref(), Some(&entries[1]));
        run(&mut client, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
        let (found, _) = harness.nearest(&namespace, &vectors[2], &Attributes::default(), 1).await;
        assert_eq!(ids(&found), [entries[2].id]);
    }
    // A write whose reply was lost is not repeated blindly; the next one goes through.
    run(&mut client, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    let written = async || try_put(&harness, &namespace, &entries[0], &vectors[0]).await.ok();
    assert!(!eventually("writes heal", written).await, "the entry stood already");
}

#[tokio::test]
async fn a_frozen_server_costs_no_more_than_the_deadline_and_is_found_again() {
    let server = Arc::new(RedisServer::start().await);
    let mut settings = server.settings();
    settings.response_timeout = Duration::from_millis(500);
    settings.connect_timeout = Duration::from_millis(500);
    let harness = Arc::clone(&server).harness(settings).await;
    let namespace = harness.namespace();
    let vectors = clustered(31, 5);
    let entries = fill(&harness, &namespace, &vectors).await;
    server.pause();
    // Several rounds: past a limit of silent calls the connection is given up for a new one,
    // which the frozen server does not greet either.
    for _ in 0..4 {
        let started = harness.clock.instant();
        let calls = (0..8).map(|_| async {
            let deadline = Some(harness.clock.deadline_in(Duration::from_millis(300)));
            harness.cache().probe(&namespace, &entries[0].id, None, deadline).await
        });
        for outcome in join_all(calls).await {
            let error = outcome.expect_err("a frozen server does not answer");
            assert!(matches!(error, Error::Timeout { .. } | Error::Unavailable { .. }), "{error}");
        }
        let took = harness.clock.instant() - started;
        assert!(took < Duration::from_secs(5), "eight calls of 300 ms side by side took {took:?}");
    }
    server.resume();
    let back = async || harness.cache().probe(&namespace, &entries[0].id, None, None).await.ok();
    assert_eq!(eventually("the server is found again", back).await.entry.as_ref(), Some(&entries[0]));
}

/// A connection that stays open and silent for ever, as behind a router that lost its tables, is
/// given up even though the server behind it is well.
#[tokio::test]
async fn a_silent_connection_is_given_up_for_a_new_one() {
    let server = Arc::new(RedisServer::start().await);
    let proxy = Proxy::start(server.port()).await;
    let mut settings = server.settings();
    settings.response_timeout = Duration::from_millis(300);
    settings.url = Secret::new(format!("redis://127.0.0.1:{}/", proxy.port));
    let harness = Arc::clone(&server).harness(settings).await;
    let namespace = harness.namespace();
    let entries = fill(&harness, &namespace, &clustered(35, 2)).await;
    proxy.silence.send_replace(true);
    let error = harness.cache().count(&namespace).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let back = async || harness.cache().probe(&namespace, &entries[0].id, None, None).await.ok();
    assert_eq!(eventually("a new connection is made", back).await.entry.as_ref(), Some(&entries[0]));
}

/// Passes bytes on to a server until it is silenced; connections made later are served again.
struct Proxy {
    port: u16,
    silence: watch::Sender<bool>,
}

impl Proxy {
    async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let (silence, silenced) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut silenced = silenced.clone();
                let born_silenced = *silenced.borrow_and_update();
                let mut far = TcpStream::connect(("127.0.0.1", target)).await.expect("the server listens");
                tokio::spawn(async move {
                    let silent = async {
                        if born_silenced || silenced.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    };
                    let mut quiet = false;
                    tokio::select! {
                        () = silent => quiet = true,
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    }
                    if quiet {
                        // Both ends stay open, and nothing passes any more.
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { port, silence }
    }
}

#[tokio::test]
async fn a_restarted_server_is_taken_up_with_its_data() {
    let server = Arc::new(RedisServer::start().await);
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    let vectors = clustered(32, 50);
    let entries = fill(&harness, &namespace, &vectors).await;
    server.stop().await;
    let error = try_nearest(&harness, &namespace, &vectors[0], 1).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("store.redis.url"), "{error}");
    assert!(harness.engine.health.check().await.is_err());
    server.start_again().await;
    let back = async || harness.engine.health.check().await.ok();
    eventually("the engine is healthy again", back).await;
    for (entry, vector) in entries.iter().zip(&vectors) {
        let (found, _) = harness.nearest(&namespace, vector, &Attributes::default(), 1).await;
        assert_eq!(ids(&found), [entry.id]);
    }
    assert!(!harness.put(&namespace, &entries[0], Some(&vectors[0])).await, "scripts are known again");
}

#[tokio::test]
async fn the_engine_opens_without_a_server_and_heals_when_it_comes() {
    let server = Arc::new(RedisServer::start().await);
    server.stop().await;
    let engine = server.engine().await;
    let error = engine.health.check().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    server.start_again().await;
    eventually("the engine heals", async || engine.health.check().await.ok()).await;
}

#[tokio::test]
async fn forgotten_scripts_are_loaded_again() {
    let server = Arc::new(RedisServer::start().await);
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    let vectors = clustered(33, 3);
    let entries = fill(&harness, &namespace, &vectors).await;
    run(&mut server.client().await, &["SCRIPT", "FLUSH"]).await;
    assert!(!harness.put(&namespace, &entries[0], Some(&vectors[0])).await);
    run(&mut server.client().await, &["SCRIPT", "FLUSH"]).await;
    assert_eq!(harness.all(&namespace, 2).await.len(), 3);
    server.restart().await;
    let back = async || harness.cache().count(&namespace).await.ok();
    assert_eq!(eventually("the restarted server is found", back).await, 3);
    run(&mut server.client().await, &["SCRIPT", "FLUSH"]).await;
    assert_eq!(harness.cache().empty(&namespace, None).await.unwrap(), 3);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let server = Arc::new(RedisServer::start().await);
    let harness = Arc::clone(&server).harness(server.settings()).await;
    let namespace = harness.namespace();
    let vectors = clustered(34, 3);
    let entries = fill(&harness, &namespace, &vectors).await;
    let mut client = server.client().await;

    run(&mut client, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = try_put(&harness, &namespace, &entries[0], &vectors[0]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains("maxmemory"), "{error}");
    assert!(harness.get(&namespace, &entries[1].id).await.is_some(), "reads go on");
    assert_eq!(harness.cache().delete(&namespace, &[entries[1].id], None).await.unwrap(), 1);
    assert_eq!(harness.cache().empty(&namespace, None).await.unwrap(), 2, "memory can be won back");
    run(&mut client, &["CONFIG", "SET", "maxmemory", "0"]).await;

    harness.put(&namespace, &entries[0], Some(&vectors[0])).await;
    run(&mut client, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = try_put(&harness, &namespace, &entries[0], &vectors[0]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains("primary"), "{error}");
    run(&mut client, &["REPLICAOF", "NO", "ONE"]).await;
    let written = async || try_put(&harness, &namespace, &entries[0], &vectors[0]).await.ok();
    eventually("writes work again", written).await;
}

#[tokio::test]
async fn passwords_are_needed_and_never_told() {
    const PASSWORD: &str = "s3cret-of-the-test";
    let server = Arc::new(RedisServer::start().await);
    run(&mut server.client().await, &["CONFIG", "SET", "requirepass", PASSWORD]).await;
    let with_password = |password: &str| {
        let mut settings = server.settings();
        settings.url = Secret::new(server.url().replace("redis://", &format!("redis://:{password}@")));
        settings
    };
    let open = |settings| open(settings, (space(), DIMENSION), Clock::system());

    let right = with_password(PASSWORD);
    assert!(!format!("{right:?}").contains(PASSWORD), "a debug print shows the password");
    let engine = open(right).await.unwrap();
    engine.health.check().await.unwrap();
    let description = format!("{:?}", engine.health.describe().await.unwrap());
    assert!(!description.contains(PASSWORD), "{description}");
    engine.health.close().await;

    let wrong = "wr0ng-of-the-test";
    for (settings, secret) in [(with_password(wrong), wrong), (server.settings(), PASSWORD)] {
        let Err(error) = open(settings).await.map(|_| ()) else { panic!("a wrong password is refused") };
        assert!(error.to_string().contains("user or password"), "{error}");
        assert!(!format!("{error} {error:?}").contains(secret), "{error:?}");
    }

    // URLs that make no sense are told so without being repeated.
    for url in ["", "localhost", "http://:s3cret-of-the-test@h/", "redis://:s3cret-of-the-test@h:port/", "redis://h/3"]
    {
        let mut settings = server.settings();
        settings.url = Secret::new(url);
        let Err(error) = open(settings).await.map(|_| ()) else { panic!("{url} cannot be opened") };
        assert!(error.to_string().contains("store.redis.url"), "{error}");
        assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error:?}");
    }
}
