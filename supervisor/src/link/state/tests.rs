//! The link's state machine: its rules as tests, then histories at random.

use super::*;
use proptest::prelude::*;

const GATEWAY: &str = "gw-1";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn closed(code: CloseCode) -> Lost {
    Lost::Closed { code, reason: String::new() }
}

/// A machine with a clock of its own.
struct Machine {
    state: State,
    now: Instant,
}

impl Machine {
    fn started() -> (Self, Dial) {
        let mut machine = Self { state: State::new(7), now: Instant::now() };
        let actions = machine.on(Event::Start);
        let dial = dialled(&actions).expect("a start dials at once");
        (machine, dial)
    }

    fn attached(epoch: u64) -> (Self, Dial) {
        let (mut machine, dial) = Self::started();
        let actions = machine.welcome(dial, epoch);
        assert_eq!(actions, [Action::Activate { dial }]);
        (machine, dial)
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        self.state.on(event, self.now, false)
    }

    fn welcome(&mut self, dial: Dial, epoch: u64) -> Vec<Action> {
        self.on(Event::Attached { dial, epoch: Epoch(epoch), gateway: GATEWAY.to_owned() })
    }

    fn after(&mut self, passed: Duration) -> &mut Self {
        self.now += passed;
        self
    }

    /// Waits for the planned dial; how long that took, and its number.
    fn until_dialled(&mut self) -> (Duration, Dial) {
        let at = self.state.next_wake().expect("a dial is planned");
        let waited = at.saturating_duration_since(self.now);
        self.now = self.now.max(at);
        let actions = self.on(Event::Tick);
        (waited, dialled(&actions).expect("it is time"))
    }
}

fn dialled(actions: &[Action]) -> Option<Dial> {
    actions.iter().find_map(|action| match action {
        Action::Dial(order) => Some(order.dial),
        _ => None,
    })
}

#[test]
fn newest_epoch_wins() {
    let (mut machine, first) = Machine::attached(5);
    let second = dialled(&machine.on(Event::Suspect { dial: first })).unwrap();
    // Retired before the other is activated: no relay of the old one lives when the new one reports.
    assert_eq!(
        machine.welcome(second, 6),
        [Action::Retire { dial: first }, Action::Activate { dial: second }]
    );
    // What becomes of the first is no news.
    assert_eq!(machine.on(Event::Lost { dial: first, lost: closed(CloseCode::SUPERSEDED) }), []);
    assert_eq!(machine.state.phase(machine.now), Phase::Attached { epoch: Epoch(6) });
}

#[test]
fn an_older_epoch_is_retired_unused() {
    let (mut machine, first) = Machine::attached(5);
    let second = dialled(&machine.on(Event::Suspect { dial: first })).unwrap();
    assert_eq!(machine.welcome(second, 4), [Action::Retire { dial: second }]);
    assert_eq!(machine.state.phase(machine.now), Phase::Attached { epoch: Epoch(5) });
}

#[test]
fn superseded_by_our_own_dial_is_expected() {
    let (mut machine, first) = Machine::attached(5);
    let second = dialled(&machine.on(Event::Suspect { dial: first })).unwrap();
    // The gateway's close of the first overtakes the Welcome of the second.
    assert_eq!(machine.on(Event::Lost { dial: first, lost: closed(CloseCode::SUPERSEDED) }), []);
    assert_eq!(machine.welcome(second, 6), [Action::Activate { dial: second }]);
}

#[test]
fn superseded_by_a_dial_whose_welcome_was_lost_is_no_reason_to_stay_away() {
    let (mut machine, first) = Machine::attached(5);
    let second = dialled(&machine.on(Event::Suspect { dial: first })).unwrap();
    machine.on(Event::DialFailed { dial: second, failure: Failure::Failed { unsure: true } });
    machine.on(Event::Lost { dial: first, lost: closed(CloseCode::SUPERSEDED) });
    assert!(machine.state.next_wake().is_some(), "it comes back");
}

