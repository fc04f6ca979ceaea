//! The API's objects as they are shown: stable JSON (snake_case, documented by these structs) and table rows.
//! No field here ever holds an environment variable's value.

use std::collections::BTreeMap;

use holdfast_wire::api::{self, ExecState, LostReason, OnDisconnect, Phase, StartFailure, outcome::Kind};
use prost_types::Timestamp;
use serde::Serialize;

use crate::{exit, output::Row, values};

/// A sandbox.
#[derive(Debug, Serialize)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) driver: String,
    /// `Ready`, `Reconnecting`, ...
    pub(crate) phase: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) epoch: u64,
    pub(crate) generation: u64,
    pub(crate) image: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Names only.
    pub(crate) env: Vec<String>,
    pub(crate) user: String,
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) pids: u64,
    pub(crate) last_error: Option<LastError>,
    pub(crate) session: Option<Session>,
    pub(crate) created_at: Option<String>,
    #[serde(skip)]
    age: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    kind: String,
    /// `True`, `False`, `Unknown`.
    status: String,
    reason: String,
    message: String,
    last_transition_time: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct LastError {
    reason: String,
    message: String,
    source: String,
    at: Option<String>,
}

/// A session and its path.
#[derive(Debug, Serialize)]
pub(crate) struct Session {
    session_id: String,
    epoch: u64,
    instance: String,
    supervisor_version: String,
    attached_at: Option<String>,
    remote_address: String,
    rtt_ms: Option<f64>,
    last_heard_ms: Option<f64>,
    lost_packets: u64,
    sent_packets: u64,
    sent_bytes: u64,
    received_bytes: u64,
    migrations: u64,
    mtu: u32,
    open_relays: u32,
    spool_bytes: u64,
    spool_limit_bytes: u64,
}

impl From<api::Sandbox> for Sandbox {
    fn from(sandbox: api::Sandbox) -> Self {
        let spec = sandbox.spec.unwrap_or_default();
        let status = sandbox.status.unwrap_or_default();
        let resources = spec.resources.unwrap_or_default();
        let mut env: Vec<_> = spec.env.into_keys().collect();
        env.sort_unstable();
        Self {
            phase: phase(status.phase),
            age: age(sandbox.created_at.as_ref()),
            id: sandbox.id,
            name: sandbox.name,
            driver: sandbox.driver,
            reason: status.reason,
            message: status.message,
            conditions: status.conditions.into_iter().map(Condition::from).collect(),
            epoch: status.epoch,
            generation: status.generation,
            image: spec.image,
            labels: spec.labels.into_iter().collect(),
            env,
            user: spec.user,
            cpu_millis: resources.cpu_millis,
            memory_bytes: resources.memory_bytes,
            pids: resources.pids,
            last_error: status.last_error.map(|error| LastError {
                reason: error.reason,
                message: error.message,
                source: error.source,
                at: time(error.at.as_ref()),
            }),
            session: status.session.map(Session::from),
            created_at: time(sandbox.created_at.as_ref()),
        }
    }
}

impl From<api::Condition> for Condition {
    fn from(condition: api::Condition) -> Self {
        Self {
            status: word(condition.status().as_str_name(), "CONDITION_STATUS_"),
            kind: condition.r#type,
            reason: condition.reason,
            message: condition.message,
            last_transition_time: time(condition.last_transition_time.as_ref()),
        }
    }
}

impl From<api::Session> for Session {
    fn from(session: api::Session) -> Self {
        Self {
            attached_at: time(session.attached_at.as_ref()),
            rtt_ms: milliseconds(session.rtt),
            last_heard_ms: milliseconds(session.last_heard),
            session_id: session.session_id,
            epoch: session.epoch,
            instance: session.instance,
            supervisor_version: session.supervisor_version,
            remote_address: session.remote_address,
            lost_packets: session.lost_packets,
            sent_packets: session.sent_packets,
            sent_bytes: session.sent_bytes,
            received_bytes: session.received_bytes,
            migrations: session.migrations,
            mtu: session.mtu,
            open_relays: session.open_relays,
            spool_bytes: session.spool_bytes,
            spool_limit_bytes: session.spool_limit_bytes,
        }
    }
}

