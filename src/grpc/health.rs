//! `grpc.health.v1`: NOT_SERVING until the model has answered and again before the server drains.
//!
//! Written here rather than taken from tonic-health, whose Watch streams never end and so hold a
//! stopping server open; the messages and the trait are tonic-health's.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

/// Says whether the server serves; clones share it.
#[derive(Clone, Debug)]
pub struct HealthReporter(watch::Sender<bool>);

impl HealthReporter {
    /// A reporter that says NOT_SERVING.
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Says from now on whether the server serves.
    pub fn set_serving(&self, serving: bool) {
        self.0.send_replace(serving);
    }
}

impl Default for HealthReporter {
    fn default() -> Self {
        Self::new()
    }
}

/// The health service.
#[derive(Debug)]
pub struct HealthApi {
    reporter: HealthReporter,
    services: &'static [&'static str],
    stop: CancellationToken,
}

impl HealthApi {
    /// Answers for the server as a whole (the empty name) and for each of `services`; watches end
    /// when `stop` is cancelled.
    pub fn new(reporter: HealthReporter, services: &'static [&'static str], stop: CancellationToken) -> Self {
        Self { reporter, services, stop }
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }
}

fn response(serving: bool) -> HealthCheckResponse {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthApi {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if self.knows(&request.get_ref().service) {
            Ok(Response::new(response(*self.reporter.0.borrow())))
        } else {
            Err(Status::not_found("unknown service"))
        }
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = self.knows(&request.get_ref().service);
        let updates = WatchStream::new(self.reporter.0.subscribe()).map(move |serving| {
            Ok(if known {
                response(serving)
            } else {
                HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() }
            })
        });
        let stop = self.stop.clone();
        Ok(Response::new(Box::pin(updates.take_until(async move { stop.cancelled().await }))))
    }
}