#[test]
fn superseded_by_another_instance_means_stay_away_until_a_resume() {
    let (mut machine, first) = Machine::attached(5);
    machine.on(Event::Lost { dial: first, lost: closed(CloseCode::SUPERSEDED) });
    assert_eq!((machine.state.phase(machine.now), machine.state.next_wake()), (Phase::Resting, None));
    assert_eq!(machine.after(ms(10_000_000)).on(Event::Tick), []);
    assert!(dialled(&machine.on(Event::Jumped { away: ms(60_000) })).is_some());
}

#[test]
fn whoever_is_told_never_to_come_back_rests() {
    for code in [CloseCode::SANDBOX_DELETED, CloseCode::SANDBOX_STOPPED, CloseCode::STALE_GENERATION] {
        let (mut machine, dial) = Machine::attached(1);
        machine.on(Event::Lost { dial, lost: closed(code) });
        assert_eq!(machine.state.phase(machine.now), Phase::Resting, "{code}");
    }
    let (mut machine, dial) = Machine::started();
    machine.on(Event::DialFailed { dial, failure: Failure::RefusedForGood });
    assert_eq!(machine.state.phase(machine.now), Phase::Resting);
}

#[test]
fn a_refusal_names_the_least_wait() {
    let (mut machine, dial) = Machine::started();
    machine.on(Event::DialFailed { dial, failure: Failure::Refused { retry_after: ms(8000) } });
    let (waited, _) = machine.until_dialled();
    assert!((ms(8000)..=ms(10_000)).contains(&waited), "{waited:?}");
}

#[test]
fn backoff_grows_to_its_cap_and_starts_again_after_a_healthy_session() {
    let (mut machine, mut dial) = Machine::started();
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        machine.on(Event::DialFailed { dial, failure: Failure::Failed { unsure: false } });
        let waited;
        (waited, dial) = machine.until_dialled();
        longest = longest.max(waited);
    }
    assert!(longest <= timing::REDIAL_CAP_IDLE && longest > timing::REDIAL_CAP_IDLE / 2, "{longest:?}");
    machine.welcome(dial, 1);
    machine.after(timing::HEALTHY_AFTER).on(Event::Lost { dial, lost: Lost::Reset });
    let (waited, _) = machine.until_dialled();
    assert!(waited <= timing::REDIAL_FIRST, "{waited:?}");
}

#[test]
fn a_session_that_dies_young_does_not_reset_the_backoff() {
    let (mut machine, mut dial) = Machine::started();
    let mut longest = Duration::ZERO;
    for epoch in 0..50 {
        machine.welcome(dial, epoch);
        machine.on(Event::Lost { dial, lost: closed(CloseCode::PROTOCOL) });
        let waited;
        (waited, dial) = machine.until_dialled();
        longest = longest.max(waited);
    }
    assert!(
        longest > timing::REDIAL_CAP_IDLE / 2,
        "a gateway that always closes is not hammered: {longest:?}"
    );
}

#[test]
fn running_execs_shorten_the_cap() {
    let (mut machine, mut dial) = Machine::started();
    for _ in 0..100 {
        let failure = Failure::Failed { unsure: false };
        machine.state.on(Event::DialFailed { dial, failure }, machine.now, true);
        let waited;
        (waited, dial) = machine.until_dialled();
        assert!(waited <= timing::REDIAL_CAP_BUSY, "{waited:?}");
    }
}

#[test]
fn a_go_away_spreads_the_return_over_its_window() {
    let mut waits = Vec::new();
    for seed in 0..100 {
        let (mut machine, dial) = Machine::attached(1);
        machine.state.jitter = SmallRng::seed_from_u64(seed);
        machine.on(Event::GoAway { dial, within: ms(20_000), to: None });
        assert_eq!(machine.state.next_wake(), None, "the session still serves");
        machine.on(Event::Lost { dial, lost: closed(CloseCode::GOING_AWAY) });
        waits.push(machine.until_dialled().0);
    }
    assert!(waits.iter().all(|wait| *wait <= ms(20_000)));
    assert!(waits.iter().filter(|wait| **wait > ms(10_000)).count() > 25, "{waits:?}");
    assert!(waits.iter().filter(|wait| **wait < ms(10_000)).count() > 25, "{waits:?}");
}

