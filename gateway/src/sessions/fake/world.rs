//! A gateway without an API: the real rooms over a store in memory, a fake driver and a fake link.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use holdfast_certs::{CertificateAuthority, CertificateBundle, Identity, TrustDomain, tls};
use holdfast_drivers::{
    Bootstrap, Secret,
    fake::{FakeDriver, FakeMachine},
};
use holdfast_wire::{
    ALPN,
    api::{self, ExecSpec, SandboxSpec, exec_spec::Command},
    ids::{ExecId, Generation, SandboxId},
    timing::Tuning,
    transport::{self, Profile, Role, ServerKeys},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{FakeSupervisor, FakeWire};
use crate::{
    error::CallError,
    events::Events,
    execs::Execs,
    listener::Listener,
    sandboxes::{Bootstrapper, Parts, Sandboxes, Settings},
    sessions::{CertificateSigner, Registry, Session, Sessions},
    store::{FakeStore, Store},
};

const HOUR: Duration = Duration::from_secs(3600);

/// All of it.
#[derive(Debug)]
pub(crate) struct FakeWorld {
    pub(crate) wire: FakeWire,
    pub(crate) gateway: SocketAddr,
    pub(crate) machine: FakeMachine,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) execs: Execs,
    pub(crate) registry: Registry,
    pub(crate) listener: Listener,
    pub(crate) office: Arc<FakeOffice>,
    _directory: tempfile::TempDir,
}

/// Issues and signs.
#[derive(Debug)]
pub(crate) struct FakeOffice {
    authority: CertificateAuthority,
}

impl FakeOffice {
    pub(crate) fn sandbox(&self, sandbox: SandboxId) -> CertificateBundle {
        self.issue(SystemTime::now(), &Identity::sandbox(sandbox.0))
    }

    /// One that ran out an hour ago.
    pub(crate) fn expired(&self, sandbox: SandboxId) -> CertificateBundle {
        self.issue(SystemTime::now() - 2 * HOUR, &Identity::sandbox(sandbox.0))
    }

    fn issue(&self, from: SystemTime, identity: &Identity) -> CertificateBundle {
        let issued = self.authority.issue_at(from, identity, HOUR, &[]).unwrap();
        issued.into_bundle(self.authority.anchors()).unwrap()
    }
}

impl CertificateSigner for FakeOffice {
    fn sign(&self, sandbox: SandboxId, csr_der: &[u8]) -> Result<String, String> {
        let signed = self.authority.sign_csr(csr_der, &Identity::sandbox(sandbox.0), HOUR);
        signed.map(|signed| signed.cert_chain_pem).map_err(|error| error.to_string())
    }
}

impl Bootstrapper for FakeOffice {
    fn bootstrap(&self, sandbox: SandboxId, _: Generation) -> Result<Bootstrap, CallError> {
        let bundle = self.sandbox(sandbox);
        Ok(Bootstrap {
            addresses: vec!["127.0.0.1:7443".to_owned()],
            server_name: "gateway.holdfast.internal".to_owned(),
            cert_chain_pem: bundle.chain_pem().to_owned(),
            key_pem: Secret::new(bundle.key().expose()),
            ca_pem: bundle.anchors().pem().to_owned(),
        })
    }
}

impl FakeWorld {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority =
            CertificateAuthority::open_or_create(directory.path(), TrustDomain::default()).unwrap();
        let office = Arc::new(FakeOffice { authority });
        let (wire, machine) = (FakeWire::default(), FakeMachine::new());
        let store: Arc<dyn Store> = Arc::new(FakeStore::new());
        let (facts_in, facts) = mpsc::channel(64);
        let (events, token) = (Events::new(), CancellationToken::new());
        let parts = Parts {
            store: Arc::clone(&store),
            driver: Arc::new(FakeDriver::open(&machine)),
            bootstrapper: Arc::clone(&office) as _,
            events: events.clone(),
            tuning: Tuning::default(),
            settings: Settings::default(),
            facts: facts_in,
        };
        let sandboxes = Sandboxes::start(parts, token.child_token()).await.unwrap();
        let execs = Execs::open(Arc::clone(&store), sandboxes.clone(), events, facts, token.child_token())
            .await
            .unwrap();
        let registry = Registry::new();
        let sessions = Sessions {
            sandboxes: sandboxes.clone(),
            execs: execs.clone(),
            signer: Arc::clone(&office) as _,
            registry: registry.clone(),
            name: "gw".to_owned(),
        };
        let (gateway, socket) = wire.socket();
        let identity = office.issue(SystemTime::now(), &Identity::gateway("gw").unwrap());
        let live = tls::LiveIdentity::new(&identity);
        let policy = Arc::new(tls::NothingRefused);
        let config = tls::gateway_quic_server_config(&live, identity.anchors(), policy, &[ALPN]).unwrap();
        let keys = ServerKeys::derive(&[7; 32]);
        let door = transport::Listener::bind(socket, config, &keys, Profile::new(Role::Gateway)).unwrap();
        let listener = Listener::start(vec![door], sessions);
        Self {
            wire,
            gateway,
            machine,
            store,
            sandboxes,
            execs,
            registry,
            listener,
            office,
            _directory: directory,
        }
    }

    /// A sandbox, and its supervisor, not attached yet.
    pub(crate) async fn sandbox(&self, name: &str) -> FakeSupervisor {
        self.sandbox_with(name, SandboxSpec::default()).await
    }

    /// The same, of this spec.
    pub(crate) async fn sandbox_with(&self, name: &str, spec: SandboxSpec) -> FakeSupervisor {
        let view = self.sandboxes.create(name, spec).await.unwrap();
        let id = view.record.id;
        FakeSupervisor::new(&self.wire, self.gateway, id, self.office.sandbox(id))
    }

    /// Waits until the sandbox's session has this epoch.
    pub(crate) async fn session(&self, name: &str, epoch: u64) -> Session {
        let mut view = self.sandboxes.resolve(name).unwrap().view();
        let attached = |session: &Option<Session>| session.as_ref().is_some_and(|s| s.epoch().0 == epoch);
        let view = view.wait_for(|view| attached(&view.session)).await.unwrap();
        view.session.clone().unwrap()
    }
}

/// `echo`, with the given on_disconnect.
pub(crate) fn a_spec(on_disconnect: api::OnDisconnect) -> ExecSpec {
    let args = vec!["echo".into(), "hi".into()];
    ExecSpec {
        command: Some(Command::Argv(api::Argv { args })),
        stdin: true,
        on_disconnect: on_disconnect.into(),
        ..ExecSpec::default()
    }
}

/// Starts and attaches.
pub(crate) fn an_attach(sandbox: &str, exec: ExecId) -> api::AttachOpen {
    api::AttachOpen {
        sandbox: sandbox.to_owned(),
        exec_id: exec.to_string(),
        start: Some(a_spec(api::OnDisconnect::Keep)),
        stdin_writer: true,
        ..api::AttachOpen::default()
    }
}
