//! Writes, syncs, reads and removes a file in the workspace, once that is known to be the one of the start: as the user
//! whose commands run there, for root may write where that user may not.

use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use holdfast_wire::control::ProbeResult;
use tokio::{sync::oneshot, time::Instant};
use uuid::Uuid;

use super::millis;
use crate::{
    files::become_user,
    workspace::{self, Workspace},
};

/// Threads that may hang in the workspace's mount at once. One would do to know; the others allow for a mount
/// that comes back while one of them is beyond help.
const MAX_STUCK: usize = 3;

/// What the files of the probe are called: hidden, and recognisable should a crash leave one behind.
const PREFIX: &str = ".holdfast-probe-";

#[derive(Debug)]
pub(super) struct FilesystemProbe {
    workspace: Workspace,
    /// Whose commands run in it; empty: who the supervisor is.
    user: String,
    /// Threads inside a system call on the workspace now.
    inside: Arc<AtomicUsize>,
}

/// What failed: the call, its target, and what the system said.
#[derive(Debug, thiserror::Error)]
#[error("{call} {}", workspace::explain(path, source))]
struct Failure {
    call: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FilesystemProbe {
    pub(super) fn new(workspace: Workspace, user: String) -> Self {
        Self { workspace, user, inside: Arc::default() }
    }

    /// One probe, given up at `deadline`.
    pub(super) async fn probe(&self, deadline: Instant) -> ProbeResult {
        self.run(deadline, write_and_read).await
    }

    async fn run(
        &self,
        deadline: Instant,
        probe: impl FnOnce(&Workspace) -> Result<(), Failure> + Send + 'static,
    ) -> ProbeResult {
        let started = Instant::now();
        let result = |ok, errno, message| ProbeResult { ok, errno, message, took_ms: millis(started) };
        let Some(inside) = Inside::enter(&self.inside) else {
            let message = format!(
                "{}: {MAX_STUCK} earlier probes still hang in the file system and cannot be stopped",
                self.workspace.path().display()
            );
            return result(false, rustix::io::Errno::TIMEDOUT.raw_os_error(), message);
        };
        let (workspace, user) = (self.workspace.clone(), self.user.clone());
        let (tell, told) = oneshot::channel();
        // Not one of the runtime's threads: it never becomes anybody else again.
        let work = move || {
            let _inside = inside;
            // Nobody may wait for it any more.
            let _ = tell.send(as_user(&user, || probe(&workspace)));
        };
        if let Err(error) = std::thread::Builder::new().name("probe".to_owned()).spawn(work) {
            return result(
                false,
                error.raw_os_error().unwrap_or(0),
                format!("no thread for a probe: {error}"),
            );
        }
        match tokio::time::timeout_at(deadline, told).await {
            Ok(Ok(Ok(()))) => result(true, 0, String::new()),
            Ok(Ok(Err((errno, message)))) => result(false, errno, message),
            Ok(Err(_)) => result(false, 0, "the probe's own thread has panicked".to_owned()),
            Err(_) => {
                let message = format!(
                    "{}: no answer within {:.1} s: the file system hangs",
                    self.workspace.path().display(),
                    started.elapsed().as_secs_f64()
                );
                result(false, rustix::io::Errno::TIMEDOUT.raw_os_error(), message)
            }
        }
    }
}

/// Counted for as long as it lives, on whatever thread.
#[derive(Debug)]
struct Inside(Arc<AtomicUsize>);

impl Inside {
    fn enter(count: &Arc<AtomicUsize>) -> Option<Self> {
        let enter = |n: usize| (n < MAX_STUCK).then_some(n + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).ok()?;
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The probe, as `user`; what failed as errno and words.
fn as_user(user: &str, probe: impl FnOnce() -> Result<(), Failure>) -> Result<(), (i32, String)> {
    become_user(user, Path::new("/etc")).map_err(|failure| (failure.errno, failure.to_string()))?;
    probe().map_err(|failure| {
        let errno = failure.source.raw_os_error().unwrap_or(0);
        let who = if user.is_empty() { String::new() } else { format!(" (as the user {user})") };
        (errno, format!("{failure}{who}"))
    })
}

fn write_and_read(workspace: &Workspace) -> Result<(), Failure> {
    let path = workspace.path();
    workspace.check().map_err(|source| Failure { call: "looking at", path: path.to_owned(), source })?;
    // Unique: a copy of this sandbox, or another mount of the same volume, may be probing too.
    let token = Uuid::new_v4().to_string();
    let path = path.join(format!("{PREFIX}{token}"));
    let failed = |call| {
        let path = path.clone();
        move |source| Failure { call, path, source }
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed("creating"))?;
    let outcome = (|| {
        file.write_all(token.as_bytes()).map_err(failed("writing"))?;
        // Some mounts (NFS, FUSE) tell of a full or dead server only now.
        file.sync_all().map_err(failed("syncing"))?;
        let mut back = String::new();
        // Through the path again: the directory has to know it too.
        let reader = std::fs::File::open(&path).map_err(failed("opening"))?;
        reader.take(token.len() as u64 + 1).read_to_string(&mut back).map_err(failed("reading"))?;
        if back == token {
            return Ok(());
        }
        let source =
            io::Error::other(format!("{} bytes written, {} other bytes read", token.len(), back.len()));
        Err(failed("comparing")(source))
    })();
    let removed = std::fs::remove_file(&path).map_err(failed("removing"));
    // The first failure is the one to tell.
    outcome.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::PermissionsExt, time::Duration};

    fn in_a_second() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    fn probing(workspace: Workspace) -> FilesystemProbe {
        FilesystemProbe::new(workspace, String::new())
    }

    #[tokio::test]
    async fn a_good_workspace_passes_and_stays_clean() {
        let dir = tempfile::tempdir().unwrap();
        let result = probing(Workspace::at(dir.path().to_owned())).probe(in_a_second()).await;
        assert!(result.ok, "{result:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_workspace_that_is_gone_is_named_with_its_errno() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("workspace");
        let result = probing(Workspace::at(gone.clone())).probe(in_a_second()).await;
        assert!(!result.ok);
        assert_eq!(result.errno, rustix::io::Errno::NOENT.raw_os_error());
        assert!(result.message.contains("looking at") && result.message.contains(gone.to_str().unwrap()));
    }

    #[tokio::test]
    async fn an_empty_directory_in_its_place_is_not_the_workspace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("workspace");
        std::fs::create_dir(&path).unwrap();
        let probe = probing(Workspace::at(path.clone()));
        std::fs::rename(&path, dir.path().join("away")).unwrap();
        std::fs::create_dir(&path).unwrap();
        let result = probe.probe(in_a_second()).await;
        assert_eq!(result.errno, rustix::io::Errno::STALE.raw_os_error());
        assert!(result.message.contains(path.to_str().unwrap()), "{result:?}");
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(dir.path().join("away"), &path).unwrap();
        assert!(probe.probe(in_a_second()).await.ok);
    }

    #[tokio::test]
    async fn a_read_only_workspace_fails_for_whoever_is_not_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
        let result = probing(Workspace::at(dir.path().to_owned())).probe(in_a_second()).await;
        let expected =
            if rustix::process::geteuid().is_root() { 0 } else { rustix::io::Errno::ACCESS.raw_os_error() };
        assert_eq!(result.errno, expected, "{result:?}");
    }

