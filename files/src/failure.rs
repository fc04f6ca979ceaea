//! Why something with a file did not work: what was attempted, on which path, and the system's errno.

use std::{
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use holdfast_wire::{
    api::{FileFailure, FileFailureKind as Kind, FileProblem, FileProblemKind},
    limits,
};

/// The text of a failure, in bytes: with a path in it, it still fits a frame.
const MAX_TEXT: usize = 1024;

/// A failure with its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    /// Where.
    pub path: PathBuf,
    /// What the system said; 0: it said nothing.
    pub errno: i32,
    /// What was attempted and what came of it.
    pub message: String,
}

impl Failure {
    /// One that the system did not cause.
    pub fn new(kind: Kind, path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self { kind, path: path.into(), errno: 0, message: message.into() }
    }

    /// What the system said to an attempt on `path`.
    pub fn io(attempted: &str, path: &Path, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        let message = format!("{attempted} {}: {}", path.display(), describe(error));
        Self { kind: kind_of(error), path: path.to_owned(), errno, message: limits::cut(message, MAX_TEXT) }
    }

    /// The stream breaks the rules.
    pub fn protocol(message: impl Into<String>) -> Self {
        Self::new(Kind::Protocol, "", message)
    }

    /// Somebody gave it up.
    pub fn abandoned(message: impl Into<String>) -> Self {
        Self::new(Kind::Abandoned, "", message)
    }

    /// As it is on the wire.
    #[must_use]
    pub fn to_wire(&self) -> FileFailure {
        let mut path = self.path.as_os_str().as_bytes().to_vec();
        path.truncate(limits::MAX_PATH);
        FileFailure {
            kind: self.kind.into(),
            path: path.into(),
            errno: self.errno,
            message: limits::cut(self.message.clone(), MAX_TEXT),
        }
    }

    /// From the wire; what a person would read is cleaned.
    #[must_use]
    pub fn from_wire(failure: FileFailure) -> Self {
        Self {
            kind: failure.kind(),
            path: path_of(&failure.path),
            errno: failure.errno,
            message: clean(&failure.message),
        }
    }

    /// The same about one entry of many: it is left out.
    #[must_use]
    pub fn to_problem(&self, path: Bytes) -> FileProblem {
        let kind = match self.kind {
            Kind::NotFound => FileProblemKind::Vanished,
            Kind::Denied => FileProblemKind::Denied,
            _ => FileProblemKind::Unreadable,
        };
        FileProblem { path, kind: kind.into(), errno: self.errno, message: self.message.clone() }
    }
}

/// A path of the wire.
#[must_use]
pub fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// A peer's sentence on one line, and not too long.
#[must_use]
pub fn clean(text: &str) -> String {
    let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    limits::cut(text, MAX_TEXT)
}

/// std's words with the errno's name, where there is a common one.
fn describe(error: &io::Error) -> String {
    let name = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOENT) => "ENOENT",
        Some(rustix::io::Errno::ACCESS) => "EACCES",
        Some(rustix::io::Errno::PERM) => "EPERM",
        Some(rustix::io::Errno::NOSPC) => "ENOSPC",
        Some(rustix::io::Errno::DQUOT) => "EDQUOT",
        Some(rustix::io::Errno::ROFS) => "EROFS",
        Some(rustix::io::Errno::EXIST) => "EEXIST",
        Some(rustix::io::Errno::ISDIR) => "EISDIR",
        Some(rustix::io::Errno::NOTDIR) => "ENOTDIR",
        Some(rustix::io::Errno::LOOP) => "ELOOP",
        Some(rustix::io::Errno::IO) => "EIO",
        Some(rustix::io::Errno::NOTEMPTY) => "ENOTEMPTY",
        Some(rustix::io::Errno::XDEV) => "EXDEV",
        Some(rustix::io::Errno::NAMETOOLONG) => "ENAMETOOLONG",
        _ => return error.to_string(),
    };
    // "No such file or directory (os error 2)" already carries the number.
    format!("{name}: {error}")
}

fn kind_of(error: &io::Error) -> Kind {
    use rustix::io::Errno;
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => Kind::NotFound,
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Kind::Denied,
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Kind::NoSpace,
        Some(Errno::EXIST | Errno::NOTEMPTY) => Kind::Exists,
        Some(Errno::ISDIR | Errno::NOTDIR | Errno::LOOP) => Kind::WrongKind,
        Some(Errno::NAMETOOLONG | Errno::INVAL) => Kind::Invalid,
        _ => Kind::Other,
    }
}

/// A system call's answer about `path`.
pub(crate) trait Attempt<T> {
    fn attempt(self, attempted: &str, path: &Path) -> Result<T, Failure>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, attempted: &str, path: &Path) -> Result<T, Failure> {
        self.map_err(|error| Failure::io(attempted, path, &error))
    }
}

impl<T> Attempt<T> for rustix::io::Result<T> {
    fn attempt(self, attempted: &str, path: &Path) -> Result<T, Failure> {
        self.map_err(|errno| Failure::io(attempted, path, &errno.into()))
    }
}
