//! When to renew a certificate. Pure: instants in, a decision out; no clock and no I/O of its own.
//!
//! ```text
//! not_before ├──────────────────────┬─────┤··jitter··┼───────────────┤ not_after
//!                                   due: within the tenth of the life before two thirds of it
//!            after a failure: again in 1 s, 2 s, 4 s, … ≤ 5 min, and ≤ a quarter of what is left
//! ```
//!
//! The instants are the wall clock's, since that is what certificates are written in, and the wall clock
//! jumps (a resumed sandbox wakes hours later). So no wait is longer than [`LONGEST_WAIT`]: then look
//! again.

use std::time::{Duration, SystemTime};

use crate::facts::CertificateFacts;

/// No wait is longer than this, so that a jump of the wall clock is noticed in time.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);
/// The first retry; shorter would only hammer a gateway that is restarting.
pub const FIRST_RETRY: Duration = Duration::from_secs(1);

/// When the certificate in use is to be renewed next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    due: SystemTime,
    ends: SystemTime,
    failures: u32,
    jitter: u16,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: ask again after this long (never zero, at most [`LONGEST_WAIT`]).
    Wait(Duration),
    /// Send a signing request.
    Renew,
}

impl Renewal {
    /// Plans the renewal of a certificate. `jitter` is any random number; it spreads sandboxes that were
    /// made together over a tenth of the certificate's life.
    pub fn plan(facts: &CertificateFacts, jitter: u16) -> Self {
        let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
        let early = share(life / 10, jitter);
        let due = facts.not_before + (life / 3 * 2).saturating_sub(early);
        Self { due, ends: facts.not_after, failures: 0, jitter }
    }

    /// When the renewal, or its next try, is due.
    pub fn due(&self) -> SystemTime {
        self.due
    }

    /// What to do at `now`.
    pub fn step(&self, now: SystemTime) -> Step {
        match self.due.duration_since(now) {
            Ok(wait) if !wait.is_zero() => Step::Wait(wait.min(LONGEST_WAIT)),
            _ => Step::Renew,
        }
    }

    /// A try failed at `now`: plans the next one. There always is one: an expired certificate can still
    /// be renewed.
    pub fn failed(&mut self, now: SystemTime) {
        self.due = now + self.retry_delay(now);
        self.failures = self.failures.saturating_add(1);
    }

    /// Doubles from one second to five minutes. While the certificate lives, several tries must fit into
    /// what is left of it, so a wait takes at most a quarter of that; after its end nothing is left to
    /// hurry for but the sandbox, which is cut off, so half a minute at most.
    fn retry_delay(&self, now: SystemTime) -> Duration {
        let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        let limit = match self.ends.duration_since(now) {
            Ok(remaining) => (remaining / 4).clamp(FIRST_RETRY, LONGEST_WAIT),
            Err(_) => Duration::from_secs(30),
        };
        let delay = doubled.min(limit);
        // Up to half of it less, for the same reason as above; but never a busy loop.
        (delay - share(delay / 2, self.jitter)).max(FIRST_RETRY)
    }
}

/// `jitter` parts in 65536 of `whole`.
fn share(whole: Duration, jitter: u16) -> Duration {
    whole.mul_f64(f64::from(jitter) / 65536.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::facts::Fingerprint;
    use crate::identity::{Identity, SpiffeId, TrustDomain};

    fn living(from: SystemTime, life: Duration) -> CertificateFacts {
        CertificateFacts {
            spiffe_id: SpiffeId::new(TrustDomain::default(), Identity::client("ada").unwrap()),
            not_before: from,
            not_after: from + life,
            serial: "01".to_owned(),
            fingerprint: Fingerprint::of(&[][..].into()),
        }
    }

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// From seconds to ten years.
    fn lives() -> impl Strategy<Value = Duration> {
        prop_oneof![2..120u64, 120..200_000u64, 200_000..315_360_000u64].prop_map(Duration::from_secs)
    }

    proptest! {
        #[test]
        fn it_is_due_between_half_and_two_thirds_of_the_life(life in lives(), jitter: u16) {
            let due = Renewal::plan(&living(start(), life), jitter).due();
            prop_assert!(due >= start() + life / 2);
            prop_assert!(due <= start() + life.mul_f64(0.667));
        }

        #[test]
        fn waiting_always_ends_at_the_due_instant(life in lives(), jitter: u16) {
            let plan = Renewal::plan(&living(start(), life), jitter);
            let mut now = start();
            // Bounded by the longest wait, which is exact but at the end.
            for _ in 0..=(life.as_secs() / LONGEST_WAIT.as_secs()).min(10_000) + 1 {
                match plan.step(now) {
                    Step::Renew => {
                        prop_assert_eq!(now, plan.due());
                        return Ok(());
                    }
                    Step::Wait(wait) => {
                        prop_assert!(!wait.is_zero() && wait <= LONGEST_WAIT);
                        now += wait;
                    }
                }
            }
            prop_assert!(life > 10_000 * LONGEST_WAIT);
        }

        #[test]
        fn retries_are_bounded_and_go_on_past_the_end(
            life in lives(),
            jitter: u16,
            late in 0.0..3.0f64,
            tries in 1..60usize,
        ) {
            let mut plan = Renewal::plan(&living(start(), life), jitter);
            let mut now = (start() + life.mul_f64(late)).max(plan.due());
            for _ in 0..tries {
                prop_assert_eq!(plan.step(now), Step::Renew);
                plan.failed(now);
                let delay = plan.due().duration_since(now).unwrap();
                prop_assert!(delay >= FIRST_RETRY && delay <= LONGEST_WAIT);
                let remaining = (start() + life).duration_since(now).unwrap_or_default();
                if remaining >= 4 * FIRST_RETRY {
                    prop_assert!(delay <= remaining / 4);
                } else {
                    prop_assert!(delay <= Duration::from_secs(30));
                }
                prop_assert_eq!(plan.step(now), Step::Wait(delay));
                now = plan.due();
            }
        }

        /// The clock may jump anywhere between two looks; there is always an answer, and never a long sleep.
        #[test]
        fn no_jump_of_the_clock_makes_it_sleep_long(
            life in lives(),
            jitter: u16,
            looks in prop::collection::vec((0..700_000_000u64, any::<bool>()), 1..20),
        ) {
            let mut plan = Renewal::plan(&living(start(), life), jitter);
            for (at, fails) in looks {
                let now = start() - Duration::from_secs(350_000_000) + Duration::from_secs(at);
                match plan.step(now) {
                    Step::Wait(wait) => prop_assert!(!wait.is_zero() && wait <= LONGEST_WAIT),
                    Step::Renew if fails => plan.failed(now),
                    Step::Renew => {}
                }
            }
        }
    }

    #[test]
    fn several_tries_fit_into_the_last_third() {
        let mut plan = Renewal::plan(&living(start(), Duration::from_secs(24 * 60 * 60)), 0);
        let mut now = plan.due();
        let mut tries = 0;
        while now < start() + Duration::from_secs(24 * 60 * 60) {
            plan.failed(now);
            now = plan.due();
            tries += 1;
        }
        assert!((90..200).contains(&tries), "{tries}");
    }

    #[test]
    fn a_certificate_whose_end_lies_before_its_beginning_is_renewed_at_once() {
        let mut facts = living(start(), Duration::ZERO);
        facts.not_after = start() - Duration::from_secs(60);
        assert_eq!(Renewal::plan(&facts, u16::MAX).step(start()), Step::Renew);
    }
}
