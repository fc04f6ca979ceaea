//! A command that eats all of its container's memory: it alone dies, and it is said why.

use holdfast_tests::engines::{Kind, SCRATCH};

use crate::{site::Site, with_both_engines};

with_both_engines!(a_command_that_eats_all_memory_dies_alone_and_says_why);

async fn a_command_that_eats_all_memory_dies_alone_and_says_why(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    site.create("box", SCRATCH, &["--memory", "96Mi"]).await?;
    let before = site.get("box").await?;
    let script = "/busybox sleep 8; echo alive; exit 4";
    let bystander = site.text(&["exec", "-d", "box", "--", "/busybox", "sh", "-c", script]).await?;
    // It looks for the end of a line that has none, and keeps it all.
    let eater = site.run(&["exec", "box", "--", "/busybox", "tail", "/dev/zero"]).await?.exited(137)?;
    assert!(eater.stderr.contains("memory"), "{}", eater.stderr);
    let attached = site.run(&["attach", "box", bystander.trim()]).await?.exited(4)?;
    assert_eq!(attached.text(), "alive\n");
    let after = site.get("box").await?;
    assert_eq!(
        (&before["session"]["instance"], &before["epoch"], &after["phase"]),
        (&after["session"]["instance"], &after["epoch"], &"Ready".into()),
        "{after}"
    );
    let execs = site.run(&["execs", "box", "-o", "json"]).await?.success()?.json()?;
    assert!(execs.to_string().contains("\"oom\":true"), "{execs}");
    Ok(())
}
