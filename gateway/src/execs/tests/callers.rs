//! Callers: going away, slow, quiet, and what they send.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_is_told_to_the_supervisor_and_one_that_leaves_is_not_gone() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    supervisor.script([Act::Run { stdout: Bytes::new() }, Act::Run { stdout: Bytes::new() }]);
    let leaving = attach(&world, ExecId::random()).await.unwrap();
    leaving.input.detach().await;
    supervisor.hears(|heard| *heard == Heard::Frame(Frame::Detach)).await;
    supervisor.hears(|heard| *heard == Heard::Gone(CloseCode::DONE)).await;
    let (_, mut output) = leaving.split();
    while let Some(event) = output.next_event().await {
        assert!(matches!(event.unwrap().kind, Some(Event::Started(_) | Event::Stdout(_))));
    }
    drop(attach(&world, ExecId::random()).await.unwrap());
    supervisor.hears(|heard| *heard == Heard::Gone(CloseCode::CALLER_GONE)).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_while_it_starts_leaves_an_exec_that_comes_to_its_end() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let (keep, kill) = (ExecId::random(), ExecId::random());
    let mut killed = an_attach(BOX, kill);
    killed.start = Some(a_spec(OnDisconnect::Kill));
    let soon = Duration::from_secs(1);
    assert!(tokio::time::timeout(soon, attach(&world, keep)).await.is_err());
    assert!(tokio::time::timeout(soon, world.execs.attach(killed, caller())).await.is_err());
    let info = world.execs.wait(BOX, kill, None).await.unwrap();
    assert!(matches!(info.outcome.unwrap().kind, Some(Kind::Cancelled(by)) if by.by == "disconnect"));
    let _link = supervisor.attach().await;
    let info = world.execs.wait(BOX, keep, Some(Duration::from_secs(5))).await.unwrap();
    assert_eq!((info.state(), supervisor.begun(keep), supervisor.begun(kill)), (ExecState::Running, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn signals_overtake_stdin_that_the_command_does_not_take() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    supervisor.script([Act::Run { stdout: Bytes::new() }]);
    let (input, _output) = attach(&world, ExecId::random()).await.unwrap().split();
    // The fake acknowledges what it reads; an offset that is far ahead is never taken.
    input.stdin(1 << 40, Bytes::from_static(b"stuck")).await.unwrap();
    input.signal(2).await.unwrap();
    input.resize(TerminalSize { cols: 80, rows: 24 }).await.unwrap();
    supervisor.hears(|heard| *heard == Heard::Frame(Frame::Signal(2))).await;
    supervisor.hears(|heard| *heard == Heard::Frame(Frame::Resize { cols: 80, rows: 24 })).await;
    let stdin = |heard: &Heard| matches!(heard, Heard::Frame(Frame::Stdin { .. }));
    assert!(!supervisor.heard_so_far().iter().any(stdin));
}

#[tokio::test(start_paused = true)]
async fn output_is_acknowledged_for_callers_that_do_not_and_passed_on_for_those_that_do() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    let text = Bytes::from(vec![b'x'; 70_000]);
    supervisor.script([Act::Run { stdout: text.clone() }, Act::Run { stdout: text }]);
    let (_input, mut output) = attach(&world, ExecId::random()).await.unwrap().split();
    read(&mut output, 70_000).await;
    let all = Heard::Frame(Frame::Ack { stdout: 70_000, stderr: 0 });
    supervisor.hears(|heard| *heard == all).await;

    let mut open = an_attach(BOX, ExecId::random());
    open.explicit_acks = true;
    let (input, mut output) = world.execs.attach(open, caller()).await.unwrap().split();
    read(&mut output, 70_000).await;
    let error = input.ack(OutputAck { stdout_offset: 70_001, stderr_offset: 0 }).await.unwrap_err();
    assert_eq!(error.reason, Reason::StreamProtocol);
    input.ack(OutputAck { stdout_offset: 12, stderr_offset: 0 }).await.unwrap();
    supervisor.hears(|heard| *heard == Heard::Frame(Frame::Ack { stdout: 12, stderr: 0 })).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_stops_the_supervisor_and_nobody_else() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    let much = Bytes::from(vec![b'x'; 16 << 20]);
    supervisor.script([
        Act::Finish { stdout: much.clone(), code: 0 },
        Act::Finish { stdout: Bytes::from_static(b"quick"), code: 0 },
    ]);
    let (_, mut slow) = attach(&world, ExecId::random()).await.unwrap().split();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (_, mut quick) = attach(&world, ExecId::random()).await.unwrap().split();
    assert_eq!(drain(&mut quick).await.0, b"quick");
    assert_eq!(drain(&mut slow).await.0.len(), much.len());
}

