//! What follows from a wish: stop, pause, resume, delete.

use super::*;

#[test]
fn stop_waits_for_the_workload_and_then_closes_the_session() {
    let mut bench = Bench::ready();
    bench.want(Desired::Stopped);
    assert_eq!(bench.phase(), Phase::Stopping);
    assert!(matches!(bench.call(), Call::Stop { then_delete: false, .. }));
    assert!(bench.steps().is_empty(), "the session stays while execs end");
    bench.answer(Ok(None));
    assert_eq!(bench.phase(), Phase::Stopped);
    assert!(matches!(bench.steps()[..], [Step::Close(CloseCode::SANDBOX_STOPPED, _)]));
    assert_eq!(bench.assess().dead, None, "a stop is not a death");
    bench.start_anew();
    // The driver's word of the old workload comes late.
    bench.level(1, WorkloadState::Stopped);
    assert!(bench.steps().iter().any(|step| matches!(step, Step::Close(CloseCode::STALE_GENERATION, _))));
    bench.ensured();
    assert_eq!(bench.phase(), Phase::Provisioning, "the old session is not the new workload's");
    bench.level(1, WorkloadState::Stopped);
    assert_eq!(bench.phase(), Phase::Provisioning);
}

#[test]
fn a_stop_that_fails_is_tried_until_it_works() {
    let mut bench = Bench::ready();
    bench.want(Desired::Stopped);
    for _ in 0..5 {
        bench.call();
        bench.answer(Err(failure(false)));
        assert_eq!(bench.told(), (Phase::Stopping, "DriverUnavailable".to_owned()));
        bench.pass(1);
    }
    bench.call();
    bench.answer(Err(Failure { not_found: true, ..failure(false) }));
    assert_eq!(bench.phase(), Phase::Stopped);
}

#[test]
fn a_workload_that_runs_although_it_should_not_is_stopped() {
    let mut bench = Bench::of_before(Desired::Stopped);
    assert_eq!(bench.phase(), Phase::Stopping, "until the driver says so");
    bench.level(1, WorkloadState::Running);
    assert!(matches!(bench.call(), Call::Stop { .. }));
    let mut bench = Bench::of_before(Desired::Stopped);
    bench.level(1, WorkloadState::Stopped);
    assert_eq!(bench.phase(), Phase::Stopped);
    assert!(bench.steps().is_empty());
}

#[test]
fn pause_and_resume_go_by_way_of_the_driver_and_the_probe() {
    let mut bench = Bench::ready();
    bench.want(Desired::Paused);
    assert_eq!(bench.phase(), Phase::Pausing);
    assert_eq!(bench.call(), Call::Pause);
    bench.answer(Ok(None));
    assert_eq!(bench.phase(), Phase::Paused);
    bench.health(1, true, true);
    bench.pass(3600);
    bench.lost(1);
    assert_eq!(bench.phase(), Phase::Paused, "a frozen supervisor may well be lost");
    bench.want(Desired::Running);
    assert_eq!(bench.phase(), Phase::Resuming);
    assert_eq!(bench.call(), Call::Resume);
    bench.answer(Ok(None));
    assert_eq!(bench.told(), (Phase::Resuming, "WaitingForSupervisor".to_owned()));
    bench.attached(2);
    assert_eq!(bench.told(), (Phase::Resuming, "Probing".to_owned()));
    bench.health(2, true, true);
    assert_eq!(bench.phase(), Phase::Ready);
}

#[test]
fn a_session_that_survives_a_pause_proves_itself_again() {
    let mut bench = Bench::ready();
    bench.want(Desired::Paused);
    bench.call();
    bench.level(1, WorkloadState::Paused);
    bench.answer(Ok(None));
    bench.want(Desired::Running);
    bench.call();
    bench.level(1, WorkloadState::Running);
    bench.answer(Ok(None));
    assert_eq!(bench.told(), (Phase::Resuming, "Probing".to_owned()));
    bench.health(1, true, true);
    assert_eq!(bench.phase(), Phase::Ready);
}

