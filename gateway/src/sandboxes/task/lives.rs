//! How long it lives: what [`lifetime`] says is due, done as if somebody had asked for it.

use super::*;

impl Task {
    /// Where it is noted that somebody uses the sandbox.
    pub(in crate::sandboxes) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Does what is due. True when that has changed what is wanted, or known.
    pub(super) async fn live_on(&mut self, phase: Phase, now: Instant) -> bool {
        // Another driver's workload cannot be ended from here: its sandbox waits for that driver, or for a person.
        if self.gone || self.state.wanted.foreign {
            return false;
        }
        let (desired, clocks) = (self.state.wanted.desired, self.clocks(now));
        if let Some(at) = self.lifetime.unstored(desired, self.activity.seen(), self.record.active_at, clocks)
        {
            self.record =
                Arc::new(SandboxRecord { active_at: Some(at), ..SandboxRecord::clone(&self.record) });
            self.rewrite_at.get_or_insert(now);
        }
        let Some(due) = self.lifetime.due(desired, self.activity.seen(), clocks) else { return false };
        if self.due_again.is_some_and(|at| now < at) {
            return false;
        }
        match self.live_out(due, phase, now).await {
            Ok(()) => self.due_again = None,
            Err(error) => {
                tracing::error!(sandbox = %self.record.id, %error, ?due, "its lifetime could not be kept; trying again");
                self.due_again = Some(now + REWRITE);
            }
        }
        true
    }

    async fn live_out(&mut self, due: Due, phase: Phase, now: Instant) -> Result<(), CallError> {
        let idle = match due {
            Due::Expire => return self.want(Ask::Expire).await,
            Due::Look { idle } => idle,
        };
        // A failure stays to be seen: nothing runs there that could be stopped.
        let runs = phase == Phase::Failed
            || !self.core.parts.store.unfinished(self.record.id).await?.is_empty()
            // Somebody came while the store was asked.
            || self.activity.seen().open > 0;
        if runs {
            self.lifetime.on_running(now);
            return Ok(());
        }
        self.want(Ask::IdleStop { idle }).await
    }

    /// When to look again.
    pub(super) fn life_wakes_at(&self, now: Instant) -> Option<Instant> {
        if self.gone || self.state.wanted.foreign {
            return None;
        }
        let again = self.due_again.filter(|at| now < *at);
        again.or_else(|| {
            let desired = self.state.wanted.desired;
            self.lifetime.wake_at(desired, self.activity.seen(), self.clocks(now))
        })
    }

    pub(super) fn clocks(&self, instant: Instant) -> lifetime::Now {
        lifetime::Now { instant, wall: self.core.parts.settings.wall.now() }
    }
}
