//! Is the supervisor still there? A pure machine: counts of datagrams and echoes, and instants in; heartbeats and a
//! verdict out.
//!
//! ```text
//!           first relay opened                  nothing, or no echo, for the bound
//!   idle ────────────────────────▶ watched ──────────────────────────────────▶ silent (for good)
//!     ▲                               │ ▲
//!     └── last relay closed ──────────┘ └── anything heard: the bound starts anew; a beat each interval
//! ```
//!
//! To hear the supervisor is not enough: on a path that swallows what goes down alone, its packets come for as long
//! as its own idle timeout, while callers' input reaches nobody. So a heartbeat that is not echoed within the bound
//! ends the session as well; the echo proves both ways.
//!
//! Idle, nothing is expected but QUIC's keepalives, and QUIC's own idle timeout watches over them: no timer runs
//! here. The bound starts with the first relay even where nothing was heard for longer, because nobody waited
//! then. While the workload is frozen on purpose, silence is no news.

use std::time::Duration;

use tokio::time::Instant;

/// Liveness of one session.
#[derive(Debug)]
pub(super) struct State {
    every: Duration,
    bound: Duration,
    phase: Phase,
    frozen: bool,
    datagrams: u64,
    echoes: u64,
    seq: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Watched {
        heard: Instant,
        /// When the next heartbeat is due.
        beat: Instant,
        /// The first heartbeat after the last echo.
        unanswered: Option<Instant>,
    },
    Silent,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send a heartbeat with this number.
    Beat(u64),
    /// Give the session up: nothing was heard for so long.
    GiveUp(Duration),
    /// Give the session up: something was heard, and nothing reached the supervisor for so long.
    Unanswered(Duration),
}

impl State {
    /// Beats each `every` and gives up after `bound`; `datagrams` came so far.
    pub(super) fn new(every: Duration, bound: Duration, datagrams: u64) -> Self {
        Self { every, bound, phase: Phase::Idle, frozen: false, datagrams, echoes: 0, seq: 0 }
    }

    /// So many relays are open now.
    pub(super) fn on_relays(&mut self, open: u32, now: Instant) {
        self.phase = match (self.phase, open) {
            (Phase::Silent, _) => Phase::Silent,
            (_, 0) => Phase::Idle,
            // The first beat goes at once: its answer proves the path for the relay that was opened.
            (Phase::Idle, _) => Phase::Watched { heard: now, beat: now, unanswered: None },
            (watched, _) => watched,
        };
    }

    /// So many datagrams came in all.
    pub(super) fn on_datagrams(&mut self, datagrams: u64, now: Instant) {
        if datagrams == self.datagrams {
            return;
        }
        self.datagrams = datagrams;
        if let Phase::Watched { heard, .. } = &mut self.phase {
            *heard = now;
        }
    }

    /// So many echoes came in all.
    pub(super) fn on_echoes(&mut self, echoes: u64) {
        if echoes == self.echoes {
            return;
        }
        self.echoes = echoes;
        if let Phase::Watched { unanswered, .. } = &mut self.phase {
            *unanswered = None;
        }
    }

    /// The workload is frozen, or thaws.
    pub(super) fn on_frozen(&mut self, frozen: bool, now: Instant) {
        self.frozen = frozen;
        if let Phase::Watched { heard, unanswered, .. } = &mut self.phase {
            (*heard, *unanswered) = (now, None);
        }
    }

    /// What is due. Tell [`on_datagrams`](Self::on_datagrams) and [`on_echoes`](Self::on_echoes) first.
    pub(super) fn on_tick(&mut self, now: Instant) -> Option<Action> {
        let Phase::Watched { heard, beat, unanswered } = &mut self.phase else { return None };
        let silence = now.saturating_duration_since(*heard);
        if silence >= self.bound && !self.frozen {
            self.phase = Phase::Silent;
            return Some(Action::GiveUp(silence));
        }
        let unheard = unanswered.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if unheard >= self.bound && !self.frozen {
            self.phase = Phase::Silent;
            return Some(Action::Unanswered(unheard));
        }
        if now < *beat {
            return None;
        }
        // From now, not from the last beat: a task that was held up must not send what it missed in one burst.
        *beat = now + self.every;
        // A frozen supervisor answers nothing.
        if !self.frozen {
            unanswered.get_or_insert(now);
        }
        self.seq += 1;
        Some(Action::Beat(self.seq))
    }

    /// When to look again; `None`: when a relay is opened.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Watched { beat, .. } if self.frozen => Some(beat),
            Phase::Watched { heard, beat, unanswered } => {
                Some(beat.min(unanswered.unwrap_or(heard).min(heard) + self.bound))
            }
            Phase::Idle | Phase::Silent => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVERY: Duration = Duration::from_secs(1);
    const BOUND: Duration = Duration::from_secs(10);

    /// Runs the machine as its task does, without any news, until it sleeps for good or `until`.
    fn run(state: &mut State, mut now: Instant, until: Instant) -> (Vec<Action>, Instant) {
        let mut actions = Vec::new();
        while let Some(at) = state.wake_at() {
            now = now.max(at);
            if now > until {
                break;
            }
            actions.extend(state.on_tick(now));
        }
        (actions, now)
    }

    #[test]
    fn an_idle_session_has_no_timer() {
        let state = State::new(EVERY, BOUND, 0);
        assert_eq!(state.wake_at(), None);
    }

