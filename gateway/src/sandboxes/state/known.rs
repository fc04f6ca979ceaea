//! What is known of the wanted workload, from the driver's word and the supervisor's signs of life.

use holdfast_drivers::OOM_KILLED;

use super::*;

/// What is known of the wanted workload.
pub(super) enum Known {
    /// It was made, and nobody has said yet how it is.
    Unproven,
    NotMade,
    Alive(WorkloadState),
    Dead {
        reason: String,
        message: String,
        certain: bool,
    },
}

impl State {
    pub(super) fn known(&self, now: Instant) -> Known {
        let made = self.is_made();
        let gone = |message: &str| Known::Dead {
            reason: "WorkloadGone".to_owned(),
            message: message.to_owned(),
            certain: true,
        };
        match &self.level {
            Level::Seen(observed) if self.is_wanted(observed.generation) => {
                if observed.state.is_alive() {
                    return Known::Alive(observed.state);
                }
                let refuted = match observed.state {
                    // It cannot tell: a session can.
                    WorkloadState::Failed => self.link().is_some(),
                    _ => self.is_refuted(),
                };
                if refuted {
                    return Known::Unproven;
                }
                match observed.state {
                    WorkloadState::Gone if !made => Known::NotMade,
                    WorkloadState::Gone => gone("the driver no longer has the workload"),
                    _ if self.was_asked_to_end(observed.generation) => Known::Dead {
                        reason: "Stopped".to_owned(),
                        message: "the workload was stopped".to_owned(),
                        certain: true,
                    },
                    _ => {
                        let certain =
                            observed.state != WorkloadState::Failed || now >= self.level_at + UNCERTAIN;
                        let (reason, message) = death(observed);
                        Known::Dead { reason, message, certain }
                    }
                }
            }
            Level::Seen(_) | Level::Absent { .. } | Level::Unknown if !made => Known::NotMade,
            Level::Unknown => Known::Unproven,
            Level::Seen(_) | Level::Absent { .. } if self.is_refuted() => Known::Unproven,
            Level::Seen(_) | Level::Absent { .. } => gone("the driver no longer has the workload"),
        }
    }

    /// Whether the driver is known to have made the wanted workload.
    pub(super) fn is_made(&self) -> bool {
        self.wanted.made >= self.wanted.generation
    }

    /// Whether its end was this gateway's doing.
    fn was_asked_to_end(&self, generation: Generation) -> bool {
        generation <= self.ended || matches!(self.wanted.desired, Desired::Stopped | Desired::Deleted)
    }

    /// Whether the supervisor gave a sign of life after the driver saw it dead.
    fn is_refuted(&self) -> bool {
        let attached = self.link().is_some_and(|link| link.since > self.level_at);
        attached || self.probes.as_ref().is_some_and(|probes| probes.at > self.level_at + DOUBT)
    }

    pub(super) fn is_wanted(&self, generation: Generation) -> bool {
        // A driver that cannot tell the generation any more has one workload, and it is this.
        generation == self.wanted.generation || generation == Generation(0)
    }

    /// Whether a workload of any generation may be alive.
    pub(super) fn may_live(&self) -> bool {
        match &self.level {
            Level::Seen(observed) => {
                let generation = if observed.generation == Generation(0) {
                    self.wanted.generation
                } else {
                    observed.generation
                };
                observed.state.is_alive() && generation > self.ended
            }
            Level::Unknown => self.wanted.made > self.ended,
            Level::Absent { .. } => false,
        }
    }

    /// The session, if it is the wanted workload's.
    pub(super) fn link(&self) -> Option<Link> {
        self.link.filter(|link| link.generation >= self.wanted.generation)
    }
}

/// Why a workload that should run does not.
fn death(observed: &Observed) -> (String, String) {
    if observed.reason == super::boot::TIMEOUT {
        return (observed.reason.clone(), observed.message.clone());
    }
    let (reason, what) = match observed.state {
        WorkloadState::Exited(exit) if observed.reason == OOM_KILLED => {
            (OOM_KILLED, format!("the workload was ended by {exit}"))
        }
        WorkloadState::Exited(exit @ Exit::Code(_)) => {
            ("WorkloadExited", format!("the workload ended with {exit}"))
        }
        WorkloadState::Exited(exit @ Exit::Signal(_)) => {
            ("WorkloadKilled", format!("the workload was ended by {exit}"))
        }
        WorkloadState::Exited(exit) => ("WorkloadExited", format!("the workload ended with {exit}")),
        WorkloadState::Stopped => {
            ("WorkloadStopped", "the workload was stopped, and not by this gateway".to_owned())
        }
        _ => ("WorkloadFailed", "the driver cannot tell what became of the workload".to_owned()),
    };
    let message = match (observed.reason.as_str(), observed.message.as_str()) {
        (_, "") => what,
        (OOM_KILLED, message) => format!("{what}: {message}"),
        (reason, message) => format!("{what} ({reason}: {message})"),
    };
    (reason.to_owned(), message)
}
