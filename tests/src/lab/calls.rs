//! Callers that are attached while a fault happens, and what becomes of them.
//!
//! A [`Call`] is `holdfast exec` with a command that says a line, waits, says the next, and ends with a code of its
//! own. Every line has the time at which it was said, and goes to a file in the workspace as well: so the reader
//! knows how late each byte came, and which ones should have come.
//!
//! ```text
//!   attach ─▶ first line read ─▶ [fault ... healed] ─▶ all ended ─▶ Finding
//! ```

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail, ensure};
use tokio::io::AsyncWriteExt;

use super::{
    Session, Site,
    finding::{Finding, Spread, milliseconds},
    load::{Talk, script},
};
use crate::{
    baseline::{distinct, is_distinct},
    harness::{Cli, Running},
};

/// A path that falls silent is told to an attached caller within 11 s (README, "the bound"). A machine that compiles
/// beside the tests gets as much again.
pub const BOUND: Duration = Duration::from_secs(22);

/// A caller that comes back by itself has its outcome this long after the network is whole, or after its command
/// ended: the bound, and a redial that has just been put off by its cap of 5 s.
pub const RESUMED: Duration = Duration::from_secs(30);

/// What a transfer is written and read in.
const CHUNK: usize = 256 << 10;

/// One attached caller.
#[derive(Debug)]
pub struct Call {
    running: Running,
    /// What its command said, in the sandbox's workspace.
    file: PathBuf,
    code: i32,
    lines: usize,
    heard: Vec<u8>,
    /// Does not attach again: it takes the gateway's word for the end.
    strict: bool,
    silence: Duration,
}

/// How one caller fared.
#[derive(Debug)]
struct Ended {
    call: Call,
    /// When each line arrived.
    arrivals: Vec<SystemTime>,
    at: SystemTime,
    code: i32,
    stderr: String,
}

/// What the calls have added up to so far.
#[derive(Debug, Default)]
struct Times {
    told: Vec<Duration>,
    latest_byte: Vec<Duration>,
}

/// The longest that a call may say nothing: a fault of a minute, and what follows it.
const SILENCE: Duration = Duration::from_secs(120);

impl Call {
    /// Starts it in a sandbox, and waits for its first line.
    pub async fn attach(site: &Site, sandbox: &str, number: usize, talk: Talk) -> anyhow::Result<Self> {
        let file = format!("said-{number}");
        let (code, script) = script(number, talk, &file);
        let mut arguments = vec!["exec", sandbox, "--", "sh", "-c", &script];
        if talk.strict {
            arguments.splice(1..1, ["--reattach-for", "0s"]);
        }
        let mut running = site.command(arguments).spawn()?;
        let mut heard = running.line().await?.into_bytes();
        heard.push(b'\n');
        let file = site.workspace(sandbox).await?.join(file);
        let silence = SILENCE + talk.pause;
        Ok(Self { running, file, code, lines: talk.lines, heard, strict: talk.strict, silence })
    }

    /// To its end.
    async fn follow(mut self) -> anyhow::Result<Ended> {
        let mut arrivals = vec![SystemTime::now()];
        let mut buffer = vec![0; 4096];
        loop {
            let got = self.running.read_within(self.silence, &mut buffer).await?;
            if got == 0 {
                break;
            }
            let got = &buffer[..got];
            arrivals.extend(got.iter().filter(|&&byte| byte == b'\n').map(|_| SystemTime::now()));
            self.heard.extend(got);
        }
        // Its output has ended, so it is about to.
        let code = self.running.exit_code().await?;
        let at = SystemTime::now();
        let stderr = self.running.stderr().await?;
        Ok(Ended { call: self, arrivals, at, code, stderr })
    }
}

impl Ended {
    /// Adds what became of this call; an error where a promise was broken.
    fn judge(
        &self,
        began: SystemTime,
        healed: SystemTime,
        finding: &mut Finding,
        spent: &mut Times,
    ) -> anyhow::Result<()> {
        let said = std::fs::read(&self.call.file)?;
        let heard = &self.call.heard;
        let same = said.iter().zip(heard).take_while(|(said, heard)| said == heard).count();
        let times = said_at(heard)?;
        let late = times.iter().zip(&self.arrivals).map(|(said, arrived)| after(*said, *arrived)).max();
        spent.latest_byte.push(late.unwrap_or_default());
        if self.code == self.call.code {
            finding.bytes_lost += said.len().saturating_sub(same);
            finding.bytes_extra += heard.len().saturating_sub(same);
            ensure!(
                same == said.len() && same == heard.len(),
                "said {said:?}, heard {heard:?}: {}",
                self.stderr
            );
            ensure!(times.len() == self.call.lines, "{} lines of {}", times.len(), self.call.lines);
            let command_ended = times.last().copied().context("it has said a line")?;
            let took = after(command_ended.max(healed), self.at);
            ensure!(took < RESUMED, "the outcome came {took:?} after command and fault: {}", self.stderr);
            finding.true_results += 1;
            return Ok(());
        }
        ensure!(
            self.call.strict && self.code == 125 && self.stderr.contains("SESSION_LOST"),
            "exit code {}, not {}: {}",
            self.code,
            self.call.code,
            self.stderr
        );
        finding.bytes_extra += heard.len().saturating_sub(same);
        ensure!(same == heard.len(), "heard {heard:?} where {said:?} was said");
        let told = after(began, self.at);
        spent.told.push(told);
        ensure!(told < BOUND, "the caller was told after {told:?}");
        finding.named_errors += 1;
        Ok(())
    }
}

