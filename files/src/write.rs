//! Takes a transfer's frames and makes files of them.
//!
//! ```text
//!   entry ─▶ way: the directories down to it, held open, entered without following links
//!     file:      temporary name beside its place ─▶ content ─▶ close ─▶ batch (fsync, rename)
//!     directory: made with the user's rights alone; mode and time when nothing more comes into it
//!     link:      temporary name ─▶ rename
//!   end ─▶ batch ─▶ counts and digest compared ─▶ done
//! ```
//!
//! Nothing leaves the root: a path goes down by components, each opened relative to the one before and never through
//! a symbolic link, whether the archive brought it or somebody puts it there meanwhile. Files replace what has their
//! name; a directory is never replaced by a file nor the other way round. Dropped before its end, it removes what is
//! not complete.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::File,
    os::{
        fd::AsFd as _,
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use holdfast_wire::{
    api::{
        FileEntry, FileFailureKind as Kind, FileKind, FileProblem, TransferEnd, TransferResult,
        UploadPlacement,
    },
    files::{Decoder, Frame},
    limits::MAX_TRANSFER_PROBLEMS,
};
use prost::Message as _;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::{
    batch::{Batch, Directory, Meta, Temporary, sync_directory, times},
    failure::{Attempt as _, Failure},
    journal::{self, Journal},
    names,
    place::{self, Destination, Placed},
    tally::Tally,
};

/// Content that waits for one write, in bytes. Datagrams are small, writes should not be.
const GATHER: usize = 256 << 10;

/// Pieces of it: at most what one pwritev takes.
const PIECES: usize = 256;

/// The mode of a directory that no entry describes, and of one that is being filled.
const FILLING: u32 = 0o700;
const IMPLIED: u32 = 0o755;

/// A file's length, at most: an off_t.
const MAX_LENGTH: u64 = i64::MAX as u64;

/// How to write.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to.
    pub to: Destination,
    /// Keep owner, group, setuid and setgid bits.
    pub archive: bool,
    /// A word that no other transfer into these directories has, for temporary names.
    pub word: String,
}

/// The receiver's end of a stream.
#[derive(Debug)]
pub struct Writer {
    options: Options,
    decoder: Decoder,
    tally: Tally,
    root: Option<Root>,
    /// The way from the root to where the last entry is, the root left out.
    way: Vec<Level>,
    current: Option<Current>,
    batch: Batch,
    journal: Option<Journal>,
    /// Counts temporary names.
    counter: u64,
    problems: Vec<FileProblem>,
    over: bool,
}

#[derive(Debug)]
enum Root {
    /// One file or link.
    Name {
        dir: Arc<Directory>,
        name: OsString,
    },
    Tree {
        dir: Arc<Directory>,
        meta: Meta,
        parent: Option<Directory>,
    },
}

#[derive(Debug)]
struct Level {
    dir: Arc<Directory>,
    name: OsString,
    meta: Meta,
}

/// The file that is being written.
#[derive(Debug)]
struct Current {
    file: File,
    temporary: Temporary,
    meta: Meta,
    /// Content so far, what waits included.
    length: u64,
    /// What waits for its write, and where it goes.
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    /// The last thing was a hole: the length must be set.
    hole: bool,
}

/// How it stands after a chunk.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// More is to come.
    More,
    /// All is on disk under its name.
    Done(TransferResult),
}

