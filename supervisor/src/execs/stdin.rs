//! An exec's standard input: addressed by offset, so that a repeat after a lost link duplicates nothing.
//!
//! ```text
//!   relay (the newest writer) ── push, finish ──▶ queue ── Feeder, in the exec's task ──▶ the command's pipe
//!                             ◀── written ────────────────────────┘
//! ```
//!
//! The queue never makes a relay wait: a caller sends at most [`STDIN_WINDOW`] beyond what was acknowledged, and
//! more is a fault. So signals and acknowledgements of output are never stuck behind input that nobody reads. Input
//! that can reach nobody (the command closed its end, has ended, or never had one) counts as taken and is dropped.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf as _, Bytes, BytesMut};
use holdfast_wire::limits::STDIN_WINDOW;
use tokio::{io::AsyncWriteExt as _, sync::watch};

use super::spawn::Input;

/// Pieces shorter than this are joined: a handle for each byte would cost more than the bytes.
const JOIN_BELOW: usize = 4096;

/// What ends a line's input on a terminal: VEOF's default.
const END_OF_TRANSMISSION: &[u8] = b"\x04";

/// One exec's input.
#[derive(Debug)]
pub(super) struct Stdin {
    queue: Mutex<Queue>,
    /// Bumped when there is something to write.
    more: watch::Sender<()>,
    /// Everything before this offset is in the pipe.
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// Short pieces, joined; behind `chunks`.
    tail: BytesMut,
    /// One past the last byte taken.
    end: u64,
    eof: bool,
    closed: bool,
    writer: u64,
}

/// Input that breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StdinFault {
    #[error("stdin at {got}, but only {expected} bytes came before it")]
    Hole { got: u64, expected: u64 },
    #[error("more than {STDIN_WINDOW} bytes of stdin beyond what was acknowledged")]
    Window,
    #[error("stdin goes on at {got} after its end at {end}")]
    AfterEnd { got: u64, end: u64 },
}

/// What the feeder does next.
enum Next {
    Write(Bytes),
    Eof,
    Wait,
}

impl Stdin {
    /// Input for a command that takes some, or (`open` is false) for one that takes none.
    pub(super) fn new(open: bool) -> Self {
        Self {
            queue: Mutex::new(Queue { closed: !open, ..Queue::default() }),
            more: watch::Sender::new(()),
            written: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a writer goes on.
    pub(super) fn offset(&self) -> u64 {
        self.lock().end
    }

    /// What has reached the pipe.
    pub(super) fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// A new writer: what the former one sends from now on is ignored.
    pub(super) fn take_over(&self) -> u64 {
        let mut queue = self.lock();
        queue.writer += 1;
        queue.writer
    }

    /// Is it still this one's turn?
    pub(super) fn is_writer(&self, writer: u64) -> bool {
        self.lock().writer == writer
    }

    /// Takes input at `offset`; what is there already is skipped.
    pub(super) fn push(&self, writer: u64, offset: u64, mut data: Bytes) -> Result<(), StdinFault> {
        {
            let mut queue = self.lock();
            if queue.writer != writer {
                return Ok(());
            }
            if offset > queue.end {
                return Err(StdinFault::Hole { got: offset, expected: queue.end });
            }
            let known = queue.end - offset;
            if known >= data.len() as u64 {
                return Ok(());
            }
            data.advance(known as usize);
            let end = queue.end;
            if queue.eof && !queue.closed {
                return Err(StdinFault::AfterEnd { got: offset, end });
            }
            if end + data.len() as u64 - *self.written.borrow() > STDIN_WINDOW {
                return Err(StdinFault::Window);
            }
            queue.end += data.len() as u64;
            if queue.closed {
                self.written.send_replace(queue.end);
                return Ok(());
            }
            queue.push(data);
        }
        self.more.send_replace(());
        Ok(())
    }

    /// Input ends at `offset`.
    pub(super) fn finish(&self, writer: u64, offset: u64) -> Result<(), StdinFault> {
        {
            let mut queue = self.lock();
            if queue.writer != writer || queue.closed {
                return Ok(());
            }
            let expected = queue.end;
            if offset > expected {
                return Err(StdinFault::Hole { got: offset, expected });
            }
            if offset < expected {
                return Err(StdinFault::AfterEnd { got: expected, end: offset });
            }
            queue.eof = true;
        }
        self.more.send_replace(());
        Ok(())
    }

    /// Nobody will read any more: what is queued counts as taken.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.chunks.clear();
        queue.tail.clear();
        self.written.send_replace(queue.end);
    }

    fn next(&self) -> Next {
        let mut queue = self.lock();
        if let Some(chunk) = queue.chunks.pop_front() {
            return Next::Write(chunk);
        }
        if !queue.tail.is_empty() {
            return Next::Write(queue.tail.split().freeze());
        }
        if queue.eof { Next::Eof } else { Next::Wait }
    }
}

impl Queue {
    fn push(&mut self, data: Bytes) {
        if data.len() < JOIN_BELOW {
            self.tail.extend_from_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.chunks.push_back(tail);
        }
        self.chunks.push_back(data);
    }
}

/// Writes the queue to the command.
pub(super) struct Feeder {
    input: Option<Input>,
    current: Bytes,
    tty: bool,
    /// The terminal's line is empty: one end-of-transmission ends the input, else it takes two.
    line_start: bool,
    more: watch::Receiver<()>,
}

impl Feeder {
    pub(super) fn new(input: Option<Input>, tty: bool, stdin: &Stdin) -> Self {
        Self { input, current: Bytes::new(), tty, line_start: true, more: stdin.more.subscribe() }
    }

