//! Makes finished files durable, many at a time, and only then gives them their names.
//!
//! ```text
//!   file complete ─▶ pending ─┐
//!   directory left ─▶ pending ┴─ 64 of them, or 32 MiB ─▶ fsync, 8 at once ─▶ rename, in order ─▶ fsync directories
//! ```
//!
//! What it guarantees: a name leads to the old content or to all of the new, after a crash too, because a file is on
//! disk before its name is; and when the transfer says done, all names are on disk as well. An fsync waits for the
//! journal; eight that wait together share one commit. syncfs(2) would be one call in place of 64, but it waits for
//! whatever else is dirty on that file system, which may be another tenant's gigabytes.

use std::{
    ffi::CString,
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps};

use crate::failure::{Attempt as _, Failure};

/// Pending at once: each file is a descriptor.
const MOST: usize = 64;

/// Content of the pending, in bytes: what one round has to write back.
const MOST_BYTES: u64 = 32 << 20;

/// fsyncs at once.
const THREADS: usize = 8;

/// What a name gets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// Permission bits; `None`: as they are.
    pub mode: Option<u32>,
    /// Modification time; `None`: as it is.
    pub mtime: Option<(i64, u32)>,
    /// Owner and group; `None`: the user's own.
    pub owner: Option<(u32, u32)>,
}

impl Meta {
    /// Onto an open file or directory.
    pub(crate) fn apply(&self, fd: impl std::os::fd::AsFd, path: &std::path::Path) -> Result<(), Failure> {
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::fchown(&fd, Some(uid), Some(gid)).attempt("setting the owner of", path)?;
        }
        // After the owner: chown takes setuid bits away.
        if let Some(mode) = self.mode {
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).attempt("setting the mode of", path)?;
        }
        if let Some(mtime) = self.mtime {
            rustix::fs::futimens(&fd, &times(mtime)).attempt("setting the time of", path)?;
        }
        Ok(())
    }
}

/// Access time as it is, modification time as given.
pub(crate) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos.min(999_999_999)) },
    }
}

/// A directory that is being written.
#[derive(Debug)]
pub struct Directory {
    /// Itself.
    pub fd: OwnedFd,
    /// For messages.
    pub path: PathBuf,
}

/// A name that is not there yet. Dropped before it is, its temporary file goes.
#[derive(Debug)]
pub(crate) struct Temporary {
    pub(crate) dir: Arc<Directory>,
    pub(crate) temporary: CString,
    pub(crate) name: CString,
    /// For messages.
    pub(crate) path: PathBuf,
    armed: bool,
}

impl Temporary {
    pub(crate) fn new(dir: Arc<Directory>, temporary: CString, name: CString, path: PathBuf) -> Self {
        Self { dir, temporary, name, path, armed: true }
    }

    /// Gives it its name, in place of whatever has it.
    pub(crate) fn rename(mut self) -> Result<(), Failure> {
        let fd = &self.dir.fd;
        rustix::fs::renameat(fd, &self.temporary, fd, &self.name).attempt("replacing", &self.path)?;
        self.armed = false;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.armed {
            // Gone already, or nothing that can be done about it.
            let _ = rustix::fs::unlinkat(&self.dir.fd, &self.temporary, AtFlags::empty());
        }
    }
}

#[derive(Debug)]
enum Pending {
    File {
        file: File,
        temporary: Temporary,
    },
    /// A directory that nothing more comes into, for now.
    Directory {
        dir: Arc<Directory>,
        meta: Meta,
    },
}

/// What is finished and not durable yet.
#[derive(Debug, Default)]
pub struct Batch {
    pending: Vec<Pending>,
    bytes: u64,
}

impl Batch {
    pub(crate) fn file(&mut self, file: File, bytes: u64, temporary: Temporary) -> Result<(), Failure> {
        self.bytes = self.bytes.saturating_add(bytes);
        self.add(Pending::File { file, temporary })
    }

    pub(crate) fn directory(&mut self, dir: Arc<Directory>, meta: Meta) -> Result<(), Failure> {
        self.add(Pending::Directory { dir, meta })
    }

    fn add(&mut self, pending: Pending) -> Result<(), Failure> {
        self.pending.push(pending);
        if self.pending.len() >= MOST || self.bytes >= MOST_BYTES { self.commit() } else { Ok(()) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// All that is pending gets durable, then named.
    pub(crate) fn commit(&mut self) -> Result<(), Failure> {
        self.bytes = 0;
        let pending = std::mem::take(&mut self.pending);
        sync(&pending, |item| match item {
            Pending::File { file, temporary } => {
                Some(rustix::fs::fsync(file).attempt("writing to disk", &temporary.path))
            }
            Pending::Directory { .. } => None,
        })?;
        let mut directories = Vec::new();
        for item in pending {
            match item {
                Pending::File { file, temporary } => {
                    drop(file);
                    temporary.rename()?;
                }
                Pending::Directory { dir, meta } => {
                    meta.apply(dir.fd.as_fd(), &dir.path)?;
                    directories.push(dir);
                }
            }
        }
        sync(&directories, |dir| Some(sync_directory(dir)))
    }
}

/// A directory's names, onto the disk.
pub(crate) fn sync_directory(dir: &Directory) -> Result<(), Failure> {
    match rustix::fs::fsync(&dir.fd) {
        // Some file systems have nothing to sync in a directory.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::BADF) => Ok(()),
        done => done.attempt("writing to disk", &dir.path),
    }
}

/// Does `what` with all items, a few at once; the first failure wins. The threads inherit who this one is.
fn sync<T: Sync>(
    items: &[T],
    what: impl Fn(&T) -> Option<Result<(), Failure>> + Sync,
) -> Result<(), Failure> {
    if let [one] = items {
        return what(one).unwrap_or(Ok(()));
    }
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(failed @ Err(_)) = what(item) {
                // The others stop at their next item.
                next.store(items.len(), Ordering::Relaxed);
                return failed;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..THREADS.min(items.len()))
            // Without threads to be had, this one does it all.
            .filter_map(|_| std::thread::Builder::new().name("fsync".into()).spawn_scoped(scope, work).ok())
            .collect();
        let mut result = work();
        for helper in helpers {
            let other =
                helper.join().unwrap_or_else(|_| Err(Failure::abandoned("a thread that syncs has panicked")));
            result = result.and(other);
        }
        result
    })
}
