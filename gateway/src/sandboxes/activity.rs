//! What happens in a sandbox on somebody's behalf: how much now, and when last.
//!
//! Counted are relays (attached callers, starts, signals, input, files, tunnels), from opening to end, and single
//! moments (an exec ended that nobody watched, somebody asked for a start or a resume). Not counted is what nobody
//! does for the sandbox's own sake: probes, the supervisor's reports, listings, looking and waiting. A command that
//! runs while nobody is attached opens no relay: the store knows of it ([`super::lifetime`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// One sandbox's activity. Clones are the same.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<Seen>>);

/// What was seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How much happens now.
    pub open: u32,
    /// When something happened last, if nothing does now.
    pub last: Instant,
}

/// Something that happens, until it is dropped.
#[derive(Debug)]
pub struct Busy(Activity);

impl Activity {
    /// Of a sandbox in which something happened at `last`.
    #[must_use]
    pub fn new(last: Instant) -> Self {
        Self(Arc::new(Mutex::new(Seen { open: 0, last })))
    }

    /// Something begins to happen.
    #[must_use]
    pub fn begin(&self) -> Busy {
        self.seen_mut().open += 1;
        Busy(self.clone())
    }

    /// Something happened just now.
    pub fn touch(&self) {
        self.seen_mut().last = Instant::now();
    }

    /// What was seen.
    #[must_use]
    pub fn seen(&self) -> Seen {
        *self.seen_mut()
    }

    fn seen_mut(&self) -> MutexGuard<'_, Seen> {
        // Two numbers that are never half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut seen = self.0.seen_mut();
        seen.open = seen.open.saturating_sub(1);
        seen.last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_open_counts_until_it_ends() {
        let activity = Activity::new(Instant::now());
        let began = Instant::now();
        let (first, second) = (activity.begin(), activity.begin());
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(first);
        assert_eq!(activity.seen(), Seen { open: 1, last: began + Duration::from_secs(5) });
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(second);
        assert_eq!(activity.seen(), Seen { open: 0, last: began + Duration::from_secs(10) });
    }
}