/// Attaches callers to sandboxes, lets `fault` happen (it returns when the network is whole again), and
/// judges every call.
pub async fn ride(
    site: &mut Site,
    talks: &[(String, Talk)],
    fault: impl AsyncFnOnce(&mut Site) -> anyhow::Result<()>,
) -> anyhow::Result<Finding> {
    let attaching =
        talks.iter().enumerate().map(|(number, (sandbox, talk))| Call::attach(site, sandbox, number, *talk));
    let calls: Vec<Call> = futures::future::try_join_all(attaching).await?;
    let before = site.session("box").await?.context("the sandbox is ready, so it has a session")?;
    let began = SystemTime::now();
    let act = async {
        fault(site).await?;
        anyhow::Ok(SystemTime::now())
    };
    let (ended, healed) = tokio::join!(futures::future::join_all(calls.into_iter().map(Call::follow)), act);
    let healed = healed?;
    let mut finding = Finding {
        calls: talks.len(),
        fault_ms: milliseconds(after(began, healed)),
        bound_ms: milliseconds(BOUND),
        ..Finding::default()
    };
    let mut spent = Times::default();
    for ended in ended {
        ended?.judge(began, healed, &mut finding, &mut spent)?;
    }
    (finding.told, finding.latest_byte) = (Spread::of(spent.told), Spread::of(spent.latest_byte));
    finding.compare(&before, site).await?;
    Ok(finding)
}

/// Sends `bytes` bytes through `cat` in the sandbox `box` and back, and lets `fault` happen when an eighth has come back.
pub async fn bulk(
    site: &mut Site,
    bytes: u64,
    patience: Duration,
    fault: impl AsyncFnOnce(&mut Site) -> anyhow::Result<()>,
) -> anyhow::Result<Finding> {
    let before = site.session("box").await?.context("the sandbox is ready, so it has a session")?;
    let mut running = site.command(["exec", "-i", "box", "--", "cat"]).spawn()?;
    let mut stdin = running.take_stdin().context("stdin is a pipe")?;
    let (pull, pulled) = tokio::sync::oneshot::channel();
    let begun = SystemTime::now();
    let feed = async {
        let mut at = 0;
        while at < bytes {
            let chunk = distinct(at, usize::try_from(bytes - at).unwrap_or(CHUNK).min(CHUNK));
            stdin.write_all(&chunk).await?;
            at += chunk.len() as u64;
        }
        drop(stdin);
        anyhow::Ok(())
    };
    let read = async {
        let (mut pull, mut at, mut latest) = (Some(pull), 0, Duration::ZERO);
        let mut buffer = vec![0; CHUNK];
        let mut last = SystemTime::now();
        loop {
            let got = running.read(&mut buffer).await.with_context(|| format!("after {at} bytes"))?;
            latest = latest.max(after(last, SystemTime::now()));
            last = SystemTime::now();
            if got == 0 {
                break;
            }
            if !is_distinct(at, &buffer[..got]) {
                bail!("other bytes came back than were sent, in the {got} from {at} on");
            }
            at += got as u64;
            if at >= bytes / 8 {
                // The receiver is gone only when the fault itself has failed, which is reported.
                let _ = pull.take().map(|pull| pull.send(()));
            }
        }
        let code = running.exit_code().await?;
        let stderr = running.stderr().await?;
        ensure!(code == 0, "exit code {code} after {at} bytes: {stderr}");
        ensure!(at == bytes, "{at} bytes of {bytes}: {stderr}");
        anyhow::Ok(latest)
    };
    let act = async {
        pulled.await.context("the transfer ended before the fault")?;
        let began = SystemTime::now();
        fault(site).await?;
        anyhow::Ok(after(began, SystemTime::now()))
    };
    let all = async { tokio::try_join!(feed, read, act) };
    let ((), latest, lasted) =
        tokio::time::timeout(patience, all).await.context("the transfer does not end")??;
    let mut finding = Finding {
        calls: 1,
        true_results: 1,
        latest_byte: Spread::of(vec![latest]),
        fault_ms: milliseconds(lasted),
        bound_ms: milliseconds(patience),
        ..Finding::default()
    };
    ensure!(after(begun, SystemTime::now()) < patience);
    finding.compare(&before, site).await?;
    Ok(finding)
}

impl Finding {
    /// Says how the session fared, and that there is one again.
    async fn compare(&mut self, before: &Session, site: &Site) -> anyhow::Result<()> {
        let patience = format!("{}s", RESUMED.as_secs());
        let wait: Cli = site.command(["wait", "box", "--for", "ready", "--timeout", &patience]);
        wait.run().await?.success().context("the sandbox is not ready again")?;
        let now = site.session("box").await?.context("the sandbox is ready, so it has a session")?;
        self.redials = now.epoch.saturating_sub(before.epoch);
        self.rebinds = now.rebinds.saturating_sub(before.rebinds);
        self.migrations = if self.redials == 0 { now.migrations - before.migrations } else { now.migrations };
        Ok(())
    }
}

/// The times in lines of `NUMBER NANOSECONDS`.
fn said_at(lines: &[u8]) -> anyhow::Result<Vec<SystemTime>> {
    let text = std::str::from_utf8(lines)?;
    text.lines()
        .map(|line| {
            let nanoseconds = line.split(' ').nth(1).with_context(|| format!("no time in {line:?}"))?;
            Ok(UNIX_EPOCH + Duration::from_nanos(nanoseconds.parse()?))
        })
        .collect()
}

/// From `earlier` to `later`; zero where the wall clock was set back.
fn after(earlier: SystemTime, later: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}
