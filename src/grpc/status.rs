//! The one function that turns a domain error into a gRPC status with details.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    error::{Fault, Kind},
    grpc::pb,
};

/// The domain of every ErrorInfo.
const DOMAIN: &str = "refrain";

/// The status code of a kind: chosen by who must act.
pub(super) fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidInput => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::LostRace => Code::Aborted,
        Kind::WrongState => Code::FailedPrecondition,
        Kind::OverQuota => Code::ResourceExhausted,
        Kind::Overloaded | Kind::Unavailable => Code::Unavailable,
        Kind::DeadlinePassed => Code::DeadlineExceeded,
        Kind::Bug => Code::Internal,
    }
}

/// The status of a domain error.
pub(super) fn status(fault: &impl Fault) -> Status {
    let kind = fault.kind();
    let message = if kind == Kind::Bug {
        // What went wrong inside is for us to read, not for the caller.
        tracing::error!(reason = fault.reason(), error = %fault, "internal error");
        "an internal error; the server's log has the detail".to_owned()
    } else {
        fault.to_string()
    };
    let mut details = ErrorDetails::new();
    details.set_error_info(fault.reason(), DOMAIN, HashMap::new());
    match kind {
        Kind::InvalidInput => {
            if let Some(field) = fault.field() {
                details.add_bad_request_violation(field, &message);
            }
        }
        Kind::WrongState => {
            details.add_precondition_failure_violation(fault.reason(), DOMAIN, &message);
        }
        Kind::OverQuota => {
            details.add_quota_failure_violation(fault.field().unwrap_or(DOMAIN), &message);
        }
        Kind::NotFound | Kind::LostRace | Kind::Overloaded | Kind::Unavailable | Kind::DeadlinePassed | Kind::Bug => {}
    }
    if let Some(delay) = fault.retry_after() {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code(kind), message, details)
}

/// A status that the edge itself raises, before any domain is asked.
pub(super) fn edge_status(code: Code, reason: &str, message: &str, retry_after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, HashMap::new());
    if let Some(delay) = retry_after {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, message, details)
}

/// The same account inside a batch, where one item fails alone.
pub(super) fn item_error(fault: &impl Fault) -> pb::ItemError {
    let status = status(fault);
    pb::ItemError {
        code: status.code().into(),
        reason: fault.reason().to_owned(),
        message: status.message().to_owned(),
        field: fault.field().unwrap_or_default().to_owned(),
    }
}
