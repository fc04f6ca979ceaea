//! From facts to one word: the phase, why, and the conditions.

use super::{super::view::ConditionKind, boot, known::Known, *};

/// Between what is wrong and the console's end that may say why.
pub(in crate::sandboxes) const CONSOLE_ENDS_WITH: &str = "; the console ends with: ";

type Told = (Phase, String, String);

impl State {
    /// Everything anew, from the facts.
    pub(in crate::sandboxes) fn assess(&self, now: Instant) -> Assessment {
        let known = self.known(now);
        let conditions = self.conditions(&known, now);
        let ready = conditions.iter().all(|condition| condition.status == ConditionStatus::True);
        let (phase, reason, message) = match self.wanted.desired {
            Desired::Deleted => self.deleting(),
            Desired::Stopped => self.stopping(),
            _ if self.wanted.foreign => told(
                Phase::Failed,
                "OtherDriver",
                "another driver made this sandbox than this gateway has: start the gateway with that driver, or delete it",
            ),
            Desired::Paused => self.pausing(&known),
            Desired::Running => self.running(&known, &conditions, ready, now),
        };
        let message = self.with_stage(phase, message);
        let message = self.with_files(phase, &known, message);
        let message = self.with_console(phase, message);
        let booted = self.booted(phase, &reason, &message);
        let mut conditions = conditions;
        if matches!(known, Known::Dead { .. }) {
            // Whoever reads conditions alone shall see why, too.
            let dead = &mut conditions[ConditionKind::WorkloadRunning as usize].message;
            *dead = self.with_console(phase, std::mem::take(dead));
        }
        let dead = match (self.wanted.desired, &known) {
            (Desired::Running | Desired::Paused, Known::Dead { message, certain: true, .. }) => {
                Some(message.clone())
            }
            _ => None,
        };
        let steps = self.steps(&known, phase, now);
        let wake_at = self.wake_at(now);
        let memory = self.memory_status(now);
        let boot = self.stages_reached();
        let main = match &self.main {
            Some((generation, status)) if *generation == self.wanted.generation => status.clone(),
            _ => unknown("NotStarted", "it is started as soon as the sandbox is ready"),
        };
        Assessment { phase, reason, message, conditions, memory, booted, boot, main, steps, dead, wake_at }
    }

    fn deleting(&self) -> Told {
        match (&self.failure, self.call) {
            (Some(failed), _) => told(Phase::Deleting, failed.failure.reason, &failed.failure.message),
            (None, Some(Call::Stop { .. })) => told(Phase::Deleting, "StoppingWorkload", ""),
            (None, _) if self.wanted.why == Why::Expired => {
                told(Phase::Deleting, "Expired", "its time to live is over")
            }
            (None, _) => told(Phase::Deleting, "DeleteRequested", ""),
        }
    }

    fn stopping(&self) -> Told {
        let (reason, message) = match self.wanted.why {
            Why::Idle => {
                ("IdleStop", "nothing happened in it for as long as was agreed: `start` runs it again")
            }
            Why::Asked | Why::Expired => ("StopRequested", ""),
        };
        if !self.may_live() && !self.is_calling() {
            return told(Phase::Stopped, reason, message);
        }
        match &self.failure {
            Some(failed) => told(Phase::Stopping, failed.failure.reason, &failed.failure.message),
            None => told(Phase::Stopping, reason, message),
        }
    }

    fn pausing(&self, known: &Known) -> Told {
        match known {
            Known::Dead { reason, message, .. } => told(Phase::Failed, reason, message),
            Known::NotMade => told(Phase::Failed, "WorkloadGone", "there is no workload to be paused"),
            Known::Alive(WorkloadState::Paused) => told(Phase::Paused, "PauseRequested", ""),
            Known::Alive(_) | Known::Unproven => match &self.failure {
                Some(failed) => told(Phase::Pausing, failed.failure.reason, &failed.failure.message),
                None => told(Phase::Pausing, "PauseRequested", ""),
            },
        }
    }

