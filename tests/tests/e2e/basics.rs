//! The main job, and what every user does first.

use std::process::Stdio;

use anyhow::Context as _;
use holdfast_tests::harness::{self, Cluster};
use tokio::{io::AsyncReadExt as _, process::Command};

use super::HOLDFAST;

#[tokio::test]
async fn run_makes_a_sandbox_and_returns_the_commands_own_result() -> anyhow::Result<()> {
    let home = tempfile::tempdir()?;
    let output = Command::new(HOLDFAST)
        .args(["run", "--", "sh", "-c", "echo hello; echo oops >&2; exit 7"])
        .env_remove("HOLDFAST_PROFILE")
        .env("XDG_CONFIG_HOME", home.path())
        .env("XDG_DATA_HOME", home.path())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(holdfast_tests::harness::PATIENCE, output).await??;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("oops\n"), "{output:?}");
    assert_eq!(output.status.code(), Some(7));
    Ok(())
}

#[tokio::test]
async fn a_run_that_is_killed_leaves_nothing_running() -> anyhow::Result<()> {
    let home = tempfile::tempdir()?;
    let mark = format!("left-{}", std::process::id());
    let mut run = Command::new(HOLDFAST)
        .args([
            "run",
            "--",
            "sh",
            "-c",
            &format!("trap '' TERM HUP; echo up; while sleep 1; do :; done # {mark}"),
        ])
        .env_remove("HOLDFAST_PROFILE")
        .env("XDG_CONFIG_HOME", home.path())
        .env("XDG_DATA_HOME", home.path())
        // Its gateway's directory has no owner any more afterwards.
        .env("TMPDIR", home.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut up = [0; 3];
    run.stdout.take().context("piped")?.read_exact(&mut up).await?;
    assert!(harness::is_running(&mark));
    run.kill().await?;
    harness::eventually(harness::PATIENCE, || !harness::is_running(&mark)).await
}

#[tokio::test]
async fn exit_codes_are_the_commands_own_or_the_conventions() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    for (args, code) in [
        (vec!["exec", "box", "--", "true"], 0),
        (vec!["exec", "box", "--", "sh", "-c", "exit 3"], 3),
        (vec!["exec", "box", "--", "sh", "-c", "kill -9 $$"], 137),
        (vec!["exec", "box", "--", "sh", "-c", "kill -TERM $$"], 143),
        (vec!["exec", "box", "--", "nosuchcmd"], 127),
        (vec!["exec", "box", "--", "/etc/passwd"], 126),
        (vec!["exec", "--timeout", "1s", "box", "--", "sleep", "60"], 124),
        (vec!["exec", "nosuchbox", "--", "true"], 125),
    ] {
        let finished = cluster.command(&args).run().await?;
        assert_eq!(finished.code, code, "{args:?}: {}", finished.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn a_timeout_leaves_nothing_running() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let script = "trap '' TERM; sleep 1000 & sleep 1000";
    cluster
        .command(["exec", "--timeout", "1s", "--kill-grace", "1s", "box", "--", "sh", "-c", script])
        .run()
        .await?
        .exited(124)?;
    let left =
        cluster.command(["exec", "box", "--", "sh", "-c", "pgrep -f 'sleep 1000' || true"]).run().await?;
    // pgrep finds the shell that asks; nothing else may have the words on its command line.
    let left = left.success()?;
    assert!(left.text().lines().count() <= 1, "{}", left.text());
    Ok(())
}

#[tokio::test]
async fn environment_directory_and_user_are_as_asked() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let text = async |args: &[&str]| -> anyhow::Result<String> {
        Ok(cluster.command(args).run().await?.success()?.text())
    };
    let value = "two\nlines";
    let got = text(&["exec", "-e", &format!("A={value}"), "box", "--", "printenv", "A"]).await?;
    assert_eq!(got, format!("{value}\n"));
    assert_eq!(text(&["exec", "-w", "/usr", "box", "--", "pwd"]).await?, "/usr\n");
    if rustix::process::getuid().is_root() {
        assert_eq!(text(&["exec", "-u", "nobody", "box", "--", "id", "-un"]).await?, "nobody\n");
        assert_eq!(
            text(&["exec", "-u", "12345:54321", "box", "--", "sh", "-c", "id -u; id -g"]).await?,
            "12345\n54321\n"
        );
    } else {
        eprintln!("skipped: switching users needs root");
    }
    Ok(())
}

#[tokio::test]
async fn a_detached_exec_is_attached_from_its_first_byte() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let script = "for i in $(seq 30); do echo $i; sleep 0.1; done; exit 5";
    let id = cluster.command(["exec", "-d", "box", "--", "sh", "-c", script]).run().await?.success()?.text();
    let id = id.trim();
    let want: String = (1..=30).map(|i| format!("{i}\n")).collect();
    for _ in 0..2 {
        let finished = cluster.command(["attach", "box", id]).run().await?.exited(5)?;
        assert_eq!(finished.text(), want);
    }
    let execs = cluster.command(["execs", "box", "-o", "json"]).run().await?.success()?.json()?;
    assert!(execs.to_string().contains(id), "{execs}");
    Ok(())
}

#[tokio::test]
async fn a_sandbox_is_listed_described_and_deleted() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let list = cluster.command(["list", "-o", "json"]).run().await?.success()?.json()?;
    assert!(list.to_string().contains("\"box\""), "{list}");
    cluster.command(["status"]).run().await?.success()?;
    let pid = cluster.supervisor_pid("box").await?;
    cluster.command(["delete", "box"]).run().await?.success()?;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the supervisor is gone");
    cluster.command(["get", "box"]).run().await?.exited(125)?;
    let left: Vec<_> = std::fs::read_dir(cluster.data_dir().join("sandboxes"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "its files are gone: {left:?}");
    Ok(())
}

#[tokio::test]
async fn two_gateways_live_side_by_side() -> anyhow::Result<()> {
    let (one, two) = tokio::try_join!(Cluster::start(HOLDFAST), Cluster::start(HOLDFAST))?;
    tokio::try_join!(one.create("box"), two.create("box"))?;
    one.command(["delete", "box"]).run().await?.success()?;
    two.command(["exec", "box", "--", "true"]).run().await?.success()?;
    Ok(())
}

#[tokio::test]
async fn health_readiness_and_metrics_are_served_in_plain_http() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    cluster.command(["exec", "box", "--", "true"]).run().await?.success()?;
    let fetch = async |path: &str| -> anyhow::Result<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(cluster.gateway()?.http).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    for path in ["/healthz", "/readyz"] {
        let answer = fetch(path).await?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let metrics = fetch("/metrics").await?;
    for name in [
        "holdfast_sessions 1",
        "holdfast_execs_finished_total{outcome=\"exited\"}",
        "holdfast_exec_result_delay_seconds",
    ] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
    Ok(())
}
