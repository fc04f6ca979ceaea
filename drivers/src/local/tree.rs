//! All processes of a workload: freezing, thawing and ending them together.
//!
//! Who belongs to a workload:
//! - the supervisor and everything below it by parentage. In a PID namespace that is everybody: orphans become
//!   children of the namespace's first process, the supervisor.
//! - in a plain workload also whoever carries the workload's mark, `HOLDFAST_SANDBOX_ID`, in its first
//!   environment: orphans there have gone to some other parent. A command that was started with an emptied
//!   environment, *and* whose supervisor is dead, is not found; only a namespace holds it.
//!
//! Freezing is by SIGSTOP, from the supervisor down, so that no parent sees its child stop; thawing goes from the
//! leaves up for the same reason. There is no notification for another's child having stopped, so that freezing
//! looks again until all are still.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use holdfast_wire::ids::SandboxId;
use rustix::{
    event::{Timespec, poll},
    process::Signal,
};

use super::{
    process::{self, ProcessId, Stat},
    record::Spared,
};

/// The variables that mark a supervisor and, as they inherit it, its commands.
pub(crate) const SANDBOX_MARK: &str = "HOLDFAST_SANDBOX_ID";
/// Tells workloads of the same sandbox apart that live in two data directories, one a copy of the other.
pub(crate) const DIR_MARK: &str = "HOLDFAST_WORKLOAD_DIR";

/// How long all processes may take to stop. A signal reaches a process within microseconds, unless the machine
/// is badly overloaded.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);
/// How long killed processes may take to be over: longer only when the kernel holds them, as on a dead NFS.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// The most spared processes that are remembered. More would only be thawed with the rest.
const MAX_SPARED: usize = 4096;

/// Which processes are meant.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) leader: Option<ProcessId>,
    pub(super) sandbox: SandboxId,
    pub(super) dir: std::path::PathBuf,
    /// Its own PID namespace: parentage says it all.
    pub(super) namespaces: bool,
}

impl Tree {
    /// The processes that are stopped already, by somebody else.
    pub(super) fn stopped_before(&self, boot: &str) -> io::Result<Spared> {
        let members = self.members()?;
        let leader = self.leader.as_ref().map(|leader| leader.pid);
        let stopped = members.iter().filter(|stat| stat.is_stopped() && Some(stat.pid) != leader);
        let id = |stat: &Stat| ProcessId { pid: stat.pid, started: stat.started, boot: boot.to_owned() };
        Ok(Spared { processes: stopped.take(MAX_SPARED).map(id).collect() })
    }

    /// Stops every process; true when all are still. On a busy machine some may stop a little later than this
    /// call ends, but the signal is on its way to each.
    pub(super) fn freeze(&self) -> io::Result<bool> {
        let deadline = Instant::now() + FREEZE_PATIENCE;
        let mut known = HashSet::new();
        loop {
            let members = self.members()?;
            let mut all_known = true;
            // From the top down: `members` has parents before their children.
            for stat in &members {
                if known.insert((stat.pid, stat.started)) {
                    all_known = false;
                    if !stat.is_stopped() {
                        process::signal_seen(stat, Signal::STOP)?;
                    }
                }
            }
            // One that was told only now may have had a child since it was looked at. One that was told before this
            // look has none that is not here: the kernel refuses a fork while a signal waits.
            if all_known && members.iter().all(Stat::is_still) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            // A millisecond, because nothing can be awaited here: see above.
            let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 }));
        }
    }

    /// Lets every process run on, but for the spared ones. One that cannot be reached does not keep the others.
    pub(super) fn thaw(&self, spared: &Spared) -> io::Result<()> {
        let spared: HashSet<_> = spared.processes.iter().map(|id| (id.pid, id.started)).collect();
        let mut failed = Ok(());
        for stat in self.members()?.iter().rev() {
            if !spared.contains(&(stat.pid, stat.started)) {
                failed = failed.and(process::signal_seen(stat, Signal::CONT).map(drop));
            }
        }
        failed
    }

    /// Ends every process at once; true when all are over. In a namespace the kernel ends the rest with the first.
    pub(super) fn kill(&self) -> io::Result<bool> {
        let deadline = Instant::now() + KILL_PATIENCE;
        loop {
            let mut killed: Vec<OwnedFd> = Vec::new();
            let mut failed = Ok(());
            for stat in self.members()?.iter().filter(|stat| !stat.is_over()) {
                match process::signal_seen(stat, Signal::KILL) {
                    Ok(fd) => killed.extend(fd),
                    // Such as one that became another user's by sudo. The others end all the same.
                    Err(error) => failed = Err(error),
                }
            }
            if killed.is_empty() {
                return failed.map(|()| true);
            }
            // Again after that: one of them may have had a child while it was being killed.
            if !process::wait_all(&killed, deadline.saturating_duration_since(Instant::now())) {
                return Ok(false);
            }
        }
    }

    /// The supervisor of a workload whose start was interrupted before it was recorded: the oldest process that
    /// carries the mark of this directory.
    pub(super) fn find_leader(&self, boot: &str) -> io::Result<Option<ProcessId>> {
        let marked =
            all_processes()?.into_iter().filter(|stat| !stat.is_over() && self.is_marked(stat.pid, true));
        let oldest = marked.min_by_key(|stat| (stat.started, stat.pid));
        Ok(oldest.map(|stat| ProcessId { pid: stat.pid, started: stat.started, boot: boot.to_owned() }))
    }

    /// Everybody who belongs to the workload, parents before children.
    fn members(&self) -> io::Result<Vec<Stat>> {
        let all = all_processes()?;
        let leader = self.leader.as_ref();
        let is_root = |stat: &&Stat| {
            leader.is_some_and(|leader| (leader.pid, leader.started) == (stat.pid, stat.started))
                || (!self.namespaces && self.is_marked(stat.pid, false))
        };
        let roots: Vec<u32> = all.iter().filter(is_root).map(|stat| stat.pid).collect();
        Ok(descend(&all, roots))
    }

    fn is_marked(&self, pid: u32, dir_too: bool) -> bool {
        if pid == std::process::id() || pid == 1 {
            return false;
        }
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
        is_marked(&environment, self.sandbox, &self.dir, dir_too)
    }
}

