//! Reads a tree and emits it, in the order in which the file system lists it: a directory before what is in it.
//!
//! Directories are held by descriptors and entered without following links, so that a tree that changes under the
//! walk cannot lead it elsewhere. What cannot be read is left out and named; what is special (a FIFO, a socket, a
//! device) is too. Only the source itself must be there. A FIFO that takes a file's place is never waited for.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Seek as _, SeekFrom},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use holdfast_wire::{
    api::{FileEntry, FileFailureKind, FileKind, FileProblem, FileProblemKind},
    limits::MAX_TREE_DEPTH,
};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use crate::{
    emit::{Emitter, Stopped, Summary},
    failure::{Attempt as _, Failure},
    names,
    window::Window,
};

/// A file that claims to be empty is read all the same, up to so many bytes: those of /proc do.
const UNSIZED: u64 = 64 << 20;

/// Files with several names that are remembered, so that the second one is a link again. Beyond it, they are files of
/// their own.
const MAX_LINKS: usize = 65_536;

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Where; absolute.
    pub path: PathBuf,
    /// What a symbolic link there names, instead of the link.
    pub follow: bool,
    /// It must be a file.
    pub file_only: bool,
    /// With `file_only`: from here.
    pub offset: u64,
    /// And so much; 0: to the end.
    pub length: u64,
}

/// Reads `source` into `window`; the last frame says how it went. `progress` hears bytes and entries now and then.
///
/// # Errors
/// The source could not be read, or nobody wants the stream.
pub fn send(source: &Source, window: &Window, progress: &dyn Fn(u64, u64)) -> Result<Summary, Stopped> {
    let mut walk = Walk { out: Emitter::new(window), links: HashMap::new(), progress };
    match walk.root(source) {
        Ok(()) => Ok(walk.out.end()?),
        Err(Stopped::Failed(failure)) => {
            walk.out.fail(failure.to_wire())?;
            Err(Stopped::Failed(failure))
        }
        Err(closed) => Err(closed),
    }
}

struct Walk<'a> {
    out: Emitter<'a>,
    links: HashMap<(u64, u64), Bytes>,
    progress: &'a dyn Fn(u64, u64),
}

/// A directory that is being walked.
struct Level {
    dir: Dir,
    path: Bytes,
}

