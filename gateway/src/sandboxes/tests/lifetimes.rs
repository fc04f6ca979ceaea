//! Ttl and idle stop.

use super::*;

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
