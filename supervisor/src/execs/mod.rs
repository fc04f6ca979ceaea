//! Execs: commands in this sandbox, durable beyond any connection. The door to this room.
//!
//! ```text
//!   relay.rs, call.rs     one task of the link's for each stream: start, attach, ask
//!        │  start_or_find          │ read by offset, ack        │ stdin, signals
//!        ▼                         ▼                            ▼
//!   Inner: the table ────────▶ Exec (exec.rs) ── spool/ ◀──── task.rs ── state.rs
//!        │ retention, limits       │ phase by watch             │
//!        └── sweep                 └ record, segments on disk   └ spawn/: the process
//! ```
//!
//! An exec belongs to the table, not to a relay: relays come and go. Its one task drives it to its outcome; the
//! outcome is written to disk before it is told, and kept `retain_for`. A later supervisor process finds the records
//! here: what had ended is kept, what had not is `lost` and what is left of it is killed.
//!
//! A command that ends by itself leaves its background processes running, as with `docker exec`; the pipes that
//! they hold are read to nowhere, so that they do not die of SIGPIPE.

mod call;
mod exec;
mod open;
mod probe;
mod relay;
mod signs;
pub mod spawn;
pub mod spool;
mod state;
mod stdin;
mod table;
mod task;

use std::{
    ffi::OsString,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use holdfast_wire::{
    api::ExecInfo,
    bootstrap::SpoolLimits,
    control::{self, MemoryHealth},
    ids::SandboxId,
    timing,
    transport::{MessageReader, SendStream},
};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use probe::{PROBE_SUBCOMMAND, ProbeFailure, answer_probe, own_probe};
pub(crate) use relay::{Refusal, accept, finish, refuse};
use signs::Signs;
pub use spawn::{FakeSpawner, RealSpawner, Spawner};
use spool::Disk;
use table::Table;

/// What execs need to know.
#[derive(Clone)]
pub struct ExecsConfig {
    /// The supervisor's own directory; execs live in `execs/` below it.
    pub state_dir: PathBuf,
    /// Where a command runs that names no directory.
    pub workspace: PathBuf,
    /// Bounds of what is kept of the output. An exec's is never less than 1 MiB: callers acknowledge in steps of a
    /// quarter of that.
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
    /// The command that [`Execs::probe`] runs, a nonce appended; it must print the nonce and exit with 0. See
    /// [`own_probe`].
    pub probe: Vec<OsString>,
}

impl std::fmt::Debug for ExecsConfig {
    /// Without the environment: its values never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecsConfig")
            .field("state_dir", &self.state_dir)
            .field("workspace", &self.workspace)
            .field("spool", &self.spool)
            .field("default_user", &self.default_user)
            .field("max_execs", &self.max_execs)
            .field("spawner", &self.spawner)
            .field("sandbox_id", &self.sandbox_id)
            .finish_non_exhaustive()
    }
}

/// Execs could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ExecsError {
    /// The recovery's own thread failed.
    #[error("recovering what an earlier supervisor left in {}: {message}", state_dir.display())]
    Recovery {
        /// Where.
        state_dir: PathBuf,
        /// What it said.
        message: String,
    },
}

/// How full the spool is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolUsage {
    /// Bytes kept of all execs, in memory and on disk.
    pub bytes: u64,
    /// The bound on them.
    pub limit: u64,
    /// Set while the disk refuses what is written to it.
    pub error: Option<String>,
}

/// All execs of this sandbox. Clones are handles to the same ones.
#[derive(Clone, Debug)]
pub struct Execs {
    inner: Arc<Inner>,
}

/// Discarded pipes at once: each is a descriptor and a small task. Beyond it, a background process that writes gets
/// SIGPIPE.
const HELD_PIPES: usize = 256;

/// On top of the grace, what ending all execs may take: the kill, the drain, the record.
const SHUTDOWN_SLACK: Duration = Duration::from_secs(5);

/// What the door, the relays and the tasks share.
#[derive(Debug)]
struct Inner {
    config: ExecsConfig,
    disk: Arc<Disk>,
    table: Table,
    max_execs: AtomicUsize,
    stopping: AtomicBool,
    /// Grows with every exec that is accepted, runs or ends.
    revision: watch::Sender<u64>,
    running: watch::Sender<usize>,
    signs: Signs,
    /// Bumped when the sweep has a new deadline to look at.
    swept: watch::Sender<()>,
    held_pipes: Arc<Semaphore>,
    tracker: TaskTracker,
    /// Execs' tasks, apart from the rest: shutdown waits for these.
    commands: TaskTracker,
    token: CancellationToken,
}

