//! The gateway and the supervisor inside this binary: the one file that knows those crates.
//!
//! `holdfast gateway` and `holdfast supervisor` run alone, each with a runtime of its own. `holdfast run` without a
//! profile starts a [`Gateway`] in this process, in a directory that goes with it.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use tokio::time::timeout;

pub(crate) use holdfast_gateway::GatewayArgs;
pub(crate) use holdfast_supervisor::SupervisorArgs;

use crate::{args::Command, client::Client, failure::Failed, profile::Profile};

/// The gateway's own deadlines add up to a few seconds; one that takes longer hangs, and the process ends without it.
const STOP: Duration = Duration::from_secs(15);

/// Answers as a supervisor's probe, if this process was started as one. Before anything else: see there.
pub(crate) fn probe_child() -> Option<ExitCode> {
    holdfast_supervisor::probe_child()
}

/// Runs what is a process of its own; gives back what is not.
pub(crate) fn run_alone(command: Command) -> Result<ExitCode, Box<Command>> {
    match command {
        Command::Gateway(args) => Ok(match supervisor_command() {
            Ok(command) => holdfast_gateway::run(&args, command),
            Err(failed) => {
                crate::output::Output::new(crate::args::Format::Table, false, false).failure(&failed);
                ExitCode::from(failed.exit_code())
            }
        }),
        Command::Supervisor(args) => Ok(holdfast_supervisor::run(args)),
        other => Err(Box::new(other)),
    }
}

/// How this very binary is started as a supervisor.
fn supervisor_command() -> Result<Vec<OsString>, Failed> {
    let own =
        std::env::current_exe().map_err(|error| Failed::local("find this program's own file", error))?;
    Ok(vec![own.into_os_string(), "supervisor".into()])
}

/// A gateway for as long as one command runs.
#[derive(Debug)]
pub(crate) struct Gateway {
    gateway: holdfast_gateway::Gateway,
    directory: tempfile::TempDir,
}

impl Gateway {
    /// Starts it on loopback, on ports of the system's choice, in a directory that only this user can enter.
    pub(crate) async fn start() -> Result<Self, Failed> {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::Builder::new()
            .prefix("holdfast-run-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(|error| Failed::local("make a temporary directory", error))?;
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut config = holdfast_gateway::Config::new(directory.path(), listen, supervisor_command()?);
        // Nobody would ever come back to them.
        config.lifeline = true;
        let gateway = Box::pin(holdfast_gateway::Gateway::start(config))
            .await
            .map_err(|error| Failed::local("start a gateway in this process", chain(&error)))?;
        Ok(Self { gateway, directory })
    }

    /// A client of it, with the profile that it wrote.
    pub(crate) fn client(&self) -> Result<Client, Failed> {
        let profile = Profile::load(self.gateway.profile_path()).map_err(crate::client::Error::from)?;
        Ok(Client::new(&profile)?)
    }

    /// Stops it, and removes everything that it kept.
    pub(crate) async fn stop(self) -> Result<(), Failed> {
        let stopped = timeout(STOP, Box::pin(self.gateway.shutdown())).await;
        let path = self.directory.path().to_owned();
        // A workspace can hold a million files.
        let removed = tokio::task::spawn_blocking(move || self.directory.close()).await;
        if stopped.is_err() {
            return Err(Failed::local(
                "stop the gateway in this process",
                format!("not done within {STOP:?}"),
            ));
        }
        match removed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failed::local(format!("remove {}", path.display()), error)),
            Err(error) => Err(Failed::local(format!("remove {}", path.display()), error)),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Many errors show their cause already.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
