//! Container engines for tests: dockerd and podman's service, each in a machine made of namespaces.
//!
//! ```text
//!   root namespaces                        the machine (mounts, network, PIDs of its own; script: engines/machine)
//!   test ── stdin, stdout ───────────────▶ process 1 ── engine ── containers
//!   gateway, veth a.b.c.1 ◀── UDP, NAT ──── veth a.b.c.2 ◀── masquerade ── docker0 / podman0 ◀── supervisor
//! ```
//!
//! Everything in there ends with process 1, and process 1 ends with the pipe to it: so a test that is killed leaves
//! no engine, no container and no mount. Nothing of the surrounding machine is touched but one veth, which goes with
//! the network namespace, and a cgroup of its own name, which is removed.

mod images;
mod registry;

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

pub use self::{
    images::{EMPTY, SCRATCH, USERLAND},
    registry::{Pace, Registry, registry_obstacle},
};

/// Bringing an engine up takes a second or two; a loaded machine gets more.
const BOUND: Duration = Duration::from_secs(90);

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// dockerd.
    Docker,
    /// podman's API service.
    Podman,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

/// An engine that answers.
#[derive(Debug)]
pub struct Engine {
    kind: Kind,
    machine: Child,
    /// Of process 1 of the machine, as the root namespace counts.
    pid: u32,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    address: Ipv4Addr,
    cgroup: String,
    dir: tempfile::TempDir,
}

/// Why no engine can be run here; `None` where one can.
#[must_use]
pub fn obstacle(kind: Kind) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("container engines in namespaces need root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &str| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| dir.join(tool).exists())
    };
    let engine: &[&str] = match kind {
        Kind::Docker => &["dockerd", "docker"],
        Kind::Podman => &["podman", "crun"],
    };
    let common = ["iptables", "conntrack", "ip", "nsenter", "unshare", "curl", "busybox", "dpkg-query"];
    let missing: Vec<_> = engine.iter().chain(&common).copied().filter(|tool| !has(tool)).collect();
    (!missing.is_empty())
        .then(|| format!("not installed: {} (tests/engines/install-deps)", missing.join(", ")))
}

/// The supervisor that needs no libraries: named by `HOLDFAST_STATIC_SUPERVISOR`, or where .ci/test builds it.
pub fn static_supervisor() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("HOLDFAST_STATIC_SUPERVISOR") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    // target/debug/deps/NAME
    let target = own.ancestors().nth(3).context("a test's program lies in a target directory")?;
    let built = target.join("static/holdfast-supervisor");
    anyhow::ensure!(
        built.exists(),
        "no static supervisor: set HOLDFAST_STATIC_SUPERVISOR, or run .ci/test, which builds one"
    );
    Ok(built)
}

