//! A main command without an image: the command that was given, in the workspace.

use holdfast_tests::harness::Cluster;

use crate::HOLDFAST;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_given_command_runs_once_in_each_workload_and_an_images_own_is_refused() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(HOLDFAST).await?;
    let refused = cluster.command(["create", "box", "--main"]).run().await?.exited(125)?;
    assert!(refused.stderr.contains("the local driver does not support"), "{}", refused.stderr);

    let script = "echo again >>runs; cat runs; exit 4";
    let create = ["create", "box", "--wait", "--main", "--", "sh", "-c", script];
    cluster.command(create).run().await?.success()?;
    let attached = cluster.command(["attach", "box", "main"]).run().await?.exited(4)?;
    assert_eq!(attached.text(), "again\n");
    cluster.command(["exec", "box", "--", "true"]).run().await?.success()?;
    let listed = cluster.command(["execs", "box", "-o", "json"]).run().await?.success()?;
    let listed: serde_json::Value = serde_json::from_str(&listed.text())?;
    let main: Vec<_> = listed["execs"].as_array().into_iter().flatten().map(|exec| &exec["main"]).collect();
    assert_eq!(main, [true, false], "{listed}");
    cluster.kill_gateway().await?;
    cluster.start_gateway().await?;
    cluster.wait_for("box", "ready", "30s").await?;
    cluster.wait_for("box", "condition=MainCommand=False", "30s").await?;
    let attached = cluster.command(["attach", "box", "main"]).run().await?.exited(4)?;
    assert_eq!(attached.text(), "again\n", "the same exec, and no second run");

    cluster.command(["stop", "box"]).run().await?.success()?;
    cluster.wait_for("box", "phase=Stopped", "30s").await?;
    cluster.command(["start", "box"]).run().await?.success()?;
    cluster.wait_for("box", "ready", "30s").await?;
    let attached = cluster.command(["attach", "box", "main"]).run().await?.exited(4)?;
    assert_eq!(attached.text(), "again\nagain\n");
    Ok(())
}
