//! The whole room over a fake store and a fake machine, on a paused clock.

mod life;
mod lifetimes;
mod sessions;
mod workloads;

use holdfast_drivers::{
    DriverError, Exit, Secret, WorkloadState,
    fake::{FakeDriver, FakeMachine, Step},
};
use holdfast_wire::{
    api::ConditionStatus,
    close::CloseCode,
    control::{Down, Health, ProbeResult, RefuseCode, down},
};

use super::*;
use crate::{
    sessions::{Hello, Lost, Session, fake::FakeSessions},
    store::FakeStore,
};

#[derive(Debug)]
struct FakeBootstrapper;

impl Bootstrapper for FakeBootstrapper {
    fn bootstrap(&self, _: SandboxId, _: Generation) -> Result<Bootstrap, CallError> {
        let pem = "-----BEGIN CERTIFICATE-----\nsample\n-----END CERTIFICATE-----\n";
        Ok(Bootstrap {
            addresses: vec!["127.0.0.1:9".to_owned()],
            server_name: "gateway.holdfast.internal".to_owned(),
            cert_chain_pem: pem.to_owned(),
            key_pem: Secret::new(pem),
            ca_pem: pem.to_owned(),
        })
    }
}

/// A gateway's sandboxes, and what lies under them.
struct Bench {
    store: FakeStore,
    machine: FakeMachine,
    events: Events,
    facts: mpsc::Receiver<SandboxFact>,
    sandboxes: Sandboxes,
    sessions: FakeSessions,
    dials: u64,
    /// Runs with the paused clock, over all gateways.
    wall: Wall,
}

impl Bench {
    async fn new() -> Self {
        Self::over(FakeStore::new(), FakeMachine::new()).await
    }

    async fn over(store: FakeStore, machine: FakeMachine) -> Self {
        let driver = FakeDriver::open(&machine);
        Self::with(store, machine, driver).await
    }

    async fn with(store: FakeStore, machine: FakeMachine, driver: FakeDriver) -> Self {
        let wall = Wall::Simulated { began: Instant::now(), at: jiff::Timestamp::now() };
        Self::at(wall, store, machine, driver).await
    }

    async fn at(wall: Wall, store: FakeStore, machine: FakeMachine, driver: FakeDriver) -> Self {
        let events = Events::new();
        let (sender, facts) = mpsc::channel(16);
        let parts = Parts {
            store: Arc::new(store.clone()),
            driver: Arc::new(driver),
            bootstrapper: Arc::new(FakeBootstrapper),
            events: events.clone(),
            tuning: Tuning::default(),
            settings: Settings { wall, ..Settings::default() },
            facts: sender,
        };
        let sandboxes = Sandboxes::start(parts, CancellationToken::new()).await.unwrap();
        let sessions = FakeSessions::new().await;
        Self { store, machine, events, facts, sandboxes, sessions, dials: 0, wall }
    }

    /// The gateway dies and another one starts over the same store and machine.
    async fn restart(self) -> Self {
        self.sandboxes.shutdown().await;
        let driver = FakeDriver::open(&self.machine);
        Self::at(self.wall, self.store, self.machine, driver).await
    }

    async fn create(&self, name: &str) -> SandboxHandle {
        self.sandboxes.create(name, api::SandboxSpec::default()).await.unwrap();
        let handle = self.sandboxes.resolve(name).unwrap();
        self.reach(&handle, "phase=provisioning").await;
        reached(&handle, |view| view.reason == "WaitingForSupervisor").await;
        handle
    }

    /// One that is Ready, with its session and what is sent down it.
    async fn ready(&mut self, name: &str) -> (SandboxHandle, Session, mpsc::Receiver<Down>) {
        let handle = self.create(name).await;
        let (session, down) = self.attach(&handle, Instance::random()).await;
        handle.health(session.epoch(), healthy()).await;
        self.reach(&handle, "ready").await;
        (handle, session, down)
    }

    fn hello(&mut self, instance: Instance, generation: Generation) -> Hello {
        self.dials += 1;
        Hello {
            instance,
            generation,
            boot_id: "boot".to_owned(),
            version: "0.1.0".to_owned(),
            capabilities: vec!["exec".to_owned()],
            dial_reason: "start".to_owned(),
            dial: self.dials,
            away: Duration::ZERO,
            rebinds: 0,
            execs: 0,
        }
    }

    async fn attach(
        &mut self,
        handle: &SandboxHandle,
        instance: Instance,
    ) -> (Session, mpsc::Receiver<Down>) {
        let hello = self.hello(instance, handle.now().generation);
        let admission = handle.hello(hello.clone()).await.unwrap();
        let (session, down) = self.sessions.session(handle.id(), admission.epoch, hello);
        handle.attached(admission.epoch, session.clone()).await;
        reached(handle, |view| view.session.as_ref().is_some_and(|there| there.id() == session.id())).await;
        (session, down)
    }

    async fn reach(&self, handle: &SandboxHandle, until: &str) -> Option<Arc<View>> {
        let deadline = Instant::now() + Duration::from_secs(300);
        self.sandboxes.wait_until(&handle.id().to_string(), until, deadline).await.unwrap()
    }

    fn reasons(&self, handle: &SandboxHandle) -> Vec<&'static str> {
        self.events.past(Some(handle.id()), 0).iter().map(|event| event.reason).collect()
    }
}

/// Waits until a view is like this.
async fn reached(handle: &SandboxHandle, like: impl Fn(&View) -> bool) -> Arc<View> {
    let mut view = handle.view();
    let waited = tokio::time::timeout(Duration::from_secs(300), view.wait_for(|view| like(view))).await;
    match waited {
        Ok(Ok(view)) => view.clone(),
        other => panic!("it does not come: {other:?}"),
    }
}

fn healthy() -> Health {
    let good = || Some(ProbeResult { ok: true, ..ProbeResult::default() });
    Health { exec: good(), filesystem: good(), ..Health::default() }
}

fn down() -> DriverError {
    DriverError::unavailable("asking the engine", "connection refused")
}

fn code(session: &Session) -> Option<CloseCode> {
    session.lost().and_then(|lost| lost.code())
}
