//! What an engine can answer instead of a result.

use std::time::Duration;

use crate::error::{Fault, Kind};

/// A failure of an engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store does not answer or refuses to serve for now.
    #[error("the {engine} store is not available: {problem}")]
    Unavailable {
        /// `embedded` or `redis`.
        engine: &'static str,
        /// What happened and what to do about it.
        problem: String,
    },
    /// Too many operations wait already; this one was refused before any work.
    #[error("the {engine} store is overloaded: {waiting} operations wait already")]
    Overloaded {
        /// `embedded` or `redis`.
        engine: &'static str,
        /// How many wait.
        waiting: usize,
    },
    /// The store ran out of time for the operation.
    #[error("the {engine} store ran out of time in {operation}")]
    Timeout {
        /// `embedded` or `redis`.
        engine: &'static str,
        /// The verb that was cut.
        operation: &'static str,
    },
    /// What stands in the store has another shape than this version or model expects.
    #[error("{what} does not fit: {difference}. {remedy}")]
    SchemaMismatch {
        /// The index, table or key.
        what: String,
        /// Expected against found.
        difference: String,
        /// What to do.
        remedy: String,
    },
    /// Another process has what only one may have.
    #[error("{what} is in use by {holder}. Stop it, or give this sidecar a data directory of its own")]
    InUse {
        /// The data directory.
        what: String,
        /// The process that has it.
        holder: String,
    },
    /// The store lacks something Refrain cannot do without, such as the search module.
    #[error("{what} is missing. {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The store holds bytes that this version cannot read.
    #[error("{what} cannot be read: {problem}")]
    Corrupt {
        /// The record.
        what: String,
        /// Why.
        problem: String,
    },
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Unavailable { .. } | Self::Timeout { .. } => Kind::Unavailable,
            Self::Overloaded { .. } => Kind::Overloaded,
            Self::SchemaMismatch { .. } | Self::InUse { .. } | Self::Missing { .. } => Kind::WrongState,
            Self::Corrupt { .. } => Kind::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "STORE_UNAVAILABLE",
            Self::Timeout { .. } => "STORE_TIMEOUT",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::SchemaMismatch { .. } => "SCHEMA_MISMATCH",
            Self::InUse { .. } => "STORE_IN_USE",
            Self::Missing { .. } => "STORE_INCOMPLETE",
            Self::Corrupt { .. } => "STORE_CORRUPT",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { .. } | Self::Timeout { .. } => Some(Duration::from_millis(500)),
            Self::Overloaded { .. } => Some(Duration::from_millis(50)),
            Self::SchemaMismatch { .. } | Self::InUse { .. } | Self::Missing { .. } | Self::Corrupt { .. } => None,
        }
    }
}
