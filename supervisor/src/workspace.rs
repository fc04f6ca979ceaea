//! The workspace: is it still the directory that this supervisor was started with?
//!
//! A path alone does not say. Where a volume was unmounted under a paused sandbox, or a directory was moved away and
//! made anew, the path leads to another, empty directory: everything works there, and all files are gone. So the
//! directory is remembered by device and inode when it is first seen, and one that is another has failed, with
//! ESTALE. Put back, it is the same again. What is compared is the root alone: what is in it is the user's.
//!
//! Asked before each probe, and before each command that runs in it: a command must not start in the wrong place.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use futures::future::BoxFuture;
use holdfast_wire::{api::StartFailure, ids::ExecId};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use crate::execs::spawn::{MemoryUse, ProcessMark, SpawnError, SpawnRequest, Spawned, Spawner};

/// Looks at the workspace that may be under way before a command: a system call on a dead mount hangs for ever, and
/// takes a thread of the runtime with it. Beyond these, commands wait, and run into their deadline for starting.
const LOOKS: usize = 4;

/// The workspace, as it was first seen. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Workspace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    first: OnceLock<Place>,
    looks: Arc<Semaphore>,
}

/// Which directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    device: u64,
    inode: u64,
}

impl Workspace {
    /// Remembers the directory at `path`; one that is not there yet is remembered when it is first seen.
    pub(crate) fn at(path: PathBuf) -> Self {
        let workspace =
            Self(Arc::new(Inner { path, first: OnceLock::new(), looks: Arc::new(Semaphore::new(LOOKS)) }));
        if let Err(error) = workspace.check() {
            tracing::warn!(workspace = %workspace.path().display(), %error, "the workspace is not there");
        }
        workspace
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether it is there, and the same. A system call: it hangs where the mount does.
    pub(crate) fn check(&self) -> io::Result<()> {
        let metadata = std::fs::metadata(&self.0.path)?;
        if !metadata.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        let now = Place { device: metadata.dev(), inode: metadata.ino() };
        if *self.0.first.get_or_init(|| now) == now { Ok(()) } else { Err(Errno::STALE.into()) }
    }
}

/// In words: what a person can do with it.
pub(crate) fn explain(path: &Path, error: &io::Error) -> String {
    if error.raw_os_error() == Some(Errno::STALE.raw_os_error()) {
        return format!(
            "{} is another directory than the one this sandbox was started with: it was replaced or unmounted; put it back",
            path.display()
        );
    }
    format!("{}: {error}", path.display())
}

/// Starts commands, those of the workspace only while it is there and the same.
#[derive(Debug)]
pub(crate) struct InWorkspace<S> {
    pub(crate) spawner: Arc<S>,
    pub(crate) workspace: Workspace,
}

impl<S: Spawner> Spawner for InWorkspace<S> {
    fn spawn(&self, request: SpawnRequest) -> BoxFuture<'static, Result<Spawned, SpawnError>> {
        let (spawner, workspace) = (Arc::clone(&self.spawner), self.workspace.clone());
        if !request.cwd.starts_with(workspace.path()) {
            return spawner.spawn(request);
        }
        Box::pin(async move {
            look(&workspace).await?;
            spawner.spawn(request).await
        })
    }

    fn kill_leftovers(&self, exec: ExecId, mark: &ProcessMark) -> usize {
        self.spawner.kill_leftovers(exec, mark)
    }

    fn memory(&self) -> MemoryUse {
        self.spawner.memory()
    }
}

/// One look, on a thread that may hang.
async fn look(workspace: &Workspace) -> Result<(), SpawnError> {
    let failed = |error: &io::Error| SpawnError {
        kind: StartFailure::BadCwd,
        errno: error.raw_os_error().unwrap_or(0),
        message: format!("the workspace {}", explain(workspace.path(), error)),
    };
    let Ok(permit) = Arc::clone(&workspace.0.looks).acquire_owned().await else {
        return Err(failed(&io::Error::other("nobody may look at it any more")));
    };
    let looked = workspace.clone();
    let look = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        looked.check()
    });
    match look.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(&error)),
        Err(error) => Err(failed(&io::Error::other(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execs::spawn::FakeSpawner;

    fn errno(result: io::Result<()>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }

    #[test]
    fn one_that_is_moved_away_replaced_and_put_back_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("workspace"), dir.path().join("away"));
        std::fs::create_dir(&path).unwrap();
        let workspace = Workspace::at(path.clone());
        workspace.check().unwrap();
        std::fs::rename(&path, &away).unwrap();
        assert_eq!(errno(workspace.check()), Some(Errno::NOENT.raw_os_error()));
        std::fs::create_dir(&path).unwrap();
        assert_eq!(errno(workspace.check()), Some(Errno::STALE.raw_os_error()), "an empty one is not it");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, "no directory").unwrap();
        assert_eq!(errno(workspace.check()), Some(Errno::NOTDIR.raw_os_error()));
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&away, &path).unwrap();
        workspace.check().unwrap();
    }

    #[test]
    fn one_that_comes_later_is_taken_as_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("workspace");
        let workspace = Workspace::at(path.clone());
        assert!(workspace.check().is_err());
        std::fs::create_dir(&path).unwrap();
        workspace.check().unwrap();
    }

    #[tokio::test]
    async fn a_command_of_the_workspace_does_not_start_in_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("workspace");
        std::fs::create_dir(&path).unwrap();
        let spawner =
            InWorkspace { spawner: Arc::new(FakeSpawner::new()), workspace: Workspace::at(path.clone()) };
        let request = |cwd: &Path| SpawnRequest {
            exec: ExecId::random(),
            argv: vec!["/bin/sh".into(), "-c".into(), "exit 0".into()],
            env: Vec::new(),
            cwd: cwd.to_owned(),
            in_workspace: true,
            user: None,
            tty: None,
            stdin: false,
        };
        spawner.spawn(request(&path)).await.unwrap();
        std::fs::rename(&path, dir.path().join("away")).unwrap();
        std::fs::create_dir(&path).unwrap();
        for cwd in [path.clone(), path.join("below")] {
            let error = spawner.spawn(request(&cwd)).await.unwrap_err();
            assert_eq!(error.errno, Errno::STALE.raw_os_error());
            assert!(error.message.contains(path.to_str().unwrap()), "{}", error.message);
            assert!(error.message.contains("put it back"), "{}", error.message);
        }
        spawner.spawn(request(Path::new("/"))).await.expect("what does not need it runs");
    }
}
