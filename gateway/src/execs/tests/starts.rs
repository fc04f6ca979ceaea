//! A start: sent once, repeated to the same instance, refused, too late.

use super::*;

/// A first start that ends with the session, before or after the supervisor heard of it.
async fn a_start_over_two_sessions(first: Act) {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _first = supervisor.attach().await;
    world.session(BOX, 1).await;
    let exec = ExecId::random();
    supervisor.script([first, Act::Finish { stdout: Bytes::new(), code: 0 }]);
    let again = async {
        supervisor_lost(&world).await;
        supervisor.attach().await
    };
    let (attached, _second) = tokio::join!(attach(&world, exec), again);
    let end = drain(&mut attached.unwrap().output).await.1;
    assert_eq!((end.unwrap(), supervisor.begun(exec)), (Kind::Exited(Exited { code: 0 }), 1));
}

#[tokio::test(start_paused = true)]
async fn a_start_lost_on_its_way_is_repeated_to_the_same_instance_and_runs_once() {
    a_start_over_two_sessions(Act::StartAndVanish).await;
    a_start_over_two_sessions(Act::Vanish).await;
}

/// Waits until the first session is lost.
async fn supervisor_lost(world: &FakeWorld) {
    world.session(BOX, 1).await.closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_another_instance_answers_is_lost_and_not_run_again() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _first = supervisor.attach().await;
    world.session(BOX, 1).await;
    let exec = ExecId::random();
    supervisor.script([Act::StartAndVanish]);
    let successor = supervisor.restarted();
    let call = attach(&world, exec);
    let again = async {
        supervisor_lost(&world).await;
        successor.attach().await
    };
    let (attached, _second) = tokio::join!(call, again);
    let (_, mut output) = attached.unwrap().split();
    let end = drain(&mut output).await.1.unwrap();
    assert!(
        matches!(end, Kind::Lost(Lost { reason, .. }) if reason == i32::from(LostReason::SupervisorRestarted))
    );
    assert_eq!((supervisor.begun(exec), successor.begun(exec)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refused_start_never_ran_and_says_why() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    let exec = ExecId::random();
    supervisor.script([Act::Refuse(RefusedCode::Exhausted)]);
    let error = attach(&world, exec).await.unwrap_err();
    assert_eq!(error.reason, Reason::LimitReached);
    assert!(error.message.contains("scripted"), "{error}");
    let Some(Kind::StartFailed(StartFailed { kind, .. })) = outcome(&world, exec).await else { panic!() };
    assert_eq!(kind, i32::from(StartFailure::Resources));
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_is_stopping_is_asked_again_only_when_something_has_changed() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    world.session(BOX, 1).await;
    supervisor.script(std::iter::repeat_n(Act::Refuse(RefusedCode::Stopping), 100));
    let (exec, at) = (ExecId::random(), Instant::now());
    let error = attach(&world, exec).await.unwrap_err();
    assert_eq!((error.reason, at.elapsed().as_secs()), (Reason::RelayDeadline, 15));
    assert!(supervisor.acts_left() >= 95, "{}", supervisor.acts_left());
    assert!(matches!(outcome(&world, exec).await, Some(Kind::StartFailed(_))));
    assert_eq!(supervisor.begun(exec), 0);
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_instance_is_gone_waits_without_spinning() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _first = supervisor.attach().await;
    world.session(BOX, 1).await;
    let exec = ExecId::random();
    supervisor.script([Act::StartAndVanish]);
    let successor = supervisor.restarted();
    let again = async {
        supervisor_lost(&world).await;
        // No complete report comes: only a paused clock that moves on ends this call.
        let (connection, _, dialer) = successor.dial().await;
        let control = open_control(&connection, up::Body::Hello(successor.hello())).await;
        (connection, dialer, control)
    };
    let at = Instant::now();
    let (attached, _second) = tokio::join!(attach(&world, exec), again);
    assert_eq!((attached.unwrap_err().reason, at.elapsed().as_secs()), (Reason::StartUnknown, 15));
    assert_eq!((supervisor.begun(exec), successor.begun(exec)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_that_relay_alone() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    let session = world.session(BOX, 1).await;
    supervisor.script([Act::Run { stdout: Bytes::from_static(b"fine") }]);
    let (_input, mut good) = attach(&world, ExecId::random()).await.unwrap().split();
    supervisor.script([Act::Garbage(Bytes::from_static(&[0xff; 64]))]);
    let error = attach(&world, ExecId::random()).await.unwrap_err();
    assert_eq!(error.reason, Reason::StartUnknown);
    supervisor.script([Act::EndWithoutOutcome]);
    let (_, mut output) = attach(&world, ExecId::random()).await.unwrap().split();
    let error = drain(&mut output).await.1.unwrap_err();
    assert!(error.reason == Reason::Internal && error.message.contains("without an outcome"), "{error}");
    read(&mut good, 4).await;
    assert_eq!((session.lost(), session.open_relays()), (None, 1));
}

#[tokio::test(start_paused = true)]
async fn a_start_without_a_session_fails_at_its_deadline_and_never_runs() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let (exec, at) = (ExecId::random(), Instant::now());
    let error = attach(&world, exec).await.unwrap_err();
    assert_eq!((error.reason, at.elapsed().as_secs()), (Reason::NoSession, timing::START_DEADLINE.as_secs()));
    let Some(Kind::StartFailed(StartFailed { kind, .. })) = outcome(&world, exec).await else { panic!() };
    assert_eq!(kind, i32::from(StartFailure::Deadline));
    let _link = supervisor.attach().await;
    world.session(BOX, 1).await;
    let (_, mut output) = attach(&world, exec).await.unwrap().split();
    assert!(matches!(drain(&mut output).await.1, Ok(Kind::StartFailed(_))), "the outcome stays");
    assert_eq!(supervisor.begun(exec), 0);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_cancelled_while_it_waits_hears_so_at_once_and_is_never_sent() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let exec = ExecId::random();
    let caller = caller();
    let begun = Instant::now();
    let start = async {
        let within = Some(Duration::from_secs(60));
        let info = world.execs.start(BOX, exec, a_spec(OnDisconnect::Keep), within, &caller).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 2);
        info
    };
    let cancel = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.execs.cancel(BOX, exec, &caller).await.unwrap()
    };
    let (started, cancelled) = tokio::join!(start, cancel);
    assert_eq!((started.state(), cancelled.state()), (ExecState::Ended, ExecState::Ended));
    let _link = supervisor.attach().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(matches!(outcome(&world, exec).await, Some(Kind::Cancelled(_))));
    assert_eq!(supervisor.begun(exec), 0);
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_the_session_and_goes_on_at_once() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let call = attach(&world, ExecId::random());
    let late = async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        supervisor.attach().await
    };
    let at = Instant::now();
    let (attached, _link) = tokio::join!(call, late);
    assert!(matches!(drain(&mut attached.unwrap().output).await.1, Ok(Kind::Exited(_))));
    assert!(at.elapsed() < Duration::from_millis(7100), "{:?}", at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_not_answered_is_unknown_and_settled_afterwards() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    let exec = ExecId::random();
    supervisor.script(std::iter::repeat_n(Act::StartAndSaySoNever, 10));
    let at = Instant::now();
    let error = attach(&world, exec).await.unwrap_err();
    assert_eq!(error.reason, Reason::StartUnknown);
    assert!(at.elapsed() <= timing::START_DEADLINE + Duration::from_millis(10), "{:?}", at.elapsed());
    assert_eq!(outcome(&world, exec).await, None, "it may run");
    let info = supervisor.end(exec, 4);
    let waiting = world.execs.wait(BOX, exec, None).await.unwrap();
    assert_eq!(waiting.outcome, info.outcome);
    assert_eq!(supervisor.begun(exec), 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_id_is_the_same_exec_and_another_spec_is_a_conflict() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    let exec = ExecId::random();
    supervisor.script([Act::Run { stdout: Bytes::new() }, Act::Run { stdout: Bytes::new() }]);
    let (first, second) = tokio::join!(attach(&world, exec), attach(&world, exec));
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(supervisor.begun(exec), 1);
    let mut open = an_attach(BOX, exec);
    open.start.as_mut().unwrap().tty = Some(TerminalSize { cols: 80, rows: 24 });
    let error = world.execs.attach(open, caller()).await.unwrap_err();
    assert_eq!(error.reason, Reason::ExecIdConflict);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_spec_is_refused_before_it_exists() {
    let world = FakeWorld::new().await;
    world.sandbox(BOX).await;
    let exec = ExecId::random();
    let mut open = an_attach(BOX, exec);
    open.start.as_mut().unwrap().command = None;
    let error = world.execs.attach(open, caller()).await.unwrap_err();
    assert_eq!((error.reason, error.metadata[key::FIELD].as_str()), (Reason::InvalidArgument, "command"));
    assert_eq!(world.store.exec(exec).await.unwrap(), None);
}
