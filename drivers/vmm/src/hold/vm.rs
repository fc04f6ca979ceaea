//! The machine process, and the port to the supervisor inside.

use std::{
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::chown,
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use holdfast_drivers::vm::{
    control::{MAX_LINE, Report},
    launch::Launch,
    log::BoundedLog,
};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    io::{FdFlags, fcntl_setfd},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixStream, unix::pipe},
    process::{Child, ChildStdin, Command},
    task::JoinSet,
};

use super::{CONSOLE_TAIL, own_program, pump};
use crate::machine::CONSOLE;

/// What libkrun may say.
const LOG_BYTES: u64 = 256 * 1024;

/// A machine that was started.
#[derive(Debug)]
pub(super) struct Machine {
    child: Child,
    dir: PathBuf,
    /// The frames, until the relay takes them.
    pub(super) frames: Option<UnixStream>,
    pub(super) port: Port,
    /// Its end is the machine's end: see `machine`.
    _leash: ChildStdin,
    _logs: JoinSet<()>,
}

/// What a machine does.
#[derive(Debug)]
pub(super) enum News {
    /// Its supervisor reports.
    Says(Report),
    /// Its process is over.
    Ended(Option<ExitStatus>),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum MachineError {
    #[error("starting the machine process: {0}")]
    Start(#[from] io::Error),
    #[error(transparent)]
    Launch(#[from] holdfast_drivers::vm::launch::LaunchError),
}

impl Machine {
    pub(super) fn start(launch: &Launch, console: BoundedLog) -> Result<Self, MachineError> {
        let dir = launch.dir.to_path();
        let record = launch.encode()?;
        let (frames, their_frames) = std::os::unix::net::UnixStream::pair()?;
        let (port, their_port) = std::os::unix::net::UnixStream::pair()?;
        for ours in [&frames, &port] {
            ours.set_nonblocking(true)?;
        }
        let theirs: [OwnedFd; 2] = [their_frames.into(), their_port.into()];
        for fd in &theirs {
            // Nothing else is started meanwhile: this thread is the only one that starts processes.
            fcntl_setfd(fd, FdFlags::empty()).map_err(io::Error::from)?;
        }
        let [net, control] = theirs.each_ref().map(|fd| fd.as_raw_fd().to_string());
        let console_pipe = console_pipe(&dir)?;
        if rustix::process::geteuid().is_root() {
            // It becomes a user that may open these two and nothing else of this directory.
            chown(dir.join(CONSOLE), Some(launch.user), None)?;
            if let Some(disk) = &launch.disk {
                chown(disk.to_path(), Some(launch.user), None)?;
            }
        }
        let mut child = Command::new(own_program())
            .args(["machine", &net, &control])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        drop(theirs);

        let mut logs = JoinSet::new();
        logs.spawn(pump::run(console_pipe, console));
        if let Some(stderr) = child.stderr.take() {
            logs.spawn(pump::run(stderr, BoundedLog::open(&dir, "launcher.log", LOG_BYTES)?));
        }
        let leash = child.stdin.take().ok_or_else(|| io::Error::other("no pipe to the machine process"))?;
        write_launch(&leash, &record)?;
        Ok(Self {
            child,
            dir,
            frames: Some(UnixStream::from_std(frames)?),
            port: Port { stream: UnixStream::from_std(port)?, line: Vec::new() },
            _leash: leash,
            _logs: logs,
        })
    }

    /// Waits for the next thing that the machine does.
    pub(super) async fn next(&mut self) -> News {
        tokio::select! {
            report = self.port.next() => News::Says(report),
            status = self.child.wait() => News::Ended(status.ok()),
        }
    }

    /// Waits for the machine process's end.
    pub(super) async fn ended(&mut self) -> Option<ExitStatus> {
        self.child.wait().await.ok()
    }

    pub(super) async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }

    /// What went wrong, with the last words of the launcher and of the guest.
    pub(super) fn with_console(&self, message: &str) -> String {
        let tail = |name: &str| {
            let tail = BoundedLog::open(&self.dir, name, u64::MAX).and_then(|mut log| log.tail(CONSOLE_TAIL));
            let text = String::from_utf8_lossy(&tail.unwrap_or_default()).replace('\r', "");
            text.chars().filter(|c| *c == '\n' || !c.is_control()).collect::<String>()
        };
        let mut message = message.to_owned();
        for (name, what) in [("launcher.log", "the launcher said"), ("console.log", "the console's end")] {
            let text = tail(name);
            if !text.trim().is_empty() {
                message.push_str(&format!("; {what}: {}", text.trim()));
            }
        }
        message
    }
}

/// A new named pipe, read by this process. It also has a writing end open, so that it never ends.
fn console_pipe(dir: &Path) -> io::Result<pipe::Receiver> {
    let path = dir.join(CONSOLE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    pipe::OpenOptions::new().read_write(true).open_receiver(&path)
}

/// The PID and the record. Its pipe takes 64 KiB at once, a large record waits for the machine process to read.
fn write_launch(leash: &ChildStdin, record: &[u8]) -> io::Result<()> {
    use std::os::fd::AsFd;
    let mut pipe = std::fs::File::from(leash.as_fd().try_clone_to_owned()?);
    let length = u32::try_from(record.len()).map_err(io::Error::other)?;
    // It was made non-blocking for tokio, and is used here once.
    rustix::io::ioctl_fionbio(&pipe, false)?;
    pipe.write_all(&std::process::id().to_be_bytes())?;
    pipe.write_all(&length.to_be_bytes())?;
    pipe.write_all(record)
}

/// Lines to and from the supervisor inside, bounded.
#[derive(Debug)]
pub(super) struct Port {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Port {
    /// The next report; never again once the port is closed. May be dropped and asked again.
    async fn next(&mut self) -> Report {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let rest = self.line.split_off(end + 1);
                let line = std::mem::replace(&mut self.line, rest);
                match Report::parse(&line) {
                    Some(report) => return report,
                    None => continue,
                }
            }
            if self.line.len() > MAX_LINE {
                // A guest that writes no lines says nothing.
                self.line.clear();
            }
            match self.stream.read_buf(&mut self.line).await {
                Ok(0) | Err(_) => return std::future::pending().await,
                Ok(_) => {}
            }
        }
    }

    pub(super) async fn send(&mut self, line: &str) -> io::Result<()> {
        self.stream.write_all(line.as_bytes()).await
    }
}
