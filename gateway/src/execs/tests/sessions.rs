//! Sessions that go, hold still, and are superseded while calls are attached.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_outcome_follows_the_last_output_byte_and_is_stored() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    let (exec, text) = (ExecId::random(), Bytes::from(vec![b'x'; 300_000]));
    supervisor.script([Act::Finish { stdout: text.clone(), code: 3 }]);
    let (_, mut output) = attach(&world, exec).await.unwrap().split();
    let (stdout, end) = drain(&mut output).await;
    assert_eq!((Bytes::from(stdout), end.unwrap()), (text, Kind::Exited(Exited { code: 3 })));
    assert_eq!(outcome(&world, exec).await, Some(Kind::Exited(Exited { code: 3 })));
    let info = world.execs.wait(BOX, exec, None).await.unwrap();
    assert_eq!((info.state(), info.stdout_bytes), (ExecState::Ended, 300_000));
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_told_at_once_with_the_offsets_and_the_exec_runs_on() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let link = supervisor.attach().await;
    let exec = ExecId::random();
    supervisor.script([Act::Run { stdout: Bytes::from_static(b"hello") }]);
    let (_input, mut output) = attach(&world, exec).await.unwrap().split();
    read(&mut output, 5).await;
    let at = Instant::now();
    link.connection.close(CloseCode::INTERNAL, "gone");
    let error = drain(&mut output).await.1.unwrap_err();
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
    assert_eq!(error.reason, Reason::SessionLost);
    assert_eq!(error.metadata[key::EXEC_ID], exec.to_string());
    assert_eq!(
        (error.metadata[key::STDOUT_OFFSET].as_str(), error.metadata[key::CAUSE].as_str()),
        ("5", "INTERNAL")
    );
    assert_eq!(outcome(&world, exec).await, None);

    // Attached again from the offset, by a new session: nothing twice, and the true end.
    let _link = supervisor.attach().await;
    supervisor.script([Act::Finish { stdout: Bytes::new(), code: 0 }]);
    let mut open = an_attach(BOX, exec);
    open.stdout_offset = 5;
    let (_, mut output) = world.execs.attach(open, caller()).await.unwrap().split();
    let (stdout, end) = drain(&mut output).await;
    assert_eq!((stdout.len(), end.unwrap()), (0, Kind::Exited(Exited { code: 0 })));
    assert_eq!(supervisor.begun(exec), 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_path_ends_the_calls_within_the_bound_though_the_caller_reads_nothing() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let link = supervisor.attach().await;
    let session = world.session(BOX, 1).await;
    supervisor.script([Act::Run { stdout: Bytes::from_static(b"hello") }]);
    let (_input, mut output) = attach(&world, ExecId::random()).await.unwrap().split();
    read(&mut output, 5).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(session.lost().is_none(), "heartbeats keep a quiet exec alive");

    world.wire.cut(link.address);
    let at = Instant::now();
    let error = drain(&mut output).await.1.unwrap_err();
    let took = at.elapsed();
    assert!(took > Duration::from_secs(8) && took <= Duration::from_secs(11), "{took:?}");
    assert_eq!((error.reason, error.metadata[key::CAUSE].as_str()), (Reason::SessionLost, "UNRESPONSIVE"));
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_survives_a_blackout_that_would_end_calls() {
    let world = FakeWorld::new().await;
    let link = world.sandbox(BOX).await.attach().await;
    let session = world.session(BOX, 1).await;
    world.wire.cut(link.address);
    tokio::time::sleep(Duration::from_secs(13)).await;
    world.wire.heal(link.address);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(session.lost(), None);
}

#[tokio::test(start_paused = true)]
async fn the_newest_session_supersedes_and_its_calls_are_told() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let old = supervisor.attach().await;
    supervisor.script([Act::Run { stdout: Bytes::new() }]);
    let (_input, mut output) = attach(&world, ExecId::random()).await.unwrap().split();
    let at = Instant::now();
    let new = supervisor.attach().await;
    assert!(new.welcome.epoch > old.welcome.epoch);
    let error = drain(&mut output).await.1.unwrap_err();
    assert!(at.elapsed() < Duration::from_secs(1));
    assert_eq!((error.reason, error.metadata[key::CAUSE].as_str()), (Reason::SessionLost, "SUPERSEDED"));
    assert_eq!(old.connection.closed().await.code(), Some(CloseCode::SUPERSEDED));
    assert_eq!(new.connection.lost(), None);
}
