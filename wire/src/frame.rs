//! The frames of an exec relay: `kind: u8, length: u32 BE, payload`, payloads at most 64 KiB.
//!
//! ```text
//! supervisor ─▶ gateway   started  stdout  stderr  gap  stdin_ack  ended
//! gateway ─▶ supervisor   stdin  stdin_eof  resize  signal  ack  detach
//! ```
//!
//! [`FrameDecoder`] takes the chunks of a stream as they come and never copies output or input: data frames are
//! handed on as slices of those chunks, in fragments where a chunk ends in the middle of a frame. That is sound
//! because data is addressed by offset: where one frame ends and the next begins carries no meaning. `ended` is
//! the only clean end of the supervisor's direction; a stream that ends without it has failed.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::{
    api::{ExecEnded, ExecStarted, OutputStream},
    chunks::Chunks,
    limits::MAX_FRAME_PAYLOAD,
};

/// Kind and length in front of each payload, in bytes.
pub const HEADER_LEN: usize = 5;

/// A frame, or a fragment of a data frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// The exec runs (or has run); first frame of the supervisor.
    Started(ExecStarted),
    /// Output. Its offset is the sum of what came before it on this relay, gaps included.
    Output(OutputStream, Bytes),
    /// Input, by offset.
    Stdin {
        /// The offset of the first byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Input ends at this offset.
    StdinEof {
        /// The length of all input.
        offset: u64,
    },
    /// The terminal's size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// A signal for the process group.
    Signal(i32),
    /// Output in `from..to` is no longer kept; what follows begins at `to`.
    Gap {
        /// Of which stream.
        stream: OutputStream,
        /// First byte that is gone.
        from: u64,
        /// First byte that is there.
        to: u64,
    },
    /// Input before this offset is in the command's pipe.
    StdinAck {
        /// The offset.
        offset: u64,
    },
    /// Output before these offsets has reached the caller for good.
    Ack {
        /// Of stdout.
        stdout: u64,
        /// Of stderr.
        stderr: u64,
    },
    /// The caller leaves on purpose: on_disconnect does not strike.
    Detach,
    /// The outcome; last frame of the supervisor.
    Ended(ExecEnded),
}

/// What each kind is on the wire. Numbers are never given twice.
mod kind {
    pub(super) const STARTED: u8 = 0x01;
    pub(super) const STDOUT: u8 = 0x02;
    pub(super) const STDERR: u8 = 0x03;
    pub(super) const STDIN: u8 = 0x04;
    pub(super) const STDIN_EOF: u8 = 0x05;
    pub(super) const RESIZE: u8 = 0x06;
    pub(super) const SIGNAL: u8 = 0x07;
    pub(super) const GAP: u8 = 0x08;
    pub(super) const ENDED: u8 = 0x09;
    pub(super) const STDIN_ACK: u8 = 0x0a;
    pub(super) const ACK: u8 = 0x0b;
    pub(super) const DETACH: u8 = 0x0c;
}

