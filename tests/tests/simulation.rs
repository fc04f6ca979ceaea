//! The simulation: real gateway core, real supervisors, a network in memory, a paused clock. Hours pass in
//! milliseconds, and every invariant is checked after each scenario.
//!
//! A scenario runs over several seeds. One that fails prints its seed, what happened, and how to run it again:
//! `HOLDFAST_SIM_SEED=7` (or `7,8,9`) runs these seeds alone, `HOLDFAST_SIM_SEEDS=500` runs so many instead of the
//! few by default, `RUST_LOG=debug` shows what the rooms say.

#![allow(missing_debug_implementations)] // a test binary has no callers

#[path = "simulation/blackholes.rs"]
mod blackholes;
#[path = "simulation/chaos.rs"]
mod chaos;
#[path = "simulation/gateways.rs"]
mod gateways;
#[path = "simulation/lifetimes.rs"]
mod lifetimes;
#[path = "simulation/main_commands.rs"]
mod main_commands;
#[path = "simulation/paths.rs"]
mod paths;
#[path = "simulation/quiet.rs"]
mod quiet;
#[path = "simulation/run.rs"]
mod run;
#[path = "simulation/supervisors.rs"]
mod supervisors;
#[path = "simulation/transfers.rs"]
mod transfers;
