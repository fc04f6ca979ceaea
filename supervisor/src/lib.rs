//! supervisor
pub mod execs;
