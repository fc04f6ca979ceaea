//! The table of error reasons: what a gRPC error's `google.rpc.ErrorInfo` carries, so that programs need not
//! read prose. Domain: [`DOMAIN`]. Metadata keys are the [`key`]s.

use crate::api::FileFailureKind;

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "holdfast";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// A reason from the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// As it is on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Of a word from the wire; `None` for one that this version does not know.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// The session was lost while the call was attached. The exec may run on: attach again. UNAVAILABLE.
    SessionLost = "SESSION_LOST";
    /// No session within the deadline for starting; the exec was not started. UNAVAILABLE.
    NoSession = "NO_SESSION";
    /// The gateway is stopping. UNAVAILABLE.
    GatewayStopping = "GATEWAY_STOPPING";
    /// The supervisor did not accept the relay in time. UNAVAILABLE.
    RelayDeadline = "RELAY_DEADLINE";
    /// The start was sent, and no answer came in time: attach with the same exec_id to learn. UNAVAILABLE.
    StartUnknown = "START_UNKNOWN";
    /// NOT_FOUND.
    SandboxNotFound = "SANDBOX_NOT_FOUND";
    /// The name is taken. ALREADY_EXISTS.
    SandboxExists = "SANDBOX_EXISTS";
    /// The sandbox's phase does not allow it. FAILED_PRECONDITION.
    WrongPhase = "WRONG_PHASE";
    /// NOT_FOUND.
    ExecNotFound = "EXEC_NOT_FOUND";
    /// The exec_id exists with another spec. ALREADY_EXISTS.
    ExecIdConflict = "EXEC_ID_CONFLICT";
    /// The exec has ended. FAILED_PRECONDITION.
    ExecEnded = "EXEC_ENDED";
    /// Output at this offset is no longer kept. DATA_LOSS.
    OutputGone = "OUTPUT_GONE";
    /// A field of the request is wrong; the message names it. INVALID_ARGUMENT.
    InvalidArgument = "INVALID_ARGUMENT";
    /// A limit is reached; the metadata names it. RESOURCE_EXHAUSTED.
    LimitReached = "LIMIT_REACHED";
    /// The driver cannot do it; the metadata names driver and verb. FAILED_PRECONDITION.
    UnsupportedByDriver = "UNSUPPORTED_BY_DRIVER";
    /// The sandbox's supervisor is too old for it; the message names its version. FAILED_PRECONDITION.
    UnsupportedBySupervisor = "UNSUPPORTED_BY_SUPERVISOR";
    /// The driver failed. UNAVAILABLE or INTERNAL.
    DriverFailed = "DRIVER_FAILED";
    /// No or wrong credentials. UNAUTHENTICATED.
    Unauthenticated = "UNAUTHENTICATED";
    /// The credentials do not allow it. PERMISSION_DENIED.
    Forbidden = "FORBIDDEN";
    /// The wait's time was up. DEADLINE_EXCEEDED.
    WaitTimeout = "WAIT_TIMEOUT";
    /// The caller reads too slowly, or broke the stream's rules. ABORTED.
    StreamProtocol = "STREAM_PROTOCOL";
    /// No such file or directory; the metadata has path and errno. NOT_FOUND.
    FileNotFound = "FILE_NOT_FOUND";
    /// The user may not; path and errno. PERMISSION_DENIED.
    FileDenied = "FILE_DENIED";
    /// It exists already; path and errno. ALREADY_EXISTS.
    FileExists = "FILE_EXISTS";
    /// A directory where none may be, or none where one must be; path and errno. FAILED_PRECONDITION.
    FileWrongKind = "FILE_WRONG_KIND";
    /// The file system is full, or a quota is; path and errno. RESOURCE_EXHAUSTED.
    NoSpace = "NO_SPACE";
    /// The path leads out of what it was given for. INVALID_ARGUMENT.
    PathEscapes = "PATH_ESCAPES";
    /// The receiver's count or digest differs from the sender's. DATA_LOSS.
    DigestMismatch = "DIGEST_MISMATCH";
    /// Anything else that a file system said; path and errno. FAILED_PRECONDITION.
    FileFailed = "FILE_FAILED";
    /// The transfer is not known (any more): begin a new one. NOT_FOUND.
    TransferGone = "TRANSFER_GONE";
    /// Two changes met. ABORTED; try again.
    Conflict = "CONFLICT";
    /// A fault of Holdfast's. INTERNAL.
    Internal = "INTERNAL";
}

impl Reason {
    /// Of what a file system said, or a rule of transfers.
    #[must_use]
    pub fn of_file(kind: FileFailureKind) -> Self {
        match kind {
            FileFailureKind::NotFound => Self::FileNotFound,
            FileFailureKind::Denied => Self::FileDenied,
            FileFailureKind::NoSpace => Self::NoSpace,
            FileFailureKind::Exists => Self::FileExists,
            FileFailureKind::WrongKind => Self::FileWrongKind,
            FileFailureKind::Escapes => Self::PathEscapes,
            FileFailureKind::Mismatch => Self::DigestMismatch,
            FileFailureKind::Protocol => Self::StreamProtocol,
            FileFailureKind::Invalid => Self::InvalidArgument,
            FileFailureKind::Abandoned => Self::TransferGone,
            FileFailureKind::Limit => Self::LimitReached,
            FileFailureKind::Other | FileFailureKind::Unspecified => Self::FileFailed,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Keys of an `ErrorInfo`'s metadata.
pub mod key {
    /// The exec's id.
    pub const EXEC_ID: &str = "exec_id";
    /// The sandbox's id.
    pub const SANDBOX_ID: &str = "sandbox_id";
    /// How far stdout was handed to the caller's stream.
    pub const STDOUT_OFFSET: &str = "stdout_offset";
    /// Likewise stderr.
    pub const STDERR_OFFSET: &str = "stderr_offset";
    /// The transfer's id.
    pub const TRANSFER_ID: &str = "transfer_id";
    /// How far a transfer's stream was handed on.
    pub const OFFSET: &str = "offset";
    /// Which path.
    pub const PATH: &str = "path";
    /// The system's error number.
    pub const ERRNO: &str = "errno";
    /// The sandbox's phase.
    pub const PHASE: &str = "phase";
    /// What ended the session.
    pub const CAUSE: &str = "cause";
    /// Which limit.
    pub const LIMIT: &str = "limit";
    /// Which driver.
    pub const DRIVER: &str = "driver";
    /// Which verb.
    pub const VERB: &str = "verb";
    /// Which field.
    pub const FIELD: &str = "field";
    /// The last thing that went wrong with the sandbox: its reason.
    pub const LAST_ERROR: &str = "last_error";
    /// Likewise its message.
    pub const LAST_ERROR_MESSAGE: &str = "last_error_message";
    /// Likewise where it was seen: driver, session, probe.
    pub const LAST_ERROR_SOURCE: &str = "last_error_source";
    /// Likewise when, RFC 3339.
    pub const LAST_ERROR_AT: &str = "last_error_at";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_read_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        }
        assert_eq!(Reason::parse("NEW_IN_2030"), None);
    }
}
