//! Sandboxes: what users asked for, what is there of it, and the one word that says how they stand to each other.
//!
//! ```text
//!                            ┌──────────────── one task a sandbox ────────────────┐
//!   callers ── ask ────────▶ │  facts ──▶ state (pure) ──▶ phase, conditions ──────┼─▶ watch<View> ─▶ everybody
//!   sessions ── hello, ────▶ │   ▲ ▲                 └──▶ steps                    │
//!               health, end  │   │ │ answers              │ driver calls, one at   │
//!   fleet ── levels ────────▶│   │ └──────────────────────┘ a time, in a JoinSet   │
//!   (driver's list, watch)   │ store (compare-and-set)                             │
//!                            └───────────────────────────────────────┬────────────┘
//!                                                                    ▼ SandboxFact: execs
//! ```
//!
//! Everything about a sandbox is decided by its task, from facts and never from a count of events: what is wanted
//! (stored before it is answered), what the driver sees of the wanted generation, which session has the newest
//! epoch, what that session's probes found and when. So facts may come late, twice, or in any order. A restarted
//! gateway knows only what is stored: every sandbox is `Reconnecting` until proven, the [`fleet`] asks the driver
//! what is there, supervisors come back by themselves. What the driver no longer has is `Failed`; what it has and
//! the store has not is an orphan, and is removed after a grace.
//!
//! Workloads outlive the gateway: stopping this room stops its tasks, and touches no workload.

mod activity;
mod calls;
mod fleet;
mod handle;
mod lifetime;
mod names;
mod state;
mod task;
#[cfg(test)]
mod tests;
mod view;
mod wait;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use bytes::Bytes;
use holdfast_drivers::{Bootstrap, ComputeDriver, Verb};
use holdfast_wire::{
    api::{self, LostReason, Phase},
    ids::{Epoch, Generation, Instance, SandboxId},
    timing::Tuning,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::state::Status;
pub use self::{
    activity::{Activity, Busy},
    handle::{Admission, Refusal, SandboxHandle},
    view::{Condition, ConditionKind, LinkEvent, View, word as phase_word},
};
use self::{
    handle::{Ask, not_found},
    state::Level,
    wait::Until,
};
use crate::{
    error::{CallError, Reason, key},
    events::{self, Events},
    store::{Desired, SandboxRecord, Store, StoreError, Why},
    wall::Wall,
};

/// Gives a workload what its supervisor needs to reach the gateway and to prove who it is. Asked before each call
/// that makes a workload; it must answer from memory, in about the time of one signature.
pub trait Bootstrapper: Send + Sync + fmt::Debug {
    /// Addresses, and a fresh certificate for this sandbox alone.
    ///
    /// # Errors
    /// What was attempted, and why it did not work.
    fn bootstrap(&self, sandbox: SandboxId, generation: Generation) -> Result<Bootstrap, CallError>;
}

/// Times and bounds of this room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From a workload's start to its supervisor's first session, and from a thaw to the next good probe.
    pub boot_deadline: Duration,
    /// How long a workload may be without a sandbox before it is removed.
    pub orphan_grace: Duration,
    /// By which clock a sandbox's time to live is over.
    pub wall: Wall,
    /// The most sandboxes. Each costs a task and two file descriptors at most; ten thousand sessions are measured.
    pub max_sandboxes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // A microVM on a slow host boots in 15 s; four times that is no boot any more.
            boot_deadline: Duration::from_secs(60),
            orphan_grace: Duration::from_secs(60),
            wall: Wall::System,
            max_sandboxes: 10_000,
        }
    }
}

/// What this room works with.
#[derive(Debug)]
pub struct Parts {
    /// Where sandboxes are kept.
    pub store: Arc<dyn Store>,
    /// What makes workloads.
    pub driver: Arc<dyn ComputeDriver>,
    /// Who gives supervisors their identity.
    pub bootstrapper: Arc<dyn Bootstrapper>,
    /// Where people read what happened.
    pub events: Events,
    /// What supervisors are told in `Welcome`.
    pub tuning: Tuning,
    /// Times and bounds.
    pub settings: Settings,
    /// What execs must know. Bounded; each sandbox waits for room by itself, and holds nobody up.
    pub facts: mpsc::Sender<SandboxFact>,
}

