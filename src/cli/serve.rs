//! `refrain serve`.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, SettingsArgs};
use crate::{app, clock::Clock, telemetry};

/// Run the sidecar until SIGTERM or SIGINT.
///
/// Settings come from the compiled-in defaults, a file, the environment and flags, each overruling
/// the one before; `refrain config dump` prints what is in force.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Where gRPC listens; shorthand of server.listen.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// A Unix socket for gRPC; shorthand of server.unix_socket.
    #[arg(long, value_name = "PATH")]
    unix_socket: Option<String>,
    /// Where metrics and health listen; shorthand of server.ops_listen.
    #[arg(long, value_name = "ADDRESS")]
    ops_listen: Option<String>,
}

pub(super) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let sources = args.settings.sources([
        ("server.listen", args.listen),
        ("server.unix_socket", args.unix_socket),
        ("server.ops_listen", args.ops_listen),
    ]);
    let config = super::load(&sources)?;
    telemetry::init_logs(&config.telemetry).map_err(Failure::Usage)?;
    let metrics = telemetry::init_metrics().map_err(Failure::failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;

    let running = tokio::select! {
        started = app::start(config, Clock::system(), Some(metrics)) => started.map_err(Failure::failed)?,
        // A signal while a model is being loaded ends the process at once: nothing is in flight.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let addresses = running.addresses();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        grpc = addresses.grpc.map(tracing::field::display),
        unix_socket = addresses.unix_socket.as_ref().map(|path| tracing::field::display(path.display())),
        ops = addresses.ops.map(tracing::field::display),
        "serving"
    );
    let stop = running.stop_token();
    let ended = running.wait();
    tokio::pin!(ended);
    tokio::select! {
        outcome = &mut ended => return outcome.map_err(Failure::failed),
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining; once more to end at once"),
    }
    stop.cancel();
    tokio::select! {
        outcome = &mut ended => outcome.map_err(Failure::failed),
        _ = interrupt.recv() => Err(Failure::Failed("interrupted while draining".into())),
    }
}
