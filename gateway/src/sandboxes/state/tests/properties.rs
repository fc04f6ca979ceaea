//! Facts and wishes in any order.

use super::*;

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
                prop_assert!(after.phase != Phase::Failed || refuted || after.reason == "BootTimeout",
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
