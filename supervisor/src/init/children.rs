//! Whose child is it? Processes that the supervisor started itself, told apart from orphans that the kernel
//! handed to it as the first process of its PID namespace.
//!
//! tokio waits for each process that was started through it. Were the reaper (see [`super::reap`]) to collect
//! one of those, its exit status would be lost, and with it an exec's outcome. So whoever starts a process does
//! it through [`Children::spawn`] and keeps the [`Child`](OwnChild) mark until the process has been waited for.
//!
//! ```text
//!   spawn ── lock ── fork, exec ── pid noted ── unlock ──▶ OwnChild … waited for … dropped ──▶ pid forgotten
//!   reap  ── lock ── is the zombie's pid noted? no ── collect ── unlock
//! ```

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
    own: Mutex<HashSet<u32>>,
    /// One of ours has been waited for: what it hid from the reaper can be seen now.
    forgotten: Notify,
}

impl Children {
    /// Starts a process by `start` (which gives the started thing and its pid) and notes its pid, with no instant
    /// in between at which the reaper could take it for an orphan. `start` blocks the reaper and other starts:
    /// it forks and does nothing else.
    pub fn spawn<T, E>(
        &self,
        start: impl FnOnce() -> Result<(T, Option<u32>), E>,
    ) -> Result<(T, OwnChild), E> {
        let mut own = self.lock();
        let (started, pid) = start()?;
        if let Some(pid) = pid {
            own.insert(pid);
        }
        drop(own);
        Ok((started, OwnChild { children: self.clone(), pid }))
    }

    /// Runs `reap` with the question whether a pid is one of ours; nothing is started meanwhile.
    pub(super) fn excluding<T>(&self, reap: impl FnOnce(&dyn Fn(u32) -> bool) -> T) -> T {
        let own = self.lock();
        reap(&|pid| own.contains(&pid))
    }

    /// Waits until one of ours has been waited for.
    pub(super) async fn forgotten(&self) {
        self.shared.forgotten.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<u32>> {
        // A set of numbers is whole whatever panicked while it was locked.
        self.shared.own.lock().unwrap_or_else(PoisonError::into_inner)
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
            self.children.lock().remove(&pid);
            self.children.shared.forgotten.notify_one();
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
        assert!(children.excluding(|ours| ours(7) && !ours(8)));
        drop(mark);
        assert!(children.excluding(|ours| !ours(7)));
    }

    #[test]
    fn what_did_not_start_is_not_noted() {
        let children = Children::default();
        assert!(children.spawn(|| Err::<((), Option<u32>), _>("no")).is_err());
        assert!(children.lock().is_empty());
    }
}