#[tokio::test(start_paused = true)]
async fn output_that_waits_is_told_in_large_pieces_and_the_outcome_behind_it() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    // Less than a stream's window: all of it is at the gateway before anybody reads.
    let text: Bytes = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    supervisor.script([Act::Finish { stdout: text.clone(), code: 3 }]);
    let (_, mut output) = attach(&world, ExecId::random()).await.unwrap().split();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut told, mut pieces) = (Vec::new(), 0);
    let outcome = loop {
        match output.next_event().await.unwrap().unwrap().kind {
            Some(Event::Stdout(data)) => {
                told.extend_from_slice(&data.data);
                pieces += 1;
            }
            Some(Event::Ended(ended)) => break ended.outcome.unwrap().kind.unwrap(),
            _ => {}
        }
    };
    assert!(told == text);
    assert_eq!(outcome, Kind::Exited(Exited { code: 3 }));
    // Datagrams are at most 6.5 KB: 160 pieces and more if each were told by itself.
    assert!(pieces < 64, "{pieces} pieces");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_exec_sends_its_caller_keepalives() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    supervisor.script([Act::Run { stdout: Bytes::new() }]);
    let (_input, mut output) = attach(&world, ExecId::random()).await.unwrap().split();
    assert!(matches!(output.next_event().await.unwrap().unwrap().kind, Some(Event::Started(_))));
    let at = Instant::now();
    assert!(matches!(output.next_event().await.unwrap().unwrap().kind, Some(Event::KeepAlive(_))));
    assert_eq!(at.elapsed().as_secs(), timing::API_KEEP_ALIVE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn an_attached_caller_is_told_of_a_pause_and_its_end() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    supervisor.script([Act::Run { stdout: Bytes::new() }]);
    let (_input, mut output) = attach(&world, ExecId::random()).await.unwrap().split();
    assert!(matches!(output.next_event().await.unwrap().unwrap().kind, Some(Event::Started(_))));
    let mut ready = world.sandboxes.resolve(BOX).unwrap().view();
    ready.wait_for(|view| view.phase == holdfast_wire::api::Phase::Ready).await.unwrap();
    for word in ["paused", "runs on"] {
        match word {
            "paused" => world.sandboxes.pause(BOX).await.unwrap(),
            _ => world.sandboxes.resume(BOX).await.unwrap(),
        };
        let Some(Event::Notice(notice)) = output.next_event().await.unwrap().unwrap().kind else { panic!() };
        assert!(notice.message.contains(word), "{}", notice.message);
    }
}

/// Starts an exec of which its supervisor hears after two seconds, and does something with it after one.
async fn a_second_before_it_starts<T>(world: &FakeWorld, exec: ExecId, act: impl Future<Output = T>) -> T {
    let (caller, spec) = (caller(), a_spec(OnDisconnect::Keep));
    let start = world.execs.start(BOX, exec, spec, None, &caller);
    let act = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        act.await
    };
    let (started, done) = Box::pin(async { tokio::join!(start, act) }).await;
    started.unwrap();
    done
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_overtakes_the_start_waits_for_it() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    supervisor.script([Act::RunLate { after: Duration::from_secs(2) }]);
    let (exec, caller) = (ExecId::random(), caller());
    let cancelled = a_second_before_it_starts(&world, exec, world.execs.cancel(BOX, exec, &caller)).await;
    assert_eq!(cancelled.unwrap().state(), ExecState::Running, "the fake's commands take no signal");
    let cancels = |heard: &Heard| matches!(heard, Heard::Call(exec_call::Kind::Cancel(_)));
    assert_eq!(
        supervisor.heard_so_far().iter().filter(|heard| cancels(heard)).count(),
        2,
        "and is asked again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_overtakes_the_start_waits_for_it() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    supervisor.script([Act::RunLate { after: Duration::from_secs(2) }]);
    let exec = ExecId::random();
    a_second_before_it_starts(&world, exec, world.execs.signal(BOX, exec, 15)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn calls_reach_the_supervisor_and_an_ended_exec_takes_none() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let _link = supervisor.attach().await;
    let exec = ExecId::random();
    supervisor.script([Act::Run { stdout: Bytes::from_static(b"kept") }]);
    world.execs.start(BOX, exec, a_spec(OnDisconnect::Keep), None, &caller()).await.unwrap();
    world.execs.signal(BOX, exec, 15).await.unwrap();
    supervisor
        .hears(|heard| matches!(heard, Heard::Call(exec_call::Kind::Signal(call)) if call.signal == 15))
        .await;
    assert_eq!(world.execs.signal(BOX, exec, 0).await.unwrap_err().reason, Reason::InvalidArgument);
    let stream = holdfast_wire::api::OutputStream::Stdout;
    assert_eq!(world.execs.read(BOX, exec, stream, 1, 0).await.unwrap().data, "ept");
    assert_eq!(world.execs.list(BOX).await.unwrap()[0].pid, 42);
    assert_eq!(world.execs.get(BOX, exec).await.unwrap().stdout_bytes, 4);
    supervisor.end(exec, 0);
    world.execs.cancel(BOX, exec, &caller()).await.unwrap();
    assert_eq!(outcome(&world, exec).await, Some(Kind::Exited(Exited { code: 0 })));
    assert_eq!(world.execs.signal(BOX, exec, 15).await.unwrap_err().reason, Reason::ExecEnded);
    let nobody = world.execs.get(BOX, ExecId::random()).await.unwrap_err();
    assert_eq!(nobody.reason, Reason::ExecNotFound);
}
