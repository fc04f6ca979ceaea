//! What an attached caller has and what it still owes, across any number of streams: pure, no clock, no I/O.
//!
//! ```text
//!   stream n:  open(offsets) ─▶ started ─▶ stdout/stderr/gap/stdin_ack … ─▶ ended
//!                  ▲                              │ cut at any point
//!                  └── open() again, with what was received ◀──┘
//! ```
//!
//! Events go in, and what a reader shall see comes out: every output byte once, in order. What a peer repeats is
//! cut away; a hole that no `gap` explains is a [`Violation`]. Stdin goes the other way: kept in a [`Replay`]
//! until the command's pipe has it, and sent again from there on the next stream.
//!
//! A start is asked for only until the exec is known to have been accepted: after that, a gateway that does not
//! know the exec must say so, and must not run the command a second time.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use holdfast_wire::{
    api::{
        AttachEvent, AttachOpen, AttachRequest, Detach, ExecEnded, ExecInfo, ExecSpec, Gap, OutputAck,
        OutputData, OutputStream, StdinData, StdinEof, TerminalSize, attach_event, attach_request::Kind,
    },
    ids::ExecId,
    limits,
};

/// Signals that wait for a stream. More than a person can press in an outage is a program that repeats itself.
const MAX_SIGNALS: usize = 16;

/// One stdin message, in bytes: what fits into one frame behind the gateway, its offset included.
const STDIN_MESSAGE: usize = limits::MAX_FRAME_PAYLOAD - 8;

/// What to attach to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name or id.
    pub sandbox: String,
    /// The exec.
    pub exec_id: ExecId,
    /// Present: start it if it does not exist.
    pub start: Option<ExecSpec>,
    /// How long starting may take, a wait for the sandbox's session included. `None`: the gateway's default.
    pub start_deadline: Option<Duration>,
    /// This caller writes stdin.
    pub stdin: bool,
    /// Output before these offsets is not wanted: the caller has it, or does not care.
    pub stdout_offset: u64,
    /// Likewise stderr.
    pub stderr_offset: u64,
}

/// What a caller sees of an attached exec.
#[derive(Clone, Debug)]
pub enum Seen {
    /// A stream is attached. Boxed: it is much larger than the rest.
    Started {
        /// The exec.
        exec: Box<ExecInfo>,
        /// The first time in this caller's life.
        first: bool,
        /// Output that was wanted on this stream and is no longer kept, in bytes.
        lost: u64,
    },
    /// Output, the next bytes of its stream.
    Output {
        /// Which stream.
        stream: OutputStream,
        /// The offset behind its last byte.
        end: u64,
        /// The bytes, never empty.
        data: Bytes,
    },
    /// Output that is gone for good, and was not told of by `Started::lost`.
    Lost {
        /// Of which stream.
        stream: OutputStream,
        /// How many bytes.
        bytes: u64,
    },
    /// For people.
    Notice(String),
    /// The outcome.
    Ended {
        /// It and the exec.
        ended: Box<ExecEnded>,
        /// Output that the command wrote and that never came, in bytes.
        missing: u64,
    },
}

/// The peer broke the contract; nothing more of this exec's stream can be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Output is missing, and no gap says so.
    #[error("{stream} goes on at byte {got}, but byte {expected} was next: output is missing without a word")]
    Hole {
        /// Of which stream.
        stream: &'static str,
        /// The next byte that is wanted.
        expected: u64,
        /// The byte that came.
        got: u64,
    },
    /// An offset beyond 2^64, or a gap that ends before it begins.
    #[error("{0} has an impossible offset")]
    Offset(&'static str),
    /// An acknowledgement of input that was never sent.
    #[error(
        "stdin up to byte {got} is said to be taken, but only {sent} were sent: another caller writes stdin"
    )]
    StdinTaken {
        /// What was acknowledged.
        got: u64,
        /// What was there.
        sent: u64,
    },
    /// An acknowledgement was taken back.
    #[error("stdin from byte {got} is asked for again, but it was acknowledged up to {released} and is gone")]
    StdinReleased {
        /// Where the peer wants to go on.
        got: u64,
        /// What had been acknowledged.
        released: u64,
    },
    /// The first event of a stream must be `started` (or `ended`).
    #[error("output came before `started`")]
    NotStarted,
    /// An event whose content is missing or unknown in a field that must be known.
    #[error("a malformed {0} event")]
    Malformed(&'static str),
}

