//! One exec as a caller holds it: [`ExecSession`] gives events, [`Input`] takes input, and a task between them
//! keeps a stream to the gateway, makes a new one when it is lost, and ends with the outcome.
//!
//! ```text
//!   Input ── control, stdin (bounded) ──▶ task ── AttachRequest ──▶ gateway
//!   ExecSession ◀── events (bounded) ──── task ◀── AttachEvent ──── gateway
//!        └────── consumed (watch) ───────▶
//! ```
//!
//! Backpressure: the task reads the gateway's stream only while the reader has room, so a slow reader slows the
//! stream and nothing grows. An event counts as used, and is confirmed to the supervisor, when the reader comes
//! for the next one. Dropping the session ends the task and its stream at once: `on_disconnect` then strikes.

mod task;

use std::time::Duration;

use bytes::Bytes;
use holdfast_wire::{
    api::{ExecEnded, ExecInfo, OutputStream, TerminalSize},
    ids::ExecId,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use self::task::Task;
use super::{
    Client,
    error::Error,
    outage::{Outages, Patience},
    resume::{Resume, Target},
};

/// Events that wait for the reader. With 64 KiB each this is what a caller holds in memory besides HTTP/2's window.
const EVENTS: usize = 8;
/// Signals, sizes and the like that wait for the task: more come from a program than from a person.
const CONTROLS: usize = 16;
/// Pieces of stdin that wait for the task, before the replay's own window.
const STDIN_PIECES: usize = 4;
/// Leaving politely: for the gateway to take `detach`.
const LEAVE: Duration = Duration::from_secs(1);

/// What happens to an attached exec.
#[derive(Debug)]
pub enum Event {
    /// It runs (or has run). Boxed: it is much larger than the rest.
    Started(Box<ExecInfo>),
    /// The next bytes of one of its outputs.
    Output {
        /// Which.
        stream: OutputStream,
        /// The bytes, never empty.
        data: Bytes,
    },
    /// Output that is gone for good.
    Lost {
        /// Of which output.
        stream: OutputStream,
        /// How many bytes.
        bytes: u64,
    },
    /// Something for people.
    Notice(String),
    /// The stream is lost; the session is about to attach again.
    Reattaching {
        /// What happened.
        cause: String,
    },
    /// A stream is attached again.
    Reattached(Reattached),
    /// The outcome. The last event.
    Ended {
        /// It and the exec.
        ended: Box<ExecEnded>,
        /// Output that never came, in bytes.
        missing: u64,
    },
    /// The caller left as it asked to; the exec runs on. The last event.
    Detached,
}

/// An outage that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reattached {
    /// How long there was no stream.
    pub after: Duration,
    /// What happened, in a word or two.
    pub cause: String,
    /// Output that went out of the spool meanwhile, in bytes.
    pub lost: u64,
}

impl std::fmt::Display for Reattached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { after, cause, lost } = self;
        write!(f, "reattached after {:.1} s ({cause}), {lost} bytes lost", after.as_secs_f64())
    }
}

/// An attached exec. Read it with [`next`](Self::next).
#[derive(Debug)]
pub struct ExecSession {
    exec_id: ExecId,
    events: mpsc::Receiver<Result<Tagged, Error>>,
    consumed: watch::Sender<Offsets>,
    /// What the reader has in hand: used once it comes for more.
    in_hand: Option<(OutputStream, u64)>,
    over: bool,
    input: Input,
    /// Owns the task: dropping the session ends it.
    _task: JoinSet<()>,
}

/// An event, and for output the offset behind it.
#[derive(Debug)]
struct Tagged {
    event: Event,
    end: Option<(OutputStream, u64)>,
}

