//! What an exec has written, kept for callers that are slow, away, or not there yet.
//!
//! ```text
//!   pump ── room, append ──▶ ┌ memory ┐ ── writer task ──▶ segment files ── dropped: acknowledged, or oldest
//!                            └────────┘        │                │
//!   readers ◀── by offset, woken, any number ──┴────────────────┘
//! ```
//!
//! Bounds: a stream's memory ([`MEMORY`]), an exec's bytes, all execs' bytes. When one is reached, `block` lets the
//! command wait until every attached reader has acknowledged what then goes; `drop_oldest` lets the oldest go, and
//! readers are told. Output of ended execs that nobody reads goes before a running command has to wait.
//!
//! A disk that fails stops nothing: memory is then all there is, its bound and the policy apply, and the writer
//! tries again until it works. No lock is held across an await; nothing of the disk is touched under the lock.

mod disk;
mod kept;
mod log;
mod record;
mod recover;
mod writer;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use holdfast_wire::{api::OutputStream, ids::ExecId};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(super) use disk::Disk;
use kept::{Kept, Verdict};
use log::{Place, Segment};
pub use record::{MAX_RECORD, Record, RecordError, decode_record, encode_record};
pub(super) use recover::{Recovered, recover};

/// What one stream keeps in memory, in bytes, before the command waits for the disk (or the policy strikes).
const MEMORY: usize = 256 * 1024;
/// Above this the writer moves memory to disk ...
const SPILL_AT: usize = 128 * 1024;
/// ... down to this: a reader that keeps up reads from memory alone.
const SPILL_TO: usize = 64 * 1024;
/// The largest segment, in bytes: sixteen of them make the default bound of an exec, so that dropping one loses a
/// sixteenth of what is kept.
const SEGMENT: u64 = 4 << 20;
/// The smallest.
const SEGMENT_MIN: u64 = 64 * 1024;
/// The smallest bound of one exec, in bytes, whatever the configuration says: callers acknowledge every
/// [`ACK_EVERY`](holdfast_wire::limits::ACK_EVERY), and `block` must not wait for an acknowledgement that waits for output.
const EXEC_MIN: u64 = 4 * holdfast_wire::limits::ACK_EVERY;
/// What an exec may keep even when all the others have used the total up, in bytes: the end of an error message.
const FLOOR: u64 = 64 * 1024;
/// What a command had in its pipe when it ended is taken beyond all bounds, up to this: the largest pipe that an
/// unprivileged process can make.
const DRAIN_SLACK: usize = 1 << 20;
/// The most that is read from a command at once: a full pipe, and a full frame.
pub(super) const READ: usize = holdfast_wire::limits::MAX_FRAME_PAYLOAD;
/// A failing disk is tried again after so long. Nothing tells when a full disk has room again.
const RETRY: Duration = Duration::from_secs(5);
/// A job of the writer's that takes longer hangs. It moves a few hundred kilobytes, and syncs a small file.
const HANGS: Duration = Duration::from_secs(5);
/// A read that lacks a descriptor or memory is tried again after so long. Nothing tells when there is one.
const LACK_PAUSE: Duration = Duration::from_millis(100);
/// How long an outcome waits for its record to be on disk. It is kept in memory, and written later, if that takes
/// longer.
const SAVE_WITHIN: Duration = Duration::from_secs(2);

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout = 0,
    Stderr = 1,
}

impl Stream {
    pub(super) const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];

    pub(super) fn wire(self) -> OutputStream {
        match self {
            Self::Stdout => OutputStream::Stdout,
            Self::Stderr => OutputStream::Stderr,
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Stdout => "out",
            Self::Stderr => "err",
        }
    }
}

/// What there is at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// These bytes.
    Data(Bytes),
    /// Nothing any more; go on at `to`.
    Gap { to: u64 },
    /// Nothing yet, or ever: the end of what has been written.
    End,
}

/// One exec's output. Clones are handles to the same.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    exec: ExecId,
    disk: Arc<Disk>,
    kept: Mutex<Kept>,
    /// Bumped when there is more to read.
    readable: watch::Sender<()>,
    /// Bumped when there may be more room.
    room: watch::Sender<()>,
    /// Bumped when the writer has something to do.
    work: watch::Sender<()>,
    /// The last revision of the record that was tried, and whether it is on disk.
    saved: watch::Sender<(u64, bool)>,
}

/// Spools of ended execs, oldest first: what goes when the total is used up.
#[derive(Debug, Default)]
pub(super) struct Ended(Mutex<VecDeque<Weak<Inner>>>);

