//! Rung two of the lab: the product as it is, in a network of namespaces that fails on command.
//!
//! ```text
//!   n1 (a supervisor, its commands) ─┐
//!   n2 ...                           ├─ nat ─ wan ─ gw1 (the gateway) ── a wire without faults ── the callers
//! ```
//!
//! - [`Net`]: the namespaces and the faults, by the scripts in `netem-scripts/`
//! - [`Site`]: a gateway in `gw1`, sandboxes whose supervisors run in the nodes, and the command against them
//! - [`calls`]: callers that are attached while a fault happens, and what becomes of them
//! - [`faults`]: the list: each fault, from a healthy site to the last check; the tests run it, and `fault-table`
//!
//! Everything ends when its owner is dropped, also while a panic unwinds.

pub mod calls;
pub mod faults;
mod net;
mod site;

pub use net::{Net, obstacle};
pub use site::{Session, Site};
