//! What happens to attached calls when somebody dies or falls silent.

use std::time::{Duration, Instant};

use holdfast_tests::harness::{self, Cluster};
use rustix::process::Signal;
use sha2::{Digest, Sha256};

use super::HOLDFAST;

/// A path gone silent is told to an attached caller within 11 s; a loaded machine gets as much again.
const SILENT_BOUND: Duration = Duration::from_secs(22);

/// A peer that ends is told within 1 s of the packet; likewise.
const END_BOUND: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_gateway_killed_in_mid_exec_costs_no_byte_and_no_second_run() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    // Lines with their numbers, and a mark for each time that the command is started.
    let script = "echo x >> started; for i in $(seq 2000); do echo line $i; test $((i % 100)) = 0 && sleep 0.2; done; exit 9";
    let mut running = cluster.command(["exec", "box", "--", "sh", "-c", script]).spawn()?;
    for i in 1..=200 {
        assert_eq!(running.line().await?, format!("line {i}"));
    }
    cluster.kill_gateway().await?;
    cluster.start_gateway().await?;
    let finished = running.finish().await?.exited(9)?;
    let want: String = (201..=2000).map(|i| format!("line {i}\n")).collect();
    assert_eq!(Sha256::digest(&finished.stdout), Sha256::digest(want.as_bytes()), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("reattached") && finished.stderr.contains("0 bytes lost"),
        "{}",
        finished.stderr
    );
    let started = cluster.command(["exec", "box", "--", "cat", "started"]).run().await?.success()?;
    assert_eq!(started.text(), "x\n", "the command was started once");
    Ok(())
}

#[tokio::test]
async fn input_survives_a_killed_gateway_too() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let mut running = cluster.command(["exec", "-i", "box", "--", "cat"]).spawn()?;
    running.write(b"first\n").await?;
    assert_eq!(running.line().await?, "first");
    cluster.kill_gateway().await?;
    running.write(b"while it was away\n").await?;
    cluster.start_gateway().await?;
    assert_eq!(running.line().await?, "while it was away");
    running.write(b"last\n").await?;
    assert_eq!(running.line().await?, "last");
    running.finish().await?.success()?;
    Ok(())
}

#[tokio::test]
async fn an_orderly_stop_leaves_work_running_and_is_adopted() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let pid = cluster.supervisor_pid("box").await?;
    let mut running =
        cluster.command(["exec", "box", "--", "sh", "-c", "echo up; sleep 3; echo done"]).spawn()?;
    assert_eq!(running.line().await?, "up");
    cluster.stop_gateway().await?;
    cluster.start_gateway().await?;
    assert_eq!(running.finish().await?.success()?.text(), "done\n");
    assert_eq!(cluster.supervisor_pid("box").await?, pid, "the same supervisor");
    cluster.command(["wait", "box", "--for", "ready", "--timeout", "30s"]).run().await?.success()?;
    Ok(())
}

#[tokio::test]
async fn a_killed_supervisor_is_told_and_its_exec_is_lost_not_guessed() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let mark = format!("{}", 100_000 + std::process::id());
    let mut running =
        cluster.command(["exec", "box", "--", "sh", "-c", &format!("echo up; sleep {mark}")]).spawn()?;
    assert_eq!(running.line().await?, "up");
    harness::signal(cluster.supervisor_pid("box").await?, Signal::KILL)?;
    let told = Instant::now();
    let finished = running.finish().await?.exited(125)?;
    assert!(told.elapsed() < SILENT_BOUND, "{:?}", told.elapsed());
    assert!(finished.stderr.contains("lost"), "{}", finished.stderr);
    let execs = cluster.command(["execs", "box", "-o", "json"]).run().await?.success()?.json()?.to_string();
    assert!(execs.contains("lost"), "{execs}");
    let sandbox = cluster.command(["get", "box", "-o", "json"]).run().await?.success()?.json()?.to_string();
    assert!(!sandbox.to_lowercase().contains("\"ready\""), "{sandbox}");
    assert!(!harness::is_running(&format!("sleep\0{mark}")), "nothing of its commands is left");
    cluster.command(["delete", "box"]).run().await?.success()?;
    Ok(())
}

#[tokio::test]
async fn a_killed_caller_takes_its_command_along_only_if_asked() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let base = 200_000 + std::process::id();
    let (kept, killed) = (base.to_string(), (base + 1).to_string());

    let mut caller = cluster
        .command([
            "exec",
            "--kill-on-disconnect",
            "--kill-grace",
            "1s",
            "box",
            "--",
            "sh",
            "-c",
            &format!("echo up; sleep {killed}"),
        ])
        .spawn()?;
    assert_eq!(caller.line().await?, "up");
    caller.kill().await?;
    harness::eventually(Duration::from_secs(10), || !harness::is_running(&format!("sleep\0{killed}")))
        .await?;

    let mut caller = cluster
        .command([
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            &format!("echo before; sleep 2; echo after; : {kept}; exit 6"),
        ])
        .spawn()?;
    assert_eq!(caller.line().await?, "before");
    caller.kill().await?;
    let execs = cluster.command(["execs", "box", "-o", "json"]).run().await?.success()?.json()?;
    let id = harness::exec_id_of(&execs, &kept)?;
    let finished = cluster.command(["attach", "box", &id]).run().await?.exited(6)?;
    assert_eq!(finished.text(), "before\nafter\n");
    Ok(())
}

#[tokio::test]
async fn a_frozen_supervisor_ends_the_call_and_thawed_it_gives_everything() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let script = "echo before; sleep 2; echo after; exit 8";
    let mut running =
        cluster.command(["exec", "--reattach-for", "0s", "box", "--", "sh", "-c", script]).spawn()?;
    assert_eq!(running.line().await?, "before");
    let pid = cluster.supervisor_pid("box").await?;
    harness::signal(pid, Signal::STOP)?;
    let frozen = Instant::now();
    let finished = running.finish().await?.exited(125)?;
    assert!(frozen.elapsed() < SILENT_BOUND, "{:?}", frozen.elapsed());
    assert!(finished.stderr.contains("SESSION_LOST"), "{}", finished.stderr);
    harness::signal(pid, Signal::CONT)?;
    cluster.command(["wait", "box", "--for", "ready", "--timeout", "30s"]).run().await?.success()?;
    let execs = cluster.command(["execs", "box", "-o", "json"]).run().await?.success()?.json()?;
    let id = harness::exec_id_of(&execs, "before")?;
    let all = cluster.command(["attach", "box", &id]).run().await?.exited(8)?;
    assert_eq!(all.text(), "before\nafter\n");
    Ok(())
}

#[tokio::test]
async fn a_deleted_sandbox_ends_its_attached_calls_with_its_reason() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let mut running = cluster.command(["exec", "box", "--", "sh", "-c", "echo up; sleep 1000"]).spawn()?;
    assert_eq!(running.line().await?, "up");
    let begun = Instant::now();
    cluster.command(["delete", "box"]).run().await?.success()?;
    let finished = running.finish().await?;
    // The supervisor may still have had the time to say what it did; otherwise the exec is lost with its sandbox.
    assert!([125, 143, 137].contains(&finished.code), "{} {}", finished.code, finished.stderr);
    assert!(begun.elapsed() < END_BOUND + Duration::from_secs(6), "{:?}", begun.elapsed());
    Ok(())
}
