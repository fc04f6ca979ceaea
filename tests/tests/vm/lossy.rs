//! A machine whose way to its gateway is bad: what its gvproxy sends goes through a NAT router, and netem.
//!
//! ```text
//!   n1: holder, gvproxy, machine ── nat ═══ 2 % lost, 80 ms each way ═══ wan ── gw1: gateway, commands
//! ```
//!
//! In life the two are on one host. Apart they show that nothing of the promise hangs on that.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::lab::{Net, obstacle};

use super::place::{self, Apart, Site};

/// At once, each with a result of its own.
const EXECS: i32 = 10;
/// How long each says nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// From one fault of the NAT to the next, three of them in the silence.
const BETWEEN: Duration = Duration::from_secs(12);

#[test]
fn silent_execs_end_true_over_loss_delay_and_a_nat_that_forgets() {
    const NAME: &str = "lossy::silent_execs_end_true_over_loss_delay_and_a_nat_that_forgets";
    place::run(NAME, |parts| async move {
        if let Some(why) = obstacle() {
            eprintln!("skipped: {why}");
            return Ok(());
        }
        // Before the site, so that it is dropped after it.
        let net = Net::up(&[]).await?;
        let apart = Apart {
            machines: net.namespace("n1"),
            gateway: net.namespace("gw1"),
            address: [203, 0, 113, 1].into(),
        };
        let site = Site::start_apart(NAME, &parts, &apart).await?;
        site.create("box", &[]).await?;
        match net.verb("impair", &["--loss", "2%", "--delay", "80ms"]).await {
            // This machine's KVM runs guests, and its kernel is not the test host's.
            Err(error) if place::is_outside() && error.to_string().contains("sch_netem") => {
                eprintln!("skipped: {error}");
                return site.finish(&["box"]).await;
            }
            done => eprintln!("impaired: {}", done?.trim()),
        }

        let mut running = Vec::new();
        for number in 0..EXECS {
            let line = format!(
                "echo up; sleep {}; echo over {number}; exit {}",
                SILENCE.as_secs(),
                result_of(number)
            );
            running.push(site.command(["exec", "box", "--", "sh", "-c", &line]).spawn()?);
        }
        for exec in &mut running {
            ensure!(exec.line().await? == "up");
        }
        let session = site.session("box").await?;
        for (verb, arguments) in
            [("evict", &["--all"][..]), ("rebind", &["--port"]), ("evict", &["--node", "n1"])]
        {
            tokio::time::sleep(BETWEEN).await;
            eprintln!("the NAT: {}", net.verb(verb, arguments).await?.trim());
        }
        for (number, exec) in (0..EXECS).zip(running) {
            let ended = exec.finish_within(place::PATIENCE).await?.exited(result_of(number))?;
            ensure!(ended.text() == format!("over {number}\n"), "exec {number}: {:?}", ended.text());
            ensure!(ended.took > SILENCE, "exec {number} was over after {:?}", ended.took);
        }
        let (up, down) = net.dropped("uplink1").await?;
        eprintln!(
            "measured: {EXECS} results; the link lost {up} up and {down} down; {session} became {}",
            site.session("box").await?
        );
        let rtt = site.get("box").await?["session"]["rtt_ms"].as_f64().context("a round trip")?;
        ensure!(rtt > 100.0, "the link has no delay: {rtt} ms");
        net.verb("impair", &["--clear"]).await?;
        site.finish(&["box"]).await
    });
}

fn result_of(number: i32) -> i32 {
    10 + number
}
