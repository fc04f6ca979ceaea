//! Where a test of machines runs, and what it finds there.

use std::{
    ffi::OsString,
    fs,
    future::Future,
    net::Ipv4Addr,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use holdfast_tests::harness::{Cli, Cluster, Finished};
use sha2::{Digest, Sha256};

use super::HOLDFAST;

/// Set inside the test host: the test is where it can run.
const HERE: &str = "HOLDFAST_VM_HERE";
const LAUNCHER: &str = "holdfast-vmm";
/// A command against a machine under two layers of emulation, on a loaded machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(240);
/// What may be set outside, for longer runs by hand.
const SETTINGS: [&str; 2] = ["HOLDFAST_VM_MIB", "HOLDFAST_VM_SECONDS"];
/// For the whole test, in the test host: below nextest's own limit.
const TEST_HOST_SECONDS: usize = 660;

/// Whether this is not (yet) the test host.
pub(super) fn is_outside() -> bool {
    std::env::var_os(HERE).is_none()
}

/// Runs a test where machines can be made.
pub(super) fn run<F>(name: &str, test: impl FnOnce(Parts) -> F)
where
    F: Future<Output = anyhow::Result<()>>,
{
    let parts = match Parts::find() {
        Ok(parts) => parts,
        Err(why) => {
            eprintln!("skipped: {why}");
            return;
        }
    };
    if !is_outside() || kvm_works() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        if let Err(error) = runtime.block_on(test(parts)) {
            panic!("{error:?}");
        }
        return;
    }
    let kept = kept(name);
    fs::create_dir_all(&kept).expect("a directory for what a failed test leaves");
    let seconds = number("HOLDFAST_VM_SECONDS", TEST_HOST_SECONDS).to_string();
    let status = Command::new(repository().join("netem-scripts/test-host"))
        .args(["run", "--modules", "net,vm", "--memory", "3072", "--timeout", &seconds])
        .arg("--mount")
        .arg(&kept)
        .args(["--env", &format!("{HERE}=1")])
        .args(
            SETTINGS.iter().filter(|name| std::env::var_os(name).is_some()).flat_map(|name| ["--env", name]),
        )
        .arg("--")
        .arg(std::env::current_exe().expect("this test's own path"))
        .args(["--exact", name, "--nocapture"])
        .status()
        .expect("the test host's script");
    assert!(status.success(), "in the test host: {status}; what it left is in {}", kept.display());
    let _ = fs::remove_dir_all(kept);
}

pub(super) fn kvm_works() -> bool {
    let script = repository().join("netem-scripts/test-host");
    Command::new(script).arg("kvm").status().is_ok_and(|status| status.success())
}

/// A setting, or what CI has time for.
pub(super) fn number(name: &str, default: usize) -> usize {
    debug_assert!(SETTINGS.contains(&name), "{name} does not reach the test host");
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name.replace("::", "-"))
}