#[test]
fn a_go_away_to_another_place_is_followed_while_the_session_serves() {
    let (mut machine, first) = Machine::attached(9);
    machine.on(Event::GoAway { dial: first, within: ms(1000), to: Some("other:7443".to_owned()) });
    machine.now = machine.state.next_wake().unwrap();
    let [Action::Dial(order)] = &machine.on(Event::Tick)[..] else { panic!("one dial") };
    assert_eq!(order.to.as_deref(), Some("other:7443"));
    // Another gateway counts from elsewhere: its epochs say nothing about this one's.
    let event = Event::Attached { dial: order.dial, epoch: Epoch(1), gateway: "gw-2".to_owned() };
    let actions = machine.on(event);
    assert_eq!(actions, [Action::Retire { dial: first }, Action::Activate { dial: order.dial }]);
}

#[test]
fn what_recovers_is_not_replaced() {
    let (mut machine, first) = Machine::attached(1);
    let second = dialled(&machine.on(Event::Suspect { dial: first })).unwrap();
    assert_eq!(machine.on(Event::Recovered { dial: first }), [Action::Abandon { dial: second }]);
    assert_eq!(machine.on(Event::DialFailed { dial: second, failure: Failure::Abandoned }), []);
    assert_eq!(machine.state.next_wake(), None);
}

#[test]
fn a_session_lost_while_its_dial_is_abandoned_is_dialled_anew() {
    let (mut machine, first) = Machine::attached(1);
    let second = dialled(&machine.on(Event::Suspect { dial: first })).unwrap();
    machine.on(Event::Recovered { dial: first });
    machine.on(Event::Lost { dial: first, lost: Lost::TimedOut });
    let actions = machine.on(Event::DialFailed { dial: second, failure: Failure::Abandoned });
    assert!(dialled(&actions).is_some());
}

#[test]
fn a_short_jump_is_proven_and_a_long_one_dialled_as_well() {
    let (mut machine, first) = Machine::attached(1);
    let away = ms(5000);
    assert_eq!(machine.on(Event::Jumped { away }), [Action::Prove { dial: first, away }]);
    let away = ms(60_000);
    let actions = machine.on(Event::Jumped { away });
    assert_eq!(actions[0], Action::Prove { dial: first, away });
    let second = dialled(&actions).expect("the gateway has given it up by now");
    // The clocks lied: the echo came first.
    assert_eq!(machine.on(Event::Recovered { dial: first }), [Action::Abandon { dial: second }]);
}

#[test]
fn one_renewal_is_dialled_at_once_and_a_second_waits() {
    let (mut machine, dial) = Machine::started();
    machine.on(Event::DialFailed { dial, failure: Failure::Failed { unsure: false } });
    let (_, dial) = machine.until_dialled();
    machine.on(Event::DialFailed { dial, failure: Failure::Renewed });
    let (waited, mut dial) = machine.until_dialled();
    assert_eq!(waited, Duration::ZERO);
    let mut waits = Duration::ZERO;
    for _ in 0..10 {
        machine.on(Event::DialFailed { dial, failure: Failure::Renewed });
        let waited;
        (waited, dial) = machine.until_dialled();
        waits += waited;
    }
    assert!(waits > ms(1000), "clocks that disagree must not make a loop: {waits:?}");
}

#[test]
fn a_changed_network_has_the_session_look_and_cuts_a_backoff_short() {
    let (mut machine, dial) = Machine::attached(1);
    assert_eq!(machine.on(Event::Rerouted), [Action::Reroute { dial }]);
    machine.on(Event::Lost { dial, lost: Lost::TimedOut });
    // Ten failures: the wait may be half a minute by now.
    let mut dial;
    let mut waits = 0;
    loop {
        dial = machine.until_dialled().1;
        machine.on(Event::DialFailed { dial, failure: Failure::Failed { unsure: false } });
        waits += 1;
        if waits >= 10 && machine.state.next_wake().unwrap() > machine.now + ms(5000) {
            break;
        }
        assert!(waits < 1000, "no wait is long");
    }
    assert_eq!(machine.on(Event::Rerouted), []);
    assert!(machine.until_dialled().0 <= timing::REDIAL_FIRST);
}

