//! Real Redis servers for tests: each with a port and a directory of its own, gone when the test
//! process is, however it ends.

use std::{
    future::Future,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use refrain::{
    clock::Clock,
    secret::Secret,
    store::{
        Engine,
        redis::{IndexPolicy, Settings, open},
    },
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{
    conformance::Harness,
    data::{DIMENSION, space},
};

/// How long a server may take to answer, or a condition to come true, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Starts the server and outlives it: when standard input closes, because the test process let go
/// of it or died, the server is killed. It runs in the background with its own log.
const SUPERVISOR: &str = include_str!("redis_supervisor.sh");

/// A running server.
pub(crate) struct RedisServer {
    port: u16,
    directory: TempDir,
    search: bool,
    args: Vec<String>,
    process: Mutex<Option<Process>>,
}

struct Process {
    supervisor: Child,
    server: u32,
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        // The supervisor ends as soon as its input does; a failure leaves nothing to do.
        let _ = self.supervisor.wait();
    }
}

impl RedisServer {
    /// A server with the search module.
    pub(crate) async fn start() -> Self {
        Self::launch(true, &[]).await
    }

    /// A server with further arguments, such as `["--maxmemory", "40mb"]`.
    pub(crate) async fn with_args(args: &[&str]) -> Self {
        Self::launch(true, args).await
    }

    /// A server without the search module.
    pub(crate) async fn without_search() -> Self {
        Self::launch(false, &[]).await
    }

    /// The server that tests of this process share; each uses namespaces of its own.
    pub(crate) async fn shared() -> Arc<Self> {
        static SHARED: OnceCell<Arc<RedisServer>> = OnceCell::const_new();
        SHARED.get_or_init(|| async { Arc::new(RedisServer::start().await) }).await.clone()
    }

    async fn launch(search: bool, args: &[&str]) -> Self {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        // Somebody else may take the port between finding and using it.
        for _ in 0..5 {
            let server = Self {
                port: free_port(),
                directory: TempDir::new().expect("a temporary directory can be made"),
                search,
                args: args.clone(),
                process: Mutex::default(),
            };
            if server.run().await {
                return server;
            }
        }
        panic!("no Redis server could be started in five attempts");
    }

    /// Starts the process on the server's port and directory; false if it ended at once.
    async fn run(&self) -> bool {
        let assets = assets();
        let mut command = Command::new("sh");
        command.arg("-c").arg(SUPERVISOR).arg("sh");
        command.arg(assets.join("lib/openssl")).arg(self.directory.path().join("log"));
        command.arg(assets.join("bin/redis-server"));
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(self.directory.path());
        if self.search {
            command.arg("--loadmodule").arg(assets.join("lib/redisearch.so"));
        }
        command.args(&self.args);
        let mut supervisor =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell can be started");
        let output = supervisor.stdout.take().expect("the output is piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("the shell tells the server's process id");
        let server = line.trim().parse().expect("a process id is a number");
        *self.process.lock() = Some(Process { supervisor, server });
        let ready = eventually("Redis answers", async || {
            let alive = Path::new(&format!("/proc/{server}/stat")).exists() && !is_zombie(server);
            if alive { self.answers(server).await.then_some(true) } else { Some(false) }
        });
        ready.await
    }

    /// Whether the process `server` answers on the port, and no other.
    async fn answers(&self, server: u32) -> bool {
        let Ok(mut client) = self.try_client().await else { return false };
        let info: Result<String, _> = redis::cmd("INFO").arg("server").query_async(&mut client).await;
        let pong: Result<String, _> = redis::cmd("PING").query_async(&mut client).await;
        pong.is_ok() && info.is_ok_and(|info| info.contains(&format!("process_id:{server}\r")))
    }

    /// Stops the server, keeping its data.
    pub(crate) async fn stop(&self) {
        let mut client = self.client().await;
        // The server closes the connection instead of replying.
        let _: Result<(), _> = redis::cmd("SHUTDOWN").arg("SAVE").query_async(&mut client).await;
        let process = self.process.lock().take();
        if let Some(process) = process {
            let ended = eventually("Redis shuts down", async || is_zombie_or_gone(process.server).then_some(()));
            ended.await;
        }
    }

    /// Starts the server again on the same port with the data it had.
    pub(crate) async fn start_again(&self) {
        assert!(self.run().await, "Redis starts again: {}", self.log());
    }

    /// Stops the server and starts it again with its data.
    pub(crate) async fn restart(&self) {
        self.stop().await;
        self.start_again().await;
    }

    /// Freezes the server: connections stay open and nothing answers.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets a frozen server go on.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let server = self.process.lock().as_ref().expect("the server runs").server;
        let status = Command::new("kill").arg(signal).arg(server.to_string()).status().expect("kill can be run");
        assert!(status.success(), "kill {signal} {server}");
    }

    /// A connection of the test's own.
    pub(crate) async fn client(&self) -> MultiplexedConnection {
        self.try_client().await.expect("the server accepts connections")
    }

    async fn try_client(&self) -> redis::RedisResult<MultiplexedConnection> {
        let client = redis::Client::open(format!("{}?protocol=resp3", self.url()))?;
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// What the server wrote to its log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Settings for this server, as a test wants them: patient, and quick to sweep.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            url: Secret::new(self.url()),
            index: IndexPolicy::Auto,
            flat_entries_max: 10_000,
            ef_runtime: 100,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
            search_timeout: Duration::from_secs(5),
            searches_in_flight_max: 4,
            searches_waiting_max: 1_000,
            sweep_keys_per_second: 100_000,
        }
    }

    /// An engine on this server.
    pub(crate) async fn engine(&self) -> Engine {
        self.engine_with(self.settings(), &Clock::system()).await
    }

    /// An engine on this server, as asked for.
    pub(crate) async fn engine_with(&self, settings: Settings, clock: &Clock) -> Engine {
        open(settings, (space(), DIMENSION), clock.clone()).await.expect("the engine opens")
    }

    /// What the tests of all engines need, on this server.
    pub(crate) async fn harness(self: Arc<Self>, settings: Settings) -> Harness {
        let clock = Clock::shifted();
        let engine = self.engine_with(settings.clone(), &clock).await;
        let (server, reopened) = (Arc::clone(&self), clock.clone());
        Harness::new(engine, clock, self).with_reopen(move || {
            let (server, settings, clock) = (Arc::clone(&server), settings.clone(), reopened.clone());
            Box::pin(async move { server.engine_with(settings, &clock).await })
        })
    }
}

/// The engine as the tests of all engines want it: on the shared server, at default settings.
pub(crate) async fn open_redis() -> Harness {
    let server = RedisServer::shared().await;
    let settings = server.settings();
    server.harness(settings).await
}

/// Asks again and again until there is an answer; fails after [`PATIENCE`].
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let asked = async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// Where the server's files are; a machine without them is told how to get them.
fn assets() -> PathBuf {
    let root = std::env::var_os("REFRAIN_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".refrain/assets"), PathBuf::from);
    let stack = root.join("redis-stack");
    assert!(
        stack.join("bin/redis-server").exists(),
        "there is no Redis server in {}: `make setup` installs it, and `make test` does so first",
        stack.display()
    );
    stack
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}

fn is_zombie(process: u32) -> bool {
    // The state stands behind the name, which is in parentheses.
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

fn is_zombie_or_gone(process: u32) -> bool {
    !Path::new(&format!("/proc/{process}")).exists() || is_zombie(process)
}
