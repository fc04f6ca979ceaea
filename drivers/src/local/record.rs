//! `workload.json`: what the driver must know of a workload after its own death.
//!
//! It is written before anything is started, and again at each turn in the workload's life, by rename, so that
//! a reader finds the old text or the new one. The next gateway reads it and goes on from there.

use std::{io, path::PathBuf};

use holdfast_wire::ids::{Generation, SandboxId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{files::Dir, process::ProcessId};
use crate::{Exit, WorkloadSpec};

/// The record's file in the workload's directory.
pub(super) const FILE: &str = "workload.json";

/// What this build writes. A record of a newer form is left alone.
const FORM: u32 = 1;

/// The largest record that is read, in bytes: with the most spared processes it has under 512 KiB.
const MAX_BYTES: u64 = 1024 * 1024;

/// One workload, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    form: u32,
    pub(super) sandbox: SandboxId,
    pub(super) generation: Generation,
    /// For people who look into the directory.
    pub(super) name: String,
    /// Where it was made. In a copied or moved directory this is another one, whose processes are not ours.
    pub(super) dir: PathBuf,
    /// It has had its workspace: a later generation finds it there, or is not made.
    #[serde(default)]
    pub(super) has_workspace: bool,
    pub(super) stage: Stage,
}

/// How far the workload's life has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(super) enum Stage {
    /// Files are being laid out; there may or may not be a process already.
    Starting { since: Timestamp },
    /// There is a process.
    Running(Running),
    /// There was a process.
    Ended(Ended),
    /// There never was one.
    Failed { message: String, at: Timestamp },
}

/// A workload with a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) process: ProcessId,
    /// Whether it has PID and mount namespaces of its own.
    pub(super) namespaces: bool,
    pub(super) since: Timestamp,
    /// Somebody asked it to end.
    #[serde(default)]
    pub(super) stop_asked: bool,
    /// Frozen, but for those that were stopped before: they stay so when the rest runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) paused: Option<Spared>,
}

/// Processes that had been stopped by somebody else before the workload was paused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spared {
    pub(super) processes: Vec<ProcessId>,
}

/// A workload whose process is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) exit: Exit,
    /// It ended because it was asked to.
    pub(super) asked: bool,
    /// The machine was started anew since.
    #[serde(default)]
    pub(super) rebooted: bool,
    pub(super) at: Timestamp,
}

impl Record {
    /// The record of a workload that is about to be made in `dir`.
    pub(super) fn starting(spec: &WorkloadSpec, dir: PathBuf) -> Self {
        Self {
            form: FORM,
            sandbox: spec.sandbox,
            generation: spec.generation,
            name: spec.name.clone(),
            dir,
            has_workspace: false,
            stage: Stage::Starting { since: Timestamp::now() },
        }
    }

    /// Reads the record in `dir`; `None` where there is none.
    pub(super) fn read(dir: &Dir, sandbox: SandboxId) -> Result<Option<Self>, String> {
        let text = match dir.read(FILE, MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("reading {}: {error}", dir.path().join(FILE).display())),
        };
        let record: Self = serde_json::from_slice(&text)
            .map_err(|error| format!("{} does not parse: {error}", dir.path().join(FILE).display()))?;
        if record.form > FORM {
            return Err(format!("{} was written by a newer Holdfast (form {})", FILE, record.form));
        }
        if record.sandbox != sandbox {
            return Err(format!("{} is the record of another sandbox, {}", FILE, record.sandbox));
        }
        Ok(Some(record))
    }

    /// Writes the record into `dir`.
    pub(super) fn write(&self, dir: &Dir) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        dir.write(FILE, 0o600, &text)
    }
}
