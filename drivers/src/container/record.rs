//! What the driver keeps of a workload beside the engine: the record and the supervisor's files.
//!
//! ```text
//!   <root>/                        0700, one gateway's alone (.lock)
//!     installation                 the id that this root's containers and volumes are labelled with
//!     <sandbox id>/                0700
//!       workload.json              the record
//!       generation-<n>/            made for one generation, never written again once its container has run
//!         supervisor.toml          0400, what the supervisor reads at start
//!         identity/                cert.pem key.pem ca.pem, 0400; the supervisor renews them
//!       state/                     the supervisor's: spool and lock
//! ```
//!
//! The engine says what a container is doing; the record says what it cannot: that an end was asked for, and that a
//! generation was made though nothing is left of it. `state` and `identity` are mounted into a container, whose
//! root may put anything there: so nothing of the gateway ever opens a file below them again.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use holdfast_wire::{
    bootstrap::{GatewayAddress, IdentityFiles, SupervisorConfig},
    ids::{Generation, SandboxId},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Shared, recipe};
use crate::{Boot, MainCommand, WorkloadSpec};

const FILE: &str = "workload.json";
const INSTALLATION: &str = "installation";
/// What this build writes. A record of a newer form is left alone.
const FORM: u32 = 1;
/// The largest record that is read, in bytes. Real ones have under 2 KiB; a main command may have 32 KiB, of which
/// each byte takes six where it is a control character.
const MAX_BYTES: u64 = 256 * 1024;

/// One workload, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) form: u32,
    pub(super) sandbox: SandboxId,
    pub(super) generation: Generation,
    /// For people who look into the directory.
    pub(super) name: String,
    /// The engine's id of the container, once there is one.
    #[serde(default)]
    pub(super) container: Option<String>,
    /// The engine was asked to start the container: from then on this generation is made, whatever becomes of it.
    #[serde(default)]
    pub(super) started: bool,
    /// Somebody asked it to end.
    #[serde(default)]
    pub(super) stop_asked: bool,
    /// Somebody asked for it to be frozen.
    #[serde(default)]
    pub(super) pause_asked: bool,
    /// The sandbox has had its volume: a later generation finds it there, or is not made.
    #[serde(default)]
    pub(super) has_workspace: bool,
    /// The kernel's log said that its first process was killed for memory: the log forgets.
    #[serde(default)]
    pub(super) oom_killed: bool,
    /// Why it could not be made.
    #[serde(default)]
    pub(super) failed: Option<String>,
    /// Whom its supervisor dials.
    #[serde(default)]
    pub(super) dials: Vec<String>,
    /// How far making it has come, before it was started.
    #[serde(default)]
    pub(super) boot: Boot,
    /// The main command, if one was asked for, as the image has it.
    #[serde(default)]
    pub(super) main: Option<MainCommand>,
    pub(super) since: Timestamp,
}

impl Record {
    pub(super) fn new(sandbox: SandboxId, generation: Generation, name: &str) -> Self {
        Self {
            form: FORM,
            sandbox,
            generation,
            name: name.to_owned(),
            container: None,
            started: false,
            stop_asked: false,
            pause_asked: false,
            has_workspace: false,
            oom_killed: false,
            failed: None,
            dials: Vec::new(),
            boot: Boot::default(),
            main: None,
            since: Timestamp::now(),
        }
    }

    /// Reads the record of a sandbox; `None` where there is none.
    pub(super) fn read(root: &Path, sandbox: SandboxId) -> Result<Option<Self>, String> {
        let path = root.join(sandbox.to_string()).join(FILE);
        let failed = |error: io::Error| format!("reading {}: {error}", path.display());
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
            Ok(facts) if facts.len() > MAX_BYTES => {
                return Err(failed(io::Error::other(format!("larger than {MAX_BYTES} bytes"))));
            }
            Ok(_) => {}
        }
        let record: Self = serde_json::from_slice(&fs::read(&path).map_err(failed)?)
            .map_err(|error| format!("{} does not parse: {error}", path.display()))?;
        if record.form > FORM {
            return Err(format!("{} was written by a newer Holdfast (form {})", path.display(), record.form));
        }
        if record.sandbox != sandbox {
            return Err(format!("{} is the record of another sandbox, {}", path.display(), record.sandbox));
        }
        Ok(Some(record))
    }

    /// Writes the record, by rename: a reader finds the old text or the new one.
    pub(super) fn write(&self, root: &Path) -> io::Result<()> {
        let dir = root.join(self.sandbox.to_string());
        make_dir(&dir)?;
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        let new = dir.join(format!("{FILE}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        write(&new, 0o600, &text)?;
        fs::rename(&new, dir.join(FILE))
    }
}

/// The directories of one generation that are mounted into its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inputs {
    pub(super) config: PathBuf,
    pub(super) identity: PathBuf,
    pub(super) state: PathBuf,
}

