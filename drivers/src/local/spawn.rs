//! Starting a supervisor: its own session, its own namespaces where that is permitted, and nothing inherited.
//!
//! Namespaces are a property of a thread, and a thread that has left its old ones cannot come back. So each
//! supervisor is started from a thread of its own, which ends right after. `unshare(CLONE_NEWPID)` then makes the
//! next child of that thread the first process of a new PID namespace; with `CLONE_NEWNS` it also has mounts of
//! its own, and mounts a fresh `/proc` there by itself (`init` and `mount_proc` in its configuration).
//!
//! The supervisor must outlive the gateway: a new session (no hang-up, and no SIGHUP to a stopped orphaned group
//! when the gateway ends), no parent-death signal, no pipe, `/` as its directory. The standard library opens every
//! descriptor with CLOEXEC; those that the gateway itself was started with by a careless parent get it here. So the
//! child has its three and no other.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, unshare};
use process_wrap::std::{CommandWrap, ProcessSession};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::process::{self, ProcessId};

/// What to start.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The program, and its arguments.
    pub(crate) command: Vec<OsString>,
    /// The whole environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Takes its output and its errors.
    pub(crate) console: File,
    /// Its standard input.
    pub(crate) stdin: Stdin,
}

/// What a supervisor finds on its standard input.
#[derive(Debug)]
pub(crate) enum Stdin {
    /// Nothing.
    Null,
    /// This, and then its end.
    Text(Vec<u8>),
    /// A pipe that says nothing and ends with whoever holds its other end.
    Lifeline(OwnedFd),
}

/// Starts a supervisor. For blocking threads.
pub(super) fn spawn(launch: Launch, namespaces: bool, boot: &str) -> io::Result<(ProcessId, OwnedFd)> {
    // Or what the gateway was given by its parent stays open for as long as a supervisor lives: a pipe, whose
    // reader then waits for ever. Nothing in this process wants to hand a descriptor on by leaving it open.
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    let (stdin, mut text) = match launch.stdin {
        Stdin::Null => (Stdio::null(), None),
        Stdin::Text(text) => (Stdio::piped(), Some(text)),
        Stdin::Lifeline(pipe) => (Stdio::from(pipe), None),
    };
    let mut child = on_its_own_thread(move || {
        if namespaces {
            leave_namespaces()?;
        }
        let (program, arguments) = launch.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(launch.env)
            .current_dir("/")
            .stdin(stdin)
            .stdout(launch.console.try_clone()?)
            .stderr(launch.console);
        CommandWrap::from(command).wrap(ProcessSession).spawn()
    })?;
    // Not on that thread: it shares the child's mounts, and with them the child's own new /proc.
    // Dropping a `Child` neither ends nor reaps it: the keeper does that, by pidfd.
    let told = match (text.take(), child.stdin().take()) {
        (Some(text), Some(mut pipe)) => pipe.write_all(&text),
        _ => Ok(()),
    };
    told.and_then(|()| process::hold_child(child.id(), boot)).inspect_err(|_| {
        // Out of descriptors, most likely. A supervisor that cannot be held must not stay.
        let _ = child.kill();
    })
}

/// Whether this process may give its children namespaces: by trying, because no flag says so.
pub(super) fn may_leave_namespaces() -> io::Result<()> {
    on_its_own_thread(leave_namespaces)
}

fn leave_namespaces() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
    // Or the supervisor's /proc would be mounted over everybody's.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

fn on_its_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = thread::Builder::new().name("holdfast-spawn".to_owned()).spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts supervisors panicked")))
}

/// The program of a supervisor command, by a path that stays right when its file is replaced by a newer one.
pub(super) fn resolve(command: &[OsString]) -> Result<Vec<OsString>, String> {
    let Some((program, arguments)) = command.split_first() else {
        return Err("supervisor_command is empty: name the supervisor's program".to_owned());
    };
    let program = PathBuf::from(program);
    let program = if program == Path::new("/proc/self/exe") { own_program()? } else { program };
    if !program.is_absolute() {
        return Err(format!("supervisor_command: {} is not an absolute path", program.display()));
    }
    let metadata = fs::metadata(&program)
        .map_err(|error| format!("supervisor_command: {}: {error}", program.display()))?;
    if !metadata.is_file() {
        return Err(format!("supervisor_command: {} is not a file", program.display()));
    }
    Ok(std::iter::once(program.into_os_string()).chain(arguments.iter().cloned()).collect())
}

fn own_program() -> Result<PathBuf, String> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let link = fs::read_link("/proc/self/exe").map_err(|error| format!("reading /proc/self/exe: {error}"))?;
    // The file was replaced while this process runs: the name is still right, and has the newer file.
    match link.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(name) if !link.exists() => Ok(PathBuf::from(OsString::from_vec(name.to_vec()))),
        _ => Ok(link),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_resolved_to_a_file_that_is_there() {
        let resolved = resolve(&["/proc/self/exe".into(), "supervisor".into()]).unwrap();
        assert_eq!(PathBuf::from(&resolved[0]), std::env::current_exe().unwrap());
        assert_eq!(resolved[1], "supervisor");
        assert!(resolve(&[]).unwrap_err().contains("is empty"));
        assert!(resolve(&["sh".into()]).unwrap_err().contains("not an absolute path"));
        assert!(resolve(&["/nowhere/sh".into()]).unwrap_err().contains("/nowhere/sh"));
        assert!(resolve(&["/tmp".into()]).unwrap_err().contains("not a file"));
    }
}
