//! The baseline ([`crate::baseline`]) in a lab: its processes, and what a fault does to its calls.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use async_trait::async_trait;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Net,
    faults::{Act, GIVE_UP},
    finding::{Compared, Spread},
    stage::{self, Stage, Way},
};
use crate::{
    baseline::{Call, Event, SERVER_NAME},
    harness::PATIENCE,
};

const PORT: u16 = 7443;

/// A transfer of which nothing came for so long stands still.
const STANDSTILL: Duration = Duration::from_secs(30);

/// A gateway and its supervisors in a lab.
#[derive(Debug)]
pub(super) struct Baseline {
    // Dropped in this order: the processes (killed), the network, the files.
    gateway: Option<Gateway>,
    stranger: Option<Gateway>,
    supervisors: Vec<Child>,
    net: Net,
    dir: tempfile::TempDir,
    peer: PathBuf,
    keepalive: bool,
    progress: Progress,
}

#[derive(Debug)]
struct Gateway {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What is known of the calls.
#[derive(Debug, Default)]
struct Progress {
    attached: usize,
    /// Of transfers: bytes, and when this was said.
    bytes: HashMap<u64, (u64, Instant)>,
    ended: HashMap<u64, Ended>,
}

#[derive(Debug)]
struct Ended {
    at: SystemTime,
    error: Option<String>,
    latest: Duration,
}

impl Baseline {
    /// A lab, a gateway with its calls on its first gateway's host, and a supervisor for each sandbox on the nodes in
    /// turn. `peer` is the binary `baseline-peer`.
    pub(super) async fn up(
        peer: &Path,
        options: &[&str],
        way: Way,
        calls: &[Call],
        keepalive: bool,
        before: Option<Act>,
    ) -> anyhow::Result<Self> {
        let net = Net::up(options).await?;
        let dir = tempfile::Builder::new().prefix("holdfast-baseline-").tempdir()?;
        for installation in ["own", "stranger"] {
            write_tls(&dir.path().join(installation))?;
        }
        std::fs::write(dir.path().join("calls.json"), serde_json::to_vec(calls)?)?;
        std::fs::write(dir.path().join("none.json"), "[]")?;
        if way == Way::Service {
            net.verb("service", &["--to", "gw1"]).await?;
        }
        let mut baseline = Self {
            gateway: None,
            stranger: None,
            supervisors: Vec::new(),
            net,
            dir,
            peer: std::path::absolute(peer)?,
            keepalive,
            progress: Progress::default(),
        };
        if way == Way::Name {
            baseline.name_leads_to(1)?;
        }
        baseline.gateway = Some(baseline.start(1, "own", "calls.json").await?);
        let mut sandboxes: Vec<_> = calls.iter().map(|call| call.sandbox.as_str()).collect();
        sandboxes.sort_unstable();
        sandboxes.dedup();
        for (number, sandbox) in sandboxes.into_iter().enumerate() {
            let node = &baseline.net.nodes()[number % baseline.net.nodes().len()];
            let supervisor = baseline.supervise(sandbox, node, way)?;
            baseline.supervisors.push(supervisor);
        }
        // A stranger only, or a pause: its calls are the first that is said over the connection.
        if let Some(before) = before {
            before(&mut baseline).await?;
        }
        baseline.until_attached(calls.len()).await?;
        Ok(baseline)
    }

    fn supervise(&self, sandbox: &str, node: &str, way: Way) -> anyhow::Result<Child> {
        let program = format!(
            "{} supervisor --sandbox {sandbox} --gateway {}:{PORT} --ca {}/own/ca.pem{}",
            self.peer.display(),
            way.host(),
            self.dir.path().display(),
            if self.keepalive { " --keepalive" } else { "" }
        );
        let hosts = self.hosts();
        let namespace = self.net.namespace(node).display().to_string();
        let line = stage::enter(&namespace, (way == Way::Name).then_some(&*hosts), &program);
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        let command = Command::new("sh")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        command.context("starting a supervisor of the baseline")
    }

