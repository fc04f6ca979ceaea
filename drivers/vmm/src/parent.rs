//! Dying with one's parent.
//!
//! The parent-death signal is the kernel's: it reaches a process that is stopped, too. It is bound to the thread that
//! forked, so the holder forks on its main thread only.

use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// As a shell has it for a program that cannot be started.
const CANNOT_START: u8 = 126;

/// Asks the kernel to kill this process when `parent` ends.
pub(crate) fn die_with(parent: &str) -> io::Result<()> {
    let parent = parent.parse().ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the kernel was asked: then nobody would tell.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::other("the parent is gone")) }
}

/// Becomes `program`, which dies with `parent` and can gain no rights.
pub(crate) fn become_program(parent: &str, program: &str, arguments: &[&str]) -> ExitCode {
    let ready = die_with(parent).and_then(|()| Ok(rustix::thread::set_no_new_privs(true)?));
    let error = match ready {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error,
    };
    let _ = writeln!(io::stderr(), "holdfast-vmm: {program}: {error}");
    ExitCode::from(CANNOT_START)
}
