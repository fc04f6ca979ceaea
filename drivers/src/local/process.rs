//! One process, held so that it cannot be taken for another.
//!
//! A PID alone is a number that the system gives out again. Kept on disk is the PID with its start time and the
//! boot that both belong to; held in memory is a pidfd, which stays with its process. Signals and waiting go
//! through the pidfd, for children of this gateway and for those of one before it alike.

use std::{fs, io, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

use crate::Exit;

/// Which process, across gateways and boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub(super) pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
    pub(super) started: u64,
    /// The boot id.
    pub(super) boot: String,
}

/// What the system shows of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It runs, or sleeps as processes do.
    Runs,
    /// A signal stopped it.
    Stopped,
    /// It is over; at most its parent has not noticed.
    Absent,
}

/// A process that is there, or was when it was opened.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: ProcessId,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Holds a process by its pidfd. Needs tokio's runtime.
    #[expect(
        deprecated,
        reason = "its successor is unsafe, because a type may lie about its descriptor; an OwnedFd does not"
    )]
    pub(super) fn hold(id: ProcessId, fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { id, fd: AsyncFd::with_interest(fd, Interest::READABLE)? })
    }

    /// Waits until the process is over. May be dropped and asked again.
    pub(super) async fn exited(&self) {
        loop {
            // An error here means that the runtime is going down, and everybody who waits with it.
            let Ok(mut ready) = self.fd.readable().await else { return std::future::pending().await };
            if is_over(self.fd.get_ref()) {
                return;
            }
            ready.clear_ready();
        }
    }

    /// How the process ended, and takes it off the system's table if it is a child of this one.
    pub(super) fn reap(&self) -> Exit {
        use std::os::fd::AsFd;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let Ok(Some(status)) = waitid(WaitId::PidFd(self.fd.get_ref().as_fd()), options) else {
            // No child of this gateway: whoever inherited it takes it off.
            return Exit::Unknown;
        };
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        }
    }

    /// Sends a signal. A process that is over already is no error.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        send(self.fd.get_ref(), signal)
    }

    /// What the system shows of it now.
    pub(super) fn seen(&self) -> Seen {
        if is_over(self.fd.get_ref()) {
            return Seen::Absent;
        }
        match stat(self.id.pid) {
            Ok(stat) if stat.is_stopped() => Seen::Stopped,
            _ => Seen::Runs,
        }
    }
}

/// Opens the process that `id` names; `None` when it is over, whoever has its PID now.
pub(super) fn open(id: &ProcessId, boot: &str) -> io::Result<Option<OwnedFd>> {
    if id.boot != boot {
        return Ok(None);
    }
    let Some(fd) = open_pid(id.pid)? else { return Ok(None) };
    // The pidfd first, the start time after: if they agree, the pidfd is of the process that was asked for.
    match stat(id.pid) {
        Ok(stat) if stat.started == id.started && !stat.is_over() => Ok(Some(fd)),
        _ => Ok(None),
    }
}

/// Sends a signal to the process that was seen in `/proc`, unless it is over and its PID another's.
pub(super) fn signal_seen(stat: &Stat, signal: Signal) -> io::Result<Option<OwnedFd>> {
    let Some(fd) = open_pid(stat.pid)? else { return Ok(None) };
    if self::stat(stat.pid).is_ok_and(|now| now.started == stat.started) {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("signalling process {}: {error}", stat.pid))
        };
        send(&fd, signal).map_err(named)?;
        return Ok(Some(fd));
    }
    Ok(None)
}

/// Holds a new child, which cannot be over in the sense that its PID is another's: nobody has reaped it.
pub(super) fn hold_child(pid: u32, boot: &str) -> io::Result<(ProcessId, OwnedFd)> {
    let fd = open_pid(pid)?.ok_or(io::ErrorKind::NotFound)?;
    let started = stat(pid)?.started;
    Ok((ProcessId { pid, started, boot: boot.to_owned() }, fd))
}

/// Whether a process is in a PID namespace below ours.
pub(super) fn in_another_pid_namespace(pid: u32) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    namespace(&pid.to_string()).is_some_and(|theirs| namespace("self").is_some_and(|ours| theirs != ours))
}

/// This boot of this machine.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Waits, at most `patience`, until all of these processes are over. For blocking threads.
pub(super) fn wait_all(fds: &[OwnedFd], patience: std::time::Duration) -> bool {
    let deadline = std::time::Instant::now() + patience;
    fds.iter().all(|fd| {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        is_over_within(fd, left)
    })
}

/// The line of `/proc/<pid>/stat`, as far as it is of use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) started: u64,
    state: u8,
}

impl Stat {
    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.state, b'T' | b't')
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it runs none of its own code now: stopped, over, or in the kernel with the stop waiting for it.
    pub(super) fn is_still(&self) -> bool {
        self.is_stopped() || self.is_over() || self.state == b'D'
    }
}

/// Reads the stat of a process.
pub(super) fn stat(pid: u32) -> io::Result<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat"))?).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has another form"))
    })
}

fn parse_stat(line: &[u8]) -> Option<Stat> {
    // The name is in parentheses and may itself have spaces and parentheses: the last ')' ends it.
    let open = line.iter().position(|&byte| byte == b'(')?;
    let close = line.iter().rposition(|&byte| byte == b')')?;
    let pid = std::str::from_utf8(&line[..open]).ok()?.trim().parse().ok()?;
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    // Field 22 of the line; state is field 3 and the parent 4.
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat { pid, parent, started, state })
}

fn open_pid(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn send(fd: &OwnedFd, signal: Signal) -> io::Result<()> {
    match pidfd_send_signal(fd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_over(fd: &OwnedFd) -> bool {
    is_over_within(fd, std::time::Duration::ZERO)
}

fn is_over_within(fd: &OwnedFd, patience: std::time::Duration) -> bool {
    let timeout = Timespec::try_from(patience).ok();
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    // A signal that interrupts the wait only makes it shorter: the caller's answer is then "not yet".
    poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_with_parentheses_is_read() {
        let line = b"42 (a) b (c) T 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.pid, stat.parent, stat.started), (42, 7, 987_654));
        assert!(stat.is_stopped());
    }

    #[test]
    fn this_process_is_found_by_its_own_id_and_not_by_another_start_or_boot() {
        let boot = boot_id().unwrap();
        let (id, _fd) = hold_child(std::process::id(), &boot).unwrap();
        assert!(open(&id, &boot).unwrap().is_some());
        assert!(open(&ProcessId { started: id.started + 1, ..id.clone() }, &boot).unwrap().is_none());
        assert!(open(&ProcessId { boot: "another".into(), ..id.clone() }, &boot).unwrap().is_none());
        assert!(open(&ProcessId { pid: u32::MAX, ..id }, &boot).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_stat(&line);
        }
    }
}
