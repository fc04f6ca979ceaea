//! From an exec's record to a relay that carries it.
//!
//! ```text
//!   connect ─┬ ended ───────────▶ the supervisor's spool if it is there, else the store
//!            ├ running ─────────▶ a relay to its own instance
//!            └ accepted ─┬ with the spec: a task starts it, whatever becomes of the caller
//!                        └ without: wait for whoever starts it
//!
//!   one try:  session ─▶ whom it is sent to is stored ─▶ relay ─▶ first frame
//!                ▲                                         │
//!                └── session lost: again, to the same instance, until the deadline
//! ```
//!
//! The start goes to one instance only. The supervisor keeps execs by id, so the same instance may be told twice;
//! another instance cannot know whether its predecessor ran the command. What cannot be known by the deadline is
//! said so (START_UNKNOWN), and settled afterwards by asking.

use std::sync::Arc;

use holdfast_wire::{
    api::{ExecInfo, ExecSpec, ExecState, OnDisconnect, Phase, StartFailure, outcome::Kind},
    control::{ExecRelay, RefusedCode, relay_header},
    frame::Frame,
    ids::{ExecId, Generation},
    transport::StreamError,
};
use jiff::Timestamp;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Core, Execs, start_until,
    starters::{Opening, Starter},
    state,
};
use crate::{
    error::{CallError, Reason, key},
    relays::{self, Relay, RelayError},
    sandboxes::SandboxHandle,
    sessions::Session,
    store::{ExecRecord, Finished, Sent},
};

/// What is to be connected.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) exec: ExecId,
    pub(super) handle: SandboxHandle,
    /// What to run, if it does not run yet.
    pub(super) start: Option<ExecSpec>,
    /// The relay's header; `start` is filled in here.
    pub(super) relay: ExecRelay,
    pub(super) traceparent: String,
    pub(super) until: Instant,
    /// Who attaches to a paused sandbox waits for its resume.
    pub(super) through_pause: bool,
    /// It is the main command of this workload: it is started in no other, and waits for a resume.
    pub(super) main: Option<Generation>,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Connected {
    /// An open relay and its first frame.
    Relay { relay: Box<Relay>, first: Box<Frame> },
    /// The exec has ended, and its output is not to be had.
    Over(Box<ExecRecord>),
}

fn over(record: ExecRecord) -> Connected {
    Connected::Over(Box::new(record))
}

/// How one try ended.
enum Tried {
    Connected(Connected),
    /// Look at everything anew, once something has changed.
    Again,
    /// No answer, in the time that an answer has: the same session may do better now, and a repeat is the same exec.
    Unanswered,
    Failed(CallError),
}

impl Execs {
    /// Starts a command and returns once it runs, or could not be started. Idempotent.
    ///
    /// # Errors
    /// `EXEC_ID_CONFLICT`; `NO_SESSION` and the like where it was not started; `START_UNKNOWN` where the supervisor
    /// may have it and did not answer in time.
    pub async fn start(
        &self,
        sandbox: &str,
        exec: ExecId,
        spec: ExecSpec,
        start_deadline: Option<std::time::Duration>,
        caller: &super::CallerInfo,
    ) -> Result<ExecInfo, CallError> {
        let handle = self.core.sandboxes.resolve(sandbox)?;
        let until = start_until(start_deadline);
        self.core.start(handle, exec, spec, until, caller.traceparent.clone(), None).await
    }
}

