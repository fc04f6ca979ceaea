//! The forked child, between fork and exec: the one place of this crate with unsafe code.
//!
//! The parent prepares everything that needs memory (paths, groups, descriptors). The child makes system calls
//! and nothing else: another thread of the parent may have held the allocator's lock when it forked. A step that
//! fails sends its number through a pipe before the errno goes back the way std sends it, so that the parent can
//! say which step it was; silence means that exec itself failed.
#![allow(unsafe_code)] // pre_exec, and two calls that rustix leaves to the C library

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::process::CommandExt as _,
    process::Command,
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Gid, Resource, Rlimit, Uid},
};

/// The steps, as the child counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    Session = 1,
    Terminal = 2,
    User = 3,
    Cwd = 4,
    Privileges = 5,
}

impl Stage {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Session, Self::Terminal, Self::User, Self::Cwd, Self::Privileges]
            .into_iter()
            .find(|stage| *stage as u8 == byte)
    }
}

/// Who the child becomes.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) groups: Vec<Gid>,
}

/// All that the child needs, made by the parent.
#[derive(Debug)]
pub(super) struct Plan {
    /// The failed step's number goes here. Close-on-exec.
    pub(super) stage: OwnedFd,
    /// Standard input is a terminal: take it as the controlling one.
    pub(super) tty: bool,
    /// `cgroup.procs` of the exec's cgroup.
    pub(super) cgroup: Option<OwnedFd>,
    /// `None`: stay who the supervisor is.
    pub(super) identity: Option<Identity>,
    /// Where to go.
    pub(super) cwd: CString,
    /// Go there before the change of user: see `SpawnRequest::in_workspace`.
    pub(super) enter_first: bool,
    /// The limit of open files that the supervisor itself was started with.
    pub(super) nofile: Option<Rlimit>,
    /// For `oom_score_adj`: commands must go before the supervisor does.
    pub(super) oom_score: Option<Vec<u8>>,
}

/// Makes `command` carry out `plan` in the child.
pub(super) fn prepare(command: &mut Command, plan: Plan) {
    let child = move || run(&plan);
    // SAFETY: `run` makes system calls alone: it allocates nothing, takes no lock and cannot panic; every buffer
    // that it reads was made before the fork and lives in the closure.
    unsafe { command.pre_exec(child) };
}

/// The umask of every command, whatever the supervisor's is.
const UMASK: u32 = 0o022;
/// One past the last signal number of Linux.
const SIGNALS: i32 = 65;
/// The kernel's `struct sigaction` for SIG_DFL, with room to spare.
const DEFAULT_ACTION: [u64; 8] = [0; 8];
/// The first descriptor that is not a standard one.
const FIRST_OTHER: u32 = 3;

fn run(plan: &Plan) -> io::Result<()> {
    let step = |stage: Stage, result: rustix::io::Result<()>| {
        result.map_err(|errno| {
            // If even this fails, the parent takes the errno for exec's: less precise, still an error.
            let _ = rustix::io::write(&plan.stage, &[stage as u8]);
            io::Error::from_raw_os_error(errno.raw_os_error())
        })
    };
    step(Stage::Session, rustix::process::setsid().map(drop))?;
    if plan.tty {
        step(Stage::Terminal, rustix::process::ioctl_tiocsctty(stdin()))?;
    }
    if let Some(cgroup) = &plan.cgroup {
        // Without its cgroup the exec is found by session and marker: less sharp, no reason to fail.
        let _ = rustix::io::write(cgroup, b"0");
    }
    if let Some(score) = &plan.oom_score {
        set_oom_score(score);
    }
    if let Some(limit) = plan.nofile {
        // Only lowered: it cannot fail, and would be no reason to.
        let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    }
    reset_signals();
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    let cwd = plan.cwd.as_c_str();
    let entered = plan.enter_first && rustix::process::chdir(cwd).is_ok();
    if let Some(identity) = &plan.identity {
        step(Stage::User, become_user(identity))?;
    }
    // A directory that the caller chose: after the change of user, because what that user may not enter is no
    // working directory for it.
    if !entered {
        step(Stage::Cwd, rustix::process::chdir(cwd))?;
    }
    step(Stage::Privileges, rustix::thread::set_no_new_privs(true))?;
    close_others();
    Ok(())
}

fn stdin() -> BorrowedFd<'static> {
    // SAFETY: std has put the terminal on descriptor 0 before it calls us, and nothing here closes it.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// The raw system calls: the child has one thread, so the C library's dance over all threads is not needed.
fn become_user(identity: &Identity) -> rustix::io::Result<()> {
    rustix::thread::set_thread_groups(&identity.groups)?;
    rustix::thread::set_thread_res_gid(identity.gid, identity.gid, identity.gid)?;
    rustix::thread::set_thread_res_uid(identity.uid, identity.uid, identity.uid)
}

fn set_oom_score(score: &[u8]) {
    const FILE: &CStr = c"/proc/self/oom_score_adj";
    // Where it cannot be had, the command is only better protected than it should be.
    if let Ok(file) = rustix::fs::open(FILE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::io::write(file.as_fd(), score);
    }
}

/// exec keeps ignored signals ignored and blocked ones blocked: a command starts with neither. The system call
/// itself, because the C library refuses its own two signals, and something above us may have ignored those too.
fn reset_signals() {
    for signal in 1..SIGNALS {
        // SAFETY: the kernel reads a `struct sigaction` (at most 32 bytes on any architecture) of zeros, which is
        // the default disposition; signals that have no other are refused with EINVAL.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT_ACTION.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    // SAFETY: `set` is plain data, made valid by sigemptyset before it is read.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Marks all other descriptors close-on-exec. Not closed at once: std's own pipe for the errno is among them.
fn close_others() {
    // SAFETY: changes the flags of descriptors of this process's own table, no memory.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST_OTHER, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 {
        return;
    }
    // Before Linux 5.11. Everything that Rust opens is close-on-exec by itself; this is for what was inherited,
    // which sits at the low numbers.
    for fd in FIRST_OTHER as i32..1024 {
        // SAFETY: as above; a number without a descriptor is refused with EBADF.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}
