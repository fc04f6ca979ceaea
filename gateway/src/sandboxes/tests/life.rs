//! Created, wanted, listed, deleted: what is stored, and what others are told.

use super::*;

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
    let since = handle.now().condition(ConditionKind::ExecHealthy).unwrap().last_transition;
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
    assert_eq!(view.condition(ConditionKind::ExecHealthy).unwrap().last_transition, since);
    assert!(view.condition(ConditionKind::FilesystemHealthy).unwrap().last_transition > since);
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
