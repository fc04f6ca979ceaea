//! How a session ended: the peer's doing, the path's, or the gateway's own.

use holdfast_wire::{close::CloseCode, transport};

/// Why a session is no more. The first reason stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The connection ended under it: closed by the supervisor, reset, timed out.
    #[error("{0}")]
    Connection(transport::Lost),
    /// The gateway ended it.
    #[error("ended by the gateway: {code} ({reason})")]
    Here {
        /// What the supervisor is told.
        code: CloseCode,
        /// The same, in a sentence.
        reason: String,
    },
}

impl Lost {
    /// The gateway's own decision.
    #[must_use]
    pub fn here(code: CloseCode, reason: impl Into<String>) -> Self {
        Self::Here { code, reason: reason.into() }
    }

    /// A word for a metric's label and for programs.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Connection(lost) => lost.label(),
            Self::Here { code, .. } => code.name().unwrap_or("OTHER_CODE"),
        }
    }

    /// The code that it was closed with, whoever closed it.
    #[must_use]
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Connection(lost) => lost.code(),
            Self::Here { code, .. } => Some(*code),
        }
    }
}

impl From<transport::Lost> for Lost {
    fn from(lost: transport::Lost) -> Self {
        Self::Connection(lost)
    }
}
