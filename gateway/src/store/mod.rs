//! What must outlive the gateway: sandboxes and the outcomes of their execs.
//!
//! Records enter and leave whole; a message inside one is kept as protobuf bytes. Two rules make the promise of
//! the gateway hold across a crash, and both are single steps of the store: an exec is **admitted** before any
//! supervisor hears of it, and the **first** outcome that is written is the only one. Sandboxes are written by
//! compare-and-set on their version, except for the epoch, which only counts up, and the main command's mark, which
//! is written together with its admission.
//!
//! [`SqliteStore`] is the real one; [`FakeStore`] keeps everything in memory, for the simulation, because SQL
//! runs on threads that do not live under a paused clock. One suite of tests says what both must do.

mod error;
mod fake;
mod record;
mod row;
mod sqlite;
#[cfg(test)]
mod suite;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_wire::{
    api,
    ids::{Epoch, ExecId, Generation, SandboxId},
};
use jiff::Timestamp;

pub use self::{
    error::StoreError,
    fake::FakeStore,
    record::{Admission, Desired, ExecRecord, Finished, SandboxRecord, Sent, Why, from_stamp, stamp},
    sqlite::SqliteStore,
};

/// Ended execs that are kept of one sandbox, whatever their `retain_for` says: the oldest go first. A row has
/// about 600 bytes, so a sandbox keeps 5 MiB at most.
pub const MAX_ENDED_EXECS: usize = 8192;

/// Rows that one call of a listing returns at most.
pub const MAX_PAGE: usize = 1000;

/// The largest protobuf message inside a record, in bytes: environment and labels at their bounds, twice.
pub const MAX_BLOB: usize = 1 << 20;

/// Keeps records. Every verb is one transaction: after an error nothing of it has happened, or all of it (where
/// only the answer was lost), and saying it again is safe.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Adds a sandbox. Its version starts at 1, whatever the record says.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], [`StoreError::IdTaken`].
    async fn insert(&self, record: &SandboxRecord) -> Result<(), StoreError>;

    /// Writes a sandbox whose stored version is still `record.version`, and returns the new version. The epoch and
    /// `main` are left alone: [`next_epoch`](Self::next_epoch) and [`admit_main`](Self::admit_main) alone write them.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when somebody else wrote it, [`StoreError::SandboxMissing`].
    async fn update(&self, record: &SandboxRecord) -> Result<u64, StoreError>;

    /// A sandbox by its id.
    async fn get(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError>;

    /// A sandbox by its name.
    async fn find(&self, name: &str) -> Result<Option<SandboxRecord>, StoreError>;

    /// Sandboxes by rising id, from the one after `after`, at most `limit` and at most [`MAX_PAGE`].
    async fn list(&self, after: Option<SandboxId>, limit: usize) -> Result<Vec<SandboxRecord>, StoreError>;

    /// Removes a sandbox. In the same step each exec of it that has not ended ends as lost, because the sandbox
    /// was deleted; its execs are kept as long as any others. False when it was not there.
    async fn delete(&self, id: SandboxId, at: Timestamp) -> Result<bool, StoreError>;

    /// Counts the sandbox's epoch up and returns it: from then on no other session has it.
    ///
    /// # Errors
    /// [`StoreError::SandboxMissing`].
    async fn next_epoch(&self, id: SandboxId) -> Result<Epoch, StoreError>;

    /// Takes an exec in, unless its id is known: then the record that is there comes back, unchanged.
    ///
    /// # Errors
    /// [`StoreError::SandboxMissing`] when the sandbox is not there (any more).
    async fn admit(&self, record: &ExecRecord) -> Result<Admission, StoreError>;

    /// The same for the main command of a sandbox's workload, and in the same step it is noted in the sandbox
    /// ([`SandboxRecord::main`]) that it was: the exec is forgotten one day, and must not be taken in again then.
    ///
    /// # Errors
    /// As for [`admit`](Self::admit).
    async fn admit_main(&self, record: &ExecRecord, generation: Generation) -> Result<Admission, StoreError>;

    /// An exec by its id.
    async fn exec(&self, id: ExecId) -> Result<Option<ExecRecord>, StoreError>;

    /// The newest execs of a sandbox, newest first, at most `limit` and at most [`MAX_PAGE`].
    async fn execs_of(&self, sandbox: SandboxId, limit: usize) -> Result<Vec<ExecRecord>, StoreError>;

    /// The execs of a sandbox that have not ended, oldest first.
    async fn unfinished(&self, sandbox: SandboxId) -> Result<Vec<ExecRecord>, StoreError>;

    /// Notes to whom the start of an exec is about to be sent. The first note stays: what comes back is the one
    /// that holds, and the start may be repeated towards that instance alone. `None`: the exec has ended, and is not
    /// to be sent to anybody.
    ///
    /// # Errors
    /// [`StoreError::ExecMissing`].
    async fn sent(&self, exec: ExecId, sent: Sent) -> Result<Option<Sent>, StoreError>;

    /// Notes that an exec has started. False when that was known, or when it has ended.
    ///
    /// # Errors
    /// [`StoreError::ExecMissing`].
    async fn started(&self, exec: ExecId, pid: u32, at: Timestamp) -> Result<bool, StoreError>;

    /// Ends an exec: true for the first outcome, which is never changed; false when there was one already.
    ///
    /// # Errors
    /// [`StoreError::ExecMissing`].
    async fn finish(&self, exec: ExecId, finished: &Finished) -> Result<bool, StoreError>;

    /// Forgets ended execs whose time to be kept was over at `time`, and the oldest of a sandbox beyond
    /// [`MAX_ENDED_EXECS`]. Returns how many.
    async fn forget_before(&self, time: Timestamp) -> Result<u64, StoreError>;

    /// A value of the gateway's own, by its key.
    async fn meta(&self, key: &str) -> Result<Option<Bytes>, StoreError>;

    /// Sets a value of the gateway's own; the old one is replaced.
    async fn set_meta(&self, key: &str, value: Bytes) -> Result<(), StoreError>;

    /// Whether the store answers: for the readiness of the gateway.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Lets go of files. Verbs after it fail.
    async fn close(&self) {}
}

/// What an exec of a deleted sandbox ends as.
fn lost_with_the_sandbox() -> api::Outcome {
    api::Outcome {
        kind: Some(api::outcome::Kind::Lost(api::Lost {
            reason: api::LostReason::SandboxDeleted.into(),
            message: "the sandbox was deleted".to_owned(),
        })),
    }
}
