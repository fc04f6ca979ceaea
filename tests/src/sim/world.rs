//! A small world: a gateway, sandboxes with supervisors behind NAT boxes, callers, and the faults that befall them.
//!
//! ```text
//!   callers ─▶ gateway (a life at a time) ═ net ═ [NAT] ─ supervisor (a life at a time) ─ commands (scripts)
//!                └ store, keys: outlive it                  └ spool: outlives it
//! ```
//!
//! The faults are verbs here, each noted with its instant: what a failing seed prints. The world remembers what it
//! did to whom, so that the checks ([`super::check`]) know what may be true.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use holdfast_drivers::WorkloadState;
use holdfast_gateway::sandboxes::View;
use holdfast_wire::{
    api::{Phase, SandboxSpec},
    ids::SandboxId,
};
use rand::rngs::StdRng;
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    caller::{self, Door, Plan, Record},
    gateway::{Life, Site},
    line::{Impairments, random},
    nat,
    net::{HostId, Net, Way},
    supervisor::{Inside, Place, Rival},
};

/// Until a first session is there and probed, a world is not worth testing.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What a world begins with.
#[derive(Clone, Copy, Debug)]
pub struct Plot {
    /// Its chances.
    pub seed: u64,
    /// How many sandboxes.
    pub sandboxes: usize,
    /// Whether each is behind a NAT box.
    pub nat: bool,
    /// Both directions of each sandbox's path.
    pub path: Impairments,
    /// Sandboxes are paused in it, so that their clocks jump.
    pub pauses: bool,
}

impl Plot {
    /// One sandbox behind a NAT box, on a good path.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, sandboxes: 1, nat: true, path: Impairments::good(), pauses: false }
    }
}

/// The world.
#[derive(Debug)]
pub struct World {
    /// The network.
    pub net: Net,
    /// The sandboxes, in the order in which they were made.
    pub sandboxes: Vec<Sandbox>,
    /// For choices of the scenario.
    pub random: StdRng,
    pub(super) site: Site,
    pub(super) records: Vec<Record>,
    /// Tasks of the runtime while nothing happens.
    pub(super) quiet_tasks: usize,
    plot: Plot,
    door: watch::Sender<Option<Arc<Life>>>,
    calls: Vec<JoinHandle<Record>>,
    callers: TaskTracker,
    ending: TaskTracker,
    longest: Duration,
    began: Instant,
    notes: Vec<String>,
    addresses: u16,
    dir: TempDir,
}

/// One sandbox of a world.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Its host on the network.
    pub host: HostId,
    /// The supervisor and its commands.
    pub inside: Inside,
    /// When its path was silent.
    pub silences: Vec<Silence>,
    /// When another supervisor answered for it.
    pub rivals: Vec<Instant>,
}

/// A time in which a sandbox's path swallowed everything, one way or both.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    /// Since when.
    pub from: Instant,
    /// Until when, if it is over.
    pub until: Option<Instant>,
    /// Which way.
    pub way: Way,
}

impl World {
    /// A world in which every sandbox is Ready and nothing happens.
    ///
    /// # Errors
    /// Where that does not come about.
    pub async fn begin(plot: Plot) -> anyhow::Result<Self> {
        let net = Net::new(plot.seed);
        let host = net.host(Ipv4Addr::new(198, 51, 100, 1).into());
        let dir = TempDir::new()?;
        let site = Site::new(&net, host, &dir.path().join("gateway"))?;
        let mut world = Self {
            net,
            sandboxes: Vec::new(),
            random: random(plot.seed, "scenario"),
            site,
            records: Vec::new(),
            quiet_tasks: 0,
            plot,
            door: watch::Sender::new(None),
            calls: Vec::new(),
            callers: TaskTracker::new(),
            ending: TaskTracker::new(),
            longest: Duration::ZERO,
            began: Instant::now(),
            notes: Vec::new(),
            addresses: 0,
            dir,
        };
        world.start_gateway().await?;
        for number in 0..plot.sandboxes {
            let spec = SandboxSpec::default();
            world.add_sandbox(number, host, spec).await.with_context(|| format!("sandbox {number}"))?;
        }
        for number in 0..plot.sandboxes {
            world.ready(number, READY_WITHIN).await?;
        }
        // One exec each, so that what is made once and kept is there.
        for number in 0..plot.sandboxes {
            let record = world.run(number, super::script::Script::new().emit(10)).await?;
            world.records.push(record);
        }
        world.pass(Duration::from_secs(5)).await;
        world.quiet_tasks = alive_tasks();
        world.note(format!("begun with {} tasks", world.quiet_tasks));
        Ok(world)
    }

