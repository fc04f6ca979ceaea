//! The gateway without its API: store, sandboxes, execs, sessions and the supervisors' door, put together.
//!
//! A whole [`Gateway`](crate::Gateway) adds TLS files, the API and the HTTP port around it. The simulation makes a
//! core of a store, a driver and a link of its own.

use std::{fmt, sync::Arc};

use holdfast_certs::{SpiffeId, tls::RevocationPolicy};
use holdfast_drivers::ComputeDriver;
use holdfast_wire::{
    ids::SandboxId,
    timing::Tuning,
    transport::{self, EndpointError, Profile, ServerKeys, Socket},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    error::CallError,
    events::Events,
    execs::Execs,
    listener::Listener,
    sandboxes::{self, Bootstrapper, Sandboxes},
    sessions::{CertificateSigner, Registry, Sessions},
    store::Store,
};

/// Facts about sandboxes that wait for the exec room. Each sandbox's task waits for room by itself.
const FACTS: usize = 256;

/// Makes the door's TLS configuration with a policy that refuses deleted sandboxes.
pub type TlsOf = Box<dyn FnOnce(Arc<dyn RevocationPolicy>) -> Result<rustls::ServerConfig, String> + Send>;

/// What a core is made of.
pub struct Parts {
    /// The gateway's name.
    pub name: String,
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// What makes workloads.
    pub driver: Arc<dyn ComputeDriver>,
    /// Who gives supervisors their identity.
    pub bootstrapper: Arc<dyn Bootstrapper>,
    /// Who renews it.
    pub signer: Arc<dyn CertificateSigner>,
    /// What supervisors dial: one socket for each address family.
    pub sockets: Vec<Socket>,
    /// The keys that outlive the process.
    pub keys: ServerKeys,
    /// TLS for the door.
    pub tls: TlsOf,
    /// Transport settings.
    pub profile: Profile,
    /// What supervisors are told.
    pub tuning: Tuning,
    /// Times and bounds of sandboxes.
    pub settings: sandboxes::Settings,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("name", &self.name)
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}

/// A core that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// A room could not.
    #[error("{0}")]
    Call(#[from] CallError),
    /// The door could not be opened.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// TLS for the door.
    #[error("TLS for supervisors: {0}")]
    Tls(String),
}

/// The rooms, running.
#[derive(Debug)]
pub struct Core {
    /// Sandboxes.
    pub sandboxes: Sandboxes,
    /// Execs.
    pub execs: Execs,
    /// What happens.
    pub events: Events,
    /// The supervisors' door.
    pub listener: Listener,
    token: CancellationToken,
}

impl Core {
    /// Starts the rooms in the order in which they need each other; the door opens last.
    pub async fn start(parts: Parts) -> Result<Self, CoreError> {
        let token = CancellationToken::new();
        let events = Events::new();
        let (facts, facts_out) = mpsc::channel(FACTS);
        let sandboxes = Sandboxes::start(
            sandboxes::Parts {
                store: Arc::clone(&parts.store),
                driver: parts.driver,
                bootstrapper: parts.bootstrapper,
                events: events.clone(),
                tuning: parts.tuning,
                settings: parts.settings,
                facts,
            },
            token.child_token(),
        )
        .await?;
        let execs =
            Execs::open(parts.store, sandboxes.clone(), events.clone(), facts_out, token.child_token())
                .await?;
        let sessions = Sessions {
            sandboxes: sandboxes.clone(),
            execs: execs.clone(),
            signer: parts.signer,
            registry: Registry::new(),
            name: parts.name,
        };
        let tls = (parts.tls)(Arc::new(Deleted(sandboxes.clone()))).map_err(CoreError::Tls)?;
        let doors = parts
            .sockets
            .into_iter()
            .map(|socket| transport::Listener::bind(socket, tls.clone(), &parts.keys, parts.profile))
            .collect::<Result<Vec<_>, _>>()?;
        let listener = Listener::start(doors, sessions);
        Ok(Self { sandboxes, execs, events, listener, token })
    }

    /// The orderly stop: supervisors are sent away with a time to return, attached callers are told, tasks end.
    /// Workloads and their commands live on.
    pub async fn stop(&self, reason: &str) {
        self.listener.drain(reason).await;
        self.execs.shutdown().await;
        self.sandboxes.shutdown().await;
        self.token.cancel();
    }
}

/// Refuses the certificates of sandboxes that are deleted or were never here.
struct Deleted(Sandboxes);

impl RevocationPolicy for Deleted {
    fn is_refused(&self, id: &SpiffeId) -> bool {
        id.identity.sandbox_id().is_some_and(|id| self.0.is_refused(&SandboxId(id)))
    }
}
