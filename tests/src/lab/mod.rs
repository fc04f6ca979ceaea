//! Rungs two and three of the lab: the product as it is, in a network of namespaces that fails on command.
//!
//! ```text
//!   n1 (a supervisor, its commands) ─┐
//!   n2 ...                           ├─ nat ─ wan ─ gw1 (the gateway) ── a wire without faults ── the callers
//! ```
//!
//! - [`Net`]: the namespaces and the faults, by the scripts in `netem-scripts/`
//! - [`Stage`]: whom a fault hits. [`Site`] is the product: a gateway in `gw1`, sandboxes whose supervisors run in the
//!   nodes, and the command against them. The other one is the baseline
//! - [`calls`]: callers that are attached while a fault happens, and what becomes of them
//! - [`faults`]: the list: each fault, from a healthy site to the last check; the tests run it, and `fault-table`
//!
//! Rung three is the same in the test host, whose kernel has `sch_netem`. Everything ends when its owner is dropped,
//! also while a panic unwinds.

mod baseline;
pub mod calls;
mod door;
pub mod faults;
mod finding;
mod list;
mod load;
mod net;
mod site;
mod stage;

pub use finding::{Compared, Finding, Spread};
pub use load::{Load, Scale, Talk};
pub use net::{Net, obstacle};
pub use site::{Session, Site};
pub use stage::{Stage, Way};
