//! `machine.json`: what a machine's holder has to tell, for the driver of today and of tomorrow.
//!
//! The holder writes it at each stage of the boot, and last of all why the machine ended: a process's exit code could
//! not say that. It is replaced by renaming, so that a reader finds the old text or the new one.

use std::{fmt, fs, io, io::Read, path::Path};

use serde::{Deserialize, Serialize};

/// The file in the workload's directory.
pub const FILE: &str = "machine.json";
/// The largest note that is read, in bytes: a reason, and the tail of a console.
const MAX_BYTES: u64 = 64 * 1024;

/// How far a machine has come, and its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The last stage of the boot that was reached.
    pub stage: Stage,
    /// Why there is no machine any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// The stages that a machine goes through by itself. `dialled`, `attached` and `probed` come after them; the gateway
/// sees those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The holder has its launch.
    Spec,
    /// gvproxy listens, and the filter stands before it.
    Network,
    /// The machine process was started: its kernel boots.
    Kernel,
    /// The supervisor is the guest's first process, with its file systems and its network.
    Init,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spec => "spec",
            Self::Network => "network",
            Self::Kernel => "kernel",
            Self::Init => "init",
        })
    }
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// In one CamelCase word, such as `NetworkLost`.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Note {
    /// Reads the note in `dir`; `None` where there is none that can be understood.
    #[must_use]
    pub fn read(dir: &Path) -> Option<Self> {
        let mut text = Vec::new();
        fs::File::open(dir.join(FILE)).ok()?.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes it into `dir`.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("machine.json.new");
        fs::write(&new, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        fs::rename(&new, dir.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Note::read(dir.path()), None);
        let end = Some(End { reason: "NetworkLost".into(), message: "gvproxy ended".into() });
        let note = Note { stage: Stage::Init, end };
        note.write(dir.path()).unwrap();
        assert_eq!(Note::read(dir.path()), Some(note));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(Note::read(dir.path()), None);
    }
}
