//! Faults on purpose, by the command that users have for it, and the doctor.

use holdfast_tests::harness::Cluster;
use serde_json::Value;

use crate::HOLDFAST;

/// A silent command that runs through a fault, and the fault; the command's own code must come out.
async fn through(fault: &[&str]) -> anyhow::Result<(Cluster, Value, String)> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let script = "echo up; read line; exit 9";
    let mut running = cluster.command(["exec", "-i", "box", "--", "sh", "-c", script]).spawn()?;
    assert_eq!(running.line().await?, "up");
    let mut args = vec!["chaos", "box", "--yes", "-o", "json"];
    args.extend(fault);
    let done = cluster.command(args).run().await?.success()?.json()?;
    // Only now may it end: it was silent, and attached, for the whole of the fault.
    running.write(b"go\n").await?;
    let finished = running.finish().await?.exited(9)?;
    Ok((cluster, done, finished.stderr))
}

async fn metric(cluster: &Cluster, line: &str) -> anyhow::Result<bool> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut http = tokio::net::TcpStream::connect(cluster.gateway()?.http).await?;
    http.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    http.read_to_string(&mut text).await?;
    Ok(text.lines().any(|found| found.trim_end() == line))
}

#[tokio::test]
async fn a_reset_session_is_followed_by_a_new_one_and_the_exec_by_its_code() -> anyhow::Result<()> {
    let (cluster, done, said) = through(&["reset-session"]).await?;
    assert!(done["epoch_after"].as_u64() > done["epoch_before"].as_u64(), "{done}");
    assert!(said.contains("reattached"), "{said}");
    let events = cluster.command(["events", "box"]).run().await?.success()?.text();
    assert!(events.contains("reset-session, ordered by admin"), "{events}");
    assert!(metric(&cluster, "holdfast_chaos_total{kind=\"reset-session\"} 1").await?);
    // The second dial of the same supervisor, and why.
    let status = cluster.command(["status", "-o", "json"]).run().await?.success()?.json()?;
    let session = &status["attached"][0]["session"];
    assert_eq!(session["dials"], 2, "{status}");
    assert!(session["last_dial_reason"].as_str().is_some_and(|why| why.contains("reset")), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_rebound_path_keeps_its_session() -> anyhow::Result<()> {
    let (cluster, done, said) = through(&["rebind"]).await?;
    assert_eq!(done["epoch_after"], done["epoch_before"], "{done}");
    assert!(!said.contains("reattached"), "{said}");
    let status = cluster.command(["status", "-o", "json"]).run().await?.success()?.json()?;
    assert!(status["attached"][0]["session"]["migrations"].as_u64() >= Some(1), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_black_hole_passes_and_the_sandbox_is_ready_again() -> anyhow::Result<()> {
    let (cluster, done, _) = through(&["drop-path", "--for", "4s"]).await?;
    assert_eq!(done["fault_ms"], 4000, "{done}");
    assert!(done["ready_after_ms"].as_u64() >= Some(4000), "{done}");
    // Nothing got through for longer than a supervisor looks on: it has moved to another socket, or dialled anew.
    let status = cluster.command(["status", "-o", "json"]).run().await?.success()?.json()?;
    let session = &status["attached"][0]["session"];
    assert!(session["migrations"].as_u64() >= Some(1) || session["dials"].as_u64() >= Some(2), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_stalled_supervisor_answers_only_afterwards() -> anyhow::Result<()> {
    let (cluster, done, _) = through(&["stall", "--for", "2s"]).await?;
    assert!(done["ready_after_ms"].as_u64() >= Some(2000), "{done}");
    // Nobody reads while it lasts: a command that is begun meanwhile has to wait for its end.
    let mut stalling = cluster.command(["chaos", "box", "stall", "--for", "3s", "--yes"]).spawn()?;
    let begun = std::time::Instant::now();
    second_fault_is_recorded(&cluster).await?;
    let late = cluster.command(["exec", "box", "--", "true"]).run().await?.success()?;
    assert!(begun.elapsed().as_secs_f64() > 2.5, "{:?}", late.took);
    assert_eq!(stalling.exit_code().await?, 0);
    Ok(())
}

/// Waits until the gateway has given the order: its second, after the one of the fault before.
async fn second_fault_is_recorded(cluster: &Cluster) -> anyhow::Result<()> {
    let mut events = cluster.command(["events", "box", "-f", "-o", "jsonl"]).spawn()?;
    let mut seen = 0;
    while seen < 2 {
        let event: Value = serde_json::from_str(&events.line().await?)?;
        seen += usize::from(event["reason"] == "Chaos");
    }
    events.kill().await
}

#[tokio::test]
async fn without_yes_or_without_an_admins_name_nothing_happens() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let refused = cluster.command(["chaos", "box", "reset-session"]).run().await?.exited(2)?;
    assert!(
        refused.stderr.contains("--yes") && refused.stderr.contains("closes box's session"),
        "{}",
        refused.stderr
    );
    let wrong = cluster.command(["chaos", "box", "rebind", "--for", "3s", "--yes"]).run().await?.exited(2)?;
    assert!(wrong.stderr.contains("leave --for out"), "{}", wrong.stderr);
    let events = cluster.command(["events", "box"]).run().await?.success()?.text();
    assert!(!events.contains("Chaos"), "{events}");

    let config = cluster.scratch().join("gateway.toml");
    std::fs::write(&config, "admins = [\"ops\"]\n")?;
    let strict = Cluster::start_with(HOLDFAST, &["--config", &config.to_string_lossy()]).await?;
    strict.create("box").await?;
    let refused = strict.command(["chaos", "box", "reset-session", "--yes"]).run().await?.exited(125)?;
    assert!(refused.stderr.contains("may not order faults"), "{}", refused.stderr);
    Ok(())
}

#[tokio::test]
async fn the_doctor_finds_a_healthy_cluster_well_and_a_dead_gateway_not() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    for args in [vec!["doctor", "-o", "json"], vec!["doctor", "box", "-o", "json"]] {
        let found = cluster.command(&args).run().await?.success()?.json()?;
        let checks = found["checks"].as_array().cloned().unwrap_or_default();
        for wanted in ["client certificate", "gateway's certificate", "gateway's clock", "UDP to QUIC"] {
            let check = checks.iter().find(|check| check["check"] == wanted);
            assert_eq!(check.map(|check| &check["level"]), Some(&"ok".into()), "{wanted}: {found}");
        }
        assert!(checks.iter().any(|check| check["check"].to_string().contains("box: ")), "{found}");
    }
    cluster.kill_gateway().await?;
    let found = cluster.command(["doctor"]).run().await?.exited(1)?.text();
    assert!(found.contains("FAIL") && found.contains("UDP to QUIC"), "{found}");
    Ok(())
}
