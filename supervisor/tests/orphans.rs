//! Zombies belong to a whole process, so this test has one of its own: beside other tests it would collect their
//! children, and they its.

use holdfast_supervisor::init::{Children, reap};
use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, waitid},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const PEEK: WaitPidFlag = WaitPidFlag::WEXITED.union(WaitPidFlag::WNOHANG).union(WaitPidFlag::WNOWAIT);

#[tokio::test]
async fn orphans_are_collected_and_own_children_keep_their_status() {
    // What the first process of a PID namespace is by nature.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let (children, token) = (Children::default(), CancellationToken::new());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(reap(children.clone(), token.clone()));
    for round in 0..20 {
        // The shell leaves a process behind, which becomes an orphan of ours, and ends with a status.
        let (mut child, mark) = children
            .spawn(|| {
                let mut command = tokio::process::Command::new("/bin/sh");
                command.arg("-c").arg(format!("sleep 0.01 & exit {round}"));
                command.spawn().map(|child| {
                    let pid = child.id();
                    (child, pid)
                })
            })
            .unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(round), "its status was not stolen");
        drop(mark);
    }
    let gone = async {
        let mut ended = signal(SignalKind::child()).unwrap();
        // Each end is a SIGCHLD; the pause is for the reaper, whose collecting tells nobody.
        while waitid(Id::All, PEEK) != Err(Errno::ECHILD) {
            let _ = tokio::time::timeout(std::time::Duration::from_millis(20), ended.recv()).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), gone)
        .await
        .expect("no child is left, dead or alive");
    token.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
}