/// What machines are made of.
#[derive(Clone)]
pub(super) struct Parts {
    all: Vec<(&'static str, PathBuf)>,
    busybox: PathBuf,
}

impl Parts {
    pub(super) fn find() -> Result<Self, String> {
        // target/debug/deps/vm-…
        let exe = std::env::current_exe().map_err(|error| error.to_string())?;
        let built = exe.parent().and_then(Path::parent).ok_or("the test's binary is nowhere")?.to_owned();
        let target = built.parent().ok_or("no target directory")?;
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .ok_or("there is no HOME")?
            .join("holdfast/vm");
        let all = vec![
            (LAUNCHER, built.join("holdfast-vmm")),
            ("holdfast-supervisor", target.join("static/holdfast-supervisor")),
            ("libkrunfw.so.5", cache.join("libkrunfw.so.5")),
            ("gvproxy", cache.join("gvproxy")),
        ];
        for (name, path) in &all {
            if !path.exists() {
                return Err(format!(
                    "there is no {name} ({}): .ci/test gets and builds all parts",
                    path.display()
                ));
            }
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
        let busybox = busybox.ok_or("there is no busybox: apt-get install busybox-static")?;
        Ok(Self { all, busybox })
    }

    /// A directory of links to all parts, but without the named one.
    pub(super) fn lay_out(&self, dir: &Path, without: Option<&str>) -> anyhow::Result<()> {
        fs::create_dir_all(dir)?;
        for (name, path) in self.all.iter().filter(|(name, _)| Some(*name) != without) {
            symlink(path, dir.join(name))?;
        }
        Ok(())
    }

    /// One of them.
    pub(super) fn path(&self, wanted: &str) -> anyhow::Result<PathBuf> {
        let part = self.all.iter().find(|(name, _)| *name == wanted);
        Ok(part.with_context(|| format!("no part {wanted}"))?.1.clone())
    }

    /// A root file system of busybox alone.
    pub(super) fn rootfs(&self, dir: &Path) -> anyhow::Result<()> {
        for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            fs::create_dir_all(dir.join(name))?;
        }
        fs::copy(&self.busybox, dir.join("bin/busybox"))?;
        let applets = Command::new(&self.busybox).arg("--list").output()?;
        for applet in String::from_utf8(applets.stdout)?.lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", dir.join("bin").join(applet))?;
        }
        fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(dir.join("etc/group"), "root:x:0:\n")?;
        // As images have them: for root alone.
        fs::write(dir.join("etc/secret"), "")?;
        fs::set_permissions(dir.join("etc/secret"), fs::Permissions::from_mode(0o600))?;
        fs::set_permissions(dir.join("root"), fs::Permissions::from_mode(0o700))?;
        Ok(())
    }
}

/// The same as an OCI archive, as `podman save --format oci-archive` writes it: what is in `rootfs` and a file that the
/// second layer removes, and in that a file more.
pub(super) fn oci_archive(rootfs: &Path, to: &Path) -> anyhow::Result<()> {
    let temp = tempfile::tempdir()?;
    let (blobs, upper, lower) =
        (temp.path().join("oci/blobs/sha256"), temp.path().join("upper"), temp.path().join("lower"));
    for dir in [&blobs, &upper, &lower] {
        fs::create_dir_all(dir)?;
    }
    let tar = |words: &[&std::ffi::OsStr]| {
        let status = Command::new("tar").arg("--owner=0").arg("--group=0").args(words).status()?;
        ensure!(status.success(), "tar: {status}");
        anyhow::Ok(())
    };
    fs::write(lower.join("removed"), "by the layer above")?;
    fs::write(upper.join(".wh.removed"), "")?;
    fs::write(upper.join("added"), "by the second layer\n")?;
    let packed = [temp.path().join("0.tar"), temp.path().join("1.tar.gz")];
    tar(&[
        "-cf".as_ref(),
        packed[0].as_ref(),
        "-C".as_ref(),
        rootfs.as_ref(),
        ".".as_ref(),
        "-C".as_ref(),
        lower.as_ref(),
        "removed".as_ref(),
    ])?;
    tar(&[
        "-czf".as_ref(),
        packed[1].as_ref(),
        "-C".as_ref(),
        upper.as_ref(),
        ".wh.removed".as_ref(),
        "added".as_ref(),
    ])?;
    let add = |content: &[u8]| {
        let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&digest), content)?;
        anyhow::Ok(format!("\"digest\": \"sha256:{digest}\", \"size\": {}", content.len()))
    };
    let layers = [add(&fs::read(&packed[0])?)?, add(&fs::read(&packed[1])?)?];
    let media = "application/vnd.oci.image";
    let manifest = add(
        format!(
            "{{\"layers\": [{{\"mediaType\": \"{media}.layer.v1.tar\", {}}}, {{\"mediaType\": \"{media}.layer.v1.tar+gzip\", {}}}]}}",
            layers[0], layers[1]
        )
        .as_bytes(),
    )?;
    let index = format!("{{\"manifests\": [{{\"mediaType\": \"{media}.manifest.v1+json\", {manifest}}}]}}");
    let oci = temp.path().join("oci");
    fs::write(oci.join("index.json"), index)?;
    fs::write(oci.join("oci-layout"), "{\"imageLayoutVersion\": \"1.0.0\"}")?;
    tar(&["-cf".as_ref(), to.as_ref(), "-C".as_ref(), oci.as_ref(), ".".as_ref()])
}

