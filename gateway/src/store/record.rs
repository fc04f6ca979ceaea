//! The records, as everything above the store sees them.

use std::{fmt, time::Duration};

use bytes::Bytes;
use holdfast_wire::{
    api::{self, ExecState, OnDisconnect},
    ids::{Epoch, ExecId, Generation, Instance, SandboxId},
};
use jiff::Timestamp;
use prost::Message;

use super::{MAX_BLOB, StoreError};

/// What the user wants of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Desired {
    /// Its workload runs.
    Running,
    /// It has no running workload; the workspace is kept.
    Stopped,
    /// Its workload is frozen.
    Paused,
    /// Nothing of it is left.
    Deleted,
}

impl Desired {
    /// As it is stored. The words never change: older stores are read by newer gateways.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Deleted => "deleted",
        }
    }

    /// Of a stored word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Stopped, Self::Paused, Self::Deleted]
            .into_iter()
            .find(|desired| desired.as_str() == text)
    }
}

impl fmt::Display for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why it is wanted to be as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Why {
    /// Somebody asked for it.
    #[default]
    Asked,
    /// Nothing happened in it for as long as was agreed.
    Idle,
    /// Its time to live is over.
    Expired,
}

impl Why {
    /// As it is stored. The words never change.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Idle => "idle",
            Self::Expired => "expired",
        }
    }

    /// Of a stored word. One of a newer version says no more than that somebody asked.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        [Self::Idle, Self::Expired].into_iter().find(|why| why.as_str() == text).unwrap_or_default()
    }
}

/// A sandbox, as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxRecord {
    /// For ever its own.
    pub id: SandboxId,
    /// Unique among the sandboxes that are stored.
    pub name: String,
    /// What was asked for.
    pub spec: api::SandboxSpec,
    /// What the user wants now.
    pub desired: Desired,
    /// Why.
    pub why: Why,
    /// How long the workload has to end when it is stopped or deleted.
    pub grace: Duration,
    /// Which workload it should have; 0 before the first.
    pub generation: Generation,
    /// The newest workload that the driver is known to have made: if it is not there any more, it is gone.
    pub made: Generation,
    /// The newest workload whose supervisor has been attached: if it is not there now, it is away.
    pub attached: Generation,
    /// The newest session's; 0 before the first.
    pub epoch: Epoch,
    /// The driver that makes its workloads.
    pub driver: String,
    /// Counts the writes; what compare-and-set compares.
    pub version: u64,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// The last thing that went wrong.
    pub last_error: Option<api::LastError>,
    /// When its time to live is over.
    pub expires_at: Option<Timestamp>,
    /// When something happened in it last, to within a minute; kept where it can be idle for too long.
    pub active_at: Option<Timestamp>,
    /// The newest workload whose main command was taken in as an exec; 0 before the first.
    pub main: Generation,
}

/// To whom the start of an exec was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The supervisor process. A start is repeated towards this one alone.
    pub instance: Instance,
    /// The workload that it runs in.
    pub generation: Generation,
    /// The session that carried the start.
    pub epoch: Epoch,
}

/// An exec, as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecRecord {
    /// Chosen by the caller.
    pub exec: ExecId,
    /// Where it runs.
    pub sandbox: SandboxId,
    /// What "the same request" compares.
    pub spec_digest: Bytes,
    /// For people; at most 256 bytes, no environment in it.
    pub command: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// What happens when its caller is gone.
    pub on_disconnect: OnDisconnect,
    /// How long its end is remembered.
    pub retain_for: Duration,
    /// When it was admitted.
    pub accepted_at: Timestamp,
    /// It must have started by then.
    pub start_deadline_at: Timestamp,
    /// To whom its start was sent, if to anybody.
    pub sent: Option<Sent>,
    /// In the sandbox's PID namespace; 0 before the start.
    pub pid: u32,
    /// When it started, if it did.
    pub started_at: Option<Timestamp>,
    /// How it ended, if it did.
    pub finished: Option<Finished>,
}

/// The end of an exec.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// How.
    pub outcome: api::Outcome,
    /// When.
    pub at: Timestamp,
    /// All that the command wrote to its standard output, in bytes.
    pub stdout_bytes: u64,
    /// Likewise to its standard error.
    pub stderr_bytes: u64,
    /// Whether something of its process group had to be ended after the leader.
    pub left_processes: bool,
}

impl ExecRecord {
    /// Accepted, running or ended.
    #[must_use]
    pub fn state(&self) -> ExecState {
        match (&self.finished, self.started_at) {
            (Some(_), _) => ExecState::Ended,
            (None, Some(_)) => ExecState::Running,
            (None, None) => ExecState::Accepted,
        }
    }

