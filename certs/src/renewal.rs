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
