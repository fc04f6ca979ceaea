//! What the driver does, fails to do, and did while nobody looked.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_boot_that_fails_shows_the_end_of_the_console() {
    let bench = Bench::new().await;
    let handle = bench.create("dev").await;
    bench.machine.write_console(handle.id(), b"loading\nholdfast: cannot read /id/key.pem\x07\n");
    let view = reached(&handle, |view| view.message.contains("console")).await;
    assert_eq!((view.phase, view.reason.as_str()), (Phase::Failed, "BootTimeout"));
    assert!(
        view.message.ends_with("the console ends with: loading\nholdfast: cannot read /id/key.pem"),
        "{}",
        view.message
    );
    assert_eq!(view.record.last_error.as_ref().unwrap().reason, "BootTimeout");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_has_the_last_lines_of_the_console_and_the_way_to_the_others() {
    let bench = Bench::new().await;
    let handle = bench.create("dev").await;
    let console: String = (1..=9).map(|n| format!("line {n} of it\n")).collect();
    let console = format!("{console}{}\n", "x".repeat(500));
    bench.machine.write_console(handle.id(), console.as_bytes());
    let view = reached(&handle, |view| view.message.contains("console")).await;
    assert!(view.message.contains("line 1 of it"), "whole where it is asked for: {}", view.message);
    let far = Instant::now() + Duration::from_secs(600);
    let refusal = handle.wait_for_session(far).await.unwrap_err();
    for text in [&refusal.message, &refusal.metadata[key::LAST_ERROR_MESSAGE]] {
        assert!(!text.contains("line 7 of it") && !text.contains('\n'), "{text}");
        assert!(text.contains("console ends with: line 8 of it | line 9 of it | xxx"), "{text}");
        assert!(text.contains("`holdfast logs dev` shows all of it"), "{text}");
        assert!(text.len() < 1200, "{} bytes", text.len());
    }
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
    reached(&handle, |view| {
        view.condition(ConditionKind::WorkloadRunning).unwrap().status == ConditionStatus::True
    })
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
