//! One exec as everybody but its own task sees it: what it is, where it is, its output and input, and the ways to
//! ask something of it.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use holdfast_wire::{
    api::{ExecInfo, ExecSpec, ExecState, OnDisconnect, Outcome, StartFailed, outcome::Kind},
    ids::{ExecId, SandboxId},
    spec::{self, Times},
};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    spawn::ProcessMark,
    spool::{Record, Spool},
    stdin::Stdin,
};

/// Orders that wait for the exec's task. Each asker waits for its answer, so this is about askers at once.
const ORDERS: usize = 64;

/// Text from outside in an `ExecInfo`, in bytes: a report of all execs must fit a message.
const TEXT: usize = 256;

/// One exec.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) id: ExecId,
    /// Execs were accepted in this order.
    pub(super) serial: u64,
    pub(super) facts: Facts,
    pub(super) spool: Spool,
    pub(super) stdin: Stdin,
    phase: watch::Sender<Phase>,
    orders: mpsc::Sender<Order>,
    cancel: watch::Sender<Option<Cancel>>,
    changed_at: AtomicU64,
}

/// What never changes.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) sandbox: String,
    pub(super) digest: Bytes,
    pub(super) command: String,
    pub(super) tty: bool,
    pub(super) kill_on_disconnect: bool,
    pub(super) times: Times,
    pub(super) accepted_at: Option<prost_types::Timestamp>,
}

/// Where it is.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    Accepted,
    Running(Run),
    Ended(End),
}

impl Phase {
    /// The command runs, or it is known that it never will.
    pub(super) fn has_begun(&self) -> bool {
        !matches!(self, Self::Accepted)
    }
}

/// A command that runs, or ran.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) pid: u32,
    pub(super) started_at: prost_types::Timestamp,
}

/// How and when it ended.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// `None`: it never ran.
    pub(super) run: Option<Run>,
    pub(super) outcome: Outcome,
    pub(super) ended_at: prost_types::Timestamp,
    pub(super) left_processes: bool,
    /// When output and outcome may go.
    pub(super) expires: Instant,
}

/// Something that the exec's task is asked to do.
#[derive(Debug)]
pub(super) enum Order {
    Signal(i32, oneshot::Sender<io::Result<()>>),
    Resize { cols: u16, rows: u16, done: oneshot::Sender<io::Result<()>> },
}

/// An order to end it. Level, not edge: none can get lost.
#[derive(Clone, Debug)]
pub(super) struct Cancel {
    pub(super) by: String,
    /// Instead of the spec's kill_grace, if shorter.
    pub(super) grace: Option<Duration>,
}

/// The task's ends of an exec's channels.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) cancel: watch::Receiver<Option<Cancel>>,
}

/// It has ended: it takes no orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HasEnded;

impl Facts {
    pub(super) fn of(spec: &ExecSpec, times: Times, sandbox: SandboxId) -> Self {
        Self {
            sandbox: sandbox.to_string(),
            digest: spec::digest(spec),
            command: spec::display(spec),
            tty: spec.tty.is_some(),
            kill_on_disconnect: spec.on_disconnect == OnDisconnect::Kill as i32,
            times,
            accepted_at: Some(now()),
        }
    }
}

impl Exec {
    /// An exec that is accepted now.
    pub(super) fn new(id: ExecId, serial: u64, facts: Facts, spool: Spool, stdin: Stdin) -> (Self, Inbox) {
        let (orders, orders_inbox) = mpsc::channel(ORDERS);
        let (cancel, cancel_inbox) = watch::channel(None);
        let phase = watch::Sender::new(Phase::Accepted);
        let changed_at = AtomicU64::new(0);
        let exec = Self { id, serial, facts, spool, stdin, phase, orders, cancel, changed_at };
        (exec, Inbox { orders: orders_inbox, cancel: cancel_inbox })
    }

    /// One that an earlier process ran, and that has ended.
    pub(super) fn recovered(
        serial: u64,
        record: &Record,
        times: Times,
        spool: Spool,
        expires: Instant,
    ) -> Self {
        let info = &record.info;
        let facts = Facts {
            sandbox: info.sandbox_id.clone(),
            digest: info.spec_digest.clone(),
            command: info.command.clone(),
            tty: info.tty,
            kill_on_disconnect: false,
            times,
            accepted_at: info.accepted_at,
        };
        let run = info.started_at.map(|started_at| Run { pid: info.pid, started_at });
        let end = End {
            run,
            outcome: info.outcome.clone().unwrap_or_default(),
            ended_at: info.ended_at.unwrap_or_default(),
            left_processes: info.left_processes,
            expires,
        };
        let (exec, _) = Self::new(record.exec, serial, facts, spool, Stdin::new(false));
        exec.phase.send_replace(Phase::Ended(end));
        exec
    }

