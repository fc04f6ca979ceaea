//! A sandbox's life in a container: made, used, frozen, stopped, started, removed.

use holdfast_tests::engines::{EMPTY, Kind, SCRATCH, USERLAND};

use crate::{
    site::{SOON, Site},
    with_both_engines,
};

with_both_engines!(
    a_sandbox_from_scratch_lives_its_whole_life,
    a_debian_userland_has_its_users_and_a_workspace_for_them,
);

async fn a_sandbox_from_scratch_lives_its_whole_life(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    // Nothing in the image: it is Ready all the same, for the probe is the supervisor's own.
    site.create("empty", EMPTY, &[]).await?;
    site.run(&["exec", "empty", "--", "sh"]).await?.exited(127)?;
    let events = site.text(&["events", "empty", "-o", "jsonl"]).await?;
    let mut stages = Vec::new();
    for line in events.lines() {
        let event: serde_json::Value = serde_json::from_str(line)?;
        let message = event["message"].as_str().unwrap_or_default();
        if event["reason"] == "BootStage" {
            stages.extend(message.split(',').next().map(str::to_owned));
        }
    }
    assert_eq!(stages, ["image", "created", "started", "dialled", "attached", "probed"]);
    site.run(&["delete", "empty"]).await?.success()?;

    let flags =
        ["--cpus", "0.5", "--memory", "128Mi", "--pids", "200", "-e", "COLOUR=green", "--label", "job=42"];
    site.create("box", SCRATCH, &flags).await?;
    let shown = site.get("box").await?;
    assert_eq!(
        (
            &shown["image"],
            &shown["cpu_millis"],
            &shown["memory_bytes"],
            &shown["pids"],
            &shown["labels"]["job"]
        ),
        (&SCRATCH.into(), &500.into(), &(128 << 20).into(), &200.into(), &"42".into()),
        "{shown}"
    );
    let sh = ["exec", "box", "--", "/busybox", "sh", "-c"];
    for (args, code) in [
        ([&sh[..], &["exit 3"]].concat(), 3),
        ([&sh[..], &["kill -9 $$"]].concat(), 137),
        (vec!["exec", "box", "--", "nosuchcmd"], 127),
        (vec!["exec", "box", "--", "/workspace"], 126),
        (vec!["exec", "--timeout", "1s", "box", "--", "/busybox", "sleep", "60"], 124),
    ] {
        site.run(&args).await?.exited(code)?;
    }
    assert_eq!(site.text(&[&sh[..], &["echo $COLOUR; pwd"]].concat()).await?, "green\n/workspace\n");
    // A uid that no file knows.
    let id = site.text(&["exec", "-u", "12345", "box", "--", "/busybox", "id", "-u"]).await?;
    assert_eq!(id, "12345\n");
    let echoed =
        site.cluster.command(["exec", "-i", "box", "--", "/busybox", "cat"]).stdin("through").run().await?;
    assert_eq!(echoed.success()?.text(), "through");

    // Orphans are collected by process 1, which is the supervisor.
    let orphan = "/busybox sh -c '/busybox sleep 0.2 & exec /busybox true'; /busybox sleep 0.5; /busybox ps -o stat,args";
    let processes = site.text(&[&sh[..], &[orphan]].concat()).await?;
    assert!(!processes.lines().any(|line| line.starts_with('Z')), "{processes}");
    assert!(processes.contains("/.holdfast/supervisor --config"), "{processes}");
    // Its key is nobody else's.
    site.run(&["exec", "-u", "12345", "box", "--", "/busybox", "cat", "/.holdfast/identity/key.pem"])
        .await?
        .exited(1)?;

    site.text(&[&sh[..], &["echo kept >/workspace/file"]].concat()).await?;
    let counting = "for i in 1 2 3 4 5 6; do echo $i; /busybox sleep 0.5; done; exit 6";
    let exec = site.text(&["exec", "-d", "box", "--", "/busybox", "sh", "-c", counting]).await?;
    site.run(&["pause", "box"]).await?.success()?;
    site.phase("box", "Paused", SOON).await?;
    site.run(&["resume", "box"]).await?.success()?;
    site.run(&["wait", "box"]).await?.success()?;
    let attached = site.run(&["attach", "box", exec.trim()]).await?.exited(6)?;
    assert_eq!(attached.text(), "1\n2\n3\n4\n5\n6\n");

    site.run(&["stop", "box"]).await?.success()?;
    site.phase("box", "Stopped", SOON).await?;
    site.run(&["start", "box"]).await?.success()?;
    site.run(&["wait", "box"]).await?.success()?;
    assert_eq!(site.text(&[&sh[..], &["cat /workspace/file"]].concat()).await?, "kept\n");

    // A sandbox for one command: its workspace is whose it was made for.
    let script = "/busybox id -u; echo mine >mine && /busybox cat mine; echo $COLOUR";
    let flags = ["--image", SCRATCH, "--sandbox-user", "77", "--sandbox-env", "COLOUR=blue"];
    let once = [&["run"], &flags[..], &["--", "/busybox", "sh", "-c", script]].concat();
    assert_eq!(site.text(&once).await?, "77\nmine\nblue\n");

    site.run(&["delete", "box"]).await?.success()?;
    let left = site.left_of("box").await?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

async fn a_debian_userland_has_its_users_and_a_workspace_for_them(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    site.engine.make_userland().await?;
    site.create("box", USERLAND, &["--user", "nobody", "--read-only"]).await?;
    // Who names nobody is who the spec names; its workspace is its own, and the image cannot be changed.
    let script = "id -un; touch mine && stat -c %U mine; touch /etc/mine 2>/dev/null || echo read-only";
    assert_eq!(site.text(&["exec", "box", "--", "sh", "-c", script]).await?, "nobody\nnobody\nread-only\n");
    let root = site.text(&["exec", "-u", "root", "box", "--", "sh", "-c", "id -un; echo $HOME"]).await?;
    assert_eq!(root, "root\n/root\n");
    let unknown = site.run(&["exec", "-u", "eve", "box", "--", "true"]).await?;
    assert!(unknown.code != 0 && unknown.stderr.contains("eve"), "{}", unknown.stderr);
    // A terminal.
    let terminal =
        site.run(&["exec", "-t", "box", "--", "sh", "-c", "test -t 1 && echo terminal"]).await?.success()?;
    assert!(terminal.text().contains("terminal"), "{}", terminal.text());
    // A kill takes everything that the command has started.
    let nested = "sleep 1000 & setsid sleep 1000 & wait";
    site.run(&["exec", "--timeout", "1s", "box", "--", "sh", "-c", nested]).await?.exited(124)?;
    let look = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 1000 ' || true";
    let counted = site.text(&["exec", "box", "--", "sh", "-c", look]).await?;
    // The shell that looks has the words in its own command line.
    assert!(counted.trim().parse::<u32>()? <= 1, "{counted}");
    // The console is the supervisor's.
    let console = site.text(&["logs", "box"]).await?;
    assert!(console.contains("the supervisor starts"), "{console}");

    // A workspace that this user cannot write is not what it was made for, although root could.
    let owned_by = async |owner| {
        site.run(&["exec", "-u", "root", "box", "--", "chown", owner, "/workspace"]).await?.success()
    };
    owned_by("root").await?;
    site.cluster.wait_for("box", "condition=FilesystemHealthy=False", "50s").await?;
    let now = site.get("box").await?;
    let message = now["message"].as_str().unwrap_or_default();
    assert!(now["phase"] == "Degraded" && message.contains("/workspace/"), "{now}");
    assert!(message.contains("nobody") && message.contains("os error 13"), "{message}");
    owned_by("nobody").await?;
    site.run(&["wait", "box", "--timeout", "50s"]).await?.success()?;
    site.run(&["delete", "box"]).await?.success()?;
    Ok(())
}
