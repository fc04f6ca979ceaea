//! The job that Holdfast is for: many silent commands, and sessions that do not last.

use futures::future::try_join_all;
use holdfast_tests::harness::Cluster;
use std::time::Duration;

use super::HOLDFAST;

/// A size that two cores carry beside other tests. By hand: HOLDFAST_MANY_BOXES=20 HOLDFAST_MANY_EXECS=200.
const BOXES: usize = 4;
const EXECS: usize = 40;

fn size(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test]
async fn silent_execs_give_their_true_codes_through_three_resets_of_every_session() -> anyhow::Result<()> {
    let (boxes, execs) = (size("HOLDFAST_MANY_BOXES", BOXES), size("HOLDFAST_MANY_EXECS", EXECS));
    let mut cluster = Cluster::start(HOLDFAST).await?;
    for i in 0..boxes {
        cluster.create(&format!("box{i}")).await?;
    }
    let mut running = Vec::new();
    for i in 0..execs {
        let name = format!("box{}", i % boxes);
        let script = format!("echo {i} >> started{i}; sleep 12; exit {}", i % 256);
        let command = cluster.command(["exec", name.as_str(), "--", "sh", "-c", script.as_str()]);
        running.push(command.spawn()?);
    }
    for _ in 0..3 {
        // Between two resets every session is back.
        for i in 0..boxes {
            let name = format!("box{i}");
            cluster.command(["wait", &name, "--for", "ready", "--timeout", "30s"]).run().await?.success()?;
        }
        cluster.kill_gateway().await?;
        cluster.start_gateway().await?;
    }
    let finished =
        try_join_all(running.into_iter().map(|r| r.finish_within(Duration::from_secs(120)))).await?;
    for (i, finished) in finished.iter().enumerate() {
        assert_eq!(finished.code, i32::try_from(i % 256)?, "exec {i}: {}", finished.stderr);
    }
    for i in 0..execs {
        let name = format!("box{}", i % boxes);
        let file = format!("started{i}");
        let started =
            cluster.command(["exec", name.as_str(), "--", "cat", file.as_str()]).run().await?.success()?;
        assert_eq!(started.text(), format!("{i}\n"), "exec {i} was started once");
    }
    Ok(())
}