fn is_marked(environment: &[u8], sandbox: SandboxId, dir: &Path, dir_too: bool) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let value = |name: &str| {
        environment
            .split(|&byte| byte == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")))
    };
    let same_dir = match value(DIR_MARK) {
        Some(marked) => marked == dir.as_os_str().as_bytes(),
        None => !dir_too,
    };
    same_dir && value(SANDBOX_MARK) == Some(sandbox.to_string().as_bytes())
}

fn all_processes() -> io::Result<Vec<Stat>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        // One that ended since it was listed is simply not there.
        all.extend(pid.and_then(|pid| process::stat(pid).ok()));
    }
    Ok(all)
}

fn descend(all: &[Stat], roots: Vec<u32>) -> Vec<Stat> {
    let mut children: HashMap<u32, Vec<&Stat>> = HashMap::new();
    for stat in all {
        children.entry(stat.parent).or_default().push(stat);
    }
    let roots: HashSet<u32> = roots.into_iter().collect();
    let mut members: Vec<Stat> = all.iter().filter(|stat| roots.contains(&stat.pid)).copied().collect();
    let mut met: HashSet<u32> = roots;
    let mut next = 0;
    while let Some(parent) = members.get(next).map(|stat| stat.pid) {
        next += 1;
        for child in children.get(&parent).into_iter().flatten() {
            if met.insert(child.pid) {
                members.push(**child);
            }
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_the_whole_variable_of_this_sandbox_and_directory() {
        let (id, other) = (SandboxId::random(), SandboxId::random());
        let dir = Path::new("/data/a");
        let environment = |lines: &[String]| lines.join("\0").into_bytes();
        let mark = format!("{SANDBOX_MARK}={id}");
        assert!(is_marked(&environment(&["A=b".into(), mark.clone()]), id, dir, false));
        assert!(!is_marked(&environment(std::slice::from_ref(&mark)), other, dir, false));
        assert!(!is_marked(&environment(&[format!("X{mark}")]), id, dir, false));
        assert!(!is_marked(&environment(&[format!("{mark}0")]), id, dir, false));
        assert!(!is_marked(&environment(std::slice::from_ref(&mark)), id, dir, true));
        let here = environment(&[mark.clone(), format!("{DIR_MARK}=/data/a")]);
        let copy = environment(&[mark, format!("{DIR_MARK}=/data/b")]);
        assert!(is_marked(&here, id, dir, true));
        assert!(!is_marked(&copy, id, dir, false));
    }

    #[test]
    fn parents_come_before_their_children_and_strangers_not_at_all() {
        let mine = process::stat(std::process::id()).unwrap();
        let stat = |pid: u32, parent: u32| {
            let mut stat = mine;
            (stat.pid, stat.parent) = (pid, parent);
            stat
        };
        let all = [stat(9, 5), stat(5, 3), stat(3, 1), stat(4, 1), stat(7, 3), stat(8, 4)];
        let members: Vec<u32> = descend(&all, vec![3]).iter().map(|stat| stat.pid).collect();
        assert_eq!(members, [3, 5, 7, 9]);
    }
}