    fn running(&self, known: &Known, conditions: &[Status; 4], ready: bool, now: Instant) -> Told {
        match known {
            Known::Dead { reason, message, .. } => return told(Phase::Failed, reason, message),
            Known::NotMade => return self.provisioning(),
            Known::Alive(WorkloadState::Creating) if !self.is_made() && self.link().is_none() => {
                return self.provisioning();
            }
            Known::Alive(WorkloadState::Paused) => return self.thawing(),
            Known::Alive(_) | Known::Unproven => {}
        }
        if ready {
            return told(Phase::Ready, "AllConditionsMet", "");
        }
        let Some(link) = self.link() else { return self.linkless(known, now) };
        let since = self.probes.as_ref().map_or(link.since, |probes| probes.at);
        let probed = now < since + timing::PROBE_LEASE;
        // A probe that was made and is not good: those that failed before those that were left out.
        for status in [ConditionStatus::False, ConditionStatus::Unknown] {
            let failing = conditions[2..].iter().find(|condition| condition.status == status);
            if let Some(failing) = failing.filter(|_| probed && self.probes.is_some()) {
                return told(Phase::Degraded, &failing.reason, &failing.message);
            }
        }
        if let Some(thawed) = self.thawed {
            return if now < thawed + self.boot_deadline {
                told(Phase::Resuming, "Probing", "the supervisor is back; waiting for its probe")
            } else {
                told(
                    Phase::Degraded,
                    "ResumeDeadline",
                    &format!("no good probe within {} s of the resume", self.boot_deadline.as_secs()),
                )
            };
        }
        if !probed {
            let message = format!("no probe for {} s", timing::PROBE_LEASE.as_secs());
            return told(Phase::Degraded, "ProbeOverdue", &message);
        }
        let phase =
            if self.proven < self.wanted.generation { Phase::Provisioning } else { Phase::Reconnecting };
        if self.probes.is_none() {
            return told(phase, "Probing", "the supervisor is attached; waiting for its first probe");
        }
        told(phase, &conditions[0].reason, &conditions[0].message)
    }

    /// There is no workload yet.
    fn provisioning(&self) -> Told {
        match (&self.failure, self.call) {
            (Some(Failed { failure, retry_at: None, .. }), _) => {
                told(Phase::Failed, failure.reason, &failure.message)
            }
            (Some(Failed { failure, .. }), _) => told(Phase::Provisioning, failure.reason, &failure.message),
            (None, None) if self.workload().is_none() => told(Phase::Pending, "Accepted", ""),
            (None, _) => self.creating(),
        }
    }

    /// The driver is at it, and may say how far it is: with pulling an image, for instance.
    fn creating(&self) -> Told {
        match self.workload() {
            Some(seen) if seen.state == WorkloadState::Creating && !seen.message.is_empty() => {
                told(Phase::Provisioning, &seen.reason, &seen.message)
            }
            _ => told(Phase::Provisioning, "CreatingWorkload", "the driver makes the workload"),
        }
    }

    /// The workload is frozen, and should run.
    fn thawing(&self) -> Told {
        match &self.failure {
            Some(Failed { failure, retry_at: None, .. }) => {
                told(Phase::Failed, "ResumeFailed", &failure.message)
            }
            Some(Failed { failure, .. }) => told(Phase::Resuming, failure.reason, &failure.message),
            None => told(Phase::Resuming, "ResumeRequested", ""),
        }
    }

    /// The workload is there, or was when it was last seen, and no session is.
    fn linkless(&self, known: &Known, now: Instant) -> Told {
        if let Some(thawed) = self.thawed {
            return if now < thawed + self.boot_deadline {
                told(
                    Phase::Resuming,
                    "WaitingForSupervisor",
                    "the workload runs on; its supervisor is not back yet",
                )
            } else {
                told(
                    Phase::Degraded,
                    "ResumeDeadline",
                    &format!(
                        "the supervisor is not back {} s after the resume",
                        self.boot_deadline.as_secs()
                    ),
                )
            };
        }
        if self.wanted.attached >= self.wanted.generation {
            return match &self.lost {
                Some(why) => told(Phase::Reconnecting, "SessionLost", why),
                None => told(Phase::Reconnecting, "GatewayRestarted", "the supervisor has not come back yet"),
            };
        }
        if matches!(known, Known::Alive(WorkloadState::Creating)) {
            return self.creating();
        }
        if self.booting.is_some_and(|since| now >= since + self.boot_deadline) {
            let seconds = self.boot_deadline.as_secs();
            let message = if self.dialled >= self.wanted.generation {
                format!(
                    "the workload has started, and its supervisor dialled and was not attached within {seconds} s"
                )
            } else {
                format!("the workload has started, and its supervisor has not dialled within {seconds} s")
            };
            return told(Phase::Failed, boot::TIMEOUT, &self.with_level(message));
        }
        match known {
            Known::Unproven => {
                told(Phase::Reconnecting, "GatewayRestarted", "the driver has not said yet what it has")
            }
            _ if self.dialled >= self.wanted.generation => told(
                Phase::Provisioning,
                "SupervisorDialled",
                "the supervisor has dialled, and is being let in",
            ),
            _ => told(
                Phase::Provisioning,
                "WaitingForSupervisor",
                &self.with_level("the workload has started".to_owned()),
            ),
        }
    }

