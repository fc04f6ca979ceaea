//! The board: what a driver sees now, for any number of watchers.
//!
//! Drivers put levels on it and take them off; a watcher gets each level once, and again when it changes.
//! Nothing is queued: a slow watcher skips steps and sees the newest. A level taken off is told as `Gone` to
//! every watcher that had seen it. So memory is bounded by the number of workloads, whatever watchers do.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt, stream};
use holdfast_wire::ids::{Generation, SandboxId};
use tokio::sync::watch;

use crate::{Observed, ObservedStream};

/// The levels of one driver. Clones are the same board.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    levels: Mutex<Levels>,
    mark: watch::Sender<Mark>,
}

#[derive(Debug, Default)]
struct Levels {
    revision: u64,
    entries: BTreeMap<SandboxId, (u64, Observed)>,
}

/// What wakes watchers.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    /// The newest revision of the levels.
    revision: u64,
    /// Watches belong to the era in which they began, and end with it.
    era: u64,
    closed: bool,
}

impl Board {
    /// Puts a level on the board. One that says nothing new keeps the time stamp of the old and wakes nobody.
    pub(crate) fn put(&self, observed: Observed) {
        self.change(|entries, revision| {
            let old = entries.get(&observed.sandbox);
            if old.is_some_and(|(_, old)| old.same_level(&observed)) {
                return false;
            }
            entries.insert(observed.sandbox, (revision, observed));
            true
        });
    }

    /// Takes a level off.
    pub(crate) fn take(&self, sandbox: SandboxId) {
        self.change(|entries, _| entries.remove(&sandbox).is_some());
    }

    pub(crate) fn get(&self, sandbox: SandboxId) -> Option<Observed> {
        self.0.levels().entries.get(&sandbox).map(|(_, observed)| observed.clone())
    }

    pub(crate) fn all(&self) -> Vec<Observed> {
        self.0.levels().entries.values().map(|(_, observed)| observed.clone()).collect()
    }

    /// Every level, then every change, until the board is closed.
    pub(crate) fn watch(&self) -> ObservedStream {
        let mark = self.0.mark.subscribe();
        let era = mark.borrow().era;
        let watcher = Watcher {
            board: self.0.clone(),
            mark,
            era,
            seen: 0,
            told: BTreeMap::new(),
            pending: VecDeque::new(),
        };
        stream::unfold(watcher, |mut watcher| async move {
            let observed = watcher.next().await?;
            Some((observed, watcher))
        })
        .boxed()
    }

    /// Ends every watch, those that begin later too. Levels can still be read.
    pub(crate) fn close(&self) {
        self.0.mark.send_modify(|mark| mark.closed = true);
    }

    /// Whether both are the same board.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Ends the watches of today; new ones work.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn interrupt(&self) {
        self.0.mark.send_modify(|mark| mark.era += 1);
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<SandboxId, (u64, Observed)>, u64) -> bool) {
        let mut levels = self.0.levels();
        let revision = levels.revision + 1;
        if !change(&mut levels.entries, revision) {
            return;
        }
        levels.revision = revision;
        // Under the lock, so that marks come in the order of their revisions.
        self.0.mark.send_modify(|mark| mark.revision = revision);
    }
}

impl Inner {
    fn levels(&self) -> MutexGuard<'_, Levels> {
        // A panic while holding the lock cannot leave half a level: every change is one call on a map.
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader's place on the board.
struct Watcher {
    board: Arc<Inner>,
    mark: watch::Receiver<Mark>,
    era: u64,
    /// The newest revision that was read.
    seen: u64,
    /// What the reader was told of, so that it can be told when that is gone.
    told: BTreeMap<SandboxId, Generation>,
    pending: VecDeque<Observed>,
}

impl Watcher {
    async fn next(&mut self) -> Option<Observed> {
        loop {
            let mark = *self.mark.borrow_and_update();
            if mark.closed || mark.era != self.era {
                return None;
            }
            if let Some(observed) = self.pending.pop_front() {
                return Some(observed);
            }
            self.read();
            if self.pending.is_empty() {
                self.mark.changed().await.ok()?;
            }
        }
    }

    /// Takes from the board what is newer than what was read.
    fn read(&mut self) {
        let levels = self.board.levels();
        if levels.revision == self.seen {
            return;
        }
        let entries = &levels.entries;
        let gone = self.told.extract_if(.., |sandbox, _| !entries.contains_key(sandbox));
        self.pending.extend(gone.map(|(sandbox, generation)| Observed::gone(sandbox, generation)));
        for (revision, observed) in entries.values() {
            if *revision > self.seen {
                self.told.insert(observed.sandbox, observed.generation);
                self.pending.push_back(observed.clone());
            }
        }
        self.seen = levels.revision;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::WorkloadState;

    fn level(sandbox: SandboxId, state: WorkloadState) -> Observed {
        Observed { state, ..Observed::gone(sandbox, Generation(1)) }
    }

    async fn next(stream: &mut ObservedStream) -> (SandboxId, WorkloadState) {
        let observed = stream.next().await.expect("the watch goes on");
        (observed.sandbox, observed.state)
    }

    #[tokio::test]
    async fn a_watch_begins_with_what_is_there() {
        let (board, id) = (Board::default(), SandboxId::random());
        board.put(level(id, WorkloadState::Running));
        let mut watch = board.watch();
        assert_eq!(next(&mut watch).await, (id, WorkloadState::Running));
        assert!(watch.next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_slow_watcher_sees_the_newest_level_and_no_backlog() {
        let (board, id) = (Board::default(), SandboxId::random());
        let mut watch = board.watch();
        assert!(watch.next().now_or_never().is_none());
        for state in [WorkloadState::Creating, WorkloadState::Running, WorkloadState::Paused] {
            board.put(level(id, state));
        }
        assert_eq!(next(&mut watch).await, (id, WorkloadState::Paused));
        assert!(watch.next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn what_was_told_and_is_taken_off_is_told_as_gone_once() {
        let (board, id, unseen) = (Board::default(), SandboxId::random(), SandboxId::random());
        board.put(level(id, WorkloadState::Running));
        let mut watch = board.watch();
        assert_eq!(next(&mut watch).await, (id, WorkloadState::Running));
        board.put(level(unseen, WorkloadState::Running));
        board.take(unseen);
        board.take(id);
        assert_eq!(next(&mut watch).await, (id, WorkloadState::Gone));
        assert!(watch.next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_level_that_says_nothing_new_wakes_nobody() {
        let (board, id) = (Board::default(), SandboxId::random());
        board.put(level(id, WorkloadState::Running));
        let at = board.get(id).unwrap().at;
        let mut watch = board.watch();
        next(&mut watch).await;
        board.put(level(id, WorkloadState::Running));
        assert!(watch.next().now_or_never().is_none());
        assert_eq!(board.get(id).unwrap().at, at);
    }

    #[tokio::test]
    async fn an_interrupted_watch_ends_and_a_new_one_starts_over() {
        let (board, id) = (Board::default(), SandboxId::random());
        board.put(level(id, WorkloadState::Running));
        let mut watch = board.watch();
        next(&mut watch).await;
        board.interrupt();
        assert_eq!(watch.next().await, None);
        assert_eq!(next(&mut board.watch()).await, (id, WorkloadState::Running));
        board.close();
        assert_eq!(board.watch().next().await, None);
    }
}
