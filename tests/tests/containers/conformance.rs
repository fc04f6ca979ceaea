//! The drivers' conformance suite against real engines. All checks share one engine and run side by side, each with
//! a driver of its own; a check that fails names its fact.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use holdfast_certs::{CertificateAuthority, Identity, TrustDomain};
use holdfast_drivers::{
    Bootstrap, ComputeDriver, Mount, Observed, Resources, Secret, WorkloadSpec,
    conformance::{CHECKS, Harness, sample_spec},
    container::{ContainerConfig, ContainerDriver},
};
use holdfast_tests::engines::{Engine, Kind, SCRATCH, static_supervisor};
use holdfast_wire::ids::SandboxId;

use crate::with_both_engines;

with_both_engines!(every_check_of_the_suite_holds);

/// Checks wait for stops and starts more than they work; more at once would only wait for each other.
const SIDE_BY_SIDE: usize = 4;
/// The suite waits so long for what must come; an engine on a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

async fn every_check_of_the_suite_holds(kind: Kind) -> anyhow::Result<()> {
    let engine = Engine::start(kind).await?;
    let checks = futures::stream::iter(CHECKS).map(|check| {
        let engine = &engine;
        async move {
            let containers = Containers::new(engine)?;
            let began = std::time::Instant::now();
            let result = check.run(&containers).await;
            eprintln!("{check:?}: {result:?} after {:?}", began.elapsed());
            anyhow::Ok(result)
        }
    });
    let results: Vec<_> = checks.buffer_unordered(SIDE_BY_SIDE).collect().await;
    let mut failed = Vec::new();
    for result in results {
        failed.extend(result?.err());
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// A root, an installation and an authority of its own, at an engine that others use too.
struct Containers<'a> {
    engine: &'a Engine,
    temp: tempfile::TempDir,
    authority: CertificateAuthority,
    supervisor: std::path::PathBuf,
}

impl<'a> Containers<'a> {
    fn new(engine: &'a Engine) -> anyhow::Result<Self> {
        let temp = tempfile::tempdir()?;
        let authority =
            CertificateAuthority::open_or_create(&temp.path().join("ca"), TrustDomain::default())?;
        Ok(Self { engine, temp, authority, supervisor: static_supervisor()? })
    }

    async fn container(&self, sandbox: SandboxId) -> String {
        let filter = format!("label=dev.holdfast.sandbox={sandbox}");
        let ids =
            self.engine.tool(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]).await.unwrap();
        ids.lines().next().expect("a container").to_owned()
    }

    async fn workspace(&self, sandbox: SandboxId) -> std::path::PathBuf {
        let volume = format!("holdfast-{sandbox}");
        let path =
            self.engine.tool(&["volume", "inspect", "--format", "{{.Mountpoint}}", &volume]).await.unwrap();
        path.trim().into()
    }
}

#[async_trait]
impl Harness for Containers<'_> {
    async fn open(&self) -> Arc<dyn ComputeDriver> {
        let config = ContainerConfig {
            engine: Some(self.engine.socket()),
            supervisor: Some(self.supervisor.clone()),
            image: Some(SCRATCH.to_owned()),
            cgroup_parent: Some(self.engine.cgroup().to_owned()),
            // The discard port: nobody answers, and no supervisor ever attaches.
            ..ContainerConfig::new(self.temp.path().join("root"), (self.engine.address(), 9).into())
        };
        Arc::new(ContainerDriver::open(config).await.unwrap())
    }

    /// With an identity that the real supervisor accepts.
    fn spec(&self) -> WorkloadSpec {
        let sandbox = SandboxId::random();
        let issued = self.authority.issue(&Identity::sandbox(sandbox.0), DAY, &[]).unwrap();
        let bundle = issued.into_bundle(self.authority.anchors()).unwrap();
        let bootstrap = Bootstrap {
            cert_chain_pem: bundle.chain_pem().to_owned(),
            key_pem: Secret::new(bundle.key().expose()),
            ca_pem: bundle.anchors().pem().to_owned(),
            ..sample_spec(sandbox).bootstrap
        };
        WorkloadSpec { bootstrap, ..sample_spec(sandbox) }
    }

    fn invalid_specs(&self) -> Vec<(WorkloadSpec, &'static str)> {
        let spec = || self.spec();
        let network = |name: &str| WorkloadSpec { network: Some(name.into()), ..spec() };
        let limits = |resources| WorkloadSpec { resources, ..spec() };
        let mount = |source: &str, target: &str| {
            let mount = Mount { source: source.into(), target: target.into(), read_only: false };
            WorkloadSpec { mounts: vec![mount], ..spec() }
        };
        vec![
            (network("none"), "network"),
            (network("host"), "network"),
            (network("container:other"), "network"),
            (network("no-such-network"), "network"),
            (mount("/etc", "/x"), "mounts[0].source"),
            (mount("others", "/x"), "mounts[0].source"),
            (mount("/etc", "/workspace"), "mounts[0].target"),
            (mount("/etc", "/.holdfast/state"), "mounts[0].target"),
            (limits(Resources { disk_bytes: Some(1 << 30), ..Resources::default() }), "resources.disk_bytes"),
            (
                limits(Resources { memory_bytes: Some(1 << 20), ..Resources::default() }),
                "resources.memory_bytes",
            ),
            (limits(Resources { processes: Some(2), ..Resources::default() }), "resources.processes"),
            (WorkloadSpec { labels: [("dev.holdfast.x".into(), "1".into())].into(), ..spec() }, "labels"),
        ]
    }

    async fn kill(&self, observed: &Observed) {
        let id =
            observed.handle.as_deref().and_then(|handle| handle.strip_prefix("container ")).expect("an id");
        self.engine.tool(&["kill", "--signal", "KILL", id]).await.unwrap();
    }

    async fn write_file(&self, sandbox: SandboxId, name: &str, content: Bytes) {
        std::fs::write(self.workspace(sandbox).await.join(name), content).unwrap();
    }

    async fn read_file(&self, sandbox: SandboxId, name: &str) -> Option<Bytes> {
        std::fs::read(self.workspace(sandbox).await.join(name)).ok().map(Bytes::from)
    }

    async fn write_console(&self, sandbox: SandboxId, text: Bytes) {
        let id = self.container(sandbox).await;
        // By a file of the workspace: the text is longer than an argument should be.
        self.write_file(sandbox, "text", text.clone()).await;
        let script = "/busybox cat /workspace/text >/proc/1/fd/1";
        self.engine.tool(&["exec", &id, "/busybox", "sh", "-c", script]).await.unwrap();
        // An engine takes a moment to write down what it reads.
        let end = String::from_utf8_lossy(&text[text.len().saturating_sub(8)..]).into_owned();
        let written = async {
            while !self.engine.tool(&["logs", &id]).await.unwrap().ends_with(&end) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, written).await.expect("the console is in the log");
    }

    async fn leftovers(&self, observed: &Observed) -> Vec<String> {
        let filter = format!("label=dev.holdfast.sandbox={}", observed.sandbox);
        let containers = self.engine.tool(&["ps", "--all", "--quiet", "--filter", &filter]).await.unwrap();
        let volumes = self.engine.tool(&["volume", "ls", "--quiet", "--filter", &filter]).await.unwrap();
        let mut left: Vec<String> = containers.lines().chain(volumes.lines()).map(str::to_owned).collect();
        let dir = self.temp.path().join("root").join(observed.sandbox.to_string());
        left.extend(dir.exists().then(|| dir.display().to_string()));
        left
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}
