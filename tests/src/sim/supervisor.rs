//! One simulated sandbox from within: a host on the network, and one life after another of the real supervisor's
//! link and execs on it. Commands are scripts, files are not probed, and the clocks jump only where a scenario pauses.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use holdfast_certs::{BundleFiles, CertificateBundle};
use holdfast_drivers::Bootstrap;
use holdfast_supervisor::{
    clocks::{Clocks, Reading},
    execs::{
        Execs, ExecsConfig, SpoolUsage,
        spawn::{FakeSpawner, SpawnError, SpawnRequest, Spawned, Spawner},
    },
    files::Files,
    identity::Identity,
    link::{Link, ResolveError, Resolver, Seams, Sockets, Target},
    work::Work,
};
use holdfast_wire::{
    api::ExecInfo,
    bootstrap::{IdentityFiles, SpoolLimits},
    control::{ExecCall, ExecRelay, FilesRelay, Health, ProbeResult},
    ids::{ExecId, Generation, Instance, SandboxId},
    limits, timing,
    transport::{MessageReader, Profile, Role, SendStream, Socket},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::net::{HostId, Net};

/// A sandbox's inside.
#[derive(Debug)]
pub struct Inside {
    net: Net,
    host: HostId,
    gateway: HostId,
    sandbox: SandboxId,
    generation: Generation,
    dir: PathBuf,
    bootstrap: Bootstrap,
    spawner: Counting,
    seed: u64,
    life: Option<Life>,
    clocks: Option<StillClocks>,
    /// When earlier supervisors ended without having ended their commands.
    pub deaths: Vec<Instant>,
}

/// One supervisor process.
#[derive(Debug)]
struct Life {
    instance: Instance,
    link: Link,
    execs: Execs,
    token: CancellationToken,
}

/// Where and whose.
#[derive(Debug)]
pub struct Place<'a> {
    /// The network.
    pub net: &'a Net,
    /// The sandbox's host.
    pub host: HostId,
    /// The gateway's.
    pub gateway: HostId,
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// Which workload.
    pub generation: Generation,
    /// What the driver was given.
    pub bootstrap: Bootstrap,
    /// For state and identity files.
    pub dir: &'a Path,
    /// Of its random delays.
    pub seed: u64,
    /// Its clocks can be told that the machine stood still. They are looked at each second, which makes hours long.
    pub stands_still: bool,
}

