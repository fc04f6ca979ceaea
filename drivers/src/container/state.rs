//! What follows from a record and from what the engine shows: pure, so that every case can be tested.
//!
//! ```text
//!   nothing ──▶ Created ──▶ Running ⇄ Paused
//!                             │ asked, ended ──▶ Stopped
//!                             │ ended by itself ──▶ Exited
//!                             └ removed behind our back ──▶ Gone
//!   an older generation, whatever it does ──▶ replaced; a newer one ──▶ refused
//! ```

use holdfast_wire::ids::Generation;
use jiff::Timestamp;

use super::record::Record;
use crate::{BootStage, Exit, OOM_KILLED, Observed, WorkloadState};

/// The signal that the kernel sends where memory runs out.
const KILL: i32 = 9;

/// What the engine shows of a workload's container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// There is none.
    Absent,
    /// Made and not started.
    Created,
    /// Its processes run.
    Running { pid: Option<u32> },
    /// Frozen.
    Paused { pid: Option<u32> },
    /// Its first process has ended.
    Ended(Ended),
    /// It is being removed.
    Removing,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) code: i64,
    /// The engine says that memory ran out.
    pub(super) oom: bool,
    /// The engine's own words, where it has some.
    pub(super) error: String,
    pub(super) at: Timestamp,
}

/// What `ensure` has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Remove what is there of this sandbox, then make the workload.
    Create,
    /// It was made already, whatever became of it.
    Adopt,
    /// A newer one is there.
    Refuse,
}

/// What to do when `asked` is wanted.
pub(super) fn plan(there: Option<&Record>, seen: &Seen, asked: Generation) -> Plan {
    let Some(there) = there else { return Plan::Create };
    if there.generation > asked {
        return Plan::Refuse;
    }
    if there.generation < asked {
        return Plan::Create;
    }
    match seen {
        Seen::Running { .. } | Seen::Paused { .. } | Seen::Ended(_) | Seen::Removing => Plan::Adopt,
        // Never started, so that making it now makes it once.
        Seen::Created => Plan::Create,
        Seen::Absent if there.started => Plan::Adopt,
        Seen::Absent => Plan::Create,
    }
}

/// The level that a record and its container amount to; `None`: there is nothing of it any more.
pub(super) fn level(record: &Record, seen: &Seen) -> Option<Observed> {
    let dials = || match record.dials.as_slice() {
        [] => String::new(),
        dials => format!("its supervisor dials {}", dials.join(", then ")),
    };
    let (state, reason, message, at) = match seen {
        // Nothing was made, and whoever asked was told why.
        Seen::Absent | Seen::Created if record.failed.is_some() => return None,
        Seen::Absent if record.started => return None,
        Seen::Absent | Seen::Created => (WorkloadState::Creating, "Creating", String::new(), record.since),
        Seen::Removing => (WorkloadState::Stopping, "Removing", String::new(), record.since),
        Seen::Running { .. } if record.stop_asked => {
            (WorkloadState::Stopping, "StopAsked", String::new(), record.since)
        }
        Seen::Running { .. } if record.pause_asked => {
            let message = "it was paused, and somebody outside of Holdfast let it run on".to_owned();
            (WorkloadState::Running, "ThawedOutside", message, record.since)
        }
        Seen::Running { .. } => (WorkloadState::Running, "Started", dials(), record.since),
        Seen::Paused { .. } if record.pause_asked => {
            (WorkloadState::Paused, "Paused", String::new(), record.since)
        }
        Seen::Paused { .. } => {
            let message = "somebody outside of Holdfast paused the container".to_owned();
            (WorkloadState::Paused, "PausedOutside", message, record.since)
        }
        Seen::Ended(ended) => ended_level(record, ended),
    };
    let mut boot = record.boot.clone();
    if matches!(seen, Seen::Running { .. } | Seen::Paused { .. } | Seen::Ended(_)) {
        boot.reach_at(BootStage::Started, record.since);
    }
    let pid = match seen {
        Seen::Running { pid } | Seen::Paused { pid } => *pid,
        _ => None,
    };
    Some(Observed {
        sandbox: record.sandbox,
        generation: record.generation,
        state,
        reason: reason.to_owned(),
        message,
        boot,
        at,
        pid,
        handle: record.container.as_deref().map(handle),
        main: record.main.clone(),
    })
}

/// As the engines' own tools show a container.
pub(super) fn handle(container: &str) -> String {
    let short: String = container.chars().take(12).collect();
    format!("container {short}")
}