#[test]
fn a_network_that_flaps_makes_no_more_dials_than_one_in_five_seconds() {
    let (mut machine, first) = Machine::attached(1);
    machine.on(Event::Lost { dial: first, lost: Lost::TimedOut });
    let began = machine.now;
    let mut dials = 0;
    while machine.now < began + ms(100_000) {
        machine.on(Event::Rerouted);
        machine.now += ms(100);
        if let Some(dial) = dialled(&machine.on(Event::Tick)) {
            dials += 1;
            machine.on(Event::DialFailed { dial, failure: Failure::Failed { unsure: false } });
        }
    }
    // A few of the first backoffs, those that the backoff brings anyway, and one in five seconds.
    assert!(dials <= 6 + 20 + 10, "{dials} dials in 100 s");
}

#[test]
fn a_changed_network_does_not_undo_what_a_gateway_has_spread() {
    let (mut machine, dial) = Machine::attached(1);
    machine.on(Event::GoAway { dial, within: ms(20_000), to: None });
    machine.on(Event::Lost { dial, lost: closed(CloseCode::GOING_AWAY) });
    let planned = machine.state.next_wake();
    machine.on(Event::Rerouted);
    assert_eq!(machine.state.next_wake(), planned);

    let (mut machine, dial) = Machine::started();
    let retry_after = ms(60_000);
    machine.on(Event::DialFailed { dial, failure: Failure::Refused { retry_after } });
    let planned = machine.state.next_wake();
    machine.on(Event::Rerouted);
    assert_eq!(machine.state.next_wake(), planned);
}

/// One thing that may happen next, to whatever it may happen to.
#[derive(Clone, Debug)]
enum Next {
    Welcome { epoch: u64, elsewhere: bool },
    DialFails(Failure),
    Lost(Lost),
    StaleLost,
    Suspect,
    Recovered,
    GoAway { within: u64, elsewhere: bool },
    Jump(u64),
    Rerouted,
    Wait(u64),
}

fn failures() -> impl Strategy<Value = Failure> {
    prop_oneof![
        any::<bool>().prop_map(|unsure| Failure::Failed { unsure }),
        (1u64..1_000_000).prop_map(|wait| Failure::Refused { retry_after: ms(wait) }),
        Just(Failure::RefusedForGood),
        Just(Failure::Renewed),
        Just(Failure::Abandoned),
    ]
}

fn losses() -> impl Strategy<Value = Lost> {
    prop_oneof![
        (0..CloseCode::ALL.len()).prop_map(|n| closed(CloseCode::ALL[n])),
        Just(Lost::Reset),
        Just(Lost::TimedOut),
        Just(Lost::Transport("x".to_owned())),
    ]
}