impl Row for Sandbox {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["name", "phase", "driver", "age", "reason"];
        if wide {
            header.extend(["id", "epoch", "conditions", "remote", "rtt", "message"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.name.clone(),
            self.phase.clone(),
            self.driver.clone(),
            self.age.clone(),
            dash(&self.reason),
        ];
        if wide {
            let unmet = self.conditions.iter().filter(|condition| condition.status != "True");
            let unmet: Vec<_> =
                unmet.map(|condition| format!("{}={}", condition.kind, condition.status)).collect();
            let met = self.conditions.len() - unmet.len();
            let conditions = format!("{met}/{} {}", self.conditions.len(), unmet.join(" "));
            let session = self.session.as_ref();
            cells.extend([
                self.id.clone(),
                self.epoch.to_string(),
                conditions.trim_end().to_owned(),
                session.map_or_else(|| "-".to_owned(), |session| dash(&session.remote_address)),
                session
                    .and_then(|session| session.rtt_ms)
                    .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
                dash(&self.message),
            ]);
        }
        cells
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// An exec.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Exec {
    pub(crate) exec_id: String,
    pub(crate) sandbox_id: String,
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
            header.extend(["pid", "stdout", "stderr", "readers", "outcome"]);
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

/// Something that happened to a sandbox.
#[derive(Debug, Serialize)]
pub(crate) struct Event {
    at: Option<String>,
    sandbox_id: String,
    sandbox: String,
    reason: String,
    message: String,
    phase: String,
}

impl From<api::SandboxEvent> for Event {
    fn from(event: api::SandboxEvent) -> Self {
        Self {
            at: time(event.at.as_ref()),
            // Most events have nothing to do with the phase.
            phase: if event.phase == 0 { String::new() } else { phase(event.phase) },
            sandbox_id: event.sandbox_id,
            sandbox: event.sandbox_name,
            reason: event.reason,
            message: event.message,
        }
    }
}

impl Event {
    /// One line, for people.
    pub(crate) fn line(&self) -> String {
        let at = self.at.as_deref().unwrap_or("-");
        // To the second, in columns: 2026-11-02T10:11:12Z is 20 characters.
        let at = at.get(..19).map_or_else(|| at.to_owned(), |seconds| format!("{seconds}Z"));
        let phase = dash(&self.phase);
        format!("{at:<20}  {:<16}  {phase:<13}  {:<16}  {}", self.sandbox, self.reason, self.message)
            .trim_end()
            .to_owned()
    }

    pub(crate) fn sandbox(&self) -> &str {
        &self.sandbox
    }
}

/// The gateway.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) address: String,
    pub(crate) version: String,
    pub(crate) name: String,
    pub(crate) started_at: Option<String>,
    pub(crate) driver: String,
    pub(crate) driver_notes: String,
    pub(crate) listen: String,
    pub(crate) http_listen: String,
    pub(crate) data_dir: String,
    pub(crate) sandboxes: u32,
    pub(crate) sessions: u32,
    pub(crate) open_relays: u32,
    pub(crate) draining: bool,
    pub(crate) attached: Vec<Attached>,
    #[serde(skip)]
    pub(crate) age: String,
}

/// A sandbox that has a session.
#[derive(Debug, Serialize)]
pub(crate) struct Attached {
    sandbox_id: String,
    sandbox: String,
    phase: String,
    session: Option<Session>,
}

impl Status {
    pub(crate) fn new(address: &str, status: api::StatusResponse) -> Self {
        Self {
            address: address.to_owned(),
            started_at: time(status.started_at.as_ref()),
            age: age(status.started_at.as_ref()),
            version: status.version,
            name: status.name,
            driver: status.driver,
            driver_notes: status.driver_notes,
            listen: status.listen,
            http_listen: status.http_listen,
            data_dir: status.data_dir,
            sandboxes: status.sandboxes,
            sessions: status.sessions,
            open_relays: status.open_relays,
            draining: status.draining,
            attached: status
                .attached
                .into_iter()
                .map(|attached| Attached {
                    phase: phase(attached.phase),
                    sandbox_id: attached.sandbox_id,
                    sandbox: attached.sandbox_name,
                    session: attached.session.map(Session::from),
                })
                .collect(),
        }
    }
}

impl Row for Status {
    fn header(_: bool) -> Vec<&'static str> {
        vec!["gateway", "address", "version", "driver", "up", "sandboxes", "sessions", "relays", "state"]
    }

    fn cells(&self, _: bool) -> Vec<String> {
        vec![
            self.name.clone(),
            self.address.clone(),
            self.version.clone(),
            self.driver.clone(),
            self.age.clone(),
            self.sandboxes.to_string(),
            self.sessions.to_string(),
            self.open_relays.to_string(),
            if self.draining { "draining" } else { "serving" }.to_owned(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Row for Attached {
    fn header(_: bool) -> Vec<&'static str> {
        vec!["sandbox", "phase", "epoch", "remote", "rtt", "heard", "lost", "moved", "relays", "spool"]
    }

    fn cells(&self, _: bool) -> Vec<String> {
        let mut cells = vec![self.sandbox.clone(), self.phase.clone()];
        let Some(session) = &self.session else {
            cells.extend(std::iter::repeat_n("-".to_owned(), 8));
            return cells;
        };
        let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
        cells.extend([
            session.epoch.to_string(),
            dash(&session.remote_address),
            ms(session.rtt_ms),
            ms(session.last_heard_ms),
            format!("{}/{}", session.lost_packets, session.sent_packets),
            session.migrations.to_string(),
            session.open_relays.to_string(),
            bytes(session.spool_bytes),
        ]);
        cells
    }

    fn name(&self) -> String {
        self.sandbox.clone()
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

/// The word for `on_disconnect`.
pub(crate) fn on_disconnect(kill: bool) -> i32 {
    if kill { OnDisconnect::Kill } else { OnDisconnect::Keep }.into()
}

pub(crate) fn phase(phase: i32) -> String {
    Phase::try_from(phase)
        .map_or_else(|_| format!("Phase{phase}"), |phase| word(phase.as_str_name(), "PHASE_"))
}

pub(crate) fn time(at: Option<&Timestamp>) -> Option<String> {
    at.map(ToString::to_string)
}

/// How long ago, in one unit.
fn age(at: Option<&Timestamp>) -> String {
    let Some(at) = at else { return "-".to_owned() };
    let seconds = jiff::Timestamp::now().as_second().saturating_sub(at.seconds).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

fn milliseconds(duration: Option<prost_types::Duration>) -> Option<f64> {
    let duration = std::time::Duration::try_from(duration?).ok()?;
    // Whole microseconds: a path's time has no more to say.
    Some(duration.as_micros() as f64 / 1000.0)
}

pub(crate) fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `READY` of `PHASE_READY`, as `Ready`.
fn word(name: &str, prefix: &str) -> String {
    let rest = name.strip_prefix(prefix).unwrap_or(name);
    rest.split('_')
        .map(|part| {
            let (first, tail) = part.split_at(part.len().min(1));
            first.to_owned() + &tail.to_ascii_lowercase()
        })
        .collect()
}

fn snake<E: TryFrom<i32>>(number: i32, prefix: &str, name: fn(&E) -> &'static str) -> String {
    E::try_from(number).map_or_else(
        |_| number.to_string(),
        |value| name(&value).trim_start_matches(prefix).to_ascii_lowercase(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_never_shows_a_variables_value() {
        let spec =
            api::SandboxSpec { env: [("KEY".to_owned(), "hush".to_owned())].into(), ..Default::default() };
        let status = api::SandboxStatus { phase: Phase::Reconnecting.into(), ..Default::default() };
        let sandbox =
            api::Sandbox { name: "box".into(), spec: Some(spec), status: Some(status), ..Default::default() };
        let json = serde_json::to_string(&Sandbox::from(sandbox)).unwrap();
        assert!(json.contains("\"phase\":\"Reconnecting\"") && json.contains("KEY"));
        assert!(!json.contains("hush"), "{json}");
    }

    #[test]
    fn an_outcome_is_tagged_by_its_kind() {
        let outcome = api::Outcome {
            kind: Some(Kind::Signaled(api::Signaled { signal: 9, core_dumped: false, oom: true })),
        };
        let exec = Exec::from(api::ExecInfo {
            outcome: Some(outcome),
            state: ExecState::Ended.into(),
            ..Default::default()
        });
        let json = serde_json::to_value(&exec).unwrap();
        assert_eq!(json["outcome"]["kind"], "signaled");
        assert_eq!(json["outcome"]["signal_name"], "SIGKILL");
        assert_eq!((&json["state"], &json["exit_code"]), (&"ended".into(), &137.into()));
        assert!(exec.outcome.unwrap().remark().unwrap().contains("out of memory"));
    }

    #[test]
    fn a_phase_of_a_newer_gateway_is_shown_as_it_is() {
        assert_eq!(phase(99), "Phase99");
        assert_eq!(phase(Phase::Ready.into()), "Ready");
    }

    #[test]
    fn rows_have_as_many_cells_as_headers() {
        let sandbox = Sandbox::from(api::Sandbox::default());
        let exec = Exec::from(api::ExecInfo::default());
        for wide in [false, true] {
            assert_eq!(Sandbox::header(wide).len(), sandbox.cells(wide).len());
            assert_eq!(Exec::header(wide).len(), exec.cells(wide).len());
        }
        let attached = Attached {
            sandbox_id: String::new(),
            sandbox: String::new(),
            phase: String::new(),
            session: None,
        };
        assert_eq!(Attached::header(false).len(), attached.cells(false).len());
    }
}