impl Execs {
    /// Opens the state directory and recovers what an earlier process left: ended execs with their output, the
    /// others as `lost{SUPERVISOR_RESTARTED}`, their processes killed. A state directory that cannot be used is no
    /// error: execs then live in memory, and [`spool_usage`](Self::spool_usage) says so.
    ///
    /// `token` ends everything at once, commands included; for an orderly end call [`shutdown`](Self::shutdown) first.
    pub async fn open(config: ExecsConfig, token: CancellationToken) -> Result<Self, ExecsError> {
        open::open(config, token).await.map(|inner| Self { inner })
    }

    /// Serves one exec relay: writes the `RelayReply`, then frames; returns when the relay is over.
    pub async fn serve_relay(&self, request: control::ExecRelay, send: SendStream, recv: MessageReader) {
        relay::serve(&self.inner, request, send, recv).await;
    }

    /// Serves one call: writes the `RelayReply`, then the `ExecAnswer`.
    pub async fn serve_call(&self, call: control::ExecCall, send: SendStream, recv: MessageReader) {
        call::serve(&self.inner, call, send, recv).await;
    }

    /// All execs, the oldest first.
    #[must_use]
    pub fn report(&self) -> Vec<ExecInfo> {
        self.inner.report()
    }

    /// A revision that grows with every exec that is accepted, runs or ends: wake by this, ask
    /// [`changed_since`](Self::changed_since). Nothing is lost to a slow listener, and nothing queues up for it.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    /// The revision now, and the execs that have changed after `revision`, as they are now. Execs that were removed
    /// (after their retain_for) are not told.
    #[must_use]
    pub fn changed_since(&self, revision: u64) -> (u64, Vec<ExecInfo>) {
        let now = *self.inner.revision.borrow();
        let execs = self.inner.table.all();
        (now, execs.iter().filter(|exec| exec.changed_at() > revision).map(|exec| exec.info()).collect())
    }

    /// How many execs have not ended.
    #[must_use]
    pub fn running(&self) -> watch::Receiver<usize> {
        self.inner.running.subscribe()
    }

    /// Grows whenever an exec's end says that the sandbox itself may be broken: it should be probed.
    #[must_use]
    pub fn doubts(&self) -> watch::Receiver<u64> {
        self.inner.signs.doubts()
    }

    /// What the kernel has killed because memory ran out; `None` where it does not count.
    #[must_use]
    pub fn memory_health(&self) -> Option<MemoryHealth> {
        self.inner.signs.memory_health()
    }

    /// How full the spool is, and whether its disk works.
    #[must_use]
    pub fn spool_usage(&self) -> SpoolUsage {
        let disk = &self.inner.disk;
        SpoolUsage { bytes: disk.used(), limit: disk.limit(), error: disk.error() }
    }

    /// Takes the gateway's bound on execs. Those that are there stay, even if they are more.
    pub fn set_max_execs(&self, most: usize) {
        self.inner.max_execs.store(most.max(1), Ordering::Relaxed);
    }

    /// Runs a real command through the spawner and reads its answer; says how long that took. At `deadline` it has
    /// failed, and what was started is killed.
    pub async fn probe(&self, deadline: Instant) -> Result<Duration, ProbeFailure> {
        probe::run(&self.inner, deadline).await
    }

    /// Ends all execs: SIGTERM to their groups, `grace`, SIGKILL; their outcomes are cancelled by "sandbox stopped",
    /// and on disk when this returns. New ones are refused from now on.
    pub async fn shutdown(&self, grace: Duration) {
        let inner = &self.inner;
        inner.stopping.store(true, Ordering::SeqCst);
        for exec in inner.table.all() {
            exec.cancel("sandbox stopped", Some(grace));
        }
        inner.commands.close();
        let bound = grace + timing::DRAIN_MAX + SHUTDOWN_SLACK;
        if tokio::time::timeout(bound, inner.commands.wait()).await.is_err() {
            let left = inner.commands.len();
            tracing::error!(left, "execs that did not end in time: left behind");
        }
    }
}

#[cfg(test)]
mod tests;