/// What execs must know of a sandbox: what makes a running exec lost.
///
/// A fact may be read late, when newer execs have begun already. So each names the newest epoch that it is about:
/// it says nothing of an exec whose start was sent by a session with a newer one ([`crate::store::Sent::epoch`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxFact {
    /// This supervisor process answers now. Execs that were sent to another, by an older session, are lost.
    SessionAttached {
        /// Whose.
        sandbox: SandboxId,
        /// Its session's.
        epoch: Epoch,
        /// The process.
        instance: Instance,
        /// The workload that it runs in.
        generation: Generation,
    },
    /// The driver says that a workload is dead, and with it all that ran in it.
    WorkloadGone {
        /// Whose.
        sandbox: SandboxId,
        /// The workload.
        generation: Generation,
        /// Execs sent by sessions up to this one are lost.
        up_to: Epoch,
        /// For their outcome.
        reason: LostReason,
        /// For people.
        message: String,
    },
    /// The workload was stopped as somebody had asked.
    Stopped {
        /// Whose.
        sandbox: SandboxId,
        /// Execs sent by sessions up to this one are lost.
        up_to: Epoch,
    },
    /// Nothing is left of the sandbox. Its unfinished execs are about to end as lost in the store.
    Deleted {
        /// Which.
        sandbox: SandboxId,
    },
}

impl SandboxFact {
    /// Whose fact.
    #[must_use]
    pub fn sandbox(&self) -> SandboxId {
        match self {
            Self::SessionAttached { sandbox, .. }
            | Self::WorkloadGone { sandbox, .. }
            | Self::Stopped { sandbox, .. }
            | Self::Deleted { sandbox } => *sandbox,
        }
    }
}

/// One page of a listing.
#[derive(Clone, Debug)]
pub struct Page {
    /// By rising id, which is by age.
    pub views: Vec<Arc<View>>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<String>,
}

/// All sandboxes of this gateway. Clones are the same.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    core: Arc<Core>,
}

/// What the room's tasks share.
#[derive(Debug)]
struct Core {
    parts: Parts,
    map: RwLock<Map>,
    tasks: TaskTracker,
    token: CancellationToken,
}

#[derive(Debug, Default)]
struct Map {
    by_id: BTreeMap<SandboxId, Entry>,
    by_name: HashMap<Arc<str>, SandboxId>,
}

/// A sandbox, as the map has it.
#[derive(Debug)]
struct Entry {
    handle: SandboxHandle,
    /// Where the fleet puts what the driver sees.
    level: watch::Sender<Level>,
}

