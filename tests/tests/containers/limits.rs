//! Memory: a command that eats all of its container's dies alone; a container that cannot be saved is known to have died
//! of that. Both are typed conditions of the sandbox.

use holdfast_tests::engines::{Kind, SCRATCH};
use serde_json::Value;

use crate::{
    site::{SOON, Site},
    with_both_engines,
};

with_both_engines!(
    a_command_that_eats_all_memory_dies_alone_and_says_why,
    a_container_that_dies_for_memory_says_so_and_starts_anew,
);

/// A condition of what `get` says.
fn condition<'a>(sandbox: &'a Value, kind: &str) -> &'a Value {
    let all = sandbox["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

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
    // The sandbox says it too, typed: how often, when, which exec, the limit.
    let said =
        site.run(&["wait", "box", "--for", "condition=MemoryHealthy=False", "--timeout", "20s"]).await?;
    said.success()?;
    let memory = site.get("box").await?;
    let memory = condition(&memory, "MemoryHealthy");
    assert_eq!((&memory["status"], &memory["reason"]), (&"False".into(), &"OOMKilled".into()), "{memory}");
    let message = memory["message"].as_str().unwrap_or_default();
    assert!(message.contains("once") && message.contains("96 MiB") && message.contains("exec"), "{message}");
    // A grandchild's end is nobody's outcome, and is counted all the same.
    let script = "/busybox tail /dev/zero; exit 0";
    site.run(&["exec", "box", "--", "/busybox", "sh", "-c", script]).await?.exited(0)?;
    let again = async {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
        loop {
            tick.tick().await;
            let now = site.get("box").await?;
            if condition(&now, "MemoryHealthy")["message"]
                .as_str()
                .is_some_and(|text| text.contains("2 times"))
            {
                return anyhow::Ok(now);
            }
        }
    };
    let now = tokio::time::timeout(SOON, again).await??;
    assert_eq!((&now["phase"], &now["last_error"]["source"]), (&"Ready".into(), &"memory".into()), "{now}");
    let events = site.text(&["events", "box"]).await?;
    assert!(events.contains("OutOfMemory"), "{events}");
    Ok(())
}

async fn a_container_that_dies_for_memory_says_so_and_starts_anew(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    site.create("box", SCRATCH, &["--memory", "48Mi"]).await?;
    // Whoever may tell the kernel to take the first process first gets what it asked for.
    let script =
        "echo 1000 >/proc/1/oom_score_adj; echo 0 >/proc/self/oom_score_adj; exec /busybox tail /dev/zero";
    site.run(&["exec", "-d", "box", "--", "/busybox", "sh", "-c", script]).await?.success()?;
    let failed = site.phase("box", "Failed", SOON).await?;
    assert_eq!(failed["reason"], "OOMKilled", "{failed}");
    for kind in ["MemoryHealthy", "WorkloadRunning"] {
        let said = condition(&failed, kind);
        assert_eq!(
            (&said["status"], &said["reason"]),
            (&"False".into(), &"OOMKilled".into()),
            "{kind}: {failed}"
        );
    }
    site.run(&["start", "box"]).await?.success()?;
    site.run(&["wait", "box", "--timeout", "50s"]).await?.success()?;
    let ready = site.get("box").await?;
    assert_eq!(condition(&ready, "MemoryHealthy")["status"], "True", "{ready}");
    Ok(())
}
