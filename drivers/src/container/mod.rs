//! The container driver: a workload is a container of Docker or Podman, spoken to by the Docker API.
//!
//! The supervisor's static binary is put into any image, an empty one too, by a read-only mount, and is the
//! container's first process. The image's own entrypoint is not run by the engine: where it is asked for, the driver says
//! what it is ([`Observed::main`]), and the gateway runs it as an exec. The workspace is a volume of the engine's and
//! outlives containers; a container belongs to one generation and is never started twice.
//!
//! ```text
//!   ContainerDriver ──Request──▶ Keeper (one task a sandbox that is asked for something) ──▶ engine, record
//!        ▲                            ▲                                                        │
//!        └────── Board ◀──────────────┼── level ◀─────────────── a look ◀──────────────────────┘
//!                                     └── Look ◀── events (one task: the engine's events, and a list every 30 s)
//! ```
//!
//! Labels mark what is this gateway's: nothing without them is touched. Containers outlive the gateway; the next one
//! finds them by these labels. A lock on the root keeps two gateways from one root.

mod address;
mod engine;
mod events;
mod image;
mod oom;
mod recipe;
mod record;
mod socket;
mod state;
mod supervisor;
mod task;

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_wire::{bootstrap::SpoolLimits, ids::SandboxId};

use self::{
    address::Reach,
    engine::Engine,
    task::{ContainerDoor, Keeper, Request},
};
use crate::{
    BootStage, Capabilities, ComputeDriver, DriverError, Isolation, Observed, ObservedStream, Verb, Workload,
    WorkloadSpec,
    board::Board,
    keepers::{Keepers, Reply},
};

/// How many verbs on one sandbox may wait for each other. A gateway has one writer a sandbox; beside it there are
/// looks, of which a busy engine can make many.
const MAILBOX: usize = 256;

/// How long a registry may be silent in the middle of a pull, if nobody says.
const PULL_SILENCE: Duration = Duration::from_secs(120);

/// The driver.
#[derive(Debug)]
pub struct ContainerDriver {
    shared: Arc<Shared>,
}

/// How a container driver is opened.
#[derive(Clone, Debug)]
pub struct ContainerConfig {
    /// Where records and the supervisors' files live; made (mode 0700) if it is not there. One gateway's alone.
    pub root: PathBuf,
    /// The engine's address; `None`: as docker's and podman's own tools find it.
    pub engine: Option<String>,
    /// The static supervisor; `None`: the one beside this program.
    pub supervisor: Option<PathBuf>,
    /// The image of sandboxes that name none.
    pub image: Option<String>,
    /// The network of sandboxes that name none; `None`: the engine's default bridge.
    pub network: Option<String>,
    /// What sandboxes may mount: paths (with all below them) and names of volumes.
    pub mounts: Vec<String>,
    /// The cgroup that the engine puts containers under; `None`: the engine's own choice.
    pub cgroup_parent: Option<String>,
    /// A pull of an image that says nothing for so long has failed.
    pub pull_silence: Duration,
    /// What the gateway listens on, QUIC that is.
    pub listen: SocketAddr,
    /// What supervisors shall dial; empty: worked out from `listen` and the container's network.
    pub advertised: Vec<String>,
    /// The bounds of each supervisor's spool.
    pub spool: SpoolLimits,
    /// The supervisors' log filter.
    pub log: String,
}

impl ContainerConfig {
    /// Containers of the engine that the usual tools find, and the defaults for the rest.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            root: root.into(),
            engine: None,
            supervisor: None,
            image: None,
            network: None,
            mounts: Vec::new(),
            cgroup_parent: None,
            pull_silence: PULL_SILENCE,
            listen,
            advertised: Vec::new(),
            spool: SpoolLimits::default(),
            log: "info".to_owned(),
        }
    }
}

/// What was configured, checked.
#[derive(Debug)]
struct Settings {
    image: Option<String>,
    network: Option<String>,
    mounts: Vec<String>,
    cgroup_parent: Option<String>,
    pull_silence: Duration,
    reach: Reach,
    spool: SpoolLimits,
    log: String,
}