/// How much of one output stream has come, been used, and been confirmed.
#[derive(Clone, Debug)]
struct Track {
    name: &'static str,
    /// The offset of the next byte that is wanted.
    received: u64,
    /// What the caller has used for good.
    consumed: u64,
    /// What the peer was told of that.
    acknowledged: u64,
    /// Bytes before this that are gone were told of already.
    told: u64,
}

impl Track {
    fn new(name: &'static str, offset: u64) -> Self {
        Self { name, received: offset, consumed: offset, acknowledged: offset, told: 0 }
    }

    /// The part of `data` that is new.
    fn take(&mut self, offset: u64, mut data: Bytes) -> Result<Bytes, Violation> {
        let end = offset.checked_add(data.len() as u64).ok_or(Violation::Offset(self.name))?;
        if offset > self.received {
            return Err(Violation::Hole { stream: self.name, expected: self.received, got: offset });
        }
        if end <= self.received {
            return Ok(Bytes::new());
        }
        // Less than data's length, because end > received.
        let known = (self.received - offset) as usize;
        self.received = end;
        Ok(data.split_off(known))
    }

    /// Skips to `to`; how many bytes are lost by it and were not told of.
    fn gap(&mut self, from: u64, to: u64) -> Result<u64, Violation> {
        if from > to {
            return Err(Violation::Offset(self.name));
        }
        if from > self.received {
            return Err(Violation::Hole { stream: self.name, expected: self.received, got: from });
        }
        let untold = to.saturating_sub(self.received.max(self.told));
        self.received = self.received.max(to);
        Ok(untold)
    }

    /// What `started` says is no longer kept; how many wanted bytes are lost by that.
    fn kept_from(&mut self, kept: u64) -> u64 {
        let lost = kept.saturating_sub(self.received.max(self.told));
        self.told = self.told.max(kept);
        lost
    }

    /// What did not come, and was not told of, of a stream of `total` bytes.
    fn missing(&self, total: u64) -> u64 {
        total.saturating_sub(self.received.max(self.told))
    }

    fn unacknowledged(&self) -> u64 {
        self.consumed - self.acknowledged
    }
}

/// Stdin between the caller and the command's pipe: at most [`limits::STDIN_WINDOW`] bytes.
#[derive(Clone, Debug, Default)]
struct Replay {
    /// Not yet acknowledged, oldest first.
    chunks: VecDeque<Bytes>,
    /// The offset of the first byte in `chunks`.
    base: u64,
    /// The offset behind the last.
    end: u64,
    /// The offset of the next byte to send on this stream.
    next: u64,
    eof: bool,
    eof_sent: bool,
    /// Until the first `started` says where this writer begins.
    placed: bool,
}

impl Replay {
    fn room(&self) -> u64 {
        limits::STDIN_WINDOW.saturating_sub(self.end - self.base)
    }

    fn push(&mut self, data: Bytes) {
        if !data.is_empty() && !self.eof {
            self.end += data.len() as u64;
            self.chunks.push_back(data);
        }
    }

