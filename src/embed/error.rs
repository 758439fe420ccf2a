//! Why a text was not embedded.

use std::{sync::Arc, time::Duration};

use super::model::ModelError;
use crate::error::{Fault, Invalid, Kind};

/// A failure to embed. Cloned to everyone who waited for the same text.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Too much waits already; refused before any work.
    #[error("too many texts wait to be embedded ({waiting_tokens} tokens in this lane); try again later")]
    Overloaded {
        /// Tokens that wait in the lane.
        waiting_tokens: usize,
        /// When a retry makes sense.
        retry_after: Duration,
    },
    /// The caller's time ran out before the text was embedded.
    #[error("the deadline passed before the text was embedded")]
    DeadlinePassed,
    /// The model cannot be opened or failed on this text or on one embedded with it.
    #[error("the text could not be embedded")]
    Model(#[source] Arc<ModelError>),
    /// The text cannot be taken.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The embedder is shutting down.
    #[error("the embedder is shutting down; another replica may answer")]
    Closed,
}

impl From<ModelError> for Error {
    fn from(error: ModelError) -> Self {
        Self::Model(Arc::new(error))
    }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Overloaded { .. } => Kind::Overloaded,
            Self::DeadlinePassed => Kind::DeadlinePassed,
            Self::Model(error) => match **error {
                ModelError::Asset { .. } => Kind::WrongState,
                ModelError::Inference(_) => Kind::Bug,
            },
            Self::Invalid(_) => Kind::InvalidInput,
            Self::Closed => Kind::Unavailable,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Overloaded { .. } => "OVERLOADED",
            Self::DeadlinePassed => "DEADLINE_PASSED",
            Self::Model(error) => match **error {
                ModelError::Asset { .. } => "MODEL_UNUSABLE",
                ModelError::Inference(_) => "INFERENCE_FAILED",
            },
            Self::Invalid(invalid) => invalid.reason(),
            Self::Closed => "SHUTTING_DOWN",
        }
    }

    fn field(&self) -> Option<&str> {
        match self {
            Self::Invalid(invalid) => invalid.field(),
            Self::Overloaded { .. } | Self::DeadlinePassed | Self::Model(_) | Self::Closed => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. } => Some(*retry_after),
            Self::Closed => Some(Duration::from_millis(500)),
            Self::DeadlinePassed | Self::Model(_) | Self::Invalid(_) => None,
        }
    }
}
