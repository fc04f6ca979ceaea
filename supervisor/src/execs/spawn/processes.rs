//! Finding and killing an exec's processes by looking through `/proc`: by cgroup where there is one, else by
//! session, by process group, and by the variable that every command of an exec carries (so that a stray that
//! made a session of its own is found too).
//!
//! Pids are reused. A process is held by its pidfd, looked at once more, and only then signalled.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read as _,
    os::fd::OwnedFd,
    path::Path,
};

use holdfast_wire::ids::ExecId;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal},
};

use super::{EXEC_ID_VARIABLE, cgroup::Cgroup};

/// How much of a process's environment is searched for the marker, in bytes. It is put first; what a command adds
/// for its own children comes behind it.
const ENVIRON: u64 = 64 * 1024;

/// What tells an exec's processes from others.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub(super) exec: ExecId,
    /// Leader, session and group.
    pub(super) pid: u32,
    /// When the leader started; 0: not known.
    pub(super) start_ticks: u64,
    pub(super) cgroup: Option<Cgroup>,
}

/// One process, held: the descriptor means it and no other.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) pid: u32,
    /// `None` before Linux 5.3, where signals go by pid.
    fd: Option<OwnedFd>,
}

impl Held {
    fn open(pid: u32) -> Option<Self> {
        match rustix::process::pidfd_open(raw(pid)?, PidfdFlags::NONBLOCK) {
            Ok(fd) => Some(Self { pid, fd: Some(fd) }),
            // NONBLOCK came with 5.10, pidfd_open itself with 5.3.
            Err(Errno::INVAL | Errno::NOSYS) => Some(Self { pid, fd: None }),
            Err(_) => None,
        }
    }

    /// Signals it. It may have ended in between: no error.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = match (&self.fd, raw(self.pid)) {
            (Some(fd), _) => rustix::process::pidfd_send_signal(fd, signal),
            (None, Some(pid)) => rustix::process::kill_process(pid, signal),
            (None, None) => Ok(()),
        };
    }

    pub(super) fn into_fd(self) -> Option<OwnedFd> {
        self.fd
    }
}

/// Whom a look met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Killed {
    /// How many, besides the leader.
    pub(super) others: usize,
    /// How many that no look before it had met, the leader included.
    pub(super) new: usize,
}

impl Family {
    /// All that live now, but the leader if `leader` is false. Zombies do not live.
    pub(super) fn members(&self, leader: bool) -> Vec<Held> {
        let in_cgroup = self.cgroup.as_ref().map(Cgroup::pids).unwrap_or_default();
        let session_is_ours = self.session_is_ours();
        let marker = format!("{EXEC_ID_VARIABLE}={}", self.exec);
        let own = std::process::id();
        let belongs = |stat: &Stat| {
            in_cgroup.contains(&stat.pid)
                || (session_is_ours && (stat.session == self.pid || stat.group == self.pid))
                || carries(stat.pid, marker.as_bytes())
        };
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid > 1 && *pid != own && (leader || *pid != self.pid))
            .filter_map(|pid| {
                let stat = Stat::of(pid).filter(|stat| !stat.dead && belongs(stat))?;
                let held = Held::open(pid)?;
                // The pid may have changed hands before it was held.
                (Stat::of(pid)?.start_ticks == stat.start_ticks).then_some(held)
            })
            .collect()
    }

    /// SIGKILL to all that live now. `seen` are those whom earlier looks have signalled; they may be dying yet.
    pub(super) fn kill_once(&self, seen: &mut HashSet<u32>) -> Killed {
        let members = self.members(true);
        let others = members.iter().filter(|held| held.pid != self.pid).count();
        let new = members.iter().filter(|held| seen.insert(held.pid)).count();
        // With cgroup.kill too: it is atomic, but a stray may have left the cgroup.
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        members.iter().for_each(|held| held.signal(Signal::KILL));
        Killed { others, new }
    }

    /// SIGKILL to all, and to whom they started while they were looked for, until a look finds nobody new: who has
    /// been signalled starts nobody any more. Says how many there were.
    pub(super) fn kill_all_there_are(&self) -> usize {
        let mut killed = HashSet::new();
        loop {
            let mut new = self.members(true);
            new.retain(|held| killed.insert(held.pid));
            if new.is_empty() {
                return killed.len();
            }
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
            }
            new.iter().for_each(|held| held.signal(Signal::KILL));
        }
    }

    /// False once the leader's pid is another process's: its session is then not ours. While a member of ours
    /// lives, the kernel gives the number to nobody.
    fn session_is_ours(&self) -> bool {
        self.pid > 1
            && match Stat::of(self.pid) {
                Some(stat) => self.start_ticks == 0 || stat.start_ticks == self.start_ticks,
                None => true,
            }
    }

    /// For what an earlier supervisor left: the session counts only if its leader lives and is the same one. Else
    /// cgroup and marker alone tell.
    pub(super) fn of_the_past(mut self) -> Self {
        let same_leader = Stat::of(self.pid).is_some_and(|stat| stat.start_ticks == self.start_ticks);
        if !same_leader {
            self.pid = 0;
        }
        self
    }
}

fn carries(pid: u32, marker: &[u8]) -> bool {
    let mut environ = Vec::new();
    let read = File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(ENVIRON).read_to_end(&mut environ));
    read.is_ok() && environ.split(|byte| *byte == 0).any(|variable| variable == marker)
}

fn raw(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// What `/proc/<pid>/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: u32,
    pub(super) dead: bool,
    pub(super) group: u32,
    pub(super) session: u32,
    pub(super) start_ticks: u64,
}

impl Stat {
    pub(super) fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?)
    }

    /// The name in parentheses may hold anything, so the fields are counted from its last parenthesis.
    fn parse(stat: &[u8]) -> Option<Self> {
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let pid = std::str::from_utf8(stat.split(|byte| *byte == b' ').next()?).ok()?.parse().ok()?;
        let rest = std::str::from_utf8(stat.get(end + 2..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            pid,
            dead: matches!(*fields.first()?, "Z" | "X" | "x"),
            group: fields.get(2)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

/// The kernel's boot.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_name_is() {
        let line = b"42 (a) b (c)) S 1 40 41 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1000 1 2\n";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat, Stat { pid: 42, dead: false, group: 40, session: 41, start_ticks: 777 });
        assert!(Stat::parse(b"42 (x").is_none());
        assert!(Stat::parse(b"").is_none());
    }

    #[test]
    fn a_living_process_is_found_and_a_reused_pid_is_not_ours() {
        let own = Stat::of(std::process::id()).unwrap();
        assert!(!own.dead);
        let family =
            Family { exec: ExecId::random(), pid: own.pid, start_ticks: own.start_ticks + 1, cgroup: None };
        assert!(!family.session_is_ours());
        assert!(family.members(true).is_empty());
    }
}
