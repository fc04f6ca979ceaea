//! What the system tests share.
//!
//! - [`baseline`]: a stand-in for today's systems, to compare with
//! - [`engines`]: container engines in machines made of namespaces
//! - [`harness`]: real processes: a gateway on a data directory of its own, and the command against it
//! - [`lab`]: the same processes in network namespaces, behind a NAT, with a network that fails on command
//! - [`sim`]: everything in one process, on a paused clock
//!
//! The tests themselves are in `tests/tests/`: `e2e` (real processes on one machine), `containers` (the same with
//! docker and podman), `lab` (real processes in a network of namespaces), `simulation` (everything in one process, on
//! a paused clock, over a link with a seed).

pub mod baseline;
pub mod engines;
pub mod harness;
pub mod lab;
pub mod sim;
