//! What supervisors report of their execs, brought together with the store.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_wire::{
    api::{Cancelled, ExecInfo, LostReason, outcome::Kind},
    control::{ExecReport, RefusedCode, exec_call},
    ids::{Epoch, ExecId, Instance, SandboxId},
    limits, timing,
};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Core, Execs, calls::is, state, state::Verdict};
use crate::{
    error::{CallError, Reason, key},
    relays::RelayError,
    sandboxes::SandboxHandle,
    sessions::Session,
    store::ExecRecord,
};

/// A start whose fate could not be asked is asked about again after so long.
const SETTLE_AGAIN: Duration = Duration::from_secs(5);

impl Execs {
    /// Takes a report of `session`'s supervisor. A complete one settles every exec of the sandbox that has not
    /// ended; any other tells of changes.
    ///
    /// # Errors
    /// The store did not take it all: the session must be ended, so that the next one brings a complete report.
    pub async fn on_report(&self, session: &Session, report: ExecReport) -> Result<(), CallError> {
        let core = &self.core;
        if report.execs.len() > limits::MAX_EXECS {
            let message = format!("a report of {} execs: at most {}", report.execs.len(), limits::MAX_EXECS);
            return Err(CallError::new(Reason::LimitReached, message).with(key::LIMIT, "execs"));
        }
        let (sandbox, instance) = (session.sandbox(), session.instance());
        let mut said: HashMap<ExecId, ExecInfo> = HashMap::with_capacity(report.execs.len());
        for info in report.execs {
            match info.exec_id.parse() {
                Ok(exec) => drop(said.insert(exec, info)),
                Err(error) => tracing::warn!(%sandbox, %error, "a report names an exec that is none"),
            }
        }
        if report.complete {
            for record in core.store.unfinished(sandbox).await? {
                let info = said.remove(&record.exec);
                core.apply(session, &record, info.as_ref(), instance).await?;
            }
        }
        // What is left has ended in the store, belongs to somebody else, or is unknown.
        for (exec, info) in said {
            match core.store.exec(exec).await? {
                Some(record) if record.sandbox == sandbox => {
                    core.apply(session, &record, Some(&info), instance).await?;
                }
                Some(_) => tracing::warn!(%sandbox, %exec, "a report names another sandbox's exec"),
                None => {
                    tracing::debug!(%sandbox, %exec, "a report names an exec that the store has forgotten")
                }
            }
        }
        if report.complete {
            session.note_reported();
        }
        Ok(())
    }
}

impl Core {
    async fn apply(
        self: &Arc<Self>,
        session: &Session,
        record: &ExecRecord,
        said: Option<&ExecInfo>,
        instance: Instance,
    ) -> Result<(), CallError> {
        let start = self.start_of(record.exec);
        match state::judge(record, said, instance, start, Timestamp::now()) {
            Verdict::Keep => {}
            Verdict::Started { pid, at } => drop(self.started(record.exec, pid, at).await?),
            Verdict::End(finished) => drop(self.finish(record.exec, &finished).await?),
            Verdict::Stop => self.stop_it(session.clone(), record.exec),
        }
        Ok(())
    }

    /// Ends the execs of a sandbox that were sent by sessions up to `up_to`; `None`: all that have not ended.
    pub(super) async fn lose_all(
        self: &Arc<Self>,
        sandbox: SandboxId,
        up_to: Option<Epoch>,
        reason: LostReason,
        message: &str,
    ) -> Result<(), CallError> {
        for record in self.store.unfinished(sandbox).await? {
            let now = Timestamp::now();
            let end = match (record.sent, up_to) {
                (Some(sent), Some(up_to)) if sent.epoch > up_to => continue,
                (Some(_), _) => state::lost(reason, message, now),
                // Its starter learns from the sandbox's phase that there is no hope.
                (None, Some(_)) => continue,
                (None, None) => state::never_started(&format!("it was never sent: {message}"), now),
            };
            self.finish(record.exec, &end).await?;
        }
        Ok(())
    }