/// Network namespaces, where not all of a site is in this one.
pub(super) struct Apart {
    /// Of holders, and so of gvproxy.
    pub(super) machines: PathBuf,
    /// Of the gateway and the commands.
    pub(super) gateway: PathBuf,
    /// The gateway's in there, as a machine's gvproxy reaches it.
    pub(super) address: Ipv4Addr,
}

/// A gateway with the vm driver.
pub(super) struct Site {
    pub(super) cluster: Cluster,
    pub(super) images: PathBuf,
    name: &'static str,
    passed: bool,
    // Dropped last.
    _files: tempfile::TempDir,
}

impl Site {
    pub(super) async fn start(name: &'static str, parts: &Parts) -> anyhow::Result<Self> {
        Self::start_where(name, parts, None).await
    }

    /// With the machines' ends of their networks elsewhere than the gateway.
    pub(super) async fn start_apart(
        name: &'static str,
        parts: &Parts,
        apart: &Apart,
    ) -> anyhow::Result<Self> {
        Self::start_where(name, parts, Some(apart)).await
    }

    async fn start_where(name: &'static str, parts: &Parts, apart: Option<&Apart>) -> anyhow::Result<Self> {
        let files = tempfile::Builder::new().prefix("holdfast-vm-").tempdir()?;
        let (links, images, config) =
            (files.path().join("parts"), files.path().join("images"), files.path().join("gateway.toml"));
        parts.lay_out(&links, apart.map(|_| LAUNCHER))?;
        parts.rootfs(&images.join("busybox"))?;
        let (mut program, mut ip) = (PathBuf::from(HOLDFAST), Ipv4Addr::LOCALHOST);
        if let Some(apart) = apart {
            enter(&apart.machines, &parts.path(LAUNCHER)?, &links.join(LAUNCHER))?;
            program = files.path().join("holdfast");
            enter(&apart.gateway, HOLDFAST.as_ref(), &program)?;
            ip = apart.address;
        }
        fs::write(
            &config,
            format!(
                "driver = \"vm\"\nboot_deadline_seconds = 240\n[vm]\nrootfs_dirs = [{images:?}]\nparts_dir = {links:?}\n\
                 boot_deadline_seconds = 240\n"
            ),
        )?;
        let config = config.to_str().context("a path in UTF-8")?;
        let program = program.to_str().context("a path in UTF-8")?;
        let cluster = Cluster::start_on(program, ip.into(), &["--config", config]).await?;
        Ok(Self { cluster, images, name, passed: false, _files: files })
    }

    /// Creates a machine and waits until it is Ready.
    pub(super) async fn create(&self, name: &str, more: &[&str]) -> anyhow::Result<Finished> {
        let mut words: Vec<OsString> = vec!["create".into(), name.into(), "--wait".into()];
        if !more.contains(&"--rootfs") {
            words.extend(["--rootfs".into(), self.images.join("busybox").into_os_string()]);
        }
        words.extend(more.iter().map(OsString::from));
        self.command(words).run().await?.success()
    }

    pub(super) fn command<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(&self, words: I) -> Cli {
        self.cluster.command(words).patience(PATIENCE)
    }

    /// A shell line in a machine.
    pub(super) async fn sh(&self, machine: &str, line: &str) -> anyhow::Result<Finished> {
        self.command(["exec", machine, "--", "sh", "-c", line]).run().await
    }

    /// A sandbox as the API shows it.
    pub(super) async fn get(&self, machine: &str) -> anyhow::Result<serde_json::Value> {
        self.command(["get", machine, "-o", "json"]).run().await?.success()?.json()
    }

