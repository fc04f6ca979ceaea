//! The public API: gRPC over TLS on TCP. It only adapts: requests to the rooms' calls, their errors to statuses.
//!
//! ```text
//! listener (TCP, TLS) ─▶ auth (certificate or token) ─▶ sandboxes │ execs │ status ─▶ the gateway's rooms
//! ```

mod auth;
mod listener;
mod status;

pub use auth::{Caller, Tokens, TokensError};
pub use status::code;
