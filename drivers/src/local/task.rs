//! The keeper: the one task that owns one workload.
//!
//! Every verb on a sandbox comes through its keeper's mailbox, so that two verbs never meet on one workload, and a
//! caller that goes away leaves nothing half done. The keeper also waits for the end of the process, by pidfd, and
//! for the end of a grace. When there is nothing left to keep it retires.

use std::{io, sync::Arc, time::Duration};

use holdfast_wire::ids::{Generation, SandboxId};
use jiff::Timestamp;
use rustix::process::Signal;
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{
    Shared, console,
    files::Dir,
    layout,
    load::{Loaded, load},
    process::{Process, Seen},
    record::{Ended, Record, Running, Spared, Stage},
    state::{self, Plan},
    tree::Tree,
};
use crate::{DriverError, Observed, Origin, Verb, Workload, WorkloadSpec, WorkloadState, keepers::Reply};

/// What a keeper is asked.
#[derive(Debug)]
pub(super) enum Request {
    Ensure(Box<WorkloadSpec>, Reply<Workload>),
    Stop(Duration, Reply<()>),
    Pause(Reply<()>),
    Resume(Reply<()>),
    Delete(Reply<()>),
    /// Look at the process again, and put what is seen on the board.
    Look(Reply<()>),
}

/// How long a keeper waits for a killed process to be over, before it says that it is not.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How often the console's size is looked at: a supervisor writes a few lines a minute.
const CONSOLE_EVERY: Duration = Duration::from_secs(30);
/// How often a workload that boots is looked at for the stage that it has reached: people watch that. What tells of it
/// is a small file, and all stages are in it: none is missed between two looks.
const BOOT_EVERY: Duration = Duration::from_millis(250);
/// The longest grace; a caller that names more gets this.
const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);

/// One workload's owner.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    sandbox: SandboxId,
    kept: Kept,
    process: Option<Process>,
    stopping: Option<Stopping>,
}

/// What there is to keep.
#[derive(Debug)]
enum Kept {
    Nothing,
    /// A directory without a record: making the workload was given up before it had one.
    Bare,
    /// A directory that is not understood: kept as it is until somebody deletes it.
    Strange(String),
    Workload(Record),
    /// The files could not all be removed; deleting again carries on.
    HalfRemoved,
}

