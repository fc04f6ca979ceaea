//! An exec's state machine: its rules as tests, then histories at random.

use proptest::prelude::*;

use super::*;

const OK: Exit = Exit::Code(0);

fn times(timeout: Option<u64>, grace: u64) -> Times {
    Times {
        timeout: timeout.map(Duration::from_secs),
        kill_grace: Duration::from_secs(grace),
        retain_for: Duration::from_secs(60),
    }
}

fn running(timeout: Option<u64>, now: Instant) -> State {
    let mut state = State::new(times(timeout, 5), now);
    assert!(state.on(Event::Spawned, now).is_empty());
    state
}

fn outcome(actions: &[Action]) -> Option<Kind> {
    actions.iter().find_map(|action| match action {
        Action::End { outcome, .. } => outcome.kind.clone(),
        _ => None,
    })
}

fn cancel(by: &str) -> Event {
    Event::Cancel { by: by.to_owned(), grace: None }
}

#[test]
fn an_exit_ends_it_once_the_output_is_closed() {
    let now = Instant::now();
    let mut state = running(None, now);
    assert_eq!(state.on(Event::LeaderEnded(Exit::Code(7)), now), [Action::Drain]);
    let end = state.on(Event::OutputClosed, now);
    assert_eq!(outcome(&end), Some(Kind::Exited(api::Exited { code: 7 })));
}

#[test]
fn a_held_pipe_delays_the_outcome_by_the_drain_alone() {
    let start = Instant::now();
    let mut state = running(None, start);
    state.on(Event::LeaderEnded(OK), start);
    let mut now = start;
    let end = loop {
        now = state.deadline().unwrap().min(now + Duration::from_millis(400));
        // A grandchild that writes for ever.
        state.on(Event::Output, now);
        if let Some(end) = outcome(&state.on(Event::Tick, now)) {
            break end;
        }
    };
    assert_eq!(end, Kind::Exited(api::Exited { code: 0 }));
    assert_eq!(now - start, timing::DRAIN_MAX);
}

#[test]
fn a_timeout_that_catches_only_the_leader_waits_for_the_rest() {
    let start = Instant::now();
    let mut state = running(Some(3), start);
    let now = start + Duration::from_secs(3);
    assert_eq!(state.on(Event::Tick, now), [Action::Terminate]);
    let term = Exit::Signal { signal: 15, core: false, oom: false };
    assert_eq!(state.on(Event::LeaderEnded(term), now), [Action::AwaitRest]);
    state.on(Event::OutputClosed, now);
    let now = now + Duration::from_secs(5);
    assert_eq!(state.on(Event::Tick, now), [Action::KillAll]);
    assert!(state.on(Event::RestGone, now).is_empty(), "whom the kill met is not known yet");
    let end = state.on(Event::AllKilled { others: true }, now);
    let [Action::End { outcome, left_processes: true }] = end.as_slice() else { panic!("{end:?}") };
    assert!(matches!(outcome.kind, Some(Kind::TimedOut(_))));
}

#[test]
fn the_first_reason_stays_and_the_shorter_grace_counts() {
    let now = Instant::now();
    let mut state = running(None, now);
    assert_eq!(state.on(cancel("ada"), now), [Action::Terminate]);
    let stop = Event::Cancel { by: "sandbox stopped".into(), grace: Some(Duration::ZERO) };
    assert_eq!(state.on(stop, now), [Action::KillAll]);
    state.on(Event::AllKilled { others: false }, now);
    state.on(Event::OutputClosed, now);
    let end = state.on(Event::LeaderEnded(Exit::Signal { signal: 9, core: false, oom: false }), now);
    assert_eq!(outcome(&end), Some(Kind::Cancelled(api::Cancelled { by: "ada".into() })));
}

#[test]
fn an_exit_that_is_known_is_not_changed_by_a_late_cancel() {
    let now = Instant::now();
    let mut state = running(None, now);
    state.on(Event::LeaderEnded(OK), now);
    assert!(state.on(cancel("late"), now).is_empty());
    assert_eq!(outcome(&state.on(Event::OutputClosed, now)), Some(Kind::Exited(api::Exited { code: 0 })));
}

#[test]
fn a_leader_that_cannot_be_killed_is_given_up() {
    let mut now = Instant::now();
    let mut state = running(Some(1), now);
    let mut seen = Vec::new();
    while let Some(deadline) = state.deadline() {
        now = deadline;
        seen.extend(state.on(Event::Tick, now));
    }
    assert_eq!(seen[..2], [Action::Terminate, Action::KillAll]);
    assert!(matches!(outcome(&seen), Some(Kind::TimedOut(_))));
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Spawned),
        1 => Just(Event::SpawnFailed(SpawnError { kind: StartFailure::NotFound, errno: 2, message: String::new() })),
        3 => Just(Event::Output),
        1 => Just(Event::OutputClosed),
        2 => (0..3).prop_map(|code| Event::LeaderEnded(Exit::Code(code))),
        1 => Just(Event::LeaderLost("?".into())),
        1 => Just(Event::RestGone),
        1 => any::<bool>().prop_map(|others| Event::AllKilled { others }),
        1 => proptest::option::of(0_u64..3).prop_map(|grace| Event::Cancel {
            by: "x".into(),
            grace: grace.map(Duration::from_secs)
        }),
        4 => Just(Event::Tick),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_there_is_one_outcome_and_killing_always_escalates(
        timeout in proptest::option::of(1_u64..20),
        events in proptest::collection::vec((event(), 0_u64..4000), 0..60),
    ) {
        let start = Instant::now();
        let (mut now, mut state) = (start, State::new(times(timeout, 5), start));
        let (mut ends, mut terminated, mut killed, mut leader) = (0, None, false, true);
        let mut apply = |state: &mut State, event: Event, now: Instant| {
            let actions = state.on(event, now);
            for action in &actions {
                assert_eq!(ends, 0, "nothing follows the end: {action:?}");
                match action {
                    Action::End { .. } => ends += 1,
                    Action::Terminate => terminated = Some(now),
                    Action::KillAll => {
                        assert!(terminated.is_some() && !killed, "SIGTERM comes first, SIGKILL once");
                        killed = true;
                    }
                    _ => {}
                }
            }
            if let Some(at) = terminated
                && !killed && ends == 0 && state.deadline().is_some_and(|deadline| deadline > at + Duration::from_secs(5))
            {
                assert!(matches!(state.phase, Phase::Draining { .. }), "past its grace and not killed");
            }
            ends
        };
        for (event, step) in events {
            now += Duration::from_millis(step);
            if let Event::LeaderEnded(_) = event {
                if !leader || !matches!(state.phase, Phase::Running { .. }) { continue; }
                leader = false;
            }
            apply(&mut state, event, now);
        }
        // From here on only time passes: it ends unless it may run for ever.
        for _ in 0..10 {
            let Some(deadline) = state.deadline() else { break };
            now = now.max(deadline);
            if apply(&mut state, Event::Tick, now) > 0 { break; }
        }
        let forever = matches!(state.phase, Phase::Running { timeout_at: None, kill: Kill::No });
        let ended = matches!(state.phase, Phase::Ended);
        prop_assert!(ended != forever);
    }
}
