//! What can go wrong with a workload: what was attempted, and why it did not work.

use std::{io, sync::Arc};

use holdfast_wire::ids::SandboxId;

use crate::Verb;

/// What lies under a [`DriverError`]. Shared, so that one failure can be told to many callers.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why a verb was not done.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// This driver never can, on this machine; [`Capabilities`](crate::Capabilities) says so beforehand.
    #[error("the {driver} driver does not support {verb}")]
    Unsupported {
        /// The driver's name.
        driver: &'static str,
        /// What was asked of it.
        verb: Verb,
    },
    /// The spec cannot be made as it is. Asking again with the same spec is useless.
    #[error("invalid workload spec: {field}: {message}")]
    InvalidSpec {
        /// The field's path, such as `env.PATH` or `bootstrap.addresses`.
        field: String,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// The driver has no workload for this sandbox.
    #[error("{verb}: there is no workload for sandbox {sandbox}")]
    NotFound {
        /// What was attempted.
        verb: Verb,
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// The workload is not in a state in which this can be done.
    #[error("{attempted}: {message}")]
    Conflict {
        /// What was attempted.
        attempted: String,
        /// What stands in the way.
        message: String,
    },
    /// Not now: the outside system does not answer, or the driver is closed. It may work later, unchanged.
    #[error("{attempted}: not available: {source}")]
    Unavailable {
        /// What was attempted.
        attempted: String,
        /// Why.
        source: Cause,
    },
    /// The machine is out of something: space, descriptors, processes. It may work later, unchanged.
    #[error("{attempted}: out of resources: {source}")]
    ResourceExhausted {
        /// What was attempted.
        attempted: String,
        /// Of what.
        source: Cause,
    },
    /// The image is not there, and could not be had.
    #[error("image {image}: it is not there, and {message}")]
    Image {
        /// Which.
        image: String,
        /// What was tried, and what would help.
        message: String,
    },
    /// Everything else. Asking again is unlikely to help; a person should look.
    #[error("{attempted}: {source}")]
    Internal {
        /// What was attempted.
        attempted: String,
        /// Why.
        source: Cause,
    },
}

/// The sort of a [`DriverError`], for deciding what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// See [`DriverError::Unsupported`].
    Unsupported,
    /// See [`DriverError::InvalidSpec`].
    InvalidSpec,
    /// See [`DriverError::NotFound`].
    NotFound,
    /// See [`DriverError::Conflict`].
    Conflict,
    /// See [`DriverError::Unavailable`].
    Unavailable,
    /// See [`DriverError::ResourceExhausted`].
    ResourceExhausted,
    /// See [`DriverError::Image`].
    Image,
    /// See [`DriverError::Internal`].
    Internal,
}

impl DriverError {
    /// The sort of error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::InvalidSpec { .. } => ErrorKind::InvalidSpec,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::ResourceExhausted { .. } => ErrorKind::ResourceExhausted,
            Self::Image { .. } => ErrorKind::Image,
            Self::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// Whether the same call may work later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unavailable | ErrorKind::ResourceExhausted)
    }

    /// A spec that cannot be made.
    #[must_use]
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::InvalidSpec { field: field.into(), message: message.into() }
    }

    /// A workload in the wrong state.
    #[must_use]
    pub fn conflict(attempted: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Conflict { attempted: attempted.into(), message: message.into() }
    }

    /// Something that may work later.
    #[must_use]
    pub fn unavailable(
        attempted: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Unavailable { attempted: attempted.into(), source: Arc::from(source.into()) }
    }

    /// Something that nobody foresaw.
    #[must_use]
    pub fn internal(
        attempted: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Internal { attempted: attempted.into(), source: Arc::from(source.into()) }
    }

    /// What the operating system said, sorted by whether waiting may help.
    #[must_use]
    pub fn io(attempted: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (attempted, source) = (attempted.into(), source.into());
        let exhausted = matches!(
            source.kind(),
            io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::OutOfMemory
                // EAGAIN: of a spawn, the limit of processes.
                | io::ErrorKind::WouldBlock
        ) || source.raw_os_error().is_some_and(|code| {
            code == rustix::io::Errno::MFILE.raw_os_error() || code == rustix::io::Errno::NFILE.raw_os_error()
        });
        let source: Cause = Arc::new(source);
        if exhausted {
            Self::ResourceExhausted { attempted, source }
        } else {
            Self::Internal { attempted, source }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_retryable() {
        assert!(DriverError::unavailable("asking the engine", "connection refused").is_retryable());
        assert!(DriverError::io("writing", rustix::io::Errno::NOSPC).is_retryable());
        assert!(DriverError::io("opening", rustix::io::Errno::MFILE).is_retryable());
        assert!(!DriverError::io("opening", rustix::io::Errno::ACCESS).is_retryable());
        assert!(!DriverError::invalid("name", "is empty").is_retryable());
        assert!(!DriverError::Unsupported { driver: "kubernetes", verb: Verb::Pause }.is_retryable());
    }

    #[test]
    fn an_error_says_what_was_attempted_and_why() {
        let error = DriverError::io("writing /data/workload.json", rustix::io::Errno::ACCESS);
        assert!(error.to_string().starts_with("writing /data/workload.json: Permission denied"), "{error}");
        let error = DriverError::Unsupported { driver: "kubernetes", verb: Verb::Pause };
        assert_eq!(error.to_string(), "the kubernetes driver does not support pause");
    }
}
