//! One question, one answer: relays that carry a single call to the supervisor.

use std::{collections::HashMap, sync::Arc, time::Duration};

use holdfast_wire::{
    api::{Cancelled, ExecInfo, ExecState, OutputStream, ReadExecResponse, TerminalSize, outcome::Kind},
    close::CloseCode,
    control::{
        CancelCall, ExecAnswer, ExecCall, ListCall, ReadCall, ResizeCall, SignalCall, exec_call, relay_header,
    },
    ids::ExecId,
    limits, timing,
};
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::{CallerInfo, Core, Execs, attach::check_signal, merge, starting::refusal, state};
use crate::{
    error::{CallError, Reason, key},
    relays::{self, RelayError},
    sandboxes::SandboxHandle,
    sessions::Session,
    store::{ExecRecord, MAX_PAGE},
};

/// How long `get` and `list` wait for the supervisor's fresher numbers: the store's answer is true without them.
const FRESH_WITHIN: Duration = Duration::from_secs(2);

/// An answer with [`limits::MAX_READ`] bytes of output, or a list of [`limits::MAX_EXECS`] execs.
const MAX_ANSWER: usize = limits::MAX_MESSAGE;

/// A read, if the caller does not say how much.
const READ: u32 = 64 * 1024;

impl Execs {
    /// One exec as it is now: from the store, with the supervisor's numbers where it answers soon.
    pub async fn get(&self, sandbox: &str, exec: ExecId) -> Result<ExecInfo, CallError> {
        let (handle, record) = self.core.find(sandbox, exec).await?;
        let question = exec_call::Kind::Get(exec.to_bytes());
        let Some(answer) = self.core.ask_fresh(handle.as_ref(), question).await else {
            return Ok(record.to_info());
        };
        match answer.execs.into_iter().find(|info| is(info, exec)) {
            Some(live) => Ok(merge(&record, live)),
            None => Ok(record.to_info()),
        }
    }

    /// The execs of a sandbox, oldest first, the newest 1000 of them.
    pub async fn list(&self, sandbox: &str) -> Result<Vec<ExecInfo>, CallError> {
        let handle = self.core.sandboxes.resolve(sandbox)?;
        let mut records = self.core.store.execs_of(handle.id(), MAX_PAGE).await?;
        records.reverse();
        let mut live: HashMap<String, ExecInfo> = HashMap::new();
        if records.iter().any(|record| record.finished.is_none()) {
            let answer = self.core.ask_fresh(Some(&handle), exec_call::Kind::List(ListCall {})).await;
            let execs = answer.unwrap_or_default().execs;
            live.extend(execs.into_iter().map(|info| (info.exec_id.clone(), info)));
        }
        let info = |record: &ExecRecord| match live.remove(&record.exec.to_string()) {
            Some(live) => merge(record, live),
            None => record.to_info(),
        };
        Ok(records.iter().map(info).collect())
    }

