//! The local driver: a workload is a supervisor process on this machine.
//!
//! For development, and for machines that are themselves the isolation. Where it is permitted (root, or
//! CAP_SYS_ADMIN), a supervisor is the first process of its own PID namespace, with mounts of its own: then its
//! commands cannot outlive it, and do not see other processes. Files, network and users are the machine's own
//! either way. **This driver does not isolate**, and says so in its capabilities.
//!
//! ```text
//!   LocalDriver ──Request──▶ Keeper (one task a sandbox) ──▶ files under root/<sandbox>/
//!        ▲                      │        ▲                └─▶ supervisor process
//!        └────── Board ◀────────┘        └── pidfd: it has ended ──┘
//! ```
//!
//! Supervisors outlive the gateway. The next one finds them by `workload.json` (PID, start time, boot), takes
//! hold of them by pidfd, and goes on. A lock on the root keeps two gateways from one root; two roots side by side
//! share nothing.
//!
//! What a workload's first process is, and what its files are, is its [`kind::Kind`]'s to say: a supervisor here, a
//! virtual machine's holder in `vm`. All the rest is the same.

mod console;
pub(crate) mod files;
pub(crate) mod kind;
mod layout;
mod load;
mod process;
mod record;
pub(crate) mod spawn;
mod state;
mod task;
pub(crate) mod tree;

use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use holdfast_wire::{bootstrap::SpoolLimits, ids::SandboxId};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};

use self::{
    files::Dir,
    kind::Kind,
    layout::Supervisors,
    task::{Keeper, Request},
};
use crate::{
    Capabilities, ComputeDriver, DriverError, Observed, ObservedStream, Verb, Workload, WorkloadSpec,
    board::Board,
    keepers::{Keepers, Reply},
};

/// How many verbs on one sandbox may wait for each other. A gateway has one writer a sandbox; more are a fault.
const MAILBOX: usize = 64;
/// How long `list` waits for a keeper that is busy, such as with removing a large workspace, before it takes the
/// level that it last gave.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// The longest root, in bytes: what lies below it in a workspace needs the rest of Linux's 4096.
const MAX_ROOT_BYTES: usize = 2048;

/// The driver.
#[derive(Debug)]
pub struct LocalDriver {
    shared: Arc<Shared>,
}

/// How a local driver is opened.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Where workloads live; made (mode 0700) if it is not there. One gateway's alone.
    pub root: PathBuf,
    /// The supervisor's program by an absolute path, and its first arguments; `--config FILE` is added. A program
    /// of `/proc/self/exe` is this program, by its real path, so that after an upgrade the new file is started.
    pub supervisor_command: Vec<OsString>,
    /// Whether supervisors get PID and mount namespaces.
    pub namespaces: Namespaces,
    /// How much console is kept of each workload, in bytes.
    pub console_bytes: u64,
    /// The bounds of each supervisor's spool.
    pub spool: SpoolLimits,
    /// The supervisors' log filter.
    pub log: String,
    /// Workloads end with this process, however it ends, instead of being there for the next one.
    pub lifeline: bool,
}

impl LocalConfig {
    /// Workloads under `root`, made of `supervisor_command`, and the defaults for the rest.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, supervisor_command: Vec<OsString>) -> Self {
        Self {
            root: root.into(),
            supervisor_command,
            namespaces: Namespaces::Auto,
            // A supervisor says some hundred bytes per event: this is some thousand events.
            console_bytes: 1024 * 1024,
            spool: SpoolLimits::default(),
            log: "info".to_owned(),
            lifeline: false,
        }
    }
}

/// Whether supervisors get PID and mount namespaces of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Namespaces {
    /// Where the system permits it.
    #[default]
    Auto,
    /// Or the driver does not open.
    Require,
    /// Not at all.
    Never,
}

