//! The list of faults: each from a healthy site to the last check.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures::future::{BoxFuture, FutureExt};
use rustix::process::Signal;

use super::{
    Site,
    calls::{BOUND, Finding, RESUMED, Talk, bulk, distinct_bytes, ride, ride_many, usual},
    site::SERVICE,
};
use crate::harness;

/// A fault of the list.
#[derive(Clone, Copy)]
pub struct Fault {
    /// What happens, in words.
    pub name: &'static str,
    run: for<'a> fn(&'a Path) -> BoxFuture<'a, anyhow::Result<Finding>>,
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fault").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Fault {
    /// Runs it in a lab of its own, `program` being the command under test; an error says which promise was broken.
    pub async fn run(&self, program: &Path) -> anyhow::Result<Finding> {
        (self.run)(program).await
    }
}

/// The whole list.
#[must_use]
pub fn all() -> Vec<Fault> {
    macro_rules! list {
        ($($name:literal => |$program:ident| $run:expr,)*) => {
            vec![$(Fault { name: $name, run: |$program| $run.boxed() },)*]
        };
    }
    list![
        "NAT table flushed, 20 silent commands" => |p| conntrack_flush_while_twenty_are_silent(p),
        "NAT table flushed in a transfer of 64 MiB each way" => |p| conntrack_flush_in_a_transfer(p),
        "NAT forgets after 3 s, 10 s of silence" => |p| udp_timeout_shorter_than_the_silence(p),
        "NAT gives a new source port" => |p| new_source_port(p),
        "NAT gets a new address" => |p| new_source_address(p),
        "supervisor's own address changes" => |p| own_address_changes(p),
        "default route moves to a second uplink" => |p| uplink_moves(p),
        "silence both ways, 6 s" => |p| partition(p, 6),
        "silence both ways, 30 s" => |p| partition(p, 30),
        "nothing up, 14 s" => |p| one_way_drop(p, "up", 14),
        "nothing down, 14 s" => |p| one_way_drop(p, "down", 14),
        "link down, 6 s" => |p| link_down_and_up(p, 6),
        "1 % loss, transfer of 16 MiB each way" => |p| loss_in_a_transfer(p, "1%", 16 << 20),
        "5 % loss, transfer of 8 MiB each way" => |p| loss_in_a_transfer(p, "5%", 8 << 20),
        "MTU 1280 and no ICMP, transfer of 16 MiB each way" => |p| mtu_black_hole_in_a_transfer(p),
        "gateway killed and started" => |p| gateway_killed(p),
        "gateway frozen, 5 s" => |p| gateway_frozen(p, 5),
        "gateway frozen, 30 s" => |p| gateway_frozen(p, 30),
        "gateway's host dies, NAT holds the old flow" => |p| stale_entry_towards_a_dead_gateway(p),
        "another installation's gateway behind the address, 5 s" => |p| a_stranger_behind_the_address(p),
        "gateway of 21 sandboxes killed and started" => |p| many_lose_their_gateway(p),
    ]
}

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
        Ok(finding) => site.finish().await.map(|()| finding),
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

/// The gateway is killed and started again, with callers attached.
pub async fn gateway_killed(program: &Path) -> anyhow::Result<Finding> {
    on_site(program, &[], GATEWAY, async |site| {
        ride(site, &usual(8)[..2], async |site| {
            site.kill_gateway().await?;
            site.start_gateway(1).await
        })
        .await
    })
    .await
}

/// The gateway is stopped by SIGSTOP for some seconds: its address takes packets, and nobody answers.
pub async fn gateway_frozen(program: &Path, seconds: u64) -> anyhow::Result<Finding> {
    on_site(program, &[], GATEWAY, async |site| {
        ride(site, &usual(seconds + 4)[..2], async |site| {
            let pid = site.gateway()?.pid();
            harness::signal(pid, Signal::STOP)?;
            for_seconds(seconds).await;
            harness::signal(pid, Signal::CONT)
        })
        .await
    })
    .await
}

/// A transfer over a line that loses packets at random, such as `1%`.
pub async fn loss_in_a_transfer(program: &Path, loss: &str, bytes: usize) -> anyhow::Result<Finding> {
    on_site(program, &[], GATEWAY, async |site| {
        let finding = bulk(site, distinct_bytes(bytes), BULK_PATIENCE, async |site| {
            site.net.verb("impair", &["--quiet", "--loss", loss]).await?;
            Ok(())
        })
        .await?;
        let (up, down) = site.net.dropped("uplink1").await?;
        ensure!(up > 0 && down > 0, "the line has lost nothing: {up} up, {down} down");
        site.net.verb("impair", &["--clear"]).await?;
        Ok(finding)
    })
    .await
}

