//! A whole gateway: a data directory, a driver, the core, the API and the HTTP port.
//!
//! ```text
//! start: lock the directory ─▶ identities ─▶ ports ─▶ store ─▶ driver (adopts what runs) ─▶ core ─▶ API, HTTP
//! stop:  not ready ─▶ supervisors sent away (they come back to the next one) ─▶ API ends ─▶ store closed
//! ```

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use holdfast_drivers::{
    Bootstrap, ComputeDriver, DriverError, Secret,
    container::{ContainerConfig, ContainerDriver},
    local::{LocalConfig, LocalDriver},
    vm::{VmConfig, VmDriver},
};
use holdfast_wire::{
    ids::{Generation, SandboxId},
    transport::{Profile, Role, Socket},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{self, Api, Facts, Tokens, TokensError},
    config::Config,
    core::{Core, CoreError, Parts},
    error::CallError,
    identity::{Identities, IdentityError, IdentitySettings, private_dir},
    observability::{self, Readiness},
    sandboxes::{self, Bootstrapper},
    sessions::CertificateSigner,
    store::{SqliteStore, Store, StoreError},
};

/// How long open calls may take to end when the gateway stops: they were told already, by their sessions' end.
const API_STOP: Duration = Duration::from_secs(2);

/// How long a gateway that is just ending is waited for. A killed process of a thousand sessions takes a second to
/// give back its memory on a loaded machine.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries at a port that the gateway before is still giving back: its lock goes a moment earlier.
const PORT_PAUSE: Duration = Duration::from_millis(50);

/// Tries at a port that is free on TCP and on UDP, where the port was left to the system.
const PORT_TRIES: usize = 16;

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    core: Arc<Core>,
    facts: Arc<Facts>,
    profile: PathBuf,
    api_token: CancellationToken,
    token: CancellationToken,
    tasks: TaskTracker,
    driver: Arc<dyn ComputeDriver>,
    // Held for as long as the gateway runs.
    _lock: fs::File,
}

/// A gateway that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another gateway runs on this data directory.
    #[error("another gateway runs on {}{}: stop it, or choose another --data-dir", dir.display(), holder)]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Its process, where that is known.
        holder: String,
    },
    /// A file of the data directory.
    #[error("{attempted} {}: {source}", path.display())]
    File {
        /// What was attempted.
        attempted: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A port could not be had.
    #[error("listening on {address} ({what}): {source}")]
    Listen {
        /// Which.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Identities.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Tokens.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// The store.
    #[error("opening the store: {0}")]
    Store(#[from] StoreError),
    /// The driver.
    #[error("opening the driver: {0}")]
    Driver(DriverError),
    /// The driver cannot be what the settings say.
    #[error("the {driver} driver: {field}: {message}")]
    DriverSetting {
        /// Which driver.
        driver: String,
        /// Which setting.
        field: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// No such driver.
    #[error("no driver {0:?}: this build has local, container and vm")]
    UnknownDriver(String),
    /// The core.
    #[error(transparent)]
    Core(#[from] CoreError),
}

impl Gateway {
    /// Starts a gateway; when this returns, it listens.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        private_dir(&config.data_dir)?;
        let lock = lock(&config.data_dir).await?;
        let names: Vec<String> = config
            .advertise
            .iter()
            .filter_map(|address| address.rsplit_once(':'))
            .map(|(host, _)| host.trim_matches(['[', ']']).to_owned())
            .collect();
        let identities = Arc::new(Identities::open(&IdentitySettings {
            data_dir: &config.data_dir,
            trust_domain: &config.trust_domain,
            name: &config.name,
            names: &names,
            sandbox_validity: config.sandbox_certificate,
        })?);
        let tokens = match &config.tokens_file {
            Some(path) => Tokens::load(path)?,
            None => Tokens::default(),
        };
        let (api_listener, socket, listen) = bind_both(config.listen).await?;
        let http_listener = listen_tcp("HTTP", config.http_listen).await?;
        let http_listen = http_listener.local_addr().unwrap_or(config.http_listen);

        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open_file(&config.data_dir.join("store.sqlite")).await?);
        let driver = open_driver(&config, listen).await?;
        let capabilities = driver.capabilities();
        let addresses =
            if config.advertise.is_empty() { vec![reachable(listen).to_string()] } else { config.advertise };
        let issuer = Arc::new(Issuer { identities: Arc::clone(&identities), addresses });
        let quic = Arc::clone(&identities);
        let core = Core::start(Parts {
            name: config.name.clone(),
            store: Arc::clone(&store),
            driver: Arc::clone(&driver),
            bootstrapper: Arc::clone(&issuer) as _,
            signer: issuer,
            sockets: vec![socket],
            keys: identities.server_keys().clone(),
            tls: Box::new(move |policy| quic.quic_config(policy).map_err(|error| error.to_string())),
            profile: Profile { congestion: config.congestion, ..Profile::new(Role::Gateway) },
            tuning: config.tuning,
            settings: sandboxes::Settings {
                boot_deadline: config.boot_deadline,
                orphan_grace: config.orphan_grace,
                ..sandboxes::Settings::default()
            },
        })
        .await?;
        let core = Arc::new(core);

        let facts = Arc::new(Facts {
            name: config.name,
            started_at: jiff::Timestamp::now(),
            driver: config.driver,
            driver_notes: capabilities.isolation_note,
            listen,
            http_listen,
            data_dir: config.data_dir.clone(),
            admins: config.admins,
            draining: AtomicBool::new(false),
        });
        let (token, api_token, tasks) =
            (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let api = Api {
            sandboxes: core.sandboxes.clone(),
            execs: core.execs.clone(),
            files: crate::files::Files::new(core.sandboxes.clone()),
            events: core.events.clone(),
            facts: Arc::clone(&facts),
            tokens: tokens.clone(),
        };
        let api_tls = identities.api_config(!tokens.is_empty())?;
        let serving = api::serve(api, api_listener, api_tls, api_token.clone(), tasks.clone());
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the API has ended");
            }
        });
        observability::metrics::install();
        let readiness = Arc::new(Ready { store, facts: Arc::clone(&facts) });
        let http = observability::serve(http_listener, readiness, token.clone());
        tasks.spawn(async move {
            if let Err(error) = http.await {
                tracing::error!(%error, "the HTTP port has ended");
            }
        });
        tasks.spawn(Arc::clone(&identities).keep_fresh(token.clone()));
        // Last, so that whoever waits for the file finds a gateway that answers.
        let profile = identities.write_client_profile(&config.data_dir, &reachable(listen).to_string())?;
        tracing::info!(%listen, http = %http_listen, data_dir = %facts.data_dir.display(), driver = %facts.driver, "the gateway listens");
        Ok(Self { core, facts, profile, api_token, token, tasks, driver, _lock: lock })
    }

    /// The client profile for this gateway.
    #[must_use]
    pub fn profile_path(&self) -> &Path {
        &self.profile
    }

    /// QUIC and the API.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.facts.listen
    }

    /// Plain HTTP.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        self.facts.http_listen
    }

    /// The rooms.
    #[must_use]
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The orderly stop. Workloads live on; the next gateway on this directory adopts them.
    pub async fn shutdown(self) {
        self.facts.draining.store(true, Ordering::Relaxed);
        self.core.stop("the gateway stops").await;
        self.api_token.cancel();
        self.token.cancel();
        self.tasks.close();
        if tokio::time::timeout(API_STOP, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "calls were still open");
        }
        self.driver.close().await;
        tracing::info!("the gateway has stopped");
    }
}

