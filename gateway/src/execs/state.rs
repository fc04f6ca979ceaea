//! What a supervisor's word about an exec means for the store's record of it. Pure.
//!
//! ```text
//!   accepted ──started──▶ running ──ended──▶ ended (for good)
//!      │                     │                 ▲
//!      │                     └─ its instance is gone: lost
//!      ├─ its instance says in a complete list that it never came: start_failed
//!      └─ another instance answers, and does not know it: lost
//! ```
//!
//! Three rules. What the supervisor says of an exec is believed, whoever of its processes says it: a new process
//! may have read the outcome from its predecessor's spool. Absence means something in a complete list alone, and
//! only where no start is on its way to that process. An outcome that is stored stays; an exec that runs
//! nevertheless is stopped.
//!
//! A list cannot be older than a start that it lacks: nothing is started on a session before its complete list has
//! been taken.

use holdfast_wire::{
    api::{ExecInfo, ExecState, Lost, LostReason, Outcome, StartFailed, StartFailure, outcome::Kind},
    ids::Instance,
};
use jiff::Timestamp;

use crate::store::{ExecRecord, Finished};

/// What is to be done about one exec.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Nothing new.
    Keep,
    /// It runs.
    Started {
        /// In the sandbox's PID namespace.
        pid: u32,
        /// When it started.
        at: Timestamp,
    },
    /// It has ended.
    End(Box<Finished>),
    /// It runs though its end is stored: the supervisor must end it.
    Stop,
}

/// Whether somebody here is about to start the exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Nobody.
    None,
    /// Somebody, and no supervisor can have heard of it yet.
    Undelivered,
    /// Somebody, and its supervisor may have heard of it.
    Delivered,
}

/// What the process `instance` says of an exec: `said` is `None` where a complete list has it not.
pub(super) fn judge(
    record: &ExecRecord,
    said: Option<&ExecInfo>,
    instance: Instance,
    start: Start,
    now: Timestamp,
) -> Verdict {
    let ended = record.finished.is_some();
    match said.map(|info| (info, info.state())) {
        Some((info, ExecState::Ended)) if !ended => match finished(info, now) {
            Some(finished) => Verdict::End(Box::new(finished)),
            None => Verdict::Keep,
        },
        Some((_, ExecState::Running | ExecState::Accepted)) if ended => Verdict::Stop,
        Some((info, ExecState::Running)) if record.started_at.is_none() => {
            Verdict::Started { pid: info.pid, at: time(info.started_at.as_ref()).unwrap_or(now) }
        }
        Some(_) => Verdict::Keep,
        None if ended => Verdict::Keep,
        None => match record.sent {
            None if start != Start::None => Verdict::Keep,
            // Never sent, and nobody is about to.
            None => Verdict::End(Box::new(never_started("it was never sent to a supervisor", now))),
            // Its starter knows that it never ran, and will say so.
            Some(sent) if sent.instance != instance && start == Start::Undelivered => Verdict::Keep,
            Some(sent) if sent.instance != instance => Verdict::End(Box::new(lost(
                LostReason::SupervisorRestarted,
                "another supervisor process answers for the sandbox now, and does not know the exec",
                now,
            ))),
            // It is sent again.
            Some(_) if record.started_at.is_none() && start != Start::None => Verdict::Keep,
            Some(_) if record.started_at.is_none() => {
                Verdict::End(Box::new(never_started("the start never reached the supervisor", now)))
            }
            Some(_) => Verdict::End(Box::new(lost(
                LostReason::Unspecified,
                "the supervisor no longer keeps the exec, and its outcome was not received before",
                now,
            ))),
        },
    }
}

/// The end that an `ExecInfo` tells of; `None` where it does not say how.
pub(super) fn finished(info: &ExecInfo, now: Timestamp) -> Option<Finished> {
    let outcome = info.outcome.clone().filter(|outcome| outcome.kind.is_some())?;
    Some(Finished {
        outcome,
        at: time(info.ended_at.as_ref()).unwrap_or(now),
        stdout_bytes: info.stdout_bytes,
        stderr_bytes: info.stderr_bytes,
        left_processes: info.left_processes,
    })
}

/// An end without output.
pub(super) fn ended(kind: Kind, now: Timestamp) -> Finished {
    let outcome = Outcome { kind: Some(kind) };
    Finished { outcome, at: now, stdout_bytes: 0, stderr_bytes: 0, left_processes: false }
}

/// The command provably never ran, because of the deadline for starting.
pub(super) fn never_started(message: &str, now: Timestamp) -> Finished {
    start_failed(StartFailure::Deadline, message, now)
}

/// The command provably never ran.
pub(super) fn start_failed(kind: StartFailure, message: &str, now: Timestamp) -> Finished {
    ended(Kind::StartFailed(StartFailed { errno: 0, kind: kind.into(), message: message.to_owned() }), now)
}

/// What became of the command cannot be known.
pub(super) fn lost(reason: LostReason, message: &str, now: Timestamp) -> Finished {
    ended(Kind::Lost(Lost { reason: reason.into(), message: message.to_owned() }), now)
}

