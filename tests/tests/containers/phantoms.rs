//! Containers that somebody removes behind the gateway's back, and images that are not there.

use std::time::Duration;

use anyhow::Context;
use holdfast_tests::engines::{Kind, SCRATCH};

use crate::{
    site::{SOON, Site},
    with_both_engines,
};

with_both_engines!(
    a_container_removed_behind_the_gateways_back_is_gone_and_never_ready,
    what_cannot_be_made_says_why,
    a_gateway_that_cannot_be_dialled_is_named_when_a_boot_fails,
);

async fn a_container_removed_behind_the_gateways_back_is_gone_and_never_ready(
    kind: Kind,
) -> anyhow::Result<()> {
    let mut site = Site::start(kind).await?;
    for name in ["one", "two"] {
        site.create(name, SCRATCH, &[]).await?;
    }
    let exec = site.text(&["exec", "-d", "one", "--", "/busybox", "sleep", "1000"]).await?;
    // With the gateway up.
    let container = site.container("one").await?;
    site.engine.tool(&["rm", "--force", &container]).await?;
    let failed = site.phase("one", "Failed", SOON).await?;
    assert_eq!(failed["reason"], "WorkloadGone", "{failed}");
    // What ran in it is lost, and says so.
    let attached = site.run(&["attach", "one", exec.trim()]).await?;
    assert!(
        attached.code == 125 && attached.stderr.contains("no longer has the workload"),
        "{} {}",
        attached.code,
        attached.stderr
    );
    let refused = site.run(&["exec", "one", "--", "/busybox", "true"]).await?.exited(125)?;
    assert!(refused.stderr.contains("WorkloadGone"), "{}", refused.stderr);
    // With the gateway down.
    site.cluster.stop_gateway().await?;
    let container = site.container("two").await?;
    site.engine.tool(&["rm", "--force", &container]).await?;
    site.cluster.start_gateway().await?;
    let failed = site.phase("two", "Failed", SOON).await?;
    assert_eq!(failed["reason"], "WorkloadGone", "{failed}");
    // A workspace that was there is not made anew: an empty one would pass for it.
    let volume = format!("holdfast-{}", site.get("one").await?["id"].as_str().unwrap_or_default());
    site.engine.tool(&["volume", "rm", &volume]).await?;
    site.run(&["start", "one"]).await?.success()?;
    let failed = site.phase("one", "Failed", SOON).await?;
    assert!(failed.to_string().contains("the workspace is gone"), "{failed}");
    // Both ways out.
    site.run(&["start", "two"]).await?.success()?;
    site.run(&["wait", "two", "--timeout", "50s"]).await?.success()?;
    for name in ["one", "two"] {
        site.run(&["delete", name]).await?.success()?;
        let left = site.left_of(name).await?;
        assert!(left.is_empty(), "{left:?}");
    }
    Ok(())
}

async fn what_cannot_be_made_says_why(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    // No registry has it, and none is there.
    site.run(&["create", "box", "--image", "localhost/hf-missing:1"]).await?.success()?;
    let failed = site.phase("box", "Failed", SOON).await?;
    assert_eq!(failed["reason"], "ImageUnavailable", "{failed}");
    let message = failed["message"].as_str().unwrap_or_default();
    assert!(message.contains("localhost/hf-missing:1") && message.contains("load"), "{message}");
    site.run(&["delete", "box"]).await?.success()?;
    for (flags, words) in [
        (vec!["--image", SCRATCH, "--network", "none"], "could never be"),
        (vec!["--image", SCRATCH, "--network", "elsewhere"], "no network"),
        (vec!["--image", SCRATCH, "--mount", "/etc:/host"], "mounts = "),
        (vec![], "--image"),
    ] {
        let refused = site.run(&[&["create", "box"], &flags[..]].concat()).await?.exited(125)?;
        assert!(refused.stderr.contains(words), "{flags:?}: {}", refused.stderr);
    }
    // A gateway that no container could dial does not start, and says what to do.
    let socket = site.engine.socket();
    let gateway = tokio::process::Command::new(crate::HOLDFAST)
        .args([
            "gateway",
            "--driver",
            "container",
            "--listen",
            "127.0.0.1:0",
            "--engine",
            &socket,
            "--data-dir",
        ])
        .arg(site.cluster.scratch().join("other"))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SOON, gateway).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--listen 0.0.0.0:"), "{said}");
    Ok(())
}

async fn a_gateway_that_cannot_be_dialled_is_named_when_a_boot_fails(kind: Kind) -> anyhow::Result<()> {
    // From inside of a container, that is the container itself.
    let settings = "advertise = [\"127.0.0.1:9\"]\nboot_deadline_seconds = 4";
    let site = Site::start_with(kind, settings).await?;
    site.run(&["create", "box", "--image", SCRATCH]).await?.success()?;
    let failed = site.phase("box", "Failed", SOON).await?;
    assert_eq!(failed["reason"], "BootTimeout", "{failed}");
    // The console's end is read then, and shown as soon as the engine has given it.
    let whole = async {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            let message = site.get("box").await?["message"].as_str().unwrap_or_default().to_owned();
            assert!(message.contains("dials 127.0.0.1:9"), "{message}");
            if message.contains("the console ends with") {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(SOON, whole).await.context("the console's end is not shown")??;
    site.run(&["delete", "box"]).await?.success()?;
    Ok(())
}