    /// As it is told to others.
    pub(super) fn info(&self) -> ExecInfo {
        self.info_in(&self.phase.borrow())
    }

    /// As it will be told in `phase`.
    pub(super) fn info_in(&self, phase: &Phase) -> ExecInfo {
        let [(stdout_kept_from, stdout_bytes), (stderr_kept_from, stderr_bytes)] = self.spool.sizes();
        let (state, run, end) = match phase {
            Phase::Accepted => (ExecState::Accepted, None, None),
            Phase::Running(run) => (ExecState::Running, Some(*run), None),
            Phase::Ended(end) => (ExecState::Ended, end.run, Some(end)),
        };
        ExecInfo {
            exec_id: self.id.to_string(),
            sandbox_id: self.facts.sandbox.clone(),
            state: state as i32,
            outcome: end.map(|end| end.outcome.clone()),
            command: self.facts.command.clone(),
            tty: self.facts.tty,
            pid: run.map_or(0, |run| run.pid),
            accepted_at: self.facts.accepted_at,
            started_at: run.map(|run| run.started_at),
            ended_at: end.map(|end| end.ended_at),
            stdout_bytes,
            stderr_bytes,
            stdout_kept_from,
            stderr_kept_from,
            readers: u32::try_from(self.spool.readers()).unwrap_or(u32::MAX),
            spec_digest: self.facts.digest.clone(),
            left_processes: end.is_some_and(|end| end.left_processes),
        }
    }

    /// What is kept of it on disk, in `phase`.
    pub(super) fn record(&self, phase: &Phase, process: Option<ProcessMark>) -> Record {
        let retain_for = self.facts.times.retain_for.as_millis();
        Record {
            exec: self.id,
            info: ExecInfo { readers: 0, ..self.info_in(phase) },
            retain_for_ms: u64::try_from(retain_for).unwrap_or(u64::MAX),
            process,
        }
    }

    /// Where it is, and every change of that.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// When it may go; `None`: it has not ended.
    pub(super) fn expires(&self) -> Option<Instant> {
        match &*self.phase.borrow() {
            Phase::Ended(end) => Some(end.expires),
            _ => None,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Ended(_))
    }

    /// When it ended, to compare with others; `None`: it has not.
    pub(super) fn ended_at(&self) -> Option<(i64, i32)> {
        match &*self.phase.borrow() {
            Phase::Ended(end) => Some((end.ended_at.seconds, end.ended_at.nanos)),
            _ => None,
        }
    }

    /// The next phase; the task alone says it. False: it had ended already, and stays so.
    pub(super) fn advance(&self, next: Phase) -> bool {
        self.phase.send_if_modified(|phase| {
            if matches!(phase, Phase::Ended(_)) {
                return false;
            }
            *phase = next;
            true
        })
    }

    /// The revision of its last change.
    pub(super) fn changed_at(&self) -> u64 {
        self.changed_at.load(Ordering::Acquire)
    }

    pub(super) fn set_changed_at(&self, revision: u64) {
        self.changed_at.store(revision, Ordering::Release);
    }

    /// Sends a signal to the command's group, once there is a command. The outer error: there is none any more.
    pub(super) async fn signal(&self, signal: i32) -> Result<io::Result<()>, HasEnded> {
        self.order(|done| Order::Signal(signal, done)).await
    }

    /// Changes the terminal's size, likewise.
    pub(super) async fn resize(&self, cols: u16, rows: u16) -> Result<io::Result<()>, HasEnded> {
        self.order(|done| Order::Resize { cols, rows, done }).await
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Order,
    ) -> Result<io::Result<()>, HasEnded> {
        // Bounded by the time that a start may take. The look ends with this statement.
        let begun = self.phase().wait_for(Phase::has_begun).await.is_ok();
        debug_assert!(begun, "the sender lives in here");
        let (done, answer) = oneshot::channel();
        self.orders.send(order(done)).await.map_err(|_| HasEnded)?;
        answer.await.map_err(|_| HasEnded)
    }

    /// Ends it: SIGTERM, grace, SIGKILL. Without effect if it has ended.
    pub(super) fn cancel(&self, by: &str, grace: Option<Duration>) {
        self.cancel.send_replace(Some(Cancel { by: cut(by), grace }));
    }
}

/// An outcome whose texts are short enough to be told.
pub(super) fn bounded(mut outcome: Outcome) -> Outcome {
    match &mut outcome.kind {
        Some(Kind::StartFailed(StartFailed { message, .. })) => *message = cut(message),
        Some(Kind::Lost(lost)) => lost.message = cut(&lost.message),
        _ => {}
    }
    outcome
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The wall clock's time, for showing.
pub(super) fn now() -> prost_types::Timestamp {
    let now = Timestamp::now();
    prost_types::Timestamp { seconds: now.as_second(), nanos: now.subsec_nanosecond() }
}