/// Issues and renews sandboxes' identities.
#[derive(Debug)]
struct Issuer {
    identities: Arc<Identities>,
    addresses: Vec<String>,
}

impl Bootstrapper for Issuer {
    fn bootstrap(&self, sandbox: SandboxId, _generation: Generation) -> Result<Bootstrap, CallError> {
        let bundle = self
            .identities
            .issue_sandbox(sandbox)
            .map_err(|error| CallError::internal("issuing the sandbox's certificate", &error))?;
        Ok(Bootstrap {
            addresses: self.addresses.clone(),
            server_name: self.identities.server_name(),
            cert_chain_pem: bundle.chain_pem().to_owned(),
            key_pem: Secret::new(bundle.key().expose()),
            ca_pem: bundle.anchors().pem().to_owned(),
        })
    }
}

impl CertificateSigner for Issuer {
    fn sign(&self, sandbox: SandboxId, csr_der: &[u8]) -> Result<String, String> {
        self.identities.sign_sandbox(sandbox, csr_der).map_err(|error| error.to_string())
    }
}

/// Ready: the store answers, and the gateway is not on its way out.
#[derive(Debug)]
struct Ready {
    store: Arc<dyn Store>,
    facts: Arc<Facts>,
}

#[async_trait::async_trait]
impl Readiness for Ready {
    async fn ready(&self) -> Result<(), String> {
        if self.facts.draining.load(Ordering::Relaxed) {
            return Err("the gateway is stopping".to_owned());
        }
        match tokio::time::timeout(Duration::from_secs(2), self.store.list(None, 1)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("the store: {error}")),
            Err(_) => Err("the store does not answer".to_owned()),
        }
    }
}

