//! The process: `holdfast gateway` and `holdfast-gateway`.

use std::{ffi::OsString, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::{Config, GatewayArgs},
    gateway::Gateway,
    observability,
};

/// Runs a gateway until SIGTERM or SIGINT; a second one ends it at once. `own_supervisor` is how this program
/// starts a supervisor.
///
/// Prints one line to stdout when it listens: `listening on ADDRESS, http on ADDRESS, profile FILE`.
#[must_use]
pub fn run(args: &GatewayArgs, own_supervisor: Vec<OsString>) -> ExitCode {
    let config = match Config::resolve(args, own_supervisor) {
        Ok(config) => config,
        Err(error) => return fail(&error, 2),
    };
    observability::init_logging(config.log_format);
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("gateway").build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(&error, 1),
        };
    match runtime.block_on(serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.as_ref(), 1),
    }
}

async fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let gateway = tokio::select! {
        gateway = Gateway::start(config) => gateway?,
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    };
    say(&format!(
        "listening on {}, http on {}, profile {}",
        gateway.address(),
        gateway.http_address(),
        gateway.profile_path().display()
    ));
    // An error means that no service manager asked to be told.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: stopping"),
        _ = int.recv() => tracing::info!("SIGINT: stopping"),
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tokio::select! {
        () = gateway.shutdown() => {}
        _ = term.recv() => tracing::warn!("SIGTERM again: ending at once"),
        _ = int.recv() => tracing::warn!("SIGINT again: ending at once"),
    }
    Ok(())
}

/// The one line that scripts wait for.
// stdout is this program's interface here.
#[allow(clippy::print_stdout)]
fn say(line: &str) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    // Nobody may be reading; the gateway runs all the same.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

// The log may not be set up yet when this is needed.
#[allow(clippy::print_stderr)]
fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("holdfast gateway: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  because: {cause}");
        source = cause.source();
    }
    ExitCode::from(code)
}
