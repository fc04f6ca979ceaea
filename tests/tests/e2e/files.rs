//! `holdfast cp` and the Files service: what docker's users know, verified, over sessions that break.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use holdfast_cli::{client::Client, profile::Profile};
use holdfast_tests::harness::{Cluster, PATIENCE, eventually, signal};
use holdfast_wire::api::{self, FileKind, write_file_request};

use crate::HOLDFAST;

/// A cluster with a box, and a directory that stands for the sandbox's own: the local driver shares the files.
async fn boxed() -> anyhow::Result<(Cluster, PathBuf)> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let inside = cluster.scratch().join("inside");
    fs::create_dir(&inside)?;
    Ok((cluster, inside))
}

fn remote(path: &Path) -> String {
    format!("box:{}", path.display())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The digest that a copy reports.
async fn copy(cluster: &Cluster, from: &str, to: &str) -> anyhow::Result<serde_json::Value> {
    cluster.command(["cp", "-o", "json", from, to]).patience(PATIENCE * 4).run().await?.success()?.json()
}

fn same(a: &Path, b: &Path) -> anyhow::Result<bool> {
    let status =
        std::process::Command::new("diff").arg("-rq").arg("--no-dereference").arg(a).arg(b).status()?;
    Ok(status.success())
}

fn temporaries(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(".holdfast-")).count()
}

#[tokio::test]
async fn cp_copies_as_dockers_users_know_it() -> anyhow::Result<()> {
    let (cluster, inside) = boxed().await?;
    let here = cluster.scratch().join("here");
    fs::create_dir_all(here.join("tree/sub"))?;
    fs::write(here.join("tree/sub/run"), "#!/bin/sh\n")?;
    fs::set_permissions(here.join("tree/sub/run"), fs::Permissions::from_mode(0o751))?;
    symlink("sub/run", here.join("tree/link"))?;
    fs::write(here.join("file"), "hello")?;
    let cp = async |from: &str, to: &str| cluster.command(["cp", from, to]).run().await;

    // A file into a directory; the final path is said.
    let done = cp(&text(&here.join("file")), &remote(&inside)).await?.success()?;
    assert_eq!(done.text().trim(), remote(&inside.join("file")));
    assert!(done.stderr.contains("verified"), "{}", done.stderr);
    assert_eq!(fs::read(inside.join("file"))?, b"hello");
    // A tree to a new name, then into it, then its content.
    cp(&text(&here.join("tree")), &remote(&inside.join("new"))).await?.success()?;
    assert!(same(&here.join("tree"), &inside.join("new"))?);
    cp(&text(&here.join("tree")), &remote(&inside.join("new"))).await?.success()?;
    assert!(same(&here.join("tree"), &inside.join("new/tree"))?);
    fs::create_dir(inside.join("content"))?;
    cp(&format!("{}/.", text(&here.join("tree"))), &remote(&inside.join("content"))).await?.success()?;
    assert!(same(&here.join("tree"), &inside.join("content"))?);
    // Back, and modes with it.
    let out = cluster.scratch().join("out");
    cp(&remote(&inside.join("content")), &text(&out)).await?.success()?;
    assert!(same(&here.join("tree"), &out)?);
    assert_eq!(fs::metadata(out.join("sub/run"))?.permissions().mode() & 0o7777, 0o751);
    // A relative path is the workspace's, as a command's is.
    cp(&text(&here.join("file")), "box:in-the-workspace").await?.success()?;
    let seen = cluster.command(["exec", "box", "--", "cat", "in-the-workspace"]).run().await?.success()?;
    assert_eq!(seen.text(), "hello");
    // Archives, with the machine's own tar at the other end.
    let tar = std::process::Command::new("tar").arg("c").arg("-C").arg(&here).arg("tree").output()?;
    fs::create_dir(inside.join("untarred"))?;
    let into = remote(&inside.join("untarred"));
    cluster.command(["cp", "-", &into]).stdin(tar.stdout).run().await?.success()?;
    assert!(same(&here.join("tree"), &inside.join("untarred/tree"))?);
    let archive =
        cluster.command(["cp", &remote(&inside.join("untarred/tree")), "-"]).run().await?.success()?;
    let unpacked = cluster.scratch().join("unpacked");
    fs::create_dir(&unpacked)?;
    fs::write(cluster.scratch().join("a.tar"), &archive.stdout)?;
    let done = std::process::Command::new("tar")
        .args(["x", "-f"])
        .arg(cluster.scratch().join("a.tar"))
        .arg("-C")
        .arg(&unpacked)
        .status()?;
    assert!(done.success());
    assert!(same(&here.join("tree"), &unpacked.join("tree"))?);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_copied_is_said_with_path_and_errno() -> anyhow::Result<()> {
    let (cluster, inside) = boxed().await?;
    let file = cluster.scratch().join("file");
    fs::write(&file, "hello")?;
    let cp =
        async |from: &str, to: &str, code: i32| cluster.command(["cp", from, to]).run().await?.exited(code);

    let said = cp(&text(&file), &format!("{}/", remote(&inside.join("missing"))), 125).await?.stderr;
    assert!(said.contains("must exist") && said.contains("FILE_NOT_FOUND"), "{said}");
    let said = cp(&remote(&inside.join("nothing")), &text(&cluster.scratch().join("x")), 125).await?.stderr;
    assert!(said.contains("ENOENT") && said.contains("nothing"), "{said}");
    assert!(!cluster.scratch().join("x").exists());
    let said = cp("/no/such/source", &remote(&inside), 125).await?.stderr;
    assert!(said.contains("ENOENT") && said.contains("/no/such/source"), "{said}");
    let said = cp(&text(&file), "nosuch:/tmp", 125).await?.stderr;
    assert!(said.contains("SANDBOX_NOT_FOUND"), "{said}");
    cp(&text(&file), &text(&inside), 2).await?;
    cp("box:/a", "box:/b", 2).await?;
    // Special files are skipped and named, and no failure.
    let odd = cluster.scratch().join("odd");
    fs::create_dir(&odd)?;
    fs::write(odd.join("plain"), "plain")?;
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, odd.join("fifo"), fifo, rustix::fs::Mode::RUSR, 0)?;
    let done = cp(&text(&odd), &remote(&inside), 0).await?;
    assert!(done.stderr.contains("fifo") && done.stderr.contains("skipped"), "{}", done.stderr);
    assert_eq!(temporaries(&inside), 0);
    Ok(())
}

