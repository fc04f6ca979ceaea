//! A sandbox as everybody but its task sees it: one consistent picture, replaced whole.

use std::sync::Arc;

use holdfast_drivers::Observed;
use holdfast_wire::{
    api::{self, ConditionStatus, Phase},
    ids::{Epoch, ExecId, Generation, SandboxId},
    limits,
};
use jiff::Timestamp;

use super::state::CONSOLE_ENDS_WITH;
use crate::{
    error::{CallError, Reason, key},
    sessions::Session,
    store::{SandboxRecord, from_stamp, stamp},
};

/// Events of the link that a view carries: enough to see a flapping session.
pub(super) const LINK_EVENTS: usize = 8;

/// Lines of a console's end in a refusal, and bytes of each: a panic's message and what led to it.
const CONSOLE_LINES: usize = 3;
const CONSOLE_LINE: usize = 200;

/// What is observed of a sandbox, in the order of [`View::conditions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionKind {
    /// The workload of the wanted generation runs.
    WorkloadRunning,
    /// Its supervisor is attached.
    SupervisorConnected,
    /// A command was run by way of the session, not long ago.
    ExecHealthy,
    /// A file was written and read in the workspace, not long ago.
    FilesystemHealthy,
    /// The wanted workload has come up once. Until then its reason is the stage that its boot has reached.
    Booted,
    /// Nothing was killed lately because memory ran out.
    MemoryHealthy,
    /// Its main command runs.
    MainCommand,
}

impl ConditionKind {
    /// The four facts that Ready is made of.
    pub const OF_READY: [Self; 4] =
        [Self::WorkloadRunning, Self::SupervisorConnected, Self::ExecHealthy, Self::FilesystemHealthy];
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::WorkloadRunning,
        Self::SupervisorConnected,
        Self::ExecHealthy,
        Self::FilesystemHealthy,
        Self::Booted,
        Self::MemoryHealthy,
        Self::MainCommand,
    ];

    /// As it is on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WorkloadRunning => "WorkloadRunning",
            Self::SupervisorConnected => "SupervisorConnected",
            Self::ExecHealthy => "ExecHealthy",
            Self::FilesystemHealthy => "FilesystemHealthy",
            Self::Booted => "Booted",
            Self::MemoryHealthy => "MemoryHealthy",
            Self::MainCommand => "MainCommand",
        }
    }
}

/// One observed fact, in Kubernetes' form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which fact.
    pub kind: ConditionKind,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// CamelCase, why.
    pub reason: String,
    /// For people; may be empty.
    pub message: String,
    /// Since when the status is what it is; of `Booted`, since when the stage is.
    pub last_transition: Timestamp,
}

/// Something that happened to the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEvent {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: String,
}

/// A sandbox at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// As it is stored.
    pub record: Arc<SandboxRecord>,
    /// One word for all of it.
    pub phase: Phase,
    /// CamelCase, why the phase is what it is.
    pub reason: String,
    /// For people; may be empty.
    pub message: String,
    /// In the order of [`ConditionKind::ALL`]; the last two only where memory is counted, and where there is a main
    /// command.
    pub conditions: Vec<Condition>,
    /// The newest session's epoch, attached or not.
    pub epoch: Epoch,
    /// The wanted workload.
    pub generation: Generation,
    /// The session, while one is attached. It may have been lost this very moment.
    pub session: Option<Session>,
    /// The last events of the link, oldest first.
    pub link_events: Vec<LinkEvent>,
    /// What the driver last said of the wanted workload.
    pub workload: Option<Observed>,
    /// Nothing of the sandbox is left: the last view of it.
    pub gone: bool,
}