impl Core {
    /// Starts an exec, and returns once it runs, or could not be started. `main`: of which workload it is the main
    /// command.
    pub(super) async fn start(
        self: &Arc<Self>,
        handle: SandboxHandle,
        exec: ExecId,
        spec: ExecSpec,
        until: Instant,
        traceparent: String,
        main: Option<Generation>,
    ) -> Result<ExecInfo, CallError> {
        let (record, starter) = self.admit(&handle, exec, &spec, until, main).await?;
        if record.state() != ExecState::Accepted {
            return Ok(record.to_info());
        }
        let name = handle.name().clone();
        let relay = ExecRelay { exec_id: exec.to_bytes(), attach: false, ..ExecRelay::default() };
        let job =
            Job { exec, handle, start: Some(spec), relay, traceparent, until, through_pause: false, main };
        match self.connect(job, record, Some(starter)).await? {
            Connected::Over(record) => Ok(record.to_info()),
            Connected::Relay { mut relay, first } => {
                // Told, and over: the supervisor ends its side by itself.
                let _ = relay.send.finish();
                relay.guard.ended("done");
                let live = match *first {
                    Frame::Started(started) => started.exec,
                    Frame::Ended(ended) => ended.exec,
                    _ => None,
                };
                let record = self.store.exec(exec).await?.ok_or_else(|| super::not_found(&name, exec))?;
                Ok(super::merge(&record, live.unwrap_or_default()))
            }
        }
    }

    /// Gets a relay for the exec, starting it if it has to be. Returns by the job's deadline. Dropped by a caller
    /// that is gone, a start goes on by itself, unless the exec is to end with its caller.
    pub(super) async fn connect(
        self: &Arc<Self>,
        job: Job,
        record: ExecRecord,
        starter: Option<Starter>,
    ) -> Result<Connected, CallError> {
        let Some(starter) = starter.filter(|_| record.state() == ExecState::Accepted) else {
            return self.attach_to(&job).await;
        };
        let (exec, sandbox) = (job.exec, job.handle.id());
        let kill = record.on_disconnect == OnDisconnect::Kill && job.relay.attach;
        let gone = CancellationToken::new();
        let (answer, answered) = oneshot::channel();
        let (core, caller_gone) = (Arc::clone(self), gone.clone());
        let work = async move {
            let connected = core.start_it(&job, kill.then_some(&caller_gone)).await;
            // However it failed: what an earlier try may have delivered is no less there for it.
            let unknown = connected
                .as_ref()
                .is_err_and(|error| error.reason == Reason::StartUnknown || core.may_be_delivered(job.exec));
            drop(starter);
            if unknown {
                core.settle_later(job.exec, job.handle.clone(), kill && caller_gone.is_cancelled());
            }
            // A caller that is gone does not take the relay: dropped, it says CALLER_GONE to the supervisor.
            let _ = answer.send(connected);
        };
        self.tasks.spawn(work.instrument(tracing::info_span!("start", %sandbox, %exec)));
        let _gone = gone.drop_guard();
        answered.await.unwrap_or_else(|_| {
            // The task panicked. What it did last is unknown, and the next report says.
            Err(start_unknown(exec, "starting it failed inside the gateway"))
        })
    }

