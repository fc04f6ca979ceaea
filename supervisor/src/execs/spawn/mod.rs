//! Starting a command: what is asked, what comes of it, and the trait between execs and whatever starts processes.
//!
//! ```text
//!   SpawnRequest ──▶ Spawner ──▶ Spawned { pid, stdin, stdout, stderr, wait, control }
//!                       │           └─ dropped before its leader was reaped: everything of it is killed
//!                       └─▶ SpawnError { kind, errno, message }   the command never ran
//! ```
//!
//! [`RealSpawner`] forks; [`fake::FakeSpawner`] plays little scripts on tokio's clock, for the simulation. An exec
//! owns what it was given: nobody else waits for the leader, and nobody calls `waitpid(-1)`.

mod cgroup;
mod child;
pub mod fake;
mod lookup;
mod oom;
mod processes;
mod pty;
mod real;
mod users;

use std::{ffi::OsString, io, path::PathBuf, time::Duration};

use futures::future::BoxFuture;
use holdfast_wire::{api::StartFailure, ids::ExecId};
use tokio::io::{AsyncRead, AsyncWrite};

pub use fake::FakeSpawner;
pub use real::RealSpawner;
pub(crate) use users::{Account, give_workspace, resolve as resolve_user};

/// Starts processes.
pub trait Spawner: Send + Sync + std::fmt::Debug + 'static {
    /// Starts what is asked. Dropping the future, or what it gives, kills what was started.
    fn spawn(&self, request: SpawnRequest) -> BoxFuture<'static, Result<Spawned, SpawnError>>;

    /// Kills what an earlier supervisor process left of an exec, if it is provably that. Blocks for as long as a
    /// look through `/proc` takes. Returns how many processes that were.
    fn kill_leftovers(&self, exec: ExecId, mark: &ProcessMark) -> usize {
        let _ = (exec, mark);
        0
    }

    /// What is known of memory now. Reads a small file.
    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }
}

/// Memory as the kernel counts it for the supervisor and all that it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// How many processes it has killed because memory ran out; `None`: nothing is counted.
    pub kills: Option<u64>,
    /// The bound in bytes.
    pub limit: Option<u64>,
}

/// The variable that every command of an exec carries; also how its strays are found again.
pub const EXEC_ID_VARIABLE: &str = "HOLDFAST_EXEC_ID";

/// What to start.
#[derive(Clone)]
pub struct SpawnRequest {
    /// For the cgroup's name and for [`EXEC_ID_VARIABLE`].
    pub exec: ExecId,
    /// At least one; the first is looked up in `env`'s PATH.
    pub argv: Vec<OsString>,
    /// The whole environment but what depends on the user: HOME, USER, LOGNAME and SHELL are put in front of it.
    pub env: Vec<(OsString, OsString)>,
    /// An absolute path.
    pub cwd: PathBuf,
    /// `cwd` is the sandbox's own workspace and not the caller's choice: it is entered before the change of user,
    /// because the directories above it may be the supervisor's alone.
    pub in_workspace: bool,
    /// A name, a uid, `uid:gid` or `name:group`; `None`: as the supervisor.
    pub user: Option<String>,
    /// Columns and rows; `None`: pipes.
    pub tty: Option<(u16, u16)>,
    /// False: stdin is `/dev/null` (or, on a terminal, never written).
    pub stdin: bool,
}

impl std::fmt::Debug for SpawnRequest {
    /// Without the environment: its values never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpawnRequest")
            .field("exec", &self.exec)
            .field("argv", &self.argv)
            .field("cwd", &self.cwd)
            .field("user", &self.user)
            .field("tty", &self.tty)
            .field("stdin", &self.stdin)
            .finish_non_exhaustive()
    }
}

/// What the command reads its input from; this side writes.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// What the command writes its output to; this side reads.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A command that runs.
pub struct Spawned {
    /// The leader of its session and process group.
    pub pid: u32,
    /// Absent where the request wanted none.
    pub stdin: Option<Input>,
    /// Standard output, or the terminal.
    pub stdout: Output,
    /// Absent on a terminal.
    pub stderr: Option<Output>,
    /// The leader's end. Reaps it: to be polled by one task only.
    pub wait: BoxFuture<'static, io::Result<Exit>>,
    /// Signals, sizes, and the end of the rest.
    pub control: Box<dyn Control>,
}

impl std::fmt::Debug for Spawned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spawned").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// How a leader ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It called exit.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// Its number.
        signal: i32,
        /// It left a core.
        core: bool,
        /// The out-of-memory killer is known to have sent it.
        oom: bool,
    },
}

/// The hold on a running command and on all that belongs to it. Dropped while anything that must not outlive its
/// exec is left, it kills that.
pub trait Control: Send {
    /// Signals the process group. ESRCH: nobody is left in it.
    fn signal(&mut self, signal: i32) -> io::Result<()>;

    /// Changes the terminal's size. ENOTTY: it has none.
    fn resize(&mut self, cols: u16, rows: u16) -> io::Result<()>;

    /// SIGKILL to everything of the exec: its cgroup, or its session and strays. Says whether anything was left
    /// besides the leader.
    fn kill_all(&mut self) -> BoxFuture<'static, bool>;

    /// Completes once nothing of the exec is left but, maybe, the unreaped leader.
    fn gone(&mut self) -> BoxFuture<'static, ()>;

    /// The leader has been reaped: its pid may be another's from now on.
    fn reaped(&mut self);

    /// The exec has ended, and what is left of it may live on: dropping this kills nothing any more.
    fn release(&mut self);

    /// What a later supervisor process needs to find this one's leftovers.
    fn mark(&self) -> ProcessMark;
}

/// Names a leader so that it cannot be taken for another process of the same pid.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ProcessMark {
    /// Of the leader, its session and its process group.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: when it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// The kernel's boot: pids mean nothing in another.
    pub boot_id: String,
    /// The exec's own cgroup, if it has one.
    pub cgroup: Option<String>,
}

/// A command that could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SpawnError {
    /// Which step failed.
    pub kind: StartFailure,
    /// 0 where no system call failed.
    pub errno: i32,
    /// For a person: what was tried, and what came of it.
    pub message: String,
}

impl SpawnError {
    fn new(kind: StartFailure, errno: i32, message: impl Into<String>) -> Self {
        Self { kind, errno, message: message.into() }
    }

    /// Of a system call.
    fn io(kind: StartFailure, error: &io::Error, what: impl std::fmt::Display) -> Self {
        Self { kind, errno: error.raw_os_error().unwrap_or(0), message: format!("{what}: {error}") }
    }
}

/// The pause between two rounds of killing where the kernel has no `cgroup.kill`: long enough for the killed to
/// go, short enough for a fork bomb to gain little.
const KILL_ROUND: Duration = Duration::from_millis(20);
