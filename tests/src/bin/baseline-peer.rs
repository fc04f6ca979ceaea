//! The two processes of the baseline (see `holdfast_tests::baseline`), as the fault table starts them.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use holdfast_tests::baseline::{Call, gateway, supervisor};

/// A stand-in for today's systems: one h2/TLS/TCP connection, a gRPC stream for each command.
#[derive(Debug, Parser)]
enum Args {
    /// Listens, and has its calls run by the supervisors that dial.
    Gateway {
        /// Where.
        #[arg(long)]
        listen: SocketAddr,
        /// A directory with cert.pem and key.pem.
        #[arg(long)]
        tls: PathBuf,
        /// The calls, in JSON.
        #[arg(long)]
        calls: PathBuf,
        /// With h2 keepalives.
        #[arg(long)]
        keepalive: bool,
    },
    /// Dials, and runs what it is told.
    Supervisor {
        /// Who it is.
        #[arg(long)]
        sandbox: String,
        /// Whom it dials, host:port.
        #[arg(long)]
        gateway: String,
        /// The authority of the gateway's certificate.
        #[arg(long)]
        ca: PathBuf,
        /// With h2 keepalives.
        #[arg(long)]
        keepalive: bool,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse() {
        Args::Gateway { listen, tls, calls, keepalive } => {
            let calls: Vec<Call> = serde_json::from_slice(&std::fs::read(calls)?)?;
            gateway::serve(listen, &tls, calls, keepalive).await
        }
        Args::Supervisor { sandbox, gateway, ca, keepalive } => {
            supervisor::run(&sandbox, &gateway, &ca, keepalive).await
        }
    }
}
