//! The frames of a transfer: `kind: u8, length: u32 BE, payload`, payloads at most 64 KiB.
//!
//! ```text
//! sender ─▶ receiver    entry (data | hole)* (close | drop), problem, … end | failed
//! receiver ─▶ sender    ack … done | failed
//! ```
//!
//! The sender's frames are one stream, addressed by offset: it is cut and joined as the network likes, and goes on
//! over any number of relays. [`Decoder`] takes its chunks as they come and hands content on as slices of them,
//! without copying. `end` (or `failed`) is its only clean end. Numbers are not those of [`crate::frame`], so that one
//! kind of relay's frames can never be taken for the other's.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::{
    api::{FileEntry, FileFailure, FileProblem, TransferEnd, TransferResult},
    chunks::Chunks,
    limits::{MAX_FRAME_PAYLOAD, MAX_PATH},
};

/// Kind and length in front of each payload, in bytes.
pub const HEADER_LEN: usize = 5;

/// The payload of any frame but data, in bytes: two paths and some numbers.
pub const MAX_CONTROL_PAYLOAD: usize = 2 * MAX_PATH + 4096;

/// A frame, or a fragment of a data frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// An entry begins: a [`FileEntry`] as it came, because its very bytes are part of the digest.
    Entry(Bytes),
    /// Content, the next bytes of the entry's file.
    Data(Bytes),
    /// So many zeros that take no room.
    Hole(u64),
    /// The entry's file is complete.
    Close,
    /// The entry's file is not: forget it.
    Drop,
    /// Something was left out.
    Problem(FileProblem),
    /// All has been said.
    End(TransferEnd),
    /// It is given up, by either side.
    Failed(FileFailure),
    /// The stream before this offset is with the receiver for good.
    Ack(u64),
    /// The receiver has everything.
    Done(TransferResult),
}

/// What each kind is on the wire. Numbers are never given twice.
pub mod kind {
    /// See [`super::Frame::Entry`].
    pub const ENTRY: u8 = 0x41;
    /// See [`super::Frame::Data`].
    pub const DATA: u8 = 0x42;
    /// See [`super::Frame::Hole`].
    pub const HOLE: u8 = 0x43;
    /// See [`super::Frame::Close`].
    pub const CLOSE: u8 = 0x44;
    /// See [`super::Frame::Drop`].
    pub const DROP: u8 = 0x45;
    /// See [`super::Frame::Problem`].
    pub const PROBLEM: u8 = 0x46;
    /// See [`super::Frame::End`].
    pub const END: u8 = 0x47;
    /// See [`super::Frame::Failed`].
    pub const FAILED: u8 = 0x48;
    /// See [`super::Frame::Ack`].
    pub const ACK: u8 = 0x49;
    /// See [`super::Frame::Done`].
    pub const DONE: u8 = 0x4a;
}

/// A frame that breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such kind.
    #[error("unknown kind {0:#04x} of a transfer's frame")]
    UnknownKind(u8),
    /// The payload is longer than any may be.
    #[error("a {kind} frame of {length} bytes: at most {limit} are allowed")]
    TooLong {
        /// Of which kind.
        kind: &'static str,
        /// Its length.
        length: u32,
        /// What is allowed.
        limit: usize,
    },
    /// The payload is not what the kind says.
    #[error("a malformed {kind} frame: {why}")]
    Malformed {
        /// Of which kind.
        kind: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The stream ended in the middle of a frame.
    #[error("the stream ended in the middle of a {kind} frame")]
    Truncated {
        /// Of which kind.
        kind: &'static str,
    },
}

impl Frame {
    /// An entry's frame.
    #[must_use]
    pub fn entry(entry: &FileEntry) -> Self {
        Self::Entry(entry.encode_to_vec().into())
    }

    /// Appends the frame to `out`. Data longer than a frame may be becomes several frames; data is copied, so bulk
    /// content is better put behind a [`header`] by whoever reads it.
    pub fn encode(&self, out: &mut impl BufMut) {
        match self {
            Self::Entry(payload) => put(out, kind::ENTRY, payload),
            Self::Data(data) => data.chunks(MAX_FRAME_PAYLOAD).for_each(|piece| put(out, kind::DATA, piece)),
            Self::Hole(length) => put(out, kind::HOLE, &length.to_be_bytes()),
            Self::Close => put(out, kind::CLOSE, &[]),
            Self::Drop => put(out, kind::DROP, &[]),
            Self::Problem(problem) => put(out, kind::PROBLEM, &problem.encode_to_vec()),
            Self::End(end) => put(out, kind::END, &end.encode_to_vec()),
            Self::Failed(failure) => put(out, kind::FAILED, &failure.encode_to_vec()),
            Self::Ack(offset) => put(out, kind::ACK, &offset.to_be_bytes()),
            Self::Done(result) => put(out, kind::DONE, &result.encode_to_vec()),
        }
    }