/// What keepers share.
struct Shared {
    root: PathBuf,
    engine: Engine,
    supervisor: PathBuf,
    /// What this root's containers and volumes are labelled with.
    installation: String,
    settings: Settings,
    board: Board,
    keepers: Keepers<ContainerDoor>,
    /// Held until the last keeper is done, so that the next driver never meets one at work.
    lock: fs::File,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("root", &self.root)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

impl ContainerDriver {
    /// Finds the engine, opens the driver over its root, and takes hold of the containers that are there.
    ///
    /// # Errors
    /// `InvalidSpec` for a configuration that cannot be (its field is named, and what to do); `Unavailable` where no
    /// engine answers, or while another gateway has the root.
    pub async fn open(config: ContainerConfig) -> Result<Self, DriverError> {
        let reach = Reach { listen: config.listen, advertised: config.advertised };
        reach.check().map_err(|message| DriverError::invalid("listen", message))?;
        let supervisor = supervisor::find(config.supervisor.as_deref())?;
        let engine = connect(config.engine.as_deref()).await?;
        if engine.remapped {
            let message = "the engine maps root in containers to another user (userns-remap), who cannot read the \
                supervisors' files: use an engine without it, or a rootless one";
            return Err(DriverError::invalid("engine", message));
        }
        let (root, lock) = open_root(&config.root)?;
        let installation = record::installation(&root)
            .map_err(|error| DriverError::io("reading the container driver's installation id", error))?;
        let shared = Arc::new(Shared {
            root,
            engine,
            supervisor,
            installation,
            settings: Settings {
                image: config.image,
                network: config.network,
                mounts: config.mounts,
                cgroup_parent: config.cgroup_parent,
                pull_silence: config.pull_silence,
                reach,
                spool: config.spool,
                log: config.log,
            },
            board: Board::default(),
            keepers: Keepers::new("container"),
            lock,
        });
        let driver = Self { shared: shared.clone() };
        events::look_at_all(&shared, true).await?;
        shared.keepers.tasks().spawn(events::follow(shared.clone()));
        let engine = &shared.engine;
        tracing::info!(engine = %engine.kind, version = engine.version, address = %engine.address, "containers are made by");
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
impl ComputeDriver for ContainerDriver {
    fn name(&self) -> &'static str {
        "container"
    }

    fn capabilities(&self) -> Capabilities {
        let engine = &self.shared.engine;
        // The freezer of cgroup v1 belongs to root.
        let limits = !(engine.rootless && engine.cgroup_v1);
        let rootless = if engine.rootless { ", rootless" } else { "" };
        let cgroup = if engine.cgroup_v1 { "cgroup v1" } else { "cgroup v2" };
        Capabilities {
            pause: limits,
            stop_start: true,
            adoption: true,
            logs: true,
            boot: vec![BootStage::Image, BootStage::Created, BootStage::Started],
            images: true,
            entrypoints: true,
            resources: limits,
            isolation: Isolation::Container,
            isolation_note: format!(
                "containers of {} {}{rootless}, {cgroup}: files, processes and network of their own, and this machine's kernel",
                engine.kind, engine.version
            ),
        }
    }

    async fn validate(&self, spec: &WorkloadSpec) -> Result<(), DriverError> {
        self.shared.keepers.is_open(Verb::Validate)?;
        self.check(spec)?;
        let engine = &self.shared.engine;
        if spec.main.is_some()
            && let Some(name) = recipe::image(&self.shared, spec)
            // One that has to be pulled first is looked at when it is there.
            && let Some(image) = image::look(engine, name).await?
        {
            recipe::main_command(spec, &image)?;
        }
        let network = recipe::network(&self.shared, spec);
        match engine.network(network).await? {
            Some(_) => Ok(()),
            None => Err(DriverError::invalid("network", format!("the engine has no network {network:?}"))),
        }
    }

    async fn ensure(&self, spec: &WorkloadSpec) -> Result<Workload, DriverError> {
        self.shared.keepers.is_open(Verb::Ensure)?;
        self.check(spec)?;
        let spec = Box::new(spec.clone());
        self.call(Verb::Ensure, spec.sandbox, |reply| Request::Ensure(spec, reply)).await
    }

    async fn stop(&self, sandbox: SandboxId, grace: Duration) -> Result<(), DriverError> {
        self.call(Verb::Stop, sandbox, |reply| Request::Stop(grace, reply)).await
    }

    async fn pause(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        self.may_pause(Verb::Pause)?;
        self.call(Verb::Pause, sandbox, Request::Pause).await
    }

    async fn resume(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        self.may_pause(Verb::Resume)?;
        self.call(Verb::Resume, sandbox, Request::Resume).await
    }

    async fn delete(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        self.call(Verb::Delete, sandbox, Request::Delete).await
    }

    async fn list(&self) -> Result<Vec<Observed>, DriverError> {
        self.shared.keepers.is_open(Verb::List)?;
        events::look_at_all(&self.shared, false).await?;
        Ok(self.shared.board.all())
    }

    async fn watch(&self) -> Result<ObservedStream, DriverError> {
        self.shared.keepers.is_open(Verb::Watch)?;
        Ok(self.shared.board.watch())
    }

    async fn logs(&self, sandbox: SandboxId, tail: usize) -> Result<Bytes, DriverError> {
        let missing = || DriverError::NotFound { verb: Verb::Logs, sandbox };
        let id = self.call(Verb::Logs, sandbox, Request::Container).await?.ok_or_else(missing)?;
        self.shared.engine.logs(&id, tail).await?.ok_or_else(missing)
    }

    async fn close(&self) {
        self.shared.keepers.cancel().cancel();
        self.shared.board.close();
        self.shared.keepers.close().await;
        // The keepers are done, and whoever still holds this closed driver does not need it.
        let _ = self.shared.lock.unlock();
    }
}

impl ContainerDriver {
    fn check(&self, spec: &WorkloadSpec) -> Result<(), DriverError> {
        recipe::check(&self.shared, spec)?;
        match spec.resources.first_set() {
            Some(field) if !self.capabilities().resources => Err(DriverError::invalid(
                field,
                "a rootless engine cannot enforce limits on cgroup v1: leave it out, or use a rootful one",
            )),
            _ => Ok(()),
        }
    }

