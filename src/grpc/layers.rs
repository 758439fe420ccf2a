//! What every call passes through before its service: one layer, in this order.
//!
//! 1. Admission: more calls in flight than the limit are refused at once with UNAVAILABLE and a
//!    retry hint, which client libraries retry by themselves. Health checks are always admitted.
//! 2. The deadline: the caller's `grpc-timeout`, cut to the longest that is honoured, or the
//!    default. It travels in the request's extensions, so that queues and stores see what is left.
//! 3. A panic becomes INTERNAL for this call alone.
//! 4. Metrics: calls by code, time, calls in flight.

use std::{
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use metrics::{counter, gauge, histogram};
use tokio::sync::Notify;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::status::edge_status;
use crate::{clock::Clock, telemetry::names, types::Deadline};

/// Part of a deadline that is kept for carrying the answer: the transport would otherwise win the
/// race and report CANCELLED.
const REPLY_MARGIN: Duration = Duration::from_millis(5);
/// When a refused caller may come again.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// The one call that is never refused: it costs nothing, and orchestrators end what does not answer it.
const HEALTH_CHECK: &str = "grpc.health.v1.Health/Check";

/// What the edge allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct EdgeLimits {
    pub(super) in_flight_max: usize,
    pub(super) deadline_default: Duration,
    pub(super) deadline_max: Duration,
}

/// Calls being worked on, so that a stopping server knows when it may go.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight(Arc<InFlightInner>);

#[derive(Debug, Default)]
struct InFlightInner {
    calls: AtomicUsize,
    idle: Notify,
}

impl InFlight {
    fn enter(&self, max: usize) -> Option<InFlightGuard> {
        let before = self.0.calls.fetch_add(1, Ordering::SeqCst);
        // The guard exists from here on, so that a refused call is counted out again.
        let guard = InFlightGuard(Arc::clone(&self.0));
        gauge!(names::RPC_IN_FLIGHT).increment(1.0);
        (before < max).then_some(guard)
    }

    /// Waits until no call is being worked on.
    pub(super) async fn idle(&self) {
        loop {
            let notified = self.0.idle.notified();
            if self.0.calls.load(Ordering::SeqCst) == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One call being worked on; it ends with the last byte of the response.
struct InFlightGuard(Arc<InFlightInner>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        gauge!(names::RPC_IN_FLIGHT).decrement(1.0);
        if self.0.calls.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Makes [`Edge`] services.
#[derive(Clone)]
pub(super) struct EdgeLayer {
    pub(super) limits: EdgeLimits,
    pub(super) in_flight: InFlight,
    pub(super) clock: Clock,
}

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge { inner, edge: self.clone() }
    }
}

/// A service behind the edge.
#[derive(Clone)]
pub(super) struct Edge<S> {
    inner: S,
    edge: EdgeLayer,
}

impl<S> Service<Request<Body>> for Edge<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let EdgeLayer { limits, in_flight, clock } = &self.edge;
        let path = known_path(request.uri().path());
        // Whoever asks after the server's health must not take a busy one for a sick one.
        let max = if path == HEALTH_CHECK { usize::MAX } else { limits.in_flight_max };
        let Some(guard) = in_flight.enter(max) else {
            counter!(names::RPC_SHED).increment(1);
            let message = "too many calls are in flight (server.requests_in_flight_max); try again shortly";
            return std::future::ready(Ok(reply(
                &path,
                edge_status(Code::Unavailable, "OVERLOADED", message, Some(RETRY_AFTER)),
            )))
            .boxed();
        };
        let budget = budget(request.headers(), limits);
        let begun = clock.instant();
        let clock = clock.clone();
        request.extensions_mut().insert(Deadline::at(begun + budget));
        let answered = call_within(self.inner.call(request), budget);
        async move {
            let response = match answered.await {
                Ok(response) => response,
                Err(status) => status.into_http(),
            };
            counter!(names::RPC_CALLS, "rpc" => path.clone(), "code" => code_of(&response)).increment(1);
            histogram!(names::RPC_SECONDS, "rpc" => path).record((clock.instant() - begun).as_secs_f64());
            Ok(response.map(|body| Body::new(GuardedBody { body, _guard: guard })))
        }
        .boxed()
    }
}

