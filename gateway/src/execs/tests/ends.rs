//! Ends that nobody was attached to: reports, dead workloads, deleted sandboxes, the drain.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_running_exec_of_a_gone_instance_is_lost_with_the_next_complete_report() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let link = supervisor.attach().await;
    let exec = ExecId::random();
    supervisor.script([Act::Run { stdout: Bytes::new() }]);
    let info = world.execs.start(BOX, exec, a_spec(OnDisconnect::Keep), None, &caller()).await.unwrap();
    assert_eq!((info.state(), info.pid), (ExecState::Running, 42));
    let waiting = world.execs.wait(BOX, exec, None);
    let restart = async {
        link.connection.close(CloseCode::INTERNAL, "killed");
        supervisor.restarted().attach().await
    };
    let (info, _link) = tokio::join!(waiting, restart);
    let Some(Kind::Lost(lost)) = info.unwrap().outcome.unwrap().kind else { panic!() };
    assert_eq!(lost.reason(), LostReason::SupervisorRestarted);
}

#[tokio::test(start_paused = true)]
async fn an_end_while_nobody_was_attached_is_learnt_from_the_report() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let link = supervisor.attach().await;
    let exec = ExecId::random();
    supervisor.script([Act::Run { stdout: Bytes::new() }]);
    world.execs.start(BOX, exec, a_spec(OnDisconnect::Keep), None, &caller()).await.unwrap();
    link.connection.close(CloseCode::INTERNAL, "flap");
    let waiting = world.execs.wait(BOX, exec, None);
    let back = async {
        supervisor.end(exec, 9);
        supervisor.attach().await
    };
    let (info, _link) = tokio::join!(waiting, back);
    assert_eq!(info.unwrap().outcome.unwrap().kind, Some(Kind::Exited(Exited { code: 9 })));
}

#[tokio::test(start_paused = true)]
async fn a_dead_workload_ends_its_execs_though_the_session_is_silent_only() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let link = supervisor.attach().await;
    let exec = ExecId::random();
    supervisor.script([Act::Run { stdout: Bytes::new() }]);
    world.execs.start(BOX, exec, a_spec(OnDisconnect::Keep), None, &caller()).await.unwrap();
    world.wire.cut(link.address);
    let waiting = world.execs.wait(BOX, exec, None);
    let (info, ()) = tokio::join!(waiting, async { world.machine.kill(supervisor.sandbox, Exit::Signal(9)) });
    let Some(Kind::Lost(lost)) = info.unwrap().outcome.unwrap().kind else { panic!() };
    assert_eq!(lost.reason(), LostReason::WorkloadGone);
}

#[tokio::test(start_paused = true)]
async fn deleting_the_sandbox_ends_its_execs_and_their_waits() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    let exec = ExecId::random();
    supervisor.script([Act::Run { stdout: Bytes::new() }]);
    world.execs.start(BOX, exec, a_spec(OnDisconnect::Keep), None, &caller()).await.unwrap();
    let waiting = world.execs.wait(BOX, exec, None);
    let deleted = world.sandboxes.delete(BOX, Duration::ZERO, false);
    let (info, deleted) = tokio::join!(waiting, deleted);
    deleted.unwrap();
    assert!(matches!(info.unwrap().outcome.unwrap().kind, Some(Kind::Lost(_))));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_its_time_and_says_how_the_exec_is() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    let exec = ExecId::random();
    supervisor.script([Act::Run { stdout: Bytes::new() }]);
    world.execs.start(BOX, exec, a_spec(OnDisconnect::Keep), None, &caller()).await.unwrap();
    let at = Instant::now();
    let info = world.execs.wait(BOX, exec, Some(Duration::from_secs(20))).await.unwrap();
    assert_eq!((info.state(), at.elapsed().as_secs()), (ExecState::Running, 20));
}

#[tokio::test(start_paused = true)]
async fn draining_tells_callers_and_supervisors_and_leaves_nothing() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let link = supervisor.attach().await;
    supervisor.script([Act::Run { stdout: Bytes::new() }]);
    let (_input, mut output) = attach(&world, ExecId::random()).await.unwrap().split();
    let at = Instant::now();
    world.listener.drain("an upgrade").await;
    assert!(at.elapsed() <= Duration::from_millis(1600), "{:?}", at.elapsed());
    let error = drain(&mut output).await.1.unwrap_err();
    assert_eq!((error.reason, error.metadata[key::CAUSE].as_str()), (Reason::SessionLost, "GOING_AWAY"));
    supervisor
        .hears(|heard| matches!(heard, Heard::Control(holdfast_wire::control::down::Body::GoAway(away)) if away.reconnect_after_ms >= 2000))
        .await;
    assert_eq!(link.connection.closed().await.code(), Some(CloseCode::GOING_AWAY));
    assert_eq!((world.registry.len(), world.listener.tasks()), (0, 0));
    world.execs.shutdown().await;
}
