//! Files: transfers and questions about paths, from a caller to the sandbox's supervisor and back.
//!
//! ```text
//!   caller ── open ──▶ session awaited ──▶ relay ──▶ supervisor's transfer
//!          ══ bytes ═══════════════════════▶ │       as they come: neither kept nor looked into
//!          ◀═ acks, bytes, done ════════════ │
//!                                            └ session lost: SESSION_LOST with the offset, at once
//! ```
//!
//! Nothing of a transfer lives here: it is known by its id at the supervisor, which keeps it while nobody is attached.
//! So the gateway may be restarted in the middle of it. What is in memory for one caller is one chunk each way, and
//! what the streams' windows hold.

mod call;
mod single;
mod transfer;

use std::time::Duration;

use holdfast_wire::{
    api::FileFailure,
    control::{FilesRelay, RefusedCode, files_relay, relay_header},
    limits, timing,
};
use tokio::time::Instant;

pub use self::{
    single::{ReadFile, WriteFile},
    transfer::{Download, DownloadInput, DownloadOutput, Upload, UploadInput, UploadOutput},
};
use crate::{
    error::{CallError, Reason, key},
    relays::{self, Relay, RelayError},
    sandboxes::Sandboxes,
    sessions::Lost,
};

/// The files of all sandboxes. Clones are the same.
#[derive(Clone, Debug)]
pub struct Files {
    sandboxes: Sandboxes,
}

impl Files {
    /// The files of these sandboxes.
    #[must_use]
    pub fn new(sandboxes: Sandboxes) -> Self {
        Self { sandboxes }
    }

    /// Waits for the sandbox's session and opens a relay.
    async fn open(
        &self,
        sandbox: &str,
        kind: files_relay::Kind,
        within: Option<Duration>,
        traceparent: &str,
    ) -> Result<Relay, CallError> {
        let until = Instant::now() + within.unwrap_or(timing::START_DEADLINE);
        let session = self.sandboxes.resolve(sandbox)?.wait_for_session(until).await?;
        if !session.hello().capabilities.iter().any(|word| word == "files") {
            let message = format!(
                "the sandbox's supervisor ({}) does not know files: restart the sandbox with a newer one",
                session.version()
            );
            return Err(CallError::new(Reason::UnsupportedBySupervisor, message));
        }
        let kind = relay_header::Kind::Files(FilesRelay { kind: Some(kind) });
        relays::open(&session, kind, traceparent, until).await.map_err(explain)
    }
}

/// A user's name or numbers, and a path, before anybody is asked.
fn check(field: &str, path: &[u8], user: &str) -> Result<(), CallError> {
    if path.is_empty() || path.contains(&0) || path.len() >= limits::MAX_PATH {
        let message = format!("a path has 1 to {} bytes, and no NUL", limits::MAX_PATH - 1);
        return Err(CallError::invalid(field, message));
    }
    if user.len() > limits::MAX_USER {
        return Err(CallError::invalid("user", format!("at most {} bytes", limits::MAX_USER)));
    }
    Ok(())
}

/// Why there is no relay, or no more.
fn explain(error: RelayError) -> CallError {
    let text = error.to_string();
    match error {
        RelayError::Refused { code, message } => {
            let reason = match code {
                RefusedCode::UnknownKind => Reason::UnsupportedBySupervisor,
                RefusedCode::NotFound => Reason::TransferGone,
                RefusedCode::Invalid | RefusedCode::Conflict => Reason::InvalidArgument,
                RefusedCode::Exhausted => Reason::LimitReached,
                RefusedCode::Stopping => Reason::NoSession,
                _ => Reason::Internal,
            };
            CallError::new(reason, message)
        }
        RelayError::TooMany => CallError::new(Reason::LimitReached, text).with(key::LIMIT, "relays"),
        RelayError::OpenDeadline(_) | RelayError::AcceptDeadline(_) => {
            CallError::new(Reason::RelayDeadline, text)
        }
        RelayError::Lost { lost, .. } => lost_session(&lost),
        RelayError::Ended(code) => CallError::new(Reason::SessionLost, text).with(key::CAUSE, code),
        RelayError::TooLarge(_) => CallError::new(Reason::InvalidArgument, text),
        RelayError::Protocol(_) => CallError::new(Reason::Internal, text),
    }
}

fn lost_session(lost: &Lost) -> CallError {
    let message = format!(
        "the session with the sandbox was lost: {lost}; the transfer is kept: open it again with the same transfer_id"
    );
    CallError::new(Reason::SessionLost, message).with(key::CAUSE, lost.label())
}

/// What a file system said, or a rule of transfers.
fn failed(failure: &FileFailure) -> CallError {
    let reason = Reason::of_file(failure.kind());
    let error = CallError::new(reason, relays::cut(&failure.message));
    let error = if failure.errno == 0 { error } else { error.with(key::ERRNO, failure.errno) };
    if failure.path.is_empty() {
        return error;
    }
    error.with(key::PATH, relays::cut(&String::from_utf8_lossy(&failure.path)))
}
