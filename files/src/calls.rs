//! Questions about single paths, and the changes that one system call makes. Paths are the caller's own: links in
//! them are followed as any program would, with the rights of the thread that this runs on.

use std::{
    ffi::OsStr,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use holdfast_wire::{
    api::{FileFailureKind, FileInfo, FileKind},
    limits::MAX_LIST,
};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};

use crate::failure::{Attempt as _, Failure};

/// Names of one directory that are read for a page: at some 30 bytes each, 30 MB for a moment.
const MAX_NAMES: usize = 1_000_000;

/// A page, in bytes of its paths and targets: well below a message.
const MAX_PAGE: usize = 512 << 10;

/// What is at `path`.
///
/// # Errors
/// What the system says; so with all of these.
pub fn stat(path: &Path, follow: bool) -> Result<FileInfo, Failure> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = rustix::fs::statat(rustix::fs::CWD, path, flags).attempt("looking at", path)?;
    let target = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            std::fs::read_link(path).attempt("reading the link", path)?.into_os_string().into_vec()
        }
        _ => Vec::new(),
    };
    Ok(info(&stat, Bytes::copy_from_slice(path.as_os_str().as_bytes()), target.into()))
}

/// A page of a directory, by name, behind the name `after`; true: there is more.
pub fn list(path: &Path, after: &[u8], limit: usize) -> Result<(Vec<FileInfo>, bool), Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())
        .attempt("opening the directory", path)?;
    let mut names = Vec::new();
    for item in Dir::read_from(&fd).attempt("listing", path)? {
        let item = item.attempt("listing", path)?;
        let name = item.file_name().to_bytes();
        if name == b"." || name == b".." || name <= after {
            continue;
        }
        if names.len() == MAX_NAMES {
            let message = format!("{}: more than {MAX_NAMES} names", path.display());
            return Err(Failure::new(FileFailureKind::Limit, path, message));
        }
        names.push(name.to_vec());
    }
    names.sort_unstable();
    let limit = if limit == 0 { MAX_LIST } else { limit.min(MAX_LIST) };
    let (mut page, mut size, mut more) = (Vec::new(), 0, false);
    for name in names {
        if page.len() == limit || size > MAX_PAGE {
            more = true;
            break;
        }
        let stat = match rustix::fs::statat(&fd, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It went away between the two calls.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(errno) => {
                return Err(Failure::io("looking at", &path.join(OsStr::from_bytes(&name)), &errno.into()));
            }
        };
        let target = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => rustix::fs::readlinkat(&fd, OsStr::from_bytes(&name), Vec::new())
                .map(|target| target.into_bytes())
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        size += name.len() + target.len() + 64;
        page.push(info(&stat, name.into(), target.into()));
    }
    Ok((page, more))
}

/// Makes a directory.
pub fn mkdir(path: &Path, mode: u32, parents: bool) -> Result<FileInfo, Failure> {
    let mode = Mode::from_raw_mode(if mode == 0 { 0o755 } else { mode & 0o1777 });
    if parents {
        let mut so_far = PathBuf::new();
        for component in path.components() {
            so_far.push(component);
            if let Err(errno) = rustix::fs::mkdir(&so_far, mode)
                && !(errno == rustix::io::Errno::EXIST && so_far.is_dir())
            {
                // A parent that may not be written to may still be there.
                if !so_far.is_dir() {
                    return Err(Failure::io("making the directory", &so_far, &errno.into()));
                }
            }
        }
    } else {
        rustix::fs::mkdir(path, mode).attempt("making the directory", path)?;
    }
    stat(path, true)
}

/// Removes a file, a link, or a directory.
pub fn remove(path: &Path, recursive: bool, force: bool) -> Result<(), Failure> {
    if path.file_name().is_none() {
        let message = format!("{}: is not removed", path.display());
        return Err(Failure::new(FileFailureKind::Invalid, path, message));
    }
    let removed = match rustix::fs::unlink(path) {
        Err(rustix::io::Errno::ISDIR) if recursive => std::fs::remove_dir_all(path),
        Err(rustix::io::Errno::ISDIR) => rustix::fs::rmdir(path).map_err(Into::into),
        other => other.map_err(Into::into),
    };
    match removed {
        Err(error) if force && error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.attempt("removing", path),
    }
}

/// Gives a file or directory another name, atomically.
pub fn rename(from: &Path, to: &Path, no_replace: bool) -> Result<FileInfo, Failure> {
    let flags = if no_replace { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
    let done = if no_replace {
        rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)
    } else {
        rustix::fs::rename(from, to)
    };
    match done {
        Ok(()) => stat(to, false),
        // Which of the two is missing?
        Err(errno) if rustix::fs::lstat(from).is_err() => Err(Failure::io("moving", from, &errno.into())),
        Err(errno) => Err(Failure::io("moving to", to, &errno.into())),
    }
}

fn info(stat: &Stat, path: Bytes, target: Bytes) -> FileInfo {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice | FileType::BlockDevice => FileKind::Device,
        FileType::Unknown => FileKind::Unspecified,
    };
    FileInfo {
        path,
        kind: kind.into(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_seconds: stat.st_mtime,
        mtime_nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        target,
    }
}
