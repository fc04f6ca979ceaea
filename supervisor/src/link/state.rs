//! When to dial, which connection to keep, when to stay away. Pure: events and an instant in, actions out.
//!
//! ```text
//!                      ┌────────────── failed, refused for now ─────────────┐
//!                      ▼                                                    │
//!   start ──▶ Plan::Waiting{at} ── at ──▶ Plan::Dialling ── Welcome ──▶ session held, Plan::None
//!                      ▲                                                    │        │
//!                      │                          lost, "come back"         │        │ suspect, go away
//!                      ├────────────────────────────────────────────────────┘        │ elsewhere, clocks
//!                      └───────────── (beside the session that is held) ◀────────────┘ jumped far
//!
//!   lost or refused with "never" ──▶ Plan::Resting ── clocks jumped ──▶ Plan::Dialling
//! ```
//!
//! Two parts move independently: the session that is held (at most one is active at any instant) and the plan
//! for the next dial (at most one runs). Whatever happens, one of these holds after `Start`: a session is held,
//! a dial runs or is planned, or the link rests because it was told never to come back.

use std::time::Duration;

use holdfast_wire::{
    close::{CloseCode, ComeBack},
    ids::Epoch,
    timing::{self, Tuning},
    transport::Lost,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;

/// The longest wait that a gateway may ask for, by GoAway or Refuse: a mistaken one must not put its supervisors
/// to sleep for days.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Counts the dials of this process. The gateway tells two connections of one supervisor apart by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Dial(pub(crate) u64);

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The process is ready to dial.
    Start,
    /// A dial got its Welcome.
    Attached { dial: Dial, epoch: Epoch, gateway: String },
    /// A dial came to nothing.
    DialFailed { dial: Dial, failure: Failure },
    /// A session's connection ended.
    Lost { dial: Dial, lost: Lost },
    /// A session heard nothing for too long.
    Suspect { dial: Dial },
    /// It heard something again.
    Recovered { dial: Dial },
    /// The gateway asks the session to leave.
    GoAway { dial: Dial, within: Duration, to: Option<String> },
    /// The clocks say that this machine stood still.
    Jumped { away: Duration },
    /// The gateway's settings.
    Tuned(Tuning),
    /// Time has passed.
    Tick,
}

/// Why a dial came to nothing.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// Nobody answered, or not as agreed. `unsure`: the Hello was sent, so the gateway may hold a session that
    /// this side knows nothing of.
    Failed { unsure: bool },
    /// Refused for now.
    Refused { retry_after: Duration },
    /// Refused for good.
    RefusedForGood,
    /// The certificate had run out and has been renewed: dial again with the new one.
    Renewed,
    /// Given up before the Hello, as asked.
    Abandoned,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Dial.
    Dial(Order),
    /// Give a running dial up if its Hello has not been sent.
    Abandon { dial: Dial },
    /// End this session's relays and connection: a newer one takes its place. Always before its `Activate`.
    Retire { dial: Dial },
    /// Let this session work.
    Activate { dial: Dial },
    /// Prove this session's path now.
    Prove { dial: Dial, away: Duration },
}

/// One dial to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Its number.
    pub(crate) dial: Dial,
    /// For the gateway's logs.
    pub(crate) reason: String,
    /// How long this supervisor was without a session.
    pub(crate) away: Duration,
    /// Where a GoAway sent it, to be tried before the configured addresses.
    pub(crate) to: Option<String>,
}

/// Where the link stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A dial is under way, no session is held.
    Dialling,
    /// The next dial waits for its time.
    Waiting {
        /// For how much longer.
        remaining: Duration,
    },
    /// A session is held.
    Attached {
        /// Its epoch.
        epoch: Epoch,
    },
    /// Told never to come back.
    Resting,
}

#[derive(Debug)]
struct Held {
    dial: Dial,
    epoch: Epoch,
    gateway: String,
    since: Instant,
    /// Nothing has been heard for too long, so far.
    suspect: bool,
    /// When a GoAway wants this supervisor back.
    return_at: Option<Instant>,
    /// A dial beside this session ended with its Hello sent: the gateway may have superseded this session by it.
    ghost: bool,
}

/// Why a dial is planned or made: some reasons fall away before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    NoSession,
    /// The session went silent, or the clocks jumped.
    Doubt,
    /// The gateway names another place.
    Moved,
}

#[derive(Debug)]
enum Plan {
    None,
    Waiting { at: Instant, cause: Cause },
    Dialling { dial: Dial, cause: Cause, abandoned: bool },
    Resting,
}

/// The link's state.
#[derive(Debug)]
pub(crate) struct State {
    tuning: Tuning,
    dials: u64,
    held: Option<Held>,
    plan: Plan,
    /// In a row, unhealthy sessions included: the exponent of the backoff.
    failures: u32,
    /// Renewals in a row without a session: one is normal, a second means that clocks disagree.
    renewals: u32,
    /// Since when no session has been held; `None` before the first.
    away_since: Option<Instant>,
    reason: String,
    to: Option<String>,
    jitter: SmallRng,
}

