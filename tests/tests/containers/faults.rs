//! What dies or stands still: the gateway, the supervisor, the engine.

use std::time::{Duration, Instant};

use holdfast_tests::engines::{Kind, SCRATCH};
use rustix::process::{Signal, kill_process};

use crate::{
    site::{SOON, Site},
    with_both_engines,
};

with_both_engines!(
    a_killed_gateway_costs_no_output_and_adopts_its_containers_alone,
    a_frozen_container_is_reconnecting_and_comes_back,
    containers_outlive_the_engines_service_and_are_watched_again,
);

async fn a_killed_gateway_costs_no_output_and_adopts_its_containers_alone(kind: Kind) -> anyhow::Result<()> {
    let mut site = Site::start_with(kind, "orphan_grace_seconds = 1").await?;
    site.create("box", SCRATCH, &[]).await?;
    // Somebody else's, at the same engine.
    let other =
        ["run", "--detach", "--name", "others", "--network", "none", SCRATCH, "/busybox", "sleep", "1000"];
    site.engine.tool(&other).await?;
    let container = site.container("box").await?;
    let script = "for i in 1 2 3 4 5 6 7 8; do echo $i; /busybox sleep 1; done; exit 8";
    let mut exec = site.cluster.command(["exec", "box", "--", "/busybox", "sh", "-c", script]).spawn()?;
    assert_eq!(exec.line().await?, "1");
    site.cluster.kill_gateway().await?;
    site.cluster.start_gateway().await?;
    let finished = exec.finish().await?.exited(8)?;
    assert_eq!(finished.text(), "2\n3\n4\n5\n6\n7\n8\n");
    assert!(finished.stderr.contains("reattached"), "{}", finished.stderr);
    assert_eq!(site.container("box").await?, container, "adopted, not made again");

    // A container that the store does not know is removed after the grace; what is not ours stays.
    site.cluster.kill_gateway().await?;
    for entry in std::fs::read_dir(site.cluster.data_dir())?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("store.sqlite") {
            std::fs::remove_file(entry.path())?;
        }
    }
    site.cluster.start_gateway().await?;
    let until = Instant::now() + SOON;
    while !site.left_of("box").await?.is_empty() {
        anyhow::ensure!(Instant::now() < until, "the orphan stays: {}", site.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let running = site.engine.tool(&["ps", "--quiet", "--filter", "name=others"]).await?;
    assert_eq!(running.lines().count(), 1);
    Ok(())
}

async fn a_frozen_container_is_reconnecting_and_comes_back(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    site.create("box", SCRATCH, &[]).await?;
    let script = "/busybox sleep 3; echo done; exit 5";
    let exec = site.text(&["exec", "-d", "box", "--", "/busybox", "sh", "-c", script]).await?;
    let processes = site.engine.processes(&site.container("box").await?)?;
    for pid in &processes {
        kill_process(*pid, Signal::STOP)?;
    }
    let frozen = Instant::now();
    // The stated bound of an idle path is 25 s; a loaded machine gets twice that.
    site.phase("box", "Reconnecting", Duration::from_secs(50)).await?;
    eprintln!("reconnecting after {:?}", frozen.elapsed());
    let call = ["exec", "--start-deadline", "2s", "--reattach-for", "2s", "box", "--", "/busybox", "true"];
    let refused = site.run(&call).await?.exited(125)?;
    assert!(refused.stderr.contains("Reconnecting"), "{}", refused.stderr);
    for pid in &processes {
        kill_process(*pid, Signal::CONT)?;
    }
    site.run(&["wait", "box", "--timeout", "50s"]).await?.success()?;
    let attached = site.run(&["attach", "box", exec.trim()]).await?.exited(5)?;
    assert_eq!(attached.text(), "done\n");
    Ok(())
}

async fn containers_outlive_the_engines_service_and_are_watched_again(kind: Kind) -> anyhow::Result<()> {
    let mut site = Site::start(kind).await?;
    site.create("box", SCRATCH, &[]).await?;
    site.create("doomed", SCRATCH, &[]).await?;
    site.engine.kill_service().await?;
    // No engine, and everything goes on.
    let said = site.text(&["exec", "box", "--", "/busybox", "echo", "without"]).await?;
    assert_eq!(said, "without\n");
    site.run(&["create", "new", "--image", SCRATCH]).await?.exited(125)?;
    site.engine.start_service().await?;
    let doomed = site.container("doomed").await?;
    site.engine.tool(&["kill", "--signal", "KILL", &doomed]).await?;
    let failed = site.phase("doomed", "Failed", SOON).await?;
    assert_eq!(failed["reason"], "WorkloadKilled", "{failed}");
    site.run(&["exec", "box", "--", "/busybox", "true"]).await?.success()?;
    site.create("new", SCRATCH, &[]).await?;
    // The way out of Failed.
    site.run(&["start", "doomed"]).await?.success()?;
    site.run(&["wait", "doomed", "--timeout", "50s"]).await?.success()?;
    Ok(())
}
