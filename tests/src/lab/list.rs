//! The list of faults.

use std::time::Duration;

use anyhow::ensure;
use futures::future::FutureExt;
use rustix::process::Signal;

use super::{
    Stage, Way,
    faults::{Act, Fault, Shows},
    load::Load,
};

/// The whole list, in the order of the table.
#[must_use]
pub fn all() -> Vec<Fault> {
    let mut list = nat();
    list.extend(silence());
    list.extend(lines());
    list.extend(gateways());
    list.extend(netem());
    list
}

/// What takes too long for every run.
#[must_use]
pub fn long() -> Vec<Fault> {
    vec![Fault {
        lab: &["--udp-timeout", "10", "--udp-timeout-stream", "10", "--tcp-timeout", "10"],
        shows: Some(Shows::OneSession),
        ..fault(
            "NAT forgets after 10 s and is flushed every 20 s, 20 commands silent for 10 minutes",
            Load::Silent { calls: 20, seconds: 600, seconds_short: 600 },
            |stage| {
                async move {
                    for _ in 0..29 {
                        for_seconds(20).await;
                        stage.verb("evict", &["--all", "--quiet"]).await?;
                    }
                    Ok(())
                }
                .boxed()
            },
        )
    }]
}

/// A fault on the plainest lab; fields follow.
fn fault(name: &'static str, load: Load, act: Act) -> Fault {
    Fault {
        name,
        lab: &[],
        way: Way::Address,
        load,
        before: None,
        act,
        after: None,
        shows: None,
        netem: false,
        heavy: matches!(load, Load::Bulk { .. } | Load::Herd { .. }),
    }
}

/// The fault began before the calls, and lasts.
fn nothing_more(_: &mut dyn Stage) -> futures::future::BoxFuture<'_, anyhow::Result<()>> {
    async { Ok(()) }.boxed()
}

/// A real pause, of a fault that lasts.
async fn for_seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Some verbs, one after another.
async fn verbs(stage: &mut dyn Stage, verbs: &[&[&str]]) -> anyhow::Result<()> {
    for words in verbs {
        stage.verb(words[0], &words[1..]).await?;
    }
    Ok(())
}

/// The NAT forgets, or gives new addresses.
fn nat() -> Vec<Fault> {
    vec![
        fault(
            "NAT table flushed, 20 silent commands",
            Load::Silent { calls: 20, seconds: 8, seconds_short: 8 },
            |stage| {
                async move {
                    let said = stage.verb("evict", &["--proto", "udp", "--json"]).await?;
                    let udp: serde_json::Value = serde_json::from_str(&said)?;
                    let said = stage.verb("evict", &["--proto", "tcp", "--json"]).await?;
                    let tcp: serde_json::Value = serde_json::from_str(&said)?;
                    let deleted = |answer: &serde_json::Value| answer["deleted"].as_u64().unwrap_or_default();
                    ensure!(deleted(&udp) + deleted(&tcp) > 0, "nothing was evicted");
                    Ok(())
                }
                .boxed()
            },
        ),
        fault(
            "NAT table flushed in the middle of a transfer of 1 GiB each way",
            Load::Bulk { mib: 1024, mib_short: 64 },
            |stage| verbs(stage, &[&["evict", "--all", "--quiet"]]).boxed(),
        ),
        Fault {
            lab: &["--udp-timeout", "3", "--udp-timeout-stream", "3", "--tcp-timeout", "3"],
            // With nobody attached there is no heartbeat, only the keepalive, which is slower than this NAT.
            before: Some(|_| for_seconds(8).map(Ok).boxed()),
            ..fault(
                "NAT forgets after 3 s, 10 s of silence",
                Load::Silent { calls: 2, seconds: 10, seconds_short: 10 },
                |_| for_seconds(10).map(Ok).boxed(),
            )
        },
        Fault {
            lab: &["--udp-timeout", "10", "--udp-timeout-stream", "10", "--tcp-timeout", "10"],
            shows: Some(Shows::OneSession),
            ..fault(
                "NAT forgets after 10 s and is flushed every 20 s, 20 silent commands",
                Load::Silent { calls: 20, seconds: 70, seconds_short: 50 },
                |stage| {
                    async move {
                        for _ in 0..2 {
                            for_seconds(20).await;
                            stage.verb("evict", &["--all", "--quiet"]).await?;
                        }
                        Ok(())
                    }
                    .boxed()
                },
            )
        },
        Fault {
            shows: Some(Shows::Moved),
            ..fault("NAT gives a new source port", Load::Usual(8), |stage| {
                verbs(stage, &[&["rebind", "--port"]]).boxed()
            })
        },
        Fault {
            shows: Some(Shows::Moved),
            ..fault("NAT gets a new address", Load::Usual(8), |stage| {
                verbs(stage, &[&["rebind", "--address"]]).boxed()
            })
        },
        Fault {
            shows: Some(Shows::Moved),
            ..fault("NAT gives a new source port, 3 s later a new address", Load::Usual(10), |stage| {
                async move {
                    verbs(stage, &[&["rebind", "--port"]]).await?;
                    for_seconds(3).await;
                    verbs(stage, &[&["rebind", "--address"]]).await
                }
                .boxed()
            })
        },
        Fault {
            shows: Some(Shows::Moved),
            ..fault("supervisor's own address changes", Load::Usual(8), |stage| {
                verbs(stage, &[&["rebind", "--quiet", "--own-address", "n1"]]).boxed()
            })
        },
        Fault {
            lab: &["--uplinks", "2"],
            shows: Some(Shows::Moved),
            ..fault("default route moves to a second uplink", Load::Usual(8), |stage| {
                verbs(stage, &[&["rebind", "--quiet", "--uplink", "2"]]).boxed()
            })
        },
    ]
}

