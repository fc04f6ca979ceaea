//! What follows from facts, fact by fact, and then from facts in any order.

use holdfast_wire::ids::SandboxId;
use proptest::prelude::*;

use super::{known::Known, *};

const BOOT: Duration = Duration::from_secs(60);

fn wanted(desired: Desired) -> Wanted {
    Wanted {
        desired,
        why: Why::Asked,
        grace: Duration::from_secs(5),
        generation: Generation(1),
        made: Generation(0),
        attached: Generation(0),
        foreign: false,
    }
}

/// A state with a clock of its own.
struct Bench {
    state: State,
    now: Instant,
}

impl Bench {
    fn new(wanted: Wanted) -> Self {
        let now = Instant::now();
        let can = Can { stop: true, logs: true };
        Self { state: State::new(wanted, can, BOOT, Epoch(0), now), now }
    }

    /// One that has been asked for just now.
    fn asked_for() -> Self {
        Self::new(wanted(Desired::Running))
    }

    /// One that was attached before this gateway started.
    fn of_before(desired: Desired) -> Self {
        let past = wanted(desired);
        Self::new(Wanted { made: Generation(1), attached: Generation(1), ..past })
    }

    /// One that is Ready.
    fn ready() -> Self {
        let mut bench = Self::asked_for();
        bench.ensured();
        bench.attached(1);
        bench.health(1, true, true);
        assert_eq!(bench.phase(), Phase::Ready);
        bench
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn assess(&self) -> Assessment {
        self.state.assess(self.now)
    }

    fn phase(&self) -> Phase {
        self.assess().phase
    }

    fn told(&self) -> (Phase, String) {
        let assessment = self.assess();
        (assessment.phase, assessment.reason)
    }

    fn steps(&self) -> Vec<Step> {
        self.assess().steps
    }

    fn level(&mut self, generation: u64, state: WorkloadState) {
        self.state.on_level(Level::Seen(seen(generation, state)), self.now);
    }

    fn absent(&mut self) {
        self.state.on_level(Level::Absent { asked: self.now }, self.now);
    }

    fn want(&mut self, desired: Desired) {
        let wanted = Wanted { desired, ..self.state.wanted };
        self.state.on_wanted(wanted);
    }

    fn start_anew(&mut self) {
        let wanted = self.state.wanted;
        let generation = wanted.generation.next();
        self.state.on_wanted(Wanted { desired: Desired::Running, generation, ..wanted });
    }

    /// The call that is due, begun.
    fn call(&mut self) -> Call {
        let call = self.steps().into_iter().find_map(|step| match step {
            Step::Call(call) => Some(call),
            _ => None,
        });
        let call = call.unwrap_or_else(|| panic!("no call is due: {:?}", self.assess()));
        self.state.on_called(call);
        call
    }

    fn answer(&mut self, answer: Result<Option<Observed>, Failure>) {
        self.state.on_answer(answer, Duration::from_secs(1), self.now);
    }

    fn ensured(&mut self) {
        let generation = self.state.wanted.generation;
        assert_eq!(self.call(), Call::Ensure { generation });
        self.answer(Ok(Some(seen(generation.0, WorkloadState::Running))));
    }

    fn attached(&mut self, epoch: u64) -> bool {
        self.state.on_attached(Epoch(epoch), self.state.wanted.generation, self.now)
    }

    fn lost(&mut self, epoch: u64) -> bool {
        self.state.on_lost(Epoch(epoch), "timed out".to_owned())
    }

    fn health(&mut self, epoch: u64, exec: bool, filesystem: bool) {
        let result = |ok| Some(ProbeResult { ok, errno: 5, message: "tried".to_owned(), took_ms: 1 });
        let health = Health { exec: result(exec), filesystem: result(filesystem), ..Health::default() };
        self.state.on_health(Epoch(epoch), &health, self.now);
    }
}

fn seen(generation: u64, state: WorkloadState) -> Observed {
    Observed { state, ..Observed::gone(SandboxId::from(uuid::Uuid::nil()), Generation(generation)) }
}

fn failure(retryable: bool) -> Failure {
    Failure { reason: "DriverUnavailable", message: "no answer".to_owned(), retryable, not_found: false }
}

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
    assert_eq!(bench.told(), (Phase::Failed, "BootDeadline".to_owned()));
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

/// Facts that may come in any order, and the order within each source that the sources themselves keep.
#[derive(Clone, Copy, Debug)]
enum Fact {
    /// The call's answer.
    Ensured,
    Level(WorkloadState),
    Attached(u64),
    Health(u64, bool),
    Lost(u64),
}

/// The sources: the driver's call, its watch, and three sessions.
const SOURCES: [&[Fact]; 5] = [
    &[Fact::Ensured],
    &[Fact::Level(WorkloadState::Creating), Fact::Level(WorkloadState::Running)],
    &[Fact::Attached(1), Fact::Health(1, true), Fact::Lost(1)],
    &[Fact::Attached(2), Fact::Health(2, false), Fact::Lost(2)],
    &[Fact::Attached(3), Fact::Health(3, true)],
];

fn play(bench: &mut Bench, fact: Fact) {
    match fact {
        Fact::Ensured => {
            // A workload that was seen first is not asked for.
            if bench.state.call().is_some() {
                bench.answer(Ok(Some(seen(1, WorkloadState::Running))));
            }
        }
        Fact::Level(state) => bench.level(1, state),
        Fact::Attached(epoch) => {
            bench.attached(epoch);
        }
        Fact::Health(epoch, ok) => bench.health(epoch, ok, true),
        Fact::Lost(epoch) => {
            bench.lost(epoch);
        }
    }
}

/// An interleaving of the sources: the next fact is the next one of the source that is drawn.
fn interleavings() -> impl Strategy<Value = Vec<Fact>> {
    let draws: Vec<usize> =
        SOURCES.iter().enumerate().flat_map(|(source, facts)| vec![source; facts.len()]).collect();
    Just(draws).prop_shuffle().prop_map(|draws| {
        let mut sources = SOURCES.map(<[Fact]>::iter);
        draws.into_iter().filter_map(|source| sources[source].next().copied()).collect()
    })
}

fn states() -> impl Strategy<Value = WorkloadState> {
    prop_oneof![
        Just(WorkloadState::Creating),
        Just(WorkloadState::Running),
        Just(WorkloadState::Paused),
        Just(WorkloadState::Stopping),
        Just(WorkloadState::Stopped),
        Just(WorkloadState::Exited(Exit::Code(1))),
        Just(WorkloadState::Failed),
        Just(WorkloadState::Gone),
    ]
}

/// Anything that can happen.
#[derive(Clone, Debug)]
enum Happening {
    Pass(u64),
    Level(u64, WorkloadState),
    Absent,
    Attached(u64),
    Health(u64, bool, bool),
    Lost(u64),
    Answer(bool, bool),
    Want(Desired),
    Start,
    Resumed(u64),
}

fn happenings() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0..70_u64).prop_map(Happening::Pass),
        (1..3_u64, states()).prop_map(|(generation, state)| Happening::Level(generation, state)),
        Just(Happening::Absent),
        (1..6_u64).prop_map(Happening::Attached),
        (1..6_u64, any::<bool>(), any::<bool>())
            .prop_map(|(epoch, exec, fs)| Happening::Health(epoch, exec, fs)),
        (1..6_u64).prop_map(Happening::Lost),
        (any::<bool>(), any::<bool>()).prop_map(|(ok, retryable)| Happening::Answer(ok, retryable)),
        prop_oneof![Just(Desired::Running), Just(Desired::Paused), Just(Desired::Stopped)]
            .prop_map(Happening::Want),
        Just(Happening::Start),
        (1..6_u64).prop_map(Happening::Resumed),
    ]
}

