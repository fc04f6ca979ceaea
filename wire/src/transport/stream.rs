//! Streams that cannot end by accident.
//!
//! quinn's own send stream finishes when it is dropped, and a cancelled or panicked task then looks like a
//! clean end to the peer. Here only [`SendStream::finish`] ends cleanly; everything else resets with a code.

use bytes::{Bytes, BytesMut};
use prost::Message;
use quinn::{ReadError, WriteError};

use super::connection::{Lost, varint};
use crate::{
    close::CloseCode,
    frame::{Frame, FrameDecoder, FrameError},
    message::{self, MessageError},
};

/// What ends a stream before its time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset its sending side, or wants nothing more of ours.
    #[error("the peer ended the stream: {code} ({text})", code = .0, text = .0.text())]
    Ended(CloseCode),
    /// The connection under it was lost.
    #[error("the connection is lost: {0}")]
    Lost(#[from] Lost),
    /// The stream ended where a message or frame was expected.
    #[error("the stream ended where {0} was expected")]
    Finished(&'static str),
    /// A message that breaks the protocol.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A frame that breaks the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// This side has ended it already.
    #[error("the stream is closed on this side")]
    ClosedHere,
}

impl StreamError {
    /// The code to reset the other direction with.
    #[must_use]
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Ended(code) => *code,
            Self::Lost(_) => CloseCode::SESSION_LOST,
            Self::Finished(_) | Self::Message(_) | Self::Frame(_) => CloseCode::PROTOCOL,
            Self::ClosedHere => CloseCode::DONE,
        }
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Ended(CloseCode(code.into_inner())),
            WriteError::ConnectionLost(error) => Self::Lost(error.into()),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::ClosedHere,
        }
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Ended(CloseCode(code.into_inner())),
            ReadError::ConnectionLost(error) => Self::Lost(error.into()),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::ClosedHere
            }
        }
    }
}

/// The sending side of a stream. Dropped without [`finish`](Self::finish), it resets with
/// [`CloseCode::ABANDONED`], or with what [`on_drop`](Self::on_drop) was told.
#[derive(Debug)]
pub struct SendStream {
    inner: quinn::SendStream,
    on_drop: Option<CloseCode>,
}

impl SendStream {
    pub(super) fn new(inner: quinn::SendStream) -> Self {
        Self { inner, on_drop: Some(CloseCode::ABANDONED) }
    }

    /// The code to reset with should this be dropped unfinished.
    pub fn on_drop(&mut self, code: CloseCode) {
        if self.on_drop.is_some() {
            self.on_drop = Some(code);
        }
    }

    /// Writes one chunk without copying it; waits for the peer's window.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        Ok(self.inner.write_chunk(chunk).await?)
    }

    /// Writes all chunks in order without copying them.
    pub async fn write_all(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        Ok(self.inner.write_all_chunks(chunks).await?)
    }

    /// Writes one length-prefixed message.
    pub async fn send_message(&mut self, message: &impl Message, limit: usize) -> Result<(), StreamError> {
        self.write(message::encode(message, limit)?).await
    }

    /// Writes one frame. For bulk data keep the pieces and a scratch buffer and use
    /// [`Frame::encode`] with [`write_all`](Self::write_all).
    pub async fn send_frame(&mut self, frame: Frame) -> Result<(), StreamError> {
        let mut pieces = Vec::with_capacity(2);
        frame.encode(&mut BytesMut::new(), &mut pieces);
        self.write_all(&mut pieces).await
    }

    /// The clean end: everything written is delivered, then the peer reads the end.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.on_drop = None;
        self.inner.finish().map_err(|_| StreamError::ClosedHere)
    }

    /// Ends it at once with a code; what is not delivered yet may never be.
    pub fn reset(&mut self, code: CloseCode) {
        self.on_drop = None;
        // An error means that it has ended already.
        let _ = self.inner.reset(varint(code));
    }

    /// Above 0 goes before other streams' data, strictly.
    pub fn set_priority(&self, priority: i32) {
        // An error means that it has ended already.
        let _ = self.inner.set_priority(priority);
    }

    /// Waits until the peer wants nothing more (`Some` with its code), or has everything after a `finish` (`None`).
    pub async fn stopped(&self) -> Result<Option<CloseCode>, Lost> {
        match self.inner.stopped().await {
            Ok(code) => Ok(code.map(|code| CloseCode(code.into_inner()))),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(error.into()),
            Err(quinn::StoppedError::ZeroRttRejected) => Ok(None),
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if let Some(code) = self.on_drop {
            let _ = self.inner.reset(varint(code));
        }
    }
}

