//! Stdin on its way: kept until the command's pipe has it, and sent again from there on each new stream.

use std::collections::VecDeque;

use bytes::Bytes;
use holdfast_wire::{
    api::{StdinData, StdinEof, attach_request::Kind},
    limits,
};

use super::Violation;

/// One stdin message, in bytes: what fits into one frame behind the gateway, its offset included.
const STDIN_MESSAGE: usize = limits::MAX_FRAME_PAYLOAD - 8;

/// Stdin between the caller and the command's pipe: at most [`limits::STDIN_WINDOW`] bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Replay {
    /// Not yet acknowledged, oldest first.
    pub(super) chunks: VecDeque<Bytes>,
    /// The offset of the first byte in `chunks`.
    pub(super) base: u64,
    /// The offset behind the last.
    pub(super) end: u64,
    /// The offset of the next byte to send on this stream.
    next: u64,
    pub(super) eof: bool,
    eof_sent: bool,
    /// Until the first `started` says where this writer begins.
    placed: bool,
}

impl Replay {
    pub(super) fn room(&self) -> u64 {
        limits::STDIN_WINDOW.saturating_sub(self.end - self.base)
    }

    pub(super) fn push(&mut self, data: Bytes) {
        if !data.is_empty() && !self.eof {
            self.end += data.len() as u64;
            self.chunks.push_back(data);
        }
    }

    /// A new stream goes on at `taken`.
    pub(super) fn attach(&mut self, taken: u64) -> Result<(), Violation> {
        if !self.placed {
            // What the caller typed so far follows what earlier writers wrote.
            let end = taken.checked_add(self.end - self.base).ok_or(Violation::Offset("stdin"))?;
            (self.placed, self.base, self.end) = (true, taken, end);
        } else if taken < self.base {
            return Err(Violation::StdinReleased { got: taken, released: self.base });
        }
        self.release(taken)?;
        self.next = taken;
        self.eof_sent = false;
        Ok(())
    }

    pub(super) fn release(&mut self, taken: u64) -> Result<(), Violation> {
        if taken > self.end {
            return Err(Violation::StdinTaken { got: taken, sent: self.end });
        }
        while self.base < taken {
            let Some(chunk) = self.chunks.front_mut() else { break };
            let step = (taken - self.base).min(chunk.len() as u64);
            self.base += step;
            // At most the chunk's length.
            let _released = chunk.split_to(step as usize);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.next = self.next.max(self.base);
        Ok(())
    }

    pub(super) fn has_next(&self) -> bool {
        self.placed && (self.next < self.end || (self.eof && !self.eof_sent))
    }

    pub(super) fn next(&mut self) -> Option<Kind> {
        if !self.has_next() {
            return None;
        }
        if self.next == self.end {
            self.eof_sent = true;
            return Some(Kind::StdinEof(StdinEof { offset: self.end }));
        }
        let mut skip = self.next - self.base;
        for chunk in &self.chunks {
            let length = chunk.len() as u64;
            if skip < length {
                let from = skip as usize;
                let to = chunk.len().min(from + STDIN_MESSAGE);
                let (offset, data) = (self.next, chunk.slice(from..to));
                self.next += data.len() as u64;
                return Some(Kind::Stdin(StdinData { offset, data }));
            }
            skip -= length;
        }
        None
    }
}
