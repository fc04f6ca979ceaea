//! From facts to the next step, and to the time when the facts change by themselves.

use super::{known::Known, *};

impl State {
    pub(super) fn steps(&self, known: &Known, phase: Phase, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some((code, reason)) = self.closing(known) {
            steps.push(Step::Close(code, reason));
        }
        if self.gone || (self.wanted.desired == Desired::Deleted && self.wanted.foreign) {
            let later = self.failure.as_ref().and_then(|failed| failed.retry_at).is_some_and(|at| now < at);
            if !later {
                steps.push(Step::Forget);
            }
            return steps;
        }
        if self.wanted.foreign {
            return steps;
        }
        if self.is_unwanted_call() {
            steps.push(Step::Abandon);
            return steps;
        }
        let read = self.console.as_ref().is_some_and(|(generation, _)| *generation == self.wanted.generation);
        if phase == Phase::Failed && self.can.logs && !read && !matches!(known, Known::NotMade) {
            steps.push(Step::Console);
        }
        if self.is_calling() {
            return steps;
        }
        let Some(call) = self.next_call(known) else { return steps };
        match &self.failure {
            Some(failed) if failed.call.verb() == call.verb() => match failed.retry_at {
                Some(at) if now >= at => steps.push(Step::Call(call)),
                Some(_) => {}
                None if matches!(call, Call::Pause) => steps.push(Step::GiveUpPausing),
                None => {}
            },
            _ => steps.push(Step::Call(call)),
        }
        steps
    }

    /// The driver's next verb, were there nothing in the way.
    fn next_call(&self, known: &Known) -> Option<Call> {
        let grace = self.wanted.grace;
        match (self.wanted.desired, known) {
            (Desired::Deleted, _) if self.can.stop && !grace.is_zero() && self.may_live() => {
                Some(Call::Stop { grace, then_delete: true })
            }
            (Desired::Deleted, _) => Some(Call::Delete),
            (Desired::Stopped, _) => self.may_live().then_some(Call::Stop { grace, then_delete: false }),
            (Desired::Running, Known::NotMade) => Some(Call::Ensure { generation: self.wanted.generation }),
            // Half made by an earlier gateway, it may be: asking again is what carries on.
            (Desired::Running, Known::Alive(WorkloadState::Creating)) if !self.is_made() => {
                Some(Call::Ensure { generation: self.wanted.generation })
            }
            (Desired::Running, Known::Alive(WorkloadState::Paused)) => Some(Call::Resume),
            (Desired::Paused, Known::Alive(WorkloadState::Running | WorkloadState::Creating)) => {
                Some(Call::Pause)
            }
            (Desired::Running | Desired::Paused, _) => None,
        }
    }

    /// Whether the call under way would do what nobody wants any more, and take long about it.
    fn is_unwanted_call(&self) -> bool {
        match (self.call, self.wanted.desired) {
            (Some(Call::Ensure { generation }), Desired::Running | Desired::Paused) => {
                generation != self.wanted.generation
            }
            (Some(Call::Ensure { .. }), Desired::Stopped | Desired::Deleted) => true,
            (Some(Call::Stop { then_delete: false, .. } | Call::Pause | Call::Resume), Desired::Deleted) => {
                true
            }
            (Some(Call::Pause | Call::Resume), Desired::Stopped) => true,
            _ => false,
        }
    }

    /// Whether the session has to go, and what it is told.
    fn closing(&self, known: &Known) -> Option<(CloseCode, &'static str)> {
        let link = self.link?;
        match (self.wanted.desired, known) {
            (Desired::Running | Desired::Paused, _) if link.generation < self.wanted.generation => {
                Some((CloseCode::STALE_GENERATION, "a newer workload of the sandbox is wanted"))
            }
            (Desired::Deleted, _) if self.gone || self.wanted.foreign => {
                Some((CloseCode::SANDBOX_DELETED, "the sandbox has been deleted"))
            }
            (Desired::Stopped, _) if !self.may_live() && !self.is_calling() => {
                Some((CloseCode::SANDBOX_STOPPED, "the sandbox has been stopped"))
            }
            // Should it live after all, it comes back, and proves it.
            (Desired::Running | Desired::Paused, Known::Dead { certain: true, .. }) => {
                Some((CloseCode::UNRESPONSIVE, "the driver says that the workload is gone"))
            }
            _ => None,
        }
    }

    /// When the facts change by themselves.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let lease = self.probes.as_ref().map(|probes| probes.at + timing::PROBE_LEASE);
        let first =
            self.link().filter(|_| self.probes.is_none()).map(|link| link.since + timing::PROBE_LEASE);
        let retry = self.failure.as_ref().and_then(|failed| failed.retry_at).filter(|_| self.call.is_none());
        let boot = self.booting.map(|since| since + self.boot_deadline);
        let thaw = self.thawed.map(|since| since + self.boot_deadline);
        let uncertain = match &self.level {
            Level::Seen(seen) if seen.state == WorkloadState::Failed => Some(self.level_at + UNCERTAIN),
            _ => None,
        };
        let memory = self.memory_wakes_at();
        [lease, first, retry, boot, thaw, uncertain, memory]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }
}