/// A cut of so many seconds that must have dropped something.
async fn cut(stage: &mut dyn Stage, how: &[&str], seconds: u64) -> anyhow::Result<()> {
    stage.verb("partition", how).await?;
    for_seconds(seconds).await;
    let dropped = stage.net().dropped("uplink1").await?;
    stage.verb("partition", &["--heal"]).await?;
    ensure!(how.contains(&"--down") || dropped.0 + dropped.1 > 0, "the cut has dropped nothing");
    Ok(())
}

/// The path is there and carries nothing.
fn silence() -> Vec<Fault> {
    vec![
        fault("silence both ways, 6 s", Load::Usual(10), |stage| cut(stage, &[], 6).boxed()),
        fault("silence both ways, 30 s", Load::Usual(34), |stage| cut(stage, &[], 30).boxed()),
        fault("nothing up, 6 s", Load::Usual(10), |stage| cut(stage, &["--dir", "up"], 6).boxed()),
        fault("nothing up, 28 s", Load::Usual(32), |stage| cut(stage, &["--dir", "up"], 28).boxed()),
        fault("nothing down, 6 s", Load::Usual(10), |stage| cut(stage, &["--dir", "down"], 6).boxed()),
        fault("nothing down, 28 s", Load::Usual(32), |stage| cut(stage, &["--dir", "down"], 28).boxed()),
        fault("link down, 6 s", Load::Usual(10), |stage| cut(stage, &["--down", "--link", "n1"], 6).boxed()),
        fault("link down, 28 s", Load::Usual(32), |stage| {
            cut(stage, &["--down", "--link", "n1"], 28).boxed()
        }),
    ]
}

/// What the line has lost must not be nothing; then it is mended.
fn lossy_line_mended(stage: &mut dyn Stage) -> futures::future::BoxFuture<'_, anyhow::Result<()>> {
    async move {
        let (up, down) = stage.net().dropped("uplink1").await?;
        ensure!(up > 0 && down > 0, "the line has lost nothing: {up} up, {down} down");
        verbs(stage, &[&["impair", "--clear"]]).await
    }
    .boxed()
}

fn line_mended(stage: &mut dyn Stage) -> futures::future::BoxFuture<'_, anyhow::Result<()>> {
    verbs(stage, &[&["impair", "--clear"]]).boxed()
}

