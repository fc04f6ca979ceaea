//! One transfer: its thread, its window, and who is attached to it.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use holdfast_files::{
    Failure, Journal, Window, Writer,
    emit::Stopped,
    failure::path_of,
    place::Destination,
    read::{self, Source},
    write::{Options, Progress},
};
use holdfast_wire::{
    api::{TransferResult, UploadSpec},
    ids::TransferId,
    limits::TRANSFER_WINDOW,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Inner, Spec, user};

/// How an upload ended.
pub(super) type End = Result<TransferResult, Failure>;

/// A transfer, whether anybody is attached or not.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) id: TransferId,
    pub(super) spec: Spec,
    pub(super) window: Window,
    /// Of an upload: the stream before this offset has been used.
    pub(super) applied: watch::Sender<u64>,
    /// Of an upload.
    pub(super) end: watch::Sender<Option<End>>,
    over: AtomicBool,
    relay: Mutex<Attached>,
}

/// The relay of this transfer; a newer one takes it over.
#[derive(Debug)]
struct Attached {
    turn: u64,
    token: Option<CancellationToken>,
    touched: Instant,
}

/// A journal that goes when its transfer does. By another thread: the transfer's own may be of a user who may not.
struct Noted {
    path: PathBuf,
    runtime: tokio::runtime::Handle,
}

impl Noted {
    fn begin(dir: &Path, word: &str, room: &Inner) -> Option<(Journal, Self)> {
        match Journal::create(dir, word) {
            Ok(journal) => Some((journal, Self { path: dir.join(word), runtime: room.runtime.clone() })),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "an upload notes nothing for the case of a sudden death");
                None
            }
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        // An empty one that stays is removed at the next start.
        self.runtime.spawn_blocking(move || std::fs::remove_file(path));
    }
}

impl Transfer {
    pub(super) fn new(id: TransferId, spec: Spec) -> Self {
        Self {
            id,
            spec,
            window: Window::new(TRANSFER_WINDOW),
            applied: watch::Sender::new(0),
            end: watch::Sender::new(None),
            over: AtomicBool::new(false),
            relay: Mutex::new(Attached { turn: 0, token: None, touched: Instant::now() }),
        }
    }

    pub(super) fn is_upload(&self) -> bool {
        matches!(self.spec, Spec::Upload(_))
    }

    /// Starts its thread. It ends when the transfer does, or when the window is closed.
    pub(super) fn begin(self: &Arc<Self>, room: &Arc<Inner>) -> io::Result<()> {
        let (transfer, room) = (Arc::clone(self), Arc::clone(room));
        std::thread::Builder::new().name("transfer".to_owned()).spawn(move || {
            let work = || match &transfer.spec {
                Spec::Upload(spec) => transfer.receive(spec, &room),
                Spec::Download(_) => {
                    transfer.send(&room);
                    Ok(TransferResult::default())
                }
            };
            let end = catch_unwind(AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err(Failure::abandoned("the transfer's thread has panicked")));
            if let Err(failure) = &end {
                tracing::info!(transfer = %transfer.id, %failure, "a transfer failed");
            }
            transfer.over.store(true, Ordering::Release);
            transfer.end.send_replace(Some(end));
            if transfer.is_upload() {
                // Nobody takes what still comes.
                transfer.window.close();
            }
        })?;
        Ok(())
    }

    fn receive(&self, spec: &UploadSpec, room: &Inner) -> End {
        // 48 random bits of the id are enough to be alone in a directory.
        let word: String = self.id.to_string().chars().rev().take(12).collect();
        // Opened before the thread is somebody else, and removed when it was.
        let journal = room.journals.as_deref().and_then(|dir| Noted::begin(dir, &word, room));
        let (journal, _noted) = journal.unzip();
        user::become_user(&spec.user, &room.etc)?;
        let to = Destination {
            path: room.path(&spec.path)?,
            name: path_of(&spec.name).into_os_string(),
            placement: spec.placement(),
        };
        let mut writer = Writer::new(Options { to, archive: spec.archive, word }).with_journal(journal);
        let mut applied = 0;
        while let Some(chunk) = self.window.take_blocking() {
            applied += chunk.len() as u64;
            let progress = writer.take(chunk)?;
            self.applied.send_replace(applied);
            if let Progress::Done(result) = progress {
                return Ok(result);
            }
        }
        Err(Failure::abandoned("the transfer was given up before its end"))
    }

    fn send(&self, room: &Inner) {
        let Spec::Download(spec) = &self.spec else { return };
        let source = user::become_user(&spec.user, &room.etc).and_then(|()| {
            Ok(Source {
                path: room.path(&spec.path)?,
                follow: spec.follow,
                file_only: spec.file_only,
                offset: spec.range_offset,
                length: spec.range_length,
            })
        });
        let sent = match source {
            Ok(source) => read::send(&source, &self.window, &|_, _| {}).map(drop),
            Err(failure) => {
                holdfast_files::Emitter::new(&self.window).fail(failure.to_wire()).map_err(Stopped::from)
            }
        };
        if let Err(stopped) = sent {
            tracing::debug!(transfer = %self.id, %stopped, "a download ended early");
        }
    }

    /// A relay takes it: its turn, and what tells it that another one has taken over.
    pub(super) fn attach(&self) -> (u64, CancellationToken) {
        let mut relay = self.relay.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = relay.token.take() {
            before.cancel();
        }
        let token = CancellationToken::new();
        relay.turn += 1;
        relay.token = Some(token.clone());
        relay.touched = Instant::now();
        (relay.turn, token)
    }

    /// The relay of this turn is over. False: another one has taken over.
    pub(super) fn detach(&self, turn: u64) -> bool {
        let mut relay = self.relay.lock().unwrap_or_else(PoisonError::into_inner);
        let same = relay.turn == turn;
        if same {
            relay.token = None;
            relay.touched = Instant::now();
        }
        same
    }

    /// No relay has come since this turn.
    pub(super) fn is_turn(&self, turn: u64) -> bool {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner).turn == turn
    }

    pub(super) fn is_attached(&self) -> bool {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner).token.is_some()
    }

    pub(super) fn touched(&self) -> Instant {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner).touched
    }

    /// Its work is done, well or not. A download may still wait for its reader.
    pub(super) fn is_over(&self) -> bool {
        self.is_upload() && self.over.load(Ordering::Acquire)
    }

    /// Ends it: its thread hears it at its next step.
    pub(super) fn close(&self) {
        self.window.close();
    }
}
