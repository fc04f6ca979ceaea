//! What a caller can wait for: `ready`, `deleted`, `phase=Stopped`, `condition=ExecHealthy`,
//! `condition=ExecHealthy=False`.

use std::{fmt, str::FromStr};

use holdfast_wire::api::{ConditionStatus, Phase};

use super::view::{ConditionKind, View, word};
use crate::error::CallError;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    Deleted,
    Phase(Phase),
    Condition(ConditionKind, ConditionStatus),
}

/// Whether it is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    Yes,
    NotYet,
    /// Waiting longer is pointless.
    Never,
}

/// The phases that a sandbox can be in.
const PHASES: [Phase; 12] = [
    Phase::Pending,
    Phase::Provisioning,
    Phase::Ready,
    Phase::Reconnecting,
    Phase::Pausing,
    Phase::Paused,
    Phase::Resuming,
    Phase::Stopping,
    Phase::Stopped,
    Phase::Degraded,
    Phase::Failed,
    Phase::Deleting,
];

/// What a condition can be.
const STATUSES: [(&str, ConditionStatus); 3] = [
    ("True", ConditionStatus::True),
    ("False", ConditionStatus::False),
    ("Unknown", ConditionStatus::Unknown),
];

impl Until {
    pub(super) fn holds(self, view: &View) -> Waited {
        let holds = match self {
            Self::Deleted => view.gone,
            Self::Phase(phase) => view.phase == phase && !view.gone,
            Self::Condition(kind, status) => {
                let known = view.condition(kind).map_or(ConditionStatus::Unknown, |known| known.status);
                known == status && !view.gone
            }
        };
        // From these nothing comes back by itself: somebody must start it, or it is on its way out.
        let needs_sessions = match self {
            Self::Phase(Phase::Ready | Phase::Reconnecting | Phase::Degraded)
            | Self::Condition(_, ConditionStatus::True) => true,
            Self::Phase(_) | Self::Condition(..) | Self::Deleted => false,
        };
        let dead_end = match view.phase {
            Phase::Deleting => self != Self::Deleted,
            Phase::Failed | Phase::Stopped | Phase::Stopping | Phase::Paused | Phase::Pausing => {
                needs_sessions
            }
            _ => false,
        };
        let nothing_like_it =
            matches!(self, Self::Condition(ConditionKind::MainCommand, _)) && view.record.spec.main.is_none();
        match (holds, dead_end || nothing_like_it || view.gone) {
            (true, _) => Waited::Yes,
            (false, true) => Waited::Never,
            (false, false) => Waited::NotYet,
        }
    }
}

impl FromStr for Until {
    type Err = CallError;

    fn from_str(text: &str) -> Result<Self, CallError> {
        let wrong = || {
            let shown: String = text.chars().take(64).collect();
            let phases: Vec<_> = PHASES.iter().map(|phase| word(*phase)).collect();
            let kinds: Vec<_> = ConditionKind::ALL.iter().map(|kind| kind.as_str()).collect();
            CallError::invalid(
                "until",
                format!(
                    "{shown:?} cannot be waited for: use ready, deleted, phase=PHASE ({}), or condition=CONDITION ({}), with =True, =False or =Unknown behind it where it is not True",
                    phases.join(", "),
                    kinds.join(", ")
                ),
            )
        };
        match text.split_once('=') {
            None if text.eq_ignore_ascii_case("ready") => Ok(Self::Phase(Phase::Ready)),
            None if text.eq_ignore_ascii_case("deleted") => Ok(Self::Deleted),
            Some(("phase", name)) => {
                let phase = PHASES.into_iter().find(|phase| word(*phase).eq_ignore_ascii_case(name));
                phase.map(Self::Phase).ok_or_else(wrong)
            }
            Some(("condition", name)) => {
                let (name, status) = match name.split_once('=') {
                    None => (name, ConditionStatus::True),
                    Some((name, status)) => {
                        let known = STATUSES.into_iter().find(|(word, _)| word.eq_ignore_ascii_case(status));
                        (name, known.ok_or_else(wrong)?.1)
                    }
                };
                let kind =
                    ConditionKind::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(name));
                kind.map(|kind| Self::Condition(kind, status)).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deleted => f.write_str("deleted"),
            Self::Phase(phase) => write!(f, "phase={}", word(*phase)),
            Self::Condition(kind, status) => {
                let status = STATUSES.into_iter().find(|(_, known)| known == status);
                match status {
                    Some((_, ConditionStatus::True)) | None => write!(f, "condition={}", kind.as_str()),
                    Some((word, _)) => write!(f, "condition={}={word}", kind.as_str()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_waited_for_is_read_back() {
        for text in [
            "deleted",
            "phase=Stopped",
            "condition=ExecHealthy",
            "phase=Ready",
            "condition=ExecHealthy=False",
            "condition=MainCommand=False",
        ] {
            assert_eq!(text.parse::<Until>().unwrap().to_string(), text);
        }
        assert_eq!("ready".parse::<Until>().unwrap(), Until::Phase(Phase::Ready));
        assert_eq!("phase=stopped".parse::<Until>().unwrap(), Until::Phase(Phase::Stopped));
    }

    #[test]
    fn what_cannot_be_waited_for_says_what_can() {
        for text in [
            "",
            "rady",
            "phase=Gone",
            "condition=Ready",
            "phase",
            "=",
            "Phase=Ready",
            "condition=ExecHealthy=No",
        ] {
            let error = text.parse::<Until>().unwrap_err().message;
            assert!(error.contains("use ready, deleted, phase=") && error.contains("ExecHealthy"), "{error}");
        }
    }
}