    /// A new stream goes on at `taken`.
    fn attach(&mut self, taken: u64) -> Result<(), Violation> {
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

    fn release(&mut self, taken: u64) -> Result<(), Violation> {
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

    fn has_next(&self) -> bool {
        self.placed && (self.next < self.end || (self.eof && !self.eof_sent))
    }

    fn next(&mut self) -> Option<Kind> {
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

/// The caller's side of one exec, over all its streams.
#[derive(Debug)]
pub struct Resume {
    target: Target,
    stdout: Track,
    stderr: Track,
    stdin: Option<Replay>,
    /// The terminal's size, and whether this stream was told.
    size: Option<(TerminalSize, bool)>,
    signals: VecDeque<i32>,
    attached: bool,
    /// The exec has been seen: it exists.
    known: bool,
    /// Bytes lost so far.
    lost: u64,
    /// An acknowledgement shall go out although little has come.
    flush: bool,
}

impl Resume {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            stdout: Track::new("stdout", target.stdout_offset),
            stderr: Track::new("stderr", target.stderr_offset),
            stdin: target.stdin.then(Replay::default),
            size: target.start.as_ref().and_then(|spec| spec.tty).map(|size| (size, true)),
            signals: VecDeque::new(),
            attached: false,
            known: false,
            lost: 0,
            flush: false,
            target,
        }
    }

    /// A new stream: its first message.
    pub fn open(&mut self) -> AttachRequest {
        self.attached = false;
        self.flush = false;
        // The next stream's peer learns these from the open itself.
        self.stdout.acknowledged = self.stdout.consumed;
        self.stderr.acknowledged = self.stderr.consumed;
        if let Some((_, told)) = &mut self.size {
            // A start carries the size in its spec; a later stream must be told anew.
            *told = *told && !self.known;
        }
        let start_deadline = self.target.start_deadline.map(|d| d.try_into().unwrap_or_default());
        AttachRequest {
            kind: Some(Kind::Open(AttachOpen {
                sandbox: self.target.sandbox.clone(),
                exec_id: self.target.exec_id.to_string(),
                start: if self.known { None } else { self.target.start.clone() },
                stdout_offset: self.stdout.received,
                stderr_offset: self.stderr.received,
                stdin_writer: self.stdin.is_some(),
                explicit_acks: true,
                start_deadline,
            })),
        }
    }

    /// The stream's next event.
    ///
    /// # Errors
    /// The peer broke the contract.
    pub fn on_event(&mut self, event: AttachEvent) -> Result<Option<Seen>, Violation> {
        use attach_event::Kind as Event;
        // A kind that this version does not know is skipped: an old client must live with a newer gateway.
        let Some(kind) = event.kind else { return Ok(None) };
        let needs_start =
            matches!(kind, Event::Stdout(_) | Event::Stderr(_) | Event::Gap(_) | Event::StdinAck(_));
        if needs_start && !self.attached {
            return Err(Violation::NotStarted);
        }
        match kind {
            Event::Started(started) => {
                let Some(exec) = started.exec else { return Err(Violation::Malformed("started")) };
                let first = !self.known;
                (self.attached, self.known) = (true, true);
                let lost = self.stdout.kept_from(exec.stdout_kept_from);
                let lost = lost.saturating_add(self.stderr.kept_from(exec.stderr_kept_from));
                self.lost = self.lost.saturating_add(lost);
                if let Some(stdin) = &mut self.stdin {
                    stdin.attach(started.stdin_offset)?;
                }
                Ok(Some(Seen::Started { exec: Box::new(exec), first, lost }))
            }
            Event::Stdout(data) => self.on_output(OutputStream::Stdout, data),
            Event::Stderr(data) => self.on_output(OutputStream::Stderr, data),
            Event::Gap(gap) => self.on_gap(&gap),
            Event::StdinAck(ack) => {
                if let Some(stdin) = &mut self.stdin {
                    stdin.release(ack.offset)?;
                }
                Ok(None)
            }
            Event::Ended(ended) => {
                let Some(exec) = &ended.exec else { return Err(Violation::Malformed("ended")) };
                if ended.outcome.as_ref().and_then(|outcome| outcome.kind.as_ref()).is_none() {
                    return Err(Violation::Malformed("ended"));
                }
                let missing = self.stdout.missing(exec.stdout_bytes);
                let missing = missing.saturating_add(self.stderr.missing(exec.stderr_bytes));
                self.lost = self.lost.saturating_add(missing);
                self.known = true;
                Ok(Some(Seen::Ended { ended: Box::new(ended), missing }))
            }
            Event::KeepAlive(_) => Ok(None),
            Event::Notice(notice) => Ok(Some(Seen::Notice(notice.message))),
        }
    }

    fn on_output(&mut self, stream: OutputStream, output: OutputData) -> Result<Option<Seen>, Violation> {
        let track = self.track(stream);
        let data = track.take(output.offset, output.data)?;
        let end = track.received;
        Ok((!data.is_empty()).then_some(Seen::Output { stream, end, data }))
    }

    fn on_gap(&mut self, gap: &Gap) -> Result<Option<Seen>, Violation> {
        let stream = match OutputStream::try_from(gap.stream) {
            Ok(OutputStream::Unspecified) | Err(_) => return Err(Violation::Malformed("gap")),
            Ok(stream) => stream,
        };
        let bytes = self.track(stream).gap(gap.from, gap.to)?;
        self.lost = self.lost.saturating_add(bytes);
        Ok((bytes > 0).then_some(Seen::Lost { stream, bytes }))
    }

    /// The caller has used output up to these offsets for good. Never goes back.
    pub fn on_consumed(&mut self, stdout: u64, stderr: u64) {
        self.stdout.consumed = self.stdout.consumed.max(stdout.min(self.stdout.received));
        self.stderr.consumed = self.stderr.consumed.max(stderr.min(self.stderr.received));
    }

    /// More stdin may be given: so many bytes.
    #[must_use]
    pub fn stdin_room(&self) -> u64 {
        self.stdin.as_ref().filter(|stdin| !stdin.eof).map_or(0, Replay::room)
    }

    /// More stdin, at most [`Self::stdin_room`] bytes.
    pub fn push_stdin(&mut self, data: Bytes) {
        if let Some(stdin) = &mut self.stdin {
            stdin.push(data);
        }
    }

    /// Stdin is complete.
    pub fn end_stdin(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.eof = true;
        }
    }

    /// The terminal has another size. Only the newest matters.
    pub fn resize(&mut self, size: TerminalSize) {
        self.size = Some((size, false));
    }

    /// A signal for the command. False: too many wait already.
    pub fn signal(&mut self, signal: i32) -> bool {
        let room = self.signals.len() < MAX_SIGNALS;
        if room {
            self.signals.push_back(signal);
        }
        room
    }

    /// Nothing came for a while: what has been used shall be confirmed although it is little.
    pub fn flush_acks(&mut self) {
        self.flush = self.unacknowledged() > 0;
    }

    /// Output was used and not yet confirmed, in bytes.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        if self.attached { self.stdout.unacknowledged() + self.stderr.unacknowledged() } else { 0 }
    }

