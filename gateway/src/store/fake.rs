//! A store in memory: for unit tests and the simulation, where SQL's threads would not see the paused clock.
//!
//! One mutex around everything, taken and let go inside each verb: no verb awaits anything, so each is one step.
//! It forgets all when it is dropped. Clones are the same store, as gateways that follow one another share one
//! file.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_wire::ids::{Epoch, ExecId, Generation, SandboxId};
use jiff::Timestamp;

use super::{
    Admission, ExecRecord, Finished, MAX_ENDED_EXECS, MAX_PAGE, SandboxRecord, Sent, Store, StoreError,
    lost_with_the_sandbox, record::to_micros,
};

/// Keeps records in memory.
#[derive(Clone, Debug, Default)]
pub struct FakeStore(Arc<Mutex<Records>>);

#[derive(Debug, Default)]
struct Records {
    sandboxes: BTreeMap<SandboxId, SandboxRecord>,
    execs: BTreeMap<ExecId, ExecRecord>,
    meta: BTreeMap<String, Bytes>,
    /// How many writes of sandboxes are still to fail.
    failing: usize,
}

impl FakeStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `times` writes of sandboxes fail, as on a full disk; nothing of them happens.
    pub fn fail_writes(&self, times: usize) {
        self.records().failing = times;
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // A panic while holding the lock leaves whole records: each verb checks first, then writes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    fn may_write(&mut self, attempted: &'static str) -> Result<(), StoreError> {
        let Some(left) = self.failing.checked_sub(1) else { return Ok(()) };
        self.failing = left;
        Err(StoreError::Query { attempted, source: "the disk is full (scripted)".into() })
    }

    fn ended_of(&self, sandbox: SandboxId) -> Vec<(Timestamp, ExecId)> {
        let ended = self.execs.values().filter(|exec| exec.sandbox == sandbox);
        ended.filter_map(|exec| Some((exec.finished.as_ref()?.at, exec.exec))).collect()
    }
}

#[async_trait]
impl Store for FakeStore {
    async fn insert(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        record.check()?;
        let mut records = self.records();
        records.may_write("adding a sandbox")?;
        if records.sandboxes.contains_key(&record.id) {
            return Err(StoreError::IdTaken { id: record.id });
        }
        if records.sandboxes.values().any(|other| other.name == record.name) {
            return Err(StoreError::NameTaken { name: record.name.clone() });
        }
        records.sandboxes.insert(record.id, SandboxRecord { version: 1, ..record.as_stored() });
        Ok(())
    }

    async fn update(&self, record: &SandboxRecord) -> Result<u64, StoreError> {
        record.check()?;
        let mut records = self.records();
        records.may_write("writing a sandbox")?;
        let Some(stored) = records.sandboxes.get_mut(&record.id) else {
            return Err(StoreError::SandboxMissing { id: record.id });
        };
        if stored.version != record.version {
            return Err(StoreError::Stale { id: record.id, version: record.version });
        }
        let version = record.version + 1;
        *stored = SandboxRecord { version, epoch: stored.epoch, main: stored.main, ..record.as_stored() };
        Ok(version)
    }

    async fn get(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        Ok(self.records().sandboxes.get(&id).cloned())
    }

    async fn find(&self, name: &str) -> Result<Option<SandboxRecord>, StoreError> {
        Ok(self.records().sandboxes.values().find(|record| record.name == name).cloned())
    }

    async fn list(&self, after: Option<SandboxId>, limit: usize) -> Result<Vec<SandboxRecord>, StoreError> {
        let records = self.records();
        let after = records.sandboxes.values().filter(|record| after.is_none_or(|after| record.id > after));
        Ok(after.take(limit.min(MAX_PAGE)).cloned().collect())
    }

    async fn delete(&self, id: SandboxId, at: Timestamp) -> Result<bool, StoreError> {
        let mut records = self.records();
        records.may_write("removing a sandbox")?;
        for exec in records.execs.values_mut().filter(|exec| exec.sandbox == id) {
            exec.finished.get_or_insert_with(|| Finished {
                outcome: lost_with_the_sandbox(),
                at: to_micros(at),
                stdout_bytes: 0,
                stderr_bytes: 0,
                left_processes: false,
            });
        }
        Ok(records.sandboxes.remove(&id).is_some())
    }