/// What keepers share.
struct Shared {
    root: Dir,
    kind: Box<dyn Kind>,
    console_bytes: u64,
    boot: String,
    board: Board,
    keepers: Keepers<mpsc::Sender<Request>>,
    /// Held until the last keeper is done, so that the next driver never meets one at work.
    lock: std::fs::File,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("root", &self.root.path())
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl LocalDriver {
    /// Opens the driver over its root, and takes hold of the workloads that are there.
    ///
    /// # Errors
    /// `InvalidSpec` for a configuration that cannot be (its field is named); `Unavailable` while another
    /// gateway has the root; what the system says of the root.
    pub async fn open(config: LocalConfig) -> Result<Self, DriverError> {
        Self::open_kind(move || {
            let kind = Supervisors::new(&config)?;
            if config.console_bytes < 4096 {
                return Err(DriverError::invalid("console_bytes", "is less than 4096: nothing useful fits"));
            }
            Ok((config.root, config.console_bytes, Box::new(kind) as Box<dyn Kind>))
        })
        .await
    }

    /// Opens a driver whose workloads are of the kind that `make` gives, with their root and their console's bound.
    pub(crate) async fn open_kind(
        make: impl FnOnce() -> Result<(PathBuf, u64, Box<dyn Kind>), DriverError> + Send + 'static,
    ) -> Result<Self, DriverError> {
        let opened = spawn_blocking(move || {
            let (root, console_bytes, kind) = make()?;
            Shared::open(&root, console_bytes, kind)
        });
        let (shared, there, removed) =
            opened.await.map_err(|panic| DriverError::internal("opening the driver", panic))??;
        let shared = Arc::new(shared);
        for sandbox in removed.into_iter().filter(|sandbox| !there.contains(sandbox)) {
            // Goes on removing, and retires; nobody waits for that.
            shared.keepers.wake(sandbox, || shared.hire(sandbox));
        }
        let driver = Self { shared };
        // A keeper answers after it has loaded.
        let loaded =
            join_all(there.into_iter().map(|sandbox| driver.call(Verb::List, sandbox, Request::Look))).await;
        loaded.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(driver)
    }

    /// Hands a request to the sandbox's keeper and waits for its answer.
    async fn call<T>(
        &self,
        verb: Verb,
        sandbox: SandboxId,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, DriverError> {
        let shared = &self.shared;
        shared.keepers.call(verb, sandbox, || shared.hire(sandbox), request).await
    }
}

#[async_trait]
impl ComputeDriver for LocalDriver {
    fn name(&self) -> &'static str {
        self.shared.kind.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.kind.capabilities()
    }

    async fn validate(&self, spec: &WorkloadSpec) -> Result<(), DriverError> {
        self.shared.keepers.is_open(Verb::Validate)?;
        self.shared.kind.check(spec)
    }

    async fn ensure(&self, spec: &WorkloadSpec) -> Result<Workload, DriverError> {
        self.shared.keepers.is_open(Verb::Ensure)?;
        self.shared.kind.check(spec)?;
        let spec = Box::new(spec.clone());
        self.call(Verb::Ensure, spec.sandbox, |reply| Request::Ensure(spec, reply)).await
    }

    async fn stop(&self, sandbox: SandboxId, grace: Duration) -> Result<(), DriverError> {
        self.call(Verb::Stop, sandbox, |reply| Request::Stop(grace, reply)).await
    }

    async fn pause(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        self.call(Verb::Pause, sandbox, Request::Pause).await
    }

    async fn resume(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        self.call(Verb::Resume, sandbox, Request::Resume).await
    }

    async fn delete(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        self.call(Verb::Delete, sandbox, Request::Delete).await
    }

    async fn list(&self) -> Result<Vec<Observed>, DriverError> {
        self.shared.keepers.is_open(Verb::List)?;
        // Ends are told by pidfd; what a signal from outside stopped must be looked for.
        let there = self.shared.board.all();
        let looks = there.iter().map(|observed| self.call(Verb::List, observed.sandbox, Request::Look));
        let _ = join_all(looks.map(|look| timeout(LOOK_PATIENCE, look))).await;
        Ok(self.shared.board.all())
    }

    async fn watch(&self) -> Result<ObservedStream, DriverError> {
        self.shared.keepers.is_open(Verb::Watch)?;
        Ok(self.shared.board.watch())
    }

    async fn logs(&self, sandbox: SandboxId, tail: usize) -> Result<Bytes, DriverError> {
        self.shared.keepers.is_open(Verb::Logs)?;
        // Not through the keeper: the console is most wanted while the keeper is busy.
        let shared = self.shared.clone();
        let read = spawn_blocking(move || {
            let dir = shared.root.dir(&sandbox.to_string())?;
            console::tail(&dir, tail, shared.console_bytes)
        });
        match read.await.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(tail) => Ok(tail),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DriverError::NotFound { verb: Verb::Logs, sandbox })
            }
            Err(error) => Err(DriverError::io(format!("logs {sandbox}"), error)),
        }
    }

    async fn close(&self) {
        self.shared.keepers.cancel().cancel();
        self.shared.board.close();
        self.shared.keepers.close().await;
        // The keepers are done, and whoever still holds this closed driver does not need it.
        let _ = flock(&self.shared.lock, FlockOperation::Unlock);
    }
}

