//! A workspace that breaks under a container that runs: seen with the first command that fails for it, told with errno
//! and path, and over by itself once it is put back.

use std::time::Instant;

use holdfast_tests::engines::{Kind, SCRATCH, USERLAND};

use crate::{
    site::{SOON, Site},
    with_both_engines,
};

with_both_engines!(
    a_workspace_that_is_gone_is_seen_with_the_first_command_that_fails_for_it,
    a_workspace_that_cannot_be_written_is_degraded_until_it_can,
);

/// Seldom enough that a probe on its own time is not what is seen, and often enough for the lease.
const SELDOM: &str = "[tuning]\nprobe_every_ms = 25000";

async fn a_workspace_that_is_gone_is_seen_with_the_first_command_that_fails_for_it(
    kind: Kind,
) -> anyhow::Result<()> {
    let site = Site::start_with(kind, SELDOM).await?;
    site.engine.make_userland().await?;
    site.create("box", USERLAND, &[]).await?;
    let begun = Instant::now();
    let container = site.container("box").await?;
    let inside = async |script| site.engine.in_mounts_of(&container, script).await;
    inside("$0 mkdir /away; $0 mount -o move /workspace /away").await?;
    let refused = site.run(&["exec", "box", "--", "true"]).await?;
    assert!(
        refused.code != 0 && refused.stderr.contains("/workspace"),
        "{} {}",
        refused.code,
        refused.stderr
    );
    let degraded = site.phase("box", "Degraded", SOON).await?;
    let message = degraded["message"].as_str().unwrap_or_default();
    assert!(message.contains("/workspace") && message.contains("errno 116"), "{degraded}");
    assert!(begun.elapsed().as_secs() < 20, "only its next probe has seen it: {:?}", begun.elapsed());
    inside("$0 mount -o move /away /workspace").await?;
    site.phase("box", "Ready", SOON).await?;
    site.run(&["exec", "box", "--", "true"]).await?.success()?;
    Ok(())
}

async fn a_workspace_that_cannot_be_written_is_degraded_until_it_can(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    site.create("box", SCRATCH, &[]).await?;
    let container = site.container("box").await?;
    let remount = async |how: &str| {
        let script = format!("$0 mount -o remount,bind,{how} /workspace /workspace");
        site.engine.in_mounts_of(&container, &script).await
    };
    remount("ro").await?;
    let degraded = site.phase("box", "Degraded", SOON).await?;
    assert_eq!(degraded["reason"], "FilesystemProbeFailed", "{degraded}");
    let message = degraded["message"].as_str().unwrap_or_default();
    assert!(message.contains("/workspace") && message.contains("errno 30"), "{degraded}");
    remount("rw").await?;
    site.phase("box", "Ready", SOON).await?;
    Ok(())
}
