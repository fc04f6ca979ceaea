//! Files into containers and out of them, whatever is in the image, and a workspace that is unmounted under one.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use holdfast_tests::{
    engines::{Kind, SCRATCH, USERLAND},
    harness::{self, eventually},
};
use serde_json::Value;

use crate::{
    site::{Site, size},
    with_both_engines,
};

with_both_engines!(
    files_and_trees_go_in_and_out_unchanged,
    a_copy_goes_on_after_its_session_was_reset,
    a_resume_onto_an_unmounted_workspace_is_degraded_until_it_is_mounted_again,
);

async fn files_and_trees_go_in_and_out_unchanged(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    site.engine.make_userland().await?;
    let here = Here::make(&site, 8, 200)?;
    symlink("3/3", here.0.join("tree/link"))?;
    // Neither needs a tar of the image's, and one of them has nothing at all.
    for (name, image, look) in
        [("scratch", SCRATCH, &["/busybox", "sha256sum"][..]), ("userland", USERLAND, &["sha256sum"][..])]
    {
        site.create(name, image, &[]).await?;
        // The workspace, by a relative path, and the container's own files.
        for (what, there) in [("file", "file"), ("file", "/file"), ("tree", "tree"), ("tree", "/a-tree")] {
            let remote = format!("{name}:{there}");
            let sent = copy(&site, here.text(what), remote.clone()).await?;
            let taken = copy(&site, remote, here.text("back")).await?;
            for field in ["files", "bytes"] {
                assert_eq!(sent[field], taken[field], "{what} in {name}: {sent} {taken}");
            }
            here.check_back(what).await?;
        }
        let digest = |said: &str| said.split_whitespace().next().map(str::to_owned);
        let own = tokio::process::Command::new("sha256sum").arg(here.0.join("file")).output().await?;
        for there in ["/workspace/file", "/file"] {
            let seen = site.text(&[&["exec", name, "--"], look, &[there]].concat()).await?;
            assert_eq!(digest(&seen), digest(&String::from_utf8_lossy(&own.stdout)), "{there} in {name}");
        }
        site.run(&["delete", name]).await?.success()?;
    }
    Ok(())
}

/// By hand with `HOLDFAST_CP_MIB=2048 HOLDFAST_CP_FILES=20000 HOLDFAST_CP_BESIDE=1`: it says how long each took, and
/// the engine's own `cp` of the same beside.
async fn a_copy_goes_on_after_its_session_was_reset(kind: Kind) -> anyhow::Result<()> {
    let (mib, files) = (size("HOLDFAST_CP_MIB", 96)?, size("HOLDFAST_CP_FILES", 600)?);
    let site = Site::start(kind).await?;
    let here = Here::make(&site, mib, files)?;
    site.create("box", SCRATCH, &[]).await?;
    let volume = format!("holdfast-{}", site.get("box").await?["id"].as_str().unwrap_or_default());
    let workspace = site.engine.tool(&["volume", "inspect", "--format", "{{.Mountpoint}}", &volume]).await?;
    let workspace = PathBuf::from(workspace.trim());
    let container = site.container("box").await?;
    for (what, some) in [("file", mib << 17), ("tree", files / 8)] {
        let inside = format!("box:{what}");
        for (way, from, to, dir) in [
            ("in", here.text(what), inside.clone(), workspace.clone()),
            ("out", inside, here.text("back"), here.0.clone()),
        ] {
            let name = if way == "in" { what } else { "back" };
            let copying = site.cluster.command(["cp", &from, &to]).spawn()?;
            // In the middle: an eighth of it is there.
            let there = || if what == "file" { written(&dir) } else { entries(&dir.join(name)) };
            eventually(harness::PATIENCE, || there() > some).await?;
            site.run(&["chaos", "box", "reset-session", "--yes"]).await?.success()?;
            let done = copying.finish_within(Duration::from_secs(300)).await?.success()?;
            let resumed = done.stderr.contains("resumed after");
            // A small tree may be through before.
            assert!(resumed || what == "tree", "{what} {way}: {}", done.stderr);
            eprintln!("{what} {way}, its session reset: {:?}, resumed: {resumed}", done.took);
        }
        here.check_back(what).await?;

        if size("HOLDFAST_CP_BESIDE", 0)? == 0 {
            continue;
        }
        let (inside, outside) = (format!("{container}:/workspace/engines-own"), here.text("back"));
        for (way, from, to) in [("in", here.text(what), inside.clone()), ("out", inside, outside)] {
            let began = Instant::now();
            site.engine.tool(&["cp", &from, &to]).await?;
            eprintln!("{what} {way}, by {kind:?} cp: {:?}", began.elapsed());
        }
        here.check_back(what).await?;
        site.run(&["exec", "box", "--", "/busybox", "rm", "-r", "engines-own"]).await?.success()?;
    }
    Ok(())
}

