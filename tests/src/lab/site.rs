//! A gateway in a lab's gateway namespace, and sandboxes whose supervisors run behind the NAT.
//!
//! The gateway's local driver starts a supervisor by a script that enters a node's network namespace, and no other:
//! `nsenter` replaces itself by the supervisor, so that this stays the first process of its PID namespace and the
//! process that the driver holds. Which node it is says the sandbox's variable `LAB_NODE`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use async_trait::async_trait;
use serde_json::Value;

use super::{
    Net,
    door::Door,
    stage::{self, Stage, Way},
};
use crate::harness::{Cli, Gateway, cleanup::Cleanup};

/// QUIC and the API, in every gateway's namespace.
const PORT: u16 = 7443;

/// What is gone must be gone within this; killing takes milliseconds, a loaded machine needs longer.
const GONE: Duration = Duration::from_secs(20);

/// A gateway and its sandboxes in a lab.
#[derive(Debug)]
pub struct Site {
    // Dropped in this order: the gateway, then what it left, then the network, then the files.
    gateway: Option<Gateway>,
    stranger: Option<Gateway>,
    _cleanup: Cleanup,
    /// The network and its faults.
    pub net: Net,
    door: Door,
    dir: tempfile::TempDir,
    program: PathBuf,
    advertise: String,
}

/// What the gateway says of a sandbox's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Counts the sessions of the sandbox.
    pub epoch: u64,
    /// The supervisor's address as the gateway sees it.
    pub remote: String,
    /// How often that address changed while the connection lived.
    pub migrations: u64,
    /// Relays that are open.
    pub relays: u64,
    /// How often its supervisor's process has taken a new socket.
    pub rebinds: u64,
    /// The largest datagram that the gateway sends on it, in bytes.
    pub mtu: u64,
}

impl Site {
    /// A lab (`options` are `lab-up`'s), a gateway on its first gateway's host, and a sandbox `box` on the first node,
    /// ready. `program` is the command under test.
    pub async fn up(program: &Path, options: &[&str], way: Way) -> anyhow::Result<Self> {
        let net = Net::up(options).await?;
        let dir = tempfile::Builder::new().prefix("holdfast-lab-").tempdir()?;
        let program = std::path::absolute(program)?;
        for number in 1..=net.gateways() {
            let namespace = net.namespace(&format!("gw{number}")).display().to_string();
            let run = stage::enter(&namespace, None, &format!("{} \"$@\"", program.display()));
            executable(&dir.path().join(format!("gateway{number}.sh")), &format!("#!/bin/sh\n{run}\n"))?;
        }
        let namespace = format!("{}\"${{LAB_NODE:-n1}}\"", net.namespace("").display());
        let hosts = dir.path().join("hosts");
        let hosts = (way == Way::Name).then_some(&*hosts);
        let run = stage::enter(&namespace, hosts, &format!("{} supervisor \"$@\"", program.display()));
        executable(&dir.path().join("supervisor.sh"), &format!("#!/bin/sh\n{run}\n"))?;
        if way == Way::Service {
            net.verb("service", &["--to", "gw1"]).await?;
        }
        let door = Door::open(SocketAddr::new(net.host_address(1)?, PORT)).await?;
        let mut site = Self {
            gateway: None,
            stranger: None,
            _cleanup: Cleanup::of(dir.path()),
            net,
            door,
            dir,
            program,
            advertise: format!("{}:{PORT}", way.host()),
        };
        if way == Way::Name {
            site.name_leads_to(1)?;
        }
        site.start_gateway(1).await?;
        site.create("box", "n1").await?;
        Ok(site)
    }

    /// The callers' profile: the gateway's own names an address of its namespace. It is beside it for its files' sake.
    fn write_profile(&self) -> anyhow::Result<()> {
        let profile = std::fs::read_to_string(self.data_dir().join("client.toml"))?;
        let outside = self.door.address;
        let lines = profile.lines().map(|line| match line.starts_with("address = ") {
            true => format!("address = \"{outside}\"\n"),
            false => format!("{line}\n"),
        });
        std::fs::write(self.profile(), lines.collect::<String>())?;
        std::fs::set_permissions(self.profile(), std::fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    async fn start(&self, number: usize, data_dir: &Path) -> anyhow::Result<Gateway> {
        let supervisor = self.dir.path().join("supervisor.sh");
        let extra =
            ["--advertise", &self.advertise, "--supervisor", supervisor.to_str().context("a path in UTF-8")?]
                .map(str::to_owned);
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        let program = self.dir.path().join(format!("gateway{number}.sh"));
        Gateway::start(&program, data_dir, listen, &extra).await
    }

    /// A directory for files of the test's own.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// What the gateway has logged.
    #[must_use]
    pub fn gateway_log(&self) -> String {
        std::fs::read_to_string(self.data_dir().with_extension("gateway.log")).unwrap_or_default()
    }

    /// The end of every supervisor's console, for the report of a failed test.
    #[must_use]
    pub fn consoles(&self) -> String {
        let Ok(entries) = std::fs::read_dir(self.data_dir().join("sandboxes")) else { return String::new() };
        let read = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("console.log")).ok();
        entries.flatten().filter_map(read).collect()
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("gateway")
    }

    fn profile(&self) -> PathBuf {
        self.data_dir().join("lab-client.toml")
    }

    /// `holdfast ARGS…`, over the wire without faults.
    pub fn command<I, S>(&self, args: I) -> Cli
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        Cli::new(&self.program, &self.profile(), args)
    }