/// Runs a call within its budget; a late one and a panicking one become a status.
async fn call_within(
    call: impl Future<Output = Result<Response<Body>, Infallible>>,
    budget: Duration,
) -> Result<Response<Body>, Status> {
    match tokio::time::timeout(budget, AssertUnwindSafe(call).catch_unwind()).await {
        Ok(Ok(Ok(response))) => Ok(response),
        Ok(Err(_panic)) => {
            tracing::error!("a call panicked; the panic's own message stands above");
            Err(edge_status(Code::Internal, "INTERNAL", "an internal error; the server's log has the detail", None))
        }
        Err(_elapsed) => Err(edge_status(
            Code::DeadlineExceeded,
            "DEADLINE_PASSED",
            "the deadline passed before the answer was ready",
            None,
        )),
    }
}

fn reply(path: &str, status: Status) -> Response<Body> {
    let response = status.into_http();
    counter!(names::RPC_CALLS, "rpc" => path.to_owned(), "code" => code_of(&response)).increment(1);
    response
}

/// The path as a label: anyone may send any path, and labels must not grow without bound.
fn known_path(path: &str) -> String {
    let known = ["/refrain.v1.", "/grpc.health.v1.", "/grpc.reflection."];
    if known.iter().any(|prefix| path.starts_with(prefix)) && path.len() < 100 && is_registered(path) {
        path.trim_start_matches('/').to_owned()
    } else {
        "other".to_owned()
    }
}

fn is_registered(path: &str) -> bool {
    super::server::RPCS.contains(&path)
}

fn code_of(response: &Response<Body>) -> String {
    // A response without the header ends with trailers; those of unary calls that reached their
    // service successfully say OK.
    let code = response.headers().get("grpc-status").and_then(|value| value.to_str().ok()).and_then(|v| v.parse().ok());
    format!("{:?}", Code::from_i32(code.unwrap_or(0)))
}

/// What a call may take, less the margin for the answer.
fn budget(headers: &HeaderMap, limits: &EdgeLimits) -> Duration {
    let asked = headers.get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    let budget = asked.unwrap_or(limits.deadline_default).min(limits.deadline_max);
    if asked.is_some() { budget.saturating_sub(REPLY_MARGIN.min(budget / 10)) } else { budget }
}

/// `grpc-timeout` is up to eight digits and a unit, as the gRPC specification says.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// A response body that keeps its call counted until it was sent.
struct GuardedBody {
    body: Body,
    _guard: InFlightGuard,
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: EdgeLimits = EdgeLimits {
        in_flight_max: 1,
        deadline_default: Duration::from_secs(10),
        deadline_max: Duration::from_mins(1),
    };

    fn check(header: Option<&str>, expect: Duration) {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert("grpc-timeout", header.parse().unwrap());
        }
        assert_eq!(budget(&headers, &LIMITS), expect, "{header:?}");
    }

    #[test]
    fn a_budget_is_the_callers_within_bounds_less_the_margin() {
        check(None, Duration::from_secs(10));
        check(Some("1S"), Duration::from_millis(995));
        check(Some("20m"), Duration::from_millis(18));
        check(Some("2H"), Duration::from_millis(59_995));
        for malformed in ["", "S", "1", "123456789S", "1x", "-1S", "é"] {
            if let Ok(value) = malformed.parse::<http::HeaderValue>()
                && let Ok(text) = value.to_str()
            {
                assert_eq!(parse_timeout(text), None, "{malformed:?}");
            }
        }
    }

    #[test]
    fn unknown_paths_share_one_label() {
        assert_eq!(known_path("/refrain.v1.CacheService/Lookup"), "refrain.v1.CacheService/Lookup");
        assert_eq!(known_path("/refrain.v1.CacheService/Nonsense"), "other");
        assert_eq!(known_path("/"), "other");
    }
}
