//! Holdfast's gateway: sessions of supervisors on one side, callers on the other, sandboxes in between.
//!
//! ```text
//!  callers ─ api ─▶ execs ─▶ relays ─▶ sessions ◀─ listener ◀─ QUIC ─ supervisors
//!                     │                    │
//!                     ▼                    ▼
//!                   store ◀── sandboxes (one task each: phase, conditions, epoch) ◀── driver
//! ```

pub mod api;
pub mod config;
pub mod error;
pub mod identity;
pub mod observability;
pub mod relays;
pub mod sessions;
pub mod store;