/// The path carries less than it should.
fn lines() -> Vec<Fault> {
    vec![
        Fault {
            // From the beginning: what goes up is mostly there when an eighth has come back.
            before: Some(|stage| verbs(stage, &[&["impair", "--quiet", "--loss", "1%"]]).boxed()),
            after: Some(lossy_line_mended),
            ..fault(
                "1 % loss, transfer of 16 MiB each way",
                Load::Bulk { mib: 16, mib_short: 16 },
                nothing_more,
            )
        },
        Fault {
            // From the beginning: what goes up is mostly there when an eighth has come back.
            before: Some(|stage| verbs(stage, &[&["impair", "--quiet", "--loss", "5%"]]).boxed()),
            after: Some(lossy_line_mended),
            ..fault("5 % loss, transfer of 8 MiB each way", Load::Bulk { mib: 8, mib_short: 8 }, nothing_more)
        },
        Fault {
            // From the beginning: what goes up is mostly there when an eighth has come back.
            before: Some(|stage| verbs(stage, &[&["impair", "--quiet", "--loss", "20%"]]).boxed()),
            after: Some(lossy_line_mended),
            ..fault(
                "20 % loss, transfer of 2 MiB each way",
                Load::Bulk { mib: 2, mib_short: 2 },
                nothing_more,
            )
        },
        fault("20 % loss for 15 s", Load::Usual(19), |stage| {
            async move {
                stage.verb("impair", &["--quiet", "--loss", "20%"]).await?;
                for_seconds(15).await;
                lossy_line_mended(stage).await
            }
            .boxed()
        }),
        Fault {
            shows: Some(Shows::Shrunken),
            after: Some(line_mended),
            ..fault(
                "MTU 1280 in a transfer of 16 MiB each way",
                Load::Bulk { mib: 16, mib_short: 16 },
                |stage| verbs(stage, &[&["impair", "--quiet", "--mtu", "1280"]]).boxed(),
            )
        },
        Fault {
            shows: Some(Shows::Shrunken),
            after: Some(line_mended),
            ..fault(
                "MTU 1280 and no ICMP in a transfer of 16 MiB each way",
                Load::Bulk { mib: 16, mib_short: 16 },
                |stage| verbs(stage, &[&["impair", "--quiet", "--mtu", "1280", "--icmp", "drop"]]).boxed(),
            )
        },
    ]
}

async fn gateway_restarted(stage: &mut dyn Stage) -> anyhow::Result<()> {
    stage.kill_gateway().await?;
    stage.start_gateway(1).await
}

async fn gateway_frozen(stage: &mut dyn Stage, seconds: u64) -> anyhow::Result<()> {
    stage.signal_gateway(Signal::STOP)?;
    for_seconds(seconds).await;
    stage.signal_gateway(Signal::CONT)
}

async fn supervisor_frozen(stage: &mut dyn Stage, seconds: u64) -> anyhow::Result<()> {
    stage.signal_supervisors(Signal::STOP).await?;
    for_seconds(seconds).await;
    stage.signal_supervisors(Signal::CONT).await
}