/// A stop that is under way.
#[derive(Debug)]
struct Stopping {
    next: Step,
    at: Instant,
    waiters: Vec<Reply<()>>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The grace ends: kill.
    Kill,
    /// It was killed and is still there: tell the waiters.
    GiveUp,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, sandbox: SandboxId) -> Self {
        Self { shared, sandbox, kept: Kept::Nothing, process: None, stopping: None }
    }

    /// Keeps the workload until there is none, or until the driver closes.
    pub(super) async fn run(mut self, mut mailbox: mpsc::Receiver<Request>) {
        self.load().await;
        let cancel = self.shared.keepers.cancel().clone();
        let mut console = interval(CONSOLE_EVERY);
        let mut boot = interval(BOOT_EVERY);
        for interval in [&mut console, &mut boot] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            if matches!(self.kept, Kept::Nothing) && self.shared.keepers.retire(self.sandbox, &mailbox) {
                return;
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = exited(self.process.as_ref()) => self.on_exit().await,
                step = due_step(self.stopping.as_ref()) => self.on_due(step).await,
                request = mailbox.recv() => match request {
                    Some(request) => self.on_request(request).await,
                    None => return,
                },
                () = due(&mut boot, self.is_booting()) => drop(self.publish()),
                () = due(&mut console, self.process.is_some()) => self.bound_console().await,
            }
        }
    }

    /// Finds what an earlier gateway left.
    async fn load(&mut self) {
        let shared = self.shared.clone();
        let sandbox = self.sandbox;
        let loaded = spawn_blocking(move || load(&shared, sandbox)).await;
        match loaded {
            Ok(Loaded::Nothing) => return,
            Ok(Loaded::Bare) => self.kept = Kept::Bare,
            Err(panic) => self.kept = Kept::Strange(format!("looking for what there is: {panic}")),
            Ok(Loaded::Strange(message)) => self.kept = Kept::Strange(message),
            Ok(Loaded::Workload(record, process)) => {
                self.process = match process.map(|(id, fd)| Process::hold(id, fd)).transpose() {
                    Ok(process) => process,
                    Err(error) => {
                        self.kept = Kept::Strange(format!("its process cannot be watched: {error}"));
                        self.publish();
                        return;
                    }
                };
                self.kept = Kept::Workload(record);
            }
        }
        self.publish();
    }

    async fn on_request(&mut self, request: Request) {
        match request {
            Request::Ensure(spec, reply) => {
                let made = Box::pin(self.ensure(&spec)).await;
                if let Err(error) = &made {
                    tracing::warn!(sandbox = %self.sandbox, generation = %spec.generation, %error, "the workload was not made");
                }
                let _ = reply.send(made);
            }
            Request::Stop(grace, reply) => self.stop(grace, reply).await,
            Request::Pause(reply) => {
                let _ = reply.send(self.pause().await);
            }
            Request::Resume(reply) => {
                let _ = reply.send(self.resume().await);
            }
            Request::Delete(reply) => {
                let _ = reply.send(self.delete().await);
            }
            Request::Look(reply) => {
                self.publish();
                let _ = reply.send(Ok(()));
            }
        }
    }

    async fn ensure(&mut self, spec: &WorkloadSpec) -> Result<Workload, DriverError> {
        let attempted = || format!("ensure {} generation {}", spec.sandbox, spec.generation);
        let there = match &self.kept {
            Kept::Nothing | Kept::Bare => None,
            Kept::Workload(record) => Some(record),
            Kept::Strange(message) => {
                return Err(DriverError::conflict(attempted(), format!("{message}; delete it first")));
            }
            Kept::HalfRemoved => {
                return Err(DriverError::conflict(attempted(), "it is half removed; delete it again first"));
            }
        };
        let newest = there.map(|record| record.generation);
        let origin = match state::plan(there, spec.generation) {
            Plan::Refuse => {
                let newest = newest.unwrap_or_default();
                return Err(DriverError::conflict(
                    attempted(),
                    format!("generation {newest} is there already"),
                ));
            }
            Plan::Adopt => Origin::Adopted,
            Plan::Replace => {
                self.end_now(&attempted()).await?;
                self.create(spec).await?;
                Origin::Created
            }
            Plan::Create => {
                self.create(spec).await?;
                Origin::Created
            }
        };
        match self.publish() {
            Some(observed) => Ok(Workload { origin, observed }),
            None => Err(DriverError::internal(attempted(), "the workload was made, and is not there")),
        }
    }

    async fn create(&mut self, spec: &WorkloadSpec) -> Result<(), DriverError> {
        let attempted =
            || format!("creating the workload of {} generation {}", spec.sandbox, spec.generation);
        let mut starting = Record::starting(spec, self.shared.dir_of(self.sandbox));
        starting.has_workspace = matches!(&self.kept, Kept::Workload(before) if before.has_workspace);
        self.shared.board.put(state::level(&starting, Seen::Absent));

        if matches!(self.kept, Kept::Bare) {
            // Its record is lost: whatever might still run of it would meet the new one in the same workspace.
            self.kill_the_rest().await;
        }
        let (shared, wanted) = (self.shared.clone(), spec.clone());
        let made = spawn_blocking(move || layout::make(&shared, &wanted, starting)).await;
        let (record, started) = match made {
            Ok(made) => made,
            Err(panic) => return Err(self.not_made(DriverError::internal(attempted(), panic))),
        };
        match (record, &self.kept) {
            (Some(record), _) => self.kept = Kept::Workload(record),
            (None, Kept::Nothing) => self.kept = Kept::Bare,
            // What there was before stays as it was.
            (None, _) => {}
        }
        let started = started.map_err(|error| self.not_made(error))?;
        match Process::hold(started.0, started.1) {
            Ok(process) => {
                tracing::info!(sandbox = %self.sandbox, generation = %spec.generation, pid = process.id.pid, "workload started");
                self.process = Some(process);
                Ok(())
            }
            Err(error) => {
                // It runs, but its end would go unseen: better none.
                self.kill_the_rest().await;
                if let Kept::Workload(record) = &mut self.kept {
                    record.stage = Stage::Failed { message: error.to_string(), at: Timestamp::now() };
                }
                self.save().await;
                Err(self.not_made(DriverError::io(attempted(), error)))
            }
        }
    }

    fn not_made(&self, error: DriverError) -> DriverError {
        self.publish();
        error
    }

    async fn stop(&mut self, grace: Duration, reply: Reply<()>) {
        let attempted = || format!("stop {}", self.sandbox);
        let answer = match &self.kept {
            Kept::Nothing => Err(DriverError::NotFound { verb: Verb::Stop, sandbox: self.sandbox }),
            Kept::Workload(_) if self.process.is_none() => Ok(()),
            Kept::Workload(_) => {
                self.ask_to_end(grace, reply).await;
                return;
            }
            Kept::Strange(message) => Err(DriverError::conflict(attempted(), message)),
            Kept::Bare | Kept::HalfRemoved => Ok(()),
        };
        let _ = reply.send(answer);
    }

    async fn ask_to_end(&mut self, grace: Duration, reply: Reply<()>) {
        let kill_at = Instant::now() + grace.min(MAX_GRACE);
        if let Some(stopping) = &mut self.stopping {
            // The shortest grace of all who ask.
            if matches!(stopping.next, Step::Kill) {
                stopping.at = stopping.at.min(kill_at);
            }
            stopping.waiters.push(reply);
            return;
        }
        let spared = self.change(|running| {
            running.stop_asked = true;
            running.paused.take()
        });
        self.save().await;
        self.publish();
        if let Some(process) = &self.process
            && let Err(error) = process.signal(Signal::TERM)
        {
            tracing::warn!(sandbox = %self.sandbox, %error, "the supervisor cannot be signalled; it will be killed");
        }
        if spared.flatten().is_some() {
            // Everybody, so that everybody can end; also those who were stopped before the pause.
            let _ = self.on_tree(|tree| tree.thaw(&Spared::default())).await;
        }
        self.stopping = Some(Stopping { next: Step::Kill, at: kill_at, waiters: vec![reply] });
    }

    async fn on_due(&mut self, step: Step) {
        match step {
            Step::Kill => {
                tracing::info!(sandbox = %self.sandbox, "the grace is over: killing the workload");
                self.kill().await;
                if let Some(stopping) = &mut self.stopping {
                    (stopping.next, stopping.at) = (Step::GiveUp, Instant::now() + KILL_PATIENCE);
                }
            }
            Step::GiveUp => {
                let Some(stopping) = self.stopping.take() else { return };
                for waiter in stopping.waiters {
                    let _ = waiter.send(Err(self.unkillable(&format!("stop {}", self.sandbox))));
                }
            }
        }
    }

    async fn pause(&mut self) -> Result<(), DriverError> {
        let paused_before = self.running(Verb::Pause)?.paused.is_some();
        let attempted = format!("pause {}", self.sandbox);
        if !paused_before {
            let boot = self.shared.boot.clone();
            let spared = self.on_tree(move |tree| tree.stopped_before(&boot)).await;
            let spared = spared.map_err(|error| DriverError::io(&attempted, error))?;
            // Before anybody is stopped: a gateway that finds the workload frozen must know whom to leave so.
            self.change(|running| running.paused = Some(spared));
            self.save().await;
        }
        // Also when it was paused before: a gateway that died may have frozen half of it.
        match self.on_tree(Tree::freeze).await {
            Ok(all_still) => {
                if !all_still {
                    tracing::warn!(sandbox = %self.sandbox, "not every process of the workload has stopped yet");
                }
                self.publish();
                Ok(())
            }
            Err(error) => {
                let spared = self.change(|running| running.paused.take()).flatten().unwrap_or_default();
                let _ = self.on_tree(move |tree| tree.thaw(&spared)).await;
                self.save().await;
                self.publish();
                Err(DriverError::io(attempted, error))
            }
        }
    }

    async fn resume(&mut self) -> Result<(), DriverError> {
        let running = self.running(Verb::Resume)?;
        if running.paused.is_none() && self.seen() == Seen::Runs {
            return Ok(());
        }
        let attempted = || format!("resume {}", self.sandbox);
        let spared = running.paused.clone().unwrap_or_default();
        self.on_tree(move |tree| tree.thaw(&spared))
            .await
            .map_err(|error| DriverError::io(attempted(), error))?;
        self.change(|running| running.paused = None);
        self.save().await;
        self.publish();
        Ok(())
    }

    async fn delete(&mut self) -> Result<(), DriverError> {
        let attempted = format!("delete {}", self.sandbox);
        self.end_now(&attempted).await?;
        let (shared, sandbox) = (self.shared.clone(), self.sandbox);
        let removed =
            spawn_blocking(move || layout::remove(&shared.root, sandbox, shared.keepers.cancel())).await;
        match removed.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(()) => {
                self.kept = Kept::Nothing;
                self.shared.board.take(self.sandbox);
                Ok(())
            }
            Err(error) => {
                if !matches!(self.kept, Kept::Nothing) {
                    self.kept = Kept::HalfRemoved;
                    self.publish();
                }
                Err(DriverError::io(attempted, error))
            }
        }
    }

    /// Kills the workload, if it runs, and waits until it is over.
    async fn end_now(&mut self, attempted: &str) -> Result<(), DriverError> {
        self.change(|running| running.stop_asked = true);
        self.kill().await;
        let Some(process) = &self.process else { return Ok(()) };
        if timeout(KILL_PATIENCE, process.exited()).await.is_err() {
            return Err(self.unkillable(attempted));
        }
        self.on_exit().await;
        Ok(())
    }

    /// Kills every process of the workload.
    async fn kill(&mut self) {
        // Together with the supervisor, and not after it: its children are found as long as it is their parent.
        self.kill_the_rest().await;
        if let Some(process) = &self.process
            && let Err(error) = process.signal(Signal::KILL)
        {
            tracing::warn!(sandbox = %self.sandbox, %error, "the supervisor cannot be killed");
        }
    }

    /// Kills what there is of the workload. In a namespace the kernel ends the rest with the first process;
    /// elsewhere they are looked for.
    async fn kill_the_rest(&self) {
        if matches!(self.kept, Kept::Nothing) {
            return;
        }
        match self.on_tree(Tree::kill).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(sandbox = %self.sandbox, "some processes of the workload do not end"),
            Err(error) => {
                tracing::warn!(sandbox = %self.sandbox, %error, "looking for the workload's processes")
            }
        }
    }

    async fn on_exit(&mut self) {
        // First the rest, then the news: whoever hears that it has ended finds nothing of it running.
        self.kill_the_rest().await;
        let Some(process) = self.process.take() else { return };
        let exit = process.reap();
        if let Kept::Workload(record) = &mut self.kept {
            let asked = matches!(&record.stage, Stage::Running(running) if running.stop_asked);
            tracing::info!(sandbox = %self.sandbox, generation = %record.generation, %exit, asked, "workload ended");
            record.stage = Stage::Ended(Ended { exit, asked, rebooted: false, at: Timestamp::now() });
        }
        self.save().await;
        self.publish();
        for waiter in self.stopping.take().map(|stopping| stopping.waiters).into_iter().flatten() {
            let _ = waiter.send(Ok(()));
        }
    }

    async fn bound_console(&mut self) {
        let (shared, sandbox) = (self.shared.clone(), self.sandbox);
        let bounded = spawn_blocking(move || {
            let dir = Dir::open(&shared.dir_of(sandbox))?;
            console::keep_bounded(&dir, shared.console_bytes)
        });
        if let Ok(Err(error)) = bounded.await {
            tracing::warn!(sandbox = %self.sandbox, %error, "the console cannot be kept small");
        }
    }

    /// The workload's process, for verbs that need one.
    fn running(&self, verb: Verb) -> Result<&Running, DriverError> {
        let conflict = |message: String| DriverError::conflict(format!("{verb} {}", self.sandbox), message);
        match &self.kept {
            Kept::Nothing => Err(DriverError::NotFound { verb, sandbox: self.sandbox }),
            Kept::Strange(message) => Err(conflict(message.clone())),
            Kept::Bare => Err(conflict("the workload was not made".to_owned())),
            Kept::HalfRemoved => Err(conflict("the workload is half removed".to_owned())),
            Kept::Workload(record) => match &record.stage {
                Stage::Running(Running { stop_asked: true, .. }) => {
                    Err(conflict("the workload is stopping".to_owned()))
                }
                Stage::Running(running) => Ok(running),
                _ => Err(conflict(format!(
                    "the workload is {:?}, not running",
                    state::level(record, Seen::Absent).state
                ))),
            },
        }
    }

    fn is_booting(&self) -> bool {
        self.process.is_some()
            && self.shared.board.get(self.sandbox).is_some_and(|level| self.shared.kind.is_booting(&level))
    }

    fn seen(&self) -> Seen {
        self.process.as_ref().map_or(Seen::Absent, Process::seen)
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut Running) -> T) -> Option<T> {
        match &mut self.kept {
            Kept::Workload(Record { stage: Stage::Running(running), .. }) => Some(change(running)),
            _ => None,
        }
    }

    /// Does something to all processes of the workload, on a blocking thread.
    async fn on_tree<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tree) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (leader, namespaces) = match &self.kept {
            Kept::Workload(Record { stage: Stage::Running(running), .. }) => {
                (Some(running.process.clone()), running.namespaces)
            }
            _ => (None, false),
        };
        let tree = Tree { leader, sandbox: self.sandbox, dir: self.shared.dir_of(self.sandbox), namespaces };
        spawn_blocking(move || work(&tree)).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }

    async fn save(&self) {
        let Kept::Workload(record) = &self.kept else { return };
        let (shared, record) = (self.shared.clone(), record.clone());
        let saved = spawn_blocking(move || record.write(&Dir::open(&shared.dir_of(record.sandbox))?)).await;
        if let Err(error) = saved.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            // What this gateway knows is still right; the next one may have to find out by itself.
            tracing::warn!(sandbox = %self.sandbox, %error, "the workload's record cannot be written");
        }
    }

    fn publish(&self) -> Option<Observed> {
        let observed = match &self.kept {
            Kept::Nothing => {
                self.shared.board.take(self.sandbox);
                return None;
            }
            Kept::Workload(record) => {
                let mut level = state::level(record, self.seen());
                self.shared.kind.describe(&self.shared.dir_of(self.sandbox), &mut level);
                level
            }
            Kept::Bare => self.failed("StartFailed", "making it was given up before it had a record"),
            Kept::Strange(message) => self.failed("RecordUnreadable", message),
            Kept::HalfRemoved => self.failed("RemovalIncomplete", "deleting it again carries on"),
        };
        self.shared.board.put(observed.clone());
        // What was on the board before may say the same, with an older time stamp.
        self.shared.board.get(self.sandbox).or(Some(observed))
    }

    fn failed(&self, reason: &str, message: &str) -> Observed {
        Observed {
            state: WorkloadState::Failed,
            reason: reason.to_owned(),
            message: message.to_owned(),
            ..Observed::gone(self.sandbox, Generation(0))
        }
    }

    fn unkillable(&self, attempted: &str) -> DriverError {
        let message =
            format!("its processes are not over {KILL_PATIENCE:?} after SIGKILL: the kernel holds them");
        DriverError::unavailable(attempted, message)
    }
}

async fn exited(process: Option<&Process>) {
    match process {
        Some(process) => process.exited().await,
        None => std::future::pending().await,
    }
}

async fn due_step(stopping: Option<&Stopping>) -> Step {
    match stopping {
        Some(stopping) => {
            sleep_until(stopping.at).await;
            stopping.next
        }
        None => std::future::pending().await,
    }
}

async fn due(interval: &mut Interval, wanted: bool) {
    if wanted {
        interval.tick().await;
    } else {
        std::future::pending().await
    }
}