    /// There is something to send on this stream.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        self.attached
            && (!self.signals.is_empty()
                || self.size.is_some_and(|(_, told)| !told)
                || self.ack_due()
                || self.stdin.as_ref().is_some_and(Replay::has_next))
    }

    /// The next message of this stream, the urgent ones first.
    pub fn next_outgoing(&mut self) -> Option<AttachRequest> {
        if !self.attached {
            return None;
        }
        let kind = if let Some(signal) = self.signals.pop_front() {
            Kind::Signal(signal)
        } else if let Some((size, told @ false)) = &mut self.size {
            *told = true;
            Kind::Resize(*size)
        } else if self.ack_due() {
            self.flush = false;
            self.stdout.acknowledged = self.stdout.consumed;
            self.stderr.acknowledged = self.stderr.consumed;
            Kind::Ack(OutputAck {
                stdout_offset: self.stdout.acknowledged,
                stderr_offset: self.stderr.acknowledged,
            })
        } else {
            self.stdin.as_mut().and_then(Replay::next)?
        };
        Some(AttachRequest { kind: Some(kind) })
    }

    /// The message by which a caller leaves without `on_disconnect` striking.
    #[must_use]
    pub fn detach() -> AttachRequest {
        AttachRequest { kind: Some(Kind::Detach(Detach {})) }
    }

    /// The exec has been seen: it was accepted.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Opening asks for a start.
    #[must_use]
    pub fn would_start(&self) -> bool {
        !self.known && self.target.start.is_some()
    }

    /// What it is about.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Received so far: the offsets of the next bytes of stdout and stderr.
    #[must_use]
    pub fn received(&self) -> (u64, u64) {
        (self.stdout.received, self.stderr.received)
    }

    /// Bytes that were wanted and are gone for good.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn ack_due(&self) -> bool {
        let waiting = self.unacknowledged();
        waiting >= limits::ACK_EVERY || (self.flush && waiting > 0)
    }

    fn track(&mut self, stream: OutputStream) -> &mut Track {
        if stream == OutputStream::Stderr { &mut self.stderr } else { &mut self.stdout }
    }
}

#[cfg(test)]
mod tests;
