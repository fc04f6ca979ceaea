//! A sandbox, its conditions and its session.

use std::collections::BTreeMap;

use holdfast_wire::api;
use serde::Serialize;

use super::{age, dash, milliseconds, phase, time, word};
use crate::output::Row;

/// The condition that tells of the main command.
const MAIN: &str = "MainCommand";

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
    pub(crate) disk_bytes: u64,
    /// `disk`, `ephemeral`; empty: the driver's only way.
    pub(crate) workspace: String,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) network: String,
    pub(crate) read_only_root: bool,
    pub(crate) main: Option<Main>,
    pub(crate) last_error: Option<LastError>,
    pub(crate) session: Option<Session>,
    pub(crate) created_at: Option<String>,
    pub(crate) ttl_s: Option<f64>,
    pub(crate) expires_at: Option<String>,
    pub(crate) idle_stop_s: Option<f64>,
    #[serde(skip)]
    age: String,
}

/// The main command: the exec that it is in this workload; what became of it is a condition.
#[derive(Debug, Serialize)]
pub(crate) struct Main {
    args: Vec<String>,
    exec_id: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Mount {
    source: String,
    target: String,
    read_only: bool,
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
    pub(super) session_id: String,
    pub(super) epoch: u64,
    pub(super) instance: String,
    pub(super) supervisor_version: String,
    pub(super) attached_at: Option<String>,
    pub(super) remote_address: String,
    pub(super) rtt_ms: Option<f64>,
    pub(super) last_heard_ms: Option<f64>,
    pub(super) lost_packets: u64,
    pub(super) sent_packets: u64,
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
    pub(super) migrations: u64,
    pub(super) dials: u64,
    pub(super) last_dial_reason: String,
    pub(super) last_away_ms: Option<f64>,
    pub(super) rebinds: u64,
    pub(super) last_path_change: String,
    pub(super) last_path_change_at: Option<String>,
    pub(super) mtu: u32,
    pub(super) open_relays: u32,
    pub(super) spool_bytes: u64,
    pub(super) spool_limit_bytes: u64,
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
            disk_bytes: resources.disk_bytes,
            workspace: spec.workspace,
            mounts: spec
                .mounts
                .into_iter()
                .map(|mount| Mount { source: mount.source, target: mount.target, read_only: mount.read_only })
                .collect(),
            network: spec.network,
            read_only_root: spec.read_only_root,
            main: spec.main.map(|main| Main { args: main.args, exec_id: status.main_exec_id }),
            last_error: status.last_error.map(|error| LastError {
                reason: error.reason,
                message: error.message,
                source: error.source,
                at: time(error.at.as_ref()),
            }),
            session: status.session.map(Session::from),
            created_at: time(sandbox.created_at.as_ref()),
            ttl_s: seconds(spec.ttl),
            expires_at: time(status.expires_at.as_ref()),
            idle_stop_s: seconds(spec.idle_stop),
        }
    }
}

impl Sandbox {
    /// What a person wants to know who asks for this one: what is wrong, what was, and when it ends.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let name = &self.name;
        let mut remarks = Vec::new();
        if !self.message.is_empty() {
            remarks.push(format!("{name}: {}", self.message));
        }
        let booting = self
            .conditions
            .iter()
            .find(|condition| condition.kind == "Booted" && condition.status == "False");
        if let Some(booted) = booting.filter(|_| self.phase == "Provisioning") {
            let since = booted.last_transition_time.as_deref().unwrap_or("an unknown time");
            remarks.push(format!("{name}: boot: {} since {since}; {}", booted.reason, booted.message));
        }
        if let Some(last) = self.last_error.as_ref().filter(|last| last.message != self.message) {
            let at = last.at.as_deref().unwrap_or("an unknown time");
            remarks.push(format!(
                "{name}: last error, at {at}: {} ({}): {}",
                last.reason, last.source, last.message
            ));
        }
        if let (Some(main), Some(now)) = (&self.main, self.main_condition()) {
            let message = if now.message.is_empty() { String::new() } else { format!(": {}", now.message) };
            remarks.push(format!("{name}: main command: {}{message} (exec {})", now.reason, main.exec_id));
        }
        if self.expires_at.is_some() || self.idle_stop_s.is_some() {
            remarks.push(format!("{name}: {}", self.lifetime()));
        }
        remarks
    }

    fn main_condition(&self) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == MAIN)
    }

    /// Its files are in its memory: a stop takes them.
    pub(crate) fn is_ephemeral(&self) -> bool {
        self.workspace == "ephemeral"
    }

    /// How long it lives, and may be idle, in a line.
    pub(crate) fn lifetime(&self) -> String {
        let idle = self.idle_stop_s.map(|idle| {
            let idle = std::time::Duration::try_from_secs_f64(idle).unwrap_or_default();
            format!("stopped after {} without activity", humantime::format_duration(idle))
        });
        let expires = self.expires_at.as_ref().map(|at| format!("deleted at {at}"));
        let parts: Vec<_> = expires.into_iter().chain(idle).collect();
        if parts.is_empty() { "lives until it is deleted".to_owned() } else { parts.join("; ") }
    }
}

fn seconds(span: Option<prost_types::Duration>) -> Option<f64> {
    let span = std::time::Duration::try_from(span?).ok()?;
    (!span.is_zero()).then_some(span.as_secs_f64())
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
            last_away_ms: milliseconds(session.last_away),
            rebinds: session.rebinds,
            last_path_change_at: time(session.last_path_change_at.as_ref()),
            last_path_change: session.last_path_change,
            dials: session.dials,
            last_dial_reason: session.last_dial_reason,
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
            // What should be so; a main command that has ended is nothing that is missing.
            let all = || self.conditions.iter().filter(|condition| condition.kind != MAIN);
            let unmet = all().filter(|condition| condition.status != "True");
            let mut words: Vec<_> =
                unmet.map(|condition| format!("{}={}", condition.kind, condition.status)).collect();
            let met = all().count() - words.len();
            words.extend(self.main_condition().map(|main| format!("{MAIN}={}", main.reason)));
            let conditions = format!("{met}/{} {}", all().count(), words.join(" "));
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
