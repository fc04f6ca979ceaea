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

mod replay;
mod track;

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use holdfast_wire::{
    api::{
        AttachEvent, AttachOpen, AttachRequest, Detach, ExecEnded, ExecInfo, ExecSpec, Gap, OnPause,
        OutputAck, OutputData, OutputStream, TerminalSize, attach_event, attach_request::Kind,
    },
    ids::ExecId,
    limits,
};

use self::{replay::Replay, track::Track};

/// Signals that wait for a stream. More than a person can press in an outage is a program that repeats itself.
const MAX_SIGNALS: usize = 16;

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
    /// What a pause of the sandbox means to this caller.
    pub on_pause: OnPause,
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
                on_pause: self.target.on_pause.into(),
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
