//! The API's objects as they are shown: stable JSON (snake_case, documented by these structs) and table rows.
//! No field here ever holds an environment variable's value.

mod exec;
mod sandbox;

use holdfast_wire::api::{self, OnDisconnect, Phase};
use prost_types::Timestamp;
use serde::Serialize;

pub(crate) use self::{
    exec::{Exec, Outcome, Record},
    sandbox::{Sandbox, Session},
};
use crate::output::Row;

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
        vec![
            "sandbox",
            "phase",
            "epoch",
            "remote",
            "rtt",
            "heard",
            "lost",
            "moved",
            "rebound",
            "dials",
            "last dial",
            "last change of path",
            "relays",
            "spool",
        ]
    }

    fn cells(&self, _: bool) -> Vec<String> {
        let mut cells = vec![self.sandbox.clone(), self.phase.clone()];
        let Some(session) = &self.session else {
            cells.extend(std::iter::repeat_n("-".to_owned(), 12));
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
            session.rebinds.to_string(),
            session.dials.to_string(),
            match session.last_away_ms {
                Some(away) if away > 0.0 => {
                    format!("{}, away {:.1} s", dash(&session.last_dial_reason), away / 1000.0)
                }
                _ => dash(&session.last_dial_reason),
            },
            match &session.last_path_change_at {
                // To the second.
                Some(at) => {
                    format!("{}, {}", dash(&session.last_path_change), at.split('.').next().unwrap_or(at))
                }
                None => dash(&session.last_path_change),
            },
            session.open_relays.to_string(),
            bytes(session.spool_bytes),
        ]);
        cells
    }

    fn name(&self) -> String {
        self.sandbox.clone()
    }
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
    use holdfast_wire::api::{ExecState, outcome::Kind};

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
