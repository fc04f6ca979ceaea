//! Why exec failed: a shell's 127 (there is no such command) or 126 (there is, and it cannot be run). ENOENT means
//! either, because the kernel says it of a missing interpreter too; a look at the file tells.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use holdfast_wire::api::StartFailure;
use rustix::io::Errno;

use super::SpawnError;

/// Where glibc's execvp looks when there is no PATH.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// What a failed exec of `command` means.
pub(super) fn explain(
    error: &io::Error,
    command: &OsStr,
    env: &[(OsString, OsString)],
    cwd: &Path,
) -> SpawnError {
    let errno = error.raw_os_error().unwrap_or(0);
    let shown = shown(command);
    let fail = |kind, message| SpawnError::new(kind, errno, message);
    let found = find(command, env, cwd);
    let by_path = !command.as_bytes().contains(&b'/');
    match (Errno::from_raw_os_error(errno), found) {
        (Errno::NOENT, Some(path)) => fail(
            StartFailure::CannotInvoke,
            format!("{}: the interpreter or loader that it names does not exist", path.display()),
        ),
        (Errno::NOENT, None) | (Errno::ACCESS | Errno::NOTDIR, None) if by_path => {
            fail(StartFailure::NotFound, format!("{shown}: no such command in the PATH"))
        }
        (Errno::NOENT, None) => fail(StartFailure::NotFound, format!("{shown}: no such file")),
        (Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE, _) => {
            fail(StartFailure::Resources, format!("starting {shown}: {error}"))
        }
        (_, Some(path)) if path.is_dir() => {
            fail(StartFailure::CannotInvoke, format!("{}: it is a directory", path.display()))
        }
        _ => fail(StartFailure::CannotInvoke, format!("{shown}: {error}")),
    }
}

/// The first file of that name, executable or not.
fn find(command: &OsStr, env: &[(OsString, OsString)], cwd: &Path) -> Option<PathBuf> {
    let there = |path: PathBuf| path.symlink_metadata().is_ok().then_some(path);
    if command.as_bytes().contains(&b'/') {
        return there(cwd.join(command));
    }
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    path.as_bytes()
        .split(|byte| *byte == b':')
        .map(|dir| cwd.join(OsStr::from_bytes(dir)).join(command))
        .filter(|path| !path.is_dir())
        .find_map(there)
}

/// The command's name for a message: printable and short.
fn shown(command: &OsStr) -> String {
    const MOST: usize = 100;
    let text: String =
        command.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