    /// The supervisor process that its start was sent to.
    #[must_use]
    pub fn instance(&self) -> Option<Instance> {
        self.sent.map(|sent| sent.instance)
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn outcome(&self) -> Option<&api::Outcome> {
        self.finished.as_ref().map(|finished| &finished.outcome)
    }

    /// Until when an ended exec is remembered.
    #[must_use]
    pub fn retain_until(&self) -> Option<Timestamp> {
        self.finished.as_ref().map(|finished| later(finished.at, self.retain_for))
    }

    /// As callers see it. What only the supervisor knows (what is kept, who reads) is left out.
    #[must_use]
    pub fn to_info(&self) -> api::ExecInfo {
        let finished = self.finished.as_ref();
        api::ExecInfo {
            exec_id: self.exec.to_string(),
            sandbox_id: self.sandbox.to_string(),
            state: self.state().into(),
            outcome: self.outcome().cloned(),
            command: self.command.clone(),
            tty: self.tty,
            pid: self.pid,
            accepted_at: Some(stamp(self.accepted_at)),
            started_at: self.started_at.map(stamp),
            ended_at: finished.map(|finished| stamp(finished.at)),
            stdout_bytes: finished.map_or(0, |finished| finished.stdout_bytes),
            stderr_bytes: finished.map_or(0, |finished| finished.stderr_bytes),
            spec_digest: self.spec_digest.clone(),
            left_processes: finished.is_some_and(|finished| finished.left_processes),
            ..api::ExecInfo::default()
        }
    }
}

impl SandboxRecord {
    /// Whether the store takes it.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        check_size("a sandbox's spec", self.spec.encoded_len())?;
        check_size("a sandbox's last error", self.last_error.as_ref().map_or(0, Message::encoded_len))
    }

    /// As it reads when it comes back: times to the microsecond, durations to the millisecond.
    pub(super) fn as_stored(&self) -> Self {
        Self {
            created_at: to_micros(self.created_at),
            grace: to_millis(self.grace),
            expires_at: self.expires_at.map(to_micros),
            active_at: self.active_at.map(to_micros),
            ..self.clone()
        }
    }
}

impl ExecRecord {
    pub(super) fn check(&self) -> Result<(), StoreError> {
        // A digest is 32 bytes and a command 256; four times that is no record of Holdfast's.
        for (what, size) in
            [("an exec's digest", self.spec_digest.len()), ("an exec's command", self.command.len())]
        {
            if size > 1024 {
                return Err(StoreError::TooLarge { what, size, most: 1024 });
            }
        }
        self.finished.as_ref().map_or(Ok(()), Finished::check)
    }

    pub(super) fn as_stored(&self) -> Self {
        Self {
            retain_for: to_millis(self.retain_for),
            accepted_at: to_micros(self.accepted_at),
            start_deadline_at: to_micros(self.start_deadline_at),
            started_at: self.started_at.map(to_micros),
            finished: self.finished.as_ref().map(Finished::as_stored),
            ..self.clone()
        }
    }
}

impl Finished {
    pub(super) fn check(&self) -> Result<(), StoreError> {
        check_size("an exec's outcome", self.outcome.encoded_len())
    }

    pub(super) fn as_stored(&self) -> Self {
        // SQL's integers are signed. The supervisor says these numbers, so they may be anything.
        let clamp = |bytes: u64| bytes.min(i64::MAX.unsigned_abs());
        Self {
            at: to_micros(self.at),
            stdout_bytes: clamp(self.stdout_bytes),
            stderr_bytes: clamp(self.stderr_bytes),
            ..self.clone()
        }
    }
}

/// Whether a message of this size is stored.
pub(super) fn check_size(what: &'static str, size: usize) -> Result<(), StoreError> {
    if size > MAX_BLOB { Err(StoreError::TooLarge { what, size, most: MAX_BLOB }) } else { Ok(()) }
}

/// What the store keeps of a time.
pub(super) fn to_micros(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}

fn to_millis(time: Duration) -> Duration {
    Duration::from_millis(millis(time))
}

/// What the store keeps of a duration: at most a century, so that no sum with a date of today overflows.
pub(super) fn millis(time: Duration) -> u64 {
    const CENTURY: u64 = 100 * 366 * 24 * 3600 * 1000;
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(CENTURY)
}

/// What became of an admission.
#[derive(Clone, Debug, PartialEq)]
pub enum Admission {
    /// It is stored now, as it was given.
    Admitted,
    /// The id is known: this is what is stored under it.
    Existing(Box<ExecRecord>),
}

/// A time on the wire.
#[must_use]
pub fn stamp(at: Timestamp) -> prost_types::Timestamp {
    // jiff's nanoseconds have the sign of the whole; protobuf's always count forward.
    let nanos = at.subsec_nanosecond();
    let (seconds, nanos) =
        if nanos < 0 { (at.as_second() - 1, nanos + 1_000_000_000) } else { (at.as_second(), nanos) };
    prost_types::Timestamp { seconds, nanos }
}

/// A time from the wire; `None` where it is out of range.
#[must_use]
pub fn from_stamp(at: &prost_types::Timestamp) -> Option<Timestamp> {
    (0..1_000_000_000).contains(&at.nanos).then(|| Timestamp::new(at.seconds, at.nanos).ok()).flatten()
}

/// `at` and `after` more; the end of time where that is further.
fn later(at: Timestamp, after: Duration) -> Timestamp {
    at.checked_add(after).unwrap_or(Timestamp::MAX)
}
