//! A Redis server of a bench's own, gone when the bench is, however it ends.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

/// Starts the server and outlives it: when standard input closes, because the bench let go of it
/// or died, the server is killed.
const SUPERVISOR: &str = include_str!("../../tests/it/redis_supervisor.sh");

/// How often a server that starts is asked whether it answers, and how many times.
const START_POLL: Duration = Duration::from_millis(20);
const START_POLLS_MAX: usize = 1_500;

/// A running server with the search module, on a free port, keeping its data in memory only.
pub(crate) struct RedisServer {
    port: u16,
    supervisor: Child,
    directory: TempDir,
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        // The supervisor ends as soon as its input does; a failure leaves nothing to do.
        let _ = self.supervisor.wait();
    }
}

impl RedisServer {
    pub(crate) async fn start() -> Self {
        let stack = crate::settings::assets().join("redis-stack");
        assert!(
            stack.join("bin/redis-server").exists(),
            "there is no Redis server in {}: `make bench` installs it",
            stack.display()
        );
        let server = Self::launch(&stack);
        for _ in 0..START_POLLS_MAX {
            // A foreign server that took the port between finding and using it has another folder.
            if server.folder().await.is_ok_and(|folder| Path::new(&folder) == server.directory.path()) {
                return server;
            }
            tokio::time::sleep(START_POLL).await;
        }
        panic!("the Redis server does not answer on port {}", server.port);
    }

    fn launch(stack: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be bound");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        drop(listener);
        let directory = TempDir::new().expect("a temporary directory can be made");
        let mut command = Command::new("sh");
        command.arg("-c").arg(SUPERVISOR).arg("sh");
        command.arg(stack.join("lib/openssl")).arg(directory.path().join("log")).arg(stack.join("bin/redis-server"));
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(directory.path()).arg("--loadmodule").arg(stack.join("lib/redisearch.so"));
        // In a group of its own, so that Ctrl-C ends the bench and not the one who cleans up.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut supervisor = command.spawn().expect("a shell can be started");
        let output = supervisor.stdout.take().expect("the output is piped");
        BufReader::new(output).read_line(&mut String::new()).expect("the shell tells that the server was started");
        Self { port, supervisor, directory }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// A plain connection.
    pub(crate) async fn client(&self) -> MultiplexedConnection {
        self.try_client().await.expect("the server accepts connections")
    }

    /// The folder of the server that answers on the port.
    async fn folder(&self) -> redis::RedisResult<String> {
        let mut client = self.try_client().await?;
        let answer: HashMap<String, String> =
            redis::cmd("CONFIG").arg("GET").arg("dir").query_async(&mut client).await?;
        Ok(answer.into_values().next().unwrap_or_default())
    }

    async fn try_client(&self) -> redis::RedisResult<MultiplexedConnection> {
        redis::Client::open(format!("{}?protocol=resp3", self.url()))?.get_multiplexed_async_connection().await
    }
}
