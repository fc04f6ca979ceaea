//! How long a sandbox may live, and how long it may be idle. Pure: facts and two clocks in, what is due out.
//!
//! ```text
//!   ttl:        created or updated ── ttl ──▶ Due::Expire            whatever it does, in every phase
//!   idle_stop:  last activity ── idle_stop ──▶ Due::Look ── unfinished execs? ── none ──▶ Due::Stop
//!                      ▲                                           └ some: that is activity ┐
//!                      └────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Two clocks, because they are asked different things. The end of a ttl is a date that people are shown, and that
//! holds over restarts of gateway and machine: it is compared with the wall clock. Idleness is a span in which
//! nothing happened: it is measured by the monotonic clock, so that neither a clock that is set right after boot
//! nor a machine that slept makes a sandbox idle; only between two gateways does the wall clock have to do.
//!
//! Idle is only what shall run. While it is paused or stopped no time counts, and its start or resume is activity.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::activity::Seen;
use crate::store::Desired;

/// How often the wall clock is looked at while a ttl runs: a machine that slept, or whose clock was set, is late by
/// this at most.
const LOOK: Duration = Duration::from_secs(60);

/// Stored is the last activity to a quarter of the idle time, at most this old.
const GRAIN: Duration = Duration::from_secs(60);

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) instant: Instant,
    pub(super) wall: Timestamp,
}

/// What is agreed, and what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub(super) expires_at: Option<Timestamp>,
    pub(super) idle_stop: Option<Duration>,
    /// The store was asked then, and knew of execs that had not ended.
    running_at: Option<Instant>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Its time is over: it is deleted.
    Expire,
    /// Nothing is known to have happened for so long: the store has to be asked, and if it knows of no exec that
    /// runs, the sandbox is stopped.
    Look {
        /// For how long.
        idle: Duration,
    },
}

impl Lifetime {
    pub(super) fn new(expires_at: Option<Timestamp>, idle_stop: Option<Duration>) -> Self {
        Self { expires_at, idle_stop, running_at: None }
    }

    /// Something else was agreed.
    pub(super) fn agree(&mut self, expires_at: Option<Timestamp>, idle_stop: Option<Duration>) {
        (self.expires_at, self.idle_stop) = (expires_at, idle_stop);
    }

    /// The store knows of execs that have not ended.
    pub(super) fn on_running(&mut self, now: Instant) {
        self.running_at = Some(now);
    }

    /// What is due now.
    pub(super) fn due(&self, desired: Desired, seen: Seen, now: Now) -> Option<Due> {
        if desired == Desired::Deleted {
            return None;
        }
        if self.expires_at.is_some_and(|at| at <= now.wall) {
            return Some(Due::Expire);
        }
        let idle = now.instant.saturating_duration_since(self.idle_since(desired, seen)?);
        (idle >= self.idle_stop?).then_some(Due::Look { idle })
    }

    /// When to look again, if nothing is heard before.
    pub(super) fn wake_at(&self, desired: Desired, seen: Seen, now: Now) -> Option<Instant> {
        if desired == Desired::Deleted {
            return None;
        }
        let expiry = self.expires_at.map(|at| {
            let left = Duration::try_from(at.duration_since(now.wall)).unwrap_or_default();
            now.instant + left.min(LOOK)
        });
        let idle = self.idle_stop.filter(|_| desired == Desired::Running).map(|idle_stop| {
            // While something happens, its end is told by nobody: it can be idle after a whole span at the soonest.
            let since = self.idle_since(desired, seen).unwrap_or(now.instant);
            since.checked_add(idle_stop).unwrap_or(now.instant + LOOK)
        });
        expiry.into_iter().chain(idle).min()
    }

    /// Since when nothing is known to happen; `None` while something does, and where idleness does not count.
    pub(super) fn idle_since(&self, desired: Desired, seen: Seen) -> Option<Instant> {
        let counts = desired == Desired::Running && seen.open == 0 && self.idle_stop.is_some();
        counts.then(|| self.running_at.map_or(seen.last, |at| seen.last.max(at)))
    }

