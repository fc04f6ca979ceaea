//! Silent execs through a NAT that forgets: each ends with its true result.

use std::time::{Duration, Instant};

use holdfast_tests::engines::{Kind, SCRATCH};

use crate::{
    site::{Site, size},
    with_both_engines,
};

with_both_engines!(silent_execs_outlive_a_nat_that_forgets);

async fn silent_execs_outlive_a_nat_that_forgets(kind: Kind) -> anyhow::Result<()> {
    let (boxes, seconds) = (size("HOLDFAST_NAT_BOXES", 4)?, size("HOLDFAST_NAT_SECONDS", 15)?);
    let (execs, every) = (40, Duration::from_secs(size("HOLDFAST_NAT_FLUSH_SECONDS", 3)?));
    let mut site = Site::start(kind).await?;
    for number in 0..boxes {
        site.create(&format!("box-{number}"), SCRATCH, &[]).await?;
    }
    let mut running = Vec::new();
    for number in 0..execs {
        let name = format!("box-{}", number % boxes);
        let script = format!("/busybox sleep {seconds}; echo end {number}; exit {}", number + 1);
        let exec = site.cluster.command(["exec", &name, "--", "/busybox", "sh", "-c", &script]);
        running.push(exec.spawn()?);
    }
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut flushes = 0;
    while Instant::now() < until {
        site.engine.flush_nat().await?;
        flushes += 1;
        tokio::time::sleep(every).await;
    }
    let mut reattached = 0;
    for (number, exec) in running.into_iter().enumerate() {
        let code = i32::try_from(number)? + 1;
        let finished = exec.finish().await?.exited(code)?;
        assert_eq!(finished.text(), format!("end {number}\n"));
        reattached += u32::from(finished.stderr.contains("reattached"));
    }
    eprintln!("{execs} true results in {boxes} containers, {flushes} flushes, {reattached} reattached");
    Ok(())
}
