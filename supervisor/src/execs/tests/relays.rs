//! Relays and calls: starting once, attaching often, leaving in every way.

use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_wire::{
    api::{ExecState, OnDisconnect},
    close::CloseCode,
    control::{CancelCall, ListCall, ReadCall, RefusedCode, ResizeCall, SignalCall, WaitCall},
};

use super::*;
use crate::execs::exec::Phase;

#[tokio::test(flavor = "multi_thread")]
async fn the_same_start_is_the_same_exec() {
    let lab = Lab::real().await;
    let (id, spec) = (ExecId::random(), shell("echo once >> count; sleep 0.3; cat count"));
    let (mut one, mut two) =
        tokio::join!(lab.relay(start(id, spec.clone())), lab.relay(start(id, spec.clone())));
    let (one, two) = tokio::join!(one.finish(), two.finish());
    let three = lab.relay(start(id, spec)).await.finish().await;
    for report in [one, two, three] {
        assert_eq!(report.stdout(), "once\n");
        assert!(report.started.is_some());
    }
    let refused = lab.try_relay(start(id, shell("echo other"))).await.err().unwrap();
    assert_eq!(refused.code(), RefusedCode::Conflict);
    let refused = lab.try_relay(attach(ExecId::random(), 0)).await.err().unwrap();
    assert_eq!(refused.code(), RefusedCode::NotFound);
    let refused =
        lab.try_relay(ExecRelay { exec_id: "short".into(), ..ExecRelay::default() }).await.err().unwrap();
    assert_eq!(refused.code(), RefusedCode::Invalid);
    let refused = lab.try_relay(start(ExecId::random(), ExecSpec::default())).await.err().unwrap();
    assert_eq!(refused.code(), RefusedCode::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_attach_started_or_ended_is_all() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let request = || ExecRelay { attach: false, ..start(id, shell("sleep 0.5; exit 8")) };
    let mut first = lab.relay(request()).await;
    let Some(Frame::Started(started)) = first.next().await.unwrap() else { panic!("not started") };
    assert_eq!(started.exec.unwrap().state, ExecState::Running as i32);
    assert_eq!(first.next().await.unwrap(), None);
    lab.call(exec_call::Kind::Wait(WaitCall { exec_id: id.to_bytes(), at_most_ms: 20_000 })).await.unwrap();
    let mut again = lab.relay(request()).await;
    let Some(Frame::Ended(ended)) = again.next().await.unwrap() else { panic!("not ended") };
    assert!(matches!(ended.outcome.unwrap().kind, Some(Kind::Exited(exited)) if exited.code == 8));
}

/// Two looks at the phase at once, and somebody between them who wants to change it, would wait for each other for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_may_begin_while_the_phase_is_about_to_change() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    assert_eq!(lab.relay(start(id, shell("exit 4"))).await.finish().await.code(), 4);
    let exec = lab.execs.inner.find(&id.to_bytes()).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    // It has ended, so nothing changes; but each attempt waits for those who look.
    let changing =
        std::thread::spawn(move || while !ends.load(Ordering::Relaxed) && !exec.advance(Phase::Accepted) {});
    let looking = async {
        for _ in 0..200 {
            assert_eq!(lab.relay(attach(id, 0)).await.finish().await.code(), 4);
            let told = ExecRelay { attach: false, ..attach(id, 0) };
            let told = lab.relay(told).await.next().await.unwrap();
            assert!(matches!(told, Some(Frame::Ended(_))), "{told:?}");
        }
    };
    let looked = tokio::time::timeout(Duration::from_secs(30), looking).await;
    over.store(true, Ordering::Relaxed);
    looked.expect("nobody waits for ever");
    changing.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_up_nobody_else() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let spec = shell("head -c 6000000 /dev/zero; exit 1");
    // It never reads: its stream's window fills, and its relay stands still.
    let slow = lab.relay(start(id, spec)).await;
    let fast = lab.relay(attach(id, 0)).await.finish().await;
    assert_eq!((fast.code(), fast.stdout.len()), (1, 6_000_000));
    let mut slow = slow;
    let report = slow.finish().await;
    assert_eq!((report.code(), report.stdout.len()), (1, 6_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_attaches_at_any_offset() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    lab.relay(start(id, shell("seq 1 100000; seq 1 5 >&2"))).await.finish().await;
    let whole = lab.relay(attach(id, 0)).await.finish().await.stdout;
    for offset in [1, 4096, 300_000, whole.len() as u64] {
        let report = lab.relay(attach(id, offset)).await.finish().await;
        assert_eq!(report.stdout, whole[offset as usize..]);
        assert_eq!(report.stderr(), "1\n2\n3\n4\n5\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_was_never_written_is_refused() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let _first = lab.relay(start(id, shell("sleep 60"))).await;
    let refused = lab.try_relay(attach(id, 10)).await.err().unwrap();
    assert_eq!(refused.code(), RefusedCode::Invalid);
    assert!(refused.message.contains("only 0 bytes"), "{}", refused.message);
}

fn dies_with_its_caller() -> ExecSpec {
    ExecSpec { on_disconnect: OnDisconnect::Kill as i32, ..shell("echo up; sleep 60") }
}

async fn outcome_of(lab: &Lab, id: ExecId) -> Option<Kind> {
    let call = exec_call::Kind::Wait(WaitCall { exec_id: id.to_bytes(), at_most_ms: 15_000 });
    let [info] = lab.call(call).await.unwrap().execs.try_into().unwrap();
    info.outcome.and_then(|outcome| outcome.kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_caller_that_goes_takes_its_exec_along_if_asked() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let mut first = lab.relay(start(id, dies_with_its_caller())).await;
    first.until_stdout("up").await;
    let second = lab.relay(attach(id, 0)).await;
    first.send.reset(CloseCode::CALLER_GONE);
    drop(first);
    // One is left: it lives on.
    let alive =
        lab.call(exec_call::Kind::Wait(WaitCall { exec_id: id.to_bytes(), at_most_ms: 700 })).await.unwrap();
    assert_eq!(alive.execs[0].state, ExecState::Running as i32);
    assert_eq!(alive.execs[0].readers, 1);
    drop(second);
    let Some(Kind::Cancelled(cancelled)) = outcome_of(&lab, id).await else { panic!("it lives on") };
    assert_eq!(cancelled.by, "disconnect");
    nothing_left(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn detaching_takes_nothing_along() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let mut caller = lab.relay(start(id, dies_with_its_caller())).await;
    caller.until_stdout("up").await;
    caller.send(Frame::Detach).await;
    assert_eq!(caller.next().await, Err(StreamError::Ended(CloseCode::DONE)));
    let state = lab.call(exec_call::Kind::Get(id.to_bytes())).await.unwrap().execs[0].state;
    assert_eq!(state, ExecState::Running as i32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_is_a_caller_that_went() {
    let lab = Lab::real().await;
    let (kill, keep) = (ExecId::random(), ExecId::random());
    let mut one = lab.relay(start(kill, dies_with_its_caller())).await;
    let mut two = lab.relay(start(keep, shell("echo up; sleep 60"))).await;
    one.until_stdout("up").await;
    two.until_stdout("up").await;
    lab.gateway.close(CloseCode::GOING_AWAY, "test");
    lab.supervisor.closed().await;
    let mut running = lab.execs.running();
    tokio::time::timeout(Duration::from_secs(15), running.wait_for(|n| *n == 1)).await.unwrap().unwrap();
    let report = lab.execs.report();
    let of = |id: ExecId| report.iter().find(|info| info.exec_id == id.to_string()).unwrap();
    assert_eq!(of(keep).state, ExecState::Running as i32);
    assert!(matches!(of(kill).outcome, Some(Outcome { kind: Some(Kind::Cancelled(_)) })));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_breaks_the_protocol_is_cut_off() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let spec = ExecSpec { stdin: true, ..shell("cat") };
    let mut hole = lab.relay(start(id, spec)).await;
    hole.stdin(100, b"x").await;
    let error = loop {
        match hole.next().await {
            Ok(Some(Frame::Started(_))) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error, StreamError::Ended(CloseCode::PROTOCOL));
    // The exec itself is none the worse.
    let mut good = lab.relay(attach(id, 0)).await;
    good.stdin(0, b"fine").await;
    good.send(Frame::StdinEof { offset: 4 }).await;
    assert_eq!(good.finish().await.stdout(), "fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_group_by_frame_and_by_call() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let line = "trap 'echo usr1' USR1; trap 'exit 33' USR2; echo up; while :; do sleep 0.05; done";
    let mut caller = lab.relay(start(id, shell(line))).await;
    caller.until_stdout("up").await;
    caller.send(Frame::Signal(libc::SIGUSR1)).await;
    caller.until_stdout("usr1").await;
    let signal = |number| SignalCall { exec_id: id.to_bytes(), signal: number };
    let refused = lab.call(exec_call::Kind::Signal(signal(99))).await.unwrap_err();
    assert_eq!(refused.code(), RefusedCode::Invalid);
    let size = Some(holdfast_wire::api::TerminalSize { cols: 80, rows: 24 });
    let refused =
        lab.call(exec_call::Kind::Resize(ResizeCall { exec_id: id.to_bytes(), size })).await.unwrap_err();
    assert!(refused.message.contains("no terminal"), "{}", refused.message);
    lab.call(exec_call::Kind::Signal(signal(libc::SIGUSR2))).await.unwrap();
    assert_eq!(caller.finish().await.code(), 33);
    let refused = lab.call(exec_call::Kind::Signal(signal(libc::SIGTERM))).await.unwrap_err();
    assert_eq!(refused.code(), RefusedCode::Ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_list_read_wait_and_cancel() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let mut caller = lab.relay(start(id, shell("echo hello; sleep 60"))).await;
    caller.until_stdout("hello\n").await;
    let list = lab.call(exec_call::Kind::List(ListCall {})).await.unwrap().execs;
    assert_eq!((list.len(), list[0].state, list[0].stdout_bytes), (1, ExecState::Running as i32, 6));
    let read = |offset| {
        let stream = OutputStream::Stdout as i32;
        exec_call::Kind::Read(ReadCall { exec_id: id.to_bytes(), stream, offset, max_bytes: 3 })
    };
    let got = lab.call(read(1)).await.unwrap().read.unwrap();
    assert_eq!((got.offset, got.data.as_ref(), got.eof), (1, &b"ell"[..], false));
    let waited =
        lab.call(exec_call::Kind::Wait(WaitCall { exec_id: id.to_bytes(), at_most_ms: 50 })).await.unwrap();
    assert_eq!(waited.execs[0].state, ExecState::Running as i32);
    lab.call(exec_call::Kind::Cancel(CancelCall { exec_id: id.to_bytes(), by: "ada".into() })).await.unwrap();
    let Some(Kind::Cancelled(cancelled)) = outcome_of(&lab, id).await else { panic!("not cancelled") };
    assert_eq!(cancelled.by, "ada");
    let end = lab.call(read(5)).await.unwrap().read.unwrap();
    assert_eq!((end.data.as_ref(), end.eof), (&b"\n"[..], true));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_without_loss_and_without_a_queue() {
    let lab = Lab::real().await;
    let mut changes = lab.execs.changes();
    let ids: Vec<ExecId> = (0..5).map(|_| ExecId::random()).collect();
    for id in &ids {
        lab.relay(start(*id, shell("true"))).await.finish().await;
    }
    // Accepted, running, ended; the last is told to callers first.
    changes.wait_for(|revision| *revision == 15).await.unwrap();
    let (revision, changed) = lab.execs.changed_since(0);
    assert_eq!(changed.len(), 5);
    assert!(changed.iter().all(|info| info.state == ExecState::Ended as i32));
    assert!(lab.execs.changed_since(revision).1.is_empty());
    lab.relay(start(ExecId::random(), shell("true"))).await.finish().await;
    assert_eq!(lab.execs.changed_since(revision).1.len(), 1);
}

/// On the paused clock, without a network: hours pass at once.
mod scripted {
    use super::*;
    use crate::execs::{Inner, exec::Phase};

    async fn core(dir: &tempfile::TempDir) -> (Arc<Inner>, FakeSpawner) {
        let fake = FakeSpawner::new();
        let mut config = config(dir, Arc::new(fake.clone()));
        config.probe = vec!["echo".into()];
        config.spool = SpoolLimits { per_exec_bytes: 1 << 20, total_bytes: 64 << 20 };
        let execs = Execs::open(config, CancellationToken::new()).await.unwrap();
        (execs.inner, fake)
    }

    async fn outcome(core: &Arc<Inner>, request: ExecRelay) -> Kind {
        let exec = core.start_or_find(&request).unwrap();
        let mut phase = exec.phase();
        let phase = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))).await.unwrap();
        let Phase::Ended(end) = &*phase else { unreachable!("waited for") };
        end.outcome.kind.clone().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_has_its_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let (core, fake) = core(&dir).await;
        let Kind::StartFailed(failed) =
            outcome(&core, start(ExecId::random(), shell("start 1h; exit 0"))).await
        else {
            panic!("it started")
        };
        assert_eq!(failed.kind(), holdfast_wire::api::StartFailure::Deadline);
        assert_eq!(fake.alive(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_waits_for_the_command_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (core, _) = core(&dir).await;
        let late = core.start_or_find(&start(ExecId::random(), shell("start 5s; sleep 1h"))).unwrap();
        late.signal(libc::SIGTERM).await.unwrap().unwrap();
        let never = core.start_or_find(&start(ExecId::random(), shell("start 1h; exit 0"))).unwrap();
        assert!(never.signal(libc::SIGTERM).await.is_err(), "its deadline strikes first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_command_of_hours_ends_with_its_own_code() {
        let dir = tempfile::tempdir().unwrap();
        let (core, _) = core(&dir).await;
        let end = outcome(&core, start(ExecId::random(), shell("sleep 9h; emit 10; exit 17"))).await;
        assert!(matches!(end, Kind::Exited(exited) if exited.code == 17));
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_command_without_readers_goes_on_after_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let (core, _) = core(&dir).await;
        let begun = tokio::time::Instant::now();
        // Attached, so `block`; but nobody ever reads.
        let end = outcome(&core, start(ExecId::random(), shell("emit 9000000; exit 2"))).await;
        assert!(matches!(end, Kind::Exited(exited) if exited.code == 2));
        assert!(begun.elapsed() >= holdfast_wire::timing::BLOCKED_WITHOUT_READER, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_detached_command_never_waits_for_readers() {
        let dir = tempfile::tempdir().unwrap();
        let (core, _) = core(&dir).await;
        let begun = tokio::time::Instant::now();
        let request = ExecRelay { attach: false, ..start(ExecId::random(), shell("emit 9000000; exit 2")) };
        outcome(&core, request).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_background_process_delays_the_outcome_by_the_drain_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (core, fake) = core(&dir).await;
        let begun = tokio::time::Instant::now();
        outcome(&core, start(ExecId::random(), shell("background 1h; echo done"))).await;
        assert!(begun.elapsed() <= holdfast_wire::timing::DRAIN_MAX, "{:?}", begun.elapsed());
        assert_eq!(fake.alive(), 1, "it lives on");
    }

    #[tokio::test(start_paused = true)]
    async fn the_probe_works_through_any_spawner() {
        let dir = tempfile::tempdir().unwrap();
        let (core, _) = core(&dir).await;
        let execs = Execs { inner: core };
        execs.probe(tokio::time::Instant::now() + Duration::from_secs(5)).await.unwrap();
    }
}