type Words = (WorkloadState, &'static str, String, Timestamp);

fn ended_level(record: &Record, ended: &Ended) -> Words {
    let exit = exit_of(ended.code);
    let with_error = |text: String| match ended.error.as_str() {
        "" => text,
        error => format!("{text}: {error}"),
    };
    if record.stop_asked {
        return (WorkloadState::Stopped, "Stopped", format!("the supervisor ended by {exit}"), ended.at);
    }
    let (reason, message) = match exit {
        // One that ended otherwise may have lost a command for memory before.
        Exit::Signal(KILL) if ended.oom => (OOM_KILLED, "the container ran out of memory".to_owned()),
        Exit::Signal(_) => ("KilledBySignal", format!("the supervisor ended by {exit}")),
        _ => ("SupervisorExited", format!("the supervisor ended by {exit}")),
    };
    (WorkloadState::Exited(exit), reason, with_error(message), ended.at)
}

/// Whether SIGKILL ended it.
pub(super) fn is_killed(ended: &Ended) -> bool {
    exit_of(ended.code) == Exit::Signal(KILL)
}

/// Engines say a signal as shells do. A supervisor by itself never exits with more than 128.
fn exit_of(code: i64) -> Exit {
    match i32::try_from(code) {
        Ok(code @ 129..=192) => Exit::Signal(code - 128),
        Ok(code) => Exit::Code(code),
        Err(_) => Exit::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use holdfast_wire::ids::SandboxId;
    use proptest::prelude::*;

    use super::*;

    fn record(generation: u64, started: bool) -> Record {
        Record { started, ..Record::new(SandboxId::random(), Generation(generation), "box") }
    }

    fn ended(code: i64) -> Seen {
        Seen::Ended(Ended { code, oom: false, error: String::new(), at: Timestamp::UNIX_EPOCH })
    }

    fn seen() -> impl Strategy<Value = Seen> {
        prop_oneof![
            Just(Seen::Absent),
            Just(Seen::Created),
            Just(Seen::Running { pid: Some(7) }),
            Just(Seen::Paused { pid: Some(7) }),
            Just(Seen::Removing),
            (0_i64..256).prop_map(ended),
        ]
    }

    proptest! {
        #[test]
        fn a_generation_is_made_once_and_never_after_a_newer_one(
            there in 1_u64..5, asked in 1_u64..5, started: bool, seen in seen()
        ) {
            let ran = started || !matches!(seen, Seen::Absent | Seen::Created);
            let created = matches!(seen, Seen::Created);
            let plan = plan(Some(&record(there, started)), &seen, Generation(asked));
            prop_assert_eq!(plan == Plan::Refuse, there > asked);
            prop_assert_eq!(plan == Plan::Adopt, there == asked && ran && !created);
        }

        #[test]
        fn a_level_says_what_the_engine_shows(started: bool, asked: bool, paused: bool, seen in seen()) {
            let record = Record { stop_asked: asked, pause_asked: paused, ..record(1, started) };
            let Some(level) = level(&record, &seen) else {
                prop_assert!(started && seen == Seen::Absent);
                return Ok(());
            };
            let alive = !matches!(seen, Seen::Ended(_));
            prop_assert_eq!(level.state.is_alive(), alive);
            prop_assert!(!level.reason.contains(' ') && !level.reason.is_empty());
            prop_assert_eq!(level.state == WorkloadState::Stopped, asked && !alive);
            prop_assert_eq!(level.state == WorkloadState::Paused, matches!(seen, Seen::Paused { .. }));
        }
    }

    #[test]
    fn an_end_says_how() {
        let say = |seen: &Seen| {
            let level = level(&record(1, true), seen).unwrap();
            (level.state, level.reason)
        };
        use WorkloadState::Exited;
        assert_eq!(say(&ended(1)), (Exited(Exit::Code(1)), "SupervisorExited".into()));
        assert_eq!(say(&ended(137)), (Exited(Exit::Signal(9)), "KilledBySignal".into()));
        let oom = Ended { code: 137, oom: true, error: String::new(), at: Timestamp::UNIX_EPOCH };
        assert_eq!(say(&Seen::Ended(oom)), (Exited(Exit::Signal(9)), "OOMKilled".into()));
    }

    #[test]
    fn what_could_not_be_made_is_no_workload_and_may_be_asked_for_again() {
        let record = Record { failed: Some("no such image".into()), ..record(1, false) };
        assert_eq!(level(&record, &Seen::Absent), None);
        assert_eq!(plan(Some(&record), &Seen::Absent, Generation(1)), Plan::Create);
    }
}