impl Inside {
    /// A sandbox without a supervisor yet.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn new(place: Place<'_>) -> anyhow::Result<Self> {
        let Place { net, host, gateway, sandbox, generation, bootstrap, dir, seed, stands_still } = place;
        let dir = dir.join(sandbox.to_string());
        let identity = dir.join("identity");
        std::fs::create_dir_all(&identity)?;
        let bundle = CertificateBundle::from_pem(
            &bootstrap.cert_chain_pem,
            bootstrap.key_pem.expose(),
            &bootstrap.ca_pem,
        )?;
        BundleFiles::within(&identity).write(&bundle)?;
        Ok(Self {
            net: net.clone(),
            host,
            gateway,
            sandbox,
            generation,
            dir,
            bootstrap,
            spawner: Counting::default(),
            seed,
            life: None,
            clocks: stands_still.then(StillClocks::default),
            deaths: Vec::new(),
        })
    }

    /// Its host on the network.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.host
    }

    /// The supervisor process, if one runs.
    #[must_use]
    pub fn instance(&self) -> Option<Instance> {
        self.life.as_ref().map(|life| life.instance)
    }

    /// How often the command of an exec was started, by all supervisors together.
    #[must_use]
    pub fn starts(&self, exec: ExecId) -> usize {
        self.spawner.starts().get(&exec).copied().unwrap_or(0)
    }

    /// Commands that live now.
    #[must_use]
    pub fn commands(&self) -> usize {
        self.spawner.fake.alive()
    }

    /// Its machine stood still for so long, as its clocks will show.
    pub fn stood_still(&self, away: Duration) {
        if let Some(clocks) = &self.clocks {
            *clocks.still.lock().unwrap_or_else(PoisonError::into_inner) += away;
        }
    }

    /// Where the link stands.
    #[must_use]
    pub fn link(&self) -> Option<holdfast_supervisor::link::Status> {
        self.life.as_ref().map(|life| life.link.status().borrow().clone())
    }

    /// The execs of the supervisor that runs.
    #[must_use]
    pub fn execs(&self) -> Option<&Execs> {
        self.life.as_ref().map(|life| &life.execs)
    }

    /// Starts a supervisor; one that runs is killed first.
    ///
    /// # Errors
    /// As of its parts.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.kill();
        let instance = Instance::random();
        self.life = Some(self.open_life(instance, 0).await?);
        Ok(())
    }

    /// The supervisor is gone without a word, and its commands with it.
    pub fn kill(&mut self) {
        let Some(life) = self.life.take() else { return };
        self.net.kill_sockets(self.host);
        life.token.cancel();
        self.deaths.push(Instant::now());
    }

    /// A supervisor of another instance with execs of its own dials beside the first: what a copied disk does.
    ///
    /// # Errors
    /// As of its parts.
    pub async fn rival(&self) -> anyhow::Result<Rival> {
        Ok(Rival(self.open_life(Instance::random(), 2).await?))
    }

    async fn open_life(&self, instance: Instance, number: u64) -> anyhow::Result<Life> {
        let token = CancellationToken::new();
        let state_dir =
            self.dir.join(if number == 0 { "state".to_owned() } else { format!("state-{number}") });
        std::fs::create_dir_all(&state_dir)?;
        let config = ExecsConfig {
            state_dir,
            workspace: "/".into(),
            spool: SpoolLimits::default(),
            base_env: Vec::new(),
            default_user: None,
            max_execs: limits::MAX_EXECS,
            spawner: Arc::new(self.spawner.clone()),
            sandbox_id: self.sandbox,
            probe: vec!["echo".into()],
        };
        let execs = Execs::open(config, token.child_token()).await?;
        let link = self.dial(instance, &execs, &token, number)?;
        Ok(Life { instance, link, execs, token })
    }

    fn dial(
        &self,
        instance: Instance,
        execs: &Execs,
        token: &CancellationToken,
        number: u64,
    ) -> anyhow::Result<Link> {
        let BundleFiles { certificate, key, ca } = BundleFiles::within(&self.dir.join("identity"));
        let identity = Identity::load(&IdentityFiles { cert: certificate, key, ca }, self.sandbox)?;
        let network = Arc::new(Network { net: self.net.clone(), host: self.host, gateway: self.gateway });
        let seams = Seams {
            sockets: Arc::clone(&network) as _,
            resolver: network,
            clocks: self.clocks.clone().map(|clocks| Arc::new(clocks) as _),
            routes: None,
            profile: Profile::new(Role::Supervisor),
            seed: self.seed.wrapping_add(number + self.deaths.len() as u64),
        };
        let target = Target {
            sandbox: self.sandbox,
            generation: self.generation,
            instance,
            boot_id: "simulated".to_owned(),
            addresses: self.bootstrap.addresses.clone(),
            server_name: self.bootstrap.server_name.clone(),
        };
        let files = Files::new(self.dir.join("work"), token.child_token());
        let work = Arc::new(SimWork { execs: execs.clone(), files });
        Ok(Link::start(target, identity, work, seams, token))
    }
}

/// A supervisor beside the first. Killed when dropped.
#[derive(Debug)]
pub struct Rival(Life);

impl Drop for Rival {
    fn drop(&mut self) {
        self.0.token.cancel();
    }
}

/// The host's way into the network.
#[derive(Debug)]
struct Network {
    net: Net,
    host: HostId,
    gateway: HostId,
}