    /// Creates a sandbox on a node, and waits until it is ready.
    pub async fn create(&self, name: &str, node: &str) -> anyhow::Result<()> {
        self.command(["create", name, "--wait", "-e", &format!("LAB_NODE={node}")]).run().await?.success()?;
        Ok(())
    }

    /// `holdfast get NAME -o json`.
    pub async fn get(&self, name: &str) -> anyhow::Result<Value> {
        self.command(["get", name, "-o", "json"]).run().await?.success()?.json()
    }

    /// Where a sandbox's commands run.
    pub async fn workspace(&self, name: &str) -> anyhow::Result<PathBuf> {
        let sandbox = self.get(name).await?;
        let id = sandbox["id"].as_str().context("a sandbox has an id")?;
        Ok(self.data_dir().join("sandboxes").join(id).join("workspace"))
    }

    /// The session of a sandbox; `None` when it has none now.
    pub async fn session(&self, name: &str) -> anyhow::Result<Option<Session>> {
        let sandbox = self.get(name).await?;
        let session = &sandbox["session"];
        let Some(epoch) = session["epoch"].as_u64() else { return Ok(None) };
        Ok(Some(Session {
            epoch,
            remote: session["remote_address"].as_str().context("a session has a remote address")?.to_owned(),
            migrations: session["migrations"].as_u64().context("a session counts migrations")?,
            mtu: session["mtu"].as_u64().context("a session has an MTU")?,
            rebinds: session["rebinds"].as_u64().context("a session counts rebinds")?,
            relays: session["open_relays"].as_u64().context("a session counts relays")?,
        }))
    }

    /// The last checks: a new command works in every sandbox, no relay is open, and after deleting the sandboxes and
    /// stopping the gateway no process is left in the lab.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        let list = self.command(["list", "-o", "name"]).run().await?.success()?.text();
        let names: Vec<&str> = list.lines().map(|line| line.rsplit('/').next().unwrap_or(line)).collect();
        anyhow::ensure!(!names.is_empty(), "there are sandboxes");
        for name in &names {
            let echo = self.command(["exec", name, "--", "echo", "alive"]).run().await?.success()?;
            anyhow::ensure!(echo.text() == "alive\n", "{:?}", echo.text());
        }
        let idle = async {
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            loop {
                tick.tick().await;
                // A relay of the probe is none of a caller's, and ends by itself. The command of a caller that left
                // without attaching again may be at its last lines.
                let relays = self.session("box").await?.map(|session| session.relays);
                let execs = self.command(["execs", "box", "-o", "json"]).run().await?.success()?.text();
                if relays == Some(0) && !execs.contains("\"running\"") {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(GONE, idle)
            .await
            .context("a relay stays open with nobody attached, or an exec still runs")??;
        let mut deletions = Vec::new();
        for name in &names {
            deletions.push(self.command(["delete", name]).run());
        }
        for deleted in futures::future::join_all(deletions).await {
            deleted?.success()?;
        }
        for node in self.net.nodes() {
            self.empty(node).await?;
        }
        self.gateway.take().context("the gateway runs")?.stop().await?;
        if let Some(stranger) = self.stranger.take() {
            stranger.stop().await?;
        }
        for number in 1..=self.net.gateways() {
            self.empty(&format!("gw{number}")).await?;
        }
        Ok(())
    }

    /// Waits until no process is left in a node.
    async fn empty(&self, node: &str) -> anyhow::Result<()> {
        let look = async {
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            loop {
                tick.tick().await;
                let left = self.net.processes(node).await?;
                if left.is_empty() {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(GONE, look).await.with_context(|| format!("processes are left in {node}"))?
    }
}

#[async_trait]
impl Stage for Site {
    fn net(&self) -> &Net {
        &self.net
    }

    async fn kill_gateway(&mut self) -> anyhow::Result<()> {
        self.gateway.take().context("no gateway runs")?.kill().await
    }

    async fn start_gateway(&mut self, number: usize) -> anyhow::Result<()> {
        anyhow::ensure!(self.gateway.is_none(), "the gateway runs already");
        self.door.lead_to(SocketAddr::new(self.net.host_address(number)?, PORT));
        self.gateway = Some(self.start(number, &self.data_dir()).await?);
        self.write_profile()
    }

    async fn start_stranger(&mut self, number: usize) -> anyhow::Result<()> {
        self.stranger = Some(self.start(number, &self.dir.path().join("stranger")).await?);
        Ok(())
    }

    fn gateway_pid(&self) -> anyhow::Result<i32> {
        Ok(self.gateway.as_ref().context("no gateway runs")?.pid())
    }

    async fn supervisor_pids(&self) -> anyhow::Result<Vec<i32>> {
        let mut found = Vec::new();
        for node in self.net.nodes() {
            let program = self.program.to_str().context("a path in UTF-8")?;
            found.extend(stage::with_words(&self.net.processes(node).await?, &[program, "supervisor"]));
        }
        Ok(found)
    }

    fn hosts(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }
}

fn executable(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?)
}
