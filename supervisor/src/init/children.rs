//! Whose child is it? Processes that the supervisor started itself, told apart from orphans that the kernel
//! handed to it as the first process of its PID namespace.
//!
//! tokio waits for each process that was started through it. Were the reaper (see [`mod@super::reap`]) to collect
//! one of those, its exit status would be lost, and with it an exec's outcome. So whoever starts a process does
//! it through [`Children::spawn`] and keeps the [`OwnChild`] mark until the process has been waited for.
//!
//! ```text
//!   spawn ── a start is under way ── fork, exec ── pid noted, start over ──▶ OwnChild … waited for … dropped
//!   reap  ── no start under way? ── is the zombie's pid noted? no ── collect
//! ```
//!
//! Between fork and note a child's pid is known to nobody, so nothing is collected while a start is under way. A
//! start takes milliseconds; one that hangs in a dead mount leaves orphans lying about until it returns, and
//! holds up neither other starts nor the runtime.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The pids of the processes that this supervisor started and waits for itself. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Children {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    /// The reaper may see now what it could not before: a start is over, or one of ours has been waited for.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    own: HashSet<u32>,
    starting: usize,
}

impl Children {
    /// Starts a process by `start` (which gives the started thing and its pid) and notes its pid, with no instant
    /// in between at which the reaper could take it for an orphan.
    pub fn spawn<T, E>(
        &self,
        start: impl FnOnce() -> Result<(T, Option<u32>), E>,
    ) -> Result<(T, OwnChild), E> {
        let under_way = UnderWay::begin(self);
        let (started, pid) = start()?;
        if let Some(pid) = pid {
            self.lock().own.insert(pid);
        }
        drop(under_way);
        Ok((started, OwnChild { children: self.clone(), pid }))
    }

    /// Runs `reap` with the question whether a pid is one of ours, unless a start is under way; none begins
    /// meanwhile, so `reap` must not block.
    pub(super) fn excluding<T>(&self, reap: impl FnOnce(&dyn Fn(u32) -> bool) -> T) -> Option<T> {
        let known = self.lock();
        (known.starting == 0).then(|| reap(&|pid| known.own.contains(&pid)))
    }

    /// Waits until there may be more to collect.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Numbers, whole whatever panicked while they were locked.
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A start under way, until dropped.
struct UnderWay<'a>(&'a Children);

impl<'a> UnderWay<'a> {
    fn begin(children: &'a Children) -> Self {
        children.lock().starting += 1;
        Self(children)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock().starting -= 1;
        self.0.shared.changed.notify_one();
    }
}

/// The mark of one process of ours. Drop it once the process has been waited for, not before.
#[derive(Debug)]
pub struct OwnChild {
    children: Children,
    pid: Option<u32>,
}

impl Drop for OwnChild {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            self.children.lock().own.remove(&pid);
            self.children.shared.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_ours_from_its_start_until_its_mark_is_dropped() {
        let children = Children::default();
        let (_, mark) = children.spawn(|| Ok::<_, ()>(((), Some(7)))).unwrap();
        assert_eq!(children.excluding(|ours| (ours(7), ours(8))), Some((true, false)));
        drop(mark);
        assert_eq!(children.excluding(|ours| ours(7)), Some(false));
    }

    #[test]
    fn nothing_is_collected_while_a_start_is_under_way() {
        let children = Children::default();
        let seen = children.spawn(|| {
            let (_, _other) = children.spawn(|| Ok::<_, ()>(((), Some(8))))?;
            Ok::<_, ()>((children.excluding(|_| ()), Some(7)))
        });
        assert_eq!(seen.unwrap().0, None);
        assert_eq!(children.excluding(|_| ()), Some(()));
    }

    #[test]
    fn what_did_not_start_is_not_noted() {
        let children = Children::default();
        assert!(children.spawn(|| Err::<((), Option<u32>), _>("no")).is_err());
        assert!(children.lock().own.is_empty());
        assert_eq!(children.excluding(|_| ()), Some(()));
    }
}
