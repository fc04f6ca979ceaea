//! Frames into a window: small ones gathered, content read straight into the chunk that travels.

use std::io::{self, Read};

use bytes::Bytes;
use holdfast_wire::{
    api::{FileEntry, FileFailure, FileKind, FileProblem, FileProblemKind, TransferEnd},
    files::{self, Frame, HEADER_LEN, kind},
    limits::{MAX_FRAME_PAYLOAD, MAX_TRANSFER_PROBLEMS},
};
use prost::Message as _;

use crate::{
    failure::Failure,
    tally::Tally,
    window::{Closed, Window},
};

/// A chunk, in bytes: a full data frame.
const CHUNK: usize = HEADER_LEN + MAX_FRAME_PAYLOAD;

/// Content is not read into less room than this: the chunk goes out first.
const MIN_ROOM: usize = 8 << 10;

/// What was sent, and what was left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Counts and digest, as the receiver must have them.
    pub end: TransferEnd,
    /// What was left out, at most the first thousand.
    pub problems: Vec<FileProblem>,
}

/// The sender's end of a stream.
#[derive(Debug)]
pub struct Emitter<'a> {
    window: &'a Window,
    chunk: Vec<u8>,
    tally: Tally,
    /// Problems told, special files left out.
    problems: u64,
    told: Vec<FileProblem>,
}

impl<'a> Emitter<'a> {
    /// Emits into `window`.
    #[must_use]
    pub fn new(window: &'a Window) -> Self {
        Self { window, chunk: Vec::new(), tally: Tally::default(), problems: 0, told: Vec::new() }
    }

    /// An entry begins.
    ///
    /// # Errors
    /// Nobody wants the stream; so with all others.
    pub fn entry(&mut self, entry: &FileEntry) -> Result<(), Closed> {
        let payload = entry.encode_to_vec();
        self.tally.on_entry(&payload, entry.kind());
        self.frame(&Frame::Entry(payload.into()))
    }

    /// Content: what one read gives, at most `most` bytes. 0 is the end of the file.
    ///
    /// # Errors
    /// The outer one: nobody wants the stream. The inner one: the read's.
    pub fn content(&mut self, from: &mut impl Read, most: u64) -> Result<io::Result<usize>, Closed> {
        if self.chunk.capacity() == 0 {
            self.chunk.reserve_exact(CHUNK);
        }
        if CHUNK - self.chunk.len() < HEADER_LEN + MIN_ROOM {
            self.flush()?;
            self.chunk.reserve_exact(CHUNK);
        }
        let head = self.chunk.len();
        let room = (CHUNK - head - HEADER_LEN).min(usize::try_from(most).unwrap_or(usize::MAX));
        self.chunk.resize(head + HEADER_LEN + room, 0);
        let read = loop {
            match from.read(&mut self.chunk[head + HEADER_LEN..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let Ok(n @ 1..) = read else {
            self.chunk.truncate(head);
            return Ok(read);
        };
        self.chunk.truncate(head + HEADER_LEN + n);
        self.chunk[head..head + HEADER_LEN].copy_from_slice(&files::header(kind::DATA, n));
        self.tally.on_data(&self.chunk[head + HEADER_LEN..]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(read)
    }

    /// Zeros that take no room.
    pub fn hole(&mut self, length: u64) -> Result<(), Closed> {
        self.tally.on_hole(length);
        self.frame(&Frame::Hole(length))
    }

    /// The file is complete.
    pub fn close(&mut self) -> Result<(), Closed> {
        self.tally.on_close();
        self.frame(&Frame::Close)
    }

    /// The file is not, and `why`.
    pub fn drop_file(&mut self, why: FileProblem) -> Result<(), Closed> {
        self.tally.on_drop();
        self.frame(&Frame::Drop)?;
        self.problem(why)
    }

    /// Something is left out.
    pub fn problem(&mut self, problem: FileProblem) -> Result<(), Closed> {
        self.problems += u64::from(problem.kind() != FileProblemKind::Special);
        if self.told.len() >= MAX_TRANSFER_PROBLEMS {
            return Ok(());
        }
        self.told.push(problem.clone());
        self.frame(&Frame::Problem(problem))
    }

    /// All has been said.
    pub fn end(mut self) -> Result<Summary, Closed> {
        let end = self.tally.end(self.problems);
        self.frame(&Frame::End(end.clone()))?;
        self.flush()?;
        self.window.finish();
        Ok(Summary { end, problems: self.told })
    }

    /// It cannot go on.
    pub fn fail(mut self, failure: FileFailure) -> Result<(), Closed> {
        self.frame(&Frame::Failed(failure))?;
        self.flush()?;
        self.window.finish();
        Ok(())
    }

    /// How much content has gone out, and how many entries.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.tally.bytes, self.tally.entries)
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), Closed> {
        if self.chunk.capacity() == 0 {
            self.chunk.reserve_exact(CHUNK);
        }
        let before = self.chunk.len();
        frame.encode(&mut self.chunk);
        if self.chunk.len() < CHUNK {
            return Ok(());
        }
        // It grew beyond a chunk: what was there before goes first, so that chunks keep their size.
        let rest = self.chunk.split_off(before);
        self.flush()?;
        self.chunk.reserve_exact(CHUNK.max(rest.len()));
        self.chunk.extend_from_slice(&rest);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Closed> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.window.push_blocking(Bytes::from(std::mem::take(&mut self.chunk)))
    }
}

/// Why sending stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// Nobody wants more.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// It could not go on; the stream says so too.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// An entry without links, owner or content.
#[must_use]
pub fn plain_entry(path: Bytes, kind: FileKind, mode: u32) -> FileEntry {
    FileEntry { path, kind: kind.into(), mode, ..FileEntry::default() }
}
