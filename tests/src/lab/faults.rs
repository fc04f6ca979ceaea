//! The list of faults: each from a healthy site to the last check.

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};

use super::{
    Site,
    calls::{Finding, Talk, bulk, distinct_bytes, ride, usual},
};

/// Where gateway 1 is for supervisors.
const GATEWAY: &str = "203.0.113.1";
/// What a caller may still be told of a transfer of [`BULK`]; alone it takes a few seconds.
const BULK_PATIENCE: Duration = Duration::from_secs(180);
/// Large enough that the fault hits it in the middle.
const BULK: usize = 64 << 20;

/// A site of one node, on which `body` runs, then the last checks.
async fn on_site(
    program: &Path,
    options: &[&str],
    advertise: &str,
    body: impl AsyncFnOnce(&mut Site) -> anyhow::Result<Finding>,
) -> anyhow::Result<Finding> {
    let mut site = Site::up(program, options, advertise).await?;
    match body(&mut site).await {
        Ok(finding) => site.finish(&["n1"]).await.map(|()| finding),
        Err(error) => {
            let (log, consoles) = (site.gateway_log(), site.consoles());
            Err(error.context(format!("gateway:\n{}\nsupervisors:\n{}", tail(&log), tail(&consoles))))
        }
    }
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// A real pause, of a fault that lasts.
async fn for_seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// The NAT forgets everything while twenty commands are silent.
pub async fn conntrack_flush_while_twenty_are_silent(program: &Path) -> anyhow::Result<Finding> {
    on_site(program, &[], GATEWAY, async |site| {
        ride(site, &[Talk::silent(8); 20], async |site| {
            let answer: serde_json::Value =
                serde_json::from_str(&site.net.verb("evict", &["--json"]).await?)?;
            ensure!(answer["deleted"].as_u64() > Some(0), "nothing was evicted: {answer}");
            Ok(())
        })
        .await
    })
    .await
}

/// The NAT forgets everything in the middle of a transfer.
pub async fn conntrack_flush_in_a_transfer(program: &Path) -> anyhow::Result<Finding> {
    on_site(program, &[], GATEWAY, async |site| {
        bulk(site, distinct_bytes(BULK), BULK_PATIENCE, async |site| {
            site.net.verb("evict", &["--all", "--quiet"]).await?;
            Ok(())
        })
        .await
    })
    .await
}

/// The NAT's timeout is shorter than the silence.
pub async fn udp_timeout_shorter_than_the_silence(program: &Path) -> anyhow::Result<Finding> {
    let options = ["--udp-timeout", "3", "--udp-timeout-stream", "3"];
    on_site(program, &options, GATEWAY, async |site| {
        // With nobody attached there is no heartbeat, only the keepalive, which is slower than this NAT.
        for_seconds(8).await;
        let echo = site.command(["exec", "box", "--", "echo", "alive"]).run().await?.success()?;
        ensure!(echo.text() == "alive\n", "{:?}", echo.text());
        ride(site, &[Talk::silent(10), Talk::silent(10).strict()], async |_| Ok(())).await
    })
    .await
}

/// The NAT gives a new source port.
pub async fn new_source_port(program: &Path) -> anyhow::Result<Finding> {
    moved(program, &["--port"]).await
}

/// The NAT has a new address.
pub async fn new_source_address(program: &Path) -> anyhow::Result<Finding> {
    moved(program, &["--address"]).await
}

/// The supervisor's own address changes.
pub async fn own_address_changes(program: &Path) -> anyhow::Result<Finding> {
    on_site(program, &[], GATEWAY, async |site| {
        ride(site, &usual(8), async |site| {
            site.net.verb("rebind", &["--quiet", "--own-address", "n1"]).await?;
            Ok(())
        })
        .await
    })
    .await
}

async fn moved(program: &Path, how: &[&str]) -> anyhow::Result<Finding> {
    on_site(program, &[], GATEWAY, async |site| {
        let before = site.session("box").await?.context("a session")?.remote;
        let finding = ride(site, &usual(8), async |site| {
            site.net.verb("rebind", how).await?;
            Ok(())
        })
        .await?;
        let now = site.session("box").await?.context("a session")?.remote;
        ensure!(now != before, "the gateway still sees {now}: the fault did not bite");
        Ok(finding)
    })
    .await
}

/// The default route moves to another uplink, with another address.
pub async fn uplink_moves(program: &Path) -> anyhow::Result<Finding> {
    on_site(program, &["--uplinks", "2"], GATEWAY, async |site| {
        ride(site, &usual(8), async |site| {
            site.net.verb("rebind", &["--quiet", "--uplink", "2"]).await?;
            Ok(())
        })
        .await
    })
    .await
}

/// Silence both ways, for some seconds.
pub async fn partition(program: &Path, seconds: u64) -> anyhow::Result<Finding> {
    cut(program, &[], seconds).await
}

/// Silence one way, `up` or `down`.
pub async fn one_way_drop(program: &Path, direction: &str, seconds: u64) -> anyhow::Result<Finding> {
    cut(program, &["--dir", direction], seconds).await
}

/// The cable of the node is pulled.
pub async fn link_down_and_up(program: &Path, seconds: u64) -> anyhow::Result<Finding> {
    cut(program, &["--down", "--link", "n1"], seconds).await
}

async fn cut(program: &Path, how: &[&str], seconds: u64) -> anyhow::Result<Finding> {
    on_site(program, &[], GATEWAY, async |site| {
        ride(site, &usual(seconds + 4), async |site| {
            site.net.verb("partition", how).await?;
            for_seconds(seconds).await;
            let dropped = site.net.dropped("uplink1").await?;
            site.net.verb("partition", &["--heal"]).await?;
            ensure!(how.contains(&"--down") || dropped.0 + dropped.1 > 0, "the cut has dropped nothing");
            Ok(())
        })
        .await
    })
    .await
}
