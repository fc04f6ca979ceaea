//! One supervisor per state directory: a lock that the kernel gives back when its holder dies.
//!
//! A resumed snapshot or a restarted entrypoint can bring a second supervisor into the same sandbox. The second
//! one finds the lock held, says by whom, and ends.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

const FILE: &str = "supervisor.lock";

/// Held for as long as this lives.
#[derive(Debug)]
pub(crate) struct InstanceLock {
    _file: File,
}

/// The lock was not got.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another supervisor has it.
    #[error(
        "another supervisor ({holder}) already runs with the state directory {}: stop it first, or give this \
         one a directory of its own", state_dir.display()
    )]
    Held {
        /// The directory.
        state_dir: PathBuf,
        /// `pid 123`, or that it did not say.
        holder: String,
    },
    /// The directory or the file in it cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl InstanceLock {
    /// Takes the lock in `state_dir`, which is made (0700) if it is missing. Does not wait.
    pub(crate) fn acquire(state_dir: &Path) -> Result<Self, LockError> {
        DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(|source| LockError::Io {
            action: "create the state directory",
            path: state_dir.to_owned(),
            source,
        })?;
        let path = state_dir.join(FILE);
        let failed = |action| {
            let path = path.clone();
            move |source| LockError::Io { action, path, source }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Held { state_dir: state_dir.to_owned(), holder: holder_in(&file) });
            }
            Err(errno) => return Err(failed("lock")(errno.into())),
        }
        file.set_len(0).map_err(failed("write"))?;
        file.rewind().map_err(failed("write"))?;
        writeln!(file, "{}", std::process::id()).map_err(failed("write"))?;
        Ok(Self { _file: file })
    }

    /// Who holds the lock in `state_dir` now: `None` if nobody does.
    pub(crate) fn holder(state_dir: &Path) -> Result<Option<String>, LockError> {
        let path = state_dir.join(FILE);
        let failed = |action| {
            let path = path.clone();
            move |source| LockError::Io { action, path, source }
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open")(error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Some(holder_in(&file))),
            Err(errno) => Err(failed("lock")(errno.into())),
        }
    }
}

fn holder_in(file: &File) -> String {
    let mut text = String::new();
    // A pid has at most ten digits; whatever else is in there is not quoted.
    match file.take(16).read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(pid) => format!("pid {pid}"),
        None => "which has not written its pid yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_supervisor_is_told_who_was_first() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert_eq!(InstanceLock::holder(&state).unwrap(), None);
        let first = InstanceLock::acquire(&state).unwrap();
        let pid = format!("pid {}", std::process::id());
        let error = InstanceLock::acquire(&state).unwrap_err().to_string();
        assert!(error.contains(&pid) && error.contains(state.to_str().unwrap()), "{error}");
        assert_eq!(InstanceLock::holder(&state).unwrap(), Some(pid));
        drop(first);
        assert_eq!(InstanceLock::holder(&state).unwrap(), None);
        InstanceLock::acquire(&state).unwrap();
    }

    #[test]
    fn a_state_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = InstanceLock::acquire(&file.path().join("state")).unwrap_err().to_string();
        assert!(error.contains("create the state directory"), "{error}");
    }
}