impl Walk<'_> {
    fn root(&mut self, source: &Source) -> Result<(), Stopped> {
        let path = &source.path;
        let shown = path.as_path();
        // A trailing slash asks for what a link names.
        let text = path.as_os_str().as_bytes();
        let follow = source.follow || source.file_only || (text.len() > 1 && text.ends_with(b"/"));
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = rustix::fs::statat(rustix::fs::CWD, path, flags).attempt("reading", shown)?;
        match kind(&stat) {
            Some(FileKind::Directory) if source.file_only => Err(Failure::new(
                FileFailureKind::WrongKind,
                path,
                format!("{}: is a directory", path.display()),
            )
            .into()),
            Some(FileKind::Directory) => {
                let flags = directory_flags() - if follow { OFlags::NOFOLLOW } else { OFlags::empty() };
                let fd = rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())
                    .attempt("opening", shown)?;
                let stat = rustix::fs::fstat(&fd).attempt("reading", shown)?;
                self.out.entry(&entry(Bytes::new(), FileKind::Directory, &stat))?;
                self.tree(fd, shown)
            }
            Some(FileKind::File) => {
                let flags = file_flags() - if follow { OFlags::NOFOLLOW } else { OFlags::empty() };
                let fd = rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())
                    .attempt("opening", shown)?;
                let stat = rustix::fs::fstat(&fd).attempt("reading", shown)?;
                let mut file = File::from(fd);
                if source.file_only {
                    return self.range(file, &stat, source);
                }
                match self.file(&mut file, &stat, Bytes::new())? {
                    Ok(()) => Ok(()),
                    Err(error) => Err(Failure::io("reading", shown, &error).into()),
                }
            }
            Some(FileKind::Symlink) => {
                let target =
                    rustix::fs::readlinkat(rustix::fs::CWD, path, Vec::new()).attempt("reading", shown)?;
                let target = Bytes::from(target.into_bytes());
                Ok(self.out.entry(&FileEntry { target, ..entry(Bytes::new(), FileKind::Symlink, &stat) })?)
            }
            _ => Err(Failure::new(
                FileFailureKind::WrongKind,
                path,
                format!("{}: is a {}, which cannot be copied", path.display(), special(&stat)),
            )
            .into()),
        }
    }

    /// Part of one file.
    fn range(&mut self, mut file: File, stat: &Stat, source: &Source) -> Result<(), Stopped> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.out.entry(&entry(Bytes::new(), FileKind::File, stat))?;
        file.seek(SeekFrom::Start(source.offset)).attempt("seeking in", &source.path)?;
        let most = if source.length == 0 { u64::MAX } else { source.length };
        let there = if size == 0 { UNSIZED } else { size.saturating_sub(source.offset) };
        match self.bytes(&mut file, most.min(there))? {
            Ok(_) => Ok(self.out.close()?),
            Err(error) => Err(Failure::io("reading", &source.path, &error).into()),
        }
    }

    fn tree(&mut self, root: OwnedFd, shown: &Path) -> Result<(), Stopped> {
        let first = Dir::new(root).attempt("listing", shown)?;
        let mut stack = vec![Level { dir: first, path: Bytes::new() }];
        while let Some(level) = stack.last_mut() {
            let name = match level.dir.read() {
                None => {
                    stack.pop();
                    continue;
                }
                Some(Ok(item)) => item.file_name().to_bytes().to_vec(),
                Some(Err(errno)) => {
                    let path = level.path.clone();
                    let failure =
                        Failure::io("listing", &shown.join(OsStr::from_bytes(&path)), &errno.into());
                    self.out.problem(failure.to_problem(path))?;
                    stack.pop();
                    continue;
                }
            };
            if name == b"." || name == b".." {
                continue;
            }
            let path = names::below(&level.path, &name);
            let depth = stack.len();
            let Some(level) = stack.last() else { break };
            let Ok(dir) = level.dir.fd() else { break };
            match self.item(dir, &name, &path, depth)? {
                Ok(None) => {}
                Ok(Some(dir)) => stack.push(Level { dir, path }),
                Err(error) => {
                    let failure = Failure::io("reading", &shown.join(OsStr::from_bytes(&path)), &error);
                    self.out.problem(failure.to_problem(path))?;
                }
            }
            let (bytes, entries) = self.out.progress();
            (self.progress)(bytes, entries);
        }
        Ok(())
    }

    /// One name of a directory. Some: a directory to go into. The inner error leaves this one out.
    fn item(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &Bytes,
        depth: usize,
    ) -> Result<io::Result<Option<Dir>>, Stopped> {
        let Ok(name) = CString::new(name) else { return Ok(Err(io::ErrorKind::InvalidInput.into())) };
        let stat = match rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => return Ok(Err(errno.into())),
        };
        match kind(&stat) {
            Some(FileKind::Directory) if depth >= MAX_TREE_DEPTH => {
                let message = "more than 256 directories inside each other".to_owned();
                let kind = FileProblemKind::Unreadable.into();
                self.out.problem(FileProblem { path: path.clone(), kind, errno: 0, message })?;
                Ok(Ok(None))
            }
            Some(FileKind::Directory) => {
                let opened = rustix::fs::openat(dir, &name, directory_flags(), Mode::empty())
                    .and_then(|fd| Ok((rustix::fs::fstat(&fd)?, Dir::new(fd)?)));
                let (stat, dir) = match opened {
                    Ok(opened) => opened,
                    Err(errno) => return Ok(Err(errno.into())),
                };
                self.out.entry(&entry(path.clone(), FileKind::Directory, &stat))?;
                Ok(Ok(Some(dir)))
            }
            Some(FileKind::Symlink) => match rustix::fs::readlinkat(dir, &name, Vec::new()) {
                Ok(target) => {
                    let target = Bytes::from(target.into_bytes());
                    self.out.entry(&FileEntry { target, ..entry(path.clone(), FileKind::Symlink, &stat) })?;
                    Ok(Ok(None))
                }
                Err(errno) => Ok(Err(errno.into())),
            },
            Some(FileKind::File) => {
                let opened = rustix::fs::openat(dir, &name, file_flags(), Mode::empty())
                    .and_then(|fd| Ok((rustix::fs::fstat(&fd)?, fd)));
                let (stat, fd) = match opened {
                    Ok(opened) => opened,
                    Err(errno) => return Ok(Err(errno.into())),
                };
                if kind(&stat) != Some(FileKind::File) {
                    return Ok(Err(io::ErrorKind::NotFound.into()));
                }
                if stat.st_nlink > 1 && self.again(&stat, path)? {
                    return Ok(Ok(None));
                }
                self.file(&mut File::from(fd), &stat, path.clone()).map(|read| read.map(|()| None))
            }
            _ => {
                let message = format!("skipped: a {}", special(&stat));
                let kind = FileProblemKind::Special.into();
                self.out.problem(FileProblem { path: path.clone(), kind, errno: 0, message })?;
                Ok(Ok(None))
            }
        }
    }

    /// A file that was sent under another name is a link to that. True: it was.
    fn again(&mut self, stat: &Stat, path: &Bytes) -> Result<bool, Stopped> {
        let id = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&id) {
            let target = first.clone();
            self.out.entry(&FileEntry { target, ..entry(path.clone(), FileKind::Hardlink, stat) })?;
            return Ok(true);
        }
        if self.links.len() < MAX_LINKS {
            self.links.insert(id, path.clone());
        }
        Ok(false)
    }

    /// A whole file. The inner error: it could not be read to its end, and the stream says so.
    fn file(&mut self, file: &mut File, stat: &Stat, path: Bytes) -> Result<io::Result<()>, Stopped> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.out.entry(&entry(path.clone(), FileKind::File, stat))?;
        // Blocks of 512 bytes, whatever the file system's own are.
        let sparse = size > 0 && u64::try_from(stat.st_blocks).unwrap_or(u64::MAX).saturating_mul(512) < size;
        let sent = if sparse {
            self.sparse(file, size)?
        } else {
            self.bytes(file, if size == 0 { UNSIZED } else { size })?
        };
        match sent {
            Ok(sent) => {
                self.out.close()?;
                if sent < size {
                    let message = format!("became shorter while it was read: {sent} of {size} bytes");
                    let kind = FileProblemKind::Changed.into();
                    self.out.problem(FileProblem { path, kind, errno: 0, message })?;
                }
                Ok(Ok(()))
            }
            Err(error) => {
                // The entry is open: it has to be closed, one way or the other.
                if let Some(id) = self.links.iter().find(|(_, first)| **first == path).map(|(id, _)| *id) {
                    self.links.remove(&id);
                }
                let failure = Failure::io("reading", Path::new(OsStr::from_bytes(&path)), &error);
                self.out.drop_file(failure.to_problem(path.clone()))?;
                // The source itself is not left out.
                Ok(if path.is_empty() { Err(error) } else { Ok(()) })
            }
        }
    }

    /// From where the file stands, at most `most` bytes. How many it were.
    fn bytes(&mut self, file: &mut File, most: u64) -> Result<io::Result<u64>, Stopped> {
        let mut left = most;
        while left > 0 {
            match self.out.content(file, left)? {
                Ok(0) => break,
                Ok(n) => left -= n as u64,
                Err(error) => return Ok(Err(error)),
            }
            let (bytes, entries) = self.out.progress();
            (self.progress)(bytes, entries);
        }
        Ok(Ok(most - left))
    }

    /// As the file system knows it: data and holes.
    fn sparse(&mut self, file: &mut File, size: u64) -> Result<io::Result<u64>, Stopped> {
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Data(at)) {
                Ok(data) => data.min(size),
                // No more data.
                Err(rustix::io::Errno::NXIO) => size,
                // A file system that does not know holes.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => at,
                Err(errno) => return Ok(Err(errno.into())),
            };
            if data > at {
                self.out.hole(data - at)?;
                at = data;
                continue;
            }
            let hole = match rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Hole(at)) {
                Ok(hole) => hole.min(size),
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NXIO) => {
                    size
                }
                Err(errno) => return Ok(Err(errno.into())),
            };
            if let Err(error) = file.seek(SeekFrom::Start(at)) {
                return Ok(Err(error));
            }
            match self.bytes(file, hole.saturating_sub(at))? {
                // It became shorter.
                Ok(0) => break,
                Ok(n) => at += n,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(at))
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn file_flags() -> OFlags {
    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// What a transfer carries; `None` for what is special.
#[must_use]
pub fn kind(stat: &Stat) -> Option<FileKind> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Some(FileKind::File),
        FileType::Directory => Some(FileKind::Directory),
        FileType::Symlink => Some(FileKind::Symlink),
        _ => None,
    }
}

/// The word for what is special.
#[must_use]
pub fn special(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "file of an unknown kind",
    }
}

/// The entry of what was looked at.
#[must_use]
pub fn entry(path: Bytes, kind: FileKind, stat: &Stat) -> FileEntry {
    FileEntry {
        path,
        kind: kind.into(),
        mode: stat.st_mode & 0o7777,
        mtime_seconds: stat.st_mtime,
        mtime_nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        size: if kind == FileKind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        target: Bytes::new(),
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

/// The name under which a source is copied into a directory: its last component. `None` for `/`, `.` and `..`.
#[must_use]
pub fn own_name(path: &Path) -> Option<Vec<u8>> {
    path.file_name().map(|name| name.to_owned().into_vec())
}