/// A frame that breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such kind. Kinds are only added with a new capability, so an unknown one is a fault.
    #[error("unknown frame kind {0:#04x}")]
    UnknownKind(u8),
    /// The payload is longer than any may be.
    #[error("a {kind} frame of {length} bytes: at most {MAX_FRAME_PAYLOAD} are allowed")]
    TooLong {
        /// Of which kind.
        kind: &'static str,
        /// Its length.
        length: u32,
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
    /// Appends the frame to `out` as pieces for a vectored write: headers and small payloads go into `scratch`,
    /// data goes as it is. Data longer than a frame may be becomes several frames.
    ///
    /// Each call splits what it wrote off `scratch`, so one buffer with some capacity serves many frames without
    /// an allocation for each.
    pub fn encode(self, scratch: &mut BytesMut, out: &mut Vec<Bytes>) {
        match self {
            Self::Output(stream, mut data) => {
                let kind = if stream == OutputStream::Stderr { kind::STDERR } else { kind::STDOUT };
                while !data.is_empty() {
                    let piece = data.split_to(data.len().min(MAX_FRAME_PAYLOAD));
                    header(scratch, kind, piece.len());
                    out.push(scratch.split().freeze());
                    out.push(piece);
                }
            }
            Self::Stdin { mut offset, mut data } => {
                while !data.is_empty() {
                    let piece = data.split_to(data.len().min(MAX_FRAME_PAYLOAD - 8));
                    header(scratch, kind::STDIN, piece.len() + 8);
                    scratch.put_u64(offset);
                    offset += piece.len() as u64;
                    out.push(scratch.split().freeze());
                    out.push(piece);
                }
            }
            small => {
                small.encode_small(scratch);
                out.push(scratch.split().freeze());
            }
        }
    }

    fn encode_small(&self, out: &mut BytesMut) {
        match self {
            Self::Started(message) => self::message(out, kind::STARTED, message),
            Self::Ended(message) => self::message(out, kind::ENDED, message),
            Self::StdinEof { offset } => {
                header(out, kind::STDIN_EOF, 8);
                out.put_u64(*offset);
            }
            Self::Resize { cols, rows } => {
                header(out, kind::RESIZE, 4);
                out.put_u16(*cols);
                out.put_u16(*rows);
            }
            Self::Signal(number) => {
                header(out, kind::SIGNAL, 4);
                out.put_i32(*number);
            }
            Self::Gap { stream, from, to } => {
                header(out, kind::GAP, 17);
                out.put_u8(if *stream == OutputStream::Stderr { 2 } else { 1 });
                out.put_u64(*from);
                out.put_u64(*to);
            }
            Self::StdinAck { offset } => {
                header(out, kind::STDIN_ACK, 8);
                out.put_u64(*offset);
            }
            Self::Ack { stdout, stderr } => {
                header(out, kind::ACK, 16);
                out.put_u64(*stdout);
                out.put_u64(*stderr);
            }
            Self::Detach => header(out, kind::DETACH, 0),
            Self::Output(..) | Self::Stdin { .. } => {}
        }
    }

    /// The frame in one piece: for tests and golden bytes.
    #[must_use]
    pub fn to_bytes(self) -> Bytes {
        let mut pieces = Vec::new();
        self.encode(&mut BytesMut::new(), &mut pieces);
        pieces.concat().into()
    }
}

fn header(out: &mut BytesMut, kind: u8, length: usize) {
    out.reserve(HEADER_LEN + length.min(64));
    out.put_u8(kind);
    // Every caller's payload is at most MAX_FRAME_PAYLOAD.
    out.put_u32(length as u32);
}

/// An `ExecInfo` is bounded (its command is cut to 256 bytes), and so is what is made of it.
fn message(out: &mut BytesMut, kind: u8, message: &impl Message) {
    let length = message.encoded_len();
    debug_assert!(length <= MAX_FRAME_PAYLOAD);
    out.reserve(HEADER_LEN + length);
    header(out, kind, length);
    message.encode_raw(out);
}

/// Turns a stream's chunks into frames, without copying data. Between a `None` and the next push it holds less than
/// a header and one control payload, in few chunks.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    chunks: Chunks,
    /// The rest of a data frame whose beginning has been handed out.
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    kind: u8,
    remaining: usize,
    /// Of the next byte, for stdin.
    offset: u64,
}