    #[tokio::test]
    async fn a_workspace_that_its_user_cannot_write_fails_although_root_could() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let workspace = Workspace::at(dir.path().to_owned());
        let probe = FilesystemProbe::new(workspace.clone(), "65534:65534".to_owned());
        let result = probe.probe(in_a_second()).await;
        assert!(!result.ok && result.message.contains("65534"), "{result:?}");
        if !rustix::process::geteuid().is_root() {
            assert!(result.message.contains("cannot act"), "{result:?}");
            return;
        }
        assert_eq!(result.errno, rustix::io::Errno::ACCESS.raw_os_error(), "{result:?}");
        // Whoever else probes is who it was.
        assert!(probing(workspace).probe(in_a_second()).await.ok);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(probe.probe(in_a_second()).await.ok);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_hung_file_system_costs_a_few_threads_and_no_more() {
        let probe = probing(Workspace::at(PathBuf::from("/nowhere")));
        let stuck: Vec<_> = (0..MAX_STUCK).map(|_| Inside::enter(&probe.inside).unwrap()).collect();
        let result = probe.probe(in_a_second()).await;
        assert!(!result.ok && result.message.contains("still hang"), "{result:?}");
        drop(stuck);
        let result = probe.probe(in_a_second()).await;
        assert_eq!(
            result.errno,
            rustix::io::Errno::NOENT.raw_os_error(),
            "they came back, so it tries again"
        );
    }

    #[tokio::test]
    async fn a_probe_that_hangs_is_given_up_at_its_deadline_and_counted_until_it_returns() {
        let probe = probing(Workspace::at(PathBuf::from("/mnt/dead")));
        let (release, hang) = std::sync::mpsc::sync_channel::<()>(0);
        let soon = Instant::now() + Duration::from_millis(50);
        let hanging = move |_: &Workspace| {
            hang.recv().ok();
            Ok(())
        };
        let result = probe.run(soon, hanging).await;
        assert_eq!(result.errno, rustix::io::Errno::TIMEDOUT.raw_os_error());
        assert!(result.message.contains("/mnt/dead") && result.message.contains("hangs"), "{result:?}");
        assert_eq!(probe.inside.load(Ordering::Relaxed), 1);
        drop(release);
        // The thread returns by itself; its count is the condition to wait for.
        while probe.inside.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    }
}