    /// The activity that should be stored now, where `stored` is too old: a gateway that dies must not forget more
    /// than a little of it.
    pub(super) fn unstored(
        &self,
        desired: Desired,
        seen: Seen,
        stored: Option<Timestamp>,
        now: Now,
    ) -> Option<Timestamp> {
        let grain = (self.idle_stop? / 4).min(GRAIN);
        if desired != Desired::Running {
            return None;
        }
        let since = self.idle_since(desired, seen).unwrap_or(now.instant);
        let at = date(since, now);
        let known = stored.is_some_and(|stored| at.duration_since(stored).unsigned_abs() < grain);
        (!known).then_some(at)
    }
}

/// The date of an instant that is past.
pub(super) fn date(at: Instant, now: Now) -> Timestamp {
    now.wall.checked_sub(now.instant.saturating_duration_since(at)).unwrap_or(now.wall)
}

/// The instant of a date that is past. One that lies ahead is taken for now: a clock that says so cannot be believed.
pub(super) fn instant(at: Timestamp, now: Now) -> Instant {
    let ago = Duration::try_from(now.wall.duration_since(at)).unwrap_or_default();
    now.instant.checked_sub(ago).unwrap_or(now.instant)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> Now {
        // An instant that has a past.
        Now { instant: Instant::now() + 100 * HOUR, wall: Timestamp::from_second(1_800_000_000).unwrap() }
    }

    fn later(now: Now, by: Duration) -> Now {
        Now { instant: now.instant + by, wall: now.wall.checked_add(by).unwrap() }
    }

    fn quiet(last: Instant) -> Seen {
        Seen { open: 0, last }
    }

    #[test]
    fn the_end_of_the_ttl_comes_whatever_happens_in_it() {
        let began = now();
        let life = Lifetime::new(Some(began.wall.checked_add(HOUR).unwrap()), None);
        for desired in [Desired::Running, Desired::Paused, Desired::Stopped] {
            for open in [0, 3] {
                let seen = Seen { open, last: began.instant };
                let almost = later(began, HOUR - Duration::from_secs(1));
                assert_eq!(life.due(desired, seen, almost), None);
                assert_eq!(life.due(desired, seen, later(began, HOUR)), Some(Due::Expire));
            }
        }
        assert_eq!(
            life.due(Desired::Deleted, quiet(began.instant), later(began, HOUR)),
            None,
            "it goes already"
        );
    }

    #[test]
    fn a_machine_that_slept_through_the_end_notices_within_a_minute() {
        let began = now();
        let life = Lifetime::new(Some(began.wall.checked_add(HOUR).unwrap()), None);
        let wake = life.wake_at(Desired::Running, quiet(began.instant), began).unwrap();
        assert!(wake <= began.instant + LOOK);
        let slept = Now { instant: wake, wall: began.wall.checked_add(2 * HOUR).unwrap() };
        assert_eq!(life.due(Desired::Running, quiet(began.instant), slept), Some(Due::Expire));
    }

    #[test]
    fn idle_is_counted_from_the_last_activity_and_only_of_what_shall_run() {
        let began = now();
        let life = Lifetime::new(None, Some(HOUR));
        let seen = quiet(began.instant);
        assert_eq!(life.due(Desired::Running, seen, later(began, HOUR / 2)), None);
        let due = life.due(Desired::Running, seen, later(began, HOUR));
        assert_eq!(due, Some(Due::Look { idle: HOUR }));
        for desired in [Desired::Paused, Desired::Stopped, Desired::Deleted] {
            assert_eq!(life.due(desired, seen, later(began, 9 * HOUR)), None);
            assert_eq!(life.wake_at(desired, seen, began), None);
        }
        let busy = Seen { open: 1, ..seen };
        assert_eq!(life.due(Desired::Running, busy, later(began, 9 * HOUR)), None);
    }

    #[test]
    fn a_command_that_runs_unattended_is_activity() {
        let began = now();
        let mut life = Lifetime::new(None, Some(HOUR));
        let seen = quiet(began.instant);
        let asked = later(began, HOUR);
        life.on_running(asked.instant);
        assert_eq!(life.due(Desired::Running, seen, asked), None);
        assert_eq!(life.wake_at(Desired::Running, seen, asked), Some(asked.instant + HOUR));
        // It ended half an hour later, and was told: an hour after that.
        let seen = quiet(later(asked, HOUR / 2).instant);
        assert_eq!(life.due(Desired::Running, seen, later(asked, HOUR)), None);
        assert_eq!(
            life.due(Desired::Running, seen, later(asked, HOUR * 3 / 2)),
            Some(Due::Look { idle: HOUR })
        );
    }

    #[test]
    fn a_wall_clock_that_is_set_makes_nothing_idle() {
        let began = now();
        let life = Lifetime::new(None, Some(HOUR));
        let set = Now { instant: began.instant, wall: began.wall.checked_add(1000 * HOUR).unwrap() };
        assert_eq!(life.due(Desired::Running, quiet(began.instant), set), None);
        // Nor does a date that lies ahead.
        assert_eq!(instant(set.wall, began), began.instant);
    }

    /// What a caller and the clocks do to a sandbox.
    #[derive(Clone, Debug)]
    enum Move {
        Begin,
        End,
        Exec,
        ExecEnds,
        Pass(u16),
        Restart,
        Want(Desired),
        Update(u16, u16),
    }

    fn moves() -> impl Strategy<Value = Move> {
        prop_oneof![
            Just(Move::Begin),
            Just(Move::End),
            Just(Move::Exec),
            Just(Move::ExecEnds),
            (1..2000_u16).prop_map(Move::Pass),
            Just(Move::Restart),
            prop::sample::select(vec![Desired::Running, Desired::Paused, Desired::Stopped])
                .prop_map(Move::Want),
            (0..2000_u16, 0..2000_u16).prop_map(|(ttl, idle)| Move::Update(ttl, idle)),
        ]
    }

    /// The task around the machine, as small as it can be, and the truth beside it.
    struct Model {
        life: Lifetime,
        now: Now,
        desired: Desired,
        seen: Seen,
        execs: u32,
        stored: Option<Timestamp>,
        /// When something happened last in truth; a restart may move it back by the grain, and never forward past
        /// now.
        truth: Instant,
        ended: Option<(Due, Instant)>,
    }

    impl Model {
        fn new(ttl: u16, idle: u16) -> Self {
            let now = now();
            let mut model = Self {
                life: Lifetime::new(None, None),
                now,
                desired: Desired::Running,
                seen: quiet(now.instant),
                execs: 0,
                stored: Some(now.wall),
                truth: now.instant,
                ended: None,
            };
            model.agree(ttl, idle);
            model
        }

        fn agree(&mut self, ttl: u16, idle: u16) {
            let seconds = |n: u16| (n > 0).then(|| Duration::from_secs(n.into()));
            let expires_at = seconds(ttl).map(|ttl| self.now.wall.checked_add(ttl).unwrap());
            self.life.agree(expires_at, seconds(idle));
            self.touch();
        }

        fn touch(&mut self) {
            self.seen.last = self.now.instant;
            self.truth = self.now.instant;
        }

        fn settle(&mut self) {
            match self.life.due(self.desired, self.seen, self.now) {
                Some(Due::Look { .. }) if self.execs > 0 => self.life.on_running(self.now.instant),
                Some(due) => self.ended = Some((due, self.now.instant)),
                None => {}
            }
            if let Some(at) = self.life.unstored(self.desired, self.seen, self.stored, self.now) {
                self.stored = Some(at);
            }
        }

        /// Lets time pass as the task does: it wakes when it was told to, and when something happens.
        fn pass(&mut self, seconds: u16) {
            let until = later(self.now, Duration::from_secs(seconds.into()));
            while self.ended.is_none() {
                let wake = self.life.wake_at(self.desired, self.seen, self.now);
                let Some(wake) = wake.filter(|at| *at <= until.instant) else { break };
                // A wake that lies in the past would be a loop that burns.
                let by = wake.checked_duration_since(self.now.instant).expect("a wake lies ahead");
                self.now = later(self.now, by);
                if self.execs > 0 || self.seen.open > 0 {
                    self.truth = self.now.instant;
                }
                self.settle();
                let again = self.life.wake_at(self.desired, self.seen, self.now);
                assert!(
                    self.ended.is_some() || again.is_none_or(|again| again > wake),
                    "it wakes for nothing"
                );
            }
            if self.ended.is_none() {
                self.now = until;
                if self.execs > 0 || self.seen.open > 0 {
                    self.truth = self.now.instant;
                }
            }
        }

        fn step(&mut self, step: &Move) {
            match step {
                Move::Begin => {
                    self.seen.open += 1;
                    self.touch();
                }
                Move::End if self.seen.open > 0 => {
                    self.seen.open -= 1;
                    self.touch();
                }
                // A running exec is only where something runs.
                Move::Exec if self.desired == Desired::Running => {
                    self.execs += 1;
                    self.touch();
                }
                Move::ExecEnds if self.execs > 0 => {
                    self.execs -= 1;
                    self.touch();
                }
                Move::Pass(seconds) => self.pass(*seconds),
                Move::Restart => {
                    // Relays end with their gateway.
                    self.settle();
                    let last = self.stored.map_or(self.now.instant, |at| instant(at, self.now));
                    self.seen = quiet(last);
                    self.life = Lifetime::new(self.life.expires_at, self.life.idle_stop);
                }
                Move::Want(desired) => {
                    self.desired = *desired;
                    if *desired == Desired::Stopped {
                        self.execs = 0;
                    }
                    self.touch();
                }
                Move::Update(ttl, idle) => self.agree(*ttl, *idle),
                Move::End | Move::Exec | Move::ExecEnds => {}
            }
            if self.ended.is_none() {
                self.settle();
            }
        }
    }

    proptest! {
        /// Whatever happens: nothing in use is stopped, nothing is stopped early by more than what a restart may
        /// forget, nothing outlives its ttl, and the machine always names a time ahead.
        #[test]
        fn nothing_in_use_is_stopped_and_nothing_outlives_its_time(
            ttl in 0..2000_u16, idle in 0..2000_u16, steps in prop::collection::vec(moves(), 1..60),
        ) {
            let mut model = Model::new(ttl, idle);
            for step in &steps {
                model.step(step);
                let expired = model.life.expires_at.is_some_and(|at| at <= model.now.wall);
                match model.ended {
                    Some((Due::Expire, _)) => {
                        prop_assert!(expired);
                        return Ok(());
                    }
                    Some((Due::Look { idle }, at)) => {
                        prop_assert!(model.execs == 0 && model.seen.open == 0 && model.desired == Desired::Running);
                        let agreed = model.life.idle_stop.expect("something was agreed");
                        prop_assert!(idle >= agreed);
                        let grain = (agreed / 4).min(GRAIN);
                        prop_assert!(at.duration_since(model.truth) + grain >= agreed, "stopped early");
                        return Ok(());
                    }
                    None => prop_assert!(!expired, "it outlives its time"),
                }
            }
            // Left alone and running, it is stopped in the end: at most one idle span after it is quiet.
            if let Some(idle_stop) = model.life.idle_stop {
                model.step(&Move::Want(Desired::Running));
                (model.execs, model.seen.open) = (0, 0);
                model.pass(u16::try_from(idle_stop.as_secs()).unwrap());
                prop_assert!(model.ended.is_some());
            }
        }
    }
}