#[tokio::test]
async fn a_user_reads_and_writes_what_that_user_may() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: acting for another user needs root");
        return Ok(());
    }
    let (cluster, inside) = boxed().await?;
    // The harness's directory is root's alone; the user has to get through it.
    fs::set_permissions(cluster.scratch(), fs::Permissions::from_mode(0o711))?;
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o755))?;
    let secret = inside.join("secret");
    fs::write(&secret, "root's own")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let out = text(&cluster.scratch().join("out"));
    let said =
        cluster.command(["cp", "-u", "65534:65534", &remote(&secret), &out]).run().await?.exited(125)?;
    assert!(said.stderr.contains("EACCES") && said.stderr.contains("FILE_DENIED"), "{}", said.stderr);
    assert!(!Path::new(&out).exists());
    cluster.command(["cp", &remote(&secret), &out]).run().await?.success()?;
    // In a tree it is left out and named, and the exit code says that it is not all.
    fs::write(inside.join("open"), "anybody's")?;
    let tree = text(&cluster.scratch().join("tree"));
    let part =
        cluster.command(["cp", "-u", "65534:65534", &remote(&inside), &tree]).run().await?.exited(1)?;
    assert!(part.stderr.contains("secret"), "{}", part.stderr);
    assert_eq!(fs::read(Path::new(&tree).join("open"))?, b"anybody's");
    // Writing.
    let said =
        cluster.command(["cp", "-u", "65534:65534", &out, &remote(&inside)]).run().await?.exited(125)?;
    assert!(said.stderr.contains("EACCES"), "{}", said.stderr);
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o777))?;
    cluster
        .command(["cp", "-u", "65534:65534", &out, &remote(&inside.join("mine"))])
        .run()
        .await?
        .success()?;
    let owner = rustix::fs::stat(inside.join("mine"))?;
    assert_eq!((owner.st_uid, owner.st_gid), (65534, 65534));
    Ok(())
}

/// Unmounts what it names, also when a test fails.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_says_so_and_keeps_what_was_there() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    let small = cluster.scratch().join("small");
    fs::create_dir(&small)?;
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "holdfast-files-test"])
        .arg(&small)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: a small file system cannot be mounted here");
        return Ok(());
    }
    let _mounted = Mounted(small.clone());
    cluster.create("box").await?;
    fs::write(small.join("big"), "what was there")?;
    let big = cluster.scratch().join("big");
    fs::write(&big, vec![1; 8 << 20])?;
    let said = cluster.command(["cp", &text(&big), &remote(&small)]).run().await?.exited(125)?.stderr;
    assert!(said.contains("ENOSPC") && said.contains("NO_SPACE") && said.contains("small/big"), "{said}");
    assert_eq!(fs::read(small.join("big"))?, b"what was there");
    assert_eq!(temporaries(&small), 0, "nothing of it takes room");
    // The other way round: this machine's disk is full.
    let said = cluster.command(["cp", &remote(&big), &text(&small)]).run().await?.exited(125)?.stderr;
    assert!(said.contains("ENOSPC"), "{said}");
    assert_eq!(fs::read(small.join("big"))?, b"what was there");
    assert_eq!(temporaries(&small), 0);
    Ok(())
}

