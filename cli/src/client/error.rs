//! What goes wrong for a caller: what was attempted, where, why, and what to do.

use std::{collections::BTreeMap, error::Error as _, time::Duration};

use holdfast_wire::{ids::ExecId, reason::Reason};
use rustls::AlertDescription;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::resume::Violation;
use crate::profile::ProfileError;

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client profile or one of its files.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// What the profile's files hold is no use for TLS.
    #[error("cannot set up TLS for {address}: {cause}")]
    Tls {
        /// The gateway's address.
        address: String,
        /// What is wrong.
        cause: String,
    },
    /// No connection to the gateway.
    #[error("cannot reach the gateway at {address}: {cause}")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        cause: String,
        /// Nobody listens there.
        refused: bool,
    },
    /// The gateway's certificate is not taken here, or this program's not there.
    #[error("TLS with the gateway at {address}: {cause}")]
    Distrust {
        /// Where.
        address: String,
        /// Which certificate, and what is wrong with it.
        cause: String,
    },
    /// The gateway (or what is behind it) said no. Boxed: it is larger than the rest.
    #[error("{what}: {refusal}")]
    Refused {
        /// What was attempted.
        what: String,
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The connection to the gateway was lost during the call.
    #[error("{what}: the connection to the gateway at {address} was lost: {cause}")]
    Broken {
        /// What was attempted.
        what: String,
        /// Where.
        address: String,
        /// How it broke.
        cause: String,
    },
    /// No answer in time.
    #[error("{what}: no answer within {after:?}")]
    NoAnswer {
        /// What was attempted.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// A name for an exec that fits none, or several.
    #[error("{0}")]
    NoSuchExec(String),
    /// The peer broke the contract of an attached exec.
    #[error("exec {exec_id}: the gateway's stream cannot be right: {violation}")]
    Violation {
        /// Of which exec.
        exec_id: ExecId,
        /// How.
        violation: Violation,
    },
    /// An attached exec could not be attached again in the time given. It may run on.
    #[error(
        "exec {exec_id}: could not attach again within {after:?} ({cause}); the command may still run and its result is kept"
    )]
    GaveUp {
        /// Which exec.
        exec_id: ExecId,
        /// How long was tried.
        after: Duration,
        /// The last failure.
        cause: String,
    },
    /// A transfer of files could not be continued in the time given.
    #[error("the transfer could not be continued within {after:?}: {cause}")]
    TransferLost {
        /// How long was tried.
        after: Duration,
        /// The last failure.
        cause: String,
    },
    /// This program was told to stop.
    #[error("interrupted: what was not complete is removed")]
    Interrupted,
    /// The session's task ended without a word.
    #[error("exec {0}: a fault in this program ended its stream")]
    Internal(ExecId),
}

/// A gRPC error with Holdfast's details.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// The word from the table of reasons, as it came: newer gateways have more of them.
    pub reason: Option<String>,
    /// For people.
    pub message: String,
    /// Details, by the keys of [`holdfast_wire::reason::key`].
    pub metadata: BTreeMap<String, String>,
}

impl Refusal {
    /// The reason, if this version knows it.
    #[must_use]
    pub fn known_reason(&self) -> Option<Reason> {
        self.reason.as_deref().and_then(Reason::parse)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.message.is_empty() { write!(f, "{}", self.code) } else { f.write_str(&self.message) }?;
        match &self.reason {
            Some(reason) => write!(f, " [{reason}]"),
            None => write!(f, " [{}]", code_name(self.code)),
        }
    }
}

/// What became of a call, as far as the transport can tell.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The request never left: there was no connection.
    Connect { cause: String, refused: bool },
    /// One side does not take the other's certificate: no later try does better.
    Distrust(String),
    /// The connection broke under the call.
    Broken(String),
    /// The other side answered.
    Refused(Box<Refusal>),
}

impl Failure {
    /// Tells an answer from a broken connection: only an answer carries the gateway's `ErrorInfo`, or comes
    /// without an error of the transport beneath it.
    pub(crate) fn of(status: &Status) -> Self {
        let (mut connecting, mut refused, mut innermost) = (false, false, None);
        let mut next = status.source();
        while let Some(error) = next {
            if is_distrust(error) {
                return Self::Distrust(error.to_string());
            }
            connecting |= error.is::<tonic::ConnectError>();
            refused |= error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
            // The innermost cause is the one worth reading: "Connection refused", "certificate expired".
            innermost = Some(error.to_string());
            next = error.source();
        }
        if connecting {
            return Self::Connect { refused, cause: innermost.unwrap_or_default() };
        }
        let info = status.get_details_error_info();
        if info.is_none()
            && (status.source().is_some()
                || matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled))
        {
            return Self::Broken(innermost.unwrap_or_else(|| status.message().to_owned()));
        }
        let (reason, metadata) = info
            .map_or((None, BTreeMap::new()), |info| (Some(info.reason), info.metadata.into_iter().collect()));
        Self::Refused(Box::new(Refusal {
            code: status.code(),
            reason: reason.filter(|reason| !reason.is_empty()),
            message: status.message().to_owned(),
            metadata,
        }))
    }

    pub(crate) fn into_error(self, what: &str, address: &str) -> Error {
        let (what, address) = (what.to_owned(), address.to_owned());
        match self {
            Self::Connect { cause, refused } => Error::Connect { address, cause, refused },
            Self::Distrust(cause) => Error::Distrust { address, cause },
            Self::Broken(cause) => Error::Broken { what, address, cause },
            Self::Refused(refusal) => Error::Refused { what, refusal },
        }
    }
}

