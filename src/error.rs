//! What can go wrong, said once: a [`Kind`] that decides who must act, and a reason in
//! `UPPER_SNAKE` that programs match on.
//!
//! Each domain has an error enum of its own that implements [`Fault`]; the gRPC edge turns any of
//! them into a status with one function. Messages speak to the caller and say what to do next;
//! details for operators go to the log.

use std::{borrow::Cow, fmt, time::Duration};

/// Who must act on a failure; each kind is one gRPC status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is wrong: the caller mends it.
    InvalidInput,
    /// What was named does not exist.
    NotFound,
    /// Somebody else was first (version, fencing token): the caller reads again and retries.
    LostRace,
    /// The system is in a state that forbids the call (schema mismatch).
    WrongState,
    /// The caller used up its own quota.
    OverQuota,
    /// The server sheds load before doing any work: client libraries retry.
    Overloaded,
    /// A store is down and there is no honest answer without it.
    Unavailable,
    /// Nobody waits for the answer any more.
    DeadlinePassed,
    /// A bug of ours; the detail is in the log only.
    Bug,
}

/// What the edge needs to know about any domain error.
pub trait Fault: std::error::Error {
    /// Who must act.
    fn kind(&self) -> Kind;

    /// A stable reason in `UPPER_SNAKE`.
    fn reason(&self) -> &'static str;

    /// The request field to blame, for [`Kind::InvalidInput`].
    fn field(&self) -> Option<&str> {
        None
    }

    /// When a retry makes sense.
    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

/// A value that a caller sent and that cannot be taken: the field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    field: Cow<'static, str>,
    problem: Cow<'static, str>,
}

impl Invalid {
    /// Blames `field`; `problem` reads on from its name ("is empty", "has 3 bytes; ...").
    pub fn new(field: impl Into<Cow<'static, str>>, problem: impl Into<Cow<'static, str>>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The same problem inside a larger message, for example `requests[3].prompt`.
    #[must_use]
    pub fn within(self, parent: impl fmt::Display) -> Self {
        Self { field: format!("{parent}.{}", self.field).into(), problem: self.problem }
    }

    /// The field to blame.
    pub fn field_name(&self) -> &str {
        &self.field
    }

    /// What is wrong with it.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

impl std::error::Error for Invalid {}

impl Fault for Invalid {
    fn kind(&self) -> Kind {
        Kind::InvalidInput
    }

    fn reason(&self) -> &'static str {
        "INVALID_FIELD"
    }

    fn field(&self) -> Option<&str> {
        Some(&self.field)
    }
}
