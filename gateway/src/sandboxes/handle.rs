//! A handle to one sandbox: what sessions report to, and what calls wait on.

use std::sync::Arc;

use holdfast_wire::{
    api::{ConditionStatus, Phase},
    control::{Health, RefuseCode},
    ids::{Epoch, Generation, SandboxId},
    timing::Tuning,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Duration, Instant, timeout_at},
};

use super::{
    activity::Activity,
    state::Status,
    view::{ConditionKind, View},
    wait::{Until, Waited},
};
use crate::{
    error::{CallError, Reason, key},
    sessions::{Hello, Lost, Session},
};

/// Messages that wait for a sandbox's task. A session sends one every ten seconds and callers a few; a task that
/// is this far behind waits for the store, and its senders wait with it.
pub(super) const MAILBOX: usize = 64;

/// What a sandbox's task is told.
#[derive(Debug)]
pub(super) enum Message {
    Hello {
        hello: Box<Hello>,
        answer: oneshot::Sender<Result<Admission, Refusal>>,
    },
    Attached {
        epoch: Epoch,
        session: Session,
    },
    Lost {
        epoch: Epoch,
        lost: Lost,
    },
    Health {
        epoch: Epoch,
        health: Box<Health>,
    },
    /// The supervisor says that it was away: what it proved before is worth nothing.
    Resumed {
        epoch: Epoch,
        away: Duration,
    },
    /// What became of a workload's main command.
    Main {
        generation: Generation,
        status: Status,
    },
    Ask {
        ask: Ask,
        answer: oneshot::Sender<Result<Arc<View>, CallError>>,
    },
}

/// What a caller wants of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Start,
    Stop {
        grace: Duration,
    },
    Pause,
    Resume,
    Delete {
        grace: Duration,
    },
    /// How long it may live, and be idle, from now on. Absent is unchanged, zero is without end.
    Update {
        ttl: Option<Duration>,
        idle_stop: Option<Duration>,
    },
    /// Nothing happened in it for as long as was agreed. Said by its own task alone.
    IdleStop {
        idle: Duration,
    },
    /// Its time to live is over. Likewise.
    Expire,
}

/// A supervisor is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Its session's, stored already.
    pub epoch: Epoch,
    /// What `Welcome` tells it.
    pub tuning: Tuning,
}

/// A supervisor is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// For the supervisor's program.
    pub code: RefuseCode,
    /// For people.
    pub reason: String,
    /// When it may try again; `None`: never.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub(super) fn never(code: RefuseCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), retry_after: None }
    }

    pub(super) fn later(code: RefuseCode, reason: impl Into<String>, after: Duration) -> Self {
        Self { code, reason: reason.into(), retry_after: Some(after) }
    }
}

/// A handle to a sandbox. Clones are the same sandbox; holding one keeps nothing alive.
#[derive(Clone, Debug)]
pub struct SandboxHandle {
    pub(super) id: SandboxId,
    pub(super) name: Arc<str>,
    pub(super) mailbox: mpsc::Sender<Message>,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) activity: Activity,
}

