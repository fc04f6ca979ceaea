//! What a sandbox's main command is in one workload, and whether to start it. Pure.
//!
//! ```text
//!   the exec's record ───────────────┐
//!   the mark in the sandbox's record ┼──▶ look ──▶ the condition MainCommand, and: start it or not
//!   ready? the command, if known ────┘
//! ```
//!
//! A workload's main command has one id ([`ExecId::of_main`](holdfast_wire::ids::ExecId::of_main)), and is taken into
//! the store once: the mark stays when the exec is forgotten. So it is started from a look alone, by whichever gateway
//! looks, and never twice in one workload.

use holdfast_wire::{
    api::{ConditionStatus, ExecState, LostReason, outcome::Kind},
    ids::Generation,
    limits,
};

use crate::{sandboxes::Status, store::ExecRecord};

/// As much of an outcome's words as a condition has.
const MAX_MESSAGE: usize = 512;

/// What is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// The workload that is wanted.
    pub(super) generation: Generation,
    /// The newest workload whose main command was taken in.
    pub(super) noted: Generation,
    /// The exec, if the store has it.
    pub(super) record: Option<&'a ExecRecord>,
    /// The sandbox is Ready in this workload.
    pub(super) ready: bool,
    /// What there is to run is known.
    pub(super) known: bool,
}

/// What follows: the condition, and whether to start it.
pub(super) fn look(facts: &Facts<'_>) -> (Status, bool) {
    let starting = status(ConditionStatus::Unknown, "Starting", "");
    match facts.record {
        Some(record) => match (record.state(), record.outcome().and_then(|outcome| outcome.kind.as_ref())) {
            (ExecState::Ended, kind) => (ended(kind), false),
            (ExecState::Running, _) => (status(ConditionStatus::True, "Running", &record.command), false),
            // Another gateway's start, or one that was not answered: it is repeated, and is the same.
            _ => (starting, facts.ready && facts.known),
        },
        None if facts.noted >= facts.generation => {
            let message =
                "it was started in this workload, and has ended so long ago that it is not known how";
            (status(ConditionStatus::False, "Forgotten", message), false)
        }
        None if !facts.ready => {
            let message = "it is started as soon as the sandbox is ready";
            (status(ConditionStatus::Unknown, "NotStarted", message), false)
        }
        None if !facts.known => {
            let message = "the driver does not say what the image's command is: stop and start the sandbox";
            (status(ConditionStatus::Unknown, "CommandUnknown", message), false)
        }
        None => (starting, true),
    }
}

fn ended(kind: Option<&Kind>) -> Status {
    let (reason, message) = match kind {
        Some(Kind::Exited(exited)) => ("Exited", format!("exit code {}", exited.code)),
        Some(Kind::Signaled(signaled)) if signaled.oom => {
            ("Signaled", format!("signal {}: out of memory", signaled.signal))
        }
        Some(Kind::Signaled(signaled)) => ("Signaled", format!("signal {}", signaled.signal)),
        Some(Kind::TimedOut(_)) => ("TimedOut", String::new()),
        Some(Kind::Cancelled(cancelled)) => ("Cancelled", format!("by {}", cancelled.by)),
        Some(Kind::StartFailed(failed)) if failed.errno != 0 => {
            ("StartFailed", format!("{} (errno {})", failed.message, failed.errno))
        }
        Some(Kind::StartFailed(failed)) => ("StartFailed", failed.message.clone()),
        Some(Kind::Lost(lost)) if lost.reason() == LostReason::SandboxStopped => {
            ("SandboxStopped", lost.message.clone())
        }
        Some(Kind::Lost(lost)) => ("Lost", lost.message.clone()),
        None => ("Ended", String::new()),
    };
    status(ConditionStatus::False, reason, &message)
}