    async fn next_epoch(&self, id: SandboxId) -> Result<Epoch, StoreError> {
        let mut records = self.records();
        records.may_write("counting the epoch up")?;
        let Some(record) = records.sandboxes.get_mut(&id) else {
            return Err(StoreError::SandboxMissing { id });
        };
        record.epoch = record.epoch.next();
        Ok(record.epoch)
    }

    async fn admit(&self, record: &ExecRecord) -> Result<Admission, StoreError> {
        record.check()?;
        let mut records = self.records();
        if let Some(existing) = records.execs.get(&record.exec) {
            return Ok(Admission::Existing(Box::new(existing.clone())));
        }
        if !records.sandboxes.contains_key(&record.sandbox) {
            return Err(StoreError::SandboxMissing { id: record.sandbox });
        }
        records.execs.insert(record.exec, record.as_stored());
        Ok(Admission::Admitted)
    }

    async fn admit_main(&self, record: &ExecRecord, generation: Generation) -> Result<Admission, StoreError> {
        let admission = self.admit(record).await?;
        if admission == Admission::Admitted
            && let Some(home) = self.records().sandboxes.get_mut(&record.sandbox)
        {
            home.main = home.main.max(generation);
        }
        Ok(admission)
    }

    async fn exec(&self, id: ExecId) -> Result<Option<ExecRecord>, StoreError> {
        Ok(self.records().execs.get(&id).cloned())
    }

    async fn execs_of(&self, sandbox: SandboxId, limit: usize) -> Result<Vec<ExecRecord>, StoreError> {
        let records = self.records();
        let mut execs: Vec<_> = records.execs.values().filter(|exec| exec.sandbox == sandbox).collect();
        execs.sort_by_key(|exec| std::cmp::Reverse((exec.accepted_at, exec.exec)));
        Ok(execs.into_iter().take(limit.min(MAX_PAGE)).cloned().collect())
    }

    async fn unfinished(&self, sandbox: SandboxId) -> Result<Vec<ExecRecord>, StoreError> {
        let records = self.records();
        let open = |exec: &&ExecRecord| exec.sandbox == sandbox && exec.finished.is_none();
        let mut execs: Vec<_> = records.execs.values().filter(open).cloned().collect();
        execs.sort_by_key(|exec| (exec.accepted_at, exec.exec));
        Ok(execs)
    }

    async fn sent(&self, exec: ExecId, sent: Sent) -> Result<Option<Sent>, StoreError> {
        let mut records = self.records();
        let Some(record) = records.execs.get_mut(&exec) else {
            return Err(StoreError::ExecMissing { id: exec });
        };
        if record.finished.is_some() {
            return Ok(None);
        }
        Ok(Some(*record.sent.get_or_insert(sent)))
    }

    async fn started(&self, exec: ExecId, pid: u32, at: Timestamp) -> Result<bool, StoreError> {
        let mut records = self.records();
        let Some(record) = records.execs.get_mut(&exec) else {
            return Err(StoreError::ExecMissing { id: exec });
        };
        if record.started_at.is_some() || record.finished.is_some() {
            return Ok(false);
        }
        record.started_at = Some(to_micros(at));
        record.pid = pid;
        Ok(true)
    }

    async fn finish(&self, exec: ExecId, finished: &Finished) -> Result<bool, StoreError> {
        finished.check()?;
        let mut records = self.records();
        let Some(record) = records.execs.get_mut(&exec) else {
            return Err(StoreError::ExecMissing { id: exec });
        };
        if record.finished.is_some() {
            return Ok(false);
        }
        record.finished = Some(finished.as_stored());
        Ok(true)
    }

    async fn forget_before(&self, time: Timestamp) -> Result<u64, StoreError> {
        let mut records = self.records();
        let before = records.execs.len();
        records.execs.retain(|_, exec| exec.retain_until().is_none_or(|until| until >= time));
        let sandboxes: std::collections::BTreeSet<_> =
            records.execs.values().map(|exec| exec.sandbox).collect();
        for sandbox in sandboxes {
            let mut ended = records.ended_of(sandbox);
            ended.sort_unstable();
            let surplus = ended.len().saturating_sub(MAX_ENDED_EXECS);
            for (_, exec) in ended.drain(..surplus) {
                records.execs.remove(&exec);
            }
        }
        Ok((before - records.execs.len()) as u64)
    }

    async fn meta(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.records().meta.get(key).cloned())
    }

    async fn set_meta(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        super::record::check_size("a value of the gateway's own", value.len())?;
        self.records().meta.insert(key.to_owned(), value);
        Ok(())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
super::suite::store_tests!(async { FakeStore::new() });
