//! What follows from a fact: booting, probes, sessions, restarts, deaths.

use super::*;

#[test]
fn a_sandbox_comes_up_stage_by_stage() {
    let mut bench = Bench::asked_for();
    assert_eq!(bench.told(), (Phase::Pending, "Accepted".to_owned()));
    assert_eq!(bench.call(), Call::Ensure { generation: Generation(1) });
    assert_eq!(bench.told(), (Phase::Provisioning, "CreatingWorkload".to_owned()));
    assert!(bench.steps().is_empty(), "one call at a time");
    bench.level(1, WorkloadState::Creating);
    assert_eq!(bench.told(), (Phase::Provisioning, "CreatingWorkload".to_owned()));
    bench.answer(Ok(Some(seen(1, WorkloadState::Running))));
    bench.level(1, WorkloadState::Running);
    assert_eq!(bench.told(), (Phase::Provisioning, "WaitingForSupervisor".to_owned()));
    assert!(bench.attached(1));
    assert_eq!(bench.told(), (Phase::Provisioning, "Probing".to_owned()));
    bench.health(1, true, true);
    assert_eq!(bench.told(), (Phase::Ready, "AllConditionsMet".to_owned()));
    assert!(bench.steps().is_empty());
}

#[test]
fn a_boot_that_takes_too_long_fails_with_its_reason_and_asks_for_the_console() {
    let mut bench = Bench::asked_for();
    bench.ensured();
    assert_eq!(bench.assess().wake_at, Some(bench.now + BOOT));
    bench.pass(60);
    assert_eq!(bench.told(), (Phase::Failed, "BootTimeout".to_owned()));
    assert!(bench.assess().message.contains("has not dialled within 60 s"), "{}", bench.assess().message);
    assert_eq!(bench.steps(), [Step::Console]);
    bench.state.on_console(Generation(1), "kernel panic".to_owned());
    assert!(bench.assess().message.ends_with("the console ends with: kernel panic"));
    assert!(bench.steps().is_empty(), "the console is read once");
    assert_eq!(bench.assess().dead, None, "late is not dead");
    // It comes all the same.
    bench.attached(1);
    bench.health(1, true, true);
    assert_eq!(bench.phase(), Phase::Ready);
}

#[test]
fn a_driver_that_is_away_is_asked_again() {
    let mut bench = Bench::asked_for();
    bench.call();
    bench.answer(Err(failure(true)));
    assert_eq!(bench.told(), (Phase::Provisioning, "DriverUnavailable".to_owned()));
    assert!(bench.steps().is_empty(), "not at once");
    assert_eq!(bench.assess().wake_at, Some(bench.now + Duration::from_secs(1)));
    bench.pass(1);
    bench.ensured();
    assert_eq!(bench.phase(), Phase::Provisioning);
}

#[test]
fn a_spec_that_cannot_be_made_fails_and_is_not_tried_again_until_somebody_asks() {
    let mut bench = Bench::asked_for();
    bench.call();
    bench.answer(Err(failure(false)));
    assert_eq!(bench.phase(), Phase::Failed);
    bench.pass(3600);
    assert!(bench.steps().is_empty());
    bench.start_anew();
    assert_eq!(bench.call(), Call::Ensure { generation: Generation(2) });
}

#[test]
fn a_probe_that_fails_degrades_at_once_with_the_errno() {
    let mut bench = Bench::ready();
    bench.health(1, true, false);
    assert_eq!(bench.told(), (Phase::Degraded, "FilesystemProbeFailed".to_owned()));
    assert_eq!(bench.assess().message, "tried (errno 5)");
    bench.health(1, false, false);
    assert_eq!(bench.told(), (Phase::Degraded, "ExecProbeFailed".to_owned()));
    bench.health(1, true, true);
    assert_eq!(bench.phase(), Phase::Ready);
}

#[test]
fn ready_is_a_lease() {
    let mut bench = Bench::ready();
    assert_eq!(bench.assess().wake_at, Some(bench.now + timing::PROBE_LEASE));
    bench.pass(29);
    assert_eq!(bench.phase(), Phase::Ready);
    bench.pass(1);
    assert_eq!(bench.told(), (Phase::Degraded, "ProbeOverdue".to_owned()));
    assert_eq!(bench.assess().wake_at, None);
}

#[test]
fn a_probe_that_never_comes_degrades_too() {
    let mut bench = Bench::asked_for();
    bench.ensured();
    bench.attached(1);
    bench.pass(30);
    assert_eq!(bench.told(), (Phase::Degraded, "ProbeOverdue".to_owned()));
}

#[test]
fn a_supervisor_that_leaves_a_probe_out_is_not_ready() {
    let mut bench = Bench::ready();
    let exec = Some(ProbeResult { ok: true, ..ProbeResult::default() });
    bench.state.on_health(Epoch(1), &Health { exec, ..Health::default() }, bench.now);
    assert_eq!(bench.told(), (Phase::Degraded, "NotProbed".to_owned()));
}

