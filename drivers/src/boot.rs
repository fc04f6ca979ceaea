//! How a workload comes up, stage by stage: one list for all drivers and for the gateway.
//!
//! ```text
//!   local       started                                ┐
//!   container   image ─▶ created ─▶ started             ├─▶ dialled ─▶ attached ─▶ probed
//!   vm          spec ─▶ network ─▶ kernel ─▶ init        ┘      the gateway sees these by itself
//! ```
//!
//! A driver says in its capabilities which of them it goes through, and in each level which it has reached, and when.
//! All that were reached are told, not the last alone: a level may be skipped, a stage may not.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One stage. The order is that of every driver's boot: each has some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootStage {
    /// The workload's keeper has understood what it shall make.
    Spec,
    /// The image is there.
    Image,
    /// The container was made.
    Created,
    /// The network is there, and what guards it.
    Network,
    /// The first process was started.
    Started,
    /// The machine was started: its kernel boots.
    Kernel,
    /// The supervisor is the machine's first process, with its file systems and its network.
    Init,
    /// The supervisor has dialled the gateway.
    Dialled,
    /// ... and was let in.
    Attached,
    /// A command was run and a file was written: it works.
    Probed,
}

impl BootStage {
    /// The stages after a driver's own.
    pub const OF_THE_SESSION: [Self; 3] = [Self::Dialled, Self::Attached, Self::Probed];

    /// As a condition's reason.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Spec => "Spec",
            Self::Image => "Image",
            Self::Created => "Created",
            Self::Network => "Network",
            Self::Started => "Started",
            Self::Kernel => "Kernel",
            Self::Init => "Init",
            Self::Dialled => "Dialled",
            Self::Attached => "Attached",
            Self::Probed => "Probed",
        }
    }
}

impl fmt::Display for BootStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason().to_ascii_lowercase())
    }
}

/// A stage that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Which.
    pub stage: BootStage,
    /// When, by this machine's clock. For showing, not for comparing.
    pub at: Timestamp,
}

/// How far a boot has come: the stages that were reached, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Boot(Vec<Reached>);

impl Boot {
    /// A stage is reached now. One that was reached before, or that comes before the last one, is not taken again.
    pub fn reach(&mut self, stage: BootStage) {
        self.reach_at(stage, Timestamp::now());
    }

    /// A stage was reached then.
    pub fn reach_at(&mut self, stage: BootStage, at: Timestamp) {
        if self.last().is_none_or(|last| last < stage) {
            self.0.push(Reached { stage, at });
        }
    }

    /// The last stage that was reached.
    #[must_use]
    pub fn last(&self) -> Option<BootStage> {
        self.0.last().map(|reached| reached.stage)
    }

    /// Whether this stage was reached, or a later one.
    #[must_use]
    pub fn is_past(&self, stage: BootStage) -> bool {
        self.last() >= Some(stage)
    }

    /// When a stage was reached.
    #[must_use]
    pub fn at(&self, stage: BootStage) -> Option<Timestamp> {
        self.0.iter().find(|reached| reached.stage == stage).map(|reached| reached.at)
    }

    /// The stages, without their times.
    pub fn stages(&self) -> impl Iterator<Item = BootStage> + '_ {
        self.0.iter().map(|reached| reached.stage)
    }

    /// Whether nothing was reached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_only_goes_forward() {
        let mut boot = Boot::default();
        assert!(!boot.is_past(BootStage::Spec));
        for stage in [BootStage::Spec, BootStage::Kernel, BootStage::Network, BootStage::Kernel] {
            boot.reach(stage);
        }
        assert_eq!(boot.stages().collect::<Vec<_>>(), [BootStage::Spec, BootStage::Kernel]);
        assert!(boot.is_past(BootStage::Network) && !boot.is_past(BootStage::Init));
        assert_eq!(boot.at(BootStage::Network), None);
    }

    #[test]
    fn a_boot_is_stored_as_a_list() {
        let mut boot = Boot::default();
        boot.reach_at(BootStage::Init, Timestamp::UNIX_EPOCH);
        let text = serde_json::to_string(&boot).unwrap();
        assert_eq!(text, r#"[{"stage":"init","at":"1970-01-01T00:00:00Z"}]"#);
        assert_eq!(serde_json::from_str::<Boot>(&text).unwrap(), boot);
    }
}
