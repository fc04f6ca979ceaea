//! The supervisor as a binary of its own: what a sandbox's image or mount carries.

use std::process::ExitCode;

use clap::Parser;

/// Runs commands in this sandbox for a Holdfast gateway.
#[derive(Debug, Parser)]
#[command(name = "holdfast-supervisor", version)]
struct Cli {
    #[command(flatten)]
    supervisor: holdfast_supervisor::SupervisorArgs,
}

fn main() -> ExitCode {
    if let Some(code) = holdfast_supervisor::probe_child() {
        return code;
    }
    holdfast_supervisor::run(Cli::parse().supervisor)
}
