//! The exit codes of `holdfast`, and how an outcome becomes one.
//!
//! | code | meaning |
//! | --- | --- |
//! | the command's own | it ran, and exited with it |
//! | 124 | a timeout: the command's `--timeout`, or `wait`'s |
//! | 125 | Holdfast's own failure: no such sandbox, gateway not reachable, result lost |
//! | 126 | the command cannot be invoked |
//! | 127 | the command was not found |
//! | 128+n | signal n ended the command (143 where a caller cancelled it) |
//! | 2 | wrong usage |
//!
//! A command may itself exit with 124 or 125: `--result-file` tells them apart.

use holdfast_wire::api::{Outcome, StartFailure, outcome::Kind};

/// A timeout.
pub const TIMED_OUT: u8 = 124;
/// Holdfast's own failure.
pub const OURS: u8 = 125;
/// The command cannot be invoked.
pub const CANNOT_INVOKE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;
/// Wrong usage; clap's own.
pub const USAGE: u8 = 2;
/// Ctrl-C.
pub const INTERRUPTED: u8 = 130;
/// SIGHUP to this program.
pub const HUNG_UP: u8 = 129;
/// The reader of our output went away: 128 + SIGPIPE.
pub const BROKEN_PIPE: u8 = 141;
/// SIGTERM to this program, or a command that was cancelled (SIGTERM is what it got first).
pub const TERMINATED: u8 = 143;

/// The exit code that stands for an outcome.
#[must_use]
pub fn code(outcome: &Outcome) -> u8 {
    match &outcome.kind {
        // Linux keeps the low eight bits of an exit code; so does this.
        Some(Kind::Exited(exited)) => (exited.code & 0xff) as u8,
        Some(Kind::Signaled(signaled)) => {
            u8::try_from(signaled.signal).map_or(OURS, |n| n.saturating_add(128))
        }
        Some(Kind::TimedOut(_)) => TIMED_OUT,
        Some(Kind::Cancelled(_)) => TERMINATED,
        Some(Kind::StartFailed(failed)) => match failed.kind() {
            StartFailure::NotFound => NOT_FOUND,
            StartFailure::CannotInvoke | StartFailure::BadCwd | StartFailure::UnknownUser => CANNOT_INVOKE,
            StartFailure::Resources
            | StartFailure::Deadline
            | StartFailure::Invalid
            | StartFailure::Unspecified => OURS,
        },
        Some(Kind::Lost(_)) | None => OURS,
    }
}

#[cfg(test)]
mod tests {
    use holdfast_wire::api::{Cancelled, Exited, Lost, Signaled, StartFailed, TimedOut};

    use super::*;

    fn of(kind: Kind) -> u8 {
        code(&Outcome { kind: Some(kind) })
    }

    fn failed(kind: StartFailure) -> u8 {
        of(Kind::StartFailed(StartFailed { kind: kind.into(), ..StartFailed::default() }))
    }

    #[test]
    fn every_outcome_has_its_code() {
        assert_eq!(of(Kind::Exited(Exited { code: 0 })), 0);
        assert_eq!(of(Kind::Exited(Exited { code: 255 })), 255);
        assert_eq!(of(Kind::Signaled(Signaled { signal: 9, ..Signaled::default() })), 137);
        assert_eq!(of(Kind::Signaled(Signaled { signal: 2, ..Signaled::default() })), 130);
        assert_eq!(of(Kind::TimedOut(TimedOut::default())), 124);
        assert_eq!(of(Kind::Cancelled(Cancelled::default())), 143);
        assert_eq!(of(Kind::Lost(Lost::default())), 125);
        assert_eq!(failed(StartFailure::NotFound), 127);
        assert_eq!(failed(StartFailure::CannotInvoke), 126);
        assert_eq!(failed(StartFailure::BadCwd), 126);
        assert_eq!(failed(StartFailure::Resources), 125);
    }

    #[test]
    fn no_outcome_is_never_success() {
        assert_eq!(code(&Outcome::default()), OURS);
        assert_eq!(of(Kind::Signaled(Signaled { signal: -1, ..Signaled::default() })), OURS);
    }
}
