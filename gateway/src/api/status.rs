//! Errors on the wire: a [`CallError`] becomes a gRPC status with `google.rpc.ErrorInfo` (and `RetryInfo`).

use std::collections::HashMap;

use holdfast_wire::reason::{DOMAIN, Reason};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::CallError;

/// gRPC metadata travels as one header list that clients bound (8 to 16 KiB by default): a message longer than
/// this would lose the whole status.
const MAX_MESSAGE: usize = 2048;

/// The gRPC code of a reason: says whether a repeat can help, and nothing more.
#[must_use]
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::SessionLost
        | Reason::NoSession
        | Reason::GatewayStopping
        | Reason::RelayDeadline
        | Reason::StartUnknown
        | Reason::DriverFailed => Code::Unavailable,
        Reason::SandboxNotFound | Reason::ExecNotFound | Reason::FileNotFound | Reason::TransferGone => {
            Code::NotFound
        }
        Reason::SandboxExists | Reason::ExecIdConflict | Reason::FileExists => Code::AlreadyExists,
        Reason::WrongPhase
        | Reason::ExecEnded
        | Reason::UnsupportedByDriver
        | Reason::UnsupportedBySupervisor
        | Reason::FileWrongKind
        | Reason::FileFailed => Code::FailedPrecondition,
        Reason::OutputGone | Reason::DigestMismatch => Code::DataLoss,
        Reason::InvalidArgument | Reason::PathEscapes => Code::InvalidArgument,
        Reason::LimitReached | Reason::NoSpace => Code::ResourceExhausted,
        Reason::Unauthenticated => Code::Unauthenticated,
        Reason::Forbidden | Reason::FileDenied => Code::PermissionDenied,
        Reason::WaitTimeout => Code::DeadlineExceeded,
        Reason::StreamProtocol | Reason::Conflict => Code::Aborted,
        Reason::Internal => Code::Internal,
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let CallError { reason, mut message, metadata, retry_after } = error;
        if message.len() > MAX_MESSAGE {
            let mut end = MAX_MESSAGE;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push('…');
        }
        let metadata: HashMap<String, String> =
            metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata);
        if let Some(delay) = retry_after {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(code(reason), message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::reason::key;

    #[test]
    fn a_program_finds_reason_and_facts() {
        let error = CallError::new(Reason::SessionLost, "the session was lost").with(key::STDOUT_OFFSET, 42);
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Unavailable);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("SESSION_LOST", DOMAIN));
        assert_eq!(info.metadata[key::STDOUT_OFFSET], "42");
    }

    #[test]
    fn a_long_message_is_cut_and_the_details_survive() {
        let status = Status::from(CallError::new(Reason::Internal, "ü".repeat(100_000)));
        assert!(status.message().len() <= MAX_MESSAGE + '…'.len_utf8());
        assert!(status.get_details_error_info().is_some());
    }
}