impl FrameDecoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk of the stream.
    pub fn push(&mut self, chunk: Bytes) {
        self.chunks.push(chunk);
    }

    /// How many bytes wait in here: between a `None` and the next push less than a header and the largest
    /// control payload.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.chunks.buffered()
    }

    /// The next frame or fragment; `None`: more bytes are needed. After an error the stream is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        // A loop, for a data frame without data yields nothing: a peer may send thousands of them in one chunk.
        loop {
            if let Some(fragment) = self.fragment() {
                return Ok(Some(fragment));
            }
            if self.partial.is_some() || self.chunks.buffered() < HEADER_LEN {
                return Ok(self.starved());
            }
            let mut head = [0; HEADER_LEN];
            self.chunks.peek(&mut head);
            let (kind, length) = (head[0], u32::from_be_bytes([head[1], head[2], head[3], head[4]]));
            let Some(name) = kind_name(kind) else { return Err(FrameError::UnknownKind(kind)) };
            let size = length as usize;
            if size > MAX_FRAME_PAYLOAD {
                return Err(FrameError::TooLong { kind: name, length });
            }
            match kind {
                kind::STDOUT | kind::STDERR => {
                    self.chunks.skip(HEADER_LEN);
                    self.partial = (size > 0).then_some(Partial { kind, remaining: size, offset: 0 });
                }
                kind::STDIN => {
                    if size < 8 {
                        return Err(malformed(name, "shorter than its offset"));
                    }
                    if self.chunks.buffered() < HEADER_LEN + 8 {
                        return Ok(self.starved());
                    }
                    self.chunks.skip(HEADER_LEN);
                    let offset = self.chunks.take(8).get_u64();
                    if offset.checked_add(size as u64).is_none() {
                        return Err(malformed(name, "its offset is beyond 2^64"));
                    }
                    self.partial = (size > 8).then_some(Partial { kind, remaining: size - 8, offset });
                }
                _ => {
                    if self.chunks.buffered() < HEADER_LEN + size {
                        return Ok(self.starved());
                    }
                    self.chunks.skip(HEADER_LEN);
                    return control_frame(kind, name, self.chunks.take(size)).map(Some);
                }
            }
        }
    }

    fn starved(&mut self) -> Option<Frame> {
        self.chunks.starved();
        None
    }

    /// To be asked when the stream has ended: was that between two frames?
    pub fn finish(&self) -> Result<(), FrameError> {
        if let Some(partial) = &self.partial {
            return Err(FrameError::Truncated { kind: kind_name(partial.kind).unwrap_or("data") });
        }
        match self.chunks.first() {
            None => Ok(()),
            Some(kind) => Err(FrameError::Truncated { kind: kind_name(kind).unwrap_or("unknown") }),
        }
    }

    fn fragment(&mut self) -> Option<Frame> {
        let partial = self.partial.as_mut()?;
        let data = self.chunks.slice(partial.remaining)?;
        let (kind, offset) = (partial.kind, partial.offset);
        partial.remaining -= data.len();
        partial.offset += data.len() as u64;
        if partial.remaining == 0 {
            self.partial = None;
        }
        Some(match kind {
            kind::STDIN => Frame::Stdin { offset, data },
            kind::STDERR => Frame::Output(OutputStream::Stderr, data),
            _ => Frame::Output(OutputStream::Stdout, data),
        })
    }
}

fn kind_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        kind::STARTED => "started",
        kind::STDOUT => "stdout",
        kind::STDERR => "stderr",
        kind::STDIN => "stdin",
        kind::STDIN_EOF => "stdin_eof",
        kind::RESIZE => "resize",
        kind::SIGNAL => "signal",
        kind::GAP => "gap",
        kind::ENDED => "ended",
        kind::STDIN_ACK => "stdin_ack",
        kind::ACK => "ack",
        kind::DETACH => "detach",
        _ => return None,
    })
}

fn malformed(kind: &'static str, why: impl Into<String>) -> FrameError {
    FrameError::Malformed { kind, why: why.into() }
}

fn control_frame(kind: u8, name: &'static str, mut payload: Bytes) -> Result<Frame, FrameError> {
    let exactly = |n: usize| {
        if payload.len() == n {
            Ok(())
        } else {
            Err(malformed(name, format!("{} bytes, not {n}", payload.len())))
        }
    };
    Ok(match kind {
        kind::STARTED => {
            Frame::Started(ExecStarted::decode(payload).map_err(|e| malformed(name, e.to_string()))?)
        }
        kind::ENDED => Frame::Ended(ExecEnded::decode(payload).map_err(|e| malformed(name, e.to_string()))?),
        kind::STDIN_EOF => {
            exactly(8)?;
            Frame::StdinEof { offset: payload.get_u64() }
        }
        kind::RESIZE => {
            exactly(4)?;
            Frame::Resize { cols: payload.get_u16(), rows: payload.get_u16() }
        }
        kind::SIGNAL => {
            exactly(4)?;
            Frame::Signal(payload.get_i32())
        }
        kind::GAP => {
            exactly(17)?;
            let stream = match payload.get_u8() {
                1 => OutputStream::Stdout,
                2 => OutputStream::Stderr,
                other => return Err(malformed(name, format!("no output stream {other}"))),
            };
            let (from, to) = (payload.get_u64(), payload.get_u64());
            if from >= to {
                return Err(malformed(name, format!("{from}..{to} is empty")));
            }
            Frame::Gap { stream, from, to }
        }
        kind::STDIN_ACK => {
            exactly(8)?;
            Frame::StdinAck { offset: payload.get_u64() }
        }
        kind::ACK => {
            exactly(16)?;
            Frame::Ack { stdout: payload.get_u64(), stderr: payload.get_u64() }
        }
        kind::DETACH => {
            exactly(0)?;
            Frame::Detach
        }
        _ => return Err(FrameError::UnknownKind(kind)),
    })
}
