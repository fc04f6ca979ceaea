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
use serde_json::Value;

use super::Net;
use crate::harness::{Cli, Gateway, cleanup::Cleanup};

/// QUIC and the API, in every gateway's namespace.
const PORT: u16 = 7443;

/// The address that `service` gives to gateways.
pub(super) const SERVICE: &str = "203.0.113.100";

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
    /// The largest datagram that the gateway sends on it, in bytes.
    pub mtu: u64,
}

impl Site {
    /// A lab (`options` are `lab-up`'s), a gateway in it that supervisors dial at `advertise` ([`SERVICE`] leads to
    /// the first), and a sandbox `box` on the first node, ready. `program` is the command under test.
    pub async fn up(program: &Path, options: &[&str], advertise: &str) -> anyhow::Result<Self> {
        let net = Net::up(options).await?;
        let dir = tempfile::Builder::new().prefix("holdfast-lab-").tempdir()?;
        let program = std::path::absolute(program)?;
        for number in 1..=net.gateways() {
            let enter = net.namespace(&format!("gw{number}"));
            let run = format!(
                "#!/bin/sh\nexec nsenter --net={} -- {} \"$@\"\n",
                enter.display(),
                program.display()
            );
            executable(&dir.path().join(format!("gateway{number}.sh")), &run)?;
        }
        let run = format!(
            "#!/bin/sh\nexec nsenter --net={}\"${{LAB_NODE:-n1}}\" -- {} supervisor \"$@\"\n",
            net.namespace("").display(),
            program.display()
        );
        executable(&dir.path().join("supervisor.sh"), &run)?;
        if advertise == SERVICE {
            net.verb("service", &["--to", "gw1"]).await?;
        }
        let mut site = Self {
            gateway: None,
            stranger: None,
            _cleanup: Cleanup::of(dir.path()),
            net,
            dir,
            program,
            advertise: format!("{advertise}:{PORT}"),
        };
        site.start_gateway(1).await?;
        site.create("box", "n1").await?;
        Ok(site)
    }

    /// Starts the gateway (again), on the host of gateway `number`.
    pub async fn start_gateway(&mut self, number: usize) -> anyhow::Result<()> {
        anyhow::ensure!(self.gateway.is_none(), "the gateway runs already");
        self.gateway = Some(self.start(number, &self.data_dir()).await?);
        // The gateway's own profile names an address of its namespace; this one is beside it for its files' sake.
        let profile = std::fs::read_to_string(self.data_dir().join("client.toml"))?;
        let outside = SocketAddr::new(self.net.host_address(number)?, PORT);
        let lines = profile.lines().map(|line| match line.starts_with("address = ") {
            true => format!("address = \"{outside}\"\n"),
            false => format!("{line}\n"),
        });
        std::fs::write(self.profile(), lines.collect::<String>())?;
        std::fs::set_permissions(self.profile(), std::fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// Starts a gateway of another installation on the host of gateway `number`: no sandbox here knows its CA.
    pub async fn start_stranger(&mut self, number: usize) -> anyhow::Result<()> {
        self.stranger = Some(self.start(number, &self.dir.path().join("stranger")).await?);
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

    /// `kill -9` of the gateway.
    pub async fn kill_gateway(&mut self) -> anyhow::Result<()> {
        self.gateway.take().context("no gateway runs")?.kill().await
    }

    /// The running gateway.
    pub fn gateway(&self) -> anyhow::Result<&Gateway> {
        self.gateway.as_ref().context("no gateway runs")
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
                // A relay of the probe is none of a caller's, and ends by itself.
                if self.session("box").await?.is_some_and(|session| session.relays == 0) {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(GONE, idle).await.context("a relay stays open with nobody attached")??;
        let execs = self.command(["execs", "box", "-o", "json"]).run().await?.success()?.text();
        anyhow::ensure!(!execs.contains("\"running\""), "an exec still runs: {execs}");
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

fn executable(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?)
}
