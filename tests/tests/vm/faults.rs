//! What happens to a machine's commands when something of it dies or stands still.

use std::time::{Duration, Instant};

use anyhow::ensure;
use holdfast_tests::harness;
use rustix::process::Signal;

use super::place::{self, Site};

/// That a part of a machine died is told within 5 s; an emulated machine gets as much again.
const DEATH_BOUND: Duration = Duration::from_secs(10);

#[test]
fn a_dead_network_or_holder_is_a_failed_machine_and_its_exec_lost() {
    const NAME: &str = "faults::a_dead_network_or_holder_is_a_failed_machine_and_its_exec_lost";
    place::run(NAME, |parts| async move {
        let site = Site::start(NAME, &parts).await?;
        let (one, other) = tokio::join!(site.create("net", &[]), site.create("hold", &[]));
        one?;
        other?;
        for (machine, reason) in [("net", "NetworkLost"), ("hold", "KilledBySignal")] {
            let mut running =
                site.command(["exec", machine, "--", "sh", "-c", "echo up; sleep 1000"]).spawn()?;
            ensure!(running.line().await? == "up");
            let holder = site.holder(machine).await?;
            let victim = if machine == "net" { place::child_of(holder, "gvproxy")? } else { holder };
            let begun = Instant::now();
            harness::signal(victim, Signal::KILL)?;
            site.command(["wait", machine, "--for", "phase=Failed", "--timeout", "30s"])
                .run()
                .await?
                .success()?;
            let took = begun.elapsed();
            eprintln!("measured: {machine} killed, Failed after {:.1} s", took.as_secs_f64());
            ensure!(took < DEATH_BOUND, "told after {took:?}");
            let sandbox = site.get(machine).await?.to_string();
            ensure!(sandbox.contains(reason), "{sandbox}");
            let ended = running.finish_within(place::PATIENCE).await?;
            ensure!(ended.code == 125, "the lost exec's code is {}: {}", ended.code, ended.stderr);
            ensure!(ended.stderr.contains("lost"), "{}", ended.stderr);
            let left = place::processes_below(&site.dir(machine).await?);
            ensure!(left.is_empty(), "left running: {left:?}");
        }
        // Failed is no dead end.
        site.command(["start", "net"]).run().await?.success()?;
        site.command(["wait", "net", "--timeout", "200s"]).run().await?.success()?;
        site.sh("net", "exit 4").await?.exited(4)?;
        site.finish(&["net", "hold"]).await
    });
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
