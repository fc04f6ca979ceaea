//! A store that outlives its gateway, and that a gateway which was killed cannot reach any more.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_gateway::store::{
    Admission, ExecRecord, FakeStore, Finished, SandboxRecord, Sent, Store, StoreError,
};
use holdfast_wire::ids::{Epoch, ExecId, Generation, SandboxId};
use jiff::Timestamp;

/// One gateway's hold on the store. A killed process writes nothing more, but its tasks in the simulation live on
/// for a moment: cut, all that they say to the store fails.
#[derive(Clone, Debug)]
pub struct Held {
    store: FakeStore,
    cut: Arc<AtomicBool>,
}

impl Held {
    /// A hold on `store`.
    #[must_use]
    pub fn new(store: FakeStore) -> Self {
        Self { store, cut: Arc::default() }
    }

    /// Nothing gets through from now on.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    fn store(&self) -> Result<&FakeStore, StoreError> {
        if self.cut.load(Ordering::Relaxed) {
            return Err(StoreError::Query {
                attempted: "reaching the store",
                source: "this gateway was killed".into(),
            });
        }
        Ok(&self.store)
    }
}

#[async_trait]
impl Store for Held {
    async fn insert(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        self.store()?.insert(record).await
    }

    async fn update(&self, record: &SandboxRecord) -> Result<u64, StoreError> {
        self.store()?.update(record).await
    }

    async fn get(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        self.store()?.get(id).await
    }

    async fn find(&self, name: &str) -> Result<Option<SandboxRecord>, StoreError> {
        self.store()?.find(name).await
    }

    async fn list(&self, after: Option<SandboxId>, limit: usize) -> Result<Vec<SandboxRecord>, StoreError> {
        self.store()?.list(after, limit).await
    }

    async fn delete(&self, id: SandboxId, at: Timestamp) -> Result<bool, StoreError> {
        self.store()?.delete(id, at).await
    }

    async fn next_epoch(&self, id: SandboxId) -> Result<Epoch, StoreError> {
        self.store()?.next_epoch(id).await
    }

    async fn admit(&self, record: &ExecRecord) -> Result<Admission, StoreError> {
        self.store()?.admit(record).await
    }

    async fn admit_main(&self, record: &ExecRecord, generation: Generation) -> Result<Admission, StoreError> {
        self.store()?.admit_main(record, generation).await
    }

    async fn exec(&self, id: ExecId) -> Result<Option<ExecRecord>, StoreError> {
        self.store()?.exec(id).await
    }

    async fn execs_of(&self, sandbox: SandboxId, limit: usize) -> Result<Vec<ExecRecord>, StoreError> {
        self.store()?.execs_of(sandbox, limit).await
    }

    async fn unfinished(&self, sandbox: SandboxId) -> Result<Vec<ExecRecord>, StoreError> {
        self.store()?.unfinished(sandbox).await
    }

    async fn sent(&self, exec: ExecId, sent: Sent) -> Result<Option<Sent>, StoreError> {
        self.store()?.sent(exec, sent).await
    }

    async fn started(&self, exec: ExecId, pid: u32, at: Timestamp) -> Result<bool, StoreError> {
        self.store()?.started(exec, pid, at).await
    }

    async fn finish(&self, exec: ExecId, finished: &Finished) -> Result<bool, StoreError> {
        self.store()?.finish(exec, finished).await
    }

    async fn forget_before(&self, time: Timestamp) -> Result<u64, StoreError> {
        self.store()?.forget_before(time).await
    }

    async fn meta(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.store()?.meta(key).await
    }

    async fn set_meta(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        self.store()?.set_meta(key, value).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.store()?.ping().await
    }
}
