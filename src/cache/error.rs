//! What the cache can answer instead of a result.

use std::time::Duration;

use crate::{
    embed,
    error::{Fault, Invalid, Kind},
    store,
    types::EntryId,
};

/// A failure of the cache.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value of the request cannot be taken.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No live entry has this id.
    #[error("no entry {0} is alive in this namespace")]
    UnknownEntry(EntryId),
    /// Nobody waits for the answer any more.
    #[error("the deadline passed before the cache could answer")]
    DeadlinePassed,
    /// The embedder failed or refused.
    #[error(transparent)]
    Embed(#[from] embed::Error),
    /// The engine failed or refused.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid(inner) => inner.kind(),
            Self::UnknownEntry(_) => Kind::NotFound,
            Self::DeadlinePassed => Kind::DeadlinePassed,
            Self::Embed(inner) => inner.kind(),
            Self::Store(inner) => inner.kind(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(inner) => inner.reason(),
            Self::UnknownEntry(_) => "ENTRY_NOT_FOUND",
            Self::DeadlinePassed => "DEADLINE_PASSED",
            Self::Embed(inner) => inner.reason(),
            Self::Store(inner) => inner.reason(),
        }
    }

    fn field(&self) -> Option<&str> {
        match self {
            Self::Invalid(inner) => inner.field(),
            Self::Embed(inner) => inner.field(),
            Self::Store(inner) => inner.field(),
            Self::UnknownEntry(_) => Some("entry_id"),
            Self::DeadlinePassed => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Embed(inner) => inner.retry_after(),
            Self::Store(inner) => inner.retry_after(),
            Self::Invalid(_) | Self::UnknownEntry(_) | Self::DeadlinePassed => None,
        }
    }
}