impl Spool {
    /// An empty spool, and its writer on `tracker`.
    pub(super) fn new(
        exec: ExecId,
        disk: Arc<Disk>,
        per_exec: u64,
        block: bool,
        tracker: &TaskTracker,
        token: CancellationToken,
    ) -> Self {
        let spool = Self::over(exec, disk, Kept::new(per_exec.max(EXEC_MIN), block));
        tracker.spawn(writer::run(spool.clone(), token));
        spool
    }

    fn over(exec: ExecId, disk: Arc<Disk>, kept: Kept) -> Self {
        Self {
            inner: Arc::new(Inner {
                exec,
                disk,
                kept: Mutex::new(kept),
                readable: watch::Sender::new(()),
                room: watch::Sender::new(()),
                work: watch::Sender::new(()),
                saved: watch::Sender::new((0, true)),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Every change is complete before anything can panic.
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- the writing side: one pump for each stream ------------------------------------------

    /// Waits until `stream` may take bytes, and says how many: at least 1, at most [`READ`]. Cancel-safe.
    pub(super) async fn room(&self, stream: Stream) -> usize {
        let (mut room, mut freed) = (self.inner.room.subscribe(), self.inner.disk.freed());
        let mut others_first = true;
        loop {
            room.borrow_and_update();
            freed.borrow_and_update();
            let verdict = self.lock().room(stream, &self.inner.disk, others_first, Instant::now());
            self.settle();
            let until = match verdict {
                Verdict::Free(n) => return n,
                Verdict::OthersFirst => {
                    others_first = self.inner.disk.evict().await;
                    continue;
                }
                Verdict::Wait { until } => until,
            };
            // What ends the wait: an acknowledgement, a reader that comes or goes, the writer, another exec's end.
            tokio::select! {
                // The senders live in `self`: no error.
                _ = room.changed() => {}
                _ = freed.changed() => {}
                () = until_or_never(until) => {}
            }
            others_first = true;
        }
    }

    /// Takes bytes; at most what [`room`](Self::room) said.
    pub(super) fn append(&self, stream: Stream, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.inner.disk.take(data.len() as u64);
        let spill = {
            let mut kept = self.lock();
            kept.append(stream, data);
            kept.wants_writer()
        };
        self.inner.readable.send_replace(());
        if spill {
            self.inner.work.send_replace(());
        }
    }

    /// The leader has ended: what its pipes hold is taken beyond the bounds.
    pub(super) fn drain(&self) {
        self.lock().draining = true;
        self.inner.room.send_replace(());
    }

    /// No more output. Memory goes to disk, so that it survives this process.
    pub(super) fn close(&self) {
        self.lock().flush = true;
        self.inner.readable.send_replace(());
        self.inner.work.send_replace(());
    }

    /// Replaces the record. Written soon; with `sync`, to the disk itself. Returns its revision for
    /// [`saved`](Self::saved).
    pub(super) fn save(&self, record: Record, sync: bool) -> u64 {
        let revision = self.lock().save(record, sync);
        self.inner.work.send_replace(());
        revision
    }

    /// Waits until that revision is on disk, but not longer than an outcome may wait. False: it is not, and the
    /// writer goes on trying.
    pub(super) async fn saved(&self, revision: u64) -> bool {
        let mut saved = self.inner.saved.subscribe();
        let tried = tokio::time::timeout(SAVE_WITHIN, saved.wait_for(|(tried, _)| *tried >= revision)).await;
        matches!(tried, Ok(Ok(state)) if state.1)
    }

    /// The last thing: the writer ends once it has written all, and the output may go when others need the room.
    pub(super) fn retire(&self) {
        self.lock().retired = true;
        self.inner.work.send_replace(());
        self.inner.disk.retired(&self.inner);
    }

    /// Forgets all output and gives its bytes back; the caller removes the files.
    pub(super) fn forget(&self) {
        self.inner.discard();
    }

    // ---- the reading side ---------------------------------------------------------------------

    /// Attaches a reader that has what is before these offsets of stdout and stderr.
    pub(super) fn attach(&self, offsets: [u64; 2]) -> Reader {
        let id = self.lock().attach(offsets);
        self.inner.room.send_replace(());
        Reader { spool: self.clone(), id }
    }

    /// What there is at `offset`, at most `max` bytes of it.
    pub(super) async fn read(&self, stream: Stream, offset: u64, max: usize) -> Piece {
        let mut missing = None;
        loop {
            let (segment, skip, length) = match self.lock().find(stream, offset, max) {
                Place::Memory(data) => return Piece::Data(data),
                Place::Gap { to } => return Piece::Gap { to },
                Place::End => return Piece::End,
                Place::Disk { segment, skip, length } => (segment, skip, length),
            };
            let (disk, exec) = (Arc::clone(&self.inner.disk), self.inner.exec);
            let read = move || disk.read_segment(exec, stream, segment, skip, length);
            let error = match tokio::task::spawn_blocking(read).await {
                Ok(Ok(data)) => return Piece::Data(data),
                Ok(Err(error)) => error,
                Err(error) => std::io::Error::other(error),
            };
            // What it lacks will be there again; the bytes are.
            if is_lack(&error) {
                tokio::time::sleep(LACK_PAUSE).await;
                continue;
            }
            // Not there: dropped between the look and the read, so look again; once.
            let dropped = error.kind() == std::io::ErrorKind::NotFound;
            if !dropped || missing.replace(segment) == Some(segment) {
                let (exec, segment) = (self.inner.exec, segment.from);
                tracing::error!(%exec, segment, %error, "kept output cannot be read: told as a gap");
                return Piece::Gap { to: offset.saturating_add(length as u64) };
            }
        }
    }

    /// Of each stream: the oldest kept offset, and the end.
    pub(super) fn sizes(&self) -> [(u64, u64); 2] {
        self.lock().sizes()
    }

    /// Readers attached now.
    pub(super) fn readers(&self) -> usize {
        self.lock().readers()
    }

    /// Wakes when there is more to read.
    pub(super) fn readable(&self) -> watch::Receiver<()> {
        self.inner.readable.subscribe()
    }

    /// Carries out what a look at the room decided: bytes given back, files to unlink.
    fn settle(&self) {
        let (freed, unlink) = {
            let mut kept = self.lock();
            (kept.take_freed(), kept.has_unlinks())
        };
        self.inner.disk.give_back(freed);
        if unlink {
            self.inner.work.send_replace(());
        }
    }
}

impl Inner {
    /// Drops all that is kept, unless somebody reads it (`None`).
    fn discard_unread(&self) -> Option<u64> {
        if self.kept.lock().unwrap_or_else(PoisonError::into_inner).readers() > 0 {
            return None;
        }
        Some(self.discard())
    }

    fn discard(&self) -> u64 {
        let freed = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.drop_all();
            kept.take_freed()
        };
        self.disk.give_back(freed);
        self.work.send_replace(());
        freed
    }

    /// The files that nothing names any more.
    fn take_unlinks(&self) -> Vec<(Stream, Segment)> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).take_unlinks()
    }
}

impl Disk {
    fn retired(&self, spool: &Arc<Inner>) {
        let mut ended = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|spool| spool.strong_count() > 0);
        ended.push_back(Arc::downgrade(spool));
    }