impl SandboxHandle {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> SandboxId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where it is noted that somebody uses it.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// What it is now, and a way to be woken when that changes. The sender is gone once the sandbox is.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// What it is now.
    #[must_use]
    pub fn now(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// A supervisor wants in: its epoch, counted up and stored, or why not.
    ///
    /// # Errors
    /// [`Refusal`], to be told to the supervisor.
    pub async fn hello(&self, hello: Hello) -> Result<Admission, Refusal> {
        let (answer, answered) = oneshot::channel();
        let gone = || {
            if self.now().gone {
                Refusal::never(RefuseCode::UnknownSandbox, "the sandbox has been deleted")
            } else {
                Refusal::later(RefuseCode::Busy, "the gateway is stopping", Duration::from_secs(1))
            }
        };
        let hello = Box::new(hello);
        self.mailbox.send(Message::Hello { hello, answer }).await.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// The session with this epoch is there. The newest epoch stays: an older session is closed as superseded,
    /// this one too if a newer one is attached already.
    pub async fn attached(&self, epoch: Epoch, session: Session) {
        self.tell(Message::Attached { epoch, session }).await;
    }

    /// The session with this epoch has ended. Nothing happens when a newer one is attached.
    pub async fn session_lost(&self, epoch: Epoch, lost: Lost) {
        self.tell(Message::Lost { epoch, lost }).await;
    }

    /// What the supervisor found by trying. Nothing happens when a newer session is attached.
    pub async fn health(&self, epoch: Epoch, health: Health) {
        self.tell(Message::Health { epoch, health: Box::new(health) }).await;
    }

    /// The supervisor was away (suspended, paused): what it proved before is forgotten until it proves it again.
    pub async fn resumed(&self, epoch: Epoch, away: Duration) {
        self.tell(Message::Resumed { epoch, away }).await;
    }

    /// What became of the main command of this generation: for its condition.
    pub(crate) async fn main_command(&self, generation: Generation, status: Status) {
        self.tell(Message::Main { generation, status }).await;
    }

    /// Waits until it is known of the main command that it runs, or how it ended, at the latest until `until`; less
    /// long where that is pointless.
    pub(crate) async fn wait_for_main(&self, until: Instant) {
        let mut view = self.view();
        let over = view.wait_for(|now| {
            let main = now.condition(ConditionKind::MainCommand);
            main.is_none_or(|main| main.status != ConditionStatus::Unknown) || is_pointless(now.phase)
        });
        // Whoever asks looks for it then, and says what is.
        let _ = timeout_at(until, over).await;
    }

    /// The session to use, as soon as there is one, at the latest at `until`.
    ///
    /// # Errors
    /// `WRONG_PHASE` at once where waiting is pointless (stopped, paused, failed, being deleted), `NO_SESSION`
    /// when the time is up, `GATEWAY_STOPPING`: each with phase, conditions and the link's last events.
    pub async fn wait_for_session(&self, until: Instant) -> Result<Session, CallError> {
        self.wait_for(until, false).await
    }

    /// The same for who has something in the sandbox already: while it is paused, its resume is waited for too.
    ///
    /// # Errors
    /// As for [`wait_for_session`](Self::wait_for_session), but for a paused sandbox `NO_SESSION` in the end.
    pub async fn wait_for_resume_and_session(&self, until: Instant) -> Result<Session, CallError> {
        self.wait_for(until, true).await
    }

    async fn wait_for(&self, until: Instant, through_pause: bool) -> Result<Session, CallError> {
        const ATTEMPTED: &str = "waiting for a session";
        let mut view = self.view();
        loop {
            let now = view.borrow_and_update().clone();
            let frozen = matches!(now.phase, Phase::Pausing | Phase::Paused);
            if is_pointless(now.phase) && !(frozen && through_pause) {
                return Err(now.refusal(Reason::WrongPhase, ATTEMPTED));
            }
            if let Some(session) = now.live_session().filter(|_| !frozen) {
                return Ok(session.clone());
            }
            match timeout_at(until, view.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(stopping()),
                Err(_) => {
                    let now = self.now();
                    let error = now.refusal(Reason::NoSession, "no session in time");
                    let cause = now.link_events.last().map(|event| event.what.clone());
                    return Err(match cause {
                        Some(cause) => error.with(key::CAUSE, cause),
                        None => error,
                    });
                }
            }
        }
    }

    /// Waits until `until` holds; `None` once the sandbox is gone and that was waited for.
    pub(super) async fn wait_until(
        &self,
        until: Until,
        deadline: Instant,
    ) -> Result<Option<Arc<View>>, CallError> {
        let mut view = self.view();
        loop {
            let now = view.borrow_and_update().clone();
            match until.holds(&now) {
                Waited::Yes => return Ok((!now.gone).then_some(now)),
                Waited::Never => {
                    return Err(now.refusal(Reason::WrongPhase, &format!("waiting until {until}")));
                }
                Waited::NotYet => {}
            }
            match timeout_at(deadline, view.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(stopping()),
                Err(_) => {
                    return Err(self.now().refusal(Reason::WaitTimeout, &format!("waiting until {until}")));
                }
            }
        }
    }

    /// Asks the task, and waits until what was asked is stored.
    pub(super) async fn ask(&self, ask: Ask) -> Result<Arc<View>, CallError> {
        let (answer, answered) = oneshot::channel();
        self.mailbox.send(Message::Ask { ask, answer }).await.map_err(|_| self.ended())?;
        answered.await.unwrap_or_else(|_| Err(self.ended()))
    }

    async fn tell(&self, message: Message) {
        // A task that has ended has nobody to tell: the sandbox is gone, or the gateway stops.
        let _ = self.mailbox.send(message).await;
    }

    /// Why the task does not answer.
    fn ended(&self) -> CallError {
        let now = self.now();
        if now.gone { not_found(now.name()) } else { stopping() }
    }
}

/// From these no session comes by itself: somebody must want it.
fn is_pointless(phase: Phase) -> bool {
    match phase {
        Phase::Pausing
        | Phase::Paused
        | Phase::Stopping
        | Phase::Stopped
        | Phase::Failed
        | Phase::Deleting => true,
        Phase::Unspecified
        | Phase::Pending
        | Phase::Provisioning
        | Phase::Ready
        | Phase::Reconnecting
        | Phase::Resuming
        | Phase::Degraded => false,
    }
}

fn stopping() -> CallError {
    CallError::new(Reason::GatewayStopping, "the gateway is stopping: try again")
}

/// There is no such sandbox.
pub(super) fn not_found(name_or_id: &str) -> CallError {
    let shown: String = name_or_id.chars().take(64).collect();
    CallError::new(Reason::SandboxNotFound, format!("there is no sandbox {shown:?}"))
}
