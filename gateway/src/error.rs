//! What a caller is told when a call fails: a reason from the table, a sentence, and facts by key. The rooms
//! have errors of their own; this is where they meet the API, which only translates it into a gRPC status.

use std::{collections::BTreeMap, fmt, time::Duration};

pub use holdfast_wire::reason::{Reason, key};

/// A failed call.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// From the table of reasons.
    pub reason: Reason,
    /// What was attempted, what went wrong, and what to do.
    pub message: String,
    /// Facts for programs, by [`key`].
    pub metadata: BTreeMap<&'static str, String>,
    /// When it may work, where that is known.
    pub retry_after: Option<Duration>,
}

impl CallError {
    /// A failure with its reason and its sentence.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: BTreeMap::new(), retry_after: None }
    }

    /// A wrong field of a request.
    #[must_use]
    pub fn invalid(field: &str, message: impl fmt::Display) -> Self {
        Self::new(Reason::InvalidArgument, format!("{field}: {message}")).with(key::FIELD, field)
    }

    /// A fault of Holdfast's own. The cause belongs into the log; the caller gets what was attempted.
    #[must_use]
    pub fn internal(attempted: &str, cause: &dyn fmt::Display) -> Self {
        tracing::error!(%cause, "{attempted}");
        Self::new(Reason::Internal, format!("{attempted}: {cause}"))
    }

    /// With one more fact.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.metadata.insert(key, value.to_string());
        self
    }

    /// With a time to try again.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}
