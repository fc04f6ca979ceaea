//! Compute drivers: what makes the workload that a supervisor runs in.
//!
//! A driver takes a [`WorkloadSpec`] and makes one **workload** of it (a process, a container, a virtual
//! machine, a pod) with a supervisor inside. What it sees of the workload it says as [`Observed`] levels.
//! It owns what it made on the machine, and nothing else: no phases, no readiness, no connection to the
//! supervisor. Those are the gateway's.
//!
//! ```text
//!             WorkloadSpec (generation)                Observed (level)
//!   gateway ───────────────────────────▶ driver ───────────────────────────▶ gateway
//!                                          │ makes, freezes, ends, removes
//!                                          ▼
//!                                       workload { supervisor, workspace, console }
//! ```
//!
//! Every driver is one room beside `local`, passes the `conformance` suite, and is the only room that
//! knows its outside system.

mod board;
mod boot;
mod driver;
mod error;
#[cfg(target_os = "linux")]
mod keepers;
mod observed;
pub mod spec;

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
#[cfg(target_os = "linux")]
pub mod container;
#[cfg(any(test, feature = "test-util"))]
pub mod fake;
#[cfg(target_os = "linux")]
pub mod local;
#[cfg(target_os = "linux")]
pub mod vm;

pub use self::{
    boot::{Boot, BootStage, Reached},
    driver::{Capabilities, ComputeDriver, Isolation, Verb},
    error::{Cause, DriverError, ErrorKind},
    observed::{Exit, MainCommand, OOM_KILLED, Observed, ObservedStream, Origin, Workload, WorkloadState},
    spec::{Bootstrap, Env, Mount, Resources, Secret, WorkloadSpec},
};