    async fn start(&self, number: usize, installation: &str, calls: &str) -> anyhow::Result<Gateway> {
        let dir = self.dir.path().display();
        let program = format!(
            "{} gateway --listen 0.0.0.0:{PORT} --tls {dir}/{installation} --calls {dir}/{calls}{}",
            self.peer.display(),
            if self.keepalive { " --keepalive" } else { "" }
        );
        let namespace = self.net.namespace(&format!("gw{number}")).display().to_string();
        let mut child = Command::new("sh")
            .args(["-c", &stage::enter(&namespace, None, &program)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout was piped")?).lines();
        timeout(PATIENCE, lines.next_line())
            .await
            .context("the baseline's gateway never said that it listens")??
            .context("the baseline's gateway ended at once")?;
        Ok(Gateway { child, lines })
    }

    async fn until_attached(&mut self, calls: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.progress.attached < calls {
            if self.hear(deadline).await? {
                continue;
            }
            // A transfer may be slow from the beginning, which is what is to be seen.
            anyhow::ensure!(!self.progress.bytes.is_empty(), "the calls do not begin: {:?}", self.progress);
            break;
        }
        Ok(())
    }

    /// Takes the gateway's next event; false: there is none by then.
    async fn hear(&mut self, deadline: Instant) -> anyhow::Result<bool> {
        let Some(gateway) = &mut self.gateway else { return Ok(false) };
        let Ok(line) = timeout_at(deadline, gateway.lines.next_line()).await else { return Ok(false) };
        let Some(line) = line? else { anyhow::bail!("the baseline's gateway has ended by itself") };
        match serde_json::from_str(&line)? {
            Event::Listening => {}
            Event::Attached { .. } => self.progress.attached += 1,
            Event::Progress { call, bytes } => {
                self.progress.bytes.insert(call, (bytes, Instant::now()));
            }
            Event::Ended { call, at_ms, error, latest_ms } => {
                let at = UNIX_EPOCH + Duration::from_millis(at_ms);
                let latest = Duration::from_millis(latest_ms);
                self.progress.ended.insert(call, Ended { at, error, latest });
            }
        }
        Ok(true)
    }

    /// Waits for the calls' ends, and says what became of them. `began`: when the fault did.
    pub(super) async fn judge(
        &mut self,
        calls: &[Call],
        bytes: u64,
        began: (SystemTime, Instant),
        give_up_after: Duration,
    ) -> anyhow::Result<Compared> {
        let mut deadline = began.1 + give_up_after;
        while self.progress.ended.len() < calls.len() {
            // A transfer that stands still is given up sooner: what hangs, hangs.
            if bytes > 0 {
                let last =
                    self.progress.bytes.values().map(|(_, at)| *at).max().unwrap_or(began.1).max(began.1);
                deadline = deadline.min(last + GIVE_UP);
            }
            if !self.hear(deadline).await? {
                break;
            }
            deadline = began.1 + give_up_after;
        }
        let given_up_s = began.1.elapsed().as_secs();
        let mut found = Compared { calls: calls.len(), given_up_s, ..Compared::default() };
        let (mut told, mut latest) = (Vec::new(), Vec::new());
        for call in calls {
            match self.progress.ended.get(&call.call) {
                None => {
                    found.hung += 1;
                    let going =
                        self.progress.bytes.get(&call.call).filter(|(_, at)| at.elapsed() < STANDSTILL);
                    found.still_going_percent = going.map(|(done, _)| done * 100 / bytes.max(1));
                }
                Some(Ended { error: None, latest: late, .. }) => {
                    found.true_results += 1;
                    latest.push(*late);
                }
                Some(Ended { error: Some(error), at, .. }) => {
                    found.errors += 1;
                    found.error = Some(error.clone());
                    told.push(at.duration_since(began.0).unwrap_or_default());
                }
            }
        }
        (found.told, found.latest_byte) = (Spread::of(told), Spread::of(latest));
        Ok(found)
    }
}

#[async_trait]
impl Stage for Baseline {
    fn net(&self) -> &Net {
        &self.net
    }

    /// Its calls' streams end with it: whoever called is told at once, by a broken connection of their own.
    async fn kill_gateway(&mut self) -> anyhow::Result<()> {
        // What it has said until now counts.
        while self.hear(Instant::now() + Duration::from_millis(50)).await? {}
        let mut gateway = self.gateway.take().context("no gateway runs")?;
        gateway.child.kill().await?;
        let calls: Vec<Call> = serde_json::from_slice(&std::fs::read(self.dir.path().join("calls.json"))?)?;
        for call in calls {
            self.progress.ended.entry(call.call).or_insert_with(|| Ended {
                at: SystemTime::now(),
                error: Some("the gateway died".to_owned()),
                latest: Duration::ZERO,
            });
        }
        Ok(())
    }

    async fn start_gateway(&mut self, number: usize) -> anyhow::Result<()> {
        anyhow::ensure!(self.gateway.is_none(), "the gateway runs already");
        self.gateway = Some(self.start(number, "own", "none.json").await?);
        Ok(())
    }

    async fn start_stranger(&mut self, number: usize) -> anyhow::Result<()> {
        self.stranger = Some(self.start(number, "stranger", "none.json").await?);
        Ok(())
    }

    fn gateway_pid(&self) -> anyhow::Result<i32> {
        let pid = self.gateway.as_ref().and_then(|gateway| gateway.child.id()).context("no gateway runs")?;
        Ok(i32::try_from(pid)?)
    }

    async fn supervisor_pids(&self) -> anyhow::Result<Vec<i32>> {
        let mut found = Vec::new();
        for node in self.net.nodes() {
            let program = self.peer.to_str().context("a path in UTF-8")?;
            found.extend(stage::with_words(&self.net.processes(node).await?, &[program, "supervisor"]));
        }
        Ok(found)
    }

    fn hosts(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }
}

/// An installation: an authority and a gateway's certificate of it.
fn write_tls(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(dir)?;
    let authority_key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::new(Vec::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&authority_key)?;
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate()?;
    let leaf = rcgen::CertificateParams::new(vec![SERVER_NAME.to_owned()])?.signed_by(&key, &issuer)?;
    std::fs::write(dir.join("ca.pem"), certificate.pem())?;
    std::fs::write(dir.join("cert.pem"), leaf.pem())?;
    std::fs::write(dir.join("key.pem"), key.serialize_pem())?;
    Ok(())
}
