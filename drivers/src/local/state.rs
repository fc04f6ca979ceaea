//! What follows from a record and from what the system shows: pure, so that every case can be tested.
//!
//! ```text
//!                   spawned                    asked, ended
//!   Starting ─────────────────▶ Running ──────────────────────▶ Ended(asked) = Stopped
//!      │                          │ ▲
//!      │ could not                │ │ a newer generation         ended by itself
//!      ▼                          │ └──── from any ────┐       ┌─▶ Ended = Exited
//!    Failed ◀── asked again ──▶ Starting               └───────┘
//! ```

use holdfast_wire::ids::Generation;
use jiff::Timestamp;

use super::{
    process::Seen,
    record::{Ended, Record, Running, Stage},
};
use crate::{Boot, BootStage, Exit, Observed, WorkloadState};

/// What `ensure` has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Make the workload; nothing of it runs.
    Create,
    /// It is there.
    Adopt,
    /// End the older one, then make the new one.
    Replace,
    /// A newer one is there.
    Refuse,
}

/// What to do when `asked` is wanted and `there` is what there is.
pub(super) fn plan(there: Option<&Record>, asked: Generation) -> Plan {
    let Some(there) = there else { return Plan::Create };
    match (&there.stage, there.generation) {
        (_, newer) if newer > asked => Plan::Refuse,
        // Nothing was made of this generation, so that making it now makes it once.
        (Stage::Starting { .. } | Stage::Failed { .. }, _) => Plan::Create,
        (_, same) if same == asked => Plan::Adopt,
        (Stage::Running(_), _) => Plan::Replace,
        (Stage::Ended(_), _) => Plan::Create,
    }
}

/// The level that a record and its process amount to.
pub(super) fn level(record: &Record, seen: Seen) -> Observed {
    let (state, reason, message, at) = match &record.stage {
        Stage::Starting { since } => (WorkloadState::Creating, "Creating", String::new(), *since),
        Stage::Running(running) => running_level(running, seen),
        Stage::Ended(ended) => ended_level(ended),
        Stage::Failed { message, at } => (WorkloadState::Failed, "StartFailed", message.clone(), *at),
    };
    let pid = match &record.stage {
        Stage::Running(running) => Some(running.process.pid),
        _ => None,
    };
    let mut boot = Boot::default();
    if let Stage::Running(running) = &record.stage {
        boot.reach_at(BootStage::Started, running.since);
    }
    Observed {
        sandbox: record.sandbox,
        generation: record.generation,
        state,
        reason: reason.to_owned(),
        message,
        boot,
        at,
        pid,
        handle: pid.map(|pid| format!("pid {pid}")),
        main: None,
    }
}