    /// Starts an exec that is accepted.
    async fn start_it(
        self: &Arc<Self>,
        job: &Job,
        caller_gone: Option<&CancellationToken>,
    ) -> Result<Connected, CallError> {
        let tries = self.repeat(job);
        let gone = async {
            match caller_gone {
                Some(gone) => gone.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            connected = tries => connected,
            () = gone => {
                // Somebody else may be starting the same exec: then it is theirs as well.
                if !self.may_be_delivered(job.exec) && self.starters_of(job.exec) == 1 {
                    let by = holdfast_wire::api::Cancelled { by: "disconnect".to_owned() };
                    let end = state::ended(Kind::Cancelled(by), Timestamp::now());
                    return self.finish(job.exec, &end).await.map(over);
                }
                // It may run: whoever settles it finds a relay without a caller, or none.
                Err(start_unknown(job.exec, "the caller went away while it was being started"))
            }
            () = self.token.cancelled() => {
                if self.may_be_delivered(job.exec) {
                    return Err(start_unknown(job.exec, "the gateway is stopping"));
                }
                // Accepted it stays: the caller may repeat the start at the next gateway until its deadline.
                Err(super::stopping())
            }
        }
    }

    /// Attaches to an exec that somebody has started, starts, or that has ended.
    async fn attach_to(self: &Arc<Self>, job: &Job) -> Result<Connected, CallError> {
        tokio::select! {
            biased;
            connected = self.repeat(job) => connected,
            () = self.token.cancelled() => Err(super::stopping()),
        }
    }

    /// Tries until it is connected, over, or too late. Every turn waits for news: of the exec, or of the sandbox.
    async fn repeat(self: &Arc<Self>, job: &Job) -> Result<Connected, CallError> {
        let mut last: Option<Session> = None;
        let mut news = self.board.subscribe(job.exec);
        loop {
            let Some(record) = self.store.exec(job.exec).await? else {
                return Err(super::not_found(job.handle.name(), job.exec));
            };
            if record.finished.is_some() && !output_may_be_kept(&record) {
                return Ok(over(record));
            }
            let starts = record.state() == ExecState::Accepted && job.start.is_some();
            // The sandbox's view first, so that no change after the look at the session is missed.
            let mut view = job.handle.view();
            view.mark_unchanged();
            // A command that runs on after the resume is worth waiting for; one that is to be started is told now.
            let waits_for_resume = job.main.is_some() || job.through_pause && !starts;
            let session = async {
                if waits_for_resume && record.finished.is_none() {
                    job.handle.wait_for_resume_and_session(job.until).await
                } else {
                    job.handle.wait_for_session(job.until).await
                }
            };
            let session = tokio::select! {
                biased;
                session = session => session,
                // It may have been cancelled, or have ended, while there was no session.
                () = news.changed() => continue,
            };
            let session = match session {
                Ok(session) => session,
                Err(error) => return self.no_session(job, record, starts, error).await,
            };
            let same = last.as_ref().is_some_and(|last| last.id() == session.id());
            let wrong = record.finished.is_none()
                && (record.sent.is_some_and(|sent| sent.instance != session.instance())
                    || job.main.is_some_and(|generation| generation != session.generation()));
            let waits = record.state() == ExecState::Accepted && job.start.is_none();
            if session.lost().is_some() || same || wrong || waits {
                if wrong && starts && !self.may_be_delivered(job.exec) {
                    // It never left for the instance that it was meant for.
                    let end = state::never_started(
                        "its supervisor was replaced before it was sent",
                        Timestamp::now(),
                    );
                    return self.finish(job.exec, &end).await.map(over);
                }
                tokio::select! {
                    _ = view.changed() => {}
                    () = news.changed() => {}
                    _ = session.closed(), if session.lost().is_none() => {}
                    () = tokio::time::sleep_until(job.until) => {
                        return self.too_late(job, starts, "no answer came in time").await;
                    }
                }
                last = None;
                continue;
            }
            if starts {
                tokio::select! {
                    biased;
                    reported = session.reported() => if reported.is_err() { continue },
                    () = news.changed() => continue,
                    () = tokio::time::sleep_until(job.until) => {
                        return self.too_late(job, starts, "the supervisor did not say which execs it has").await;
                    }
                }
            }
            match self.once(job, &record, &session, starts).await? {
                Tried::Connected(connected) => return Ok(connected),
                Tried::Failed(error) => return Err(error),
                Tried::Again | Tried::Unanswered if Instant::now() >= job.until => {
                    return self.too_late(job, starts, "no answer came in time").await;
                }
                Tried::Again => last = Some(session),
                Tried::Unanswered => {}
            }
        }
    }

    /// One try on one session.
    async fn once(
        self: &Arc<Self>,
        job: &Job,
        record: &ExecRecord,
        session: &Session,
        starts: bool,
    ) -> Result<Tried, CallError> {
        let mut header = job.relay.clone();
        if starts {
            let sent = Sent {
                instance: session.instance(),
                generation: session.generation(),
                epoch: session.epoch(),
            };
            // Another's, or ended by somebody while this waited.
            if self.store.sent(job.exec, sent).await?.is_none_or(|sent| sent.instance != session.instance()) {
                return Ok(Tried::Again);
            }
            header.start.clone_from(&job.start);
        }
        let before = self.may_be_delivered(job.exec);
        // From here on it may be delivered, until the opposite is known.
        let opening = starts.then(|| Opening::begin(self, job.exec));
        let kind = relay_header::Kind::Exec(header);
        let opened = relays::open(session, kind, &job.traceparent, job.until).await;
        if let Some(opening) = opening {
            // A refusal is an answer: what is refused does not run.
            let refused = matches!(&opened, Err(RelayError::Refused { .. }));
            opening.resolve(!refused && opened.as_ref().map_or_else(RelayError::delivered, |_| true));
        }
        let mut relay = match opened {
            Ok(relay) => relay,
            Err(error) => return self.refused(job, record, starts, before, error).await,
        };
        let frame = tokio::select! {
            biased;
            frame = relay.recv.frame() => frame,
            _ = session.closed() => return Ok(Tried::Again),
            () = tokio::time::sleep_until(job.until) => return Ok(Tried::Again),
        };
        match frame {
            Ok(Some(first @ (Frame::Started(_) | Frame::Ended(_)))) => self.first(job, relay, first).await,
            Ok(Some(_)) => {
                self.broken(&mut relay, "its first frame is neither `started` nor `ended`");
                Ok(Tried::Failed(self.unanswered(job, starts, "the supervisor broke the protocol")))
            }
            Ok(None) => {
                self.broken(&mut relay, "it ended before its first frame");
                Ok(Tried::Failed(self.unanswered(job, starts, "the supervisor broke the protocol")))
            }
            Err(StreamError::Lost(_)) => Ok(Tried::Again),
            Err(error) => {
                self.broken(&mut relay, &error.to_string());
                Ok(Tried::Failed(self.unanswered(job, starts, &error.to_string())))
            }
        }
    }

    /// The supervisor has it.
    async fn first(self: &Arc<Self>, job: &Job, relay: Relay, first: Frame) -> Result<Tried, CallError> {
        let now = Timestamp::now();
        match &first {
            Frame::Started(started) => {
                let (pid, at) = match &started.exec {
                    Some(info) => (info.pid, state::time(info.started_at.as_ref()).unwrap_or(now)),
                    None => (0, now),
                };
                let record = self.started(job.exec, pid, at).await?;
                let runs = started.exec.as_ref().is_some_and(|info| info.state() == ExecState::Running);
                // A report may overtake this frame: a command that has ended meanwhile has its output on this
                // relay. Only an end that no command had means that this one must not be.
                if record.finished.is_some() && runs && !ended_by_itself(&record) {
                    // Cancelled while it was on its way: what is stored stays, so it must not run on.
                    self.stop_it(relay.session.clone(), job.exec);
                    return Ok(Tried::Connected(over(record)));
                }
                // Started and ended before it could be told; an attached caller's relay brings the end itself.
                if !job.relay.attach
                    && let Some(info) = &started.exec
                {
                    self.learn(&record, info).await?;
                }
            }
            Frame::Ended(ended) if !job.relay.attach => {
                let mut info = ended.exec.clone().unwrap_or_default();
                info.outcome.clone_from(&ended.outcome);
                let Some(finished) = state::finished(&info, now) else {
                    return Ok(Tried::Failed(self.unanswered(job, true, "an end without an outcome")));
                };
                self.finish(job.exec, &finished).await?;
            }
            // An attached caller's relay stores and tells it.
            _ => {}
        }
        Ok(Tried::Connected(Connected::Relay { relay: Box::new(relay), first: Box::new(first) }))
    }

    /// No relay came about.
    async fn refused(
        self: &Arc<Self>,
        job: &Job,
        record: &ExecRecord,
        starts: bool,
        delivered_before: bool,
        error: RelayError,
    ) -> Result<Tried, CallError> {
        let RelayError::Refused { code, message } = &error else {
            return Ok(match error {
                RelayError::Lost { .. } => Tried::Again,
                RelayError::AcceptDeadline(_) | RelayError::OpenDeadline(_) => Tried::Unanswered,
                RelayError::TooMany | RelayError::TooLarge(_) if starts && !delivered_before => {
                    self.end_as(job.exec, StartFailure::Resources, &error.to_string()).await;
                    Tried::Failed(limit(job.exec, &error.to_string()))
                }
                RelayError::TooMany => Tried::Failed(limit(job.exec, &error.to_string())),
                other => Tried::Failed(self.unanswered(job, starts, &other.to_string())),
            });
        };
        if *code == RefusedCode::Stopping {
            return Ok(Tried::Again);
        }
        if record.finished.is_some() {
            return Ok(match code {
                // Its spool has forgotten it; the store has not.
                RefusedCode::NotFound => Tried::Connected(over(record.clone())),
                _ => Tried::Failed(refusal(job.exec, *code, message)),
            });
        }
        if starts && !delivered_before {
            // It said no to the only start that it got: the command never ran.
            let failure = match code {
                RefusedCode::Invalid | RefusedCode::Conflict => StartFailure::Invalid,
                RefusedCode::Exhausted => StartFailure::Resources,
                _ => StartFailure::Unspecified,
            };
            self.end_as(job.exec, failure, message).await;
        }
        if !starts && *code == RefusedCode::NotFound && record.started_at.is_some() {
            // Its own instance, which has said that it runs, does not know it any more.
            let message = "the supervisor no longer keeps the exec";
            let end = state::lost(holdfast_wire::api::LostReason::Unspecified, message, Timestamp::now());
            return Ok(Tried::Connected(over(self.finish(job.exec, &end).await?)));
        }
        Ok(Tried::Failed(refusal(job.exec, *code, message)))
    }

    /// No session by the deadline, or no hope for one.
    async fn no_session(
        self: &Arc<Self>,
        job: &Job,
        record: ExecRecord,
        starts: bool,
        error: CallError,
    ) -> Result<Connected, CallError> {
        if record.finished.is_some() {
            // With hope, the output can still be had later: an error. Without, the outcome is all there is.
            return if error.reason == Reason::NoSession { Err(error) } else { Ok(over(record)) };
        }
        if !starts {
            return match self.ended_with_its_sandbox(job).await? {
                Some(record) => Ok(over(record)),
                None => Err(error.with(key::EXEC_ID, job.exec)),
            };
        }
        if self.may_be_delivered(job.exec) {
            return Err(start_unknown(job.exec, &error.message));
        }
        self.never_started(job.exec, &error.message).await;
        Err(error.with(key::EXEC_ID, job.exec))
    }

    /// What ended the hope for a session ends the exec too, and says so a moment later: waits for that. `None`: it has not
    /// ended, or not in time.
    async fn ended_with_its_sandbox(&self, job: &Job) -> Result<Option<ExecRecord>, CallError> {
        let mut news = self.board.subscribe(job.exec);
        let mut view = job.handle.view();
        loop {
            match self.store.exec(job.exec).await? {
                Some(record) if record.finished.is_some() => return Ok(Some(record)),
                Some(_) => {}
                None => return Ok(None),
            }
            let phase = view.borrow_and_update().phase;
            if !matches!(phase, Phase::Failed | Phase::Stopping | Phase::Stopped | Phase::Deleting) {
                return Ok(None);
            }
            tokio::select! {
                () = news.changed() => {}
                // A sandbox that is no more has ended its execs.
                Ok(()) = view.changed() => {}
                () = tokio::time::sleep_until(job.until) => return Ok(None),
            }
        }
    }

    /// The deadline has passed.
    async fn too_late(self: &Arc<Self>, job: &Job, starts: bool, why: &str) -> Result<Connected, CallError> {
        if !starts {
            let message = format!("attaching to the exec {}: {why}", job.exec);
            return Err(CallError::new(Reason::RelayDeadline, message).with(key::EXEC_ID, job.exec));
        }
        if self.may_be_delivered(job.exec) {
            return Err(start_unknown(job.exec, why));
        }
        self.never_started(job.exec, why).await;
        let message = format!("starting the exec {}: {why}; it was not started", job.exec);
        Err(CallError::new(Reason::RelayDeadline, message).with(key::EXEC_ID, job.exec))
    }

    /// The supervisor answered with nonsense, or ended the relay.
    fn unanswered(&self, job: &Job, starts: bool, why: &str) -> CallError {
        if starts {
            return start_unknown(job.exec, why);
        }
        let message = format!("attaching to the exec {}: {why}", job.exec);
        CallError::new(Reason::Internal, message).with(key::EXEC_ID, job.exec)
    }

    fn broken(&self, relay: &mut Relay, why: &str) {
        use holdfast_wire::close::CloseCode;
        tracing::warn!(relay = %relay.id, why, "the supervisor broke the protocol");
        relay.guard.ended("protocol");
        relay.send.reset(CloseCode::PROTOCOL);
        relay.recv.stop(CloseCode::PROTOCOL);
    }

    pub(super) async fn never_started(self: &Arc<Self>, exec: ExecId, message: &str) {
        self.end_as(exec, StartFailure::Deadline, message).await;
    }

    /// Ends an exec that never ran. Where the store does not take it, the next report does it again.
    async fn end_as(self: &Arc<Self>, exec: ExecId, failure: StartFailure, message: &str) {
        let end: Finished = state::start_failed(failure, message, Timestamp::now());
        if let Err(error) = self.finish(exec, &end).await {
            tracing::error!(%exec, %error, "an exec that did not start could not be ended in the store");
        }
    }
}

/// Whether asking a supervisor for the output makes sense: not where the exec never ran, such as one that was cancelled
/// before it was sent, nor where the one that ran it is gone.
fn output_may_be_kept(record: &ExecRecord) -> bool {
    let lost = matches!(
        record.outcome().and_then(|outcome| outcome.kind.as_ref()),
        Some(Kind::StartFailed(_) | Kind::Lost(_))
    );
    record.sent.is_some() && !lost
}

/// Whether the stored outcome is a command's own: nobody but a supervisor that ran it can have said so.
fn ended_by_itself(record: &ExecRecord) -> bool {
    matches!(
        record.outcome().and_then(|outcome| outcome.kind.as_ref()),
        Some(Kind::Exited(_) | Kind::Signaled(_) | Kind::TimedOut(_))
    )
}

fn start_unknown(exec: ExecId, why: &str) -> CallError {
    let message = format!(
        "whether the exec {exec} has started is not known yet ({why}): attach to it, or wait for it, by the same exec_id"
    );
    CallError::new(Reason::StartUnknown, message).with(key::EXEC_ID, exec)
}

fn limit(exec: ExecId, message: &str) -> CallError {
    CallError::new(Reason::LimitReached, message).with(key::LIMIT, "relays").with(key::EXEC_ID, exec)
}

/// What a supervisor's refusal is to a caller.
pub(super) fn refusal(exec: ExecId, code: RefusedCode, message: &str) -> CallError {
    let reason = match code {
        RefusedCode::Invalid => Reason::InvalidArgument,
        RefusedCode::NotFound => Reason::ExecNotFound,
        RefusedCode::Conflict => Reason::ExecIdConflict,
        RefusedCode::Exhausted => Reason::LimitReached,
        RefusedCode::Stopping => Reason::NoSession,
        RefusedCode::Ended => Reason::ExecEnded,
        RefusedCode::UnknownKind | RefusedCode::Internal | RefusedCode::Unspecified => Reason::Internal,
    };
    CallError::new(reason, format!("the supervisor refused: {message}")).with(key::EXEC_ID, exec)
}