fn status(status: ConditionStatus, reason: &str, message: &str) -> Status {
    let message = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Status { status, reason: reason.to_owned(), message: limits::cut(message, MAX_MESSAGE) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use holdfast_wire::{
        api::{Exited, Lost, OnDisconnect, StartFailed},
        ids::{ExecId, SandboxId},
        timing,
    };
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::execs::state;

    fn record(started: bool, end: Option<Kind>) -> ExecRecord {
        let now = Timestamp::UNIX_EPOCH;
        ExecRecord {
            exec: ExecId::random(),
            sandbox: SandboxId::random(),
            spec_digest: bytes::Bytes::new(),
            command: "serve --all".to_owned(),
            tty: false,
            on_disconnect: OnDisconnect::Keep,
            retain_for: timing::RETAIN_FOR,
            accepted_at: now,
            start_deadline_at: now,
            sent: None,
            pid: 0,
            started_at: started.then_some(now),
            finished: end.map(|kind| state::ended(kind, now)),
        }
    }

    fn facts(record: Option<&ExecRecord>) -> Facts<'_> {
        Facts { generation: Generation(2), noted: Generation(1), record, ready: true, known: true }
    }

    fn told(facts: &Facts<'_>) -> (ConditionStatus, String, String) {
        let (status, _) = look(facts);
        (status.status, status.reason, status.message)
    }

    #[test]
    fn it_starts_once_the_sandbox_is_ready_and_the_command_known() {
        assert!(look(&facts(None)).1);
        assert!(!look(&Facts { ready: false, ..facts(None) }).1);
        let unknown = Facts { known: false, ..facts(None) };
        assert_eq!((look(&unknown).1, told(&unknown).1.as_str()), (false, "CommandUnknown"));
    }

    #[test]
    fn what_was_forgotten_is_not_started_again() {
        let forgotten = Facts { noted: Generation(2), ..facts(None) };
        assert_eq!((look(&forgotten).1, told(&forgotten).1.as_str()), (false, "Forgotten"));
    }

    #[test]
    fn its_end_says_how() {
        for (kind, reason, message) in [
            (Kind::Exited(Exited { code: 7 }), "Exited", "exit code 7"),
            (
                Kind::StartFailed(StartFailed {
                    errno: 2,
                    message: "no\nsuch".into(),
                    ..StartFailed::default()
                }),
                "StartFailed",
                "no such (errno 2)",
            ),
            (
                Kind::Lost(Lost { reason: LostReason::SandboxStopped.into(), message: "stopped".into() }),
                "SandboxStopped",
                "stopped",
            ),
        ] {
            let ended = record(true, Some(kind));
            let said = (ConditionStatus::False, reason.to_owned(), message.to_owned());
            assert_eq!(told(&facts(Some(&ended))), said);
        }
        let runs = record(true, None);
        assert_eq!(told(&facts(Some(&runs))).0, ConditionStatus::True);
    }

    /// One thing that happens to a sandbox, or to its gateway.
    #[derive(Clone, Debug)]
    enum Happens {
        Ready(bool),
        Known(bool),
        /// Stopped and started: a new workload.
        Anew,
        /// Somebody looks; the admission is stored, and what follows is lost where the gateway dies there.
        Look {
            dies: bool,
        },
        Starts,
        Ends,
        /// The ended exec's time to be remembered is over.
        Forgotten,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            any::<bool>().prop_map(Happens::Ready),
            any::<bool>().prop_map(Happens::Known),
            Just(Happens::Anew),
            any::<bool>().prop_map(|dies| Happens::Look { dies }),
            any::<bool>().prop_map(|dies| Happens::Look { dies }),
            Just(Happens::Starts),
            Just(Happens::Ends),
            Just(Happens::Forgotten),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, with gateways that die between any two steps: a workload's command is
        /// begun once at most, and only in a workload that was ready; what is shown is what is stored.
        #[test]
        fn no_history_begins_it_twice_in_one_workload(history in prop::collection::vec(happens(), 0..60)) {
            let (mut generation, mut noted) = (Generation(1), Generation(0));
            let (mut ready, mut known) = (false, true);
            let mut stored: Option<ExecRecord> = None;
            // How often a supervisor began the exec of a workload, and whether it still keeps it, by its id.
            let mut begun: BTreeMap<Generation, u32> = BTreeMap::new();
            let mut keeps = false;
            for event in history {
                match event {
                    Happens::Ready(now) => ready = now,
                    Happens::Known(now) => known = now,
                    Happens::Anew => {
                        generation = generation.next();
                        (ready, stored, keeps) = (false, None, false);
                    }
                    Happens::Look { dies } => {
                        let (status, start) =
                            look(&Facts { generation, noted, record: stored.as_ref(), ready, known });
                        prop_assert!(!start || (ready && known));
                        prop_assert_eq!(
                            status.status == ConditionStatus::False,
                            stored.as_ref().map_or(noted >= generation, |record| record.finished.is_some())
                        );
                        if start && stored.is_none() {
                            prop_assert!(noted < generation);
                            // One step of the store's.
                            (stored, noted) = (Some(record(false, None)), generation);
                        }
                        if start && !dies && !std::mem::replace(&mut keeps, true) {
                            *begun.entry(generation).or_default() += 1;
                        }
                    }
                    Happens::Starts => {
                        if let Some(record) = stored.as_mut().filter(|_| keeps) {
                            record.started_at = Some(Timestamp::UNIX_EPOCH);
                        }
                    }
                    Happens::Ends => {
                        if let Some(record) = stored.as_mut().filter(|record| record.started_at.is_some()) {
                            let end = Kind::Exited(Exited { code: 0 });
                            record.finished = Some(state::ended(end, Timestamp::UNIX_EPOCH));
                        }
                    }
                    Happens::Forgotten => {
                        if stored.as_ref().is_some_and(|record| record.finished.is_some()) {
                            // And so does the supervisor: a second start would be a second run.
                            (stored, keeps) = (None, false);
                        }
                    }
                }
                prop_assert!(begun.values().all(|times| *times == 1));
                prop_assert!(noted <= generation);
            }
        }
    }
}