    /// A sandbox's session, in words.
    pub(super) async fn session(&self, machine: &str) -> anyhow::Result<String> {
        let session = &self.get(machine).await?["session"];
        Ok(format!(
            "epoch {} from {} ({} migrations, {} rebinds)",
            session["epoch"], session["remote_address"], session["migrations"], session["rebinds"]
        ))
    }

    /// A machine's directory at the driver.
    pub(super) async fn dir(&self, machine: &str) -> anyhow::Result<PathBuf> {
        let sandbox = self.get(machine).await?;
        let id = sandbox["id"].as_str().context("an id")?;
        Ok(self.cluster.data_dir().join("machines").join(id))
    }

    /// The holder's PID, from the driver's record.
    pub(super) async fn holder(&self, machine: &str) -> anyhow::Result<i32> {
        let record = fs::read(self.dir(machine).await?.join("workload.json"))?;
        let record: serde_json::Value = serde_json::from_slice(&record)?;
        let pid = record["stage"]["pid"].as_i64().or_else(|| record["stage"]["process"]["pid"].as_i64());
        Ok(i32::try_from(pid.with_context(|| format!("a pid in {record}"))?)?)
    }

    /// All is well: nothing need be kept. Machines are removed, and leave nothing.
    pub(super) async fn finish(mut self, machines: &[&str]) -> anyhow::Result<()> {
        for machine in machines {
            self.command(["delete", machine]).run().await?.success()?;
        }
        let left = fs::read_dir(self.cluster.data_dir().join("machines"))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect::<Vec<_>>();
        ensure!(left.is_empty(), "left behind: {left:?}");
        let processes = processes_below(&self.cluster.data_dir());
        ensure!(processes.is_empty(), "processes left behind: {processes:?}");
        self.passed = true;
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.passed {
            return;
        }
        let data = self.cluster.data_dir();
        let kept = kept(self.name);
        let mut files = vec![data.with_extension("gateway.log")];
        let machines = fs::read_dir(data.join("machines")).into_iter().flatten().flatten();
        for machine in machines.filter(|entry| entry.path().is_dir()) {
            for name in ["machine.json", "workload.json", "launcher.log", "gvproxy.log", "console.log"] {
                files.push(machine.path().join(name));
            }
        }
        for file in files.iter().filter(|file| file.exists()) {
            let text = fs::read(file).unwrap_or_default();
            eprintln!("==== {}\n{}", file.display(), String::from_utf8_lossy(&text));
            if let Ok(below) = file.strip_prefix(data.parent().unwrap_or(&data)) {
                let to = kept.join(below);
                let _ = to.parent().map(fs::create_dir_all);
                let _ = fs::write(to, &text);
            }
        }
        eprintln!("==== kept in {}", kept.display());
    }
}

/// A program that is another one, in a network namespace.
fn enter(namespace: &Path, program: &Path, script: &Path) -> anyhow::Result<()> {
    let text =
        format!("#!/bin/sh\nexec nsenter --net={} -- {} \"$@\"\n", namespace.display(), program.display());
    fs::write(script, text)?;
    Ok(fs::set_permissions(script, fs::Permissions::from_mode(0o700))?)
}

/// Processes that carry the mark of a workload below `dir`.
pub(super) fn processes_below(dir: &Path) -> Vec<String> {
    let needle = format!("HOLDFAST_WORKLOAD_DIR={}", dir.display());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            fs::read(entry.path().join("environ"))
                .is_ok_and(|text| text.windows(needle.len()).any(|window| window == needle.as_bytes()))
        })
        .map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            format!("{} {}", entry.file_name().display(), String::from_utf8_lossy(&line).replace('\0', " "))
        })
        .collect()
}

/// The children of a process whose command line has `mark` in it.
pub(super) fn child_of(parent: i32, mark: &str) -> anyhow::Result<i32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    children
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse::<i32>().ok())
        .find(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
        })
        .with_context(|| format!("no child of {parent} with {mark:?} on its command line"))
}
