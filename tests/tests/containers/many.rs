//! Silent execs while their gateway dies and their sessions are reset: each ends with its true result.

use std::time::Duration;

use holdfast_tests::engines::{Kind, SCRATCH};

use crate::{
    site::{Site, size},
    with_both_engines,
};

with_both_engines!(silent_execs_outlive_their_gateway_and_every_session);

async fn silent_execs_outlive_their_gateway_and_every_session(kind: Kind) -> anyhow::Result<()> {
    let (boxes, execs) = (size("HOLDFAST_MANY_BOXES", 3)?, size("HOLDFAST_MANY_EXECS", 12)?);
    let seconds = size("HOLDFAST_MANY_SECONDS", 8)?;
    let mut site = Site::start(kind).await?;
    for number in 0..boxes {
        site.create(&format!("box-{number}"), SCRATCH, &[]).await?;
    }
    let mut running = Vec::new();
    for number in 0..execs {
        let name = format!("box-{}", number % boxes);
        let code = number % 256;
        let script = format!(
            "echo {number} >>started-{number}; /busybox sleep {seconds}; echo end {number}; exit {code}"
        );
        running.push(site.cluster.command(["exec", &name, "--", "/busybox", "sh", "-c", &script]).spawn()?);
    }
    for round in 0..3 {
        // Between two faults every session is back.
        for number in 0..boxes {
            site.run(&["wait", &format!("box-{number}"), "--timeout", "50s"]).await?.success()?;
        }
        if round == 1 {
            for number in 0..boxes {
                let name = format!("box-{number}");
                site.run(&["chaos", &name, "reset-session", "--yes"]).await?.success()?;
            }
        } else {
            site.cluster.kill_gateway().await?;
            site.cluster.start_gateway().await?;
        }
    }
    let mut reattached = 0;
    for (number, exec) in (0..execs).zip(running) {
        let code = i32::try_from(number % 256)?;
        let finished = exec.finish_within(Duration::from_secs(120 + seconds)).await?.exited(code)?;
        assert_eq!(finished.text(), format!("end {number}\n"));
        reattached += u32::from(finished.stderr.contains("reattached"));
    }
    for number in 0..boxes {
        let name = format!("box-{number}");
        let mine = (number..execs).step_by(usize::try_from(boxes)?);
        let count = "for f in started-*; do while read -r line; do echo $f $line; done <$f; done";
        let started = site.run(&["exec", &name, "--", "/busybox", "sh", "-c", count]).await?.success()?;
        let mut lines: Vec<_> = String::from_utf8(started.stdout)?.lines().map(str::to_owned).collect();
        let mut once: Vec<_> = mine.map(|number| format!("started-{number} {number}")).collect();
        lines.sort();
        once.sort();
        assert_eq!(lines, once, "each was started once");
    }
    eprintln!("{execs} true results in {boxes} containers, {reattached} reattached");
    Ok(())
}
