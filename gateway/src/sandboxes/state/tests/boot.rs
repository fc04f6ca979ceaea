//! How far a boot has come, and how one fails.

use super::*;

/// The driver's word on how far the boot of the first generation is.
fn at_stage(bench: &mut Bench, state: WorkloadState, stages: &[BootStage]) {
    let mut level = seen(1, state);
    stages.iter().for_each(|stage| level.boot.reach(*stage));
    bench.state.on_level(Level::Seen(level), bench.now);
}

#[test]
fn the_stage_of_a_boot_is_the_reason_of_a_condition() {
    let mut bench = Bench::asked_for();
    let booted = |bench: &Bench| {
        let booted = bench.assess().booted;
        (booted.status, booted.reason)
    };
    let reached = |bench: &Bench| bench.assess().boot.iter().map(|reached| reached.stage).collect::<Vec<_>>();
    let no = |reason: &str| (ConditionStatus::False, reason.to_owned());
    assert_eq!(booted(&bench), no("NotStarted"));
    bench.call();
    at_stage(&mut bench, WorkloadState::Creating, &[BootStage::Created]);
    assert_eq!(booted(&bench), no("Created"));
    bench.answer(Ok(Some(seen(1, WorkloadState::Running))));
    at_stage(&mut bench, WorkloadState::Running, &[BootStage::Created, BootStage::Started]);
    assert_eq!(booted(&bench), no("Started"));
    let condition = bench.assess().booted;
    assert!(condition.message.contains("next is dialled; 60 s"), "{}", condition.message);
    bench.state.on_admitted(Epoch(1), Generation(1));
    assert_eq!(booted(&bench), no("Dialled"));
    bench.attached(1);
    assert_eq!(booted(&bench), no("Attached"));
    bench.health(1, true, true);
    assert_eq!(booted(&bench), (ConditionStatus::True, "Probed".to_owned()));
    use BootStage::*;
    assert_eq!(reached(&bench), [Created, Started, Dialled, Attached, Probed]);
    // It has come up: what happens later is no boot.
    bench.lost(1);
    bench.level(1, WorkloadState::Exited(Exit::Code(1)));
    assert_eq!(booted(&bench).0, ConditionStatus::True);
    assert!(!bench.assess().message.contains("at stage"), "{}", bench.assess().message);
    bench.start_anew();
    assert_eq!(booted(&bench), no("NotStarted"));
}

#[test]
fn a_sandbox_whose_files_went_with_its_workload_says_so() {
    for (ephemeral, says) in [(true, true), (false, false)] {
        let mut bench = Bench::new(Wanted { ephemeral, ..wanted(Desired::Running) });
        bench.ensured();
        bench.attached(1);
        bench.health(1, true, true);
        assert!(!bench.assess().message.contains("are gone"));
        bench.level(1, WorkloadState::Exited(Exit::Code(1)));
        assert_eq!(bench.assess().message.contains("in its memory, and are gone"), says);
        bench.want(Desired::Stopped);
        assert_eq!(bench.phase(), Phase::Stopped);
        assert_eq!(bench.assess().message.contains("in its memory, and are gone"), says);
    }
}

#[test]
fn a_stage_that_nobody_told_is_reached_when_a_later_one_is() {
    let mut bench = Bench::asked_for();
    bench.ensured();
    bench.state.on_admitted(Epoch(1), Generation(1));
    use BootStage::*;
    let reached: Vec<_> = bench.assess().boot.iter().map(|reached| reached.stage).collect();
    assert_eq!(reached, [Created, Started, Dialled]);
}

#[test]
fn a_boot_that_fails_names_its_stage_whoever_saw_it_fail() {
    let failed = |bench: &Bench| {
        let assessment = bench.assess();
        let booted = assessment.booted;
        assert_eq!(assessment.phase, Phase::Failed);
        (assessment.message, booted.reason, booted.message)
    };
    // The driver could not make it.
    let mut bench = Bench::asked_for();
    bench.call();
    at_stage(&mut bench, WorkloadState::Creating, &[BootStage::Created]);
    bench.answer(Err(failure(false)));
    bench.level(1, WorkloadState::Gone);
    let (message, reason, condition) = failed(&bench);
    assert_eq!(message, "at stage started: no answer");
    assert_eq!(
        (reason.as_str(), condition.as_str()),
        ("Created", "DriverUnavailable at stage started: no answer")
    );
    // It ended.
    let mut bench = Bench::asked_for();
    bench.ensured();
    at_stage(&mut bench, WorkloadState::Exited(Exit::Code(3)), &[BootStage::Created, BootStage::Started]);
    assert!(failed(&bench).0.starts_with("at stage dialled: the workload ended with exit code 3"));
    // Its driver's time, or this gateway's, was over.
    let mut bench = Bench::asked_for();
    bench.ensured();
    let mut late = Observed {
        reason: "BootTimeout".into(),
        message: "no word".into(),
        ..seen(1, WorkloadState::Exited(Exit::Code(1)))
    };
    late.boot.reach(BootStage::Created);
    bench.state.on_level(Level::Seen(late), bench.now);
    assert_eq!(failed(&bench).2, "BootTimeout at stage started: no word");
    let mut bench = Bench::asked_for();
    bench.ensured();
    bench.pass(60);
    assert!(failed(&bench).2.starts_with("BootTimeout at stage"), "{:?}", failed(&bench));
}
