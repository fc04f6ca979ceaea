//! An engine and a gateway that makes containers with it.

use std::time::Duration;

use anyhow::Context;
use holdfast_tests::{
    engines::{Engine, Kind, static_supervisor},
    harness::{Cluster, Finished},
};
use serde_json::Value;

use crate::HOLDFAST;

/// What a loaded machine may take for what the product does in a second or two.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// How much of something: small in CI, the whole of it by hand.
pub(crate) fn size(name: &str, small: u64) -> anyhow::Result<u64> {
    Ok(std::env::var(name).ok().map(|text| text.parse()).transpose()?.unwrap_or(small))
}

pub(crate) struct Site {
    // Dropped in this order: the gateway first.
    pub(crate) cluster: Cluster,
    pub(crate) engine: Engine,
}

impl Site {
    pub(crate) async fn start(kind: Kind) -> anyhow::Result<Self> {
        Self::start_with(kind, "").await
    }

    /// `settings`: further lines for the gateway's file, before `[container]`.
    pub(crate) async fn start_with(kind: Kind, settings: &str) -> anyhow::Result<Self> {
        Self::start_configured(kind, settings, "").await
    }

    /// `settings`: further lines of `[container]`.
    pub(crate) async fn start_with_container(kind: Kind, settings: &str) -> anyhow::Result<Self> {
        Self::start_configured(kind, "", settings).await
    }

    async fn start_configured(kind: Kind, settings: &str, container: &str) -> anyhow::Result<Self> {
        let engine = Engine::start(kind).await?;
        let config = engine.scratch().join("gateway.toml");
        let text = format!("{settings}\n[container]\ncgroup_parent = \"{}\"\n{container}\n", engine.cgroup());
        std::fs::write(&config, text)?;
        let supervisor = static_supervisor()?;
        let (socket, supervisor) =
            (engine.socket(), supervisor.to_str().context("a path of text")?.to_owned());
        let config = config.to_str().context("a path of text")?.to_owned();
        let args =
            ["--driver", "container", "--engine", &socket, "--supervisor", &supervisor, "--config", &config];
        let cluster = Cluster::start_on(HOLDFAST, engine.address(), &args).await?;
        Ok(Self { cluster, engine })
    }

    /// `holdfast ARGS…`, to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> anyhow::Result<Finished> {
        self.cluster.command(args).run().await
    }

    /// The same, and its output.
    pub(crate) async fn text(&self, args: &[&str]) -> anyhow::Result<String> {
        Ok(self.run(args).await.with_context(|| format!("{args:?}"))?.success()?.text())
    }

    /// Makes a sandbox of this image and waits until it is Ready.
    pub(crate) async fn create(&self, name: &str, image: &str, more: &[&str]) -> anyhow::Result<()> {
        let args = [&["create", name, "--image", image, "--wait", "--timeout", "50s"], more].concat();
        self.run(&args).await?.success().with_context(|| format!("{args:?}\n{}", self.log()))?;
        Ok(())
    }

    /// `holdfast get NAME`.
    pub(crate) async fn get(&self, name: &str) -> anyhow::Result<Value> {
        self.run(&["get", name, "-o", "json"]).await?.success()?.json()
    }

    /// Waits for a phase and gives what `get` says then.
    pub(crate) async fn phase(&self, name: &str, phase: &str, within: Duration) -> anyhow::Result<Value> {
        let (wanted, seconds) = (format!("phase={phase}"), format!("{}s", within.as_secs()));
        let wait = self.cluster.command(["wait", name, "--for", &wanted, "--timeout", &seconds]);
        let waited = wait.patience(within + SOON).run().await?;
        let now = self.get(name).await?;
        anyhow::ensure!(waited.code == 0, "{name} is not {phase}, but {now}; {}", waited.stderr);
        Ok(now)
    }

    /// The engine's id of a sandbox's container.
    pub(crate) async fn container(&self, name: &str) -> anyhow::Result<String> {
        let filter = format!("label=dev.holdfast.name={name}");
        let ids = self.engine.tool(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]).await?;
        let id = ids.lines().next().with_context(|| format!("no container of {name}"))?;
        Ok(id.to_owned())
    }

    /// What the engine still has with Holdfast's labels.
    pub(crate) async fn left_of(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let filter = format!("label=dev.holdfast.name={name}");
        let containers = self.engine.tool(&["ps", "--all", "--quiet", "--filter", &filter]).await?;
        let volumes = self.engine.tool(&["volume", "ls", "--quiet", "--filter", &filter]).await?;
        Ok(containers.lines().chain(volumes.lines()).map(str::to_owned).collect())
    }

    /// The end of the gateway's log, for a test that fails.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.cluster.data_dir().with_extension("gateway.log"));
        let log = log.unwrap_or_default();
        log.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}
