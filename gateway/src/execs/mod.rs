//! Execs: from a caller's request to exactly one outcome.
//!
//! ```text
//!   caller ─ start/attach ─▶ admitted (store) ─▶ sent to one instance ─▶ started ─▶ ended: outcome (store, once)
//!                                 │                     │                   │
//!                                 │ deadline            │ session lost:     │ instance gone, workload gone,
//!                                 ▼                     ▼ again, there      ▼ sandbox deleted
//!                            start_failed          or START_UNKNOWN        lost
//! ```
//!
//! What enters: calls, reports of supervisors, facts about sandboxes. What leaves: events for callers, and one
//! outcome an exec in the store. The promise is kept by order: an exec is stored before any supervisor hears of
//! it; whom the start is sent to is stored before it is sent; the outcome is stored before it is told, and the
//! first stays. Between a caller and a relay stands one task ([`pump`]) with bounded queues; starting is a task
//! of its own ([`starting`]), so that a caller who hangs up leaves nothing half done. A sandbox's main command is an
//! exec like any other, whose caller is the gateway ([`main_command`]).

mod admission;
mod attach;
mod board;
mod calls;
mod convert;
mod main_command;
mod pump;
mod report;
mod starters;
mod starting;
mod state;
mod task;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_wire::{
    api::{self, ExecInfo, ExecState},
    ids::{ExecId, SandboxId},
    timing,
};
use jiff::Timestamp;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use self::board::Board;
use crate::{
    error::{CallError, Reason, key},
    events::{self, Events},
    sandboxes::{SandboxFact, SandboxHandle, Sandboxes},
    store::{ExecRecord, Finished, Store},
};

pub use self::attach::{AttachInput, AttachOutput, Attached};

/// How long `wait` waits if the caller does not say, and at most.
const WAIT: Duration = Duration::from_secs(60);
const WAIT_MAX: Duration = Duration::from_secs(600);

/// The longest deadline for starting: a caller that wants to wait longer asks again.
const START_DEADLINE_MAX: Duration = Duration::from_secs(600);

/// How long the store may take with an outcome that a caller waits for. It takes milliseconds; where it does not
/// answer, the caller gets the supervisor's word, which is the true one, and the next report fills the store.
const STORE_WITHIN: Duration = Duration::from_secs(1);

/// Who calls, as far as it matters to an exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallerInfo {
    /// The client's name, for `cancelled.by`.
    pub name: String,
    /// W3C trace context, passed on to the supervisor; may be empty.
    pub traceparent: String,
}

/// The execs of all sandboxes. Clones are the same.
#[derive(Clone, Debug)]
pub struct Execs {
    core: Arc<Core>,
}

#[derive(Debug)]
struct Core {
    store: Arc<dyn Store>,
    sandboxes: Sandboxes,
    events: Events,
    board: Board,
    /// Starts that are on their way.
    starting: Mutex<HashMap<ExecId, Starting>>,
    /// Execs of which somebody finds out what became of their start.
    settling: Mutex<HashSet<ExecId>>,
    /// Sandboxes whose main command somebody sees to.
    mains: Mutex<HashSet<SandboxId>>,
    tasks: TaskTracker,
    token: CancellationToken,
}

/// Starts of one exec that are on their way.
#[derive(Debug, Default)]
struct Starting {
    starters: usize,
    /// How many of them are being sent at this moment.
    opening: usize,
    /// Whether any of them, or anybody before, may have reached a supervisor.
    delivered: bool,
}

impl Execs {
    /// Takes up the execs that are in the store, and follows the facts about sandboxes until `token` is cancelled.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn open(
        store: Arc<dyn Store>,
        sandboxes: Sandboxes,
        events: Events,
        facts: mpsc::Receiver<SandboxFact>,
        token: CancellationToken,
    ) -> Result<Self, CallError> {
        let core = Arc::new(Core {
            store,
            sandboxes,
            events,
            board: Board::default(),
            starting: Mutex::default(),
            settling: Mutex::default(),
            mains: Mutex::default(),
            tasks: TaskTracker::new(),
            token,
        });
        core.take_up_unstarted().await?;
        core.sandboxes.views().iter().for_each(|view| core.see_to_main(view.id()));
        core.tasks.spawn(task::run(Arc::clone(&core), facts));
        Ok(Self { core })
    }

    /// Waits until an exec has ended, at most `at_most` (60 s if `None`, never more than 10 min); then says how it
    /// is. Idempotent.
    pub async fn wait(
        &self,
        sandbox: &str,
        exec: ExecId,
        at_most: Option<Duration>,
    ) -> Result<ExecInfo, CallError> {
        let until = Instant::now() + at_most.unwrap_or(WAIT).min(WAIT_MAX);
        let mut news = self.core.board.subscribe(exec);
        let (_, mut record) = self.core.find_until(sandbox, exec, until).await?;
        while record.finished.is_none() {
            tokio::select! {
                () = news.changed() => {}
                () = tokio::time::sleep_until(until) => {
                    record = self.core.store.exec(exec).await?.unwrap_or(record);
                    break;
                }
                () = self.core.token.cancelled() => return Err(stopping()),
            }
            // A forgotten exec keeps its last record: it cannot be forgotten before it has ended.
            record = self.core.store.exec(exec).await?.unwrap_or(record);
        }
        Ok(record.to_info())
    }

    /// Ends the tasks: attached callers are told by the end of their sessions, so end those first. Commands run
    /// on.
    pub async fn shutdown(&self) {
        self.core.token.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }
}

