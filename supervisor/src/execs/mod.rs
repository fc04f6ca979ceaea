//! Execs (signatures first; the bodies follow).

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use holdfast_wire::{
    api::ExecInfo,
    bootstrap::SpoolLimits,
    control,
    ids::SandboxId,
    transport::{MessageReader, SendStream},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub mod spawn;
mod state;

pub use spawn::Spawner;

/// What execs need to know.
#[derive(Clone, Debug)]
pub struct ExecsConfig {
    /// The supervisor's own directory; execs live in `execs/` below it.
    pub state_dir: PathBuf,
    /// Where a command runs that names no directory.
    pub workspace: PathBuf,
    /// Bounds of what is kept of the output.
    pub spool: SpoolLimits,
    /// The environment that every command gets, before its own.
    pub base_env: Vec<(OsString, OsString)>,
    /// Who a command runs as that names no user; `None`: the supervisor's user.
    pub default_user: Option<String>,
    /// Execs kept at once, ended ones included.
    pub max_execs: usize,
    /// What starts processes.
    pub spawner: Arc<dyn Spawner>,
    /// For `ExecInfo` and the commands' environment.
    pub sandbox_id: SandboxId,
    /// The command that [`Execs::probe`] runs, a nonce appended; it must print the nonce and exit with 0.
    pub probe: Vec<OsString>,
}

/// Execs could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ExecsError {
    /// The recovery's own task failed.
    #[error("recovering execs: {0}")]
    Recovery(String),
}

/// A probe that failed: what was tried, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ProbeFailure {
    /// 0 where no system call failed.
    pub errno: i32,
    /// For a person.
    pub message: String,
}

/// How full the spool is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolUsage {
    /// Bytes kept of all execs.
    pub bytes: u64,
    /// The bound.
    pub limit: u64,
    /// Set while the disk refuses what is written.
    pub error: Option<String>,
}

/// All execs of this sandbox. Clones are handles to the same ones.
#[derive(Clone, Debug)]
pub struct Execs {}

impl Execs {
    /// Opens the state directory and recovers what an earlier process left.
    pub async fn open(config: ExecsConfig, token: CancellationToken) -> Result<Self, ExecsError> {
        let _ = (config, token);
        unimplemented!()
    }

    /// Serves one exec relay to its end.
    pub async fn serve_relay(&self, request: control::ExecRelay, send: SendStream, recv: MessageReader) {
        let _ = (request, send, recv);
        unimplemented!()
    }

    /// Serves one call.
    pub async fn serve_call(&self, call: control::ExecCall, send: SendStream, recv: MessageReader) {
        let _ = (call, send, recv);
        unimplemented!()
    }

    /// All execs, oldest first.
    #[must_use]
    pub fn report(&self) -> Vec<ExecInfo> {
        unimplemented!()
    }

    /// A revision that grows with every exec that starts or ends; see [`changed_since`](Self::changed_since).
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        unimplemented!()
    }

    /// The revision now, and the execs that changed after `revision`.
    #[must_use]
    pub fn changed_since(&self, revision: u64) -> (u64, Vec<ExecInfo>) {
        let _ = revision;
        unimplemented!()
    }

    /// How many execs have not ended.
    #[must_use]
    pub fn running(&self) -> watch::Receiver<usize> {
        unimplemented!()
    }

    /// How full the spool is.
    #[must_use]
    pub fn spool_usage(&self) -> SpoolUsage {
        unimplemented!()
    }

    /// Takes the gateway's bound on execs; what is there already stays.
    pub fn set_max_execs(&self, most: usize) {
        let _ = most;
        unimplemented!()
    }

    /// Runs a real command through the spawner and reads its answer; says how long that took.
    pub async fn probe(&self, deadline: Instant) -> Result<Duration, ProbeFailure> {
        let _ = deadline;
        unimplemented!()
    }

    /// Ends all execs: SIGTERM, `grace`, SIGKILL. New ones are refused from now on.
    pub async fn shutdown(&self, grace: Duration) {
        let _ = grace;
        unimplemented!()
    }
}