impl From<Event> for Tagged {
    fn from(event: Event) -> Self {
        Self { event, end: None }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Offsets {
    stdout: u64,
    stderr: u64,
}

impl ExecSession {
    pub(super) fn start(client: Client, target: Target, patience: Patience) -> Self {
        let exec_id = target.exec_id;
        let (event_tx, events) = mpsc::channel(EVENTS);
        let (control_tx, controls) = mpsc::channel(CONTROLS);
        let (stdin_tx, stdin) = mpsc::channel(STDIN_PIECES);
        let (consumed, consumed_rx) = watch::channel(Offsets::default());
        let now = Instant::now();
        let task = Task {
            client,
            outages: Outages::new(patience, target.start_deadline, now),
            resume: Resume::new(target),
            events: event_tx,
            controls,
            stdin: Some(stdin),
            consumed: consumed_rx,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run());
        let input = Input { controls: control_tx, stdin: stdin_tx };
        Self { exec_id, events, consumed, in_hand: None, over: false, input, _task: tasks }
    }

    /// The exec.
    #[must_use]
    pub fn exec_id(&self) -> ExecId {
        self.exec_id
    }

    /// Where input goes. Clones reach the same exec.
    #[must_use]
    pub fn input(&self) -> Input {
        self.input.clone()
    }

    /// The next event; `None` after the last. Coming for it says that the one before has been used for good.
    /// Cancel safe.
    ///
    /// # Errors
    /// The exec cannot be followed any more: the last thing that the session says.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        if let Some((stream, end)) = self.in_hand.take() {
            self.consumed.send_modify(|offsets| match stream {
                OutputStream::Stderr => offsets.stderr = end,
                _ => offsets.stdout = end,
            });
        }
        if self.over {
            return None;
        }
        match self.events.recv().await {
            Some(Ok(Tagged { event, end })) => {
                self.in_hand = end;
                self.over = matches!(event, Event::Ended { .. } | Event::Detached);
                Some(Ok(event))
            }
            Some(Err(error)) => {
                self.over = true;
                Some(Err(error))
            }
            // The task always says how it ends, unless it panicked.
            None => {
                self.over = true;
                Some(Err(Error::Internal(self.exec_id)))
            }
        }
    }

    /// Leaves the exec running, politely and within a bounded time. Output that was not read yet is not confirmed:
    /// the next reader gets it.
    pub async fn leave(mut self) {
        if self.over {
            return;
        }
        let last_word = async {
            self.input.detach().await;
            while let Some(Ok(Tagged { event, .. })) = self.events.recv().await {
                if matches!(event, Event::Detached | Event::Ended { .. }) {
                    return;
                }
            }
        };
        // The task waits for the gateway at most LEAVE; twice that is a task that hangs, and dropping ends it.
        let _ = timeout(2 * LEAVE, last_word).await;
    }
}

/// Input of an attached exec.
#[derive(Clone, Debug)]
pub struct Input {
    controls: mpsc::Sender<Control>,
    stdin: mpsc::Sender<Stdin>,
}

#[derive(Debug)]
enum Control {
    Resize(TerminalSize),
    Signal(i32),
    Detach,
}

#[derive(Debug)]
enum Stdin {
    Data(Bytes),
    Eof,
}

impl Input {
    /// Waits until there is room for more stdin. False: the session is over.
    pub async fn stdin_ready(&self) -> bool {
        self.stdin.reserve().await.is_ok()
    }

    /// More stdin; waits while the window is full. False: the session is over.
    pub async fn stdin(&self, data: Bytes) -> bool {
        self.stdin.send(Stdin::Data(data)).await.is_ok()
    }

    /// Stdin is complete. False: the session is over.
    pub async fn stdin_eof(&self) -> bool {
        self.stdin.send(Stdin::Eof).await.is_ok()
    }

    /// A signal for the command. False: the session is over, or too many wait.
    #[must_use]
    pub fn signal(&self, signal: i32) -> bool {
        self.controls.try_send(Control::Signal(signal)).is_ok()
    }

    /// The terminal's new size.
    pub fn resize(&self, cols: u16, rows: u16) {
        let size = TerminalSize { cols: cols.into(), rows: rows.into() };
        // A full queue means that sizes come faster than the loop turns: the next change tells the truth.
        let _ = self.controls.try_send(Control::Resize(size));
    }

    /// Leave; the exec runs on. The session says [`Event::Detached`] when done.
    pub async fn detach(&self) {
        // A closed queue means that the session is over already.
        let _ = self.controls.send(Control::Detach).await;
    }
}