fn happen(bench: &mut Bench, happening: Happening) {
    match happening {
        Happening::Pass(seconds) => bench.pass(seconds),
        Happening::Level(generation, state) => bench.level(generation, state),
        Happening::Absent => bench.absent(),
        Happening::Attached(epoch) => {
            bench.attached(epoch);
        }
        Happening::Health(epoch, exec, filesystem) => bench.health(epoch, exec, filesystem),
        Happening::Lost(epoch) => {
            bench.lost(epoch);
        }
        Happening::Answer(ok, retryable) => {
            let generation = bench.state.wanted.generation.0;
            bench.answer(if ok {
                Ok(Some(seen(generation, WorkloadState::Running)))
            } else {
                Err(failure(retryable))
            });
        }
        Happening::Want(desired) => bench.want(desired),
        Happening::Start => bench.start_anew(),
        Happening::Resumed(epoch) => {
            bench.state.on_resumed(Epoch(epoch), bench.now);
        }
    }
}

/// Does the steps, as the task would.
fn obey(bench: &mut Bench) {
    for _ in 0..16 {
        let steps = bench.steps();
        let Some(step) = steps.into_iter().next() else { return };
        match step {
            Step::Call(call) => bench.state.on_called(call),
            Step::Abandon => bench.state.on_abandoned(bench.now),
            Step::Close(..) => bench.state.on_closed("closed".to_owned()),
            Step::Console => bench.state.on_console(bench.state.wanted.generation, String::new()),
            Step::GiveUpPausing => bench.want(Desired::Running),
            Step::Forget => return,
        }
    }
    panic!("the steps do not come to rest: {:?}", bench.assess());
}