    /// What the driver says of the running workload, such as whom its supervisor dials.
    fn with_level(&self, message: String) -> String {
        match &self.level {
            Level::Seen(seen) if self.is_wanted(seen.generation) && !seen.message.is_empty() => {
                format!("{message}; {}", seen.message)
            }
            _ => message,
        }
    }

    /// Files that went with the workload are missed by whoever starts it again.
    fn with_files(&self, phase: Phase, known: &Known, message: String) -> String {
        let over = match phase {
            Phase::Stopped => self.is_made(),
            Phase::Failed => matches!(known, Known::Dead { certain: true, .. }),
            _ => false,
        };
        match (self.wanted.ephemeral && over, message.as_str()) {
            (false, _) => message,
            (true, "") => "its files were in its memory, and are gone".to_owned(),
            (true, message) => format!("{message}; its files were in its memory, and are gone"),
        }
    }

    /// The console says why a boot failed, or a workload died.
    fn with_console(&self, phase: Phase, message: String) -> String {
        match &self.console {
            Some((generation, text))
                if phase == Phase::Failed && *generation == self.wanted.generation && !text.is_empty() =>
            {
                format!("{message}{CONSOLE_ENDS_WITH}{text}")
            }
            _ => message,
        }
    }

    fn conditions(&self, known: &Known, now: Instant) -> [Status; 4] {
        let fresh = self.probes.as_ref().filter(|probes| now < probes.at + timing::PROBE_LEASE);
        let answers = fresh.is_some_and(|probes| matches!(probes.exec, Finding::Good));
        let workload = match known {
            Known::Alive(WorkloadState::Running) => yes("Running"),
            Known::Alive(WorkloadState::Paused) => no("Paused", ""),
            Known::Alive(WorkloadState::Stopping) => {
                no("Stopping", "it was asked to end, and not by this gateway")
            }
            Known::Alive(_) => match self.workload() {
                Some(seen) if !seen.message.is_empty() => no(&seen.reason, &seen.message),
                _ => no("Creating", ""),
            },
            Known::NotMade => no("NotMade", ""),
            Known::Dead { reason, message, .. } => no(reason, message),
            // A command that ran in it says more than a driver that does not know.
            Known::Unproven if answers => yes("SupervisorAnswers"),
            Known::Unproven => unknown("DriverSilent", "the driver has not said what it has"),
        };
        let (connected, why) = match (self.link(), &self.lost) {
            (Some(_), _) => (yes("Attached"), "NotProbed"),
            (None, Some(why)) => (no("SessionLost", why), "NoSession"),
            (None, None) => (no("NotConnected", ""), "NoSession"),
        };
        let [exec, filesystem] = match (&self.probes, fresh) {
            (_, Some(probes)) => {
                [(&probes.exec, "ExecProbeFailed"), (&probes.filesystem, "FilesystemProbeFailed")]
                    .map(|(finding, reason)| finding.status(reason))
            }
            (Some(_), None) => {
                let overdue = unknown("ProbeOverdue", "the last good probe is too old to count");
                [overdue.clone(), overdue]
            }
            (None, None) => [unknown(why, ""), unknown(why, "")],
        };
        [workload, connected, exec, filesystem]
    }
}

impl Finding {
    fn status(&self, reason: &str) -> Status {
        match self {
            Self::Good => yes("ProbeSucceeded"),
            Self::Bad(message) => no(reason, message),
            Self::Missing => unknown("NotProbed", "the supervisor does not probe it"),
        }
    }
}

fn told(phase: Phase, reason: &str, message: &str) -> Told {
    (phase, reason.to_owned(), message.to_owned())
}

pub(super) fn yes(reason: &str) -> Status {
    Status { status: ConditionStatus::True, reason: reason.to_owned(), message: String::new() }
}

pub(super) fn no(reason: &str, message: &str) -> Status {
    Status { status: ConditionStatus::False, reason: reason.to_owned(), message: message.to_owned() }
}

fn unknown(reason: &str, message: &str) -> Status {
    Status { status: ConditionStatus::Unknown, reason: reason.to_owned(), message: message.to_owned() }
}
