//! Taking an exec in: checked, and stored before any supervisor hears of it.

use std::sync::Arc;

use holdfast_wire::{
    api::{ExecSpec, OnDisconnect},
    ids::{ExecId, Generation},
    spec,
};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Core, starters::Starter};
use crate::{
    error::{CallError, Reason, key},
    sandboxes::SandboxHandle,
    store::{Admission, ExecRecord},
};

impl Core {
    /// Admits an exec, or finds the one that it repeats. `main`: it is the main command of this workload.
    pub(super) async fn admit(
        self: &Arc<Self>,
        handle: &SandboxHandle,
        exec: ExecId,
        spec: &ExecSpec,
        until: Instant,
        main: Option<Generation>,
    ) -> Result<(ExecRecord, Starter), CallError> {
        if self.token.is_cancelled() {
            return Err(super::stopping());
        }
        let times = spec::check(spec).map_err(|error| {
            CallError::new(Reason::InvalidArgument, error.to_string()).with(key::FIELD, error.field)
        })?;
        let digest = spec::digest(spec);
        let starter = self.enter_start(exec);
        // Before the look at its phase, so that it is not stopped for being idle in between.
        handle.activity().touch();
        if let Some(record) = self.store.exec(exec).await? {
            return same(record, handle, &digest, starter);
        }
        // A sandbox that no waiting brings back is told of before the exec exists.
        if let Err(error) = handle.wait_for_session(Instant::now()).await
            && error.reason != Reason::NoSession
        {
            return Err(error);
        }
        let now = Timestamp::now();
        let record = ExecRecord {
            exec,
            sandbox: handle.id(),
            spec_digest: digest,
            command: spec::display(spec),
            tty: spec.tty.is_some(),
            on_disconnect: match spec.on_disconnect() {
                OnDisconnect::Unspecified => OnDisconnect::Keep,
                told => told,
            },
            retain_for: times.retain_for,
            accepted_at: now,
            start_deadline_at: now
                .checked_add(until.saturating_duration_since(Instant::now()))
                .unwrap_or(Timestamp::MAX),
            sent: None,
            pid: 0,
            started_at: None,
            finished: None,
        };
        let admission = match main {
            None => self.store.admit(&record).await?,
            Some(generation) => self.store.admit_main(&record, generation).await?,
        };
        match admission {
            Admission::Admitted => {
                tracing::info!(sandbox = %handle.id(), %exec, command = record.command, "exec accepted");
                Ok((record, starter))
            }
            Admission::Existing(there) => same(*there, handle, &record.spec_digest, starter),
        }
    }
}

/// The exec that is there, if it is the same request.
fn same(
    record: ExecRecord,
    handle: &SandboxHandle,
    digest: &[u8],
    starter: Starter,
) -> Result<(ExecRecord, Starter), CallError> {
    if record.sandbox == handle.id() && record.spec_digest == digest {
        starter.admitted(record.sent.is_some());
        return Ok((record, starter));
    }
    let what = if record.sandbox == handle.id() { "with another spec" } else { "in another sandbox" };
    let message = format!("the exec {} exists {what}: choose a new exec_id for a new command", record.exec);
    Err(CallError::new(Reason::ExecIdConflict, message).with(key::EXEC_ID, record.exec))
}
