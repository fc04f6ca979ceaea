//! One life of the simulated gateway: the real core over the simulated network, until it is stopped or killed.
//!
//! What outlives it is the site: identities and keys (a data directory), the store, the machine with its workloads.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_drivers::{
    Bootstrap, ComputeDriver, Secret,
    fake::{FakeDriver, FakeMachine},
};
use holdfast_gateway::{
    core::{Core, CoreError, Parts},
    error::CallError,
    identity::{Identities, IdentityError, IdentitySettings},
    sandboxes::{self, Bootstrapper},
    sessions::CertificateSigner,
    store::FakeStore,
    wall::Wall,
};
use holdfast_wire::{
    ids::{Generation, SandboxId},
    timing::Tuning,
    transport::{Profile, Role, Socket},
};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    net::{HostId, Net},
    store::Held,
};

/// The gateway's port.
pub const PORT: u16 = 7443;

/// The name that supervisors dial.
pub const NAME: &str = "gateway.sim";

/// The machine's wall clock stands still while the paused one runs: certificates must outlive any test by their first day.
const VALIDITY: Duration = Duration::from_secs(300 * 24 * 3600);

/// What every life of the gateway has in common.
#[derive(Debug)]
pub struct Site {
    net: Net,
    host: HostId,
    identities: Arc<Issuer>,
    store: FakeStore,
    machine: FakeMachine,
    /// Runs with the paused clock over all lives of the gateway.
    wall: Wall,
}

impl Site {
    /// A gateway's site on `host`, its keys in `dir`.
    ///
    /// # Errors
    /// When the keys cannot be made.
    pub fn new(net: &Net, host: HostId, dir: &Path) -> Result<Self, IdentityError> {
        let identities = Identities::open(&IdentitySettings {
            data_dir: dir,
            trust_domain: "holdfast.internal",
            name: "sim",
            names: &[],
            sandbox_validity: VALIDITY,
        })?;
        Ok(Self {
            net: net.clone(),
            host,
            identities: Arc::new(Issuer { identities, issued: Mutex::default() }),
            store: FakeStore::new(),
            machine: FakeMachine::new(),
            wall: Wall::Simulated { began: Instant::now(), at: Timestamp::now() },
        })
    }

    /// What the driver was last given for a sandbox.
    #[must_use]
    pub fn issued(&self, sandbox: SandboxId) -> Option<Bootstrap> {
        self.identities.issued().get(&sandbox).cloned()
    }

    /// Where it listens.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.host
    }

    /// The machine with the workloads.
    #[must_use]
    pub fn machine(&self) -> &FakeMachine {
        &self.machine
    }

    /// The store, as nobody but the checks sees it.
    #[must_use]
    pub fn store(&self) -> &FakeStore {
        &self.store
    }

    /// Starts a gateway.
    ///
    /// # Errors
    /// As the core's.
    pub async fn start(&self) -> Result<Life, CoreError> {
        let socket = self.net.bind(self.host, PORT).map_err(holdfast_wire::transport::EndpointError::from)?;
        let held = Held::new(self.store.clone());
        let driver = Arc::new(FakeDriver::open(&self.machine));
        let tls = Arc::clone(&self.identities);
        let core = Core::start(Parts {
            name: "sim".to_owned(),
            store: Arc::new(held.clone()),
            driver: Arc::clone(&driver) as _,
            bootstrapper: Arc::clone(&self.identities) as _,
            signer: Arc::clone(&self.identities) as _,
            sockets: vec![Socket::Abstract(socket)],
            keys: self.identities.identities.server_keys().clone(),
            tls: Box::new(move |policy| {
                tls.identities.quic_config(policy).map_err(|error| error.to_string())
            }),
            profile: Profile::new(Role::Gateway),
            tuning: Tuning::default(),
            settings: sandboxes::Settings { wall: self.wall, ..sandboxes::Settings::default() },
        })
        .await?;
        Ok(Life {
            core,
            held,
            driver,
            net: self.net.clone(),
            host: self.host,
            dead: CancellationToken::new(),
        })
    }
}

/// A gateway that runs.
#[derive(Debug)]
pub struct Life {
    /// The real thing.
    pub core: Core,
    /// Cancelled when its process is gone: whoever is connected to it hears that at once, from its kernel.
    pub dead: CancellationToken,
    held: Held,
    driver: Arc<FakeDriver>,
    net: Net,
    host: HostId,
}

impl Life {
    /// The orderly stop, to its end.
    pub async fn stop(&self) {
        self.core.stop("the gateway stops").await;
        self.driver.close().await;
        self.dead.cancel();
        self.net.kill_sockets(self.host);
    }

    /// From here on the process is gone: nothing that its tasks still do has any effect. What is left of them ends
    /// with the returned future.
    pub fn kill(self: Arc<Self>) -> impl Future<Output = ()> {
        self.held.cut();
        self.net.kill_sockets(self.host);
        self.dead.cancel();
        async move {
            self.driver.close().await;
            self.core.stop("killed").await;
        }
    }
}

/// Issues identities, and remembers them for whoever starts the supervisors.
#[derive(Debug)]
struct Issuer {
    identities: Identities,
    issued: Mutex<HashMap<SandboxId, Bootstrap>>,
}

impl Issuer {
    fn issued(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Bootstrap>> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bootstrapper for Issuer {
    fn bootstrap(&self, sandbox: SandboxId, _: Generation) -> Result<Bootstrap, CallError> {
        let bundle = self
            .identities
            .issue_sandbox(sandbox)
            .map_err(|error| CallError::internal("issuing the sandbox's certificate", &error))?;
        let bootstrap = Bootstrap {
            addresses: vec![format!("{NAME}:{PORT}")],
            server_name: self.identities.server_name(),
            cert_chain_pem: bundle.chain_pem().to_owned(),
            key_pem: Secret::new(bundle.key().expose()),
            ca_pem: bundle.anchors().pem().to_owned(),
        };
        self.issued().insert(sandbox, bootstrap.clone());
        Ok(bootstrap)
    }
}

impl CertificateSigner for Issuer {
    fn sign(&self, sandbox: SandboxId, csr_der: &[u8]) -> Result<String, String> {
        self.identities.sign_sandbox(sandbox, csr_der).map_err(|error| error.to_string())
    }
}
