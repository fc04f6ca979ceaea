//! Images that a registry has: pulled, with progress to be seen, or a clear word why they cannot be had.

use std::{process::Stdio, time::Duration};

use anyhow::Context;
use holdfast_tests::engines::{Kind, Pace, Registry, SCRATCH, registry_obstacle};
use serde_json::Value;

use crate::{
    site::{SOON, Site},
    with_both_engines,
};

with_both_engines!(
    an_image_that_only_a_registry_has_is_pulled_with_its_progress_told,
    what_cannot_be_pulled_says_why_and_leaves_nothing,
    a_delete_does_not_wait_for_a_pull,
);

/// How much of an image is pulled, in MiB: at the slow pace some seconds of it.
const LAYER_MIB: usize = 12;
const SLOW: Pace = Pace::Bytes(4 << 20);

/// A registry beside the site's engine that has `name`, which the engine itself has not. `None`: none can be run here.
async fn registry_with(site: &Site, name: &str) -> anyhow::Result<Option<Registry>> {
    if let Some(why) = registry_obstacle() {
        eprintln!("skipped: {why}");
        return Ok(None);
    }
    let registry = Registry::start(site.engine.scratch(), site.engine.address()).await?;
    let image = registry.image(name);
    site.engine.make_large(&image, LAYER_MIB).await?;
    site.engine.tool(&["push", &image]).await?;
    site.engine.tool(&["rmi", &image]).await?;
    Ok(Some(registry))
}

/// Waits until `get` says so.
async fn until(site: &Site, name: &str, holds: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let looking = async {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tick.tick().await;
            // It may not have been asked for yet.
            let Ok(now) = site.get(name).await else { continue };
            anyhow::ensure!(now["phase"] != "Failed" && now["phase"] != "Ready", "too late: {now}");
            if holds(&now) {
                return Ok(now);
            }
        }
    };
    tokio::time::timeout(SOON, looking).await.context("it is never so")?
}

fn is_pulling(sandbox: &Value) -> bool {
    sandbox["reason"] == "PullingImage"
}

async fn an_image_that_only_a_registry_has_is_pulled_with_its_progress_told(
    kind: Kind,
) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    let Some(registry) = registry_with(&site, "large:1").await? else { return Ok(()) };
    let image = registry.image("large:1");
    registry.pace(SLOW);
    // On a terminal, as a person runs it.
    let line = format!("{} create box --image {image} --wait --timeout 90s", crate::HOLDFAST);
    let terminal = tokio::process::Command::new("script")
        .args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"])
        .env("HOLDFAST_PROFILE", site.cluster.data_dir().join("client.toml"))
        .env("TERM", "xterm")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let looking = until(&site, "box", is_pulling);
    let (output, pulling) = tokio::join!(tokio::time::timeout(SOON * 3, terminal), looking);
    let (output, pulling) = (output.context("the command hangs")??, pulling?);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}; {}", site.log());
    assert!(shown.contains(&format!("pulling {image}")), "{shown}");
    assert_eq!(pulling["phase"], "Provisioning", "{pulling}");
    let running = &pulling["conditions"][0];
    assert_eq!(
        (&running["status"], &running["reason"]),
        (&"False".into(), &"PullingImage".into()),
        "{pulling}"
    );
    if kind == Kind::Docker {
        // Podman's answer counts no bytes.
        assert!(shown.contains(" MiB"), "{shown}");
    }
    site.run(&["exec", "box", "--", "/busybox", "true"]).await?.success()?;
    site.run(&["delete", "box"]).await?.success()?;
    assert!(site.left_of("box").await?.is_empty());
    // By its digest too, and only if the digest is right.
    let digest = site.engine.digest(&image).await?;
    site.engine.tool(&["rmi", &image]).await?;
    registry.pace(Pace::Free);
    let named = registry.image(&format!("large@{digest}"));
    site.create("box", &named, &[]).await?;
    let wrong = registry.image(&format!("large@sha256:{}", "0".repeat(64)));
    site.run(&["create", "other", "--image", &wrong]).await?.success()?;
    let failed = site.phase("other", "Failed", SOON).await?;
    assert_eq!(failed["reason"], "ImageUnavailable", "{failed}");
    Ok(())
}

async fn what_cannot_be_pulled_says_why_and_leaves_nothing(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start_with_container(kind, "pull_silence_seconds = 3").await?;
    let Some(registry) = registry_with(&site, "large:1").await? else { return Ok(()) };
    let (there, missing) = (registry.image("large:1"), registry.image("large:2"));
    let fails = async |name: &str, image: &str, words: &[&str]| {
        site.run(&["create", name, "--image", image]).await?.success()?;
        let failed = site.phase(name, "Failed", SOON * 2).await?;
        assert_eq!(failed["reason"], "ImageUnavailable", "{failed}");
        let message = failed["message"].as_str().unwrap_or_default().to_lowercase();
        assert!(
            message.contains(image) && words.iter().any(|word| message.contains(word)),
            "{words:?}: {message}"
        );
        // Nothing but its name, and a new try is a `start` away.
        assert!(site.left_of(name).await?.is_empty());
        anyhow::Ok(())
    };
    fails("missing", &missing, &["manifest unknown", "not found"]).await?;
    registry.pace(Pace::Stuck);
    fails("stuck", &there, &["said nothing for 3 s"]).await?;
    registry.pace(Pace::Free);
    site.run(&["start", "stuck"]).await?.success()?;
    site.run(&["wait", "stuck", "--timeout", "50s"]).await?.success()?;
    site.run(&["delete", "stuck"]).await?.success()?;
    site.engine.tool(&["rmi", &there]).await?;
    drop(registry);
    fails("down", &there, &["connection refused", "said nothing"]).await?;
    for name in ["missing", "down"] {
        site.run(&["delete", name]).await?.success()?;
    }
    site.create("box", SCRATCH, &[]).await
}

async fn a_delete_does_not_wait_for_a_pull(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    let Some(registry) = registry_with(&site, "large:1").await? else { return Ok(()) };
    registry.pace(Pace::Stuck);
    site.run(&["create", "box", "--image", &registry.image("large:1")]).await?.success()?;
    until(&site, "box", is_pulling).await?;
    // A pull that says nothing would be waited for two minutes.
    let deleted = site.cluster.command(["delete", "box"]).patience(SOON).run().await?.success()?;
    assert!(deleted.took < SOON, "{:?}", deleted.took);
    assert!(site.left_of("box").await?.is_empty());
    // The keeper of a sandbox that was stopped in its pull makes the next one.
    site.run(&["create", "other", "--image", &registry.image("large:1")]).await?.success()?;
    until(&site, "other", is_pulling).await?;
    site.run(&["stop", "other"]).await?.success()?;
    site.phase("other", "Stopped", SOON).await?;
    registry.pace(Pace::Free);
    site.run(&["start", "other"]).await?.success()?;
    site.run(&["wait", "other", "--timeout", "50s"]).await?.success()?;
    Ok(())
}
