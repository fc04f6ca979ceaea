//! The whole room over a fake store and a fake machine, on a paused clock.

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

#[tokio::test(start_paused = true)]
async fn a_sandbox_is_created_comes_up_and_is_deleted() {
    let mut bench = Bench::new().await;
    let (handle, session, _down) = bench.ready("dev").await;
    let view = handle.now();
    assert!(view.conditions.iter().all(|condition| condition.status == ConditionStatus::True));
    assert_eq!((view.epoch, view.generation), (Epoch(1), Generation(1)));
    let shown = view.to_api();
    assert_eq!((shown.name.as_str(), shown.driver.as_str()), ("dev", "fake"));
    assert_eq!(shown.status.unwrap().session.unwrap().epoch, 1);
    assert!(!bench.sandboxes.is_refused(&handle.id()));

    bench.sandboxes.delete("dev", Duration::from_secs(5), true).await.unwrap();
    assert_eq!(code(&session), Some(CloseCode::SANDBOX_DELETED));
    assert!(bench.sandboxes.is_refused(&handle.id()));
    assert!(!bench.machine.has(handle.id()));
    assert_eq!(bench.store.get(handle.id()).await.unwrap(), None);
    assert_eq!(bench.sandboxes.get("dev").unwrap_err().reason, Reason::SandboxNotFound);
    assert_eq!(*bench.reasons(&handle).last().unwrap(), "Deleted");
    let verbs: Vec<_> = bench.machine.calls().iter().map(|call| call.verb).collect();
    let end = [Verb::Stop, Verb::Delete];
    assert_eq!(verbs[verbs.len() - 2..], end);
    // The name is free again.
    bench.create("dev").await;
}

#[tokio::test(start_paused = true)]
async fn execs_are_told_what_ends_them() {
    let mut bench = Bench::new().await;
    let (handle, session, _down) = bench.ready("dev").await;
    let id = handle.id();
    let fact = bench.facts.recv().await.unwrap();
    let (instance, generation) = (session.instance(), Generation(1));
    assert_eq!(fact, SandboxFact::SessionAttached { sandbox: id, epoch: Epoch(1), instance, generation });
    bench.machine.kill(id, Exit::Signal(9));
    let Some(SandboxFact::WorkloadGone { sandbox, generation, up_to, .. }) = bench.facts.recv().await else {
        panic!("the workload's death is told");
    };
    assert_eq!((sandbox, generation, up_to), (id, Generation(1), Epoch(1)));
    let view = handle.now();
    assert_eq!((view.phase, view.reason.as_str()), (Phase::Failed, "WorkloadKilled"));
    assert_eq!(view.record.last_error.as_ref().unwrap().source, "driver");
    assert!(session.lost().is_some());

    // Start is the way out of it, with a new workload.
    bench.sandboxes.start_workload("dev").await.unwrap();
    reached(&handle, |view| view.reason == "WaitingForSupervisor").await;
    assert_eq!(handle.now().generation, Generation(2));
    bench.sandboxes.stop("dev", Duration::from_secs(1)).await.unwrap();
    assert_eq!(bench.facts.recv().await, Some(SandboxFact::Stopped { sandbox: id, up_to: Epoch(1) }));
    bench.sandboxes.delete("dev", Duration::ZERO, true).await.unwrap();
    assert_eq!(bench.facts.recv().await, Some(SandboxFact::Deleted { sandbox: id }));
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_proved_its_driver_wrong_can_die_again() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    let up_to = |fact| match fact {
        Some(SandboxFact::WorkloadGone { up_to, .. }) => up_to,
        other => panic!("the workload's death is told, not {other:?}"),
    };
    bench.facts.recv().await.unwrap();
    bench.machine.kill(handle.id(), Exit::Unknown);
    assert_eq!(up_to(bench.facts.recv().await), Epoch(1));
    // The driver was wrong: its supervisor comes back.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (session, _down) = bench.attach(&handle, Instance::random()).await;
    handle.health(session.epoch(), healthy()).await;
    bench.reach(&handle, "ready").await;
    bench.facts.recv().await.unwrap();
    bench.machine.kill(handle.id(), Exit::Signal(9));
    assert_eq!(up_to(bench.facts.recv().await), Epoch(2));
}

