//! Files: transfers in and out, and questions about paths.
//!
//! ```text
//!   relay ── upload, download ──▶ find or begin ──▶ Transfer: a thread as the asked user, a window
//!                                      ▲                │ relay gone: kept, and attached again by offset
//!                                      └────────────────┘ nobody came back: closed, what is not complete removed
//!   relay ── call ──▶ a thread as the asked user ──▶ answer
//! ```
//!
//! A transfer belongs to this room and not to its relay: a lost session costs it nothing but time. What touches the
//! file system blocks, and runs with the rights of whoever asked: on a thread of its own, never on the runtime's.

mod call;
mod relay;
mod transfer;
mod user;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_files::{Failure, Leftovers};
use holdfast_wire::{
    api::{DownloadSpec, FileFailureKind, UploadSpec},
    control::{FilesRelay, RefusedCode, files_relay::Kind},
    ids::TransferId,
    limits, timing,
    transport::{MessageReader, SendStream},
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::transfer::Transfer;
pub(crate) use self::user::become_user;
use crate::{
    execs::{Refusal, refuse},
    workspace::Workspace,
};

/// The room. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Files {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Where relative paths begin.
    workspace: Workspace,
    /// Where uploads note their temporary files.
    journals: Option<PathBuf>,
    /// Where passwd and group are.
    etc: PathBuf,
    table: Mutex<HashMap<TransferId, Arc<Transfer>>>,
    tracker: TaskTracker,
    token: CancellationToken,
    /// A place for each question that waits for the file system.
    calls: Arc<Semaphore>,
    /// For what is begun when a relay is dropped, wherever that is.
    runtime: tokio::runtime::Handle,
}

/// Ended transfers that are remembered, so that a repeated open hears how it ended: each is a result and a path.
const ENDED: usize = 256;

/// Below the state directory.
const JOURNALS: &str = "transfers";

/// What a transfer is to do.
#[derive(Clone, Debug, PartialEq)]
enum Spec {
    Upload(UploadSpec),
    Download(DownloadSpec),
}

impl Files {
    /// A room without transfers. `token` ends them all. Must be called within a runtime.
    #[must_use]
    pub fn new(workspace: PathBuf, token: CancellationToken) -> Self {
        Self::within(Workspace::at(workspace), None, token)
    }

    /// With a directory of the supervisor's own, in which uploads note what has to be removed after its death. What an
    /// earlier process left is removed now, beside everything else: a file system that hangs holds nobody up.
    pub(crate) fn within(workspace: Workspace, state_dir: Option<&Path>, token: CancellationToken) -> Self {
        let journals = state_dir.map(|dir| dir.join(JOURNALS));
        if let Some(dir) = &journals {
            remove_leftovers(dir);
        }
        let (table, tracker) = (Mutex::default(), TaskTracker::new());
        let inner = Arc::new(Inner {
            workspace,
            journals,
            etc: "/etc".into(),
            table,
            tracker,
            token,
            calls: Arc::new(Semaphore::new(call::CALLS)),
            runtime: tokio::runtime::Handle::current(),
        });
        let room = Arc::downgrade(&inner);
        let ended = inner.token.clone();
        inner.tracker.spawn(async move {
            ended.cancelled().await;
            if let Some(room) = room.upgrade() {
                // Their threads hear it, and remove what is not complete.
                room.table().drain().for_each(|(_, transfer)| transfer.close());
            }
        });
        Self { inner }
    }

    /// Serves one relay to its end, the reply included.
    pub async fn serve(&self, request: FilesRelay, send: SendStream, recv: MessageReader) {
        let room = &self.inner;
        match request.kind {
            Some(Kind::Upload(upload)) => {
                match room.find_or_begin(
                    &upload.transfer_id,
                    upload.start.map(Spec::Upload),
                    upload.offset,
                    true,
                ) {
                    Ok(transfer) => relay::upload(room, &transfer, upload.offset, send, recv).await,
                    Err(refusal) => refuse(refusal, send, recv).await,
                }
            }
            Some(Kind::Download(download)) => {
                let start = download.start.map(Spec::Download);
                match room.find_or_begin(&download.transfer_id, start, download.offset, false) {
                    Ok(transfer) => relay::download(room, &transfer, download.offset, send, recv).await,
                    Err(refusal) => refuse(refusal, send, recv).await,
                }
            }
            Some(Kind::Call(call)) => call::serve(room, call, send, recv).await,
            None => {
                let message = "this supervisor does not know this question about files";
                refuse(Refusal::new(RefusedCode::UnknownKind, message), send, recv).await;
            }
        }
    }
}