impl State {
    /// Before `Start`. The seed makes a simulation's delays repeatable.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            tuning: Tuning::default(),
            dials: 0,
            held: None,
            plan: Plan::None,
            failures: 0,
            renewals: 0,
            away_since: None,
            reason: "start".to_owned(),
            to: None,
            jitter: SmallRng::seed_from_u64(seed),
        }
    }

    /// Takes one event. `busy`: execs run, so somebody waits.
    pub(crate) fn on(&mut self, event: Event, now: Instant, busy: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Start => self.dial_now(Cause::NoSession, now, &mut actions),
            Event::Attached { dial, epoch, gateway } => {
                self.attached(dial, epoch, gateway, now, &mut actions)
            }
            Event::DialFailed { dial, failure } => self.dial_failed(dial, &failure, now, busy, &mut actions),
            Event::Lost { dial, lost } => self.lost(dial, &lost, now, busy),
            Event::Suspect { dial } => self.suspect(dial, now, &mut actions),
            Event::Recovered { dial } => self.recovered(dial, &mut actions),
            Event::GoAway { dial, within, to } => self.go_away(dial, within, to, now),
            Event::Jumped { away } => self.jumped(away, now, &mut actions),
            Event::Tuned(tuning) => self.tuning = tuning,
            Event::Tick => self.tick(now, &mut actions),
        }
        actions
    }

    /// When a `Tick` is due.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        match self.plan {
            Plan::Waiting { at, .. } => Some(at),
            Plan::None | Plan::Dialling { .. } | Plan::Resting => None,
        }
    }

    /// Where the link stands.
    pub(crate) fn phase(&self, now: Instant) -> Phase {
        match (&self.held, &self.plan) {
            (Some(held), _) => Phase::Attached { epoch: held.epoch },
            (None, Plan::Waiting { at, .. }) => {
                Phase::Waiting { remaining: at.saturating_duration_since(now) }
            }
            (None, Plan::Resting) => Phase::Resting,
            (None, Plan::Dialling { .. } | Plan::None) => Phase::Dialling,
        }
    }

    fn attached(
        &mut self,
        dial: Dial,
        epoch: Epoch,
        gateway: String,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Plan::Dialling { dial: running, .. } = self.plan else {
            actions.push(Action::Retire { dial });
            return;
        };
        if running != dial {
            actions.push(Action::Retire { dial });
            return;
        }
        self.plan = Plan::None;
        self.renewals = 0;
        if let Some(held) = self.held.take() {
            // One gateway counts its epochs; those of two cannot be compared, and there the later dial is newer.
            if held.gateway == gateway && held.epoch >= epoch {
                actions.push(Action::Retire { dial });
                self.held = Some(held);
                return;
            }
            actions.push(Action::Retire { dial: held.dial });
        }
        self.away_since = None;
        self.held =
            Some(Held { dial, epoch, gateway, since: now, suspect: false, return_at: None, ghost: false });
        actions.push(Action::Activate { dial });
    }

    fn dial_failed(
        &mut self,
        dial: Dial,
        failure: &Failure,
        now: Instant,
        busy: bool,
        actions: &mut Vec<Action>,
    ) {
        let Plan::Dialling { dial: running, cause, .. } = self.plan else { return };
        if running != dial {
            return;
        }
        self.plan = Plan::None;
        let at = match failure {
            Failure::Abandoned => {
                // Nobody wanted it any more; but the session may have been lost since.
                if self.held.is_none() {
                    self.dial_now(Cause::NoSession, now, actions);
                }
                return;
            }
            Failure::RefusedForGood => {
                if self.held.is_none() {
                    self.plan = Plan::Resting;
                }
                return;
            }
            Failure::Renewed => {
                self.renewals += 1;
                if self.renewals == 1 { now } else { self.backoff(now, busy) }
            }
            Failure::Refused { retry_after } => {
                self.failures = self.failures.saturating_add(1);
                let wait = (*retry_after).min(LONGEST_WAIT);
                // All who were refused at once must not come back at once.
                now + wait + self.draw(wait / 4)
            }
            Failure::Failed { unsure } => {
                if let Some(held) = &mut self.held {
                    held.ghost |= unsure;
                }
                self.backoff(now, busy)
            }
        };
        let cause = match &self.held {
            None => Cause::NoSession,
            // What made a second connection wanted is over.
            Some(held) if cause == Cause::Doubt && !held.suspect => return,
            Some(_) => cause,
        };
        self.plan = Plan::Waiting { at, cause };
    }

    fn lost(&mut self, dial: Dial, lost: &Lost, now: Instant, busy: bool) {
        let Some(held) = self.held.take_if(|held| held.dial == dial) else { return };
        self.away_since = Some(now);
        if now.duration_since(held.since) >= timing::HEALTHY_AFTER {
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
        }
        self.reason = format!("lost: {lost}");
        match self.plan {
            // A dial is under way beside it. If that dial is what superseded this session, all is well; and if it
            // comes to nothing, its own end plans the next.
            Plan::Dialling { .. } => {}
            Plan::Waiting { at, cause: Cause::Moved } => {
                self.plan = Plan::Waiting { at, cause: Cause::NoSession };
            }
            Plan::None | Plan::Waiting { .. } | Plan::Resting => {
                let code = lost.code();
                let superseded_by_ourselves = code == Some(CloseCode::SUPERSEDED) && held.ghost;
                let at = match code.map_or(ComeBack::AfterBackoff, CloseCode::come_back) {
                    ComeBack::Never if !superseded_by_ourselves => {
                        self.plan = Plan::Resting;
                        return;
                    }
                    ComeBack::Never | ComeBack::AfterBackoff | ComeBack::Soon => {
                        let window = self.window(busy);
                        now + self.draw(window)
                    }
                };
                let at = held.return_at.map_or(at, |return_at| return_at.max(now));
                self.plan = Plan::Waiting { at, cause: Cause::NoSession };
            }
        }
    }

    fn suspect(&mut self, dial: Dial, now: Instant, actions: &mut Vec<Action>) {
        let Some(held) = self.held.as_mut().filter(|held| held.dial == dial) else { return };
        held.suspect = true;
        if !matches!(self.plan, Plan::Dialling { .. }) {
            self.reason = "suspect: nothing was heard on the connection before".to_owned();
            self.dial_now(Cause::Doubt, now, actions);
        }
    }

    fn recovered(&mut self, dial: Dial, actions: &mut Vec<Action>) {
        let Some(held) = self.held.as_mut().filter(|held| held.dial == dial) else { return };
        held.suspect = false;
        match &mut self.plan {
            Plan::Dialling { dial, cause: Cause::Doubt, abandoned } if !*abandoned => {
                *abandoned = true;
                actions.push(Action::Abandon { dial: *dial });
            }
            Plan::Waiting { cause: Cause::Doubt, .. } => self.plan = Plan::None,
            Plan::Dialling { .. } | Plan::Waiting { .. } | Plan::None | Plan::Resting => {}
        }
    }

    fn go_away(&mut self, dial: Dial, within: Duration, to: Option<String>, now: Instant) {
        let delay = self.draw(within.min(LONGEST_WAIT));
        let Some(held) = self.held.as_mut().filter(|held| held.dial == dial) else { return };
        held.return_at = Some(now + delay);
        self.reason = "go away".to_owned();
        if to.is_some() {
            // Elsewhere: go there while this session still serves. Without another place a dial would reach the
            // gateway that is going, so it waits for the session's end.
            self.to = to;
            if !matches!(self.plan, Plan::Dialling { .. }) {
                self.plan = Plan::Waiting { at: now + delay, cause: Cause::Moved };
            }
        }
    }

    fn jumped(&mut self, away: Duration, now: Instant, actions: &mut Vec<Action>) {
        if let Some(held) = &self.held {
            actions.push(Action::Prove { dial: held.dial, away });
            // The gateway has given the session up by now. Should the clocks have lied, the proof arrives before
            // the second connection is up, and the dial is abandoned.
            if away <= timing::IDLE_TIMEOUT {
                return;
            }
        }
        self.failures = 0;
        self.reason = format!("resumed after {} s", away.as_secs());
        if !matches!(self.plan, Plan::Dialling { .. }) {
            let cause = if self.held.is_some() { Cause::Doubt } else { Cause::NoSession };
            // Resting ends here too: who speaks for the sandbox is an open question again after a resume.
            self.dial_now(cause, now, actions);
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Plan::Waiting { at, cause } = self.plan
            && at <= now
        {
            self.dial_now(cause, now, actions);
        }
    }

    fn dial_now(&mut self, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        self.dials += 1;
        let dial = Dial(self.dials);
        self.plan = Plan::Dialling { dial, cause, abandoned: false };
        let away = self.away_since.map_or(Duration::ZERO, |since| now.duration_since(since));
        actions.push(Action::Dial(Order { dial, reason: self.reason.clone(), away, to: self.to.take() }));
    }

    fn backoff(&mut self, now: Instant, busy: bool) -> Instant {
        let window = self.window(busy);
        self.failures = self.failures.saturating_add(1);
        now + self.draw(window)
    }

    /// The delay's upper end: doubled at each failure.
    fn window(&self, busy: bool) -> Duration {
        let cap = if busy { self.tuning.redial_cap_busy } else { self.tuning.redial_cap_idle };
        timing::REDIAL_FIRST.saturating_mul(1 << self.failures.min(16)).min(cap)
    }

    /// Full jitter: anything from nothing to all of it.
    fn draw(&mut self, window: Duration) -> Duration {
        window.mul_f64(self.jitter.random::<f64>())
    }
}

#[cfg(test)]
mod tests {
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
                        Action::Prove { dial, .. } => prop_assert_eq!(active.map(|(dial, ..)| dial), Some(dial)),
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
}