impl View {
    /// Whose.
    #[must_use]
    pub fn id(&self) -> SandboxId {
        self.record.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// One of them, where it is known.
    #[must_use]
    pub fn condition(&self, kind: ConditionKind) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// The exec that is the main command of the wanted workload, where there is one.
    #[must_use]
    pub fn main_exec(&self) -> Option<ExecId> {
        self.record.spec.main.as_ref().map(|_| ExecId::of_main(self.id(), self.generation))
    }

    /// The session, while one is attached and not lost.
    #[must_use]
    pub fn live_session(&self) -> Option<&Session> {
        self.session.as_ref().filter(|session| session.lost().is_none())
    }

    /// As callers see it.
    #[must_use]
    pub fn to_api(&self) -> api::Sandbox {
        let record = &self.record;
        api::Sandbox {
            id: record.id.to_string(),
            name: record.name.clone(),
            spec: Some(record.spec.clone()),
            status: Some(api::SandboxStatus {
                phase: self.phase.into(),
                reason: self.reason.clone(),
                message: self.message.clone(),
                conditions: self.conditions.iter().map(Condition::to_api).collect(),
                main_exec_id: self.main_exec().map(|exec| exec.to_string()).unwrap_or_default(),
                epoch: self.epoch.0,
                generation: self.generation.0,
                last_error: record.last_error.clone(),
                session: self.live_session().map(Session::to_api),
                expires_at: record.expires_at.map(stamp),
            }),
            created_at: Some(stamp(record.created_at)),
            driver: record.driver.clone(),
        }
    }

    /// What a caller is told for whom this sandbox is not usable: phase, conditions, the link's last events.
    #[must_use]
    pub fn refusal(&self, reason: Reason, attempted: &str) -> CallError {
        let error =
            CallError::new(reason, format!("{attempted}: sandbox {} is {}", self.name(), self.told()))
                .with(key::SANDBOX_ID, self.id())
                .with(key::PHASE, word(self.phase));
        let Some(last) = &self.record.last_error else { return error };
        let error = error
            .with(key::LAST_ERROR, &last.reason)
            .with(key::LAST_ERROR_MESSAGE, self.brief(&last.message))
            .with(key::LAST_ERROR_SOURCE, &last.source);
        match last.at.as_ref().and_then(from_stamp) {
            Some(at) => error.with(key::LAST_ERROR_AT, at),
            None => error,
        }
    }

    /// A message without most of the console's end, which `get` has whole: a caller who is refused again and again
    /// needs the last lines of it, and the way to the others.
    fn brief(&self, message: &str) -> String {
        let Some((what, console)) = message.split_once(CONSOLE_ENDS_WITH) else { return message.to_owned() };
        let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
        let left_out = lines.len().saturating_sub(CONSOLE_LINES);
        let shown: Vec<String> =
            lines[left_out..].iter().map(|line| limits::cut((*line).to_owned(), CONSOLE_LINE)).collect();
        let name = self.name();
        format!("{what}{CONSOLE_ENDS_WITH}{} (`holdfast logs {name}` shows all of it)", shown.join(" | "))
    }

    /// Phase, reason, conditions that do not hold, and what the link did, in one line.
    fn told(&self) -> String {
        let mut text = format!("{} ({}", word(self.phase), self.reason);
        if !self.message.is_empty() {
            text.push_str(": ");
            text.push_str(&self.brief(&self.message));
        }
        text.push(')');
        // A main command that does not run keeps nobody from anything.
        let counts = |condition: &&Condition| condition.kind != ConditionKind::MainCommand;
        let failing = self.conditions.iter().filter(counts);
        let failing = failing.filter(|condition| condition.status != ConditionStatus::True);
        for (i, condition) in failing.enumerate() {
            text.push_str(if i == 0 { "; not met: " } else { ", " });
            text.push_str(condition.kind.as_str());
            text.push('=');
            text.push_str(match condition.status {
                ConditionStatus::False => "False",
                _ => "Unknown",
            });
            text.push_str(&format!("/{}", condition.reason));
        }
        // What is wrong now is in the phase already.
        if let Some(last) = &self.record.last_error
            && (last.reason != self.reason || last.message != self.message)
        {
            let message = self.brief(&last.message);
            text.push_str(&format!("; last error: {} ({}): {message}", last.reason, last.source));
            if let Some(at) = last.at.as_ref().and_then(from_stamp) {
                text.push_str(&format!(" at {at:.0}"));
            }
        }
        for (i, event) in self.link_events.iter().rev().enumerate() {
            text.push_str(if i == 0 { "; link, newest first: " } else { ", " });
            text.push_str(&format!("{} at {:.0}", event.what, event.at));
        }
        text
    }
}

impl Condition {
    /// As callers see it.
    #[must_use]
    pub fn to_api(&self) -> api::Condition {
        api::Condition {
            r#type: self.kind.as_str().to_owned(),
            status: self.status.into(),
            reason: self.reason.clone(),
            message: self.message.clone(),
            last_transition_time: Some(stamp(self.last_transition)),
        }
    }
}

/// A phase as people write it.
#[must_use]
pub fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "Unspecified",
        Phase::Pending => "Pending",
        Phase::Provisioning => "Provisioning",
        Phase::Ready => "Ready",
        Phase::Reconnecting => "Reconnecting",
        Phase::Pausing => "Pausing",
        Phase::Paused => "Paused",
        Phase::Resuming => "Resuming",
        Phase::Stopping => "Stopping",
        Phase::Stopped => "Stopped",
        Phase::Degraded => "Degraded",
        Phase::Failed => "Failed",
        Phase::Deleting => "Deleting",
    }
}