impl Inner {
    /// The transfer of this id; begun, where it does not exist and nothing of it is missing.
    fn find_or_begin(
        self: &Arc<Self>,
        id: &[u8],
        start: Option<Spec>,
        offset: u64,
        upload: bool,
    ) -> Result<Arc<Transfer>, Refusal> {
        let id = TransferId::from_slice(id)
            .map_err(|error| Refusal::new(RefusedCode::Invalid, format!("transfer_id: {error}")))?;
        if self.token.is_cancelled() {
            return Err(Refusal::new(RefusedCode::Stopping, "the supervisor is stopping"));
        }
        let mut table = self.table();
        if let Some(transfer) = table.get(&id) {
            if transfer.is_upload() != upload || start.is_some_and(|start| start != transfer.spec) {
                let message = format!("the transfer {id} exists, and is another one");
                return Err(Refusal::new(RefusedCode::Conflict, message));
            }
            return Ok(Arc::clone(transfer));
        }
        let Some(spec) = start.filter(|_| offset == 0) else {
            return Err(Refusal::new(RefusedCode::NotFound, format!("there is no transfer {id} (any more)")));
        };
        make_room(&mut table)?;
        let transfer = Arc::new(Transfer::new(id, spec));
        transfer.begin(self).map_err(|error| {
            Refusal::new(RefusedCode::Exhausted, format!("no thread for a transfer: {error}"))
        })?;
        table.insert(id, Arc::clone(&transfer));
        Ok(transfer)
    }

    /// A relay of the transfer has ended: unless another one comes, so does the transfer.
    fn keep_for_a_while(self: &Arc<Self>, transfer: &Arc<Transfer>, turn: u64) {
        let (room, transfer) = (Arc::clone(self), Arc::clone(transfer));
        let after = async move {
            tokio::select! {
                () = tokio::time::sleep(timing::TRANSFER_KEPT) => {}
                () = room.token.cancelled() => return,
            }
            if transfer.is_turn(turn) {
                tracing::info!(transfer = %transfer.id, "nobody came back for a transfer: it is given up");
                room.forget(&transfer);
            }
        };
        self.tracker.spawn_on(after, &self.runtime);
    }

    fn forget(&self, transfer: &Transfer) {
        transfer.close();
        self.table().remove(&transfer.id);
    }

    /// An absolute path of what a caller named.
    fn path(&self, bytes: &[u8]) -> Result<PathBuf, Failure> {
        let path = holdfast_files::failure::path_of(bytes);
        if bytes.is_empty() || bytes.contains(&0) || bytes.len() >= limits::MAX_PATH {
            let message = format!("a path has 1 to {} bytes, and no NUL", limits::MAX_PATH - 1);
            return Err(Failure::new(FileFailureKind::Invalid, path, message));
        }
        if path.is_relative() {
            // A workspace whose mount is gone is not to be written into the directory beneath.
            let root = self.workspace.path();
            self.workspace.check().map_err(|error| Failure::io("looking at the workspace", root, &error))?;
        }
        Ok(self.workspace.path().join(path))
    }

    fn table(&self) -> MutexGuard<'_, HashMap<TransferId, Arc<Transfer>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes what a killed predecessor left half written. Found before the first transfer begins, removed on a thread.
fn remove_leftovers(journals: &Path) {
    let left = Leftovers::find(journals);
    if left.is_empty() {
        return;
    }
    let work = move || {
        let removed = left.remove();
        tracing::info!(removed, "removed what transfers of an earlier supervisor left half written");
    };
    if let Err(error) = std::thread::Builder::new().name("leftovers".to_owned()).spawn(work) {
        tracing::warn!(%error, "what transfers of an earlier supervisor left half written stays");
    }
}

/// Room for one more. Who has been away longest goes first; only what is attached counts for good.
fn make_room(table: &mut HashMap<TransferId, Arc<Transfer>>) -> Result<(), Refusal> {
    let oldest = |table: &HashMap<TransferId, Arc<Transfer>>, over: bool| {
        let idle = table.values().filter(|transfer| transfer.is_over() == over && !transfer.is_attached());
        idle.min_by_key(|transfer| transfer.touched()).map(|transfer| transfer.id)
    };
    if table_count(table, true) >= ENDED {
        let id = oldest(table, true);
        remove_one(table, id);
    }
    if table_count(table, false) >= limits::MAX_TRANSFERS {
        let id = oldest(table, false);
        if !remove_one(table, id) {
            let message = format!("{} transfers at once, and more are not allowed", limits::MAX_TRANSFERS);
            return Err(Refusal::new(RefusedCode::Exhausted, message));
        }
    }
    Ok(())
}

fn table_count(table: &HashMap<TransferId, Arc<Transfer>>, over: bool) -> usize {
    table.values().filter(|transfer| transfer.is_over() == over).count()
}

fn remove_one(table: &mut HashMap<TransferId, Arc<Transfer>>, id: Option<TransferId>) -> bool {
    let removed = id.and_then(|id| table.remove(&id));
    if let Some(transfer) = &removed {
        transfer.close();
    }
    removed.is_some()
}
