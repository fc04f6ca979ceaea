//! Input and output: all of it, in order, in bounded memory; and ends that must not hang.

use std::time::Duration;

use holdfast_tests::harness::{self, Cluster};
use sha2::{Digest, Sha256};

use super::HOLDFAST;

/// Half a minute of bulk on a loaded two-core machine.
const BULK: usize = 64 << 20;

/// What a process may have gained while bulk went through it: the windows of QUIC and HTTP/2, and the allocator's
/// slack; far below [`BULK`].
const GROWTH_KIB: u64 = 48 << 10;

#[tokio::test]
async fn bulk_goes_in_and_comes_back_the_same_in_bounded_memory() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    cluster.command(["exec", "box", "--", "true"]).run().await?.success()?;
    let gateway_before = cluster.gateway()?.resident_kib()?;
    let bytes: Vec<u8> =
        (0..BULK as u64 / 8).flat_map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let want = Sha256::digest(&bytes);
    let finished = cluster.command(["exec", "-i", "box", "--", "cat"]).stdin(bytes).run().await?.success()?;
    assert_eq!(finished.stdout.len(), BULK);
    assert_eq!(Sha256::digest(&finished.stdout), want);
    let grown = cluster.gateway()?.resident_kib()?.saturating_sub(gateway_before);
    assert!(grown < GROWTH_KIB, "the gateway grew by {grown} KiB");
    Ok(())
}

#[tokio::test]
async fn half_close_travels_through() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let finished = cluster
        .command(["exec", "-i", "box", "--", "sh", "-c", "wc -c; echo after"])
        .stdin("12345")
        .run()
        .await?;
    assert_eq!(finished.success()?.text().replace(' ', ""), "5\nafter\n");
    Ok(())
}

#[tokio::test]
async fn without_i_the_command_has_no_stdin() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    // The harness holds the command's stdin open for as long as it runs.
    let running = cluster.command(["exec", "box", "--", "cat"]).spawn()?;
    assert_eq!(running.finish().await?.success()?.stdout, b"");
    Ok(())
}

#[tokio::test]
async fn an_open_stdin_does_not_hold_an_ended_command() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let mut running =
        cluster.command(["exec", "-i", "box", "--", "sh", "-c", "read x; echo $x; exit 4"]).spawn()?;
    running.write(b"word\n").await?;
    assert_eq!(running.line().await?, "word");
    // stdin is still open here; `finish` would close it.
    let code = tokio::time::timeout(Duration::from_secs(10), running.exit_code()).await??;
    assert_eq!(code, 4);
    Ok(())
}

#[tokio::test]
async fn a_grandchild_that_holds_the_pipe_does_not_hold_the_call() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let finished = cluster
        .command(["exec", "box", "--", "sh", "-c", "sleep 1000 & echo done"])
        .run()
        .await?
        .success()?;
    assert_eq!(finished.text(), "done\n");
    assert!(finished.took < Duration::from_secs(5), "{:?}", finished.took);
    Ok(())
}

#[tokio::test]
async fn a_slow_reader_blocks_nobody_else_and_costs_no_memory() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let mut slow = cluster.command(["exec", "box", "--", "yes"]).spawn()?;
    assert_eq!(slow.line().await?, "y");
    let supervisor = cluster.supervisor_pid("box").await?;
    let before = harness::resident_kib(supervisor)?;
    // `slow` is not read from here on. Its pipe, the windows and the spool fill while others are served.
    for _ in 0..20 {
        let finished = cluster.command(["exec", "box", "--", "echo", "quick"]).run().await?.success()?;
        assert_eq!(finished.text(), "quick\n");
        assert!(finished.took < Duration::from_secs(10), "{:?}", finished.took);
    }
    let grown = harness::resident_kib(supervisor)?.saturating_sub(before);
    assert!(grown < GROWTH_KIB, "the supervisor grew by {grown} KiB");
    slow.kill().await?;
    Ok(())
}

#[tokio::test]
async fn a_terminal_is_one_with_a_size() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    // `script` gives the command a terminal of its own to be on.
    let output = tokio::process::Command::new("script")
        .args([
            "-qec",
            &format!("stty rows 33 cols 77; {HOLDFAST} exec -t box -- sh -c 'test -t 1 && stty size'"),
            "/dev/null",
        ])
        .env("HOLDFAST_PROFILE", cluster.data_dir().join("client.toml"))
        .stdin(std::process::Stdio::null())
        .output();
    let output = tokio::time::timeout(harness::PATIENCE, output).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("33 77"), "{text:?}");
    Ok(())
}