    /// The frame in one piece.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }
}

/// Kind and length, as they stand in front of a payload of at most 64 KiB.
#[must_use]
pub fn header(kind: u8, length: usize) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [kind, a, b, c, d]
}

fn put(out: &mut impl BufMut, kind: u8, payload: &[u8]) {
    out.put_slice(&header(kind, payload.len()));
    out.put_slice(payload);
}

/// Turns a stream's chunks into frames, without copying content.
#[derive(Debug, Default)]
pub struct Decoder {
    chunks: Chunks,
    /// What is still to come of a data frame.
    data_left: usize,
}

impl Decoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk of the stream.
    pub fn push(&mut self, chunk: Bytes) {
        self.chunks.push(chunk);
    }

    /// How many bytes wait in here: between a `None` and the next push less than a header and a control payload.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.chunks.buffered()
    }

    /// The next frame or fragment; `None`: more bytes are needed. After an error the stream is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if self.data_left > 0 {
                let Some(data) = self.chunks.slice(self.data_left) else { return Ok(None) };
                self.data_left -= data.len();
                return Ok(Some(Frame::Data(data)));
            }
            if self.chunks.buffered() < HEADER_LEN {
                return Ok(self.starved());
            }
            let mut head = [0; HEADER_LEN];
            self.chunks.peek(&mut head);
            let (kind, length) = (head[0], u32::from_be_bytes([head[1], head[2], head[3], head[4]]));
            let Some(name) = name(kind) else { return Err(FrameError::UnknownKind(kind)) };
            let limit = if kind == kind::DATA { MAX_FRAME_PAYLOAD } else { MAX_CONTROL_PAYLOAD };
            let size = length as usize;
            if size > limit {
                return Err(FrameError::TooLong { kind: name, length, limit });
            }
            if kind == kind::DATA {
                self.chunks.skip(HEADER_LEN);
                self.data_left = size;
                continue;
            }
            if self.chunks.buffered() < HEADER_LEN + size {
                return Ok(self.starved());
            }
            self.chunks.skip(HEADER_LEN);
            return control(kind, name, self.chunks.take(size)).map(Some);
        }
    }

    /// To be asked when the stream has ended: was that between two frames?
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.data_left > 0 {
            return Err(FrameError::Truncated { kind: "data" });
        }
        match self.chunks.first() {
            None => Ok(()),
            Some(kind) => Err(FrameError::Truncated { kind: name(kind).unwrap_or("unknown") }),
        }
    }

    fn starved(&mut self) -> Option<Frame> {
        self.chunks.starved();
        None
    }
}

fn name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        kind::ENTRY => "entry",
        kind::DATA => "data",
        kind::HOLE => "hole",
        kind::CLOSE => "close",
        kind::DROP => "drop",
        kind::PROBLEM => "problem",
        kind::END => "end",
        kind::FAILED => "failed",
        kind::ACK => "ack",
        kind::DONE => "done",
        _ => return None,
    })
}

fn control(kind: u8, name: &'static str, mut payload: Bytes) -> Result<Frame, FrameError> {
    let malformed = |why: String| FrameError::Malformed { kind: name, why };
    let exactly = |n: usize| {
        if payload.len() == n { Ok(()) } else { Err(malformed(format!("{} bytes, not {n}", payload.len()))) }
    };
    match kind {
        kind::HOLE | kind::ACK => {
            exactly(8)?;
            let number = payload.get_u64();
            Ok(if kind == kind::HOLE { Frame::Hole(number) } else { Frame::Ack(number) })
        }
        kind::CLOSE => exactly(0).map(|()| Frame::Close),
        kind::DROP => exactly(0).map(|()| Frame::Drop),
        kind::ENTRY => Ok(Frame::Entry(payload)),
        kind::PROBLEM => {
            FileProblem::decode(payload).map(Frame::Problem).map_err(|e| malformed(e.to_string()))
        }
        kind::END => TransferEnd::decode(payload).map(Frame::End).map_err(|e| malformed(e.to_string())),
        kind::FAILED => FileFailure::decode(payload).map(Frame::Failed).map_err(|e| malformed(e.to_string())),
        kind::DONE => TransferResult::decode(payload).map(Frame::Done).map_err(|e| malformed(e.to_string())),
        _ => Err(FrameError::UnknownKind(kind)),
    }
}