/// One of the two ends goes, stands still, moves, or is another.
fn gateways() -> Vec<Fault> {
    vec![
        fault("gateway killed and started", Load::Patient(8), |stage| gateway_restarted(stage).boxed()),
        Fault {
            lab: &["--gateways", "2"],
            way: Way::Name,
            ..fault(
                "gateway killed, started on another host behind the same name",
                Load::Patient(12),
                |stage| {
                    async move {
                        stage.kill_gateway().await?;
                        stage.start_gateway(2).await?;
                        for_seconds(2).await;
                        stage.name_leads_to(2)
                    }
                    .boxed()
                },
            )
        },
        fault("gateway frozen, 5 s", Load::Patient(9), |stage| gateway_frozen(stage, 5).boxed()),
        fault("gateway frozen, 60 s", Load::Patient(64), |stage| gateway_frozen(stage, 60).boxed()),
        fault("supervisor frozen, 5 s", Load::Usual(9), |stage| supervisor_frozen(stage, 5).boxed()),
        fault("supervisor frozen, 60 s", Load::Usual(64), |stage| supervisor_frozen(stage, 60).boxed()),
        Fault {
            lab: &["--gateways", "2"],
            way: Way::Service,
            after: Some(|stage| verbs(stage, &[&["partition", "--heal"]]).boxed()),
            ..fault("gateway's host dies, NAT holds the old flow", Load::Patient(12), |stage| {
                async move {
                    // The NAT keeps the old flow pointed at the dead host for as long as packets come.
                    stage.verb("partition", &["--link", "gw1"]).await?;
                    stage.kill_gateway().await?;
                    stage.verb("service", &["--to", "gw2"]).await?;
                    stage.start_gateway(2).await
                }
                .boxed()
            })
        },
        Fault {
            lab: &["--gateways", "2"],
            way: Way::Service,
            before: Some(|stage| stage.start_stranger(2)),
            ..fault("another installation's gateway behind the address, 5 s", Load::Usual(12), |stage| {
                async move {
                    verbs(stage, &[&["service", "--to", "gw2"], &["evict", "--all", "--quiet"]]).await?;
                    for_seconds(5).await;
                    // From here on a new flow has one chance in two.
                    verbs(stage, &[&["service", "--to", "gw1,gw2"]]).await
                }
                .boxed()
            })
        },
        Fault {
            lab: &["--gateways", "2"],
            way: Way::Service,
            before: Some(|stage| stage.start_stranger(2)),
            ..fault("two gateways behind one address at random, evicted 4 times", Load::Usual(28), |stage| {
                async move {
                    // As kube-proxy does it: a new flow goes to either, and one of them knows nobody here.
                    verbs(stage, &[&["service", "--to", "gw1,gw2"]]).await?;
                    for _ in 0..4 {
                        verbs(stage, &[&["evict", "--all", "--quiet"]]).await?;
                        for_seconds(5).await;
                    }
                    verbs(stage, &[&["service", "--to", "gw1"]]).await
                }
                .boxed()
            })
        },
        Fault {
            lab: &["--nodes", "4"],
            ..fault(
                "gateway of 40 sandboxes killed and started",
                Load::Herd { sandboxes: 40, seconds: 15 },
                |stage| gateway_restarted(stage).boxed(),
            )
        },
    ]
}

/// A line of such a quality for so many seconds.
async fn impaired(stage: &mut dyn Stage, how: &[&str], seconds: u64) -> anyhow::Result<()> {
    stage.verb("impair", &[&["--quiet", "--strict"], how].concat()).await?;
    for_seconds(seconds).await;
    verbs(stage, &[&["impair", "--clear"]]).await
}

/// What needs a kernel with `sch_netem`: the test host's.
fn netem() -> Vec<Fault> {
    let netem =
        |name, load, act| Fault { netem: true, after: Some(line_mended as Act), ..fault(name, load, act) };
    vec![
        netem("delay 200 ms ± 50, reordered, 15 s", Load::Usual(20), |stage| {
            impaired(stage, &["--delay", "200ms", "--jitter", "50ms", "--reorder", "25%"], 15).boxed()
        }),
        netem("5 % loss in bursts of 4, 15 s", Load::Usual(20), |stage| {
            impaired(stage, &["--loss", "5%", "--burst", "4", "--delay", "20ms"], 15).boxed()
        }),
        netem("10 % of packets twice, 15 s", Load::Usual(20), |stage| {
            impaired(stage, &["--duplicate", "10%", "--delay", "20ms"], 15).boxed()
        }),
        netem("2 % of packets corrupt, 15 s", Load::Usual(20), |stage| {
            impaired(stage, &["--corrupt", "2%", "--delay", "20ms"], 15).boxed()
        }),
        netem("2 Mbit/s, transfer of 1 MiB each way", Load::Bulk { mib: 1, mib_short: 1 }, |stage| {
            verbs(stage, &[&["impair", "--quiet", "--rate", "2mbit"]]).boxed()
        }),
        netem(
            "profile satellite, transfer of 1 MiB each way",
            Load::Bulk { mib: 1, mib_short: 1 },
            |stage| verbs(stage, &[&["impair", "--quiet", "--strict", "--profile", "satellite"]]).boxed(),
        ),
        netem("profile absurd, 30 s", Load::Usual(35), |stage| {
            impaired(stage, &["--profile", "absurd"], 30).boxed()
        }),
    ]
}