    #[test]
    fn silence_ends_it_at_the_bound_after_a_beat_each_second() {
        let (mut state, start) = (State::new(EVERY, BOUND, 0), Instant::now());
        state.on_relays(1, start);
        let (actions, end) = run(&mut state, start, start + BOUND * 2);
        let beats: Vec<_> = (1..=10).map(Action::Beat).chain([Action::GiveUp(BOUND)]).collect();
        assert_eq!((actions, end), (beats, start + BOUND));
    }

    #[test]
    fn what_was_silent_before_the_first_relay_does_not_count() {
        let (mut state, start) = (State::new(EVERY, BOUND, 0), Instant::now());
        let later = start + Duration::from_secs(3600);
        state.on_relays(1, later);
        assert_eq!(state.on_tick(later), Some(Action::Beat(1)));
    }

    #[test]
    fn a_frozen_workload_may_be_silent_and_gets_its_whole_bound_after_the_thaw() {
        let (mut state, start) = (State::new(EVERY, BOUND, 0), Instant::now());
        state.on_relays(1, start);
        state.on_frozen(true, start);
        let (actions, now) = run(&mut state, start, start + BOUND * 6);
        assert!(!actions.iter().any(|action| matches!(action, Action::GiveUp(_))), "{actions:?}");
        state.on_frozen(false, now);
        let (actions, end) = run(&mut state, now, now + BOUND * 2);
        assert_eq!((actions.last(), end), (Some(&Action::GiveUp(BOUND)), now + BOUND));
    }

    #[test]
    fn a_path_that_carries_nothing_down_is_given_up_though_the_supervisor_is_heard() {
        let (mut state, start) = (State::new(EVERY, BOUND, 0), Instant::now());
        state.on_relays(1, start);
        let mut heard = 0;
        let (end, now) = loop {
            let now = state.wake_at().unwrap();
            heard += 1;
            state.on_datagrams(heard, now);
            // The first three heartbeats are answered.
            state.on_echoes(heard.min(4));
            match state.on_tick(now) {
                Some(Action::Beat(_)) => {}
                other => break (other, now),
            }
        };
        // The fourth, which was sent after three seconds, is the first that was not.
        assert_eq!((end, now), (Some(Action::Unanswered(BOUND)), start + EVERY * 3 + BOUND));
    }

    #[derive(Clone, Debug)]
    enum Event {
        Pass(u64),
        Relays(u32),
        Datagram,
        Echo,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            (0u64..4000).prop_map(Event::Pass),
            (0u32..3).prop_map(Event::Relays),
            Just(Event::Datagram),
            Just(Event::Echo),
        ];
        prop::collection::vec(event, 1..200)
    }

    proptest! {
        /// Whatever happens: no verdict before the bound has passed since the last news or the first relay, or since
        /// the first heartbeat that was not answered; none later than that while somebody waits, at most one, and
        /// beats are never closer than their interval while the relays stay open.
        #[test]
        fn the_verdict_is_just_and_in_time(events in events()) {
            let start = Instant::now();
            let (mut state, mut now, mut datagrams, mut open) = (State::new(EVERY, BOUND, 0), start, 0, 0);
            let (mut waited_since, mut last_beat, mut over) = (start, None::<Instant>, false);
            let (mut echoes, mut unanswered) = (0, None::<Instant>);
            for event in events {
                match event {
                    Event::Relays(n) => {
                        if open == 0 && n > 0 {
                            waited_since = now;
                        }
                        if n == 0 {
                            (last_beat, unanswered) = (None, None);
                        }
                        open = n;
                        state.on_relays(n, now);
                    }
                    Event::Datagram => {
                        datagrams += 1;
                        state.on_datagrams(datagrams, now);
                        waited_since = now;
                    }
                    Event::Echo => {
                        echoes += 1;
                        datagrams += 1;
                        state.on_datagrams(datagrams, now);
                        state.on_echoes(echoes);
                        (waited_since, unanswered) = (now, None);
                    }
                    Event::Pass(ms) => {
                        let until = now + Duration::from_millis(ms);
                        while let Some(at) = state.wake_at().filter(|at| *at <= until) {
                            now = now.max(at);
                            match state.on_tick(now) {
                                Some(Action::Beat(_)) => {
                                    prop_assert!(open > 0 && !over);
                                    prop_assert!(last_beat.is_none_or(|beat| now - beat >= EVERY));
                                    last_beat = Some(now);
                                    unanswered.get_or_insert(now);
                                }
                                Some(Action::Unanswered(unheard)) => {
                                    prop_assert!(open > 0 && !over);
                                    prop_assert_eq!((unheard, Some(now)), (BOUND, unanswered.map(|at| at + BOUND)));
                                    over = true;
                                }
                                Some(Action::GiveUp(silence)) => {
                                    prop_assert!(open > 0 && !over);
                                    prop_assert_eq!(silence, BOUND);
                                    prop_assert_eq!(now, waited_since + BOUND);
                                    over = true;
                                }
                                None => {}
                            }
                        }
                        now = until;
                        prop_assert!(over || open == 0 || now < waited_since + BOUND);
                        prop_assert!(over || unanswered.is_none_or(|at| now < at + BOUND));
                    }
                }
            }
        }
    }
}
