//! Pause, resume, stop, start, and lives that end by themselves.

use std::time::{Duration, Instant};

use anyhow::ensure;
use holdfast_tests::harness::{self, Cluster};

use super::HOLDFAST;

#[tokio::test]
async fn a_resume_onto_a_workspace_that_is_gone_is_degraded_until_it_is_put_back() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let workspace = cluster.workspace("box").await?;
    let away = cluster.scratch().join("away");
    let said = [workspace.to_str().unwrap_or_default(), "os error 2"];
    let break_it = async || Ok(std::fs::rename(&workspace, &away)?);
    let mend = async || Ok(std::fs::rename(&away, &workspace)?);
    harness::broken_resume(&cluster, "box", &said, break_it, mend).await
}

/// What an unmounted volume leaves, too: everything would work there, and all files are gone.
#[tokio::test]
async fn a_resume_onto_an_empty_directory_in_its_place_is_degraded_too() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let workspace = cluster.workspace("box").await?;
    let away = cluster.scratch().join("away");
    let said = [workspace.to_str().unwrap_or_default(), "errno 116"];
    let break_it = async || {
        std::fs::rename(&workspace, &away)?;
        Ok(std::fs::create_dir(&workspace)?)
    };
    let mend = async || {
        ensure!(std::fs::read_dir(&workspace)?.next().is_none(), "something was written in the wrong place");
        std::fs::remove_dir(&workspace)?;
        Ok(std::fs::rename(&away, &workspace)?)
    };
    harness::broken_resume(&cluster, "box", &said, break_it, mend).await
}

#[tokio::test]
async fn an_attached_call_waits_through_a_pause_and_gets_everything() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let script = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.5; done; exit 6";
    let mut waits = cluster.command(["exec", "box", "--", "sh", "-c", script]).spawn()?;
    let mut fails =
        cluster.command(["exec", "--on-pause", "fail", "box", "--", "sh", "-c", script]).spawn()?;
    for i in 1..=2 {
        assert_eq!(waits.line().await?, format!("line {i}"));
        assert_eq!(fails.line().await?, format!("line {i}"));
    }
    cluster.command(["pause", "box"]).run().await?.success()?;
    cluster.wait_for("box", "phase=Paused", "20s").await?;
    let told = fails.finish().await?.exited(125)?;
    ensure!(told.stderr.contains("stands still until the sandbox is resumed"), "{}", told.stderr);
    // Nothing new is begun meanwhile, and it is told at once, with the phase.
    let refused = cluster.command(["exec", "box", "--", "true"]).run().await?.exited(125)?;
    ensure!(refused.stderr.contains("is Paused"), "{}", refused.stderr);
    cluster.command(["resume", "box"]).run().await?.success()?;
    cluster.wait_for("box", "ready", "20s").await?;
    let finished = waits.finish().await?.exited(6)?;
    let want: String = (3..=8).map(|i| format!("line {i}\n")).collect();
    assert_eq!(finished.text(), want);
    ensure!(
        finished.stderr.contains("being paused") && finished.stderr.contains("runs on"),
        "{}",
        finished.stderr
    );
    // The one whose caller did not wait ran on, too: a pause ends no command.
    let execs = cluster.command(["execs", "box", "-o", "json"]).run().await?.success()?.json()?;
    let all = execs["execs"].as_array().map(Vec::len).unwrap_or_default();
    assert_eq!(all, 2, "{execs:#}");
    for exec in execs["execs"].as_array().into_iter().flatten() {
        let id = exec["exec_id"].as_str().unwrap_or_default();
        let whole = cluster.command(["attach", "box", id]).run().await?.exited(6)?;
        assert_eq!(whole.text().lines().count(), 8);
    }
    Ok(())
}

