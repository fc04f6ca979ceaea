//! Relays: one caller's stream on a session each.
//!
//! ```text
//!   open: slot ─▶ stream ─▶ header written ─▶ reply awaited ─▶ Relay
//!           │        │            │                 └ Refused, or the deadline
//!           └────────┴────────────┴ the session ends: Lost, at once
//! ```
//!
//! A header enters, a pair of halves leaves. Every step has its deadline. [`RelayError::delivered`] says whether
//! the supervisor may have heard of the header: what decides if it may be sent to somebody else.

mod guard;
mod open;

pub(crate) use self::open::cut;
pub use self::{
    guard::RelayGuard,
    open::{Relay, RelayError, open},
};
