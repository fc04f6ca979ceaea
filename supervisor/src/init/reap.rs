//! Collects orphans, and only orphans.
//!
//! ```text
//!   SIGCHLD, or one of ours waited for ──▶ peek at a zombie (WNOWAIT) ── ours? ──▶ leave it, wait for its owner
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
pub(crate) async fn reap(children: Children, token: CancellationToken) -> std::io::Result<()> {
    let mut born_dead: Signal = signal(SignalKind::child())?;
    loop {
        collect(&children);
        tokio::select! {
            _ = born_dead.recv() => {}
            () = children.forgotten() => {}
            () = token.cancelled() => return Ok(()),
        }
    }
}

/// Collects all orphans that can be seen now; how many there were.
fn collect(children: &Children) -> usize {
    let mut collected = 0;
    while children.excluding(|ours| {
        let Some(zombie) = peek() else { return false };
        let own = u32::try_from(zombie.as_raw()).is_ok_and(ours);
        !own && take(zombie)
    }) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole of it in one test: zombies belong to the process, so two tests would collect each other's.
    ///
    /// Run in a child process that is the subreaper, because the test runner's other children are not ours.
    #[tokio::test]
    async fn orphans_are_collected_and_own_children_keep_their_status() {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let children = Children::default();
        let token = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(reap(children.clone(), token.clone()));
        for round in 0..20 {
            // The shell leaves a grandchild behind, which becomes an orphan of ours, and ends with a status.
            let (child, mark) = children
                .spawn(|| {
                    let mut command = tokio::process::Command::new("/bin/sh");
                    command.arg("-c").arg(format!("sleep 0.01 & exit {round}"));
                    command.spawn().map(|child| {
                        let pid = child.id();
                        (child, pid)
                    })
                })
                .unwrap();
            let status = { child }.wait().await.unwrap();
            assert_eq!(status.code(), Some(round), "its status was not stolen");
            drop(mark);
        }
        // The last sleepers end within moments; each end is a SIGCHLD. No zombie and no child is left then.
        let gone = async {
            let mut ended = signal(SignalKind::child()).unwrap();
            while !matches!(waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT), Err(Errno::ECHILD)) {
                let _ = tokio::time::timeout(std::time::Duration::from_millis(20), ended.recv()).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), gone).await.expect("all orphans are collected");
        token.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}