impl Engine {
    /// Starts a machine with this engine in it.
    pub async fn start(kind: Kind) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("hfe-").tempdir()?;
        let mark = random_mark();
        let cgroup = format!("/hfe-{mark}");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "bash"])
            .arg(script("machine"))
            .args([OsStr::new(kind.word()), dir.path().as_os_str(), OsStr::new(&cgroup)])
            .env_remove("DOCKER_HOST")
            .env_remove("CONTAINER_HOST")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(dir.path().join("machine.log"))?)
            .kill_on_drop(true);
        let mut machine = command.spawn().context("starting a machine")?;
        let orders = machine.stdin.take();
        let answers = BufReader::new(machine.stdout.take().context("stdout was piped")?).lines();
        let mut engine =
            Self { kind, machine, pid: 0, orders, answers, address: Ipv4Addr::UNSPECIFIED, cgroup, dir };
        engine.expect("ready").await?;
        engine.pid = engine.first_process()?;
        engine.connect(&mark).await?;
        engine.start_service().await?;
        engine.make_images().await?;
        Ok(engine)
    }

    /// Where the API answers.
    #[must_use]
    pub fn socket(&self) -> String {
        format!("unix://{}", self.dir.path().join("api.sock").display())
    }

    /// This machine's address, as containers reach it through a NAT.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// The cgroup that containers belong under.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// A directory that goes with the engine.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Which engine it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Starts the engine's service, and waits until it answers.
    pub async fn start_service(&mut self) -> anyhow::Result<()> {
        self.order("start", "started").await
    }

    /// `kill -9` of the engine's service. Its containers live on.
    pub async fn kill_service(&mut self) -> anyhow::Result<()> {
        self.order("stop", "stopped").await
    }

    /// Forgets every connection that the containers' NAT knows.
    pub async fn flush_nat(&mut self) -> anyhow::Result<()> {
        self.order("flush", "flushed").await
    }

    /// The engine's own command, such as `rm -f`; its output.
    pub async fn tool(&self, args: &[&str]) -> anyhow::Result<String> {
        self.tool_with(args, Stdio::null()).await
    }

    async fn tool_with(&self, args: &[&str], stdin: Stdio) -> anyhow::Result<String> {
        let mut command = self.tool_command();
        let run = command.args(args).stdin(stdin).kill_on_drop(true).output();
        let output = timeout(BOUND, run).await.with_context(|| format!("{args:?} hangs"))??;
        if !output.status.success() {
            bail!("{} {args:?}: {}", self.kind.word(), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn tool_command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--net", "--pid"]);
        let dir = self.dir.path();
        match self.kind {
            Kind::Docker => {
                command.args(["docker", "--host", &self.socket()]);
            }
            Kind::Podman => {
                command.env("CONTAINERS_CONF", dir.join("containers.conf"));
                command.env("CONTAINERS_REGISTRIES_CONF", dir.join("registries.conf")).arg("podman");
                command.arg("--root").arg(dir.join("root")).arg("--runroot").arg(dir.join("run"));
                command.args(["--storage-driver", "overlay"]);
            }
        }
        command
    }

    /// Runs a script in the mounts of a container, with this machine's rights: the container may be frozen, and may
    /// itself not mount. `$0` is busybox, whatever is in the image.
    pub async fn in_mounts_of(&self, container: &str, script: &str) -> anyhow::Result<()> {
        const BUSYBOX: &str = "/busybox-of-the-test";
        let processes = self.processes(container)?;
        let pid = processes.first().context("a container has a process")?.as_raw_nonzero();
        std::fs::copy(images::busybox()?, format!("/proc/{pid}/root{BUSYBOX}"))?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid.to_string(), "--mount", BUSYBOX, "sh", "-ec", script, BUSYBOX]);
        let output = timeout(BOUND, command.kill_on_drop(true).output()).await.context("nsenter hangs")??;
        if !output.status.success() {
            bail!("{script}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// The processes of a container, as the root namespace counts them. `container`: at least twelve letters of its id.
    pub fn processes(&self, container: &str) -> anyhow::Result<Vec<rustix::process::Pid>> {
        let mut found = Vec::new();
        // Any hierarchy does: the first that knows the container.
        for root in self.cgroups() {
            for dir in below(&root).into_iter().filter(|dir| dir.to_string_lossy().contains(container)) {
                let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                found.extend(
                    text.lines().filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?)),
                );
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
        bail!("no processes of container {container}")
    }

    /// This engine's directory in each hierarchy of cgroups.
    fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let name = self.cgroup.trim_start_matches('/');
        let mut all = vec![root.join(name)];
        all.extend(
            std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path().join(name)),
        );
        all.retain(|dir| dir.is_dir());
        all
    }

    /// The process that `unshare` has forked.
    fn first_process(&self) -> anyhow::Result<u32> {
        let parent = self.machine.id().context("the machine has ended")?;
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        Ok(children.trim().parse()?)
    }

    /// A wire between this machine and that one.
    async fn connect(&mut self, mark: &str) -> anyhow::Result<()> {
        let random: [u8; 2] = rand::random();
        let base = Ipv4Addr::new(10, 204, random[0], random[1] & !3).to_bits();
        let (here, there) = (Ipv4Addr::from_bits(base + 1), Ipv4Addr::from_bits(base + 2));
        let name = format!("hfe{mark}");
        ip(&["link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &self.pid.to_string()])
            .await?;
        ip(&["address", "add", &format!("{here}/30"), "dev", &name]).await?;
        ip(&["link", "set", &name, "up"]).await?;
        self.address = here;
        self.order(&format!("net {there}/30 {here}"), "connected").await
    }

    async fn order(&mut self, order: &str, answer: &str) -> anyhow::Result<()> {
        let orders = self.orders.as_mut().context("the machine takes no orders any more")?;
        orders.write_all(format!("{order}\n").as_bytes()).await?;
        self.expect(answer).await
    }

    async fn expect(&mut self, answer: &str) -> anyhow::Result<()> {
        let line =
            timeout(BOUND, self.answers.next_line()).await.context("the machine does not answer")??;
        if line.as_deref() != Some(answer) {
            let log = std::fs::read_to_string(self.dir.path().join("machine.log")).unwrap_or_default();
            bail!("the machine answers {line:?} and not {answer:?}; it says: {log}");
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Its process 1 ends with its input, and takes everything with it.
        self.orders = None;
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        // The kernel empties cgroups a moment after the last process: a bound, and not more.
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while !self.cgroups().iter().all(|root| remove_cgroup(root)) && std::time::Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// Removes a tree of cgroups, the deepest first.
fn remove_cgroup(root: &Path) -> bool {
    let mut all = below(root);
    all.sort_by_key(|dir| std::cmp::Reverse(dir.components().count()));
    for dir in all {
        let _ = std::fs::remove_dir(dir);
    }
    !root.exists()
}

/// A directory and all directories in it.
fn below(root: &Path) -> Vec<PathBuf> {
    let mut all = vec![root.to_owned()];
    let mut next = 0;
    while let Some(dir) = all.get(next).cloned() {
        next += 1;
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        all.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()),
        );
    }
    all
}

async fn ip(args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(args).output().await?;
    anyhow::ensure!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("engines").join(name)
}

/// Eight letters and digits: an interface's name has room for twelve beside its prefix.
fn random_mark() -> String {
    format!("{:08x}", rand::random::<u32>())
}
