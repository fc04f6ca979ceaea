//! End to end: real processes on this machine, the command as a user calls it.
//!
//! Each test has a gateway, a data directory and sandboxes of its own, so all run side by side.

#![allow(missing_debug_implementations)] // a test binary has no callers
#![allow(clippy::print_stderr)] // what is skipped is said

#[path = "e2e/bad_input.rs"]
mod bad_input;
#[path = "e2e/basics.rs"]
mod basics;
#[path = "e2e/chaos.rs"]
mod chaos;
#[path = "e2e/faults.rs"]
mod faults;
#[path = "e2e/files.rs"]
mod files;
#[path = "e2e/lifecycle.rs"]
mod lifecycle;
#[path = "e2e/main_command.rs"]
mod main_command;
#[path = "e2e/many.rs"]
mod many;
#[path = "e2e/streams.rs"]
mod streams;
#[path = "e2e/transfers.rs"]
mod transfers;

/// The command under test.
const HOLDFAST: &str = env!("CARGO_BIN_EXE_holdfast-under-test");