impl Writer {
    /// Nothing has been written yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            decoder: Decoder::new(),
            tally: Tally::default(),
            root: None,
            way: Vec::new(),
            current: None,
            batch: Batch::default(),
            journal: None,
            counter: 0,
            problems: Vec::new(),
            over: false,
        }
    }

    /// Notes where temporary files are, for whoever has to remove them should this process be killed.
    #[must_use]
    pub fn with_journal(self, journal: Option<Journal>) -> Self {
        Self { journal, ..self }
    }

    /// Takes the next chunk of the stream.
    ///
    /// # Errors
    /// Something could not be written, or the sender gave up, or its stream breaks the rules. The writer is of no
    /// more use then, and dropping it cleans up.
    pub fn take(&mut self, chunk: Bytes) -> Result<Progress, Failure> {
        self.decoder.push(chunk);
        while let Some(frame) =
            self.decoder.next_frame().map_err(|error| Failure::protocol(error.to_string()))?
        {
            if self.over {
                return Err(Failure::protocol("a frame behind the end"));
            }
            match frame {
                Frame::Entry(payload) => self.on_entry(payload)?,
                Frame::Data(data) => self.on_data(data)?,
                Frame::Hole(length) => self.on_hole(length)?,
                Frame::Close => self.on_close()?,
                Frame::Drop => {
                    if self.current.take().is_none() {
                        return Err(Failure::protocol("nothing to drop"));
                    }
                    self.tally.on_drop();
                }
                Frame::Problem(problem) => {
                    if self.problems.len() < MAX_TRANSFER_PROBLEMS {
                        self.problems.push(problem);
                    }
                }
                Frame::End(end) => {
                    self.over = true;
                    return self.on_end(&end).map(Progress::Done);
                }
                Frame::Failed(failure) => return Err(Failure::from_wire(failure)),
                Frame::Ack(_) | Frame::Done(_) => {
                    return Err(Failure::protocol("a frame that only a receiver sends"));
                }
            }
        }
        Ok(Progress::More)
    }

    /// What the sender left out, at most the first thousand.
    #[must_use]
    pub fn problems(&self) -> &[FileProblem] {
        &self.problems
    }

    /// Content and entries so far.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.tally.bytes, self.tally.entries)
    }

    fn on_entry(&mut self, payload: Bytes) -> Result<(), Failure> {
        if self.current.is_some() {
            return Err(Failure::protocol("an entry inside a file"));
        }
        let entry =
            FileEntry::decode(payload.clone()).map_err(|error| Failure::protocol(error.to_string()))?;
        self.tally.on_entry(&payload, entry.kind());
        let components = names::components(&entry.path)?;
        let into = self.options.to.placement == UploadPlacement::Into;
        if self.root.is_none() {
            self.begin(&entry, components.is_empty())?;
            if !into {
                return Ok(());
            }
        }
        let Some((name, parents)) = components.split_last() else {
            // `.` of an archive says nothing of a directory that is there already.
            return if into { Ok(()) } else { Err(Failure::protocol("a second root")) };
        };
        if matches!(self.root, Some(Root::Name { .. })) {
            return Err(Failure::protocol("an entry below something that is no directory"));
        }
        self.go(parents)?;
        let Some(dir) = self.here() else { return Err(Failure::protocol("no directory to write into")) };
        self.make(&entry, dir, name)
    }

    /// The first entry decides where everything goes.
    fn begin(&mut self, entry: &FileEntry, is_root: bool) -> Result<(), Failure> {
        let into = self.options.to.placement == UploadPlacement::Into;
        if !is_root && !into {
            return Err(Failure::protocol("the first entry must be the root"));
        }
        let kind = if into { FileKind::Directory } else { entry.kind() };
        match place::place(&self.options.to, kind)? {
            Placed::Name { dir, name } => {
                let dir = Arc::new(dir);
                self.root = Some(Root::Name { dir: Arc::clone(&dir), name: name.clone() });
                self.make(entry, dir, &name)
            }
            Placed::Tree { dir, created, parent } => {
                let meta = if created { self.meta(entry) } else { Meta::default() };
                self.root = Some(Root::Tree { dir: Arc::new(dir), meta, parent });
                Ok(())
            }
        }
    }

    /// Where the way has led to.
    fn here(&self) -> Option<Arc<Directory>> {
        match (self.way.last(), &self.root) {
            (Some(level), _) => Some(Arc::clone(&level.dir)),
            (None, Some(Root::Tree { dir, .. })) => Some(Arc::clone(dir)),
            (None, _) => None,
        }
    }

    /// Goes to the directory that these components lead to, making those that are missing.
    fn go(&mut self, parents: &[OsString]) -> Result<(), Failure> {
        let common = self.way.iter().zip(parents).take_while(|(level, name)| level.name == **name).count();
        self.leave_to(common)?;
        for name in parents.iter().skip(common) {
            let Some(dir) = self.here() else { return Err(Failure::protocol("no directory to go through")) };
            self.enter(&dir, name, IMPLIED)?;
        }
        Ok(())
    }

    /// Leaves the directories below `depth`: nothing more comes into them.
    fn leave_to(&mut self, depth: usize) -> Result<(), Failure> {
        while self.way.len() > depth {
            let Some(level) = self.way.pop() else { break };
            self.batch.directory(level.dir, level.meta)?;
        }
        Ok(())
    }

    /// Goes down into one that is there, or is made.
    fn enter(&mut self, dir: &Arc<Directory>, name: &OsStr, implied: u32) -> Result<bool, Failure> {
        let path = dir.path.join(name);
        let created = match rustix::fs::mkdirat(&dir.fd, name, Mode::from_raw_mode(FILLING)) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(errno) => return Err(Failure::io("making the directory", &path, &errno.into())),
        };
        let fd = place::enter(dir, name.as_bytes(), &path)?;
        let meta = Meta { mode: created.then_some(implied), ..Meta::default() };
        self.way.push(Level { dir: Arc::new(Directory { fd, path }), name: name.to_owned(), meta });
        Ok(created)
    }

    /// Makes one entry in a directory.
    fn make(&mut self, entry: &FileEntry, dir: Arc<Directory>, name: &OsStr) -> Result<(), Failure> {
        let path = dir.path.join(name);
        let meta = self.meta(entry);
        match entry.kind() {
            FileKind::Directory => {
                let created = self.enter(&dir, name, IMPLIED)?;
                if created && let Some(level) = self.way.last_mut() {
                    level.meta = meta;
                }
                Ok(())
            }
            FileKind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let temporary = self.temporary(&dir)?;
                let fd = rustix::fs::openat(&dir.fd, &temporary, flags, Mode::RUSR | Mode::WUSR)
                    .attempt("creating", &path)?;
                let temporary = Temporary::new(dir, temporary, c_name(name)?, path);
                self.current = Some(Current {
                    file: fd.into(),
                    temporary,
                    meta,
                    length: 0,
                    waiting: Vec::new(),
                    waiting_bytes: 0,
                    hole: false,
                });
                Ok(())
            }
            FileKind::Symlink => {
                let target = OsString::from_vec(entry.target.to_vec());
                let temporary = self.temporary(&dir)?;
                rustix::fs::symlinkat(target.as_os_str(), &dir.fd, &temporary).attempt("linking", &path)?;
                let temporary = Temporary::new(Arc::clone(&dir), temporary, c_name(name)?, path.clone());
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                if let Some((uid, gid)) = meta.owner {
                    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
                    rustix::fs::chownat(&dir.fd, &temporary.temporary, Some(uid), Some(gid), flags)
                        .attempt("setting the owner of", &path)?;
                }
                if let Some(mtime) = meta.mtime {
                    // Not every file system keeps a link's own time.
                    let _ = rustix::fs::utimensat(&dir.fd, &temporary.temporary, &times(mtime), flags);
                }
                temporary.rename()
            }
            FileKind::Hardlink => self.hardlink(entry, &dir, name, path),
            FileKind::Unspecified | FileKind::Fifo | FileKind::Socket | FileKind::Device => {
                Err(Failure::protocol(format!("{}: an entry of a kind that is not carried", path.display())))
            }
        }
    }

    /// Another name for what this transfer has written.
    fn hardlink(
        &mut self,
        entry: &FileEntry,
        dir: &Arc<Directory>,
        name: &OsStr,
        path: PathBuf,
    ) -> Result<(), Failure> {
        let target = names::components(&entry.target)?;
        let Some((first, parents)) = target.split_last() else {
            return Err(Failure::new(Kind::Invalid, path, "a link to nothing"));
        };
        // What it links to may be pending.
        self.batch.commit()?;
        let Some(Root::Tree { dir: root, .. }) = &self.root else {
            return Err(Failure::protocol("a link without a tree"));
        };
        let mut from = Arc::clone(root);
        for parent in parents {
            let path = from.path.join(parent);
            let fd = place::enter(&from, parent.as_bytes(), &path)?;
            from = Arc::new(Directory { fd, path });
        }
        let temporary = self.temporary(dir)?;
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link is one more name of that.
        rustix::fs::linkat(&from.fd, first.as_os_str(), &dir.fd, &temporary, AtFlags::empty())
            .attempt("linking", &path)?;
        let temporary = Temporary::new(Arc::clone(dir), temporary, c_name(name)?, path);
        let (fd, left) = (Arc::clone(dir), temporary.temporary.clone());
        temporary.rename()?;
        // Where both are names of one file already, rename does nothing, and leaves the temporary one.
        let _ = rustix::fs::unlinkat(&fd.fd, &left, AtFlags::empty());
        Ok(())
    }

    fn on_data(&mut self, data: Bytes) -> Result<(), Failure> {
        let Some(current) = &mut self.current else {
            return Err(Failure::protocol("content without a file"));
        };
        self.tally.on_data(&data);
        current.length = lengthen(current.length, data.len() as u64)?;
        current.waiting_bytes += data.len();
        current.waiting.push(data);
        current.hole = false;
        if current.waiting_bytes >= GATHER || current.waiting.len() >= PIECES {
            current.write_waiting()?;
        }
        Ok(())
    }

    fn on_hole(&mut self, length: u64) -> Result<(), Failure> {
        let Some(current) = &mut self.current else { return Err(Failure::protocol("a hole without a file")) };
        self.tally.on_hole(length);
        current.write_waiting()?;
        current.length = lengthen(current.length, length)?;
        current.hole = true;
        Ok(())
    }

    fn on_close(&mut self) -> Result<(), Failure> {
        let Some(mut current) = self.current.take() else {
            return Err(Failure::protocol("nothing to close"));
        };
        self.tally.on_close();
        current.write_waiting()?;
        if current.hole {
            rustix::fs::ftruncate(&current.file, current.length)
                .attempt("lengthening", &current.temporary.path)?;
        }
        current.meta.apply(current.file.as_fd(), &current.temporary.path)?;
        self.batch.file(current.file, current.length, current.temporary)?;
        self.settle();
        Ok(())
    }

    fn on_end(&mut self, end: &TransferEnd) -> Result<TransferResult, Failure> {
        if self.current.is_some() {
            return Err(Failure::protocol("the end inside a file"));
        }
        let own = self.tally.end(end.problems);
        if own != *end {
            return Err(Failure::new(
                Kind::Mismatch,
                "",
                format!(
                    "what came is not what was sent: {} of {} entries, {} of {} files, {} of {} bytes, digest {}",
                    own.entries,
                    end.entries,
                    own.files,
                    end.files,
                    own.bytes,
                    end.bytes,
                    if own.digest == end.digest { "the same" } else { "another" },
                ),
            ));
        }
        if self.root.is_none() && self.options.to.placement == UploadPlacement::Into {
            // An empty archive; the directory must be there all the same.
            self.begin(&FileEntry::default(), true)?;
        }
        self.leave_to(0)?;
        let path = match self.root.take() {
            None => return Err(Failure::protocol("a transfer without entries")),
            Some(Root::Name { dir, name }) => {
                self.batch.commit()?;
                sync_directory(&dir)?;
                dir.path.join(name)
            }
            Some(Root::Tree { dir, meta, parent }) => {
                self.batch.directory(Arc::clone(&dir), meta)?;
                self.batch.commit()?;
                if let Some(parent) = parent {
                    sync_directory(&parent)?;
                }
                dir.path.clone()
            }
        };
        let path = path.into_os_string().into_vec().into();
        Ok(TransferResult {
            entries: own.entries,
            files: own.files,
            bytes: own.bytes,
            digest: own.digest,
            path,
        })
    }

    /// What an entry gets besides its content.
    fn meta(&self, entry: &FileEntry) -> Meta {
        // A file that a stranger sends gets nobody's rights unless owner and all were asked for.
        let bits = if self.options.archive { 0o7777 } else { 0o1777 };
        Meta {
            mode: (entry.kind() != FileKind::Symlink).then_some(entry.mode & bits),
            mtime: Some((entry.mtime_seconds, entry.mtime_nanos)),
            owner: self.options.archive.then_some((entry.uid, entry.gid)),
        }
    }

    /// A name for a file of this directory that is not complete.
    fn temporary(&mut self, dir: &Directory) -> Result<CString, Failure> {
        if self.journal.as_ref().is_some_and(Journal::is_full) {
            self.batch.commit()?;
            self.settle();
        }
        if let Some(journal) = &mut self.journal {
            journal.note(dir);
        }
        self.counter += 1;
        c_name(journal::temporary(&self.options.word, self.counter).as_ref())
    }

    /// Where nothing is pending, no temporary file is left.
    fn settle(&mut self) {
        if let Some(journal) =
            self.journal.as_mut().filter(|_| self.current.is_none() && self.batch.is_empty())
        {
            journal.clear();
        }
    }
}

