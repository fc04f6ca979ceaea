//! Holdfast's supervisor: the one process that Holdfast needs inside a sandbox.
//!
//! ```text
//!   gateway ◀── QUIC ── link ── session (control) ──┬── relays ──▶ execs ──▶ commands, spool
//!                        │                          ├── probe ──▶ a real exec, a real file
//!              identity ─┘                          └── reports, renewal
//! ```
//!
//! - [`link`]: dials the gateway, keeps the connection, redials; [`clocks`] tells it of suspensions
//! - `control`: one session at work; `relays`: its streams
//! - [`execs`]: commands and what is kept of them; [`files`]: transfers and questions about paths
//! - `workspace`: is it the one of the start? `probe`: does the sandbox work? `lock`: is this the only supervisor here?
//! - [`identity`]: certificate and key, and their renewal
//! - [`init`]: being the first process of a PID namespace
//!
//! The gateway may be away for hours: commands run on, outcomes are kept, the link dials.

pub mod clocks;
mod command;
mod control;
mod descriptors;
pub mod execs;
pub mod files;
pub mod identity;
pub mod init;
pub mod link;
mod lock;
mod logs;
mod probe;
mod relays;
mod status;
mod supervise;
pub mod work;
mod workspace;

pub use command::{SupervisorArgs, SupervisorCommand, probe_child, run};