/// Writes what the supervisor of this generation reads, afresh. For blocking threads.
pub(super) fn lay_out(
    shared: &Shared,
    spec: &WorkloadSpec,
    dials: &[String],
    default_user: Option<String>,
) -> io::Result<Inputs> {
    let dir = shared.root.join(spec.sandbox.to_string());
    make_dir(&dir)?;
    let state = dir.join("state");
    make_dir(&state)?;
    let generation = dir.join(format!("generation-{}", spec.generation));
    // What a call that was given up left. Of a container that has run there is none: its generation is adopted.
    remove_dir(&generation)?;
    make_dir(&generation)?;
    let identity = generation.join("identity");
    make_dir(&identity)?;
    let bootstrap = &spec.bootstrap;
    write(&identity.join("cert.pem"), 0o400, bootstrap.cert_chain_pem.as_bytes())?;
    write(&identity.join("key.pem"), 0o400, bootstrap.key_pem.expose().as_bytes())?;
    write(&identity.join("ca.pem"), 0o400, bootstrap.ca_pem.as_bytes())?;
    let inside = Path::new(recipe::IDENTITY);
    let config = SupervisorConfig {
        sandbox_id: spec.sandbox,
        workload_generation: spec.generation,
        state_dir: recipe::STATE.into(),
        workspace: recipe::WORKSPACE.into(),
        init: true,
        // The engine has mounted it.
        mount_proc: false,
        default_user,
        gateway: GatewayAddress { addresses: dials.to_vec(), server_name: bootstrap.server_name.clone() },
        identity: IdentityFiles {
            cert: inside.join("cert.pem"),
            key: inside.join("key.pem"),
            ca: inside.join("ca.pem"),
        },
        spool: shared.settings.spool,
        log: shared.settings.log.clone(),
    };
    let path = generation.join("supervisor.toml");
    write(&path, 0o400, config.to_toml().map_err(io::Error::other)?.as_bytes())?;
    // The older generations' files: their containers are gone.
    for entry in fs::read_dir(&dir)?.flatten() {
        let name = entry.file_name();
        let older = name.to_str().is_some_and(|name| name.starts_with("generation-"));
        if older && entry.path() != generation {
            let _ = remove_dir(&entry.path());
        }
    }
    Ok(Inputs { config: path, identity, state })
}

/// Ends with nothing of the sandbox under the root. The record goes last, so that a removal that is interrupted is
/// carried on.
pub(super) fn remove(root: &Path, sandbox: SandboxId) -> io::Result<()> {
    let dir = root.join(sandbox.to_string());
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        match (entry.file_name() == FILE, entry.file_type()?.is_dir()) {
            (true, _) => {}
            (false, true) => remove_dir(&entry.path())?,
            (false, false) => fs::remove_file(entry.path())?,
        }
    }
    remove_dir(&dir)
}

/// The sandboxes under the root.
pub(super) fn sandboxes(root: &Path) -> io::Result<Vec<SandboxId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        // Written as Holdfast writes it: other spellings of a UUID are somebody else's directories.
        let id =
            name.to_str().and_then(|name| name.parse::<SandboxId>().ok().filter(|id| id.to_string() == name));
        found.extend(id);
    }
    Ok(found)
}

/// The id of this root, made at its first use.
pub(super) fn installation(root: &Path) -> io::Result<String> {
    let path = root.join(INSTALLATION);
    match fs::read_to_string(&path) {
        Ok(text) if uuid::Uuid::parse_str(text.trim()).is_ok() => Ok(text.trim().to_owned()),
        Ok(_) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} has no id in it", path.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = uuid::Uuid::new_v4().to_string();
            write(&path, 0o600, id.as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

/// Makes a directory of mode 0700, if it is not there.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// std's own removal follows no symbolic link, whatever a container has put there.
fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Writes a file that is not there yet.
fn write(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    use io::Write as _;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_removed_without_a_trace() {
        let root = tempfile::tempdir().unwrap();
        let sandbox = SandboxId::random();
        assert_eq!(Record::read(root.path(), sandbox).unwrap(), None);
        let mut record = Record::new(sandbox, Generation(2), "box");
        record.write(root.path()).unwrap();
        record.stop_asked = true;
        record.write(root.path()).unwrap();
        assert_eq!(Record::read(root.path(), sandbox).unwrap(), Some(record));
        assert_eq!(sandboxes(root.path()).unwrap(), [sandbox]);
        remove(root.path(), sandbox).unwrap();
        remove(root.path(), sandbox).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_container_left_leads_nowhere_when_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        let sandbox = SandboxId::random();
        Record::new(sandbox, Generation(1), "box").write(root.path()).unwrap();
        let state = root.path().join(sandbox.to_string()).join("state");
        make_dir(&state).unwrap();
        std::os::unix::fs::symlink(outside.path(), state.join("away")).unwrap();
        remove(root.path(), sandbox).unwrap();
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn an_installation_keeps_its_id() {
        let root = tempfile::tempdir().unwrap();
        let id = installation(root.path()).unwrap();
        assert_eq!(installation(root.path()).unwrap(), id);
    }

    #[test]
    fn a_newer_form_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let record = Record { form: FORM + 1, ..Record::new(SandboxId::random(), Generation(1), "box") };
        record.write(root.path()).unwrap();
        assert!(Record::read(root.path(), record.sandbox).unwrap_err().contains("newer Holdfast"));
    }
}