    /// One more sandbox, of this spec, whose supervisor has just begun to dial; its number. The checks of tasks that
    /// are left do not know of it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn add(&mut self, spec: SandboxSpec) -> anyhow::Result<usize> {
        let number = self.sandboxes.len();
        self.add_sandbox(number, self.site.host(), spec).await?;
        Ok(number)
    }

    async fn add_sandbox(&mut self, number: usize, gateway: HostId, spec: SandboxSpec) -> anyhow::Result<()> {
        let life = self.gateway()?;
        let view = life.core.sandboxes.create(&format!("sim-{number}"), spec).await?;
        let id = view.id();
        let handle = life.core.sandboxes.by_id(id).context("it was created a moment ago")?;
        let runs = |view: &Arc<View>| {
            view.workload.as_ref().is_some_and(|workload| workload.state == WorkloadState::Running)
        };
        let view = handle.view().wait_for(runs).await?.clone();
        let inner = self.fresh_address(10);
        let host = self.net.host(inner);
        if self.plot.nat {
            let public = self.fresh_address(100);
            self.net.nat(host, public, nat::IDLE);
        }
        self.net.impair(host, Way::Both, self.plot.path);
        let mut inside = Inside::new(Place {
            net: &self.net,
            host,
            gateway,
            sandbox: id,
            generation: view.generation,
            bootstrap: self.site.issued(id).context("the driver was given a bootstrap")?,
            dir: self.dir.path(),
            seed: self.plot.seed.wrapping_mul(1_000_003).wrapping_add(number as u64),
            stands_still: self.plot.pauses,
        })?;
        inside.start().await?;
        self.sandboxes.push(Sandbox { id, host, inside, silences: Vec::new(), rivals: Vec::new() });
        Ok(())
    }

    /// The gateway that listens.
    ///
    /// # Errors
    /// When none does.
    pub fn gateway(&self) -> anyhow::Result<Arc<Life>> {
        self.door.borrow().clone().context("no gateway runs")
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.plot.seed
    }

    /// Writes down what happens, with the time since the beginning.
    pub fn note(&mut self, what: impl std::fmt::Display) {
        self.notes.push(format!("{:>10.3} s  {what}", self.began.elapsed().as_secs_f64()));
    }

    /// What happened, a line each.
    #[must_use]
    pub fn story(&self) -> String {
        self.notes.join("\n")
    }

    /// An instant as the notes write it.
    #[must_use]
    pub fn at(&self, instant: Instant) -> String {
        format!("{:.3} s", instant.saturating_duration_since(self.began).as_secs_f64())
    }

    /// Time passes.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    // Callers.

    /// Begins a call. It ends by itself; [`finish`](Self::finish) waits for it.
    pub fn call(&mut self, plan: Plan) {
        self.note(format!("call {} in {}: {:.60}", plan.exec, plan.sandbox, plan.script.text()));
        self.longest = self.longest.max(plan.script.takes());
        let call = caller::call(plan, self.door());
        self.calls.push(self.callers.spawn(call));
    }

    /// Begins a call for a command in a sandbox.
    pub fn start(&mut self, sandbox: usize, script: super::script::Script) {
        self.call(Plan::start(self.sandboxes[sandbox].id, script));
    }

    /// Runs one command to its end, besides the calls that are open.
    ///
    /// # Errors
    /// When it takes longer than a minute over what it sleeps.
    pub async fn run(&mut self, sandbox: usize, script: super::script::Script) -> anyhow::Result<Record> {
        let within = script.takes() + Duration::from_secs(60);
        let plan = Plan::start(self.sandboxes[sandbox].id, script);
        let exec = plan.exec;
        let call = self.callers.spawn(caller::call(plan, self.door()));
        match tokio::time::timeout(within, call).await {
            Ok(record) => Ok(record?),
            Err(_) => anyhow::bail!("the call {exec} in sandbox {sandbox} was not over within {within:?}"),
        }
    }

    /// The longest that any open call's command sleeps.
    pub(super) fn longest_call(&self) -> Duration {
        self.longest
    }

    /// Waits until every call that was begun is over, and returns what the callers saw. They are kept for the
    /// checks, too.
    ///
    /// # Errors
    /// When one takes longer.
    pub async fn finish(&mut self, within: Duration) -> anyhow::Result<Vec<Record>> {
        let until = Instant::now() + within;
        let mut over = Vec::new();
        for mut call in std::mem::take(&mut self.calls) {
            match tokio::time::timeout_at(until, &mut call).await {
                Ok(record) => over.push(record?),
                Err(_) => {
                    call.abort();
                    anyhow::bail!("a call was not over within {within:?}");
                }
            }
        }
        self.note(format!("{} calls are over", over.len()));
        self.records.extend(over.iter().cloned());
        Ok(over)
    }

    fn door(&self) -> Door {
        self.door.subscribe()
    }

    /// Waits until a sandbox is Ready.
    ///
    /// # Errors
    /// When that takes longer.
    pub async fn ready(&self, sandbox: usize, within: Duration) -> anyhow::Result<()> {
        let id = self.sandboxes[sandbox].id;
        let handle = self.gateway()?.core.sandboxes.by_id(id).context("the sandbox is known")?;
        let mut view = handle.view();
        let ready = tokio::time::timeout(within, view.wait_for(|view| view.phase == Phase::Ready)).await;
        match ready {
            Ok(_) => Ok(()),
            Err(_) => {
                let view = handle.now();
                anyhow::bail!(
                    "sandbox {sandbox} is {:?} ({}: {}) after {within:?}",
                    view.phase,
                    view.reason,
                    view.message
                )
            }
        }
    }

    /// The epoch of a sandbox's newest session.
    ///
    /// # Errors
    /// When no gateway runs.
    pub fn epoch(&self, sandbox: usize) -> anyhow::Result<u64> {
        let handle = self.gateway()?.core.sandboxes.by_id(self.sandboxes[sandbox].id);
        Ok(handle.context("the sandbox is known")?.now().epoch.0)
    }

    /// How many sandboxes have a session.
    ///
    /// # Errors
    /// When no gateway runs.
    pub fn sessions(&self) -> anyhow::Result<usize> {
        let views = self.gateway()?.core.sandboxes.views();
        Ok(views.iter().filter(|view| view.session.is_some()).count())
    }

    // Faults.

    /// From now on packets of a sandbox suffer this.
    pub fn impair(&mut self, sandbox: usize, way: Way, impairments: Impairments) {
        self.note(format!("sandbox {sandbox}: {way:?} {impairments:?}"));
        self.net.impair(self.sandboxes[sandbox].host, way, impairments);
    }

    /// From now on packets of a sandbox vanish.
    pub fn blackhole(&mut self, sandbox: usize, way: Way) {
        self.note(format!("sandbox {sandbox}: {way:?} is a blackhole"));
        let one = &mut self.sandboxes[sandbox];
        self.net.blackhole(one.host, way, true);
        one.silences.push(Silence { from: Instant::now(), until: None, way });
    }

    /// The sandbox's path is as at the beginning.
    pub fn heal(&mut self, sandbox: usize) {
        self.note(format!("sandbox {sandbox}: healed"));
        let one = &mut self.sandboxes[sandbox];
        self.net.blackhole(one.host, Way::Both, false);
        self.net.impair(one.host, Way::Both, self.plot.path);
        let now = Instant::now();
        for silence in one.silences.iter_mut().filter(|silence| silence.until.is_none()) {
            silence.until = Some(now);
        }
    }

    /// The NAT box forgets its mappings.
    pub fn evict_nat(&mut self, sandbox: usize) {
        self.note(format!("sandbox {sandbox}: mappings evicted"));
        self.net.with_nat(self.sandboxes[sandbox].host, nat::Nat::evict);
    }

    /// The NAT box gets another public address.
    pub fn rebind_nat(&mut self, sandbox: usize) {
        let public = self.fresh_address(100);
        self.note(format!("sandbox {sandbox}: the NAT box is {public} now"));
        self.net.with_nat(self.sandboxes[sandbox].host, |nat| nat.rebind(public));
    }

    /// The NAT box' present mappings carry nothing any more.
    pub fn wedge_nat(&mut self, sandbox: usize) {
        self.note(format!("sandbox {sandbox}: mappings wedged"));
        self.net.with_nat(self.sandboxes[sandbox].host, nat::Nat::wedge);
    }

    /// The sandbox' host gets another address.
    pub fn move_supervisor(&mut self, sandbox: usize) {
        let address = self.fresh_address(10);
        self.note(format!("sandbox {sandbox}: its host is {address} now"));
        self.net.readdress(self.sandboxes[sandbox].host, address);
    }

    /// A sandbox is paused, and returns once its driver has frozen it. Frozen means here that nothing leaves or
    /// reaches it: its tasks share the runtime with all others, and cannot be held.
    ///
    /// # Errors
    /// When it cannot be paused.
    pub async fn pause(&mut self, sandbox: usize) -> anyhow::Result<()> {
        self.note(format!("sandbox {sandbox}: paused"));
        let (id, host) = (self.sandboxes[sandbox].id, self.sandboxes[sandbox].host);
        self.gateway()?.core.sandboxes.pause(&id.to_string()).await?;
        self.phase(sandbox, Phase::Paused, Duration::from_secs(5)).await?;
        self.net.blackhole(host, Way::Both, true);
        Ok(())
    }

    /// A paused sandbox is resumed: its path is back, and its clocks show how long it was away.
    ///
    /// # Errors
    /// When it cannot be resumed.
    pub async fn resume(&mut self, sandbox: usize, away: Duration) -> anyhow::Result<()> {
        self.note(format!("sandbox {sandbox}: resumed after {away:?}"));
        let (id, host) = (self.sandboxes[sandbox].id, self.sandboxes[sandbox].host);
        self.gateway()?.core.sandboxes.resume(&id.to_string()).await?;
        self.net.blackhole(host, Way::Both, false);
        self.sandboxes[sandbox].inside.stood_still(away);
        Ok(())
    }

    /// Waits until a sandbox is in a phase.
    ///
    /// # Errors
    /// When that takes longer.
    pub async fn phase(&self, sandbox: usize, phase: Phase, within: Duration) -> anyhow::Result<()> {
        let id = self.sandboxes[sandbox].id;
        let handle = self.gateway()?.core.sandboxes.by_id(id).context("the sandbox is known")?;
        let mut view = handle.view();
        let reached = tokio::time::timeout(within, view.wait_for(|view| view.phase == phase)).await;
        match reached {
            Ok(_) => Ok(()),
            Err(_) => {
                let now = handle.now();
                anyhow::bail!(
                    "sandbox {sandbox} is {:?} ({}: {}), not {phase:?}, after {within:?}\n{}",
                    now.phase,
                    now.reason,
                    now.message,
                    self.story()
                )
            }
        }
    }

    /// A gateway starts where none runs.
    ///
    /// # Errors
    /// As of the core.
    pub async fn start_gateway(&mut self) -> anyhow::Result<()> {
        ensure!(self.door.borrow().is_none(), "a gateway runs already");
        let life = self.site.start().await?;
        self.door.send_replace(Some(Arc::new(life)));
        self.note("the gateway listens");
        Ok(())
    }

    /// The gateway's process is gone, without a word.
    ///
    /// # Errors
    /// When none runs.
    pub fn kill_gateway(&mut self) -> anyhow::Result<()> {
        self.note("the gateway is killed");
        let life = self.door.send_replace(None).context("no gateway runs")?;
        self.ending.spawn(life.kill());
        Ok(())
    }

    /// The gateway stops in good order; returns when it is gone.
    ///
    /// # Errors
    /// When none runs.
    pub async fn stop_gateway(&mut self) -> anyhow::Result<()> {
        self.note("the gateway stops");
        let life = self.gateway()?;
        life.stop().await;
        self.door.send_replace(None);
        self.note("the gateway has stopped");
        Ok(())
    }

    /// Whether a gateway listens.
    #[must_use]
    pub fn has_gateway(&self) -> bool {
        self.door.borrow().is_some()
    }

    /// The supervisor is killed with its commands, and another one starts over the same files.
    ///
    /// # Errors
    /// As of the supervisor's parts.
    pub async fn restart_supervisor(&mut self, sandbox: usize) -> anyhow::Result<()> {
        self.note(format!("sandbox {sandbox}: the supervisor is killed and starts again"));
        self.sandboxes[sandbox].inside.start().await
    }

    /// Another supervisor dials for the sandbox, beside its own.
    ///
    /// # Errors
    /// As of the supervisor's parts.
    pub async fn rival(&mut self, sandbox: usize) -> anyhow::Result<Rival> {
        self.note(format!("sandbox {sandbox}: a rival dials"));
        let one = &mut self.sandboxes[sandbox];
        one.rivals.push(Instant::now());
        one.inside.rival().await
    }

    fn fresh_address(&mut self, first: u8) -> IpAddr {
        self.addresses += 1;
        let [high, low] = self.addresses.to_be_bytes();
        Ipv4Addr::new(first, 64, high, low).into()
    }
}

/// Tasks of this runtime that have not ended.
#[must_use]
pub fn alive_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}
