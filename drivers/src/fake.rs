//! A driver without a machine, for the gateway's unit tests and for the simulation.
//!
//! A [`FakeMachine`] stands for the machine: it keeps workloads, workspaces and consoles, and outlives every
//! [`FakeDriver`] over it, as processes outlive a gateway. A test scripts what the next calls do (fail, take
//! long, never answer), lets workloads die, and reads which calls came. All waiting is on tokio's clock, so that
//! a paused clock makes a slow machine instant; the fake spawns nothing and reads no other clock for decisions.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_wire::ids::{Generation, SandboxId};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Boot, BootStage, Capabilities, ComputeDriver, DriverError, Exit, Isolation, Observed, ObservedStream,
    Origin, Verb, Workload, WorkloadSpec, WorkloadState, board::Board,
};

/// The machine under one or more [`FakeDriver`]s. Clones are the same machine.
#[derive(Clone, Debug, Default)]
pub struct FakeMachine(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    world: Mutex<World>,
    /// How many calls came so far; for waiting.
    calls: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct World {
    workloads: BTreeMap<SandboxId, FakeWorkload>,
    script: BTreeMap<Verb, VecDeque<Step>>,
    calls: Vec<Call>,
    create_takes: Duration,
    /// The boards of the drivers that are open.
    boards: Vec<Board>,
    next_pid: u32,
}

#[derive(Debug, Default)]
struct FakeWorkload {
    observed: Option<Observed>,
    /// When it has been made.
    ready_at: Option<Instant>,
    workspace: BTreeMap<String, Bytes>,
    console: Vec<u8>,
}

/// What a scripted call does.
#[derive(Clone, Debug)]
pub enum Step {
    /// What it would do without a script.
    Pass,
    /// Answers with this error at once, and does nothing.
    Fail(DriverError),
    /// Takes this long, then does what it would do.
    Delay(Duration),
    /// Takes this long, then answers with this error, and does nothing.
    FailAfter(Duration, DriverError),
    /// Does what it would do, and answers with this error: an answer that was lost.
    LoseAnswer(DriverError),
    /// Never answers, and does nothing.
    Hang,
}

/// A call that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which verb.
    pub verb: Verb,
    /// About which sandbox; `None` for `list` and `watch`.
    pub sandbox: Option<SandboxId>,
    /// About which generation; `ensure` and `validate` alone name one.
    pub generation: Option<Generation>,
    /// When, by tokio's clock.
    pub at: Instant,
}

impl FakeMachine {
    /// An empty machine without a script.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds to what the next calls of `verb` do, one step a call. A call without a step passes.
    pub fn script(&self, verb: Verb, steps: impl IntoIterator<Item = Step>) {
        self.world().script.entry(verb).or_default().extend(steps);
    }

    /// How long a workload is `Creating` before it runs; `ensure` answers after that.
    pub fn create_takes(&self, time: Duration) {
        self.world().create_takes = time;
    }

