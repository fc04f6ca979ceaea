//! How a command fails: what is said, and the exit code.

use std::{collections::BTreeMap, io};

use serde::Serialize;

use crate::{client, config::ConfigError, exit};

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The command line says something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// Time was up.
    #[error("{0}")]
    Timeout(String),
    /// Something on this machine.
    #[error("{attempted}: {cause}")]
    Local { attempted: String, cause: String },
    /// Several of the things asked for failed; each was told of already.
    #[error("told already")]
    Told(u8),
    /// Whoever read stdout went away: nothing more to say, and nobody to say it to.
    #[error("broken pipe")]
    BrokenPipe,
}

/// A failure as it is told.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) exit_code: u8,
}

impl Failed {
    pub(crate) fn local(attempted: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Local { attempted: attempted.into(), cause: cause.to_string() }
    }

    pub(crate) fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        Self::local("write to stdout", error)
    }

    pub(crate) fn render(error: impl std::fmt::Display) -> Self {
        Self::local("render the answer", error)
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Timeout(_) => exit::TIMED_OUT,
            Self::BrokenPipe => exit::BROKEN_PIPE,
            Self::Told(code) => *code,
            Self::Client(error) if error.reason() == Some(holdfast_wire::reason::Reason::WaitTimeout) => {
                exit::TIMED_OUT
            }
            Self::Client(_) | Self::Config(_) | Self::Local { .. } => exit::OURS,
        }
    }

    /// What is said; `None` for silence.
    pub(crate) fn report(&self) -> Option<Report> {
        let mut report = Report {
            code: "FAILED_PRECONDITION",
            reason: None,
            message: self.to_string(),
            hint: None,
            metadata: BTreeMap::new(),
            exit_code: self.exit_code(),
        };
        match self {
            Self::Told(_) | Self::BrokenPipe => return None,
            Self::Client(error) => {
                report.code = error.code();
                report.hint = error.hint();
                if let Some(refusal) = error.refusal() {
                    report.reason.clone_from(&refusal.reason);
                    report.metadata.clone_from(&refusal.metadata);
                }
            }
            Self::Usage(_) => report.code = "INVALID_ARGUMENT",
            Self::Timeout(_) => report.code = "DEADLINE_EXCEEDED",
            Self::Config(_) => {}
            Self::Local { .. } => report.code = "INTERNAL",
        }
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::client::Refusal;

    #[test]
    fn a_refusal_is_told_with_reason_and_details() {
        let refusal = Refusal {
            code: Code::NotFound,
            reason: Some("SANDBOX_NOT_FOUND".into()),
            message: "no sandbox \"box\"".into(),
            metadata: [("sandbox_id".to_owned(), "box".to_owned())].into(),
        };
        let error = client::Error::Refused { what: "get box".into(), refusal: Box::new(refusal) };
        let report = Failed::from(error).report().unwrap();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["reason"], "SANDBOX_NOT_FOUND");
        assert_eq!(json["code"], "NOT_FOUND");
        assert_eq!(json["exit_code"], 125);
        assert_eq!(json["metadata"]["sandbox_id"], "box");
    }

    #[test]
    fn a_reader_that_left_hears_nothing() {
        let gone = Failed::stdout(io::ErrorKind::BrokenPipe.into());
        assert!(gone.report().is_none());
        assert_eq!(gone.exit_code(), 141);
    }
}
