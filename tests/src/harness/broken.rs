//! The broken resume: what must hold, whatever the driver, when a sandbox is resumed onto a workspace that is gone,
//! unmounted or another one. The test breaks and mends it in its driver's own way.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Cluster;

/// Degraded within 5 s of the resume; a loaded machine gets as much again.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// A broken sandbox probes every 2 s; proving it anew takes a moment.
const MENDED_WITHIN: &str = "20s";

/// Pauses `sandbox`, breaks its workspace, resumes it, and checks: Degraded in time, with all of `said` (the path, the
/// errno) in the message; never Ready; commands fail with a concrete error, at once; nothing stays queued; mended, it
/// is Ready by itself. `read` is what `cat kept` shows before and after.
pub async fn broken_resume(
    cluster: &Cluster,
    sandbox: &str,
    said: &[&str],
    break_it: impl AsyncFnOnce() -> anyhow::Result<()>,
    mend: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let inside = |script: &str| cluster.command(["exec", sandbox, "--", "sh", "-c", script]);
    inside("echo precious > kept").run().await?.success()?;
    cluster.command(["pause", sandbox]).run().await?.success()?;
    cluster.wait_for(sandbox, "phase=Paused", "20s").await?;
    break_it().await.context("breaking the workspace")?;
    cluster.command(["resume", sandbox]).run().await?.success()?;
    let resumed = Instant::now();
    // Seen by waiting for either: a sandbox that is Ready in between would be found so.
    cluster.wait_for(sandbox, "condition=FilesystemHealthy=False", "30s").await?;
    ensure!(resumed.elapsed() < TOLD_WITHIN, "told only after {:?}", resumed.elapsed());
    let now = cluster.get(sandbox).await?;
    ensure!(now["phase"] == "Degraded", "{now:#}");
    let message = now["message"].as_str().unwrap_or_default();
    for word in said {
        ensure!(message.contains(word), "{word:?} is not in {message:?}");
    }
    ensure!(now["last_error"]["source"] == "probe", "{now:#}");
    ensure!(now["last_error"]["message"] == now["message"], "{now:#}");

    // What needs the workspace fails with a concrete error, at once; what does not runs.
    let begun = Instant::now();
    let failed = inside("echo in the wrong place > new").run().await?;
    ensure!(failed.code != 0 && failed.stdout.is_empty(), "{failed:?}");
    ensure!(said.iter().any(|word| failed.stderr.contains(word)), "{}", failed.stderr);
    ensure!(begun.elapsed() < Duration::from_secs(10), "it failed only after {:?}", begun.elapsed());
    let elsewhere = cluster.command(["exec", "-w", "/", sandbox, "--", "echo", "lives"]).run().await?;
    ensure!(elsewhere.success()?.text() == "lives\n");
    let execs = cluster.command(["execs", sandbox, "-o", "json"]).run().await?.success()?.json()?;
    let queued = execs["execs"]
        .as_array()
        .map(|execs| execs.iter().filter(|exec| exec["state"] != "ended").cloned().collect::<Vec<Value>>());
    ensure!(queued.as_ref().is_some_and(Vec::is_empty), "not ended: {queued:?}");

    let phases = phases_since_resume(cluster, sandbox).await?;
    ensure!(!phases.contains(&"Ready".to_owned()), "it was Ready in between: {phases:?}");

    mend().await.context("mending the workspace")?;
    cluster.wait_for(sandbox, "ready", MENDED_WITHIN).await?;
    ensure!(inside("cat kept").run().await?.success()?.text() == "precious\n");
    Ok(())
}

/// The phases that events tell of, since the last resume was asked for.
async fn phases_since_resume(cluster: &Cluster, sandbox: &str) -> anyhow::Result<Vec<String>> {
    let events = cluster.command(["events", sandbox, "-o", "jsonl"]).run().await?.success()?;
    let text = String::from_utf8(events.stdout)?;
    let events: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let resumed = events.iter().rposition(|event| event["reason"] == "ResumeRequested");
    let since = &events[resumed.context("the resume is an event")?..];
    let changes = since.iter().filter(|event| event["reason"] == "PhaseChanged");
    Ok(changes.filter_map(|event| event["phase"].as_str().map(ToOwned::to_owned)).collect())
}