/// A file of pseudo-random bytes.
fn noise(path: &Path, length: usize) -> anyhow::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    Ok(fs::write(path, bytes)?)
}

/// Waits until a temporary file in `dir` has grown beyond `bytes`.
async fn halfway(dir: &Path, bytes: u64) -> anyhow::Result<()> {
    let grown = || {
        let Ok(entries) = fs::read_dir(dir) else { return false };
        entries.flatten().any(|entry| {
            entry.file_name().to_string_lossy().starts_with(".holdfast-")
                && entry.metadata().is_ok_and(|meta| meta.len() > bytes)
        })
    };
    eventually(PATIENCE, grown).await
}

const LARGE: usize = 96 << 20;

#[tokio::test]
async fn a_transfer_goes_on_after_its_session_was_reset() -> anyhow::Result<()> {
    let (cluster, inside) = boxed().await?;
    let (large, out) = (cluster.scratch().join("large"), cluster.scratch().join("out"));
    noise(&large, LARGE)?;
    fs::create_dir(&out)?;
    for (from, to, dir) in
        [(text(&large), remote(&inside), &inside), (remote(&inside.join("large")), text(&out), &out)]
    {
        let running = cluster.command(["cp", &from, &to]).spawn()?;
        halfway(dir, (LARGE / 8) as u64).await?;
        cluster.command(["chaos", "box", "reset-session", "--yes"]).run().await?.success()?;
        let done = running.finish_within(PATIENCE * 4).await?.success()?;
        assert!(done.stderr.contains("resumed after"), "{}", done.stderr);
        assert!(fs::read(dir.join("large"))? == fs::read(&large)?, "the bytes differ");
        assert_eq!(temporaries(dir), 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_transfer_goes_on_after_its_gateway_was_killed() -> anyhow::Result<()> {
    let (mut cluster, inside) = boxed().await?;
    let (large, out) = (cluster.scratch().join("large"), cluster.scratch().join("out"));
    noise(&large, LARGE)?;
    fs::create_dir(&out)?;
    for (from, to, dir) in
        [(text(&large), remote(&inside), &inside), (remote(&inside.join("large")), text(&out), &out)]
    {
        let running = cluster.command(["cp", &from, &to]).spawn()?;
        halfway(dir, (LARGE / 8) as u64).await?;
        cluster.kill_gateway().await?;
        cluster.start_gateway().await?;
        let done = running.finish_within(PATIENCE * 4).await?.success()?;
        assert!(done.stderr.contains("resumed after"), "{}", done.stderr);
        assert!(fs::read(dir.join("large"))? == fs::read(&large)?, "the bytes differ");
    }
    Ok(())
}

#[tokio::test]
async fn an_interrupted_copy_leaves_nothing_half_done() -> anyhow::Result<()> {
    let (cluster, inside) = boxed().await?;
    let (large, out) = (cluster.scratch().join("large"), cluster.scratch().join("out"));
    noise(&large, LARGE)?;
    fs::create_dir(&out)?;
    for (from, to, dir) in [(text(&large), remote(&inside), &inside), (remote(&large), text(&out), &out)] {
        let running = cluster.command(["cp", &from, &to]).spawn()?;
        halfway(dir, 1 << 20).await?;
        signal(running.pid(), rustix::process::Signal::INT)?;
        running.finish().await?.exited(130)?;
        eventually(Duration::from_secs(20), || temporaries(dir) == 0).await?;
        assert!(!dir.join("large").exists());
    }
    Ok(())
}

#[tokio::test]
async fn thousands_of_files_have_the_same_digest_both_ways() -> anyhow::Result<()> {
    let (cluster, inside) = boxed().await?;
    let tree = cluster.scratch().join("tree");
    for n in 0..2500 {
        let dir = tree.join(format!("{}/{}", n % 7, n % 31));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("{n}")), format!("content of {n}").repeat(n % 50))?;
    }
    let up = copy(&cluster, &text(&tree), &remote(&inside.join("tree"))).await?;
    assert_eq!((&up["files"], up["problems"].as_array().map(Vec::len)), (&2500.into(), Some(0)), "{up}");
    assert!(same(&tree, &inside.join("tree"))?);
    let back = cluster.scratch().join("back");
    let down = copy(&cluster, &remote(&inside.join("tree")), &text(&back)).await?;
    assert_eq!((&down["files"], &down["bytes"]), (&up["files"], &up["bytes"]));
    assert!(same(&tree, &back)?);
    Ok(())
}

#[tokio::test]
async fn single_files_and_paths_by_the_api() -> anyhow::Result<()> {
    let (cluster, inside) = boxed().await?;
    let client = Client::new(&Profile::load(&cluster.data_dir().join("client.toml"))?)?;
    let mut files = client.files();
    let sandbox = || "box".to_owned();
    let path = |name: &str| Bytes::from(text(&inside.join(name)));

    let request = api::MakeDirectoryRequest {
        sandbox: sandbox(),
        path: path("a/b"),
        parents: true,
        ..Default::default()
    };
    let made = files.mkdir(request).await?.into_inner().directory.unwrap();
    assert_eq!((made.kind(), made.mode), (FileKind::Directory, 0o755));

    let content = Bytes::from(vec![42; 300_000]);
    let open =
        api::WriteFileOpen { sandbox: sandbox(), path: path("a/b/f"), mode: 0o640, user: String::new() };
    let messages: Vec<_> = [
        write_file_request::Kind::Open(open.clone()),
        write_file_request::Kind::Data(content.slice(..200_000)),
        write_file_request::Kind::Data(content.slice(200_000..)),
        write_file_request::Kind::End(api::WriteFileEnd {}),
    ]
    .into_iter()
    .map(|kind| api::WriteFileRequest { kind: Some(kind) })
    .collect();
    let wrote = files.write(tokio_stream::iter(messages.clone())).await?.into_inner().result.unwrap();
    assert_eq!(wrote.bytes, 300_000);
    // Without its end, nothing is written, and what was there stays.
    let cut = files.write(tokio_stream::iter(messages[..2].to_vec())).await.unwrap_err();
    assert!(cut.message().contains("nothing was written"), "{cut}");
    assert_eq!(fs::read(inside.join("a/b/f"))?, content);

    let request = api::ReadFileRequest {
        sandbox: sandbox(),
        path: path("a/b/f"),
        offset: 100_000,
        length: 150_000,
        user: String::new(),
    };
    let mut read = files.read(request).await?.into_inner();
    let (mut got, mut done) = (0, None);
    while let Some(event) = read.message().await? {
        match event.kind.unwrap() {
            api::read_file_response::Kind::Info(info) => assert_eq!((info.size, info.mode), (300_000, 0o640)),
            api::read_file_response::Kind::Data(data) => got += data.len(),
            api::read_file_response::Kind::Done(end) => done = Some(end.bytes),
            api::read_file_response::Kind::KeepAlive(_) => {}
        }
    }
    assert_eq!((got, done), (150_000, Some(150_000)));

    let to_move = |from: &str, to: &str, no_replace| api::MoveFileRequest {
        sandbox: sandbox(),
        from: path(from),
        to: path(to),
        no_replace,
        user: String::new(),
    };
    fs::write(inside.join("a/other"), "other")?;
    let refused = files.r#move(to_move("a/b/f", "a/other", true)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists, "{refused}");
    files.r#move(to_move("a/b/f", "a/g", false)).await?;
    let list = |after: &[u8], limit| api::ListFilesRequest {
        sandbox: sandbox(),
        path: path("a"),
        after: Bytes::copy_from_slice(after),
        limit,
        user: String::new(),
    };
    let page = files.list(list(b"", 2)).await?.into_inner();
    let names: Vec<_> = page.files.iter().map(|file| file.path.clone()).collect();
    assert_eq!((names, page.more), (vec![Bytes::from("b"), Bytes::from("g")], true));
    let page = files.list(list(b"g", 2)).await?.into_inner();
    assert_eq!((page.files.len(), page.more), (1, false));

    let stat =
        |name: &str| api::StatFileRequest { sandbox: sandbox(), path: path(name), ..Default::default() };
    let remove = |name: &str, recursive| api::RemoveFileRequest {
        sandbox: sandbox(),
        path: path(name),
        recursive,
        ..Default::default()
    };
    assert_eq!(files.stat(stat("a/g")).await?.into_inner().file.unwrap().size, 300_000);
    let refused = files.remove(remove("a", false)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists, "not empty: {refused}");
    files.remove(remove("a", true)).await?;
    let refused = files.stat(stat("a")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound, "{refused}");
    Ok(())
}