impl Current {
    fn write_waiting(&mut self) -> Result<(), Failure> {
        let mut at = self.length - self.waiting_bytes as u64;
        let mut pieces = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let mut first = 0;
        while first < pieces.len() {
            let slices: Vec<std::io::IoSlice<'_>> =
                pieces[first..].iter().map(|piece| std::io::IoSlice::new(piece)).collect();
            let mut written = match rustix::io::pwritev(&self.file, &slices, at) {
                Ok(0) => {
                    return Err(Failure::new(
                        Kind::NoSpace,
                        &self.temporary.path,
                        "nothing more can be written",
                    ));
                }
                Err(rustix::io::Errno::INTR) => 0,
                other => other.attempt("writing", &self.temporary.path)?,
            };
            at += written as u64;
            while first < pieces.len() && written >= pieces[first].len() {
                written -= pieces[first].len();
                first += 1;
            }
            if written > 0 {
                let _ = pieces[first].split_to(written);
            }
        }
        pieces.clear();
        self.waiting = pieces;
        Ok(())
    }
}

fn lengthen(length: u64, by: u64) -> Result<u64, Failure> {
    length
        .checked_add(by)
        .filter(|length| *length <= MAX_LENGTH)
        .ok_or_else(|| Failure::protocol("a file longer than any can be"))
}

fn c_name(name: &OsStr) -> Result<CString, Failure> {
    CString::new(name.as_bytes()).map_err(|_| Failure::new(Kind::Invalid, name, "a NUL byte in a name"))
}