async fn open_driver(config: &Config, listen: SocketAddr) -> Result<Arc<dyn ComputeDriver>, StartError> {
    let failed = |error| match error {
        DriverError::InvalidSpec { field, message } => {
            StartError::DriverSetting { driver: config.driver.clone(), field, message }
        }
        error => StartError::Driver(error),
    };
    match config.driver.as_str() {
        "local" => {
            let root = config.data_dir.join("sandboxes");
            let mut local = LocalConfig::new(root, config.supervisor_command.clone());
            local.lifeline = config.lifeline;
            Ok(Arc::new(LocalDriver::open(local).await.map_err(failed)?))
        }
        "container" => {
            let asked = config.container.clone();
            let defaults = ContainerConfig::new(config.data_dir.join("containers"), listen);
            let container = ContainerConfig {
                engine: asked.engine,
                supervisor: asked.supervisor,
                image: asked.image,
                network: asked.network,
                mounts: asked.mounts,
                cgroup_parent: asked.cgroup_parent,
                pull_silence: asked.pull_silence.unwrap_or(defaults.pull_silence),
                advertised: config.advertise.clone(),
                ..defaults
            };
            Ok(Arc::new(ContainerDriver::open(container).await.map_err(failed)?))
        }
        "vm" => {
            let defaults = VmConfig::new(config.data_dir.join("machines"), listen);
            Ok(Arc::new(
                VmDriver::open(VmConfig {
                    rootfs_dirs: config.vm.rootfs_dirs.clone(),
                    rootfs: config.vm.rootfs.clone(),
                    parts_dir: config.vm.parts_dir.clone(),
                    boot_deadline: config.vm.boot_deadline.unwrap_or(defaults.boot_deadline),
                    ..defaults
                })
                .await
                .map_err(failed)?,
            ))
        }
        other => Err(StartError::UnknownDriver(other.to_owned())),
    }
}

/// One gateway a data directory: two would fight over its sandboxes. One that is just ending (killed a moment ago by
/// whoever starts this one) is waited for, [`LOCK_PATIENCE`].
async fn lock(dir: &Path) -> Result<fs::File, StartError> {
    let path = dir.join("gateway.lock");
    let failed = |attempted| {
        let path = path.clone();
        move |source| StartError::File { attempted, path, source }
    };
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(failed("opening"))?;
    let mut file = match file.try_lock() {
        Ok(()) => file,
        Err(fs::TryLockError::WouldBlock) => match wait_for_lock(file).await {
            Some(locked) => locked.map_err(failed("locking"))?,
            None => {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                let holder = match holder.trim() {
                    "" => String::new(),
                    pid => format!(" (process {})", pid.chars().take(20).collect::<String>()),
                };
                return Err(StartError::InUse { dir: dir.to_owned(), holder });
            }
        },
        Err(fs::TryLockError::Error(source)) => return Err(failed("locking")(source)),
    };
    file.set_len(0).map_err(failed("writing"))?;
    writeln!(file, "{}", std::process::id()).map_err(failed("writing"))?;
    Ok(file)
}

/// `None`: somebody holds it for longer. On a thread of its own, which the kernel wakes: one of the runtime's would
/// hold up the process's end for as long as the lock is held elsewhere.
async fn wait_for_lock(file: fs::File) -> Option<io::Result<fs::File>> {
    tracing::info!("waiting for another gateway to end");
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let waiter = std::thread::Builder::new().name("lock".to_owned()).spawn(move || {
        // Nobody listens any more: the lock goes with the file.
        let _ = sender.send(file.lock().map(|()| file));
    });
    if let Err(error) = waiter {
        return Some(Err(error));
    }
    tokio::time::timeout(LOCK_PATIENCE, receiver).await.ok()?.ok()
}

/// TCP and UDP on one address. A port of 0 is drawn by the system for TCP, and may be taken on UDP: then again. So
/// too where the gateway before, that has just ended, is not quite gone.
async fn bind_both(address: SocketAddr) -> Result<(TcpListener, Socket, SocketAddr), StartError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match try_both(address).await {
            Ok(bound) => return Ok(bound),
            Err(error) => error,
        };
        let in_use =
            matches!(&error, StartError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse);
        if !in_use || tries == PORT_TRIES {
            return Err(error);
        }
        tokio::time::sleep(PORT_PAUSE).await;
    }
}

async fn try_both(address: SocketAddr) -> Result<(TcpListener, Socket, SocketAddr), StartError> {
    let tcp = listen_tcp("the API", address).await?;
    let bound = tcp.local_addr().unwrap_or(address);
    // Closed again, for the transport room to open it its own way: nobody else is after this port, as TCP has it.
    std::net::UdpSocket::bind(bound).map_err(|source| StartError::Listen {
        what: "QUIC",
        address: bound,
        source,
    })?;
    Ok((tcp, Socket::Bind(bound), bound))
}

async fn listen_tcp(what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { what, address, source })
}

/// What to dial where a wildcard is listened on: this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_data_directory_has_one_gateway() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).await.unwrap();
        let error = lock(dir.path()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        // Whom the one that gave up has left waiting may have it for a moment: by a clock that goes.
        tokio::time::resume();
        lock(dir.path()).await.unwrap();
    }

    #[tokio::test]
    async fn a_gateway_that_is_just_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).await.unwrap();
        let next = lock(dir.path());
        let (next, ()) = tokio::join!(next, async { drop(held) });
        next.unwrap();
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let (_tcp, _, address) = bind_both("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind_both(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
