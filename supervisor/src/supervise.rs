//! One supervisor from start to stop.
//!
//! ```text
//!   /proc ─▶ lock ─▶ identity ─▶ execs recovered ─▶ link dials ── SIGTERM, SIGINT, SIGHUP ──▶ stop
//!   stop:  no new execs; running ones end (SIGTERM, grace, SIGKILL) and their callers get the outcomes
//!          ─▶ Leaving, close SUPERVISOR_STOPPING ─▶ exit 0
//! ```
//!
//! A gateway that is away is no reason to end. A second signal is: then nothing is waited for any more. The first process
//! of a microVM is asked through a port instead of by SIGTERM, and ends with the machine.

use std::{ffi::OsString, fs, io, sync::Arc, time::Duration};

use holdfast_wire::{bootstrap::SupervisorConfig, ids::Instance, limits, timing};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    command, descriptors,
    execs::{
        Execs, ExecsConfig, ExecsError,
        spawn::{RealSpawner, give_workspace},
    },
    files::Files,
    identity::{Identity, IdentityError},
    init::{
        self, Children, MountProcError,
        machine::{self, Port, PortError},
    },
    link::{Link, Seams, Target},
    lock::{InstanceLock, LockError},
    probe::Prober,
    status,
    work::Rooms,
    workspace::{InWorkspace, Workspace},
};

/// Two do: the supervisor moves bytes and waits. Each more costs memory in every sandbox.
const WORKER_THREADS: usize = 2;

/// Threads for what blocks (forks, disks): idle ones end after seconds. A bound, because a hung disk must not make
/// them grow to tokio's 512.
const BLOCKING_THREADS: usize = 64;

/// Tasks of our own end at once when told; past this the process ends anyway.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The supervisor's own variables, which are no business of the commands.
const OWN_VARIABLES: &[&str] = &["RUST_LOG", "LOG_FORMAT", "RUST_BACKTRACE", "NOTIFY_SOCKET"];
const OWN_PREFIX: &str = "HOLDFAST_";

/// Why a supervisor did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    MountProc(#[from] MountProcError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("starting the runtime: {0}")]
    Runtime(io::Error),
    #[error("listening for signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Execs(#[from] ExecsError),
    #[error(transparent)]
    Port(#[from] PortError),
}

/// Runs until a signal stops it, or the holder of its microVM, or the end of its lifeline.
pub(crate) fn run(config: SupervisorConfig, machine: bool, lifeline: bool) -> Result<(), RunError> {
    tracing::info!(
        version = holdfast_wire::VERSION,
        sandbox = %config.sandbox_id,
        generation = %config.workload_generation,
        pid = std::process::id(),
        init = config.init,
        "the supervisor starts"
    );
    let mut port = machine.then(Port::inherited).transpose()?;
    let outcome = run_to_the_end(config, port.as_ref(), lifeline);
    if let Some(port) = &mut port {
        match &outcome {
            Ok(()) => machine::stop(port),
            Err(error) => machine::give_up(port, error),
        }
    }
    outcome
}

fn run_to_the_end(config: SupervisorConfig, port: Option<&Port>, lifeline: bool) -> Result<(), RunError> {
    if config.init && config.mount_proc {
        init::mount_proc()?;
    }
    init::shield_from_oom_killer();
    descriptors::raise();
    let _lock = InstanceLock::acquire(&config.state_dir)?;
    let identity = Identity::load(&config.identity, config.sandbox_id)?;
    let probe = command::probe_command();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    let asked = match port {
        Some(port) => Some(port.stop_asked()),
        None => lifeline.then(end_of_lifeline),
    };
    let asked = asked.transpose().map_err(RunError::Signals)?;
    let outcome = runtime.block_on(supervise(config, identity, probe, asked, port.is_some()));
    // A thread that hangs in a dead mount cannot be waited for.
    runtime.shutdown_timeout(STOP_WAIT);
    outcome
}

