//! `machine.json`: what a machine's holder has to tell, for the driver of today and of tomorrow.
//!
//! The holder writes it at each stage of the boot, and last of all why the machine ended: a process's exit code could
//! not say that. It is replaced by renaming, so that a reader finds the old text or the new one.

use std::{fs, io, io::Read, path::Path};

use serde::{Deserialize, Serialize};

use crate::Boot;

/// The file in the workload's directory.
pub const FILE: &str = "machine.json";
/// The largest note that is read, in bytes: a reason, and the tail of a console.
const MAX_BYTES: u64 = 64 * 1024;

/// How far a machine has come, and its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The stages of the boot that were reached.
    pub boot: Boot,
    /// Why there is no machine any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
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
    use crate::BootStage;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Note::read(dir.path()), None);
        let end = Some(End { reason: "NetworkLost".into(), message: "gvproxy ended".into() });
        let mut boot = Boot::default();
        boot.reach(BootStage::Init);
        let note = Note { boot, end };
        note.write(dir.path()).unwrap();
        assert_eq!(Note::read(dir.path()), Some(note));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(Note::read(dir.path()), None);
    }
}
