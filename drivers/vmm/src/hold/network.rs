//! gvproxy: started, connected to, and watched.
//!
//! It listens on one Unix socket in the workload's directory and on nothing else: no forwards, no ssh port, no services.
//! The socket's name is short however deep the directory lies, because both ends reach it by `/proc/self/cwd`.

use std::{
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use holdfast_drivers::vm::{filter::MTU, launch::Launch, log::BoundedLog};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{own_program, pump};

/// gvproxy's own directory in the workload's, and all that it sees of it: its user may make its socket there.
const DIR: &str = "net";
/// A Unix socket's path may have 107 bytes, and the workload's directory more: it is the current directory of both
/// ends.
const SOCKET_BY_CWD: &str = "/proc/self/cwd/net.sock";
/// It listens within milliseconds; an emulated processor on a loaded machine takes seconds to start a Go program.
const LISTEN_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks for the socket. gvproxy announces it only in its log.
const LISTEN_PAUSE: Duration = Duration::from_millis(10);
/// What gvproxy may say: a line for each thing that it could not deliver.
const LOG_BYTES: u64 = 256 * 1024;

/// A machine's network.
#[derive(Debug)]
pub(super) struct Network {
    child: Child,
    /// The frames, until the relay takes them.
    pub(super) frames: Option<UnixStream>,
    _log: JoinSet<()>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum NetworkError {
    #[error("starting gvproxy ({path}): {source}")]
    Start { path: String, source: io::Error },
    #[error("gvproxy ended at its start ({status}); see gvproxy.log")]
    Ended { status: ExitStatus },
    #[error("gvproxy does not listen after {LISTEN_PATIENCE:?}: {source}")]
    Silent { source: io::Error },
}

impl Network {
    pub(super) async fn start(launch: &Launch) -> Result<Self, NetworkError> {
        let started = Self::try_start(launch).await;
        if started.is_err() {
            let _ = std::fs::remove_dir_all(launch.dir.to_path().join(DIR));
        }
        started
    }

    async fn try_start(launch: &Launch) -> Result<Self, NetworkError> {
        let program = launch.gvproxy.to_path();
        let failed = |source: io::Error| NetworkError::Start { path: program.display().to_string(), source };
        let dir = net_dir(&launch.dir.to_path(), launch.network_user()).map_err(failed)?;
        let mut child = Command::new(own_program())
            .arg("network")
            .args([std::process::id(), launch.network_user()].map(|number| number.to_string()))
            .arg(&program)
            .args(["-listen-qemu", &format!("unix://{SOCKET_BY_CWD}"), "-ssh-port", "-1"])
            .args(["-mtu", &MTU.to_string()])
            .env_clear()
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let mut logs = JoinSet::new();
        let log = BoundedLog::open(&launch.dir.to_path(), "gvproxy.log", LOG_BYTES).map_err(failed)?;
        if let Some(stderr) = child.stderr.take() {
            logs.spawn(pump::run(stderr, log));
        }
        // The holder's own directory, too, so that the short name leads to the socket for it, too.
        std::env::set_current_dir(&dir).map_err(failed)?;
        let deadline = Instant::now() + LISTEN_PATIENCE;
        let frames = loop {
            let source = match UnixStream::connect(SOCKET_BY_CWD).await {
                Ok(frames) => break frames,
                Err(source) => source,
            };
            if let Ok(Some(status)) = child.try_wait() {
                return Err(NetworkError::Ended { status });
            }
            if Instant::now() >= deadline {
                return Err(NetworkError::Silent { source });
            }
            sleep(LISTEN_PAUSE).await;
        };
        Ok(Self { child, frames: Some(frames), _log: logs })
    }

    /// Waits for gvproxy's end.
    pub(super) async fn ended(&mut self) -> Option<ExitStatus> {
        self.child.wait().await.ok()
    }

    pub(super) async fn kill(&mut self) {
        let _ = self.child.kill().await;
        // Killed, it does not take its socket along.
        let _ = std::fs::remove_file(SOCKET_BY_CWD);
        if let Ok(dir) = std::env::current_dir() {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// A new directory, in which gvproxy's group may make its socket. It stays the holder's own, which removes it without
/// any right over others' files.
fn net_dir(dir: &Path, group: u32) -> io::Result<PathBuf> {
    let path = dir.join(DIR);
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(&path)?;
    if rustix::process::geteuid().is_root() {
        chown(&path, None, Some(group))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o770))?;
    }
    Ok(path)
}