impl Drop for LocalDriver {
    fn drop(&mut self) {
        self.shared.keepers.cancel().cancel();
        self.shared.board.close();
    }
}

impl Shared {
    fn open(
        root: &Path,
        console_bytes: u64,
        kind: Box<dyn Kind>,
    ) -> Result<(Self, Vec<SandboxId>, Vec<SandboxId>), DriverError> {
        let root = open_root(root)?;
        let lock = lock(&root)?;
        let failed = |attempted: &str, error: io::Error| DriverError::io(attempted.to_owned(), error);
        let boot = process::boot_id().map_err(|error| failed("reading the boot id", error))?;
        let (there, removed) =
            layout::sandboxes(&root).map_err(|error| failed("reading the driver's root", error))?;
        let shared = Self {
            root,
            keepers: Keepers::new(kind.name()),
            kind,
            console_bytes,
            boot,
            board: Board::default(),
            lock,
        };
        Ok((shared, there, removed))
    }

    fn dir_of(&self, sandbox: SandboxId) -> PathBuf {
        self.root.path().join(sandbox.to_string())
    }

    /// A keeper, at work.
    fn hire(self: &Arc<Self>, sandbox: SandboxId) -> mpsc::Sender<Request> {
        let (door, mailbox) = mpsc::channel(MAILBOX);
        self.keepers.tasks().spawn(Keeper::new(self.clone(), sandbox).run(mailbox));
        door
    }
}

fn open_root(path: &Path) -> Result<Dir, DriverError> {
    use std::os::unix::{ffi::OsStrExt, fs::DirBuilderExt};
    let attempted = || format!("opening the driver's root {}", path.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| DriverError::io(attempted(), error))?;
    // One spelling, because records and marks hold the path.
    let path = path.canonicalize().map_err(|error| DriverError::io(attempted(), error))?;
    if path.as_os_str().as_bytes().len() > MAX_ROOT_BYTES {
        return Err(DriverError::invalid("root", format!("is longer than {MAX_ROOT_BYTES} bytes")));
    }
    Dir::open(&path).map_err(|error| DriverError::io(attempted(), error))
}

fn lock(root: &Dir) -> Result<std::fs::File, DriverError> {
    let attempted = || format!("locking the driver's root {}", root.path().display());
    let flags = OFlags::RDWR | OFlags::CREATE;
    let file = root
        .open_file(".lock", flags, Mode::RUSR.union(Mode::WUSR).bits())
        .map_err(|error| DriverError::io(attempted(), error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(DriverError::unavailable(attempted(), "another gateway has it"))
        }
        Err(error) => Err(DriverError::io(attempted(), error)),
    }
}