    /// Writes until the input has ended; then never returns. Cancel-safe.
    pub(super) async fn run(&mut self, stdin: &Stdin) -> Infallible {
        while let Some(input) = &mut self.input {
            if self.current.is_empty() {
                self.more.borrow_and_update();
                match stdin.next() {
                    Next::Write(data) => self.current = data,
                    Next::Wait => {
                        // The sender lives in `stdin`: no error.
                        let _ = self.more.changed().await;
                        continue;
                    }
                    Next::Eof => {
                        if self.tty {
                            end_of_line_input(input, self.line_start).await;
                        }
                        self.input = None;
                        stdin.close();
                        break;
                    }
                }
            }
            match input.write(&self.current).await {
                Ok(n) if n > 0 => {
                    self.line_start = self.current.get(n - 1) == Some(&b'\n');
                    self.current.advance(n);
                    stdin.written.send_modify(|written| *written += n as u64);
                }
                // The command has closed its end.
                _ => {
                    self.input = None;
                    self.current.clear();
                    stdin.close();
                }
            }
        }
        std::future::pending().await
    }
}

/// A pipe is closed; a terminal is told. Should the terminal be full, its reader is not reading: it is told as far
/// as that goes.
async fn end_of_line_input(input: &mut Input, line_start: bool) {
    let times = if line_start { 1 } else { 2 };
    for _ in 0..times {
        // An error means that nobody has the terminal open.
        let _ = input.write(END_OF_TRANSMISSION).await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn a_repeat_duplicates_nothing() {
        let stdin = Stdin::new(true);
        let first = stdin.take_over();
        stdin.push(first, 0, Bytes::from_static(b"hello ")).unwrap();
        let second = stdin.take_over();
        stdin.push(first, 6, Bytes::from_static(b"ignored")).unwrap();
        stdin.push(second, 3, Bytes::from_static(b"lo world")).unwrap();
        stdin.finish(second, 11).unwrap();
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut feeder = Feeder::new(Some(Box::new(ours)), false, &stdin);
        let mut got = String::new();
        tokio::select! {
            never = feeder.run(&stdin) => match never {},
            result = tokio::io::AsyncReadExt::read_to_string(&mut theirs, &mut got) => { result.unwrap(); }
        }
        assert_eq!(got, "hello world");
        assert_eq!(*stdin.written().borrow(), 11);
    }

    #[test]
    fn holes_floods_and_late_bytes_are_faults() {
        let stdin = Stdin::new(true);
        let writer = stdin.take_over();
        assert_eq!(
            stdin.push(writer, 5, Bytes::from_static(b"x")),
            Err(StdinFault::Hole { got: 5, expected: 0 })
        );
        let most = Bytes::from(vec![0; STDIN_WINDOW as usize]);
        stdin.push(writer, 0, most).unwrap();
        assert_eq!(stdin.push(writer, STDIN_WINDOW, Bytes::from_static(b"x")), Err(StdinFault::Window));
        stdin.finish(writer, STDIN_WINDOW).unwrap();
        stdin.finish(writer, STDIN_WINDOW).unwrap();
        let late = stdin.push(writer, STDIN_WINDOW, Bytes::from_static(b"x"));
        assert_eq!(late, Err(StdinFault::AfterEnd { got: STDIN_WINDOW, end: STDIN_WINDOW }));
    }

    #[test]
    fn what_nobody_reads_counts_as_taken() {
        let stdin = Stdin::new(false);
        let writer = stdin.take_over();
        stdin.push(writer, 0, Bytes::from_static(b"lost")).unwrap();
        assert_eq!(*stdin.written().borrow(), 4);
    }

    proptest! {
        #[test]
        fn whatever_is_repeated_the_queue_holds_the_input_once(
            pieces in proptest::collection::vec((0_u64..20_000, 1_usize..9000), 1..40)
        ) {
            let whole: Vec<u8> = (0..u32::from(u16::MAX)).map(|n| (n % 251) as u8).collect();
            let stdin = Stdin::new(true);
            let writer = stdin.take_over();
            for (back, length) in pieces {
                let from = stdin.offset().saturating_sub(back) as usize;
                let to = (from + length).min(whole.len());
                stdin.push(writer, from as u64, Bytes::copy_from_slice(&whole[from..to])).unwrap();
            }
            let mut got = Vec::new();
            while let Next::Write(data) = stdin.next() {
                got.extend_from_slice(&data);
            }
            prop_assert_eq!(got.len() as u64, stdin.offset());
            prop_assert!(whole.starts_with(&got));
        }
    }
}