fn nexts() -> impl Strategy<Value = Next> {
    prop_oneof![
        4 => (0u64..20, any::<bool>()).prop_map(|(epoch, elsewhere)| Next::Welcome { epoch, elsewhere }),
        3 => failures().prop_map(Next::DialFails),
        3 => losses().prop_map(Next::Lost),
        1 => Just(Next::StaleLost),
        2 => Just(Next::Suspect),
        2 => Just(Next::Recovered),
        1 => (0u64..10_000_000, any::<bool>())
            .prop_map(|(within, elsewhere)| Next::GoAway { within, elsewhere }),
        1 => (2_000u64..1_000_000).prop_map(Next::Jump),
        1 => Just(Next::Rerouted),
        6 => (0u64..700_000).prop_map(Next::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever happens in whatever order: one session at most is active and an older one is retired first; one
    /// dial at most runs, each with a higher number; and there is always a way on.
    #[test]
    fn there_is_one_session_one_dial_and_always_a_way_on(
        seed: u64,
        busy: bool,
        happenings in proptest::collection::vec(nexts(), 1..60),
    ) {
        let mut state = State::new(seed);
        let mut now = Instant::now();
        let (mut active, mut running): (Option<(Dial, u64, bool)>, Option<Dial>) = (None, None);
        let mut last_dial = Dial(0);
        let mut fresh = None;
        let mut pending = vec![Event::Start];
        let mut happenings = happenings.into_iter();
        loop {
            let event = match pending.pop() {
                Some(event) => event,
                None => match happenings.next() {
                    None => break,
                    Some(Next::Welcome { epoch, elsewhere }) => {
                        let Some(dial) = running.take() else { continue };
                        fresh = Some((dial, epoch, elsewhere));
                        let gateway = if elsewhere { "gw-2" } else { GATEWAY }.to_owned();
                        Event::Attached { dial, epoch: Epoch(epoch), gateway }
                    }
                    Some(Next::DialFails(failure)) => {
                        let Some(dial) = running.take() else { continue };
                        Event::DialFailed { dial, failure }
                    }
                    Some(Next::Lost(lost)) => {
                        let Some((dial, ..)) = active.take() else { continue };
                        Event::Lost { dial, lost }
                    }
                    Some(Next::StaleLost) => Event::Lost { dial: Dial(0), lost: Lost::Reset },
                    Some(Next::Suspect) => Event::Suspect { dial: active.map_or(Dial(0), |(dial, ..)| dial) },
                    Some(Next::Recovered) => Event::Recovered { dial: active.map_or(Dial(0), |(dial, ..)| dial) },
                    Some(Next::GoAway { within, elsewhere }) => Event::GoAway {
                        dial: active.map_or(Dial(0), |(dial, ..)| dial),
                        within: ms(within),
                        to: elsewhere.then(|| "other:1".to_owned()),
                    },
                    Some(Next::Jump(away)) => Event::Jumped { away: ms(away) },
                    Some(Next::Rerouted) => Event::Rerouted,
                    Some(Next::Wait(passed)) => {
                        now += ms(passed);
                        Event::Tick
                    }
                },
            };
            for action in state.on(event, now, busy) {
                match action {
                    Action::Dial(order) => {
                        prop_assert!(running.is_none(), "two dials at once");
                        prop_assert!(order.dial > last_dial, "numbers grow");
                        last_dial = order.dial;
                        running = Some(order.dial);
                    }
                    Action::Abandon { dial } => prop_assert_eq!(running, Some(dial)),
                    Action::Retire { dial } => {
                        if active.is_some_and(|(held, ..)| held == dial) {
                            active = None;
                        } else {
                            let unused = fresh.take();
                            prop_assert_eq!(unused.map(|(dial, ..)| dial), Some(dial));
                            let (_, epoch, elsewhere) = unused.unwrap();
                            let (_, held, at) = active.unwrap();
                            prop_assert!(epoch <= held && elsewhere == at, "only an older epoch is not used");
                        }
                    }
                    Action::Activate { dial } => {
                        prop_assert!(active.is_none(), "the older one was retired first");
                        prop_assert_eq!(fresh.map(|(dial, ..)| dial), Some(dial));
                        active = fresh.take();
                    }
                    Action::Prove { dial, .. } | Action::Reroute { dial } => prop_assert_eq!(active.map(|(dial, ..)| dial), Some(dial)),
                }
            }
            let planned = state.next_wake();
            let phase = state.phase(now);
            prop_assert!(
                active.is_some() || running.is_some() || planned.is_some() || phase == Phase::Resting,
                "stuck: nothing held, nothing dialled, nothing planned"
            );
            prop_assert_eq!(active.is_some(), matches!(phase, Phase::Attached { .. }));
            if let Some(at) = planned {
                prop_assert!(at <= now + LONGEST_WAIT + LONGEST_WAIT / 4, "asleep for too long");
                prop_assert!(running.is_none());
            }
        }
    }
}