    fn may_pause(&self, verb: Verb) -> Result<(), DriverError> {
        if self.capabilities().pause {
            Ok(())
        } else {
            Err(DriverError::Unsupported { driver: "container", verb })
        }
    }
}

impl Drop for ContainerDriver {
    fn drop(&mut self) {
        self.shared.keepers.cancel().cancel();
        self.shared.board.close();
    }
}

impl Shared {
    /// Hands over a request whose answer nobody waits for. False: too many wait already.
    fn ask(self: &Arc<Self>, sandbox: SandboxId, request: Request) -> bool {
        self.keepers.hand_over(sandbox, || self.hire(sandbox), request).is_ok()
    }

    /// A keeper, at work.
    fn hire(self: &Arc<Self>, sandbox: SandboxId) -> ContainerDoor {
        let (door, keeper, mailbox) = Keeper::new(self.clone(), sandbox, MAILBOX);
        self.keepers.tasks().spawn(keeper.run(mailbox));
        door
    }
}

/// The first engine that answers where one may be.
async fn connect(configured: Option<&str>) -> Result<Engine, DriverError> {
    let candidates = socket::candidates(configured, |name| std::env::var_os(name))
        .map_err(|message| DriverError::invalid("engine", message))?;
    let mut tried = Vec::new();
    for (source, address) in candidates {
        match Engine::connect(address.clone()).await {
            Ok(engine) => return Ok(engine),
            Err(error) => tried.push(format!("{address} ({source}): {error}")),
        }
    }
    let message = format!(
        "no engine answers: {}. Start docker, or `podman system service`, or name one by --engine",
        tried.join("; ")
    );
    Err(DriverError::unavailable("looking for docker or podman", message))
}

fn open_root(path: &Path) -> Result<(PathBuf, fs::File), DriverError> {
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    let attempted = || format!("opening the container driver's root {}", path.display());
    let failed = |error| DriverError::io(attempted(), error);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    // One spelling, because the engine mounts what lies in it.
    let path = path.canonicalize().map_err(failed)?;
    if path.to_str().is_none_or(|text| text.contains([',', ':'])) {
        return Err(DriverError::invalid(
            "root",
            format!(
                "{} has a ',' or a ':' in it, or is no text: engines cannot mount from there",
                path.display()
            ),
        ));
    }
    let lock =
        fs::File::options().create(true).truncate(false).write(true).mode(0o600).open(path.join(".lock"));
    let lock = lock.map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok((path, lock)),
        Err(fs::TryLockError::WouldBlock) => {
            Err(DriverError::unavailable(attempted(), "another gateway has it"))
        }
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}
