//! Real processes: a gateway on a data directory of its own, its sandboxes, and the command against it.
//!
//! A [`Cluster`] ends everything that it started when it is dropped, also when a test fails: the gateway, the
//! supervisors (they outlive their gateway by design) and what runs in them. Nothing is awaited by sleeping: the
//! gateway says when it listens, commands are awaited with a bound that fails the test.

mod broken;
pub(crate) mod cleanup;
mod command;
mod gateway;
mod look;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

pub use broken::broken_resume;
pub use command::{Cli, Finished, Running};
pub use gateway::{Gateway, resident_kib};
pub use look::{eventually, exec_id_of, is_running, start_argv};

/// The longest that any one command of a test may take before the test fails. Real ones take a second.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A data directory, the gateway on it, and all that they start.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: first the gateway, then what it left, then the directory.
    gateway: Option<Gateway>,
    _cleanup: cleanup::Cleanup,
    program: PathBuf,
    dir: tempfile::TempDir,
    listen: SocketAddr,
    extra: Vec<String>,
}

impl Cluster {
    /// Starts a gateway with the local driver. `program` is the command under test:
    /// `env!("CARGO_BIN_EXE_holdfast-under-test")`.
    pub async fn start(program: &str) -> anyhow::Result<Self> {
        Self::start_with(program, &[]).await
    }

    /// The same with further arguments for the gateway.
    pub async fn start_with(program: &str, extra: &[&str]) -> anyhow::Result<Self> {
        Self::start_on(program, IpAddr::from([127, 0, 0, 1]), extra).await
    }

    /// The same on another address of this machine.
    pub async fn start_on(program: &str, ip: IpAddr, extra: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir()?;
        let mut cluster = Self {
            gateway: None,
            _cleanup: cleanup::Cleanup::of(dir.path()),
            program: PathBuf::from(program),
            dir,
            listen: SocketAddr::new(ip, 0),
            extra: extra.iter().map(|arg| (*arg).to_owned()).collect(),
        };
        cluster.start_gateway().await?;
        Ok(cluster)
    }

    /// Starts the gateway (again), on the port of the first time, and waits until it listens.
    pub async fn start_gateway(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.gateway.is_none(), "the gateway runs already");
        let gateway = Gateway::start(&self.program, &self.data_dir(), self.listen, &self.extra).await?;
        self.listen = gateway.address;
        self.gateway = Some(gateway);
        Ok(())
    }

    /// `kill -9`.
    pub async fn kill_gateway(&mut self) -> anyhow::Result<()> {
        let gateway = self.gateway.take().ok_or_else(|| anyhow::anyhow!("no gateway runs"))?;
        gateway.kill().await
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop_gateway(&mut self) -> anyhow::Result<()> {
        let gateway = self.gateway.take().ok_or_else(|| anyhow::anyhow!("no gateway runs"))?;
        gateway.stop().await
    }

    /// The running gateway.
    pub fn gateway(&self) -> anyhow::Result<&Gateway> {
        self.gateway.as_ref().ok_or_else(|| anyhow::anyhow!("no gateway runs"))
    }

    /// The gateway's data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A directory for the test's own files.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// `holdfast ARGS…` with this cluster's profile.
    pub fn command<I, S>(&self, args: I) -> command::Cli
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        command::Cli::new(&self.program, &self.data_dir().join("client.toml"), args)
    }

    /// Creates a sandbox and waits until it is Ready.
    pub async fn create(&self, name: &str) -> anyhow::Result<()> {
        self.command(["create", name, "--wait"]).run().await?.success()?;
        Ok(())
    }

    /// Waits until a sandbox is in a state.
    pub async fn wait_for(&self, name: &str, state: &str, within: &str) -> anyhow::Result<()> {
        self.command(["wait", name, "--for", state, "--timeout", within]).run().await?.success()?;
        Ok(())
    }

    /// A sandbox as `holdfast get -o json` shows it.
    pub async fn get(&self, name: &str) -> anyhow::Result<serde_json::Value> {
        self.command(["get", name, "-o", "json"]).run().await?.success()?.json()
    }

    /// Where the local driver keeps the workspace of the sandbox `name`.
    pub async fn workspace(&self, name: &str) -> anyhow::Result<PathBuf> {
        let sandbox = self.get(name).await?;
        let id = sandbox["id"].as_str().ok_or_else(|| anyhow::anyhow!("no id in {sandbox}"))?;
        Ok(self.data_dir().join("sandboxes").join(id).join("workspace"))
    }

    /// The supervisor's process of the sandbox `name`, as the driver recorded it.
    pub async fn supervisor_pid(&self, name: &str) -> anyhow::Result<i32> {
        let sandbox = self.command(["get", name, "-o", "json"]).run().await?.success()?.json()?;
        let id = sandbox["id"].as_str().ok_or_else(|| anyhow::anyhow!("no id in {sandbox}"))?;
        let record = self.data_dir().join("sandboxes").join(id).join("workload.json");
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&record)?)?;
        find_pid(&record).ok_or_else(|| anyhow::anyhow!("no pid in {record}"))
    }
}

/// The first `pid` anywhere in the driver's record.
fn find_pid(value: &serde_json::Value) -> Option<i32> {
    match value {
        serde_json::Value::Object(map) => map
            .get("pid")
            .and_then(|pid| i32::try_from(pid.as_i64()?).ok())
            .or_else(|| map.values().find_map(find_pid)),
        _ => None,
    }
}

/// Sends a signal to a process, by number, as `kill` does.
pub fn signal(pid: i32, signal: rustix::process::Signal) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| anyhow::anyhow!("no pid {pid}"))?;
    Ok(rustix::process::kill_process(pid, signal)?)
}
