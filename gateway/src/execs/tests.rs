//! Execs over the real wire, with a paused clock: what callers are told, whatever happens to supervisors.

use std::time::Duration;

use bytes::Bytes;
use holdfast_drivers::Exit;
use holdfast_wire::{
    api::{
        AttachEvent, ExecState, Exited, Lost, LostReason, OnDisconnect, OutputAck, StartFailed, StartFailure,
        TerminalSize, attach_event::Kind as Event, outcome::Kind,
    },
    close::CloseCode,
    control::{RefusedCode, exec_call, up},
    frame::Frame,
    ids::ExecId,
    timing,
};
use tokio::time::Instant;

use super::{AttachOutput, Attached, CallerInfo};
use crate::{
    error::{CallError, Reason, key},
    sessions::fake::{Act, FakeWorld, Heard, a_spec, an_attach, open_control},
};

const BOX: &str = "box";

fn caller() -> CallerInfo {
    CallerInfo { name: "ada".to_owned(), traceparent: String::new() }
}

/// Everything until the end: stdout, and the outcome or the error.
async fn drain(output: &mut AttachOutput) -> (Vec<u8>, Result<Kind, CallError>) {
    let mut stdout = Vec::new();
    loop {
        match output.next_event().await {
            Some(Ok(AttachEvent { kind: Some(Event::Stdout(data)) })) => {
                assert_eq!(data.offset, stdout.len() as u64);
                stdout.extend_from_slice(&data.data);
            }
            Some(Ok(AttachEvent { kind: Some(Event::Ended(ended)) })) => {
                assert!(output.next_event().await.is_none(), "nothing follows the outcome");
                return (stdout, Ok(ended.outcome.unwrap().kind.unwrap()));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return (stdout, Err(error)),
            None => panic!("an end without outcome or error"),
        }
    }
}

/// Reads until so much of stdout is there.
async fn read(output: &mut AttachOutput, length: usize) {
    let mut got = 0;
    while got < length {
        if let Some(Event::Stdout(data)) = output.next_event().await.unwrap().unwrap().kind {
            got += data.data.len();
        }
    }
}

async fn attach(world: &FakeWorld, exec: ExecId) -> Result<Attached, CallError> {
    world.execs.attach(an_attach(BOX, exec), caller()).await
}

async fn outcome(world: &FakeWorld, exec: ExecId) -> Option<Kind> {
    world.store.exec(exec).await.unwrap().unwrap().finished.and_then(|finished| finished.outcome.kind)
}

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
