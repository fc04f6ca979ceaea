//! Bytes of a stream that wait for the rest of a frame, as the chunks in which they came.
//!
//! What goes in is a slice of a datagram and goes out as a slice of it: content is not copied. Only what is asked for
//! across chunks is joined.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Chunks that may wait for the rest of a frame. Each is a slice of a datagram and holds all of it in memory, so a
/// frame sent byte by byte must not pin a datagram for each byte. Joining costs a copy of at most 64 KiB, so at most
/// 1024 such copies for the largest control frame that is sent byte by byte.
const MAX_WAITING: usize = 63;

/// A queue of chunks.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    chunks: VecDeque<Bytes>,
    buffered: usize,
}

impl Chunks {
    /// Takes the next chunk of the stream.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.buffered += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// How many bytes wait.
    pub(crate) fn buffered(&self) -> usize {
        self.buffered
    }

    /// The first byte that waits.
    pub(crate) fn first(&self) -> Option<u8> {
        self.chunks.front().and_then(|chunk| chunk.first().copied())
    }

    /// More bytes are needed for a frame: what was trickled in is joined.
    pub(crate) fn starved(&mut self) {
        if self.chunks.len() > MAX_WAITING {
            let all = self.take(self.buffered);
            self.push(all);
        }
    }

    /// What has come of content: at most `n` bytes, as one slice, without copying. `None`: nothing waits.
    pub(crate) fn slice(&mut self, n: usize) -> Option<Bytes> {
        let chunk = self.chunks.front_mut()?;
        let data = chunk.split_to(chunk.len().min(n));
        if chunk.is_empty() {
            self.chunks.pop_front();
        }
        self.buffered -= data.len();
        Some(data)
    }

    /// Copies from the front, and leaves all where it is.
    pub(crate) fn peek(&self, out: &mut [u8]) {
        let mut filled = 0;
        for chunk in &self.chunks {
            let n = chunk.len().min(out.len() - filled);
            out[filled..filled + n].copy_from_slice(&chunk[..n]);
            filled += n;
            if filled == out.len() {
                return;
            }
        }
    }

    /// Drops `n` bytes from the front; at most [`buffered`](Self::buffered).
    pub(crate) fn skip(&mut self, mut n: usize) {
        self.buffered -= n;
        while n > 0 {
            let Some(chunk) = self.chunks.front_mut() else { return };
            let step = chunk.len().min(n);
            chunk.advance(step);
            n -= step;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// `n` bytes, at most [`buffered`](Self::buffered); joined only where chunks meet in the middle of them.
    pub(crate) fn take(&mut self, n: usize) -> Bytes {
        if let Some(chunk) = self.chunks.front_mut()
            && chunk.len() > n
        {
            self.buffered -= n;
            return chunk.split_to(n);
        }
        let mut joined = BytesMut::zeroed(n);
        self.peek(&mut joined);
        self.skip(n);
        joined.freeze()
    }
}