/// A word for an outcome, for a metric's label.
pub(super) fn label(outcome: &Outcome) -> &'static str {
    match &outcome.kind {
        Some(Kind::Exited(_)) => "exited",
        Some(Kind::Signaled(_)) => "signaled",
        Some(Kind::TimedOut(_)) => "timed_out",
        Some(Kind::Cancelled(_)) => "cancelled",
        Some(Kind::StartFailed(_)) => "start_failed",
        Some(Kind::Lost(_)) => "lost",
        None => "unknown",
    }
}

/// A time of the supervisor's; `None` where it said none, or nonsense.
pub(super) fn time(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    let at = at?;
    Timestamp::new(at.seconds, at.nanos).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use holdfast_wire::{
        api::{Exited, OnDisconnect},
        ids::{Epoch, ExecId, Generation, SandboxId},
        timing,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::store::Sent;

    fn record(sent: Option<Instance>, started: bool, end: Option<Finished>) -> ExecRecord {
        let now = Timestamp::UNIX_EPOCH;
        ExecRecord {
            exec: ExecId::random(),
            sandbox: SandboxId::random(),
            spec_digest: Bytes::new(),
            command: "true".to_owned(),
            tty: false,
            on_disconnect: OnDisconnect::Keep,
            retain_for: timing::RETAIN_FOR,
            accepted_at: now,
            start_deadline_at: now,
            sent: sent.map(|instance| Sent { instance, generation: Generation(1), epoch: Epoch(1) }),
            pid: 0,
            started_at: started.then_some(now),
            finished: end,
        }
    }

    fn exited(code: i32) -> ExecInfo {
        let outcome = Outcome { kind: Some(Kind::Exited(Exited { code })) };
        ExecInfo { state: ExecState::Ended.into(), outcome: Some(outcome), ..ExecInfo::default() }
    }

    fn running() -> ExecInfo {
        ExecInfo { state: ExecState::Running.into(), pid: 7, ..ExecInfo::default() }
    }

    fn kind_of(verdict: Verdict) -> Option<Kind> {
        match verdict {
            Verdict::End(finished) => finished.outcome.kind,
            _ => None,
        }
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn absent_on_its_own_instance_before_it_started_is_never_started() {
        let instance = Instance::random();
        let verdict = judge(&record(Some(instance), false, None), None, instance, Start::None, NOW);
        assert!(matches!(kind_of(verdict), Some(Kind::StartFailed(f)) if f.kind() == StartFailure::Deadline));
    }

    #[test]
    fn absent_on_another_instance_is_lost() {
        let verdict =
            judge(&record(Some(Instance::random()), true, None), None, Instance::random(), Start::None, NOW);
        assert!(
            matches!(kind_of(verdict), Some(Kind::Lost(l)) if l.reason() == LostReason::SupervisorRestarted)
        );
    }

    #[test]
    fn a_successor_may_know_the_outcome_from_the_spool() {
        let verdict = judge(
            &record(Some(Instance::random()), true, None),
            Some(&exited(3)),
            Instance::random(),
            Start::None,
            NOW,
        );
        assert_eq!(kind_of(verdict), Some(Kind::Exited(Exited { code: 3 })));
    }

    #[test]
    fn an_exec_that_runs_on_after_its_end_is_stopped() {
        let end = never_started("", NOW);
        let verdict =
            judge(&record(None, false, Some(end)), Some(&running()), Instance::random(), Start::None, NOW);
        assert_eq!(verdict, Verdict::Stop);
    }

    #[test]
    fn an_end_without_an_outcome_is_not_an_end() {
        let info = ExecInfo { outcome: Some(Outcome { kind: None }), ..exited(0) };
        let instance = Instance::random();
        let verdict = judge(&record(Some(instance), true, None), Some(&info), instance, Start::None, NOW);
        assert_eq!(verdict, Verdict::Keep);
    }

    proptest! {
        /// Whatever is said: a stored end stays; a start that is on its way is left alone by absence; `lost`
        /// needs absence; and an exec that is said to run is never ended.
        #[test]
        fn verdicts_are_just(
            own in any::<bool>(), sent in any::<bool>(), started in any::<bool>(), ended in any::<bool>(),
            said in 0..3u8, start in prop::sample::select(vec![Start::None, Start::Undelivered, Start::Delivered]),
        ) {
            let instance = Instance::random();
            let to = sent.then(|| if own { instance } else { Instance::random() });
            let record = record(to, started, ended.then(|| never_started("", NOW)));
            let info = match said { 0 => None, 1 => Some(running()), _ => Some(exited(0)) };
            let verdict = judge(&record, info.as_ref(), instance, start, NOW);
            if ended {
                prop_assert!(matches!(verdict, Verdict::Keep | Verdict::Stop));
            }
            if info.is_none() && start != Start::None && !started && (own || !sent) {
                prop_assert_eq!(&verdict, &Verdict::Keep);
            }
            if said == 1 {
                prop_assert!(!matches!(verdict, Verdict::End(_)));
            }
            if let Some(Kind::Lost(_)) = kind_of(verdict) {
                prop_assert!(info.is_none() && sent && !ended && (started || start != Start::Undelivered));
            }
        }
    }
}
