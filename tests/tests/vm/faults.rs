//! What happens to a machine's commands when something of it dies or stands still.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use holdfast_tests::harness;
use jiff::Timestamp;
use rustix::process::Signal;

use super::place::{self, Site};

/// From the death of a part of a machine to a sandbox that is Failed, by the gateway's own clock.
const DEATH_BOUND: Duration = Duration::from_secs(5);

#[test]
fn a_dead_part_is_a_failed_machine_and_its_exec_lost() {
    const NAME: &str = "faults::a_dead_part_is_a_failed_machine_and_its_exec_lost";
    place::run(NAME, |parts| async move {
        let site = Site::start(NAME, &parts).await?;
        let (one, other) = tokio::join!(
            site.create("net", &["--workspace", "ephemeral", "--disk", "64Mi"]),
            site.create("hold", &[])
        );
        one?;
        other?;
        // Its files are in its memory, bounded, and there is no disk.
        site.sh("net", "echo mine > /workspace/file").await?.success()?;
        ensure!(!site.dir("net").await?.join("disk.ext4").exists(), "there is a disk");
        let fill =
            "dd if=/dev/zero of=/workspace/large bs=1M count=80; code=$?; rm /workspace/large; exit $code";
        let full = site.sh("net", fill).await?;
        ensure!(full.code != 0 && full.stderr.contains("No space left"), "{full:?}");
        dies(&site, "net", Part::Network).await?;
        dies(&site, "hold", Part::Holder).await?;
        // Failed is no dead end.
        let lost = site.get("net").await?.to_string();
        site.command(["start", "net"]).run().await?.success()?;
        site.command(["wait", "net", "--timeout", "200s"]).run().await?.success()?;
        ensure!(lost.contains("its files were in its memory, and are gone"), "{lost}");
        site.sh("net", "test ! -e /workspace/file || exit 5; exit 4").await?.exited(4)?;
        dies(&site, "net", Part::Machine).await?;
        site.finish(&["net", "hold"]).await
    });
}

/// What of a machine can be killed alone.
#[derive(Clone, Copy, Debug)]
enum Part {
    Network,
    Holder,
    /// The process that libkrun has made the virtual machine.
    Machine,
}

impl Part {
    fn process(self, holder: i32) -> anyhow::Result<i32> {
        match self {
            Self::Network => place::child_of(holder, "gvproxy"),
            Self::Holder => Ok(holder),
            Self::Machine => place::child_of(holder, "\0machine\0"),
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Network => "NetworkLost",
            Self::Holder => "KilledBySignal",
            Self::Machine => "MachineKilled",
        }
    }
}

/// When the gateway learned that the workload runs no more.
fn stopped_at(sandbox: &serde_json::Value) -> anyhow::Result<Timestamp> {
    let conditions = sandbox["conditions"].as_array().context("conditions")?;
    let running = conditions.iter().find(|condition| condition["type"] == "WorkloadRunning");
    let at = running.and_then(|condition| condition["last_transition_time"].as_str());
    Ok(at.with_context(|| format!("no WorkloadRunning in {sandbox}"))?.parse()?)
}

/// A part is killed while a command runs: that is told in time, with the reason, and of all parts nothing is left.
async fn dies(site: &Site, machine: &str, part: Part) -> anyhow::Result<()> {
    let mut running = site.command(["exec", machine, "--", "sh", "-c", "echo up; sleep 1000"]).spawn()?;
    ensure!(running.line().await? == "up");
    let victim = part.process(site.holder(machine).await?)?;
    let wait = site.command(["wait", machine, "--for", "phase=Failed", "--timeout", "30s"]);
    let (begun, killed) = (Instant::now(), Timestamp::now());
    harness::signal(victim, Signal::KILL)?;
    wait.run().await?.success()?;
    let heard = begun.elapsed();
    let sandbox = site.get(machine).await?;
    let took = stopped_at(&sandbox)?.duration_since(killed);
    eprintln!(
        "measured: {part:?} killed, Failed after {:.2} s, heard by `wait` after {:.1} s",
        took.as_secs_f64(),
        heard.as_secs_f64()
    );
    ensure!(took.unsigned_abs() < DEATH_BOUND, "Failed after {took:?}");
    ensure!(sandbox.to_string().contains(part.reason()), "{sandbox}");
    let ended = running.finish_within(place::PATIENCE).await?;
    ensure!(ended.code == 125, "the lost exec's code is {}: {}", ended.code, ended.stderr);
    ensure!(ended.stderr.contains("lost"), "{}", ended.stderr);
    let dir = site.dir(machine).await?;
    let left = place::processes_below(&dir);
    ensure!(left.is_empty(), "left running: {left:?}");
    // What was killed cannot take its socket along; whoever of the others lives on does.
    ensure!(matches!(part, Part::Holder) || !dir.join("net").exists(), "left behind: the network");
    Ok(())
}

#[test]
fn a_machine_outlives_its_gateway_and_a_pause() {
    const NAME: &str = "faults::a_machine_outlives_its_gateway_and_a_pause";
    place::run(NAME, |parts| async move {
        let mut site = Site::start(NAME, &parts).await?;
        site.create("box", &[]).await?;
        let holder = site.holder("box").await?;

        let script =
            "echo up; for i in $(seq 300); do echo line $i; test $((i % 100)) = 0 && sleep 2; done; exit 9";
        let mut running = site.command(["exec", "box", "--", "sh", "-c", script]).spawn()?;
        ensure!(running.line().await? == "up");
        site.cluster.kill_gateway().await?;
        site.cluster.start_gateway().await?;
        let ended = running.finish_within(place::PATIENCE).await?.exited(9)?;
        let want: String = (1..=300).map(|i| format!("line {i}\n")).collect();
        ensure!(
            String::from_utf8_lossy(&ended.stdout) == want,
            "lines are missing or doubled; {}",
            ended.stderr
        );
        ensure!(site.holder("box").await? == holder, "another machine");

        // Longer than every timer of the session.
        let mut running =
            site.command(["exec", "box", "--", "sh", "-c", "echo up; sleep 5; echo over; exit 6"]).spawn()?;
        ensure!(running.line().await? == "up");
        site.command(["pause", "box"]).run().await?.success()?;
        site.command(["wait", "box", "--for", "phase=Paused", "--timeout", "30s"]).run().await?.success()?;
        tokio::time::sleep(Duration::from_secs(30)).await;
        let begun = Instant::now();
        site.command(["resume", "box"]).run().await?.success()?;
        site.command(["wait", "box", "--timeout", "120s"]).run().await?.success()?;
        eprintln!("measured: resumed, Ready after {:.1} s", begun.elapsed().as_secs_f64());
        let ended = running.finish_within(place::PATIENCE).await?.exited(6)?;
        ensure!(ended.text() == "over\n", "{:?}; {}", ended.text(), ended.stderr);
        site.finish(&["box"]).await
    });
}