#[test]
fn a_resume_that_does_not_get_there_is_degraded_with_its_reason() {
    let mut bench = Bench::ready();
    bench.want(Desired::Paused);
    bench.call();
    bench.answer(Ok(None));
    bench.want(Desired::Running);
    bench.call();
    bench.answer(Ok(None));
    bench.lost(1);
    bench.pass(60);
    assert_eq!(bench.told(), (Phase::Degraded, "ResumeDeadline".to_owned()));
    bench.attached(2);
    bench.health(2, true, true);
    assert_eq!(bench.phase(), Phase::Ready);
}

#[test]
fn a_pause_that_cannot_be_done_is_given_up() {
    let mut bench = Bench::ready();
    bench.want(Desired::Paused);
    bench.call();
    bench.answer(Err(failure(false)));
    assert_eq!(bench.steps(), [Step::GiveUpPausing]);
    bench.want(Desired::Running);
    assert_eq!(bench.phase(), Phase::Ready);
}

#[test]
fn delete_is_legal_in_every_phase_and_waits_for_the_driver() {
    type Make = fn() -> Bench;
    let benches: [(&str, Make); 6] = [
        ("pending", Bench::asked_for),
        ("ready", Bench::ready),
        ("unproven", || Bench::of_before(Desired::Running)),
        ("stopped", || {
            let mut bench = Bench::of_before(Desired::Stopped);
            bench.level(1, WorkloadState::Stopped);
            bench
        }),
        ("failed", || {
            let mut bench = Bench::of_before(Desired::Running);
            bench.absent();
            bench
        }),
        ("paused", || {
            let mut bench = Bench::of_before(Desired::Paused);
            bench.level(1, WorkloadState::Paused);
            bench
        }),
    ];
    for (name, make) in benches {
        let mut bench = make();
        let linked = bench.state.link.is_some();
        bench.want(Desired::Deleted);
        assert_eq!(bench.phase(), Phase::Deleting, "{name}");
        let mut call = bench.call();
        if let Call::Stop { then_delete, .. } = call {
            assert!(then_delete, "{name}");
            bench.answer(Err(failure(false)));
            call = bench.call();
        }
        assert_eq!(call, Call::Delete, "{name}");
        bench.answer(Err(failure(false)));
        assert!(bench.steps().is_empty(), "{name}: not before its time");
        bench.pass(1);
        assert_eq!(bench.call(), Call::Delete, "{name}: never given up");
        bench.answer(Ok(None));
        let steps = bench.steps();
        assert_eq!(steps.last(), Some(&Step::Forget), "{name}");
        let closed = steps.iter().any(|step| matches!(step, Step::Close(CloseCode::SANDBOX_DELETED, _)));
        assert_eq!(closed, linked, "{name}");
    }
}

#[test]
fn a_long_call_that_nobody_wants_any_more_is_dropped() {
    let mut bench = Bench::asked_for();
    bench.call();
    bench.want(Desired::Deleted);
    assert_eq!(bench.steps(), [Step::Abandon]);
    bench.state.on_abandoned(bench.now);
    assert_eq!(bench.call(), Call::Delete);
    let mut bench = Bench::asked_for();
    bench.call();
    bench.want(Desired::Stopped);
    assert_eq!(bench.steps(), [Step::Abandon]);
    bench.state.on_abandoned(bench.now);
    assert_eq!(bench.phase(), Phase::Stopped);
    // The driver finished it all the same.
    bench.level(1, WorkloadState::Running);
    assert!(matches!(bench.call(), Call::Stop { .. }));
}

#[test]
fn a_store_from_a_backup_follows_the_driver() {
    let mut bench = Bench::of_before(Desired::Running);
    let level = Level::Seen(seen(4, WorkloadState::Running));
    assert!(bench.state.on_level(level, bench.now), "to be stored");
    assert_eq!((bench.state.wanted.generation, bench.state.wanted.made), (Generation(4), Generation(4)));
    assert!(bench.steps().is_empty(), "the running workload is kept");
}

#[test]
fn another_drivers_sandbox_is_left_alone_and_can_be_deleted() {
    let mut bench = Bench::new(Wanted { foreign: true, ..wanted(Desired::Running) });
    assert_eq!(bench.told(), (Phase::Failed, "OtherDriver".to_owned()));
    assert!(bench.steps().is_empty());
    bench.want(Desired::Deleted);
    assert_eq!(bench.steps(), [Step::Forget]);
}