    /// Every call so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.world().calls.clone()
    }

    /// How often `verb` was called.
    #[must_use]
    pub fn count(&self, verb: Verb) -> usize {
        self.world().calls.iter().filter(|call| call.verb == verb).count()
    }

    /// Waits until `verb` was called `times` times in all.
    pub async fn called(&self, verb: Verb, times: usize) {
        let mut calls = self.0.calls.subscribe();
        while self.count(verb) < times {
            if calls.changed().await.is_err() {
                return;
            }
        }
    }

    /// The workload's first process ends behind the driver's back.
    pub fn kill(&self, sandbox: SandboxId, exit: Exit) {
        let reason = match exit {
            Exit::Code(_) => "SupervisorExited",
            Exit::Signal(_) => "KilledBySignal",
            Exit::Unknown => "ExitUnseen",
        };
        let message = format!("the supervisor ended by {exit}");
        self.world().change(sandbox, WorkloadState::Exited(exit), reason, &message);
    }

    /// The driver sees this of the workload from now on.
    pub fn show(&self, sandbox: SandboxId, state: WorkloadState, reason: &str, message: &str) {
        self.world().change(sandbox, state, reason, message);
    }

    /// The workload disappears with all that it had, as when somebody removed it by hand.
    pub fn vanish(&self, sandbox: SandboxId) {
        self.world().remove(sandbox);
    }

    /// Every watch ends, as when an outside system drops its stream; watching again works.
    pub fn interrupt_watches(&self) {
        self.world().boards.iter().for_each(Board::interrupt);
    }

    /// What the machine has of a sandbox's workload.
    #[must_use]
    pub fn observed(&self, sandbox: SandboxId) -> Option<Observed> {
        self.world().workloads.get(&sandbox)?.observed.clone()
    }

    /// Whether anything at all is there of a sandbox.
    #[must_use]
    pub fn has(&self, sandbox: SandboxId) -> bool {
        self.world().workloads.contains_key(&sandbox)
    }

    /// Writes a file in the workspace, as a command would.
    pub fn write_file(&self, sandbox: SandboxId, name: &str, content: Bytes) {
        if let Some(workload) = self.world().workloads.get_mut(&sandbox) {
            workload.workspace.insert(name.to_owned(), content);
        }
    }

    /// Reads a file of the workspace.
    #[must_use]
    pub fn read_file(&self, sandbox: SandboxId, name: &str) -> Option<Bytes> {
        self.world().workloads.get(&sandbox)?.workspace.get(name).cloned()
    }

    /// Writes to the console, as a supervisor would.
    pub fn write_console(&self, sandbox: SandboxId, text: &[u8]) {
        if let Some(workload) = self.world().workloads.get_mut(&sandbox) {
            workload.console.extend_from_slice(text);
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    fn change(&mut self, sandbox: SandboxId, state: WorkloadState, reason: &str, message: &str) {
        let Some(workload) = self.workloads.get_mut(&sandbox) else { return };
        let Some(observed) = &mut workload.observed else { return };
        observed.state = state;
        observed.reason = reason.to_owned();
        observed.message = message.to_owned();
        observed.at = Timestamp::now();
        if !state.is_alive() {
            observed.pid = None;
            observed.handle = None;
        }
        let observed = observed.clone();
        self.boards.iter().for_each(|board| board.put(observed.clone()));
    }

    fn create(&mut self, spec: &WorkloadSpec) {
        self.next_pid += 1;
        let observed = Observed {
            sandbox: spec.sandbox,
            generation: spec.generation,
            state: WorkloadState::Creating,
            reason: "Creating".to_owned(),
            message: String::new(),
            boot: Boot::default(),
            at: Timestamp::now(),
            pid: None,
            handle: Some(format!("fake {}", self.next_pid)),
            main: None,
        };
        let ready_at = Instant::now() + self.create_takes;
        let workload = self.workloads.entry(spec.sandbox).or_default();
        workload.observed = Some(observed.clone());
        workload.ready_at = Some(ready_at);
        self.boards.iter().for_each(|board| board.put(observed.clone()));
    }

    fn remove(&mut self, sandbox: SandboxId) {
        self.workloads.remove(&sandbox);
        self.boards.iter().for_each(|board| board.take(sandbox));
    }

    fn state(&self, verb: Verb, sandbox: SandboxId) -> Result<WorkloadState, DriverError> {
        let observed = self.workloads.get(&sandbox).and_then(|workload| workload.observed.as_ref());
        observed.map(|observed| observed.state).ok_or(DriverError::NotFound { verb, sandbox })
    }
}

/// A scripted driver over a [`FakeMachine`].
#[derive(Debug)]
pub struct FakeDriver {
    machine: FakeMachine,
    capabilities: Capabilities,
    board: Board,
    closed: AtomicBool,
}

impl FakeDriver {
    /// A driver over `machine`, which can do everything but images and limits.
    #[must_use]
    pub fn open(machine: &FakeMachine) -> Self {
        let capabilities = Capabilities {
            pause: true,
            stop_start: true,
            adoption: true,
            logs: true,
            boot: vec![BootStage::Started],
            images: false,
            entrypoints: false,
            resources: false,
            isolation: Isolation::None,
            isolation_note: "a fake: there is nothing to isolate".to_owned(),
        };
        Self::with_capabilities(machine, capabilities)
    }

    /// A driver that can do what `capabilities` say.
    #[must_use]
    pub fn with_capabilities(machine: &FakeMachine, capabilities: Capabilities) -> Self {
        let board = Board::default();
        let mut world = machine.world();
        world
            .workloads
            .values()
            .filter_map(|workload| workload.observed.clone())
            .for_each(|level| board.put(level));
        world.boards.push(board.clone());
        drop(world);
        Self { machine: machine.clone(), capabilities, board, closed: AtomicBool::new(false) }
    }

    /// Records the call and does its scripted step; the error to answer with after the verb was done, if any.
    async fn step(
        &self,
        verb: Verb,
        sandbox: Option<SandboxId>,
        generation: Option<Generation>,
    ) -> Result<Option<DriverError>, DriverError> {
        let step = {
            let mut world = self.machine.world();
            world.calls.push(Call { verb, sandbox, generation, at: Instant::now() });
            world.script.get_mut(&verb).and_then(VecDeque::pop_front).unwrap_or(Step::Pass)
        };
        self.machine.0.calls.send_modify(|calls| *calls += 1);
        if self.closed.load(Ordering::Acquire) {
            return Err(DriverError::unavailable(verb.to_string(), "the driver is closed"));
        }
        match step {
            Step::Pass => Ok(None),
            Step::Fail(error) => Err(error),
            Step::Delay(time) => {
                sleep(time).await;
                Ok(None)
            }
            Step::FailAfter(time, error) => {
                sleep(time).await;
                Err(error)
            }
            Step::LoseAnswer(error) => Ok(Some(error)),
            Step::Hang => std::future::pending().await,
        }
    }

    fn supported(&self, can: bool, verb: Verb) -> Result<(), DriverError> {
        if can { Ok(()) } else { Err(DriverError::Unsupported { driver: self.name(), verb }) }
    }

    fn check(&self, spec: &WorkloadSpec) -> Result<(), DriverError> {
        spec.check()?;
        if spec.image.is_some() && !self.capabilities.images {
            return Err(DriverError::invalid("image", "the fake driver runs no images: leave it out"));
        }
        match spec.resources.first_set() {
            Some(field) if !self.capabilities.resources => {
                Err(DriverError::invalid(field, "the fake driver enforces no limits: leave it out"))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl ComputeDriver for FakeDriver {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn validate(&self, spec: &WorkloadSpec) -> Result<(), DriverError> {
        let lost = self.step(Verb::Validate, Some(spec.sandbox), Some(spec.generation)).await?;
        self.check(spec)?;
        lost.map_or(Ok(()), Err)
    }

    async fn ensure(&self, spec: &WorkloadSpec) -> Result<Workload, DriverError> {
        let lost = self.step(Verb::Ensure, Some(spec.sandbox), Some(spec.generation)).await?;
        self.check(spec)?;
        let (origin, ready_at) = {
            let mut world = self.machine.world();
            let there = world.workloads.get(&spec.sandbox).and_then(|workload| workload.observed.as_ref());
            let origin = match there.map(|observed| observed.generation) {
                Some(newer) if newer > spec.generation => {
                    let message =
                        format!("generation {newer} is there already, newer than {}", spec.generation);
                    return Err(DriverError::conflict(format!("ensure {}", spec.sandbox), message));
                }
                Some(same) if same == spec.generation => Origin::Adopted,
                Some(_) | None => {
                    world.create(spec);
                    Origin::Created
                }
            };
            (origin, world.workloads.get(&spec.sandbox).and_then(|workload| workload.ready_at))
        };
        if let Some(ready_at) = ready_at {
            sleep_until(ready_at).await;
        }
        let mut world = self.machine.world();
        let there = world.workloads.get(&spec.sandbox).and_then(|workload| workload.observed.clone());
        let Some(observed) = there.filter(|observed| observed.generation == spec.generation) else {
            let message = "the workload was removed or replaced while it was made";
            return Err(DriverError::conflict(format!("ensure {}", spec.sandbox), message));
        };
        if observed.state == WorkloadState::Creating {
            let pid = world.next_pid;
            if let Some(workload) = world.workloads.get_mut(&spec.sandbox) {
                let mut running = Observed { pid: Some(pid), ..observed };
                running.boot.reach(BootStage::Started);
                workload.observed = Some(running);
            }
            world.change(spec.sandbox, WorkloadState::Running, "Started", "");
        }
        let there = world.workloads.get(&spec.sandbox).and_then(|workload| workload.observed.clone());
        match (lost, there) {
            (Some(error), _) => Err(error),
            (None, Some(observed)) => Ok(Workload { origin, observed }),
            (None, None) => Err(DriverError::NotFound { verb: Verb::Ensure, sandbox: spec.sandbox }),
        }
    }

    async fn stop(&self, sandbox: SandboxId, _grace: Duration) -> Result<(), DriverError> {
        let lost = self.step(Verb::Stop, Some(sandbox), None).await?;
        let mut world = self.machine.world();
        if world.state(Verb::Stop, sandbox)?.is_alive() {
            world.change(sandbox, WorkloadState::Stopped, "Stopped", "");
        }
        lost.map_or(Ok(()), Err)
    }

    async fn pause(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        let lost = self.step(Verb::Pause, Some(sandbox), None).await?;
        self.supported(self.capabilities.pause, Verb::Pause)?;
        let mut world = self.machine.world();
        match world.state(Verb::Pause, sandbox)? {
            WorkloadState::Running => world.change(sandbox, WorkloadState::Paused, "Paused", ""),
            WorkloadState::Paused => {}
            state => {
                return Err(DriverError::conflict(
                    "pause",
                    format!("the workload is {state:?}, not running"),
                ));
            }
        }
        lost.map_or(Ok(()), Err)
    }

    async fn resume(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        let lost = self.step(Verb::Resume, Some(sandbox), None).await?;
        self.supported(self.capabilities.pause, Verb::Resume)?;
        let mut world = self.machine.world();
        match world.state(Verb::Resume, sandbox)? {
            WorkloadState::Paused => world.change(sandbox, WorkloadState::Running, "Resumed", ""),
            WorkloadState::Running => {}
            state => {
                return Err(DriverError::conflict(
                    "resume",
                    format!("the workload is {state:?}, not paused"),
                ));
            }
        }
        lost.map_or(Ok(()), Err)
    }

    async fn delete(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        let lost = self.step(Verb::Delete, Some(sandbox), None).await?;
        self.machine.world().remove(sandbox);
        lost.map_or(Ok(()), Err)
    }

    async fn list(&self) -> Result<Vec<Observed>, DriverError> {
        let lost = self.step(Verb::List, None, None).await?;
        lost.map_or_else(|| Ok(self.board.all()), Err)
    }

    async fn watch(&self) -> Result<ObservedStream, DriverError> {
        let lost = self.step(Verb::Watch, None, None).await?;
        lost.map_or_else(|| Ok(self.board.watch()), Err)
    }

    async fn logs(&self, sandbox: SandboxId, tail: usize) -> Result<Bytes, DriverError> {
        let lost = self.step(Verb::Logs, Some(sandbox), None).await?;
        self.supported(self.capabilities.logs, Verb::Logs)?;
        let world = self.machine.world();
        let workload =
            world.workloads.get(&sandbox).ok_or(DriverError::NotFound { verb: Verb::Logs, sandbox })?;
        let from = workload.console.len().saturating_sub(tail);
        lost.map_or_else(|| Ok(Bytes::copy_from_slice(&workload.console[from..])), Err)
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.board.close();
    }
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        self.board.close();
        self.machine.world().boards.retain(|board| !board.is(&self.board));
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::{ErrorKind, conformance};

    fn spec() -> WorkloadSpec {
        conformance::sample_spec(SandboxId::random())
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_machine_costs_no_real_time() {
        let machine = FakeMachine::new();
        machine.create_takes(Duration::from_secs(3600));
        let driver = FakeDriver::open(&machine);
        let mut watch = driver.watch().await.unwrap();
        let (spec, begun) = (spec(), Instant::now());
        let (workload, first) = tokio::join!(driver.ensure(&spec), watch.next());
        assert_eq!(workload.unwrap().observed.state, WorkloadState::Running);
        assert_eq!(first.unwrap().state, WorkloadState::Creating);
        assert_eq!(begun.elapsed(), Duration::from_secs(3600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_is_followed_one_step_a_call() {
        let machine = FakeMachine::new();
        let driver = FakeDriver::open(&machine);
        let spec = spec();
        let down = || DriverError::unavailable("ensure", "the engine is down");
        machine.script(
            Verb::Ensure,
            [Step::Fail(down()), Step::FailAfter(Duration::from_secs(5), down()), Step::LoseAnswer(down())],
        );
        assert_eq!(driver.ensure(&spec).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(!machine.has(spec.sandbox));
        let begun = Instant::now();
        assert!(driver.ensure(&spec).await.unwrap_err().is_retryable());
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        assert!(!machine.has(spec.sandbox));
        driver.ensure(&spec).await.unwrap_err();
        assert!(machine.has(spec.sandbox), "the answer was lost, the workload was made");
        assert_eq!(driver.ensure(&spec).await.unwrap().origin, Origin::Adopted);
        assert_eq!(machine.count(Verb::Ensure), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_call_can_be_waited_for_and_given_up() {
        let machine = FakeMachine::new();
        let driver = FakeDriver::open(&machine);
        machine.script(Verb::Delete, [Step::Hang]);
        let id = SandboxId::random();
        let deleted = tokio::time::timeout(Duration::from_secs(60), driver.delete(id));
        let (deleted, ()) = tokio::join!(deleted, machine.called(Verb::Delete, 1));
        assert!(deleted.is_err());
        let call = machine.calls()[0];
        assert_eq!((call.verb, call.sandbox), (Verb::Delete, Some(id)));
    }
}