proptest! {
    #[test]
    fn any_order_of_the_same_facts_ends_in_the_same_phase(facts in interleavings()) {
        let mut bench = Bench::asked_for();
        bench.call();
        for fact in &facts {
            play(&mut bench, *fact);
            obey(&mut bench);
        }
        prop_assert_eq!(bench.told(), (Phase::Ready, "AllConditionsMet".to_owned()), "after {:?}", facts);
        prop_assert_eq!(bench.state.link().map(|link| link.epoch), Some(Epoch(3)));
    }

    #[test]
    fn whatever_happens_the_rules_hold(happenings in proptest::collection::vec(happenings(), 0..60)) {
        let mut bench = Bench::asked_for();
        // The newest epoch that was heard of, and the one that has to be attached, if any is.
        let (mut heard, mut newest) = (0, 0);
        for happening in happenings {
            let before = bench.assess();
            let lost = matches!(happening, Happening::Lost(_));
            if let Happening::Attached(epoch) = happening && epoch > heard {
                newest = epoch;
            }
            if let Happening::Attached(epoch) | Happening::Lost(epoch) = happening {
                heard = heard.max(epoch);
            }
            happen(&mut bench, happening);
            let after = bench.assess();
            // A driver that cannot tell is believed only where no session says otherwise: that is its word, not the link's.
            let cannot_tell = bench.state.workload().is_some_and(|seen| seen.state == WorkloadState::Failed);
            if lost && before.phase != Phase::Failed && !cannot_tell {
                let refuted = matches!(bench.state.known(bench.now), Known::Dead { .. });
                prop_assert!(after.phase != Phase::Failed || refuted || after.reason == "BootDeadline",
                    "a lost link made {:?} of {:?}", after, before);
            }
            if after.phase == Phase::Ready {
                prop_assert!(after.conditions.iter().all(|condition| condition.status == ConditionStatus::True));
                let link = bench.state.link().expect("Ready has a session");
                prop_assert_eq!(link.generation, bench.state.wanted.generation);
                let probes = bench.state.probes.as_ref().expect("Ready has a probe");
                prop_assert!(bench.now < probes.at + timing::PROBE_LEASE);
            }
            if let Some(link) = bench.state.link {
                prop_assert!(link.epoch.0 == newest, "epoch {} is attached, {newest} is the newest", link.epoch);
            }
            prop_assert!(after.wake_at.is_none_or(|at| at > bench.now));
            obey(&mut bench);
        }
        // Whatever it was, it can be deleted.
        bench.want(Desired::Deleted);
        for _ in 0..4 {
            prop_assert_eq!(bench.phase(), Phase::Deleting);
            obey(&mut bench);
            bench.answer(Ok(None));
        }
        let steps = bench.steps();
        prop_assert_eq!(steps.last(), Some(&Step::Forget));
    }

    #[test]
    fn from_anywhere_a_start_leads_to_ready(happenings in proptest::collection::vec(happenings(), 0..40)) {
        let mut bench = Bench::asked_for();
        for happening in happenings {
            happen(&mut bench, happening);
            obey(&mut bench);
        }
        bench.start_anew();
        obey(&mut bench);
        if matches!(bench.state.call(), Some(call) if !matches!(call, Call::Ensure { .. })) {
            bench.answer(Ok(None));
            obey(&mut bench);
        }
        prop_assert!(matches!(bench.state.call(), Some(Call::Ensure { .. })), "{:?}", bench.assess());
        let generation = bench.state.wanted.generation.0;
        bench.answer(Ok(Some(seen(generation, WorkloadState::Running))));
        bench.level(generation, WorkloadState::Running);
        bench.attached(100);
        bench.health(100, true, true);
        obey(&mut bench);
        prop_assert_eq!(bench.phase(), Phase::Ready, "{:?}", bench.assess());
    }
}
