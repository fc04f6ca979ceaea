//! The bytes of a transfer's stream that are on their way, by offset. One puts in, one takes out; either may be a
//! thread that blocks or a task that waits.
//!
//! ```text
//!        base                 end
//!   ──────┃▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓┃──────▶      at most `limit` bytes between them
//!  released                    next push
//! ```
//!
//! A sender's window is read by offset and released by acknowledgements, so that it can be read again on the next
//! relay. A receiver's is taken from the front, and skips what a repeat brings twice.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// The stream's bytes on their way. Share it in an `Arc`.
#[derive(Debug)]
pub struct Window {
    state: Mutex<State>,
    /// For the side that blocks.
    changed: Condvar,
    /// For the side that waits.
    notify: Notify,
    limit: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Each with the offset of its first byte.
    chunks: VecDeque<(u64, Bytes)>,
    base: u64,
    end: u64,
    /// Nothing follows.
    finished: bool,
    /// Nobody wants more.
    closed: bool,
}

/// What is at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The next bytes.
    Data(Bytes),
    /// Nothing yet.
    Nothing,
    /// The stream is over here.
    End,
    /// It is released already, or was never there.
    Gone,
}

/// Nobody wants more of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody wants more of the stream")]
pub struct Closed;

impl Window {
    /// An empty one of at most `limit` bytes; a single chunk may reach beyond.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), notify: Notify::new(), limit }
    }

    /// Puts in the next bytes; blocks while it is full.
    ///
    /// # Errors
    /// Nobody wants them.
    pub fn push_blocking(&self, chunk: Bytes) -> Result<(), Closed> {
        let mut state = self.lock();
        while !state.closed && state.end - state.base >= self.limit {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let pushed = state.push(chunk);
        self.wake(state);
        pushed
    }

    /// Puts in bytes that begin at `offset`, without what is here already; waits while it is full. Cancel-safe:
    /// a repeat from the same offset is skipped.
    ///
    /// # Errors
    /// `Ok(false)`: they begin beyond the end, so something is missing. `Closed`: nobody wants them.
    pub async fn offer(&self, offset: u64, mut chunk: Bytes) -> Result<bool, Closed> {
        loop {
            let changed = self.notify.notified();
            {
                let mut state = self.lock();
                if state.closed {
                    return Err(Closed);
                }
                if offset > state.end {
                    return Ok(false);
                }
                let have = usize::try_from(state.end - offset).unwrap_or(usize::MAX).min(chunk.len());
                if have == chunk.len() {
                    return Ok(true);
                }
                if state.end - state.base < self.limit {
                    let _ = chunk.split_to(have);
                    let pushed = state.push(chunk);
                    self.wake(state);
                    return pushed.map(|()| true);
                }
            }
            changed.await;
        }
    }

    /// Nothing follows.
    pub fn finish(&self) {
        let mut state = self.lock();
        state.finished = true;
        self.wake(state);
    }

    /// Nobody wants more: what waits to put in hears it, what waits to take gets the end.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.chunks.clear();
        self.wake(state);
    }

    /// Takes the next bytes from the front, for good; blocks while there are none. `None`: the end, or closed.
    pub fn take_blocking(&self) -> Option<Bytes> {
        let mut state = self.lock();
        loop {
            if let Some((_, chunk)) = state.chunks.pop_front() {
                state.base += chunk.len() as u64;
                self.wake(state);
                return Some(chunk);
            }
            if state.finished || state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What is at `offset`, without waiting.
    #[must_use]
    pub fn peek(&self, offset: u64) -> Piece {
        let state = self.lock();
        if offset < state.base || offset > state.end || state.closed {
            return Piece::Gone;
        }
        if offset == state.end {
            return if state.finished { Piece::End } else { Piece::Nothing };
        }
        let index = state.chunks.partition_point(|(start, _)| *start <= offset);
        match index.checked_sub(1).and_then(|index| state.chunks.get(index)) {
            Some((start, chunk)) => Piece::Data(
                chunk.slice(usize::try_from(offset - start).unwrap_or(usize::MAX).min(chunk.len())..),
            ),
            None => Piece::Gone,
        }
    }

    /// The same, once there is something to say. Cancel-safe.
    pub async fn next(&self, offset: u64) -> Piece {
        loop {
            let changed = self.notify.notified();
            match self.peek(offset) {
                Piece::Nothing => changed.await,
                piece => return piece,
            }
        }
    }

    /// Waits until all that was ever put in is released. Cancel-safe.
    pub async fn drained(&self) {
        loop {
            let changed = self.notify.notified();
            let (base, end) = self.span();
            if base == end || self.is_closed() {
                return;
            }
            changed.await;
        }
    }

    /// What is before `offset` is not needed any more. Never goes back; beyond the end is the end.
    pub fn release(&self, offset: u64) {
        let mut state = self.lock();
        let offset = offset.min(state.end);
        if offset <= state.base {
            return;
        }
        while let Some((start, chunk)) = state.chunks.front() {
            if start + chunk.len() as u64 > offset {
                break;
            }
            state.chunks.pop_front();
        }
        if let Some((start, chunk)) = state.chunks.front_mut()
            && *start < offset
        {
            let _ = chunk.split_to(usize::try_from(offset - *start).unwrap_or(usize::MAX).min(chunk.len()));
            *start = offset;
        }
        state.base = offset;
        self.wake(state);
    }

    /// The first offset that is here, and the one behind the last.
    #[must_use]
    pub fn span(&self) -> (u64, u64) {
        let state = self.lock();
        (state.base, state.end)
    }

    /// Somebody has closed it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// One side of each kind waits, so this wakes the right one; a waiter looks for itself.
    fn wake(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.changed.notify_all();
        self.notify.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, chunk: Bytes) -> Result<(), Closed> {
        if self.closed {
            return Err(Closed);
        }
        if !chunk.is_empty() {
            let start = self.end;
            self.end += chunk.len() as u64;
            self.chunks.push_back((start, chunk));
        }
        Ok(())
    }
}
