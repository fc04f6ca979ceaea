//! The command against a gateway: to its end, or held while something happens.

use std::{
    ffi::OsStr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::PATIENCE;

/// A command that has not been started.
#[derive(Debug)]
pub struct Cli {
    command: Command,
    stdin: Option<Vec<u8>>,
    patience: Duration,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; a signal's is 128 and more, as a shell says it.
    pub code: i32,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it said.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: Option<ChildStderr>,
    stdin: Option<ChildStdin>,
    started: Instant,
}

impl Cli {
    pub(crate) fn new<I, S>(program: &Path, profile: &Path, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("HOLDFAST_PROFILE", profile)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Self { command, stdin: None, patience: PATIENCE }
    }

    /// With this on stdin, then its end.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// May take longer than [`PATIENCE`].
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// To its end.
    pub async fn run(mut self) -> anyhow::Result<Finished> {
        let (stdin, patience) = (self.stdin.take(), self.patience);
        let mut running = self.spawn_with(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })?;
        if let (Some(bytes), Some(mut pipe)) = (stdin, running.stdin.take()) {
            // Beside the reading, or two full pipes wait for each other.
            let feed = async move {
                // The command may have ended without reading it all.
                let _ = pipe.write_all(&bytes).await;
            };
            let (_, finished) = tokio::join!(feed, running.finish_within(patience));
            return finished;
        }
        running.finish_within(patience).await
    }

    /// Starts it; stdin stays open to be written where `stdin` was not called.
    pub fn spawn(mut self) -> anyhow::Result<Running> {
        anyhow::ensure!(self.stdin.take().is_none(), "write to the running command's stdin instead");
        self.spawn_with(Stdio::piped())
    }

    fn spawn_with(mut self, stdin: Stdio) -> anyhow::Result<Running> {
        let mut child = self.command.stdin(stdin).spawn().context("starting the command under test")?;
        Ok(Running {
            stdout: BufReader::new(child.stdout.take().context("stdout was piped")?),
            stderr: child.stderr.take(),
            stdin: child.stdin.take(),
            started: Instant::now(),
            child,
        })
    }
}

impl Running {
    /// The next line of its output.
    pub async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.stdout.read_line(&mut line)).await.context("no line came")??;
        if read == 0 {
            let mut said = String::new();
            if let Some(mut stderr) = self.stderr.take() {
                stderr.read_to_string(&mut said).await?;
            }
            bail!("the command ended where a line was expected; it said: {said}");
        }
        Ok(line.trim_end_matches('\n').to_owned())
    }

    /// What it wrote next, at most `buffer` of it; 0 at the end of its output.
    pub async fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<usize> {
        self.read_within(PATIENCE, buffer).await
    }

    /// The same, of a command that may be silent for longer.
    pub async fn read_within(&mut self, patience: Duration, buffer: &mut [u8]) -> anyhow::Result<usize> {
        timeout(patience, self.stdout.read(buffer))
            .await
            .context("no output came")?
            .context("reading its output")
    }

    /// Writes to its stdin.
    pub async fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stdin.as_mut().context("stdin is closed")?.write_all(bytes).await?;
        Ok(())
    }

    /// Takes its stdin away, to be written beside the reading.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Closes its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default()
    }

    /// `kill -9`.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// What it said on stderr, to the end.
    pub async fn stderr(&mut self) -> anyhow::Result<String> {
        let mut said = Vec::new();
        if let Some(mut stderr) = self.stderr.take() {
            timeout(PATIENCE, stderr.read_to_end(&mut said)).await.context("stderr stays open")??;
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Waits for its end without touching its streams.
    pub async fn exit_code(&mut self) -> anyhow::Result<i32> {
        code_of(self.child.wait().await?)
    }

    /// Waits for its end.
    pub async fn finish(self) -> anyhow::Result<Finished> {
        self.finish_within(PATIENCE).await
    }

    /// Waits for its end, not longer than this.
    pub async fn finish_within(mut self, patience: Duration) -> anyhow::Result<Finished> {
        self.stdin = None;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let all = async {
            let said = async {
                match self.stderr.as_mut() {
                    Some(pipe) => pipe.read_to_end(&mut stderr).await,
                    None => Ok(0),
                }
            };
            let (wrote, said) = tokio::join!(self.stdout.read_to_end(&mut stdout), said);
            wrote?;
            said?;
            self.child.wait().await
        };
        let status = timeout(patience, all).await;
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let status = status
            .with_context(|| format!("the command did not end within {patience:?}; it said: {stderr}"))??;
        Ok(Finished { code: code_of(status)?, stdout, stderr, took: self.started.elapsed() })
    }
}

/// As a shell says it: a signal's code is 128 and more.
fn code_of(status: std::process::ExitStatus) -> anyhow::Result<i32> {
    use std::os::unix::process::ExitStatusExt;
    status.signal().map_or(status.code(), |signal| Some(128 + signal)).context("no exit code")
}

impl Finished {
    /// An error unless its exit code is 0.
    pub fn success(self) -> anyhow::Result<Self> {
        self.exited(0)
    }

    /// An error unless its exit code is this.
    pub fn exited(self, code: i32) -> anyhow::Result<Self> {
        if self.code != code {
            bail!("exit code {}, not {code}; stdout: {:?}; stderr: {}", self.code, self.text(), self.stderr);
        }
        Ok(self)
    }

    /// Its output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4096)]).into_owned()
    }

    /// Its output as JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.stdout).with_context(|| format!("not JSON: {:?}", self.text()))
    }
}