/// How large the file has grown that is being written in `dir`.
fn written(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let temporary =
        entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(".holdfast-"));
    temporary.and_then(|entry| Some(entry.metadata().ok()?.len())).unwrap_or_default()
}

/// How many entries there are in the directories of `dir`.
fn entries(dir: &Path) -> u64 {
    let of = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    of(dir).map(|entry| of(&entry.path()).count() as u64).sum()
}

/// A file, and a tree of files, of no pattern.
struct Here(PathBuf);

impl Here {
    fn make(site: &Site, mib: u64, files: u64) -> anyhow::Result<Self> {
        let here = site.cluster.scratch().join("here");
        fs::create_dir_all(here.join("tree/empty"))?;
        let mut noise = File::open("/dev/urandom")?;
        std::io::copy(&mut (&mut noise).take(mib << 20), &mut File::create(here.join("file"))?)?;
        for number in 0..files {
            let dir = here.join(format!("tree/{}", number % 37));
            fs::create_dir_all(&dir)?;
            let mut file = File::create(dir.join(number.to_string()))?;
            std::io::copy(&mut (&mut noise).take(number * 7919 % 7200), &mut file)?;
        }
        Ok(Self(here))
    }

    fn text(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Whether what came back is what went; it is removed.
    async fn check_back(&self, what: &str) -> anyhow::Result<()> {
        let back = self.0.join("back");
        let mut diff = tokio::process::Command::new("diff");
        let same = diff.args(["-rq", "--no-dereference"]).args([&self.0.join(what), &back]).status().await?;
        anyhow::ensure!(same.success(), "another {what} came back than went");
        if back.is_dir() {
            fs::remove_dir_all(&back)?
        } else {
            fs::remove_file(&back)?
        }
        Ok(())
    }
}

/// `holdfast cp`, and what it says of it.
async fn copy(site: &Site, from: String, to: String) -> anyhow::Result<Value> {
    let copied = site.cluster.command(["cp", "-o", "json", &from, &to]);
    let copied = copied.patience(harness::PATIENCE * 2).run().await?.success()?.json()?;
    anyhow::ensure!(copied["problems"].as_array().is_some_and(Vec::is_empty), "{copied}");
    Ok(copied)
}

async fn a_resume_onto_an_unmounted_workspace_is_degraded_until_it_is_mounted_again(
    kind: Kind,
) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    site.engine.make_userland().await?;
    site.create("box", USERLAND, &[]).await?;
    let container = site.container("box").await?;
    let inside = async |script| site.engine.in_mounts_of(&container, script).await;
    // Moved and not unmounted for good, or only the engine could mount it again. What is left at the path is an empty
    // directory of the image's.
    let break_it = async || inside("$0 mkdir /away; $0 mount -o move /workspace /away").await;
    let mend = async || inside("test -z \"$($0 ls -A /workspace)\"; $0 mount -o move /away /workspace").await;
    harness::broken_resume(&site.cluster, "box", &["/workspace", "errno 116"], break_it, mend).await
}
