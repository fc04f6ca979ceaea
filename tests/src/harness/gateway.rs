//! A gateway process.

use std::{net::SocketAddr, path::Path, process::Stdio};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::PATIENCE;

/// A gateway that listens.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    /// QUIC and the API.
    pub address: SocketAddr,
    /// Plain HTTP.
    pub http: SocketAddr,
}

impl Gateway {
    /// Starts it and waits for its first line on stdout: `listening on ADDRESS, http on ADDRESS, profile FILE`.
    pub(crate) async fn start(
        program: &Path,
        data_dir: &Path,
        listen: SocketAddr,
        extra: &[String],
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(data_dir.parent().context("a data directory has a parent")?)?;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(data_dir.with_extension("gateway.log"))?;
        let mut child = Command::new(program)
            .arg("gateway")
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--listen", &listen.to_string()])
            .args(extra)
            .env_remove("HOLDFAST_PROFILE")
            .env("RUST_LOG", std::env::var("HOLDFAST_TEST_LOG").unwrap_or_else(|_| "info".to_owned()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("stdout was piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let Some(line) = timeout(PATIENCE, lines.next_line())
            .await
            .context("the gateway never said that it listens")??
        else {
            let log = std::fs::read_to_string(data_dir.with_extension("gateway.log")).unwrap_or_default();
            bail!("the gateway ended at once:\n{log}");
        };
        let word = |before: &str| -> anyhow::Result<SocketAddr> {
            let rest = line.split_once(before).with_context(|| format!("{before:?} in {line:?}"))?.1;
            Ok(rest.split([',', ' ']).next().unwrap_or_default().parse()?)
        };
        Ok(Self { address: word("listening on ")?, http: word("http on ")?, child })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default()
    }

    /// Its memory, in KiB.
    pub fn resident_kib(&self) -> anyhow::Result<u64> {
        resident_kib(self.pid())
    }

    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        super::signal(self.pid(), rustix::process::Signal::TERM)?;
        let status = timeout(PATIENCE, self.child.wait()).await.context("the gateway did not stop")??;
        anyhow::ensure!(status.success(), "the gateway ended with {status}");
        Ok(())
    }
}

/// A process's resident memory, in KiB.
pub fn resident_kib(pid: i32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
