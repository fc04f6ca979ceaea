//! The command line: `holdfast-supervisor …` and `holdfast supervisor …` are the same.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Subcommand};
use holdfast_wire::bootstrap::SupervisorConfig;

use crate::{
    execs::{PROBE_SUBCOMMAND, answer_probe, own_probe},
    init,
    lock::InstanceLock,
    logs, status, supervise,
};

/// The subcommand of the `holdfast` binary that is this one.
const SUBCOMMAND: &str = "supervisor";

/// Arguments of the supervisor.
#[derive(Args, Clone, Debug)]
pub struct SupervisorArgs {
    /// The file that says who this supervisor is and whom it dials (TOML, written by a driver).
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// This is the first process of a microVM, and standard input is the port to its holder.
    #[arg(long, hide = true)]
    pub machine: bool,
    /// Stop, and end all commands, when standard input ends: it is a pipe that another process holds, which a gateway
    /// that lives for one command alone uses.
    #[arg(long)]
    pub lifeline: bool,
    /// What else than running.
    #[command(subcommand)]
    pub command: Option<SupervisorCommand>,
}

/// What a supervisor's binary does beside running.
#[derive(Clone, Debug, Subcommand)]
pub enum SupervisorCommand {
    /// Says whether a supervisor runs with this configuration, and where its link stands. For images without a
    /// shell. Exit code 0: it runs (a gateway that is away is no reason to restart a sandbox); 1: it does not.
    Healthcheck {
        /// Be content only while the supervisor is attached to its gateway.
        #[arg(long)]
        attached: bool,
    },
    /// Sets up the microVM that this is the first process of, and becomes its supervisor.
    #[command(hide = true)]
    Machine,
}

/// Answers as a probe's child, if this process was started as one. To be called first in `main`: a child that
/// starts a runtime would measure that.
#[must_use]
pub fn probe_child() -> Option<ExitCode> {
    let mut args = env::args_os().skip(1);
    let mut next = args.next()?;
    if next == SUBCOMMAND {
        next = args.next()?;
    }
    (next == PROBE_SUBCOMMAND).then(|| answer_probe(&args.next().unwrap_or_default()))
}

/// The command that makes a child which [`probe_child`] answers as: this very binary, called as it was called.
pub(crate) fn probe_command() -> Vec<OsString> {
    let mut command = own_probe();
    // `holdfast --some-flag supervisor --config …`, too: but what follows --config may be a file of that name.
    if env::args_os().skip(1).take_while(|arg| arg != "--config").any(|arg| arg == SUBCOMMAND) {
        command.insert(1, SUBCOMMAND.into());
    }
    command
}

/// Does what the arguments say, to the end of the process. Makes its own runtime, so call it outside of any.
#[must_use]
pub fn run(args: SupervisorArgs) -> ExitCode {
    if let Some(SupervisorCommand::Machine) = args.command {
        return machine();
    }
    let Some(path) = args.config else {
        let _ = writeln!(
            io::stderr(),
            "error: --config FILE is missing: the file that a driver wrote for this sandbox"
        );
        // The usual code of a wrong command line.
        return ExitCode::from(2);
    };
    let config = match SupervisorConfig::load(&path) {
        Ok(config) => config,
        Err(error) => {
            logs::start("info");
            tracing::error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match args.command {
        Some(SupervisorCommand::Healthcheck { attached }) => healthcheck(&config, attached),
        Some(SupervisorCommand::Machine) => machine(),
        None => {
            logs::start(&config.log);
            match supervise::run(config, args.machine, args.lifeline) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn machine() -> ExitCode {
    logs::start("info");
    if std::process::id() != 1 {
        tracing::error!("`machine` is for the first process of a microVM: it would set up this machine anew");
        return ExitCode::from(2);
    }
    let error = init::machine::become_supervisor();
    tracing::error!("{error}");
    ExitCode::FAILURE
}

fn healthcheck(config: &SupervisorConfig, attached: bool) -> ExitCode {
    let (healthy, text) = match InstanceLock::holder(&config.state_dir) {
        Ok(Some(holder)) => match status::read(&config.state_dir) {
            Ok(status) => (!attached || status.attached(), format!("{holder}: {status}")),
            Err(error) => (!attached, format!("{holder}: {error}")),
        },
        Ok(None) => (false, format!("no supervisor runs with {}", config.state_dir.display())),
        Err(error) => (false, error.to_string()),
    };
    let _ = writeln!(io::stdout(), "{text}");
    if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
