//! Collects orphans, and only orphans.
//!
//! ```text
//!   SIGCHLD, a start over, one of ours waited for ──▶ peek at a zombie (WNOWAIT) ── ours? ──▶ leave it, wait for its owner
//!                                                 ▲                   └─ orphan ──▶ collect that pid ──┐
//!                                                 └──────────────────────────────────────────────────┘
//! ```
//!
//! A peek shows the kernel's first zombie, whoever it belongs to. If it is one of ours, tokio collects it within
//! moments, its mark is dropped, and that is the news that wakes this loop for the next peek.

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Children;

/// Collects orphans until `token` is cancelled.
pub async fn reap(children: Children, token: CancellationToken) -> std::io::Result<()> {
    let mut born_dead: Signal = signal(SignalKind::child())?;
    loop {
        collect(&children);
        tokio::select! {
            _ = born_dead.recv() => {}
            () = children.changed() => {}
            () = token.cancelled() => return Ok(()),
        }
    }
}

/// Collects all orphans that can be seen now; how many there were.
fn collect(children: &Children) -> usize {
    let mut collected = 0;
    let one = |ours: &dyn Fn(u32) -> bool| {
        let Some(zombie) = peek() else { return false };
        let own = u32::try_from(zombie.as_raw()).is_ok_and(ours);
        !own && take(zombie)
    };
    while children.excluding(one) == Some(true) {
        collected += 1;
    }
    if collected > 0 {
        tracing::debug!(collected, "orphans collected");
    }
    collected
}

/// The pid of a zombie, left as it is.
fn peek() -> Option<Pid> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, look) {
        Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => Some(pid),
        Ok(_) | Err(Errno::ECHILD | Errno::EINTR) => None,
        Err(errno) => {
            tracing::warn!(%errno, "looking for orphans");
            None
        }
    }
}

fn take(zombie: Pid) -> bool {
    match waitid(Id::Pid(zombie), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
        Ok(_) => true,
        Err(errno) => {
            tracing::warn!(pid = zombie.as_raw(), %errno, "collecting an orphan");
            false
        }
    }
}