impl Sandboxes {
    /// Loads what is stored, and starts a task for each sandbox and one for the driver. The driver may be down:
    /// that is seen in the sandboxes, not here.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(parts: Parts, token: CancellationToken) -> Result<Self, CallError> {
        let core = Arc::new(Core { parts, map: RwLock::default(), tasks: TaskTracker::new(), token });
        let mut after = None;
        loop {
            let records = core.parts.store.list(after, crate::store::MAX_PAGE).await?;
            let Some(last) = records.last() else { break };
            after = Some(last.id);
            records.into_iter().for_each(|record| core.adopt(record));
        }
        tracing::info!(sandboxes = core.map().by_id.len(), "sandboxes loaded");
        core.tasks.spawn(fleet::run(core.clone()));
        Ok(Self { core })
    }

    /// Stores a new sandbox and returns at once; its task makes the workload. An empty name is made up.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a name or a spec that no driver, or this one, can make; `SANDBOX_EXISTS`;
    /// `LIMIT_REACHED`.
    pub async fn create(&self, name: &str, spec: api::SandboxSpec) -> Result<Arc<View>, CallError> {
        if !name.is_empty() {
            names::check(name)?;
        }
        let (core, name) = (self.core.clone(), name.to_owned());
        // In a task of its own: a caller who hangs up must not leave a stored sandbox without its task.
        let created = self.core.tasks.spawn(async move { core.create(name, spec).await });
        created.await.map_err(|error| CallError::internal("creating a sandbox", &error))?
    }

    /// A sandbox as it is now, by name or id.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`.
    pub fn get(&self, name_or_id: &str) -> Result<Arc<View>, CallError> {
        Ok(self.resolve(name_or_id)?.now())
    }

    /// Sandboxes that have all of these labels, from `page_token` (of the page before; empty: the first), at most
    /// `size`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a token that is none.
    pub fn list(
        &self,
        labels: &HashMap<String, String>,
        size: usize,
        page_token: &str,
    ) -> Result<Page, CallError> {
        let after = match page_token {
            "" => None,
            token => {
                Some(token.parse::<SandboxId>().map_err(|error| CallError::invalid("page_token", error))?)
            }
        };
        let map = self.core.map();
        let mut views = map
            .by_id
            .range((
                after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded),
                std::ops::Bound::Unbounded,
            ))
            .map(|(_, entry)| entry.handle.now())
            .filter(|view| labels.iter().all(|(key, value)| view.record.spec.labels.get(key) == Some(value)));
        let page: Vec<_> = views.by_ref().take(size.max(1)).collect();
        let next = views.next().and(page.last()).map(|view| view.id().to_string());
        Ok(Page { views: page, next })
    }

    /// Deletes a sandbox: its execs end, its workload has `grace` to end and is removed with its files. Returns
    /// when that is stored, or with `wait` when nothing is left. Deleting what is being deleted is no error.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`; with `wait`, `WAIT_TIMEOUT` after ten minutes (deletion goes on).
    pub async fn delete(&self, name_or_id: &str, grace: Duration, wait: bool) -> Result<(), CallError> {
        let handle = self.resolve(name_or_id)?;
        handle.ask(Ask::Delete { grace }).await?;
        if wait {
            // The longest wait that the API offers anywhere.
            handle.wait_until(Until::Deleted, Instant::now() + Duration::from_secs(600)).await?;
        }
        Ok(())
    }

    /// Stops a sandbox's workload, which has `grace` to end; the workspace is kept. Legal in every phase but
    /// `Deleting`. Returns when it is stored.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`, `UNSUPPORTED_BY_DRIVER`, `WRONG_PHASE` when it is being deleted.
    pub async fn stop(&self, name_or_id: &str, grace: Duration) -> Result<Arc<View>, CallError> {
        self.resolve(name_or_id)?.ask(Ask::Stop { grace }).await
    }

    /// Starts a sandbox that is stopped or failed, with a new workload over the same workspace; one that is paused
    /// is resumed; one that runs is left alone. Returns when it is stored.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`, `WRONG_PHASE` when it is being deleted.
    pub async fn start_workload(&self, name_or_id: &str) -> Result<Arc<View>, CallError> {
        self.resolve(name_or_id)?.ask(Ask::Start).await
    }

    /// Freezes a sandbox's workload. Returns when it is stored.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`, `UNSUPPORTED_BY_DRIVER`, `WRONG_PHASE` when there is no running workload.
    pub async fn pause(&self, name_or_id: &str) -> Result<Arc<View>, CallError> {
        self.resolve(name_or_id)?.ask(Ask::Pause).await
    }

    /// Lets a frozen workload run on. Returns when it is stored; it is Ready after the next good probe.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub async fn resume(&self, name_or_id: &str) -> Result<Arc<View>, CallError> {
        self.resolve(name_or_id)?.ask(Ask::Resume).await
    }

    /// Changes how long a sandbox lives, from now on, and how long it may be idle: absent is unchanged, zero is
    /// without end. Legal in every phase but `Deleting`. Returns when it is stored.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`, `INVALID_ARGUMENT`, `UNSUPPORTED_BY_DRIVER`, `WRONG_PHASE` when it is being deleted.
    pub async fn update(
        &self,
        name_or_id: &str,
        ttl: Option<prost_types::Duration>,
        idle_stop: Option<prost_types::Duration>,
    ) -> Result<Arc<View>, CallError> {
        let (ttl, idle_stop) = (agreed("ttl", ttl)?, agreed("idle_stop", idle_stop)?);
        self.resolve(name_or_id)?.ask(Ask::Update { ttl, idle_stop }).await
    }

    /// The last bytes, at most `tail`, of the workload's console.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`, `UNSUPPORTED_BY_DRIVER`, `DRIVER_FAILED`.
    pub async fn logs(&self, name_or_id: &str, tail: usize) -> Result<Bytes, CallError> {
        let handle = self.resolve(name_or_id)?;
        let driver = &self.core.parts.driver;
        if !driver.capabilities().logs {
            return Err(unsupported(driver.as_ref(), Verb::Logs));
        }
        calls::logs(driver.as_ref(), handle.id, tail)
            .await
            .map_err(|failure| failure.to_call(driver.as_ref()))
    }

    /// Waits until the sandbox is `ready`, `deleted`, in a `phase=X` or has a `condition=Y`. `None`: it is deleted.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, `SANDBOX_NOT_FOUND`, `WAIT_TIMEOUT`, and `WRONG_PHASE` at once where waiting is
    /// pointless: each of the last two says how the sandbox is.
    pub async fn wait_until(
        &self,
        name_or_id: &str,
        until: &str,
        deadline: Instant,
    ) -> Result<Option<Arc<View>>, CallError> {
        let until: Until = until.parse()?;
        match self.resolve(name_or_id) {
            Ok(handle) => handle.wait_until(until, deadline).await,
            // What is not there is deleted; a name that never was is too, for all that can be known.
            Err(_) if until == Until::Deleted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A handle to a sandbox, by name or id.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`.
    pub fn resolve(&self, name_or_id: &str) -> Result<SandboxHandle, CallError> {
        let map = self.core.map();
        let id = match name_or_id.parse::<SandboxId>() {
            Ok(id) => Some(id),
            Err(_) => map.by_name.get(name_or_id).copied(),
        };
        let entry = id.and_then(|id| map.by_id.get(&id));
        entry.map(|entry| entry.handle.clone()).ok_or_else(|| not_found(name_or_id))
    }

    /// A handle to a sandbox.
    #[must_use]
    pub fn by_id(&self, id: SandboxId) -> Option<SandboxHandle> {
        self.core.map().by_id.get(&id).map(|entry| entry.handle.clone())
    }

    /// Every sandbox as it is now, by rising id.
    #[must_use]
    pub fn views(&self) -> Vec<Arc<View>> {
        self.core.map().by_id.values().map(|entry| entry.handle.now()).collect()
    }

    /// Whether the driver says what an image's own command is.
    #[must_use]
    pub fn knows_entrypoints(&self) -> bool {
        self.core.parts.driver.capabilities().entrypoints
    }

    /// Whether a certificate in this sandbox's name is refused: it is unknown, or deleted, or being deleted. Cheap
    /// enough for every handshake.
    #[must_use]
    pub fn is_refused(&self, id: &SandboxId) -> bool {
        let map = self.core.map();
        map.by_id.get(id).is_none_or(|entry| entry.handle.view.borrow().record.desired == Desired::Deleted)
    }

    /// Ends the tasks and lets go of the driver. Workloads live on, and sessions are left to whoever closes them.
    pub async fn shutdown(&self) {
        self.core.token.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
        self.core.parts.driver.close().await;
    }
}

impl Core {
    async fn create(self: Arc<Self>, name: String, spec: api::SandboxSpec) -> Result<Arc<View>, CallError> {
        let most = self.parts.settings.max_sandboxes;
        if self.map().by_id.len() >= most {
            return Err(CallError::new(
                Reason::LimitReached,
                format!("there are {most} sandboxes already, the most that this gateway keeps: delete some"),
            )
            .with(key::LIMIT, "max_sandboxes"));
        }
        let driver = self.parts.driver.as_ref();
        let ttl = agreed("ttl", spec.ttl)?.filter(|ttl| !ttl.is_zero());
        let idle_stop = agreed("idle_stop", spec.idle_stop)?.filter(|idle| !idle.is_zero());
        if idle_stop.is_some() && !driver.capabilities().stop_start {
            return Err(unsupported(driver, Verb::Stop));
        }
        if let Some(main) = &spec.main {
            check_main(driver, main)?;
        }
        let created_at = self.parts.settings.wall.now();
        let made_up = name.is_empty();
        let mut record = SandboxRecord {
            id: SandboxId::random(),
            name: if made_up { names::made_up() } else { name },
            spec,
            desired: Desired::Running,
            why: Why::Asked,
            grace: holdfast_wire::timing::KILL_GRACE,
            generation: Generation(1),
            made: Generation(0),
            attached: Generation(0),
            epoch: Epoch(0),
            driver: self.parts.driver.name().to_owned(),
            version: 1,
            created_at,
            last_error: None,
            expires_at: ttl.and_then(|ttl| created_at.checked_add(ttl).ok()),
            active_at: idle_stop.map(|_| created_at),
            main: Generation(0),
        };
        calls::validate(&self.parts, &record).await?;
        // A made-up name may be taken. With half a million of them a third one is never needed.
        let mut tries = if made_up { 3 } else { 1 };
        loop {
            tries -= 1;
            match self.parts.store.insert(&record).await {
                Ok(()) => break,
                Err(StoreError::NameTaken { .. }) if tries > 0 => record.name = names::made_up(),
                Err(error) => return Err(error.into()),
            }
        }
        let (id, name) = (record.id, Arc::from(record.name.as_str()));
        self.parts.events.record(id, &name, events::reason::CREATED, "asked for", Phase::Pending);
        self.adopt(record);
        let entry = self.map().by_id.get(&id).map(|entry| entry.handle.now());
        entry.ok_or_else(|| not_found(&name))
    }

    /// Gives a stored sandbox its task.
    fn adopt(self: &Arc<Self>, record: SandboxRecord) {
        let name: Arc<str> = Arc::from(record.name.as_str());
        let id = record.id;
        let (level, levels) = watch::channel(Level::default());
        let (task, mailbox, view) = task::Task::new(self.clone(), record, name.clone(), levels);
        let activity = task.activity().clone();
        let handle = SandboxHandle { id, name: name.clone(), mailbox, view, activity };
        let mut map = self.map_mut();
        map.by_name.insert(name, id);
        map.by_id.insert(id, Entry { handle, level });
        // Under the lock, so that the task finds itself in the map when it takes itself out.
        self.tasks.spawn(task.run());
    }

    /// The sandbox is gone from the store.
    fn remove(&self, id: SandboxId) {
        let mut map = self.map_mut();
        if let Some(entry) = map.by_id.remove(&id)
            // A new sandbox may have the name by now.
            && map.by_name.get(&entry.handle.name) == Some(&id)
        {
            map.by_name.remove(&entry.handle.name);
        }
    }

    fn map(&self) -> RwLockReadGuard<'_, Map> {
        // A panic while holding the lock leaves at most a name without its sandbox, which resolves to nothing.
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The longest time that can be agreed: a century of it would overflow nothing, and mean nothing.
const LONGEST: Duration = Duration::from_secs(3660 * 24 * 3600);
/// The shortest: a sandbox takes a second to come up.
const SHORTEST: Duration = Duration::from_secs(1);

/// A time that is to be agreed; zero is "without end".
fn agreed(field: &str, given: Option<prost_types::Duration>) -> Result<Option<Duration>, CallError> {
    let Some(given) = given else { return Ok(None) };
    let given =
        Duration::try_from(given).map_err(|_| CallError::invalid(field, "negative or out of range"))?;
    if !given.is_zero() && !(SHORTEST..=LONGEST).contains(&given) {
        return Err(CallError::invalid(
            field,
            format!("{given:?}: from 1 s to 3660 days are possible, and 0 for no end"),
        ));
    }
    Ok(Some(given))
}

/// What is agreed for idleness.
fn idle_stop(spec: &api::SandboxSpec) -> Option<Duration> {
    // What was taken once is in range; zero is "never".
    spec.idle_stop.and_then(|idle| Duration::try_from(idle).ok()).filter(|idle| !idle.is_zero())
}

/// Without images there is no command but the one that is given.
fn check_main(driver: &dyn ComputeDriver, main: &api::MainCommand) -> Result<(), CallError> {
    match main.args.first() {
        _ if driver.capabilities().entrypoints => Ok(()),
        Some(command) if !command.is_empty() => Ok(()),
        Some(_) => Err(CallError::invalid("main.args[0]", "empty: the command needs a name")),
        None => Err(CallError::new(
            Reason::UnsupportedByDriver,
            format!(
                "the {} driver does not support an image's own command as the main command (main): it has no images; \
                 name the command, --main -- COMMAND",
                driver.name()
            ),
        )
        .with(key::DRIVER, driver.name())
        .with(key::VERB, "main")),
    }
}

/// The driver cannot do it, and never will on this machine.
fn unsupported(driver: &dyn ComputeDriver, verb: Verb) -> CallError {
    CallError::new(
        Reason::UnsupportedByDriver,
        format!("the {} driver does not support {verb}", driver.name()),
    )
    .with(key::DRIVER, driver.name())
    .with(key::VERB, verb)
}
