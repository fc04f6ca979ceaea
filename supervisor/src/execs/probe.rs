//! The exec probe: a real command through the very code that starts a user's, its output read, its exit checked.
//! That a path answers packets says nothing about whether a command can run; this does.

use std::{ffi::OsString, process::ExitCode, time::Duration};

use holdfast_wire::ids::ExecId;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::{Instant, timeout_at},
};

use super::{
    Inner,
    spawn::{Exit, Spawned},
};

/// The hidden subcommand with which the supervisor's own binary answers a probe: it needs nothing of the image.
pub const PROBE_SUBCOMMAND: &str = "probe-exec";

/// More than this of the probe's output is not read, in bytes.
const MOST: u64 = 4096;

/// A probe that failed: what was tried, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ProbeFailure {
    /// 0 where no system call failed.
    pub errno: i32,
    /// For a person.
    pub message: String,
}

impl ProbeFailure {
    fn new(message: impl Into<String>) -> Self {
        Self { errno: 0, message: message.into() }
    }
}

/// The command of [`ExecsConfig::probe`](super::ExecsConfig::probe) for a supervisor whose `main` knows
/// [`PROBE_SUBCOMMAND`]: this very binary, even if its file has been replaced.
#[must_use]
pub fn own_probe() -> Vec<OsString> {
    vec!["/proc/self/exe".into(), PROBE_SUBCOMMAND.into()]
}

/// What `main` does for [`PROBE_SUBCOMMAND`]: prints the nonce that it was given. Nothing else may have been done
/// before, so that a probe costs a fork and an exec.
#[must_use]
pub fn answer_probe(nonce: &std::ffi::OsStr) -> ExitCode {
    use std::{io::Write as _, os::unix::ffi::OsStrExt as _};
    match std::io::stdout().write_all(nonce.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs one probe; says how long it took.
pub(super) async fn run(core: &Inner, deadline: Instant) -> Result<Duration, ProbeFailure> {
    let started = Instant::now();
    let nonce = uuid::Uuid::new_v4().to_string();
    let mut argv = core.config.probe.clone();
    if argv.is_empty() {
        return Err(ProbeFailure::new("no probe command is configured"));
    }
    argv.push(nonce.clone().into());
    let shown = argv[0].to_string_lossy().into_owned();
    let request = core.request(ExecId::random(), argv);
    // Should the deadline strike, what was started is dropped, and so killed.
    let answer = timeout_at(deadline, async {
        let spawned = core.config.spawner.spawn(request).await;
        let spawned = spawned.map_err(|error| ProbeFailure { errno: error.errno, message: error.message })?;
        take_answer(spawned).await
    });
    let Ok(answer) = answer.await else {
        let waited = started.elapsed().as_secs_f32();
        return Err(ProbeFailure::new(format!("{shown} did not answer within {waited:.1} s")));
    };
    let (exit, out, err) = answer?;
    if exit != Exit::Code(0) {
        let words = String::from_utf8_lossy(&err[..err.len().min(200)]).into_owned();
        return Err(ProbeFailure::new(format!("{shown} ended with {exit:?}: {words}")));
    }
    if out.trim_ascii() != nonce.as_bytes() {
        return Err(ProbeFailure::new(format!(
            "{shown} ran, but its output did not arrive ({} bytes)",
            out.len()
        )));
    }
    Ok(started.elapsed())
}

async fn take_answer(spawned: Spawned) -> Result<(Exit, Vec<u8>, Vec<u8>), ProbeFailure> {
    let Spawned { stdout, stderr, wait, mut control, .. } = spawned;
    let failed = |error: std::io::Error| ProbeFailure {
        errno: error.raw_os_error().unwrap_or(0),
        message: format!("reading the probe's answer: {error}"),
    };
    let stderr = async {
        match stderr {
            Some(stderr) => read(stderr).await,
            None => Ok(Vec::new()),
        }
    };
    let (out, err, exit) = tokio::try_join!(read(stdout), stderr, wait).map_err(failed)?;
    control.reaped();
    control.release();
    Ok((exit, out, err))
}

async fn read(stream: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(MOST).read_to_end(&mut bytes).await?;
    Ok(bytes)
}
