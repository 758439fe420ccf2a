//! Connecting to a sidecar, and its refusals in words.

use std::time::Duration;

use clap::Args;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use super::{Failure, Output};

/// How long connecting may take before the sidecar counts as not reachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Which sidecar, which namespace, which output; shared by all verbs that call one.
#[derive(Clone, Debug, Args)]
pub(super) struct ClientArgs {
    /// The sidecar: http://host:port or unix:///path/to/socket.
    #[arg(long, env = "REFRAIN_ADDRESS", default_value = "http://127.0.0.1:7411", value_name = "URL", global = true)]
    pub(super) address: String,
    /// The namespace to work in.
    #[arg(long, short, env = "REFRAIN_NAMESPACE", default_value = "default", value_name = "NAME", global = true)]
    pub(super) namespace: String,
    /// How to print results.
    #[arg(long, short, value_enum, default_value = "table", global = true)]
    pub(super) output: Output,
    /// How long the call may take.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration, value_name = "DURATION", global = true)]
    pub(super) timeout: Duration,
}

impl ClientArgs {
    pub(super) async fn connect(&self) -> Result<Channel, Failure> {
        let endpoint = Endpoint::from_shared(self.address.clone())
            .map_err(|problem| Failure::Usage(format!("--address {}: {problem}", self.address)))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(self.timeout);
        endpoint.connect().await.map_err(|_| {
            Failure::Unreachable(format!(
                "no sidecar answers at {}; start one with `refrain serve`, or name another with --address",
                self.address
            ))
        })
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info();
        let reason = info.as_ref().map_or("", |info| info.reason.as_str());
        let message = match (reason, status.message()) {
            ("", message) => format!("{}: {message}", status.code().description()),
            (reason, message) => format!("{reason}: {message}"),
        };
        match status.code() {
            // Without details the answer came from the transport, not from a sidecar.
            Code::Unavailable if info.is_none() => Self::Unreachable(message),
            _ => Self::Failed(message),
        }
    }
}
