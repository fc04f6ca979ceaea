//! Holdfast's client library, and what the `holdfast` command is made of.
//!
//! [`client`] is the library: a gateway's API, and execs that survive lost connections. [`profile`] says where the
//! gateway is. The rest is the command: `args` says what can be asked, `config` what is set, `commands` do it,
//! and `output` alone writes.

mod args;
pub mod client;
mod commands;
mod config;
#[cfg(feature = "embedded")]
mod embedded;
pub mod exit;
mod failure;
mod output;
pub mod profile;
mod show;
pub mod suggest;
mod terminal;
mod values;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{args::Cli, commands::Context, config::Config, failure::Failed, output::Output};

/// The `holdfast` command, from the process's arguments to its exit code.
#[must_use]
pub fn main() -> ExitCode {
    #[cfg(feature = "embedded")]
    if let Some(code) = embedded::probe_child() {
        return code;
    }
    // clap prints and leaves by itself where the usage is wrong (2) or help is asked for (0).
    let Cli { globals, command } = Cli::parse();
    #[cfg(feature = "embedded")]
    let command = match embedded::run_alone(command) {
        Ok(code) => return code,
        Err(command) => *command,
    };
    log_to_stderr(globals.verbose);
    // Until the settings are known, errors look as the flags say.
    let output = Output::new(globals.output.unwrap_or_default(), globals.quiet, globals.no_color);
    let (done, output) = match Config::load(&globals) {
        Ok(config) => {
            let output = Output::new(config.output, globals.quiet, globals.no_color);
            (in_runtime(command, &Context { config, output }), output)
        }
        Err(error) => (Err(error.into()), output),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failed) => {
            output.failure(&failed);
            ExitCode::from(failed.exit_code())
        }
    }
}

fn in_runtime(command: args::Command, context: &Context) -> Result<u8, Failed> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // One worker moves gigabytes a second; an embedded gateway brings its own work for the second.
    builder.worker_threads(2).enable_all();
    let runtime = builder.build().map_err(|error| Failed::local("start the runtime", error))?;
    let done = runtime.block_on(commands::dispatch(command, context));
    // A write that blocks, or the read of stdin, must not hold the exit.
    runtime.shutdown_background();
    done
}

/// Logs are for finding faults: none unless asked for.
fn log_to_stderr(verbose: u8) {
    use tracing_subscriber::{EnvFilter, fmt};
    let default = match verbose {
        0 => "off",
        1 => "holdfast_cli=debug,holdfast_gateway=info,warn",
        _ => "debug",
    };
    // RUST_LOG is often set for other programs: by itself it turns nothing on.
    let filter = match verbose {
        0 => EnvFilter::new(default),
        _ => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default)),
    };
    let logger = fmt().with_env_filter(filter).with_writer(std::io::stderr).finish();
    // Somebody who embeds this library may have a logger already.
    let _ = tracing::subscriber::set_global_default(logger);
}