/// The receiving side of a stream. Dropped before its end, it tells the peer to stop with
/// [`CloseCode::ABANDONED`], or with what [`on_drop`](Self::on_drop) was told.
#[derive(Debug)]
pub struct RecvStream {
    inner: quinn::RecvStream,
    on_drop: Option<CloseCode>,
}

impl RecvStream {
    pub(super) fn new(inner: quinn::RecvStream) -> Self {
        Self { inner, on_drop: Some(CloseCode::ABANDONED) }
    }

    /// The code to stop with should this be dropped before the end.
    pub fn on_drop(&mut self, code: CloseCode) {
        if self.on_drop.is_some() {
            self.on_drop = Some(code);
        }
    }

    /// The next bytes, at most `max`, without copying; `None` is the clean end. Cancel-safe.
    pub async fn read(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        match self.inner.read_chunk(max, true).await {
            Ok(Some(chunk)) => Ok(Some(chunk.bytes)),
            Ok(None) => {
                self.on_drop = None;
                Ok(None)
            }
            Err(error) => {
                self.on_drop = None;
                Err(error.into())
            }
        }
    }

    /// Tells the peer that nothing more is wanted.
    pub fn stop(&mut self, code: CloseCode) {
        self.on_drop = None;
        // An error means that it has ended already.
        let _ = self.inner.stop(varint(code));
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if let Some(code) = self.on_drop {
            let _ = self.inner.stop(varint(code));
        }
    }
}

/// Reads messages, then frames or raw bytes, off one stream. Every method is cancel-safe: bytes wait in here.
#[derive(Debug)]
pub struct MessageReader {
    stream: RecvStream,
    buffer: BytesMut,
    frames: FrameDecoder,
}

/// One read's size, in bytes: large enough that bulk data comes in whole flights.
const READ: usize = 64 * 1024;

impl MessageReader {
    /// Reads from `stream`.
    #[must_use]
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new(), frames: FrameDecoder::new() }
    }

    /// The next message of at most `limit` bytes; `None` is a clean end between two messages.
    pub async fn message<M: Message + Default>(&mut self, limit: usize) -> Result<Option<M>, StreamError> {
        loop {
            if let Some(message) = message::decode(&mut self.buffer, limit)? {
                return Ok(Some(message));
            }
            match self.stream.read(READ).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(MessageError::Truncated.into()),
            }
        }
    }

    /// The next frame or data fragment; `None` is a clean end between two frames. No messages may follow.
    pub async fn frame(&mut self) -> Result<Option<Frame>, StreamError> {
        if !self.buffer.is_empty() {
            self.frames.push(self.buffer.split().freeze());
        }
        loop {
            if let Some(frame) = self.frames.next_frame()? {
                return Ok(Some(frame));
            }
            match self.stream.read(READ).await? {
                Some(chunk) => self.frames.push(chunk),
                None => {
                    self.frames.finish()?;
                    return Ok(None);
                }
            }
        }
    }

    /// The next raw bytes, what was read ahead first; `None` is the clean end.
    pub async fn bytes(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        if !self.buffer.is_empty() {
            let n = self.buffer.len().min(max);
            return Ok(Some(self.buffer.split_to(n).freeze()));
        }
        self.stream.read(max).await
    }

    /// Tells the peer that nothing more is wanted.
    pub fn stop(&mut self, code: CloseCode) {
        self.stream.stop(code);
    }

    /// The code to stop with should this be dropped before the end.
    pub fn on_drop(&mut self, code: CloseCode) {
        self.stream.on_drop(code);
    }
}
