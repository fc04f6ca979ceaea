//! Copies whose supervisor dies, and copies of what has owners and links.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    time::Duration,
};

use holdfast_tests::harness::{Cluster, PATIENCE, eventually, signal};
use rustix::process::Signal;

use crate::HOLDFAST;

/// Names of temporary files in a directory.
fn parts(dir: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".holdfast-") && name.ends_with(".part")).collect()
}

/// The head of a tar archive with one file of this length.
fn tar_head(name: &str, length: usize) -> Vec<u8> {
    let mut head = vec![0_u8; 512];
    head[..name.len()].copy_from_slice(name.as_bytes());
    for (at, text) in [(100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0"), (136, "00000000000\0")] {
        head[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    head[124..136].copy_from_slice(format!("{length:011o}\0").as_bytes());
    head[156] = b'0';
    head[257..265].copy_from_slice(b"ustar\x0000");
    head[148..156].fill(b' ');
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

#[tokio::test]
async fn a_supervisor_killed_in_a_copy_is_told_and_its_successor_removes_what_was_half_written()
-> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let workspace = cluster.workspace("box").await?;
    // What only looks like one of ours is a user's.
    let users = workspace.join(".holdfast-000000000000-1.part");
    fs::write(&users, "mine")?;
    fs::create_dir(workspace.join("sub"))?;
    let mut copy = cluster.command(["cp", "-", "box:."]).spawn()?;
    let mut stdin = copy.take_stdin().ok_or_else(|| anyhow::anyhow!("stdin is a pipe"))?;
    // A file of 64 MiB of which a half comes: the copy cannot have ended.
    let head = tar_head("sub/large", 64 << 20);
    // Held, and stdin with it, until the test is over.
    let mut feed = tokio::task::JoinSet::new();
    feed.spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        stdin.write_all(&head).await?;
        let piece = vec![7_u8; 1 << 20];
        for _ in 0..32 {
            stdin.write_all(&piece).await?;
        }
        anyhow::Ok(stdin)
    });
    eventually(PATIENCE, || !parts(&workspace.join("sub")).is_empty()).await?;
    signal(cluster.supervisor_pid("box").await?, Signal::KILL)?;
    // The source cannot be read twice, so the copy cannot start over: it fails, by name, and soon.
    let failed = copy.finish_within(Duration::from_secs(60)).await?;
    assert_eq!(failed.code, 125, "{}", failed.stderr);
    assert!(!failed.stderr.trim().is_empty() && !failed.stderr.contains("panicked"), "{}", failed.stderr);
    assert_eq!(parts(&workspace.join("sub")).len(), 1, "nobody has been there since");
    cluster.wait_for("box", "phase=Failed", "30s").await?;
    cluster.command(["start", "box"]).run().await?.success()?;
    cluster.wait_for("box", "ready", "30s").await?;
    eventually(PATIENCE, || parts(&workspace.join("sub")).is_empty()).await?;
    assert!(!workspace.join("sub/large").exists(), "no name leads to a half of a file");
    assert_eq!(fs::read_to_string(&users)?, "mine");
    Ok(())
}

#[tokio::test]
async fn a_copy_whose_supervisor_was_replaced_starts_over_and_says_so() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let workspace = cluster.workspace("box").await?;
    let large = cluster.scratch().join("large");
    let content: Vec<u8> = (0..192_u32 << 20).map(|i| (i % 251) as u8).collect();
    fs::write(&large, &content)?;
    let copy = cluster.command(["cp", &large.display().to_string(), "box:large"]).spawn()?;
    eventually(PATIENCE, || !parts(&workspace).is_empty()).await?;
    signal(cluster.supervisor_pid("box").await?, Signal::KILL)?;
    cluster.wait_for("box", "phase=Failed", "30s").await?;
    cluster.command(["start", "box"]).run().await?.success()?;
    cluster.wait_for("box", "ready", "30s").await?;
    let ended = copy.finish_within(Duration::from_secs(90)).await?;
    // Either is true, and which one it is depends on what the command saw first.
    if ended.code == 0 {
        assert!(ended.stderr.contains("over"), "{}", ended.stderr);
        assert!(fs::read(workspace.join("large"))? == content, "not the same bytes");
    } else {
        assert_eq!(ended.code, 125, "{}", ended.stderr);
        assert!(!workspace.join("large").exists(), "a failed copy and a name: {}", ended.stderr);
    }
    eventually(PATIENCE, || parts(&workspace).is_empty()).await?;
    Ok(())
}

#[tokio::test]
async fn cp_with_a_keeps_owners_and_bits_and_with_l_copies_what_links_name() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let workspace = cluster.workspace("box").await?;
    let tree = cluster.scratch().join("tree");
    fs::create_dir(&tree)?;
    fs::write(tree.join("tool"), "#!/bin/sh\n")?;
    fs::set_permissions(tree.join("tool"), fs::Permissions::from_mode(0o4755))?;
    fs::write(cluster.scratch().join("named"), "what it names")?;
    symlink("../named", tree.join("link"))?;
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(tree.join("tool"), Some(1234), Some(4321))?;
        // chown takes it away.
        fs::set_permissions(tree.join("tool"), fs::Permissions::from_mode(0o4755))?;
    } else {
        eprintln!("only a part: giving files away needs root");
    }
    let source = tree.display().to_string();
    let cp = async |flags: &[&str], from: &str, to: &str| {
        cluster.command([&["cp"], flags, &[from, to]].concat()).run().await?.success()
    };
    let mode = |path: &std::path::Path| {
        fs::symlink_metadata(path).map(|meta| (meta.mode() & 0o7777, meta.uid(), meta.gid()))
    };
    cp(&[], &source, "box:plain").await?;
    let (plain, ..) = mode(&workspace.join("plain/tool"))?;
    assert_eq!(plain, 0o755, "no setuid bit comes unasked");
    assert!(fs::symlink_metadata(workspace.join("plain/link"))?.is_symlink());
    cp(&["-a"], &source, "box:all").await?;
    assert_eq!(mode(&workspace.join("all/tool"))?, mode(&tree.join("tool"))?);
    assert!(fs::symlink_metadata(workspace.join("all/link"))?.is_symlink(), "-a keeps links");
    // -L follows the source's own name, as docker's does: the link that is copied, not those in a tree.
    let link = tree.join("link").display().to_string();
    cp(&[], &link, "box:as-link").await?;
    assert!(fs::symlink_metadata(workspace.join("as-link"))?.is_symlink());
    cp(&["-L"], &link, "box:followed").await?;
    assert!(fs::symlink_metadata(workspace.join("followed"))?.is_file());
    assert_eq!(fs::read_to_string(workspace.join("followed"))?, "what it names");
    // And out again.
    let out = cluster.scratch().join("out");
    cp(&["-a"], "box:all", &out.display().to_string()).await?;
    assert_eq!(mode(&out.join("tool"))?, mode(&tree.join("tool"))?);
    symlink("followed", workspace.join("to-followed"))?;
    let followed = cluster.scratch().join("followed");
    cp(&["-L"], "box:to-followed", &followed.display().to_string()).await?;
    assert!(fs::symlink_metadata(&followed)?.is_file());
    Ok(())
}
