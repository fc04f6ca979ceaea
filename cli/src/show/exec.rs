//! An exec and its outcome, and what `--result-file` holds of them.

use holdfast_wire::api::{self, ExecState, LostReason, StartFailure, outcome::Kind};
use serde::Serialize;

use super::{age, bytes, milliseconds, snake, time};
use crate::{exit, output::Row, values};

/// An exec.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Exec {
    pub(crate) exec_id: String,
    pub(crate) sandbox_id: String,
    /// It is its sandbox's main command, which `main` names too. Absent where that was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) main: Option<bool>,
    /// `accepted`, `running`, `ended`.
    pub(crate) state: String,
    pub(crate) outcome: Option<Outcome>,
    /// What `holdfast exec` exits with; absent while it runs.
    pub(crate) exit_code: Option<u8>,
    pub(crate) command: String,
    pub(crate) tty: bool,
    pub(crate) pid: u32,
    pub(crate) accepted_at: Option<String>,
    pub(crate) started_at: Option<String>,
    pub(crate) ended_at: Option<String>,
    pub(crate) stdout_bytes: u64,
    pub(crate) stderr_bytes: u64,
    pub(crate) stdout_kept_from: u64,
    pub(crate) stderr_kept_from: u64,
    pub(crate) readers: u32,
    pub(crate) left_processes: bool,
    #[serde(skip)]
    age: String,
}

/// How an exec ended: `kind` says which of the other fields there are.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Outcome {
    Exited { code: i32 },
    Signaled { signal: i32, signal_name: String, core_dumped: bool, oom: bool },
    TimedOut { after_ms: Option<f64> },
    Cancelled { by: String },
    StartFailed { errno: i32, failure: String, message: String },
    Lost { reason: String, message: String },
}

impl Outcome {
    pub(crate) fn of(outcome: &api::Outcome) -> Option<Self> {
        Some(match outcome.kind.as_ref()? {
            Kind::Exited(exited) => Self::Exited { code: exited.code },
            Kind::Signaled(signaled) => Self::Signaled {
                signal: signaled.signal,
                signal_name: values::signal_name(signaled.signal),
                core_dumped: signaled.core_dumped,
                oom: signaled.oom,
            },
            Kind::TimedOut(timed_out) => Self::TimedOut { after_ms: milliseconds(timed_out.after) },
            Kind::Cancelled(cancelled) => Self::Cancelled { by: cancelled.by.clone() },
            Kind::StartFailed(failed) => Self::StartFailed {
                errno: failed.errno,
                failure: snake::<StartFailure>(failed.kind, "START_FAILURE_", StartFailure::as_str_name),
                message: failed.message.clone(),
            },
            Kind::Lost(lost) => Self::Lost {
                reason: snake::<LostReason>(lost.reason, "LOST_REASON_", LostReason::as_str_name),
                message: lost.message.clone(),
            },
        })
    }

    /// What a person should hear besides the exit code; `None` where the code says it all.
    pub(crate) fn remark(&self) -> Option<String> {
        match self {
            Self::Exited { .. } => None,
            Self::Signaled { signal_name, core_dumped, oom, .. } => {
                let how = if *oom { ": out of memory" } else { "" };
                let core = if *core_dumped { " (core dumped)" } else { "" };
                Some(format!("the command was ended by {signal_name}{how}{core}"))
            }
            Self::TimedOut { after_ms } => Some(match after_ms {
                Some(ms) => format!("the command did not end within {:.1} s, and was ended", ms / 1000.0),
                None => "the command did not end in time, and was ended".to_owned(),
            }),
            Self::Cancelled { by } => Some(format!("the command was cancelled by {by}")),
            Self::StartFailed { message, failure, .. } => Some(format!(
                "the command could not be started: {}",
                if message.is_empty() { failure } else { message }
            )),
            Self::Lost { reason, message } => Some(format!(
                "what became of the command cannot be known: {}",
                if message.is_empty() { reason } else { message }
            )),
        }
    }
}

impl From<api::ExecInfo> for Exec {
    fn from(exec: api::ExecInfo) -> Self {
        Self {
            state: snake::<ExecState>(exec.state, "EXEC_STATE_", ExecState::as_str_name),
            outcome: exec.outcome.as_ref().and_then(Outcome::of),
            exit_code: exec.outcome.as_ref().map(exit::code),
            age: age(exec.started_at.as_ref().or(exec.accepted_at.as_ref())),
            accepted_at: time(exec.accepted_at.as_ref()),
            started_at: time(exec.started_at.as_ref()),
            ended_at: time(exec.ended_at.as_ref()),
            exec_id: exec.exec_id,
            sandbox_id: exec.sandbox_id,
            main: None,
            command: exec.command,
            tty: exec.tty,
            pid: exec.pid,
            stdout_bytes: exec.stdout_bytes,
            stderr_bytes: exec.stderr_bytes,
            stdout_kept_from: exec.stdout_kept_from,
            stderr_kept_from: exec.stderr_kept_from,
            readers: exec.readers,
            left_processes: exec.left_processes,
        }
    }
}

impl Row for Exec {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["exec", "state", "exit", "age", "command"];
        if wide {
            header.extend(["main", "pid", "stdout", "stderr", "readers", "outcome"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        // The whole command is in -o wide and in JSON.
        let short: String = if wide || self.command.chars().count() <= 48 {
            self.command.clone()
        } else {
            self.command.chars().take(47).chain(['…']).collect()
        };
        let mut cells = vec![
            self.exec_id.clone(),
            self.state.clone(),
            self.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string()),
            self.age.clone(),
            short,
        ];
        if wide {
            cells.extend([
                if self.main == Some(true) { "main" } else { "-" }.to_owned(),
                self.pid.to_string(),
                bytes(self.stdout_bytes),
                bytes(self.stderr_bytes),
                self.readers.to_string(),
                self.outcome.as_ref().and_then(Outcome::remark).unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        cells
    }

    fn name(&self) -> String {
        self.exec_id.clone()
    }
}

/// What `--result-file` holds: how an exec ended, without any doubt.
#[derive(Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) schema_version: u32,
    pub(crate) exec_id: String,
    pub(crate) sandbox: String,
    /// `ended`, or `unknown` where this program left before the end.
    pub(crate) state: String,
    pub(crate) outcome: Option<Outcome>,
    /// What this program exits with.
    pub(crate) exit_code: u8,
    pub(crate) signal: Option<i32>,
    pub(crate) timed_out: bool,
    pub(crate) oom_killed: bool,
    /// Why this program left before the end.
    pub(crate) reason: Option<String>,
    pub(crate) started_at: Option<String>,
    pub(crate) ended_at: Option<String>,
    pub(crate) stdout_bytes: u64,
    pub(crate) stderr_bytes: u64,
    /// Output that this program did not get, in bytes.
    pub(crate) lost_bytes: u64,
    pub(crate) truncated: bool,
    /// How often the stream was lost and made anew.
    pub(crate) reattached: u32,
}