impl Sockets for Network {
    fn towards(&self, _: SocketAddr) -> Socket {
        let socket = self.net.bind(self.host, 0).expect("a simulated host has 25,000 free ports");
        Socket::Abstract(socket)
    }
}

#[async_trait]
impl Resolver for Network {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if host != super::gateway::NAME {
            return Err(ResolveError::Lookup { host: host.to_owned(), reason: "no such name".to_owned() });
        }
        Ok(vec![self.net.address(self.gateway)])
    }
}

/// Clocks of a machine that can have stood still: tokio's is the one that a suspension stops.
#[derive(Clone, Debug)]
struct StillClocks {
    began: Instant,
    still: Arc<Mutex<Duration>>,
}

impl Default for StillClocks {
    fn default() -> Self {
        Self { began: Instant::now(), still: Arc::default() }
    }
}

impl Clocks for StillClocks {
    fn read(&self) -> Reading {
        let monotonic = self.began.elapsed();
        let running = monotonic + *self.still.lock().unwrap_or_else(PoisonError::into_inner);
        Reading { monotonic, boottime: running, realtime: running }
    }
}

/// The real execs; of the probes, the exec's is real and the file's is not.
#[derive(Debug)]
struct SimWork {
    execs: Execs,
    files: Files,
}

#[async_trait]
impl Work for SimWork {
    async fn serve_relay(&self, request: ExecRelay, send: SendStream, recv: MessageReader) {
        self.execs.serve_relay(request, send, recv).await;
    }

    async fn serve_call(&self, call: ExecCall, send: SendStream, recv: MessageReader) {
        self.execs.serve_call(call, send, recv).await;
    }

    async fn serve_files(&self, request: FilesRelay, send: SendStream, recv: MessageReader) {
        self.files.serve(request, send, recv).await;
    }

    fn report(&self) -> Vec<ExecInfo> {
        self.execs.report()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.execs.changes()
    }

    fn changed_since(&self, revision: u64) -> (u64, Vec<ExecInfo>) {
        self.execs.changed_since(revision)
    }

    fn running(&self) -> watch::Receiver<usize> {
        self.execs.running()
    }

    fn doubts(&self) -> watch::Receiver<u64> {
        self.execs.doubts()
    }

    fn set_max_execs(&self, most: usize) {
        self.execs.set_max_execs(most);
    }

    async fn probe(&self) -> Health {
        let result = match self.execs.probe(Instant::now() + timing::PROBE_TIMEOUT).await {
            Ok(took) => good(took),
            Err(failure) => {
                ProbeResult { ok: false, errno: failure.errno, message: failure.message, took_ms: 0 }
            }
        };
        let SpoolUsage { bytes, limit, error } = self.execs.spool_usage();
        Health {
            nonce: 0,
            exec: Some(result),
            filesystem: Some(good(Duration::ZERO)),
            spool_bytes: bytes,
            spool_limit_bytes: limit,
            execs_running: u32::try_from(*self.execs.running().borrow()).unwrap_or(u32::MAX),
            spool_error: error.unwrap_or_default(),
            memory: self.execs.memory_health(),
        }
    }
}

fn good(took: Duration) -> ProbeResult {
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    ProbeResult { ok: true, errno: 0, message: String::new(), took_ms }
}

/// The fake spawner, and how often each exec's command was started.
#[derive(Clone, Debug, Default)]
struct Counting {
    fake: FakeSpawner,
    starts: Arc<Mutex<HashMap<ExecId, usize>>>,
}

impl Counting {
    fn starts(&self) -> std::sync::MutexGuard<'_, HashMap<ExecId, usize>> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spawner for Counting {
    fn spawn(&self, request: SpawnRequest) -> BoxFuture<'static, Result<Spawned, SpawnError>> {
        *self.starts().entry(request.exec).or_default() += 1;
        self.fake.spawn(request)
    }
}