impl Core {
    /// Takes up what an earlier gateway accepted and nobody has seen started. Its caller has been told that the
    /// gateway is gone, and may repeat the start until its deadline: this keeps the exec for so long.
    async fn take_up_unstarted(self: &Arc<Self>) -> Result<(), CallError> {
        for view in self.sandboxes.views() {
            for record in self.store.unfinished(view.id()).await? {
                if record.state() == ExecState::Accepted {
                    let starter = self.enter_start(record.exec);
                    starter.admitted(record.sent.is_some());
                    self.tasks.spawn(Arc::clone(self).keep_until_deadline(record, starter));
                }
            }
        }
        Ok(())
    }

    /// Holds an exec's place among those that are being started until its deadline, then sees to its end.
    async fn keep_until_deadline(self: Arc<Self>, record: ExecRecord, starter: starters::Starter) {
        let left = record.start_deadline_at.duration_since(Timestamp::now());
        tokio::select! {
            () = tokio::time::sleep(left.try_into().unwrap_or_default()) => {}
            () = self.token.cancelled() => return,
        }
        drop(starter);
        if self.start_of(record.exec) != state::Start::None {
            // Its caller has come back, and that start sees to it.
            return;
        }
        match self.store.exec(record.exec).await {
            Ok(Some(now)) if now.state() == ExecState::Accepted => {
                match (now.sent, self.sandboxes.by_id(now.sandbox)) {
                    (Some(_), Some(handle)) => self.settle_later(now.exec, handle, false),
                    _ => {
                        let why = "the gateway was restarted before it was sent, and nobody repeated the start in time";
                        self.never_started(now.exec, why).await;
                    }
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(exec = %record.exec, %error, "looking at an exec that was not started")
            }
        }
    }

    /// The record of `exec` in `sandbox` (name or id), and the sandbox if it is still there: an exec is
    /// remembered longer than its sandbox.
    async fn find(
        &self,
        sandbox: &str,
        exec: ExecId,
    ) -> Result<(Option<SandboxHandle>, ExecRecord), CallError> {
        self.find_until(sandbox, exec, Instant::now() + timing::START_DEADLINE).await
    }

    /// The same. A main command that is about to be started is waited for, until `until`, as any call waits for a
    /// session: nobody who asks for it can know that it has not begun.
    async fn find_until(
        &self,
        sandbox: &str,
        exec: ExecId,
        until: Instant,
    ) -> Result<(Option<SandboxHandle>, ExecRecord), CallError> {
        let handle = self.sandboxes.resolve(sandbox);
        let id = match &handle {
            Ok(handle) => Some(handle.id()),
            Err(_) => sandbox.parse::<SandboxId>().ok(),
        };
        let mut record = self.store.exec(exec).await?;
        if let Ok(handle) = &handle
            && handle.now().main_exec() == Some(exec)
            && record.as_ref().is_none_or(|record| record.state() == ExecState::Accepted)
        {
            handle.wait_for_main(until).await;
            record = self.store.exec(exec).await?;
        }
        let record = record.filter(|record| Some(record.sandbox) == id);
        match (record, handle) {
            (Some(record), handle) => Ok((handle.ok(), record)),
            (None, Ok(_)) => Err(not_found(sandbox, exec)),
            (None, Err(error)) => Err(error),
        }
    }

    /// Ends an exec. Says what is stored then: the first outcome, whoever wrote it. In a task of its own: whoever asks
    /// for it and leaves, an outcome that is stored is told to those who wait for it.
    async fn finish(self: &Arc<Self>, exec: ExecId, finished: &Finished) -> Result<ExecRecord, CallError> {
        let (core, finished) = (Arc::clone(self), finished.clone());
        let work = async move { core.finish_here(exec, &finished).await };
        let done = self.tasks.spawn(work.in_current_span()).await;
        done.map_err(|error| CallError::internal("ending an exec", &error))?
    }

    async fn finish_here(&self, exec: ExecId, finished: &Finished) -> Result<ExecRecord, CallError> {
        let first = self.store.finish(exec, finished).await?;
        let record =
            self.store.exec(exec).await?.ok_or_else(|| CallError::new(Reason::ExecNotFound, "forgotten"))?;
        if first {
            if let Some(handle) = self.sandboxes.by_id(record.sandbox) {
                // Nobody need have been attached.
                handle.activity().touch();
            }
            let outcome = state::label(&finished.outcome);
            metrics::counter!("holdfast_execs_finished_total", "outcome" => outcome).increment(1);
            self.tell(&record, events::reason::EXEC_ENDED, &format!(" ({outcome})"));
        }
        self.board.announce(exec);
        Ok(record)
    }

    /// Notes that an exec runs. False: it has ended already.
    async fn started(
        self: &Arc<Self>,
        exec: ExecId,
        pid: u32,
        at: Timestamp,
    ) -> Result<ExecRecord, CallError> {
        let core = Arc::clone(self);
        let work = async move { core.started_here(exec, pid, at).await };
        let done = self.tasks.spawn(work.in_current_span()).await;
        done.map_err(|error| CallError::internal("noting a start", &error))?
    }

    async fn started_here(&self, exec: ExecId, pid: u32, at: Timestamp) -> Result<ExecRecord, CallError> {
        let first = self.store.started(exec, pid, at).await?;
        let record =
            self.store.exec(exec).await?.ok_or_else(|| CallError::new(Reason::ExecNotFound, "forgotten"))?;
        if first {
            self.tell(&record, events::reason::EXEC_STARTED, "");
            self.board.announce(exec);
        }
        Ok(record)
    }

    /// An event for people: a command and what became of it. Deleted sandboxes have their last word said already.
    fn tell(&self, record: &ExecRecord, reason: &'static str, what: &str) {
        if let Some(handle) = self.sandboxes.by_id(record.sandbox) {
            let message = format!("{} {}{what}", record.exec, record.command);
            self.events.record(record.sandbox, handle.name(), reason, message, api::Phase::Unspecified);
        }
    }

    fn starting(&self) -> MutexGuard<'_, HashMap<ExecId, Starting>> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller's deadline for starting, as an instant.
fn start_until(deadline: Option<Duration>) -> Instant {
    Instant::now() + deadline.unwrap_or(timing::START_DEADLINE).min(START_DEADLINE_MAX)
}

/// What a caller sees: the store's facts first, and of the supervisor's what only it knows.
fn merge(record: &ExecRecord, live: ExecInfo) -> ExecInfo {
    let stored = record.to_info();
    let ended = record.finished.is_some();
    let later = |stored: Option<prost_types::Timestamp>, live| stored.or(live);
    ExecInfo {
        state: if ended { ExecState::Ended.into() } else { live.state },
        outcome: if ended { stored.outcome } else { live.outcome },
        pid: if live.pid == 0 { stored.pid } else { live.pid },
        started_at: later(stored.started_at, live.started_at),
        ended_at: later(stored.ended_at, live.ended_at),
        stdout_bytes: stored.stdout_bytes.max(live.stdout_bytes),
        stderr_bytes: stored.stderr_bytes.max(live.stderr_bytes),
        left_processes: stored.left_processes || live.left_processes,
        exec_id: stored.exec_id,
        sandbox_id: stored.sandbox_id,
        command: stored.command,
        tty: stored.tty,
        accepted_at: stored.accepted_at,
        spec_digest: stored.spec_digest,
        stdout_kept_from: live.stdout_kept_from,
        stderr_kept_from: live.stderr_kept_from,
        readers: live.readers,
    }
}

fn not_found(sandbox: &str, exec: ExecId) -> CallError {
    CallError::new(Reason::ExecNotFound, format!("there is no exec {exec} in the sandbox {sandbox}"))
        .with(key::EXEC_ID, exec)
}

fn stopping() -> CallError {
    CallError::new(Reason::GatewayStopping, "the gateway is stopping: ask again, it or its successor answers")
}

/// An event's oneof, wrapped.
fn event(kind: api::attach_event::Kind) -> api::AttachEvent {
    api::AttachEvent { kind: Some(kind) }
}