    /// Finds out, in the background, what became of a start that was not answered. With `kill` it is ended if it
    /// runs: its caller is gone.
    pub(super) fn settle_later(self: &Arc<Self>, exec: ExecId, handle: SandboxHandle, kill: bool) {
        let core = Arc::clone(self);
        self.settling().insert(exec);
        self.tasks.spawn(async move {
            tokio::select! {
                () = core.settle(exec, &handle, kill) => {}
                () = core.token.cancelled() => {}
            }
            core.settling().remove(&exec);
        });
    }

    /// Whether somebody is finding out what became of its start.
    pub(super) fn is_settling(&self, exec: ExecId) -> bool {
        self.settling().contains(&exec)
    }

    fn settling(&self) -> MutexGuard<'_, HashSet<ExecId>> {
        self.settling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn settle(self: &Arc<Self>, exec: ExecId, handle: &SandboxHandle, kill: bool) {
        // A supervisor accepts a header at most ACCEPT_TIMEOUT after it, and starts or gives up within
        // START_TIMEOUT: what it does not know after that, it will never know.
        tokio::time::sleep(timing::ACCEPT_TIMEOUT + timing::START_TIMEOUT).await;
        let (mut news, mut view) = (self.board.subscribe(exec), handle.view());
        loop {
            if !kill && self.is_settled(exec).await {
                return;
            }
            let session = view.borrow_and_update().session.clone();
            let mut failed = false;
            if let Some(session) = session {
                match self.settle_on(exec, &session, kill).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(%exec, error, "not settled yet"),
                }
                failed = true;
            }
            tokio::select! {
                // A question that met a short silence, or a busy store: neither tells when it is over.
                () = tokio::time::sleep(SETTLE_AGAIN), if failed => {}
                () = news.changed() => {}
                // The sandbox is no more, and its execs with it.
                changed = view.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Whether somebody came back for an exec whose caller went away: it is theirs now.
    async fn has_another_caller(&self, exec: ExecId, session: &Session, until: Instant) -> bool {
        if self.start_of(exec) != state::Start::None {
            return true;
        }
        let answer = self.call(session, exec_call::Kind::Get(exec.to_bytes()), until).await;
        let execs = answer.map(|answer| answer.execs).unwrap_or_default();
        execs.iter().any(|info| is(info, exec) && info.readers > 0)
    }

    async fn is_settled(&self, exec: ExecId) -> bool {
        match self.store.exec(exec).await {
            Ok(Some(record)) => record.finished.is_some() || record.started_at.is_some(),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    async fn settle_on(self: &Arc<Self>, exec: ExecId, session: &Session, kill: bool) -> Result<(), String> {
        let record = self.store.exec(exec).await.map_err(|error| error.to_string())?;
        let Some(record) = record.filter(|record| record.finished.is_none()) else { return Ok(()) };
        let until = Instant::now() + timing::OPEN_TIMEOUT + timing::ACCEPT_TIMEOUT;
        let kill = kill && !self.has_another_caller(exec, session, until).await;
        let question = if kill {
            let by = "disconnect".to_owned();
            exec_call::Kind::Cancel(holdfast_wire::control::CancelCall { exec_id: exec.to_bytes(), by })
        } else {
            exec_call::Kind::Get(exec.to_bytes())
        };
        let said = match self.call(session, question, until).await {
            Ok(answer) => answer.execs.into_iter().find(|info| is(info, exec)),
            Err(RelayError::Refused { code: RefusedCode::NotFound, .. }) => None,
            Err(RelayError::Refused { code: RefusedCode::Ended, .. }) => return Err("ended".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        if said.is_none() && kill && record.started_at.is_none() {
            let by = Cancelled { by: "disconnect".to_owned() };
            let end = state::ended(Kind::Cancelled(by), Timestamp::now());
            return self.finish(exec, &end).await.map(drop).map_err(|error| error.to_string());
        }
        self.apply(session, &record, said.as_ref(), session.instance())
            .await
            .map_err(|error| error.to_string())
    }
}