/// What one side says that does not take the other's certificate. (RFC 8446, section 6.2.)
const DISTRUST: [AlertDescription; 8] = [
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateUnknown,
    AlertDescription::CertificateRequired,
    AlertDescription::UnknownCA,
    AlertDescription::AccessDenied,
];

/// Whether this link of the chain says so. An I/O error hides rustls' from `source`; HTTP/2 keeps but its text.
fn is_distrust(error: &(dyn std::error::Error + 'static)) -> bool {
    let Some(io) = error.downcast_ref::<std::io::Error>() else { return false };
    if io.kind() != std::io::ErrorKind::InvalidData {
        return false;
    }
    if let Some(rustls::Error::InvalidCertificate(_)) = io.get_ref().and_then(|inner| inner.downcast_ref()) {
        return true;
    }
    let text = io.to_string();
    DISTRUST.iter().any(|alert| text == rustls::Error::AlertReceived(*alert).to_string())
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect { cause, .. } => write!(f, "the gateway cannot be reached: {cause}"),
            Self::Distrust(cause) => {
                write!(f, "the gateway and this program do not trust each other: {cause}")
            }
            Self::Broken(cause) => write!(f, "the connection to the gateway was lost: {cause}"),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl Error {
    /// The same call may succeed a little later, and was not refused for a reason of its own.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Broken { .. } | Self::NoAnswer { .. } => true,
            Self::Refused { refusal, .. } => matches!(refusal.code, Code::Unavailable | Code::Aborted),
            _ => false,
        }
    }

    /// The answer, where there was one.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }

    /// The gateway's reason, where it gave one that is known.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.refusal().and_then(Refusal::known_reason)
    }

    /// The gRPC code's name, or what stands in for it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused { refusal, .. } => code_name(refusal.code),
            Self::Connect { .. } | Self::Broken { .. } | Self::GaveUp { .. } | Self::TransferLost { .. } => {
                "UNAVAILABLE"
            }
            Self::Interrupted => "CANCELLED",
            Self::NoAnswer { .. } => "DEADLINE_EXCEEDED",
            Self::Profile(_) | Self::Tls { .. } | Self::Distrust { .. } => "FAILED_PRECONDITION",
            Self::NoSuchExec(_) => "NOT_FOUND",
            Self::Violation { .. } | Self::Internal(_) => "INTERNAL",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Connect { refused: true, address, .. } => format!(
                "nothing listens at {address}: start a gateway with `holdfast gateway`, or name another one's profile by --profile or HOLDFAST_PROFILE"
            ),
            Self::Connect { address, .. } => {
                format!("is {address} right, and is the gateway's certificate from the profile's ca?")
            }
            Self::Distrust { .. } => {
                "the profile's ca, cert and key must be of this gateway and in date: it writes a new client.toml with each start".to_owned()
            }
            Self::GaveUp { exec_id, .. } => format!("attach again with `holdfast attach SANDBOX {exec_id}`"),
            Self::Refused { refusal, .. } => match refusal.known_reason()? {
                Reason::SandboxNotFound => "`holdfast list` shows the sandboxes".to_owned(),
                Reason::ExecNotFound => "`holdfast execs SANDBOX` shows the execs that are kept".to_owned(),
                Reason::SandboxExists => "choose another name, or delete that sandbox first".to_owned(),
                Reason::NoSession => "`holdfast get SANDBOX -o wide` shows its conditions, `holdfast logs SANDBOX` its console; --start-deadline waits longer".to_owned(),
                Reason::StartUnknown => "the same --exec-id may be given again: the command is not run twice".to_owned(),
                Reason::NoSpace => "make room where it was to be written; what was complete before is there".to_owned(),
                Reason::FileDenied => "--user names another user of the sandbox".to_owned(),
                Reason::WrongPhase => "`holdfast get SANDBOX` shows its phase; `holdfast start` or `holdfast resume` may bring it back".to_owned(),
                Reason::Unauthenticated => "the profile's certificate or token is not accepted: copy a fresh one from the gateway".to_owned(),
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// A gRPC code as it is written in its specification.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn an_answer_keeps_its_reason() {
        let details =
            ErrorDetails::with_error_info("NO_SESSION", "holdfast", [("phase".into(), "Pending".into())]);
        let status = Status::with_error_details(Code::Unavailable, "no session", details);
        let Failure::Refused(refusal) = Failure::of(&status) else { panic!("an answer") };
        assert_eq!(refusal.known_reason(), Some(Reason::NoSession));
        assert_eq!(refusal.metadata["phase"], "Pending");
        assert_eq!(refusal.to_string(), "no session [NO_SESSION]");
    }

    #[test]
    fn unavailable_without_details_is_a_broken_connection() {
        assert!(matches!(Failure::of(&Status::unavailable("proxy says no")), Failure::Broken(_)));
        assert!(matches!(Failure::of(&Status::not_found("nothing")), Failure::Refused(_)));
    }

    #[test]
    fn a_refused_connection_says_how_to_start_a_gateway() {
        let failure = Failure::Connect { cause: "Connection refused (os error 111)".into(), refused: true };
        let error = failure.into_error("list sandboxes", "127.0.0.1:7443");
        assert!(error.to_string().contains("127.0.0.1:7443"));
        assert!(error.hint().unwrap().contains("holdfast gateway"));
    }
}
