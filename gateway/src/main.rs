//! `holdfast-gateway`: the gateway alone, for images.

use std::process::ExitCode;

use clap::Parser;
use holdfast_gateway::GatewayArgs;

/// The Holdfast gateway
#[derive(Parser, Debug)]
#[command(name = "holdfast-gateway", version)]
struct Arguments {
    #[command(flatten)]
    gateway: GatewayArgs,
}

fn main() -> ExitCode {
    // Images put the supervisor beside the gateway.
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.join("holdfast-supervisor")))
        .unwrap_or_else(|| "holdfast-supervisor".into());
    holdfast_gateway::run(&Arguments::parse().gateway, vec![beside.into_os_string()])
}
