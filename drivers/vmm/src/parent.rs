//! Dying with one's parent.
//!
//! The parent-death signal is the kernel's: it reaches a process that is stopped, too. It is bound to the thread that
//! forked, so the holder forks on its main thread only.

use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use rustix::{
    process::{Pid, Signal, getppid, set_parent_process_death_signal},
    thread::CapabilitySet,
};

use crate::confine::{FILES_OF_A_NETWORK, Needs, Step, View, confine, libraries};

/// Where the program is, seen from inside.
fn shut_in(parent: &str, user: &str, program: &str) -> io::Result<PathBuf> {
    // Asked for at once and again, because a change of the user takes it back.
    die_with(parent)?;
    let user = user.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = Path::new(program);
    let inside = Path::new("/").join(program.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    let here = std::env::current_dir()?;
    let view =
        // Built over the directory above: what is seen of this one must not be hidden by it.
        View::new(here.parent().unwrap_or(Path::new("/tmp"))).bind(&here, "/proc/self/cwd", true).bind(program, &inside.to_string_lossy(), false);
    let confined = confine(Needs {
        view: Some(libraries(view)),
        user: Some(user),
        capabilities: CapabilitySet::empty(),
        files: Some(FILES_OF_A_NETWORK),
        calls: false,
    });
    confined.tell();
    die_with(parent)?;
    Ok(if confined.has(Step::View) { inside } else { program.to_owned() })
}

/// As a shell has it for a program that cannot be started.
const CANNOT_START: u8 = 126;

/// Asks the kernel to kill this process when `parent` ends.
pub(crate) fn die_with(parent: &str) -> io::Result<()> {
    let parent = parent.parse().ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the kernel was asked: then nobody would tell.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::other("the parent is gone")) }
}

/// Becomes the network of a machine: `program`, which dies with `parent`, and sees its socket's directory (where this
/// process is started) and the system's libraries.
pub(crate) fn become_network(parent: &str, user: &str, program: &str, arguments: &[&str]) -> ExitCode {
    let error = match shut_in(parent, user, program) {
        Ok(path) => Command::new(path).args(arguments).env_clear().exec(),
        Err(error) => error,
    };
    let _ = writeln!(io::stderr(), "holdfast-vmm: {program}: {error}");
    ExitCode::from(CANNOT_START)
}
