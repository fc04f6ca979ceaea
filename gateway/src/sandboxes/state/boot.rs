//! How far the wanted workload's boot has come: the driver's stages, then those that this gateway sees by itself.
//!
//! A stage counts as reached when a later one is: a supervisor that dials has come up, whatever the driver has told by
//! then. The condition `Booted` has the last one as its reason; a boot that fails names the one that it did not reach.

use super::*;

/// A boot took longer than it may, whoever kept the time.
pub(super) const TIMEOUT: &str = "BootTimeout";

impl State {
    /// All stages, with how many of them were reached.
    fn stages(&self) -> (impl Iterator<Item = BootStage> + '_, usize) {
        let generation = self.wanted.generation;
        let all = || self.can.boot.iter().copied().chain(BootStage::OF_THE_SESSION);
        let last = if self.proven >= generation {
            Some(BootStage::Probed)
        } else if self.link().is_some() || self.wanted.attached >= generation {
            Some(BootStage::Attached)
        } else if self.dialled >= generation {
            Some(BootStage::Dialled)
        } else {
            self.boot.last()
        };
        (all(), all().filter(|stage| Some(*stage) <= last).count())
    }

    pub(super) fn stages_reached(&self) -> Vec<Stage> {
        let (all, reached) = self.stages();
        let mut before = None;
        all.take(reached)
            .map(|stage| {
                let at = self.boot.at(stage);
                let took = at.zip(before).and_then(|(at, before)| Duration::try_from(at - before).ok());
                before = at;
                Stage { stage, took }
            })
            .collect()
    }

    /// The stage that the boot is at: reached last, and next. The next is absent once it is over.
    fn boot_stage(&self) -> (Option<BootStage>, Option<BootStage>) {
        let (mut all, reached) = self.stages();
        let last = reached.checked_sub(1).and_then(|last| all.nth(last));
        (last, all.next())
    }

    /// A failed boot names its stage. What is no boot is told as it is.
    pub(super) fn with_stage(&self, phase: Phase, message: String) -> String {
        match self.boot_stage() {
            (_, Some(failed)) if phase == Phase::Failed && !self.wanted.foreign => {
                format!("at stage {failed}: {message}")
            }
            _ => message,
        }
    }

    /// The condition, from what is told of the phase.
    pub(super) fn booted(&self, phase: Phase, reason: &str, message: &str) -> Status {
        let (last, next) = self.boot_stage();
        let Some(next) = next else { return phase::yes(BootStage::Probed.reason()) };
        let last = last.map_or("NotStarted", BootStage::reason);
        let message = match (phase, &self.failure) {
            (Phase::Failed, _) => format!("{reason} {message}"),
            (Phase::Pending | Phase::Provisioning, Some(Failed { failure, .. })) => {
                format!("{} at stage {next}: {}", failure.reason, failure.message)
            }
            (Phase::Pending | Phase::Provisioning, None) => {
                let within = self.boot_deadline.as_secs();
                format!("next is {next}; {within} s are allowed from the start of the workload")
            }
            _ => String::new(),
        };
        phase::no(last, &message)
    }
}