    /// Kept output, by offset. `max_bytes` 0 is 64 KiB.
    ///
    /// # Errors
    /// `OUTPUT_GONE` where the exec has ended and its supervisor is gone.
    pub async fn read(
        &self,
        sandbox: &str,
        exec: ExecId,
        stream: OutputStream,
        offset: u64,
        max_bytes: u32,
    ) -> Result<ReadExecResponse, CallError> {
        if stream == OutputStream::Unspecified {
            return Err(CallError::invalid("stream", "stdout or stderr"));
        }
        if max_bytes as usize > limits::MAX_READ {
            return Err(CallError::invalid("max_bytes", format!("more than {}", limits::MAX_READ)));
        }
        let (handle, record) = self.core.find(sandbox, exec).await?;
        let gone = || {
            let message = format!("the output of the exec {exec} is no longer kept");
            CallError::new(Reason::OutputGone, message).with(key::EXEC_ID, exec)
        };
        let ended = record.finished.is_some();
        let Some(handle) = handle else { return Err(gone()) };
        let max_bytes = if max_bytes == 0 { READ } else { max_bytes };
        let question = exec_call::Kind::Read(ReadCall {
            exec_id: exec.to_bytes(),
            stream: stream.into(),
            offset,
            max_bytes,
        });
        match self.core.ask(&handle, exec, question).await {
            Ok(answer) => {
                answer.read.ok_or_else(|| CallError::internal("reading output", &"an empty answer"))
            }
            Err(error) if ended && matches!(error.reason, Reason::ExecNotFound | Reason::WrongPhase) => {
                Err(gone())
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a signal to the exec's process group. An exec that is about to start gets it when it has.
    pub async fn signal(&self, sandbox: &str, exec: ExecId, signal: i32) -> Result<(), CallError> {
        check_signal(signal)?;
        let question = exec_call::Kind::Signal(SignalCall { exec_id: exec.to_bytes(), signal });
        self.core.tell_live(sandbox, exec, question, |_| Ok(())).await
    }

    /// Changes the size of the exec's terminal. An exec that is about to start gets it when it has.
    pub async fn resize(&self, sandbox: &str, exec: ExecId, size: TerminalSize) -> Result<(), CallError> {
        if !(1..=0xffff).contains(&size.cols) || !(1..=0xffff).contains(&size.rows) {
            let message = format!("{} x {} is no terminal's size: 1 to 65535 each", size.cols, size.rows);
            return Err(CallError::invalid("size", message));
        }
        let question = exec_call::Kind::Resize(ResizeCall { exec_id: exec.to_bytes(), size: Some(size) });
        let has_terminal = |record: &ExecRecord| match record.tty {
            true => Ok(()),
            false => Err(CallError::invalid("size", "the exec has no terminal")),
        };
        self.core.tell_live(sandbox, exec, question, has_terminal).await
    }

    /// Ends the exec: SIGTERM to its group, then SIGKILL after its kill_grace. One that was never sent ends at
    /// once; one that has ended stays as it is.
    pub async fn cancel(
        &self,
        sandbox: &str,
        exec: ExecId,
        caller: &CallerInfo,
    ) -> Result<ExecInfo, CallError> {
        let by = if caller.name.is_empty() { "a caller" } else { &caller.name };
        let until = Instant::now() + timing::START_DEADLINE;
        loop {
            // Before the look: no news after it are missed.
            let mut news = self.core.board.subscribe(exec);
            let (handle, record) = self.core.find(sandbox, exec).await?;
            if record.finished.is_some() {
                return Ok(record.to_info());
            }
            let accepted = record.state() == ExecState::Accepted;
            if accepted && record.sent.is_none() {
                // Should its start leave at this very moment, it finds the end stored, and stops what it started.
                let end = state::ended(Kind::Cancelled(Cancelled { by: by.to_owned() }), Timestamp::now());
                return Ok(self.core.finish(exec, &end).await?.to_info());
            }
            let Some(handle) = handle else { return Ok(record.to_info()) };
            let question =
                exec_call::Kind::Cancel(CancelCall { exec_id: exec.to_bytes(), by: by.to_owned() });
            match self.core.ask(&handle, exec, question).await {
                Ok(answer) => {
                    return match answer.execs.into_iter().find(|info| is(info, exec)) {
                        Some(live) => Ok(merge(&self.core.learn(&record, &live).await?, live)),
                        None => Ok(record.to_info()),
                    };
                }
                Err(error) if error.reason == Reason::ExecEnded => {
                    return Ok(self.core.store.exec(exec).await?.unwrap_or(record).to_info());
                }
                // Its start is on its way: it arrives, or is given up, and either is news.
                Err(error) if error.reason == Reason::ExecNotFound && accepted => {
                    if timeout_at(until, news.changed()).await.is_err() {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Core {
    /// Tells the supervisor something of an exec that has not ended, and that passes `check`; one whose start is on its
    /// way is waited for.
    async fn tell_live(
        &self,
        sandbox: &str,
        exec: ExecId,
        question: exec_call::Kind,
        check: impl Fn(&ExecRecord) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let until = Instant::now() + timing::START_DEADLINE;
        loop {
            // Before the look: no news after it are missed.
            let mut news = self.board.subscribe(exec);
            let (handle, record) = self.find_live(sandbox, exec).await?;
            check(&record)?;
            match self.ask(&handle, exec, question.clone()).await {
                // Its start arrives, or is given up, and either is news.
                Err(error)
                    if error.reason == Reason::ExecNotFound && record.state() == ExecState::Accepted =>
                {
                    if timeout_at(until, news.changed()).await.is_err() {
                        return Err(error);
                    }
                }
                other => return other.map(drop),
            }
        }
    }

    /// The exec and its sandbox, for what an ended exec cannot do.
    async fn find_live(&self, sandbox: &str, exec: ExecId) -> Result<(SandboxHandle, ExecRecord), CallError> {
        match self.find(sandbox, exec).await? {
            (Some(handle), record) if record.finished.is_none() => Ok((handle, record)),
            _ => {
                let message = format!("the exec {exec} has ended");
                Err(CallError::new(Reason::ExecEnded, message).with(key::EXEC_ID, exec))
            }
        }
    }

    /// Asks the sandbox's supervisor, waiting for its session as an exec would.
    pub(super) async fn ask(
        &self,
        handle: &SandboxHandle,
        exec: ExecId,
        question: exec_call::Kind,
    ) -> Result<ExecAnswer, CallError> {
        let until = Instant::now() + timing::START_DEADLINE;
        let session = handle.wait_for_session(until).await?;
        self.call(&session, question, until).await.map_err(|error| explain(exec, error))
    }

    /// Asks only a supervisor that is there and answers soon.
    async fn ask_fresh(
        &self,
        handle: Option<&SandboxHandle>,
        question: exec_call::Kind,
    ) -> Option<ExecAnswer> {
        let session = handle?.view().borrow().session.clone()?;
        self.call(&session, question, Instant::now() + FRESH_WITHIN).await.ok()
    }

    /// One call on one session.
    pub(super) async fn call(
        &self,
        session: &Session,
        question: exec_call::Kind,
        until: Instant,
    ) -> Result<ExecAnswer, RelayError> {
        let kind = relay_header::Kind::ExecCall(ExecCall { kind: Some(question) });
        let mut relay = relays::open(session, kind, "", until).await?;
        // Nothing more will be said.
        let _ = relay.send.finish();
        let answer = tokio::select! {
            biased;
            answer = relay.recv.message::<ExecAnswer>(MAX_ANSWER) => match answer {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => Err(RelayError::Protocol("its stream ended without an answer".to_owned())),
                Err(error) => Err(RelayError::of_stream(error, session)),
            },
            lost = session.closed() => Err(RelayError::Lost { lost, delivered: true }),
            () = tokio::time::sleep_until(until) => Err(RelayError::AcceptDeadline(relay.guard.age())),
        };
        match &answer {
            Ok(_) => {
                relay.guard.ended("done");
                relay.recv.stop(CloseCode::DONE);
            }
            Err(error) => relay.guard.ended(error.label()),
        }
        answer
    }

    /// Takes what a supervisor said of an exec into the store.
    pub(super) async fn learn(
        self: &Arc<Self>,
        record: &ExecRecord,
        live: &ExecInfo,
    ) -> Result<ExecRecord, CallError> {
        match state::finished(live, Timestamp::now()) {
            Some(finished) if live.state() == ExecState::Ended && record.finished.is_none() => {
                self.finish(record.exec, &finished).await
            }
            _ => Ok(record.clone()),
        }
    }

    /// Ends an exec that runs although its end is stored.
    pub(super) fn stop_it(self: &Arc<Self>, session: Session, exec: ExecId) {
        tracing::warn!(sandbox = %session.sandbox(), %exec, "an exec runs though its end is stored: stopping it");
        let core = Arc::clone(self);
        self.tasks.spawn(async move {
            let by = "the gateway: its end was stored before it ran".to_owned();
            let question = exec_call::Kind::Cancel(CancelCall { exec_id: exec.to_bytes(), by });
            let until = Instant::now() + timing::OPEN_TIMEOUT + timing::ACCEPT_TIMEOUT;
            if let Err(error) = core.call(&session, question, until).await {
                tracing::warn!(%exec, %error, "it could not be stopped; the next report tries again");
            }
        });
    }
}

/// Whether the supervisor means this exec.
pub(super) fn is(info: &ExecInfo, exec: ExecId) -> bool {
    info.exec_id.parse() == Ok(exec)
}

fn explain(exec: ExecId, error: RelayError) -> CallError {
    let message = error.to_string();
    match error {
        RelayError::Refused { code, message } => refusal(exec, code, &message),
        RelayError::TooMany => CallError::new(Reason::LimitReached, message).with(key::LIMIT, "relays"),
        RelayError::OpenDeadline(_) | RelayError::AcceptDeadline(_) => {
            CallError::new(Reason::RelayDeadline, message).with(key::EXEC_ID, exec)
        }
        RelayError::Lost { lost, .. } => CallError::new(Reason::SessionLost, message)
            .with(key::EXEC_ID, exec)
            .with(key::CAUSE, lost.label()),
        RelayError::Ended(code) => {
            CallError::new(Reason::SessionLost, message).with(key::EXEC_ID, exec).with(key::CAUSE, code)
        }
        RelayError::TooLarge(_) | RelayError::Protocol(_) => {
            CallError::new(Reason::Internal, message).with(key::EXEC_ID, exec)
        }
    }
}
