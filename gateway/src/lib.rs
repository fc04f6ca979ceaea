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
pub mod core;
pub mod error;
pub mod events;
pub mod execs;
pub mod files;
mod gateway;
pub mod identity;
pub mod listener;
pub mod observability;
pub mod relays;
mod run;
pub mod sandboxes;
pub mod sessions;
pub mod store;
pub mod wall;

pub use config::{Config, GatewayArgs};
pub use gateway::{Gateway, StartError};
pub use run::run;