#[tokio::test]
async fn a_paused_sandbox_stays_paused_over_a_gateway_that_is_killed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let mut running = cluster
        .command(["exec", "box", "--", "sh", "-c", "echo before; sleep 1; echo after; exit 3"])
        .spawn()?;
    assert_eq!(running.line().await?, "before");
    cluster.command(["pause", "box"]).run().await?.success()?;
    cluster.wait_for("box", "phase=Paused", "20s").await?;
    cluster.kill_gateway().await?;
    cluster.start_gateway().await?;
    cluster.wait_for("box", "phase=Paused", "20s").await?;
    cluster.command(["resume", "box"]).run().await?.success()?;
    let begun = Instant::now();
    cluster.wait_for("box", "ready", "30s").await?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "ready only after {:?}", begun.elapsed());
    assert_eq!(running.finish().await?.exited(3)?.text(), "after\n");
    Ok(())
}

#[tokio::test]
async fn a_workspace_survives_stop_and_start_and_a_missing_one_is_not_made_anew() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let inside = |script: &'static str| cluster.command(["exec", "box", "--", "sh", "-c", script]);
    inside("echo precious > kept").run().await?.success()?;
    let restart = async || {
        cluster.command(["stop", "box"]).run().await?.success()?;
        cluster.wait_for("box", "phase=Stopped", "20s").await
    };
    restart().await?;
    cluster.command(["start", "box"]).run().await?.success()?;
    cluster.wait_for("box", "ready", "20s").await?;
    assert_eq!(inside("cat kept").run().await?.success()?.text(), "precious\n");

    restart().await?;
    let (workspace, away) = (cluster.workspace("box").await?, cluster.scratch().join("away"));
    std::fs::rename(&workspace, &away)?;
    cluster.command(["start", "box"]).run().await?.success()?;
    cluster.wait_for("box", "phase=Failed", "20s").await?;
    let message = cluster.get("box").await?["message"].to_string();
    ensure!(message.contains("put it back") && message.contains("workspace"), "{message}");
    std::fs::rename(&away, &workspace)?;
    cluster.command(["start", "box"]).run().await?.success()?;
    cluster.wait_for("box", "ready", "20s").await?;
    assert_eq!(inside("cat kept").run().await?.success()?.text(), "precious\n");
    Ok(())
}

#[tokio::test]
async fn lives_end_as_agreed_and_the_events_say_why() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(HOLDFAST).await?;
    let mut following = cluster.command(["events", "-f", "-o", "jsonl"]).spawn()?;
    cluster.command(["create", "short", "--ttl", "8s", "--wait"]).run().await?.success()?;
    cluster.command(["create", "idle", "--idle-stop", "3s", "--wait"]).run().await?.success()?;
    // A command that says nothing, and that nobody is attached to, is activity.
    let begun = Instant::now();
    cluster.command(["exec", "-d", "idle", "--", "sleep", "5"]).run().await?.success()?;
    cluster.kill_gateway().await?;
    cluster.start_gateway().await?;
    cluster.wait_for("idle", "phase=Stopped", "60s").await?;
    ensure!(begun.elapsed() >= Duration::from_secs(8), "stopped after {:?}", begun.elapsed());
    let idle = cluster.get("idle").await?;
    ensure!(idle["reason"] == "IdleStop" && idle["idle_stop_s"] == 3.0, "{idle:#}");
    cluster.wait_for("short", "deleted", "60s").await?;
    cluster.command(["start", "idle"]).run().await?.success()?;
    cluster.command(["update", "idle", "--idle-stop", "0"]).run().await?.success()?;
    cluster.wait_for("idle", "ready", "20s").await?;
    // The follower has gone on by itself after the gateway's death.
    let (mut expired, mut stopped) = (false, false);
    while !(expired && stopped) {
        let event: serde_json::Value = serde_json::from_str(&following.line().await?)?;
        expired |= event["reason"] == "Expired" && event["sandbox"] == "short";
        stopped |= event["reason"] == "IdleStopped" && event["sandbox"] == "idle";
    }
    following.kill().await?;
    Ok(())
}
