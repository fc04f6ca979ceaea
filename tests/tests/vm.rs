//! MicroVMs, for real: the gateway with the vm driver, guest kernels, gvproxy, the command as a user calls it.
//!
//! Where this machine's KVM runs a guest, each test runs here. Elsewhere it runs in the test host: a stock Debian kernel
//! under emulation, whose KVM does. What cannot be had at all is said on stderr, and skipped.
//!
//! A failed test prints the gateway's log, and of each machine its console and the logs of launcher and gvproxy; the
//! state directory is kept.

#![allow(missing_debug_implementations)] // a test binary has no callers
#![allow(clippy::print_stderr)] // what is skipped is said

#[path = "vm/conformance.rs"]
mod conformance;
#[path = "vm/errors.rs"]
mod errors;
#[path = "vm/faults.rs"]
mod faults;
#[path = "vm/lossy.rs"]
mod lossy;
#[path = "vm/machines.rs"]
mod machines;
#[path = "vm/place.rs"]
mod place;

/// The command under test.
const HOLDFAST: &str = env!("CARGO_BIN_EXE_holdfast-under-test");
