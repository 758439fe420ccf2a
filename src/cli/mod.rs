//! The command line: one file a verb.
//!
//! Data goes to stdout, logs and errors to stderr. Verbs that talk to a sidecar do so over gRPC, as
//! any other client would.

mod cache;
mod client;
mod config;
mod doctor;
mod embed;
mod output;
mod serve;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Config, Sources};

const EXIT_CODES: &str = "Exit codes:
  0  done; for `cache lookup`: a hit
  1  it failed; stderr says why and what to do
  2  the command line or the settings are wrong
  3  for `cache lookup`: a miss
  4  the sidecar cannot be reached";

/// A sidecar for programs that call language models: a semantic cache with local embeddings.
#[derive(Debug, Parser)]
#[command(name = "refrain", version, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the sidecar.
    Serve(serve::ServeArgs),
    /// Ask and manage the semantic cache of a running sidecar.
    Cache(cache::CacheArgs),
    /// Turn texts into vectors with the model of a running sidecar.
    Embed(embed::EmbedArgs),
    /// Name each dependency, whether it works, and what to do if not.
    Doctor(doctor::DoctorArgs),
    /// Check and show the settings.
    Config(config::ConfigArgs),
}

/// Where settings come from; shared by the verbs that read them.
#[derive(Clone, Debug, Args)]
struct SettingsArgs {
    /// A settings file; by default $XDG_CONFIG_HOME/refrain/config.toml if it exists.
    #[arg(long, env = "REFRAIN_CONFIG", value_name = "PATH", global = true)]
    config: Option<PathBuf>,
    /// Set one setting, as section.key=value; stronger than files and the environment.
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    set: Vec<String>,
    /// `embedded` or `redis`; shorthand of store.engine.
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
    /// Where Redis is; shorthand of store.redis.url. A password is safer in the environment
    /// variable REFRAIN_STORE__REDIS__URL.
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
    /// Where the embedded engine keeps its files; shorthand of store.embedded.data_dir.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// The embedding model; shorthand of embedding.model.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

impl SettingsArgs {
    fn sources(&self, more: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Sources {
        let shorthands = [
            ("store.engine", &self.engine),
            ("store.redis.url", &self.redis_url),
            ("store.embedded.data_dir", &self.data_dir),
            ("embedding.model", &self.model),
        ];
        let shorthands = shorthands.map(|(key, value)| (key, value.clone()));
        let given = shorthands.into_iter().chain(more).filter_map(|(key, value)| Some(format!("{key}={}", value?)));
        // A shorthand and --set for one key: the explicit --set wins, so it comes last.
        Sources::from_process(self.config.clone(), given.chain(self.set.clone()).collect())
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs: one JSON document.
    Json,
}

/// How a verb ended short of success.
#[derive(Debug)]
enum Failure {
    /// Exit code 1.
    Failed(String),
    /// Exit code 2.
    Usage(String),
    /// Exit code 3.
    Miss,
    /// Exit code 4.
    Unreachable(String),
}

impl Failure {
    #[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err, which gives values")]
    fn failed(problem: impl ToString) -> Self {
        Self::Failed(problem.to_string())
    }
}

impl From<crate::config::Error> for Failure {
    fn from(error: crate::config::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => {
            eprintln!("error: the runtime cannot start: {problem}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.verb {
            Verb::Serve(args) => serve::run(args).await,
            Verb::Cache(args) => cache::run(args).await,
            Verb::Embed(args) => embed::run(args).await,
            Verb::Doctor(args) => doctor::run(args).await,
            Verb::Config(args) => config::run(&args),
        }
    });
    let (code, message) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(message)) => (1, message),
        Err(Failure::Usage(message)) => (2, message),
        Err(Failure::Miss) => return ExitCode::from(3),
        Err(Failure::Unreachable(message)) => (4, message),
    };
    eprintln!("error: {message}");
    ExitCode::from(code)
}

fn load(sources: &Sources) -> Result<Config, Failure> {
    Ok(Config::load(sources)?)
}