async fn supervise(
    config: SupervisorConfig,
    identity: Identity,
    probe: Vec<OsString>,
    asked: Option<oneshot::Receiver<()>>,
    machine: bool,
) -> Result<(), RunError> {
    // First of all: as the first process of a namespace, a signal without a handler would be lost.
    let mut signals = Signals::listen(asked).map_err(RunError::Signals)?;
    let (token, tasks, children) = (CancellationToken::new(), TaskTracker::new(), Children::default());
    if config.init {
        let (children, token) = (children.clone(), token.child_token());
        tasks.spawn(async move {
            if let Err(error) = init::reap(children, token).await {
                tracing::error!(%error, "orphans are not collected");
            }
        });
    }
    if let Some(user) = &config.default_user
        && let Err(error) = give_workspace(&config.workspace, user)
    {
        // The probe acts as this user, and says more.
        tracing::warn!(%error, "the workspace stays whose it is");
    }
    let workspace = Workspace::at(config.workspace.clone());
    let mut processes = RealSpawner::among(children);
    if machine {
        processes = processes.of_a_machine();
    }
    let spawner = InWorkspace { spawner: Arc::new(processes), workspace: workspace.clone() };
    let execs = Execs::open(
        ExecsConfig {
            state_dir: config.state_dir.clone(),
            workspace: config.workspace.clone(),
            spool: config.spool,
            base_env: base_env(std::env::vars_os()),
            default_user: config.default_user.clone(),
            max_execs: limits::MAX_EXECS,
            spawner: Arc::new(spawner),
            sandbox_id: config.sandbox_id,
            probe,
        },
        token.child_token(),
    )
    .await?;
    let rooms = Arc::new(Rooms {
        execs: execs.clone(),
        files: Files::within(workspace.clone(), Some(&config.state_dir), token.child_token()),
        prober: Prober::new(workspace, config.default_user.unwrap_or_default()),
    });
    let target = Target {
        sandbox: config.sandbox_id,
        generation: config.workload_generation,
        instance: Instance::random(),
        boot_id: boot_id(),
        addresses: config.gateway.addresses,
        server_name: config.gateway.server_name,
    };
    let link = Link::start(target, identity, rooms, Seams::system(), &token);
    tasks.spawn(status::keep(config.state_dir, link.status(), token.child_token()));
    tasks.close();

    let signal = signals.next().await;
    tracing::info!(signal, "stopping: execs are ended, then the gateway is told");
    let orderly = async {
        execs.shutdown(timing::KILL_GRACE).await;
        link.leave(&format!("stopped by {signal}")).await;
    };
    tokio::select! {
        () = orderly => {}
        signal = signals.next() => tracing::warn!(signal, "stopping at once"),
    }
    token.cancel();
    if tokio::time::timeout(STOP_WAIT, tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    tracing::info!("the supervisor has stopped");
    Ok(())
}

/// The environment of every command: the image's, which the supervisor was started with, without what is its own.
fn base_env(all: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let own = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with(OWN_PREFIX) || OWN_VARIABLES.contains(&&*name)
    };
    all.filter(|(name, _)| !own(name)).collect()
}

fn boot_id() -> String {
    match fs::read_to_string(BOOT_ID) {
        Ok(text) => text.trim().to_owned(),
        Err(error) => {
            // Only compared for equality: one of our own says "another boot", which loses nothing that is certain.
            tracing::warn!(%error, "cannot read {BOOT_ID}");
            uuid::Uuid::new_v4().to_string()
        }
    }
}

#[derive(Debug)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    /// Of the holder of this microVM, or the end of the lifeline.
    asked: Option<oneshot::Receiver<()>>,
}

impl Signals {
    fn listen(asked: Option<oneshot::Receiver<()>>) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            asked,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
            () = asked(&mut self.asked) => "whoever started it",
        }
    }
}

/// Tells when standard input ends. Nothing is ever written to it.
fn end_of_lifeline() -> io::Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("lifeline".to_owned()).spawn(move || {
        let mut byte = [0];
        loop {
            match io::Read::read(&mut io::stdin(), &mut byte) {
                Ok(n) if n > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        // A supervisor that is stopping already does not listen.
        let _ = sender.send(());
    })?;
    Ok(receiver)
}

/// Once: after that, and where nobody can ask, never.
async fn asked(asked: &mut Option<oneshot::Receiver<()>>) {
    if let Some(receiver) = asked {
        let answer = receiver.await;
        *asked = None;
        if answer.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_get_the_images_environment_and_not_the_supervisors() {
        let all = [("PATH", "/bin"), ("HOLDFAST_CONFIG", "/x"), ("RUST_LOG", "debug"), ("JAVA_HOME", "/j")];
        let env = base_env(all.into_iter().map(|(name, value)| (name.into(), value.into())));
        assert_eq!(env, [("PATH".into(), "/bin".into()), ("JAVA_HOME".into(), "/j".into())]);
    }
}
