//! Why a stream was reset or a connection closed: one table for both, who ended it, whether to come back.
//!
//! QUIC carries an application code of 62 bits with every reset, stop and close. 0 is what quinn sends for
//! handles that were merely dropped, so no real reason has it.

use std::fmt;

/// Whether a supervisor dials again after its connection was closed with a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComeBack {
    /// Soon: the other side said that it is fine.
    Soon,
    /// After the usual growing delay.
    AfterBackoff,
    /// Never: another one speaks for the sandbox, or it is gone.
    Never,
}

/// Who ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// The gateway, on its own account.
    Gateway,
    /// The supervisor, on its own account.
    Supervisor,
    /// The caller at the gateway's API.
    Caller,
    /// Either: the code is about the peer's conduct, or about nobody's.
    Either,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal, $by:ident, $back:ident;)*) => {
        /// A code from the table. Unknown numbers are kept: a newer peer may know more.
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct CloseCode(pub u64);

        impl CloseCode {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// All of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name in the table, if it is there.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self.0 { $($code => Some(stringify!($name)),)* _ => None }
            }

            /// What it means, for a person.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self.0 { $($code => $text,)* _ => "for a reason that this version does not know" }
            }

            /// Who ended it.
            #[must_use]
            pub fn ended_by(self) -> EndedBy {
                match self.0 { $($code => EndedBy::$by,)* _ => EndedBy::Either }
            }

            /// Whether a supervisor dials again.
            #[must_use]
            pub fn come_back(self) -> ComeBack {
                match self.0 { $($code => ComeBack::$back,)* _ => ComeBack::AfterBackoff }
            }
        }
    };
}

codes! {
    /// Handles were dropped without a word: a fault, or a panic, on the other side.
    DROPPED = 0x00, "dropped without a reason", Either, AfterBackoff;
    /// A connection with a newer epoch has taken over.
    SUPERSEDED = 0x10, "superseded by a newer connection of the same sandbox", Gateway, Never;
    /// The gateway stops or hands its sessions over.
    GOING_AWAY = 0x11, "the gateway is going away", Gateway, Soon;
    /// The certificate does not speak for the sandbox.
    UNAUTHORIZED = 0x12, "not authorized", Gateway, AfterBackoff;
    /// The sandbox has been deleted.
    SANDBOX_DELETED = 0x13, "the sandbox has been deleted", Gateway, Never;
    /// The peer broke the protocol.
    PROTOCOL = 0x14, "the peer broke the protocol", Either, AfterBackoff;
    /// The relay was not opened or accepted in time.
    RELAY_DEADLINE = 0x15, "the relay's deadline passed", Gateway, AfterBackoff;
    /// The caller went away.
    CALLER_GONE = 0x16, "the caller went away", Caller, AfterBackoff;
    /// The supervisor stops.
    SUPERVISOR_STOPPING = 0x17, "the supervisor is stopping", Supervisor, Never;
    /// The relay was refused; the reply says why.
    REFUSED = 0x18, "refused", Supervisor, AfterBackoff;
    /// A task ended without saying how: a panic in one relay, or a cancelled task.
    ABANDONED = 0x19, "abandoned by its task", Either, AfterBackoff;
    /// Something failed on the side that closes.
    INTERNAL = 0x1a, "internal error", Either, AfterBackoff;
    /// Too much at once; later it may work.
    BUSY = 0x1b, "too busy", Gateway, AfterBackoff;
    /// Nothing was heard of the peer in time.
    UNRESPONSIVE = 0x1c, "nothing was heard in time", Either, Soon;
    /// A certificate was renewed on this connection: come back with the new one.
    RENEWED = 0x1d, "the certificate has been renewed", Either, Soon;
    /// The session ended, and the relay with it.
    SESSION_LOST = 0x1e, "the session was lost", Either, AfterBackoff;
    /// Done: nothing more is wanted of the stream.
    DONE = 0x1f, "done", Either, Soon;
    /// The sandbox is being stopped.
    SANDBOX_STOPPED = 0x20, "the sandbox is being stopped", Gateway, Never;
    /// Asked for by an operator or a fault test.
    RESET_ON_REQUEST = 0x21, "reset on request", Gateway, Soon;
    /// A workload of a newer generation has taken over.
    STALE_GENERATION = 0x22, "a newer workload of the sandbox exists", Gateway, Never;
    /// The caller gave a transfer up: what is not complete is removed.
    ABORTED = 0x23, "given up by the caller", Caller, AfterBackoff;
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_code_is_given_once() {
        let numbers: HashSet<u64> = CloseCode::ALL.iter().map(|code| code.0).collect();
        assert_eq!(numbers.len(), CloseCode::ALL.len());
    }

    #[test]
    fn the_numbers_never_change() {
        let table: Vec<String> = CloseCode::ALL.iter().map(|code| format!("{:#x} {code}", code.0)).collect();
        insta::assert_snapshot!(table.join("\n"));
    }

    #[test]
    fn an_unknown_code_is_kept_and_comes_back() {
        let code = CloseCode(0x7777);
        assert_eq!(code.to_string(), "code 0x7777");
        assert_eq!(code.come_back(), ComeBack::AfterBackoff);
    }

    #[test]
    fn whoever_lost_its_place_stays_away() {
        for code in [CloseCode::SUPERSEDED, CloseCode::SANDBOX_DELETED, CloseCode::STALE_GENERATION] {
            assert_eq!(code.come_back(), ComeBack::Never);
        }
    }
}