#[tokio::test(start_paused = true)]
async fn a_newer_workload_ends_the_execs_of_the_older_ones() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    bench.facts.recv().await.unwrap();
    // The driver cannot tell, and no session is there: failed, and yet not dead for certain.
    handle.session_lost(Epoch(1), Lost::here(CloseCode::UNRESPONSIVE, "a test")).await;
    bench.machine.show(handle.id(), WorkloadState::Failed, "Unknown", "who knows");
    reached(&handle, |view| view.phase == Phase::Failed).await;
    bench.machine.script(Verb::Ensure, [Step::Hang]);
    bench.sandboxes.start_workload("dev").await.unwrap();
    bench.machine.called(Verb::Ensure, 2).await;
    assert!(bench.facts.try_recv().is_err(), "not before it is made");
    // Nor does the gateway's death in between lose it.
    let mut bench = bench.restart().await;
    let fact = bench.facts.recv().await.unwrap();
    let SandboxFact::WorkloadGone { generation, up_to, message, .. } = fact else { panic!("{fact:?}") };
    assert_eq!((generation, up_to), (Generation(1), Epoch(1)));
    assert!(message.contains("replaced by a newer one"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn another_drivers_sandbox_can_only_be_deleted() {
    let bench = Bench::new().await;
    bench.create("dev").await;
    let stored = bench.store.find("dev").await.unwrap().unwrap();
    bench.sandboxes.shutdown().await;
    bench.store.update(&SandboxRecord { driver: "vm".to_owned(), ..stored }).await.unwrap();
    let bench = Bench::over(bench.store, FakeMachine::new()).await;
    assert_eq!(bench.sandboxes.get("dev").unwrap().reason, "OtherDriver");
    for result in
        [bench.sandboxes.start_workload("dev").await, bench.sandboxes.stop("dev", Duration::ZERO).await]
    {
        let error = result.unwrap_err();
        assert_eq!(error.reason, Reason::WrongPhase);
        assert!(
            error.message.contains("start the gateway with that driver, or delete it"),
            "{}",
            error.message
        );
    }
    bench.sandboxes.delete("dev", Duration::ZERO, true).await.unwrap();
    assert_eq!(bench.machine.count(Verb::Delete), 0);
}

#[tokio::test(start_paused = true)]
async fn facts_that_nobody_reads_hold_nobody_up() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    // Far more than the channel holds.
    for _ in 0..40 {
        bench.attach(&handle, Instance::random()).await;
    }
    bench.sandboxes.stop("dev", Duration::ZERO).await.unwrap();
    bench.reach(&handle, "phase=stopped").await;
    let mut last = None;
    while let Ok(Some(fact)) = tokio::time::timeout(Duration::from_secs(1), bench.facts.recv()).await {
        last = Some(fact);
    }
    assert_eq!(last, Some(SandboxFact::Stopped { sandbox: handle.id(), up_to: Epoch(41) }));
}

#[tokio::test(start_paused = true)]
async fn the_newest_epoch_supersedes_and_an_old_end_changes_nothing() {
    let mut bench = Bench::new().await;
    let (handle, first, _down) = bench.ready("dev").await;
    let (second, _down) = bench.attach(&handle, first.instance()).await;
    assert_eq!(code(&first), Some(CloseCode::SUPERSEDED));
    assert!(second.lost().is_none());
    handle.session_lost(first.epoch(), Lost::here(CloseCode::SUPERSEDED, "late")).await;
    handle.health(second.epoch(), healthy()).await;
    bench.reach(&handle, "ready").await;
    assert_eq!(handle.now().epoch, second.epoch());

    // Two are let in; the newer attaches first.
    let hello = bench.hello(first.instance(), Generation(1));
    let older = handle.hello(hello.clone()).await.unwrap().epoch;
    let (newest, _down) = bench.attach(&handle, first.instance()).await;
    let (late, _down) = bench.sessions.session(handle.id(), older, hello);
    handle.attached(older, late.clone()).await;
    assert_eq!(late.closed().await.code(), Some(CloseCode::SUPERSEDED));
    assert!(newest.lost().is_none());
}

#[tokio::test(start_paused = true)]
async fn who_may_enter_is_decided_by_comparison() {
    let mut bench = Bench::new().await;
    let (handle, session, _down) = bench.ready("dev").await;
    let instance = session.instance();

    let stale = bench.hello(instance, Generation(0));
    let refusal = handle.hello(stale).await.unwrap_err();
    assert_eq!((refusal.code, refusal.retry_after), (RefuseCode::StaleGeneration, None));

    let unknown = bench.hello(instance, Generation(7));
    let refusal = handle.hello(unknown).await.unwrap_err();
    assert_eq!(refusal.code, RefuseCode::Busy);
    assert!(refusal.retry_after.is_some());

    // An older dial of the same process, that was long on its way.
    let old = Hello { dial: 1, ..bench.hello(instance, Generation(1)) };
    assert_eq!(handle.hello(old).await.unwrap_err().code, RefuseCode::Busy);
    assert!(session.lost().is_none(), "nobody who is refused takes a place");

    // Another process of the same workload takes over, and the first does not come back.
    let (second, _down) = bench.attach(&handle, Instance::random()).await;
    assert_eq!(code(&session), Some(CloseCode::SUPERSEDED));
    let again = bench.hello(instance, Generation(1));
    let refusal = handle.hello(again).await.unwrap_err();
    assert_eq!((refusal.code, refusal.retry_after), (RefuseCode::StaleGeneration, None));
    assert!(second.lost().is_none());

    bench.sandboxes.stop("dev", Duration::ZERO).await.unwrap();
    bench.reach(&handle, "phase=stopped").await;
    assert_eq!(code(&second), Some(CloseCode::SANDBOX_STOPPED));
    let stopped = bench.hello(second.instance(), Generation(1));
    assert_eq!(handle.hello(stopped).await.unwrap_err().retry_after, None);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_cannot_be_stored_is_not_given() {
    let mut bench = Bench::new().await;
    let handle = bench.create("dev").await;
    // What became of the workload is being stored; only then is the store's failure the epoch's.
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.store.fail_writes(1);
    let hello = bench.hello(Instance::random(), Generation(1));
    let refusal = handle.hello(hello.clone()).await.unwrap_err();
    assert_eq!(refusal.code, RefuseCode::Busy);
    assert!(refusal.retry_after.is_some());
    let again = Hello { dial: 99, ..hello };
    assert_eq!(handle.hello(again).await.unwrap().epoch, Epoch(1));
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_the_session_and_are_woken_by_it() {
    let mut bench = Bench::new().await;
    let handle = bench.create("dev").await;
    let begun = Instant::now();
    let waiter = handle.wait_for_session(begun + Duration::from_secs(15));
    let attacher = async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        bench.attach(&handle, Instance::random()).await
    };
    let (session, (attached, _down)) = tokio::join!(waiter, attacher);
    assert_eq!(session.unwrap().id(), attached.id());
    assert_eq!(begun.elapsed(), Duration::from_secs(7));

    // A session that is lost is none, from that moment on.
    attached.close(CloseCode::RESET_ON_REQUEST, "a test");
    let begun = Instant::now();
    let error = handle.wait_for_session(begun + Duration::from_secs(15)).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::from_secs(15));
    assert_eq!(error.reason, Reason::NoSession);
    for part in
        ["Reconnecting", "SupervisorConnected=False/SessionLost", "attached with epoch 1", "RESET_ON_REQUEST"]
    {
        assert!(error.message.contains(part), "{part} is not in: {}", error.message);
    }
    assert_eq!(error.metadata[key::PHASE], "Reconnecting");
}

#[tokio::test(start_paused = true)]
async fn where_waiting_is_pointless_nobody_waits() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    bench.sandboxes.stop("dev", Duration::ZERO).await.unwrap();
    bench.reach(&handle, "phase=stopped").await;
    let begun = Instant::now();
    let far = begun + Duration::from_secs(600);
    let error = handle.wait_for_session(far).await.unwrap_err();
    assert_eq!((error.reason, error.metadata[key::PHASE].as_str()), (Reason::WrongPhase, "Stopped"));
    let error = bench.sandboxes.wait_until("dev", "ready", far).await.unwrap_err();
    assert_eq!(error.reason, Reason::WrongPhase);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let error =
        bench.sandboxes.wait_until("dev", "phase=Paused", begun + Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(error.reason, Reason::WaitTimeout);
    assert_eq!(
        bench.sandboxes.wait_until("nobody", "deleted", far).await.unwrap().map(|view| view.id()),
        None
    );
}

#[tokio::test(start_paused = true)]
async fn a_boot_that_fails_shows_the_end_of_the_console() {
    let bench = Bench::new().await;
    let handle = bench.create("dev").await;
    bench.machine.write_console(handle.id(), b"loading\nholdfast: cannot read /id/key.pem\x07\n");
    let view = reached(&handle, |view| view.message.contains("console")).await;
    assert_eq!((view.phase, view.reason.as_str()), (Phase::Failed, "BootDeadline"));
    assert!(
        view.message.ends_with("the console ends with: loading\nholdfast: cannot read /id/key.pem"),
        "{}",
        view.message
    );
    assert_eq!(view.record.last_error.as_ref().unwrap().reason, "BootDeadline");
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_fails_is_asked_again_with_growing_delays() {
    let bench = Bench::new().await;
    bench.machine.script(Verb::Ensure, (0..6).map(|_| Step::Fail(down())));
    bench.create("dev").await;
    let tries: Vec<_> =
        bench.machine.calls().iter().filter(|call| call.verb == Verb::Ensure).map(|call| call.at).collect();
    assert_eq!(tries.len(), 7);
    let gaps: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] >= Duration::from_millis(500) && gaps[0] <= Duration::from_millis(1000), "{gaps:?}");
    assert!(gaps[5] > 4 * gaps[0] && gaps[5] <= Duration::from_secs(60), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_hangs_holds_up_neither_the_mailbox_nor_other_sandboxes() {
    let mut bench = Bench::new().await;
    bench.machine.script(Verb::Ensure, [Step::Hang]);
    bench.sandboxes.create("stuck", api::SandboxSpec::default()).await.unwrap();
    bench.machine.called(Verb::Ensure, 1).await;
    bench.ready("other").await;
    let begun = Instant::now();
    bench.sandboxes.delete("stuck", Duration::from_secs(5), true).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO, "a call that nobody wants any more is dropped");
}

#[tokio::test(start_paused = true)]
async fn a_delete_whose_driver_is_away_goes_on_until_it_is_done() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    bench.machine.script(Verb::Delete, [Step::Fail(down()), Step::LoseAnswer(down()), Step::Hang]);
    bench.sandboxes.delete("dev", Duration::ZERO, false).await.unwrap();
    reached(&handle, |view| view.reason == "DriverUnavailable").await;
    let hello = bench.hello(Instance::random(), Generation(1));
    assert_eq!(handle.hello(hello).await.unwrap_err().code, RefuseCode::UnknownSandbox);
    bench.reach(&handle, "deleted").await;
    assert!(!bench.machine.has(handle.id()));
    assert_eq!(bench.machine.count(Verb::Delete), 4);
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_was_asked_for_survives_a_restart() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    bench.machine.script(Verb::Delete, [Step::Hang]);
    bench.sandboxes.delete("dev", Duration::ZERO, false).await.unwrap();
    bench.machine.called(Verb::Delete, 1).await;
    let bench = bench.restart().await;
    let far = Instant::now() + Duration::from_secs(300);
    bench.sandboxes.wait_until("dev", "deleted", far).await.unwrap();
    assert!(!bench.machine.has(handle.id()));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_workloads_are_adopted_and_sandboxes_reconnecting_until_proven() {
    let mut bench = Bench::new().await;
    let (before, ..) = bench.ready("dev").await;
    let made = bench.machine.count(Verb::Ensure);
    let mut bench = bench.restart().await;
    let handle = bench.sandboxes.by_id(before.id()).unwrap();
    reached(&handle, |view| view.condition(ConditionKind::WorkloadRunning).status == ConditionStatus::True)
        .await;
    assert_eq!(handle.now().phase, Phase::Reconnecting);
    let (session, _down) = bench.attach(&handle, Instance::random()).await;
    assert_eq!(session.epoch(), Epoch(2), "epochs go on where they were");
    assert_eq!(handle.now().phase, Phase::Reconnecting);
    handle.health(session.epoch(), healthy()).await;
    bench.reach(&handle, "ready").await;
    assert_eq!(bench.machine.count(Verb::Ensure), made, "nothing was made anew");
}

#[tokio::test(start_paused = true)]
async fn what_died_while_the_gateway_was_away_is_failed_and_its_execs_are_told() {
    let mut bench = Bench::new().await;
    let (gone, ..) = bench.ready("gone").await;
    let (died, ..) = bench.ready("died").await;
    bench.sandboxes.shutdown().await;
    bench.machine.vanish(gone.id());
    bench.machine.kill(died.id(), Exit::Unknown);
    let mut bench = Bench::over(bench.store, bench.machine).await;
    let mut lost = Vec::new();
    for _ in 0..2 {
        let fact = bench.facts.recv().await.unwrap();
        assert!(matches!(fact, SandboxFact::WorkloadGone { up_to: Epoch(1), .. }), "{fact:?}");
        lost.push(fact.sandbox());
    }
    lost.sort_unstable();
    assert_eq!(lost, [gone.id(), died.id()]);
    let reason = |name| bench.sandboxes.get(name).unwrap().reason.clone();
    assert_eq!((reason("gone"), reason("died")), ("WorkloadGone".to_owned(), "WorkloadExited".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_orphan_is_named_and_removed_after_its_grace() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("kept").await;
    // Another gateway's store, over the same machine: it knows nothing of it.
    let other = Bench::over(FakeStore::new(), bench.machine.clone()).await;
    let (past, mut events) = other.events.follow(Some(handle.id()), 0);
    let found = match past.first() {
        Some(found) => found.clone(),
        None => events.next().await.unwrap().unwrap(),
    };
    let begun = Instant::now();
    assert_eq!(found.reason, "OrphanFound");
    assert!(found.message.contains("removed in 60 s"), "{}", found.message);
    assert!(bench.machine.has(handle.id()));
    assert_eq!(events.next().await.unwrap().unwrap().reason, "OrphanRemoved");
    assert!(begun.elapsed() > Duration::from_secs(58), "{:?}", begun.elapsed());
    assert!(!bench.machine.has(handle.id()));
    let view = reached(&handle, |view| view.phase == Phase::Failed).await;
    assert_eq!(view.reason, "WorkloadGone");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_is_opened_again_and_nothing_is_missed() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    bench.machine.script(Verb::Watch, [Step::Fail(down()), Step::Fail(down())]);
    bench.machine.script(Verb::List, [Step::Fail(down())]);
    bench.machine.interrupt_watches();
    bench.machine.vanish(handle.id());
    let begun = Instant::now();
    let view = reached(&handle, |view| view.phase == Phase::Failed).await;
    assert_eq!(view.reason, "WorkloadGone");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(bench.machine.count(Verb::Watch) >= 4);
}

#[tokio::test(start_paused = true)]
async fn pause_tells_the_supervisor_first_and_resume_wants_a_new_probe() {
    let mut bench = Bench::new().await;
    let (handle, session, mut queue) = bench.ready("dev").await;
    let view = bench.sandboxes.pause("dev").await.unwrap();
    assert_eq!(view.phase, Phase::Pausing);
    let notice = queue.recv().await.unwrap().body.unwrap();
    assert!(matches!(notice, down::Body::Suspending(_)), "{notice:?}");
    assert_eq!(bench.machine.count(Verb::Pause), 0, "the notice goes before the freeze");
    bench.reach(&handle, "phase=paused").await;
    assert_eq!(bench.machine.observed(handle.id()).unwrap().state, WorkloadState::Paused);
    assert_eq!(handle.wait_for_session(Instant::now()).await.unwrap_err().reason, Reason::WrongPhase);
    tokio::time::sleep(Duration::from_secs(3600)).await;

    bench.sandboxes.resume("dev").await.unwrap();
    let Some(down::Body::Resumed(resumed)) = queue.recv().await.unwrap().body else { panic!("it is told") };
    assert!(resumed.away_ms >= 3_600_000);
    assert!(matches!(queue.recv().await.unwrap().body, Some(down::Body::ProbeNow(_))));
    reached(&handle, |view| view.phase == Phase::Resuming && view.reason == "Probing").await;
    handle.health(session.epoch(), healthy()).await;
    bench.reach(&handle, "ready").await;
}

#[tokio::test(start_paused = true)]
async fn what_the_driver_cannot_do_is_refused_by_its_name() {
    let machine = FakeMachine::new();
    let full = FakeDriver::open(&machine).capabilities();
    let poor = holdfast_drivers::Capabilities { pause: false, stop_start: false, logs: false, ..full };
    let driver = FakeDriver::with_capabilities(&machine, poor);
    let mut bench = Bench::with(FakeStore::new(), machine, driver).await;
    bench.ready("dev").await;
    let sandboxes = &bench.sandboxes;
    let refused = [
        ("pause", sandboxes.pause("dev").await.unwrap_err()),
        ("resume", sandboxes.resume("dev").await.unwrap_err()),
        ("stop", sandboxes.stop("dev", Duration::ZERO).await.unwrap_err()),
        ("logs", sandboxes.logs("dev", 100).await.unwrap_err()),
    ];
    for (verb, error) in refused {
        assert_eq!(error.reason, Reason::UnsupportedByDriver);
        assert_eq!(
            (error.metadata[key::DRIVER].as_str(), error.metadata[key::VERB].as_str()),
            ("fake", verb)
        );
    }
    bench.sandboxes.delete("dev", Duration::from_secs(5), true).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_the_driver_refuses_leaves_a_running_sandbox() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    bench.machine.script(Verb::Pause, [Step::Fail(DriverError::conflict("pause", "the freezer is broken"))]);
    bench.sandboxes.pause("dev").await.unwrap();
    let view = reached(&handle, |view| view.phase == Phase::Ready && view.record.last_error.is_some()).await;
    assert_eq!(view.record.desired, Desired::Running);
    assert!(view.record.last_error.as_ref().unwrap().message.contains("the freezer is broken"));
    let error = bench.sandboxes.resume("dev").await;
    assert!(error.is_ok(), "it runs already");
}

#[tokio::test(start_paused = true)]
async fn wishes_are_stored_before_they_are_answered() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    bench.store.fail_writes(1);
    let error = bench.sandboxes.stop("dev", Duration::ZERO).await.unwrap_err();
    assert_eq!(error.reason, Reason::Internal);
    assert_eq!(handle.now().phase, Phase::Ready, "what is not stored is not done");
    bench.sandboxes.stop("dev", Duration::from_secs(9)).await.unwrap();
    let stored = bench.store.get(handle.id()).await.unwrap().unwrap();
    assert_eq!((stored.desired, stored.grace), (Desired::Stopped, Duration::from_secs(9)));
}

#[tokio::test(start_paused = true)]
async fn another_writer_is_noticed_and_followed() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    let stored = bench.store.get(handle.id()).await.unwrap().unwrap();
    let other = SandboxRecord { desired: Desired::Stopped, ..stored };
    bench.store.update(&other).await.unwrap();
    let error = bench.sandboxes.pause("dev").await.unwrap_err();
    assert_eq!(error.reason, Reason::Conflict);
    bench.reach(&handle, "phase=stopped").await;
    bench.sandboxes.start_workload("dev").await.unwrap();
    reached(&handle, |view| view.generation == Generation(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_conditions_time_is_kept_while_its_status_is() {
    let mut bench = Bench::new().await;
    let (handle, session, _down) = bench.ready("dev").await;
    let since = handle.now().condition(ConditionKind::ExecHealthy).last_transition;
    let failing = Health {
        filesystem: Some(ProbeResult {
            errno: 5,
            message: "/workspace: write".to_owned(),
            ..ProbeResult::default()
        }),
        ..healthy()
    };
    handle.health(session.epoch(), failing).await;
    let view = reached(&handle, |view| view.phase == Phase::Degraded).await;
    assert_eq!(
        (view.reason.as_str(), view.message.as_str()),
        ("FilesystemProbeFailed", "/workspace: write (errno 5)")
    );
    assert_eq!(view.condition(ConditionKind::ExecHealthy).last_transition, since);
    assert!(view.condition(ConditionKind::FilesystemHealthy).last_transition > since);
}

#[tokio::test(start_paused = true)]
async fn ready_ends_with_its_lease() {
    let mut bench = Bench::new().await;
    let (handle, _session, _down) = bench.ready("dev").await;
    let begun = Instant::now();
    let view = reached(&handle, |view| view.phase != Phase::Ready).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
    assert_eq!((view.phase, view.reason.as_str()), (Phase::Degraded, "ProbeOverdue"));
}

#[tokio::test(start_paused = true)]
async fn names_and_specs_are_checked_before_anything_is_stored() {
    let bench = Bench::new().await;
    let spec = api::SandboxSpec::default;
    let error = bench.sandboxes.create("Not a name", spec()).await.unwrap_err();
    assert_eq!((error.reason, error.metadata[key::FIELD].as_str()), (Reason::InvalidArgument, "name"));
    let image = api::SandboxSpec { image: "debian".to_owned(), ..spec() };
    let error = bench.sandboxes.create("dev", image).await.unwrap_err();
    assert_eq!(error.metadata[key::FIELD], "image");
    let huge = api::Resources { pids: u64::MAX, ..api::Resources::default() };
    let error = bench
        .sandboxes
        .create("dev", api::SandboxSpec { resources: Some(huge), ..spec() })
        .await
        .unwrap_err();
    assert_eq!(error.metadata[key::FIELD], "resources.pids");
    assert!(bench.store.list(None, 10).await.unwrap().is_empty());

    bench.create("dev").await;
    let error = bench.sandboxes.create("dev", spec()).await.unwrap_err();
    assert_eq!(error.reason, Reason::SandboxExists);
    let made_up = bench.sandboxes.create("", spec()).await.unwrap();
    names::check(made_up.name()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_listing_goes_by_labels_and_pages() {
    let bench = Bench::new().await;
    for i in 0..5 {
        let team = if i % 2 == 0 { "core" } else { "web" };
        let labels = HashMap::from([("team".to_owned(), team.to_owned())]);
        let spec = api::SandboxSpec { labels, ..api::SandboxSpec::default() };
        bench.sandboxes.create(&format!("box-{i}"), spec).await.unwrap();
    }
    let names = |page: &Page| page.views.iter().map(|view| view.name().to_owned()).collect::<Vec<_>>();
    let core = HashMap::from([("team".to_owned(), "core".to_owned())]);
    let first = bench.sandboxes.list(&core, 2, "").unwrap();
    assert_eq!(names(&first), ["box-0", "box-2"]);
    let rest = bench.sandboxes.list(&core, 2, first.next.as_ref().unwrap()).unwrap();
    assert_eq!((names(&rest), rest.next), (vec!["box-4".to_owned()], None));
    assert_eq!(bench.sandboxes.list(&HashMap::new(), 1000, "").unwrap().views.len(), 5);
    assert_eq!(bench.sandboxes.list(&core, 2, "box-1").unwrap_err().reason, Reason::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_leaves_workloads_alone_and_tells_who_waits() {
    let mut bench = Bench::new().await;
    let handle = bench.create("dev").await;
    let far = Instant::now() + Duration::from_secs(600);
    let (waited, ()) = tokio::join!(handle.wait_for_session(far), bench.sandboxes.shutdown());
    assert_eq!(waited.unwrap_err().reason, Reason::GatewayStopping);
    assert_eq!(
        bench.sandboxes.stop("dev", Duration::ZERO).await.unwrap_err().reason,
        Reason::GatewayStopping
    );
    let hello = bench.hello(Instance::random(), Generation(1));
    assert!(handle.hello(hello).await.unwrap_err().retry_after.is_some(), "the next gateway knows it");
    assert_eq!(bench.machine.observed(handle.id()).unwrap().state, WorkloadState::Running);
}

fn span(seconds: u64) -> Option<prost_types::Duration> {
    Duration::from_secs(seconds).try_into().ok()
}

/// An exec that the store knows of.
fn exec_in(sandbox: SandboxId) -> crate::store::ExecRecord {
    let now = jiff::Timestamp::now();
    crate::store::ExecRecord {
        exec: holdfast_wire::ids::ExecId::random(),
        sandbox,
        spec_digest: Bytes::new(),
        command: "sleep 2400".to_owned(),
        tty: false,
        on_disconnect: api::OnDisconnect::Keep,
        retain_for: holdfast_wire::timing::RETAIN_FOR,
        accepted_at: now,
        start_deadline_at: now,
        sent: None,
        pid: 0,
        started_at: None,
        finished: None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_whose_time_is_over_is_deleted_and_an_event_says_why() {
    let mut bench = Bench::new().await;
    let spec = api::SandboxSpec { ttl: span(400), ..api::SandboxSpec::default() };
    bench.sandboxes.create("short", spec).await.unwrap();
    let handle = bench.sandboxes.resolve("short").unwrap();
    let begun = Instant::now();
    assert!(handle.now().to_api().status.unwrap().expires_at.is_some());
    // Nothing that is done with it, and no restart, makes it live longer.
    tokio::time::sleep(Duration::from_secs(200)).await;
    let (session, _down) = bench.attach(&handle, Instance::random()).await;
    handle.health(session.epoch(), healthy()).await;
    handle.activity().touch();
    let bench = bench.restart().await;
    let handle = bench.sandboxes.resolve("short").unwrap();
    bench.reach(&handle, "phase=reconnecting").await;
    reached(&handle, |view| view.reason == "Expired" || view.gone).await;
    assert_eq!(begun.elapsed().as_secs(), 400);
    reached(&handle, |view| view.gone).await;
    let told = bench.events.past(Some(handle.id()), 0);
    let why = told.iter().find(|event| event.reason == "Expired").expect("an event says why");
    assert!(why.message.contains("time to live was over at"), "{}", why.message);
    assert!(!bench.machine.has(handle.id()));
}

#[tokio::test(start_paused = true)]
async fn an_idle_sandbox_is_stopped_with_its_workspace_and_can_be_started() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    bench.sandboxes.update("dev", None, span(200)).await.unwrap();
    bench.machine.write_file(handle.id(), "kept", Bytes::from_static(b"x"));
    let begun = Instant::now();
    let used = handle.activity().begin();
    tokio::time::sleep(Duration::from_secs(5000)).await;
    drop(used);
    bench.reach(&handle, "phase=stopped").await;
    assert_eq!(begun.elapsed().as_secs(), 5200, "from the end of its use");
    let view = handle.now();
    assert_eq!((view.reason.as_str(), view.record.why), ("IdleStop", Why::Idle));
    assert_eq!(bench.machine.read_file(handle.id(), "kept").unwrap(), "x");
    assert!(bench.reasons(&handle).contains(&"IdleStopped"));
    // A restarted gateway still knows why; started again, it has its whole time.
    let mut bench = bench.restart().await;
    let handle = bench.sandboxes.resolve("dev").unwrap();
    assert_eq!(handle.now().reason, "IdleStop");
    let begun = Instant::now();
    bench.sandboxes.start_workload("dev").await.unwrap();
    reached(&handle, |view| view.reason == "WaitingForSupervisor").await;
    let (_session, _down) = bench.attach(&handle, Instance::random()).await;
    bench.reach(&handle, "phase=stopped").await;
    assert_eq!(begun.elapsed().as_secs(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_nobody_watches_keeps_its_sandbox_running() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    let exec = exec_in(handle.id());
    bench.store.admit(&exec).await.unwrap();
    bench.sandboxes.update("dev", None, span(200)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(40 * 60)).await;
    assert_ne!(handle.now().record.desired, Desired::Stopped);
    let end = crate::store::Finished {
        outcome: api::Outcome::default(),
        at: jiff::Timestamp::now(),
        stdout_bytes: 0,
        stderr_bytes: 0,
        left_processes: false,
    };
    bench.store.finish(exec.exec, &end).await.unwrap();
    handle.activity().touch();
    let begun = Instant::now();
    bench.reach(&handle, "phase=stopped").await;
    assert_eq!(begun.elapsed().as_secs(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_that_cannot_be_is_refused_and_one_that_ends_now_cannot_be_changed() {
    let bench = Bench::new().await;
    bench.create("dev").await;
    for (ttl, idle) in
        [(span(4000 * 24 * 3600), None), (None, Some(prost_types::Duration { seconds: -1, nanos: 0 }))]
    {
        let spec = api::SandboxSpec { ttl, idle_stop: idle, ..api::SandboxSpec::default() };
        assert_eq!(bench.sandboxes.create("x", spec).await.unwrap_err().reason, Reason::InvalidArgument);
        assert_eq!(
            bench.sandboxes.update("dev", ttl, idle).await.unwrap_err().reason,
            Reason::InvalidArgument
        );
    }
    let view = bench.sandboxes.update("dev", span(3600), span(60)).await.unwrap();
    assert!(view.record.expires_at.is_some() && view.record.spec.idle_stop.is_some());
    let view = bench.sandboxes.update("dev", span(0), None).await.unwrap();
    assert!(view.record.expires_at.is_none() && view.record.spec.idle_stop.is_some(), "the other one stays");
    bench.machine.script(Verb::Delete, [Step::Hang]);
    bench.sandboxes.delete("dev", Duration::ZERO, false).await.unwrap();
    assert_eq!(bench.sandboxes.update("dev", span(60), None).await.unwrap_err().reason, Reason::WrongPhase);
}

#[tokio::test(start_paused = true)]
async fn an_expiry_that_cannot_be_stored_is_tried_again() {
    let bench = Bench::new().await;
    let spec = api::SandboxSpec { ttl: span(60), ..api::SandboxSpec::default() };
    bench.sandboxes.create("short", spec).await.unwrap();
    let handle = bench.sandboxes.resolve("short").unwrap();
    reached(&handle, |view| view.reason == "WaitingForSupervisor").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    bench.store.fail_writes(3);
    reached(&handle, |view| view.gone).await;
}

/// In every phase a sandbox can be stopped, started and deleted, whatever its driver does meanwhile.
#[tokio::test(start_paused = true)]
async fn no_phase_is_a_dead_end() {
    const PHASES: [Phase; 10] = [
        Phase::Provisioning,
        Phase::Ready,
        Phase::Reconnecting,
        Phase::Degraded,
        Phase::Pausing,
        Phase::Paused,
        Phase::Resuming,
        Phase::Stopping,
        Phase::Stopped,
        Phase::Failed,
    ];
    for phase in PHASES {
        for verb in ["stop", "start", "delete"] {
            let mut bench = Bench::new().await;
            let (handle, session, _down) = bench.ready("dev").await;
            match phase {
                Phase::Ready => {}
                Phase::Provisioning => {
                    bench.machine.kill(handle.id(), Exit::Signal(9));
                    bench.reach(&handle, "phase=failed").await;
                    bench.machine.script(Verb::Ensure, [Step::Delay(Duration::from_secs(60))]);
                    bench.sandboxes.start_workload("dev").await.unwrap();
                }
                Phase::Reconnecting => {
                    handle.session_lost(session.epoch(), Lost::here(CloseCode::UNRESPONSIVE, "a test")).await;
                }
                Phase::Degraded => handle.health(session.epoch(), Health::default()).await,
                Phase::Pausing => {
                    bench.machine.script(Verb::Pause, [Step::Hang]);
                    bench.sandboxes.pause("dev").await.unwrap();
                }
                Phase::Paused => drop(bench.sandboxes.pause("dev").await.unwrap()),
                Phase::Resuming => {
                    bench.sandboxes.pause("dev").await.unwrap();
                    bench.reach(&handle, "phase=paused").await;
                    bench.machine.script(Verb::Resume, [Step::Hang]);
                    bench.sandboxes.resume("dev").await.unwrap();
                }
                Phase::Stopping => {
                    bench.machine.script(Verb::Stop, [Step::Hang]);
                    bench.sandboxes.stop("dev", Duration::ZERO).await.unwrap();
                }
                Phase::Stopped => drop(bench.sandboxes.stop("dev", Duration::ZERO).await.unwrap()),
                Phase::Failed => bench.machine.kill(handle.id(), Exit::Code(1)),
                other => unreachable!("{other:?}"),
            }
            let wanted = format!("phase={}", phase_word(phase));
            bench.reach(&handle, &wanted).await;
            match verb {
                "stop" => {
                    bench.sandboxes.stop("dev", Duration::ZERO).await.unwrap();
                    bench.reach(&handle, "phase=stopped").await;
                }
                "start" => {
                    bench.sandboxes.start_workload("dev").await.unwrap();
                    // A workload that is there already, or a new one: a good supervisor makes it Ready.
                    reached(&handle, |view| {
                        view.workload.as_ref().is_some_and(|seen| seen.state == WorkloadState::Running)
                    })
                    .await;
                    let (session, _down) = bench.attach(&handle, Instance::random()).await;
                    handle.health(session.epoch(), healthy()).await;
                    bench.reach(&handle, "ready").await;
                }
                _ => bench.sandboxes.delete("dev", Duration::ZERO, true).await.unwrap(),
            }
        }
    }
}