/// The path's MTU shrinks in the middle of a transfer, and nobody says so.
pub async fn mtu_black_hole_in_a_transfer(program: &Path) -> anyhow::Result<Finding> {
    // What IPv4 and UDP leave of 1280.
    const LEFT: u64 = 1252;
    on_site(program, &[], GATEWAY, async |site| {
        // A new connection begins with 1200 and finds out with traffic.
        site.command(["exec", "box", "--", "head", "-c", "1M", "/dev/zero"]).run().await?.success()?;
        let grown = async {
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            while site.session("box").await?.context("a session")?.mtu <= LEFT {
                tick.tick().await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(BOUND, grown)
            .await
            .context("datagrams stay small, so the fault cannot bite")??;
        let finding = bulk(site, distinct_bytes(BULK / 4), BULK_PATIENCE, async |site| {
            site.net.verb("impair", &["--quiet", "--mtu", "1280", "--icmp", "drop"]).await?;
            Ok(())
        })
        .await?;
        let now = site.session("box").await?.context("a session")?.mtu;
        ensure!(now <= LEFT, "datagrams still have {now} bytes, which cannot arrive");
        site.net.verb("impair", &["--clear"]).await?;
        Ok(finding)
    })
    .await
}

/// The gateway's host dies and the gateway starts on another behind the same address; the NAT keeps the old flow
/// pointed at the dead one for as long as packets come.
pub async fn stale_entry_towards_a_dead_gateway(program: &Path) -> anyhow::Result<Finding> {
    on_site(program, &["--gateways", "2"], SERVICE, async |site| {
        let script = "for i in $(seq 20); do echo line $i; sleep 0.5; done; exit 7";
        let detached =
            site.command(["exec", "-d", "box", "--", "sh", "-c", script]).run().await?.success()?;
        let id = detached.text().trim().to_owned();
        let before = site.session("box").await?.context("a session")?;
        site.net.verb("partition", &["--link", "gw1"]).await?;
        site.kill_gateway().await?;
        let began = Instant::now();
        site.net.verb("service", &["--to", "gw2"]).await?;
        site.start_gateway(2).await?;
        let patience = format!("{}s", RESUMED.as_secs());
        let wait = ["wait", "box", "--for", "ready", "--timeout", &patience];
        site.command(wait).run().await?.success().context("the supervisor does not find the new host")?;
        let resumed = began.elapsed();
        let attached = site.command(["attach", "box", &id]).run().await?.exited(7)?;
        let want: String = (1..=20).map(|i| format!("line {i}\n")).collect();
        ensure!(attached.text() == want, "{:?}", attached.text());
        let now = site.session("box").await?.context("a session")?;
        site.net.verb("partition", &["--heal"]).await?;
        Ok(Finding {
            calls: 1,
            true_results: 1,
            latest_byte_ms: resumed.as_millis(),
            fault_ms: resumed.as_millis(),
            redials: now.epoch.saturating_sub(before.epoch),
            migrations: now.migrations,
            bound_ms: RESUMED.as_millis(),
            ..Finding::default()
        })
    })
    .await
}

/// Behind one address are the gateway and one of another installation; for some seconds flows go to the stranger.
pub async fn a_stranger_behind_the_address(program: &Path) -> anyhow::Result<Finding> {
    on_site(program, &["--gateways", "2"], SERVICE, async |site| {
        site.start_stranger(2).await?;
        ride(site, &usual(12), async |site| {
            site.net.verb("service", &["--to", "gw2"]).await?;
            site.net.verb("evict", &["--all", "--quiet"]).await?;
            for_seconds(5).await;
            // From here on a new flow has one chance in two.
            site.net.verb("service", &["--to", "gw1,gw2"]).await?;
            Ok(())
        })
        .await
    })
    .await
}

/// A gateway with many sandboxes is killed and started again.
pub async fn many_lose_their_gateway(program: &Path) -> anyhow::Result<Finding> {
    on_site(program, &["--nodes", "4"], GATEWAY, async |site| {
        let names: Vec<String> = (1..=20).map(|number| format!("box{number}")).collect();
        // A few at a time: each start is a process that computes keys.
        for some in names.chunks(5) {
            let made =
                some.iter().enumerate().map(|(i, name)| site.create(name, ["n1", "n2", "n3", "n4"][i % 4]));
            futures::future::try_join_all(made).await?;
        }
        let talks: Vec<_> = names.iter().map(|name| (name.clone(), Talk::silent(10))).collect();
        ride_many(site, &talks, async |site| {
            site.kill_gateway().await?;
            site.start_gateway(1).await
        })
        .await
    })
    .await
}