type Words = (WorkloadState, &'static str, String, Timestamp);

fn running_level(running: &Running, seen: Seen) -> Words {
    let now = Timestamp::now();
    match (running, seen) {
        (Running { stop_asked: true, .. }, _) => (WorkloadState::Stopping, "StopAsked", String::new(), now),
        (Running { paused: Some(_), .. }, Seen::Runs) => {
            let message = "it was paused, and somebody outside of Holdfast let it run on";
            (WorkloadState::Running, "ThawedOutside", message.to_owned(), now)
        }
        (Running { paused: Some(_), .. }, _) => (WorkloadState::Paused, "Paused", String::new(), now),
        (_, Seen::Stopped) => {
            let message = "somebody outside of Holdfast stopped the supervisor by a signal";
            (WorkloadState::Paused, "StoppedOutside", message.to_owned(), now)
        }
        _ => (WorkloadState::Running, "Started", String::new(), running.since),
    }
}

fn ended_level(ended: &Ended) -> Words {
    if ended.asked {
        return (
            WorkloadState::Stopped,
            "Stopped",
            format!("the supervisor ended by {}", ended.exit),
            ended.at,
        );
    }
    let (reason, message) = match ended.exit {
        _ if ended.rebooted => ("MachineRestarted", "the machine was started anew".to_owned()),
        Exit::Code(_) => ("SupervisorExited", format!("the supervisor ended by {}", ended.exit)),
        Exit::Signal(_) => ("KilledBySignal", format!("the supervisor ended by {}", ended.exit)),
        Exit::Unknown => {
            ("ExitUnseen", "the supervisor ended while it was no child of this gateway".to_owned())
        }
    };
    (WorkloadState::Exited(ended.exit), reason, message, ended.at)
}

#[cfg(test)]
mod tests {
    use holdfast_wire::ids::SandboxId;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        WorkloadSpec,
        conformance::sample_spec,
        local::{process::ProcessId, record::Spared},
    };

    fn record(generation: u64, stage: Stage) -> Record {
        let spec = WorkloadSpec { generation: Generation(generation), ..sample_spec(SandboxId::random()) };
        let mut record = Record::starting(&spec, "/data/x".into());
        record.stage = stage;
        record
    }

    fn running(stop_asked: bool, paused: bool) -> Stage {
        Stage::Running(Running {
            process: ProcessId { pid: 4711, started: 1, boot: "b".into() },
            namespaces: true,
            since: Timestamp::UNIX_EPOCH,
            stop_asked,
            paused: paused.then(Spared::default),
        })
    }

    fn ended(asked: bool, exit: Exit) -> Stage {
        Stage::Ended(Ended { exit, asked, rebooted: false, at: Timestamp::UNIX_EPOCH })
    }

    fn stages() -> impl Strategy<Value = Stage> {
        prop_oneof![
            Just(Stage::Starting { since: Timestamp::UNIX_EPOCH }),
            (any::<bool>(), any::<bool>()).prop_map(|(asked, paused)| running(asked, paused)),
            any::<bool>().prop_map(|asked| ended(asked, Exit::Code(0))),
            Just(Stage::Failed { message: "no".into(), at: Timestamp::UNIX_EPOCH }),
        ]
    }

    proptest! {
        #[test]
        fn a_generation_is_made_once_and_never_after_a_newer_one(there in 1_u64..5, asked in 1_u64..5, stage in stages()) {
            let was_made = matches!(stage, Stage::Running(_) | Stage::Ended(_));
            let runs = matches!(stage, Stage::Running(_));
            let plan = plan(Some(&record(there, stage)), Generation(asked));
            prop_assert_eq!(plan == Plan::Refuse, there > asked);
            prop_assert_eq!(plan == Plan::Adopt, there == asked && was_made);
            prop_assert_eq!(plan == Plan::Replace, there < asked && runs);
        }

        #[test]
        fn a_pid_is_told_of_a_running_workload_alone(stage in stages()) {
            let runs = matches!(stage, Stage::Running(_));
            let level = level(&record(1, stage), Seen::Runs);
            prop_assert_eq!(level.pid.is_some(), runs);
            prop_assert!(!level.reason.contains(' '));
        }
    }

    #[test]
    fn what_the_system_shows_wins_over_what_was_asked() {
        let state = |stage, seen| {
            let level = level(&record(1, stage), seen);
            (level.state, level.reason)
        };
        use WorkloadState::{Paused, Running};
        assert_eq!(state(running(false, false), Seen::Runs), (Running, "Started".into()));
        assert_eq!(state(running(false, true), Seen::Stopped), (Paused, "Paused".into()));
        assert_eq!(state(running(false, true), Seen::Runs), (Running, "ThawedOutside".into()));
        assert_eq!(state(running(false, false), Seen::Stopped), (Paused, "StoppedOutside".into()));
    }

    #[test]
    fn an_end_that_was_asked_for_is_a_stop_however_it_came() {
        for exit in [Exit::Code(0), Exit::Signal(9), Exit::Unknown] {
            assert_eq!(level(&record(1, ended(true, exit)), Seen::Absent).state, WorkloadState::Stopped);
            assert_eq!(
                level(&record(1, ended(false, exit)), Seen::Absent).state,
                WorkloadState::Exited(exit)
            );
        }
    }
}