    /// Drops the output of the exec that ended first and that nobody reads. False: there is none.
    async fn evict(&self) -> bool {
        let spools: Vec<_> = {
            let ended = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
            ended.iter().filter_map(Weak::upgrade).collect()
        };
        for spool in spools {
            if !matches!(spool.discard_unread(), Some(freed) if freed > 0) {
                continue;
            }
            tracing::info!(exec = %spool.exec, "the spool is full: the output of this ended exec goes");
            // A writer that has ended takes no more work; should this future be dropped, the thread goes on.
            let unlink = move || {
                for (stream, segment) in spool.take_unlinks() {
                    spool.disk.unlink(spool.exec, stream, segment);
                }
            };
            // A panic in it leaves files that go with their directory.
            let _ = tokio::task::spawn_blocking(unlink).await;
            return true;
        }
        false
    }
}

/// A reader's place: while it is there, `block` keeps what it has not acknowledged.
#[derive(Debug)]
pub(super) struct Reader {
    spool: Spool,
    id: u64,
}

impl Reader {
    /// It has everything before these offsets for good.
    pub(super) fn ack(&self, offsets: [u64; 2]) {
        self.spool.lock().ack(self.id, offsets);
        self.spool.inner.room.send_replace(());
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.spool.lock().detach(self.id);
        self.spool.inner.room.send_replace(());
    }
}

/// No descriptor or no memory for a read, at this moment.
fn is_lack(error: &std::io::Error) -> bool {
    let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN, libc::EINTR];
    error.raw_os_error().is_some_and(|errno| lacks.contains(&errno))
}

async fn until_or_never(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