#[test]
fn a_lost_link_is_never_a_failure() {
    let mut bench = Bench::ready();
    assert!(bench.lost(1));
    for _ in 0..100 {
        assert_eq!(bench.told(), (Phase::Reconnecting, "SessionLost".to_owned()));
        assert!(bench.steps().is_empty());
        bench.pass(3600);
    }
    assert!(bench.assess().message.contains("timed out"));
    bench.attached(2);
    assert_eq!(
        bench.told(),
        (Phase::Reconnecting, "Probing".to_owned()),
        "what epoch 1 proved is worth nothing"
    );
    bench.health(1, true, true);
    assert_eq!(bench.phase(), Phase::Reconnecting, "nor is what it says late");
    bench.health(2, true, true);
    assert_eq!(bench.phase(), Phase::Ready);
}

#[test]
fn newest_epoch_wins() {
    let mut bench = Bench::asked_for();
    bench.ensured();
    assert!(bench.attached(2));
    assert!(!bench.attached(1), "epoch 1 came later, and is older");
    bench.health(2, true, true);
    assert!(!bench.lost(1));
    assert_eq!(bench.phase(), Phase::Ready);
    assert!(bench.lost(2));
    assert!(!bench.attached(2), "what has ended does not come back");
    assert_eq!(bench.phase(), Phase::Reconnecting);
}

#[test]
fn after_a_restart_everything_is_reconnecting_until_proven() {
    let mut bench = Bench::of_before(Desired::Running);
    assert_eq!(bench.told(), (Phase::Reconnecting, "GatewayRestarted".to_owned()));
    assert!(bench.steps().is_empty(), "nothing is made that was made before");
    bench.level(1, WorkloadState::Running);
    bench.pass(3600);
    assert_eq!(bench.told(), (Phase::Reconnecting, "GatewayRestarted".to_owned()));
    bench.attached(9);
    assert_eq!(bench.told(), (Phase::Reconnecting, "Probing".to_owned()));
    bench.health(9, true, true);
    assert_eq!(bench.phase(), Phase::Ready);
}

#[test]
fn a_workload_that_was_never_made_is_made_after_a_restart() {
    let mut bench = Bench::asked_for();
    bench.absent();
    assert_eq!(bench.call(), Call::Ensure { generation: Generation(1) });
}

#[test]
fn what_the_driver_no_longer_has_is_failed() {
    let mut bench = Bench::of_before(Desired::Running);
    bench.absent();
    assert_eq!(bench.told(), (Phase::Failed, "WorkloadGone".to_owned()));
    assert!(bench.assess().dead.is_some());
    bench.start_anew();
    bench.ensured();
    assert_eq!(bench.phase(), Phase::Provisioning);
}

#[test]
fn a_list_from_before_the_workload_does_not_make_it_gone() {
    let mut bench = Bench::asked_for();
    let before = bench.now;
    bench.call();
    bench.pass(1);
    bench.state.on_level(Level::Absent { asked: before }, bench.now);
    bench.answer(Ok(Some(seen(1, WorkloadState::Running))));
    bench.state.on_level(Level::Absent { asked: before }, bench.now);
    assert_eq!(bench.phase(), Phase::Provisioning);
    bench.pass(1);
    bench.absent();
    assert_eq!(bench.told(), (Phase::Failed, "WorkloadGone".to_owned()));
}

#[test]
fn a_dead_workload_fails_the_sandbox_and_closes_its_session() {
    let mut bench = Bench::ready();
    bench.pass(1);
    bench.level(1, WorkloadState::Exited(Exit::Signal(9)));
    assert_eq!(bench.told(), (Phase::Failed, "WorkloadKilled".to_owned()));
    assert!(bench.assess().dead.is_some());
    assert!(matches!(bench.steps()[0], Step::Close(CloseCode::UNRESPONSIVE, _)));
    bench.state.on_closed("closed".to_owned());
    assert_eq!(bench.phase(), Phase::Failed);
}

#[test]
fn a_supervisor_that_attaches_after_its_death_lives() {
    let mut bench = Bench::ready();
    bench.pass(1);
    bench.level(1, WorkloadState::Exited(Exit::Unknown));
    bench.state.on_closed("closed".to_owned());
    bench.pass(1);
    bench.attached(2);
    bench.health(2, true, true);
    assert_eq!(bench.phase(), Phase::Ready);
    let workload = &bench.assess().conditions[0];
    assert_eq!((workload.status, workload.reason.as_str()), (ConditionStatus::True, "SupervisorAnswers"));
}

#[test]
fn a_driver_that_cannot_tell_does_not_overrule_a_session() {
    let mut bench = Bench::ready();
    bench.pass(1);
    bench.level(1, WorkloadState::Failed);
    assert_eq!(bench.phase(), Phase::Ready);
    assert!(bench.steps().is_empty());
    bench.lost(1);
    assert_eq!(bench.told(), (Phase::Failed, "WorkloadFailed".to_owned()));
    assert_eq!(bench.assess().dead, None, "not for certain yet");
    bench.pass(60);
    assert!(bench.assess().dead.is_some());
}
