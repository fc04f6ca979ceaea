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
//!   a wait after a failure ── the network changed ──▶ the same, cut short
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

/// A change of the network cuts a wait short, but so often at most: an interface that flaps must not make a
/// supervisor knock without end.
const HURRY_EVERY: Duration = Duration::from_secs(5);

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
    /// This machine's addresses or routes have changed.
    Rerouted,
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
    /// See whether this session's path leads elsewhere now.
    Reroute { dial: Dial },
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
    /// The wait of the plan is only a backoff: nobody asked for it.
    impatient: bool,
    /// When a change of the network last cut a wait short.
    hurried_at: Option<Instant>,
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
            impatient: false,
            hurried_at: None,
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
            Event::Rerouted => self.rerouted(now, &mut actions),
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
        self.impatient = matches!(failure, Failure::Failed { .. });
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
                self.impatient = held.return_at.is_none();
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
                self.impatient = false;
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

    /// What failed may work now; but a return that the gateway has spread over time stays where it is.
    fn rerouted(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Some(held) = &self.held {
            actions.push(Action::Reroute { dial: held.dial });
        }
        let Plan::Waiting { at, cause } = self.plan else { return };
        let hurried = self.hurried_at.is_some_and(|hurried| now.duration_since(hurried) < HURRY_EVERY);
        if !self.impatient || hurried {
            return;
        }
        self.hurried_at = Some(now);
        let soon = now + self.draw(timing::REDIAL_FIRST);
        self.plan = Plan::Waiting { at: at.min(soon), cause };
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
mod tests;
