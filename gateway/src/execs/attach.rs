//! Attaching: the caller's two halves of a relay, and the way to them.
//!
//! ```text
//!   AttachInput ──stdin (4 x 64 KiB)──▶ ┌──────┐ ──▶ relay
//!               ──control (32)────────▶ │ pump │
//!   AttachOutput ◀──events (12)──────── └──────┘ ◀── relay
//! ```
//!
//! The caller's gRPC stream, or a test, sits on the left; nothing here knows which. Signals and acknowledgements
//! overtake stdin: a paste that the command does not read must not hold up the Ctrl-C after it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use holdfast_wire::{
    api::{
        AttachEvent, AttachOpen, AttachRequest, Detach, KeepAlive, Notice, OnPause, OutputAck, Phase,
        StdinData, StdinEof, TerminalSize, attach_event, attach_request,
    },
    control::ExecRelay,
    frame::Frame,
    ids::ExecId,
    limits, timing,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    CallerInfo, Core, Execs,
    convert::{Offsets, from_store},
    pump::{End, Pump},
    start_until,
    starting::{Connected, Job},
};
use crate::{
    error::{CallError, Reason, key},
    sandboxes::{SandboxHandle, View},
};

/// Events that wait for the caller: 12 of at most 64 KiB. With the chunk that is being cut into frames and the
/// event in hand this stays below 1 MiB a caller.
const EVENTS: usize = 12;

/// Pieces of stdin (64 KiB at most) that wait for the relay.
const STDIN: usize = 4;

/// Everything else that waits for the relay: small frames. A caller that sends faster waits.
const CONTROL: usize = 32;

/// One stdin message, in bytes. Its pieces pin all of it; two of them are what a caller can pin in the gateway.
const MAX_STDIN: usize = 256 << 10;

/// A caller that is attached to an exec.
#[derive(Debug)]
pub struct Attached {
    /// What the caller says.
    pub input: AttachInput,
    /// What the caller hears. Dropping it means that the caller is gone.
    pub output: AttachOutput,
}

impl Attached {
    /// The two halves, for two tasks.
    #[must_use]
    pub fn split(self) -> (AttachInput, AttachOutput) {
        (self.input, self.output)
    }
}

/// What goes to the relay's sending side.
#[derive(Debug)]
pub(super) enum Control {
    Resize { cols: u16, rows: u16 },
    Signal(i32),
    Ack(Offsets),
    Detach,
}

/// The caller's half towards the command. Dropping it means that nothing more will be said, and nothing else.
#[derive(Debug)]
pub struct AttachInput {
    stdin: mpsc::Sender<Frame>,
    control: mpsc::Sender<Control>,
    handed: watch::Receiver<Offsets>,
    writer: bool,
    explicit_acks: bool,
}

impl AttachInput {
    /// Passes on any request but `open`. Waits while the relay is not ready for it. An error means that the
    /// request broke a rule; a relay that has ended takes everything and does nothing, because its end is told by
    /// the other half.
    pub async fn send(&self, request: AttachRequest) -> Result<(), CallError> {
        use attach_request::Kind;
        match request.kind {
            Some(Kind::Stdin(StdinData { offset, data })) => self.stdin(offset, data).await,
            Some(Kind::StdinEof(StdinEof { offset })) => self.stdin_eof(offset).await,
            Some(Kind::Resize(size)) => self.resize(size).await,
            Some(Kind::Signal(signal)) => self.signal(signal).await,
            Some(Kind::Ack(ack)) => self.ack(ack).await,
            Some(Kind::Detach(Detach {})) => {
                self.detach().await;
                Ok(())
            }
            Some(Kind::Open(_)) => Err(broken("a second `open`: one stream is one attach")),
            // A newer client may say more than this gateway knows.
            None => Ok(()),
        }
    }

    /// Writes to the command's stdin, by offset; at most 256 KiB at once.
    pub async fn stdin(&self, mut offset: u64, mut data: Bytes) -> Result<(), CallError> {
        self.must_write_stdin()?;
        if data.len() > MAX_STDIN {
            let message = format!("{} bytes at once: send at most {MAX_STDIN}", data.len());
            return Err(CallError::invalid("stdin.data", message));
        }
        if offset.checked_add(data.len() as u64).is_none() {
            return Err(CallError::invalid("stdin.offset", "beyond 2^64"));
        }
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(limits::MAX_FRAME_PAYLOAD - 8));
            let next = offset + piece.len() as u64;
            if self.stdin.send(Frame::Stdin { offset, data: piece }).await.is_err() {
                return Ok(());
            }
            offset = next;
        }
        Ok(())
    }

    /// Stdin ends at this offset. Goes after all stdin that was sent before.
    pub async fn stdin_eof(&self, offset: u64) -> Result<(), CallError> {
        self.must_write_stdin()?;
        let _ = self.stdin.send(Frame::StdinEof { offset }).await;
        Ok(())
    }

    /// Changes the terminal's size.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), CallError> {
        let side = |n: u32| u16::try_from(n).ok().filter(|n| *n > 0);
        let (Some(cols), Some(rows)) = (side(size.cols), side(size.rows)) else {
            let message = format!("{} x {} is no terminal's size: 1 to 65535 each", size.cols, size.rows);
            return Err(CallError::invalid("resize", message));
        };
        self.control(Control::Resize { cols, rows }).await;
        Ok(())
    }

    /// Sends a signal to the process group.
    pub async fn signal(&self, signal: i32) -> Result<(), CallError> {
        check_signal(signal)?;
        self.control(Control::Signal(signal)).await;
        Ok(())
    }

    /// Output before these offsets has reached the caller for good.
    pub async fn ack(&self, ack: OutputAck) -> Result<(), CallError> {
        let (ack, handed) = (Offsets::from(ack), *self.handed.borrow());
        if ack.stdout > handed.stdout || ack.stderr > handed.stderr {
            return Err(broken(&format!(
                "an acknowledgement of {}/{} bytes where {}/{} were sent",
                ack.stdout, ack.stderr, handed.stdout, handed.stderr
            )));
        }
        if self.explicit_acks {
            self.control(Control::Ack(ack)).await;
        }
        Ok(())
    }

    /// Leaves on purpose: on_disconnect does not strike. The events end without an outcome.
    pub async fn detach(&self) {
        self.control(Control::Detach).await;
    }

    async fn control(&self, control: Control) {
        // An error means that the relay has ended, which the other half tells.
        let _ = self.control.send(control).await;
    }

    fn must_write_stdin(&self) -> Result<(), CallError> {
        if self.writer {
            Ok(())
        } else {
            Err(broken("stdin from a caller that did not open as stdin_writer"))
        }
    }
}

/// The caller's half from the command.
#[derive(Debug)]
pub struct AttachOutput {
    exec: ExecId,
    events: mpsc::Receiver<AttachEvent>,
    end: Arc<OnceLock<End>>,
    handed: watch::Sender<Offsets>,
    /// Where the sandbox's phase is read, for notices; `None` once there is nothing to be noticed.
    view: Option<watch::Receiver<Arc<View>>>,
    frozen: bool,
    /// The caller wants a pause to be an error.
    ends_on_pause: bool,
    /// To leave without `on_disconnect` striking.
    control: mpsc::Sender<Control>,
    last: Instant,
    over: bool,
}

impl AttachOutput {
    /// The next event; a keepalive where nothing happened for [`timing::API_KEEP_ALIVE`]. The last event is
    /// `ended`, or an error; then, or after a detach, `None`. Cancel-safe. What it returned counts as handed to
    /// the caller.
    pub async fn next_event(&mut self) -> Option<Result<AttachEvent, CallError>> {
        if self.over {
            return None;
        }
        let event = tokio::select! {
            biased;
            event = self.events.recv() => event,
            frozen = thaw_or_freeze(&mut self.view, self.frozen) => {
                self.frozen = frozen;
                if frozen && self.ends_on_pause {
                    return self.end_by_pause();
                }
                Some(notice(frozen))
            }
            () = tokio::time::sleep_until(self.last + timing::API_KEEP_ALIVE) => {
                Some(super::event(attach_event::Kind::KeepAlive(KeepAlive {})))
            }
        };
        self.last = Instant::now();
        let Some(event) = event else {
            self.over = true;
            return match self.end.get() {
                Some(end) => self.explain(end.error()?),
                // The relay's task is gone without a word: it has panicked.
                None => self.explain(CallError::new(Reason::Internal, "the relay's task failed")),
            };
        };
        self.handed.send_if_modified(|handed| {
            let before = *handed;
            handed.on_handed(&event);
            *handed != before
        });
        if let Some(attach_event::Kind::Ended(_)) = &event.kind {
            self.over = true;
        }
        Some(Ok(event))
    }

    /// From now on, tells the caller when the sandbox is paused and resumed.
    fn noticing(mut self, handle: &SandboxHandle, on_pause: OnPause) -> Self {
        self.ends_on_pause = on_pause == OnPause::Error;
        // It was not frozen when the session was had: one that has been since is told first of all.
        self.view = Some(handle.view());
        self
    }

    /// The caller asked for an error instead of waiting for the resume. The command is not to blame: it stands still.
    fn end_by_pause(&mut self) -> Option<Result<AttachEvent, CallError>> {
        self.over = true;
        // A full queue means that the supervisor takes nothing: then its relay ends as for a caller that is gone.
        let _ = self.control.try_send(Control::Detach);
        let view = self.view.as_ref()?.borrow().clone();
        let attempted = "the command stands still until the sandbox is resumed: attach again then";
        self.explain(view.refusal(Reason::WrongPhase, attempted))
    }

    /// How far output was handed out: stdout, stderr.
    #[must_use]
    pub fn offsets(&self) -> (u64, u64) {
        let handed = *self.handed.borrow();
        (handed.stdout, handed.stderr)
    }

    #[allow(clippy::unnecessary_wraps, reason = "what next_event returns")]
    fn explain(&self, error: CallError) -> Option<Result<AttachEvent, CallError>> {
        let (stdout, stderr) = self.offsets();
        Some(Err(error
            .with(key::EXEC_ID, self.exec)
            .with(key::STDOUT_OFFSET, stdout)
            .with(key::STDERR_OFFSET, stderr)))
    }
}

impl Execs {
    /// Starts a command or attaches to one. Returns once the exec is attached (or has ended).
    ///
    /// # Errors
    /// Everything that [`start`](Self::start) may say, and `SESSION_LOST` later, by the output half.
    pub async fn attach(&self, open: AttachOpen, caller: CallerInfo) -> Result<Attached, CallError> {
        let exec: ExecId = open.exec_id.parse().map_err(|error| CallError::invalid("exec_id", error))?;
        let deadline = open
            .start_deadline
            .map(|deadline| {
                Duration::try_from(deadline)
                    .map_err(|_| CallError::invalid("start_deadline", "negative or out of range"))
            })
            .transpose()?;
        let until = start_until(deadline);
        let core = &self.core;
        let (handle, record, starter) = match &open.start {
            Some(spec) => {
                let handle = core.sandboxes.resolve(&open.sandbox)?;
                let (record, starter) = core.admit(&handle, exec, spec, until, None).await?;
                (Some(handle), record, Some(starter))
            }
            None => {
                let (handle, record) = core.find_until(&open.sandbox, exec, until).await?;
                (handle, record, None)
            }
        };
        let have = Offsets::new(open.stdout_offset, open.stderr_offset);
        let Some(handle) = handle else {
            // The sandbox is gone, so its execs have ended.
            return Ok(Attached::over(exec, from_store(record.to_info(), have), have));
        };
        let job = Job {
            exec,
            handle: handle.clone(),
            start: open.start.clone(),
            relay: ExecRelay {
                exec_id: exec.to_bytes(),
                start: None,
                attach: true,
                stdout_offset: open.stdout_offset,
                stderr_offset: open.stderr_offset,
                stdin_writer: open.stdin_writer,
            },
            traceparent: caller.traceparent,
            until,
            through_pause: open.on_pause() != OnPause::Error,
            main: None,
        };
        match core.connect(job, record, starter).await? {
            Connected::Over(record) => Ok(Attached::over(exec, from_store(record.to_info(), have), have)),
            Connected::Relay { relay, first } => {
                let Attached { input, output } = core.join(exec, &open, *relay, *first);
                Ok(Attached { input, output: output.noticing(&handle, open.on_pause()) })
            }
        }
    }
}

impl Core {
    /// Puts a task between a relay and a caller.
    fn join(
        self: &Arc<Self>,
        exec: ExecId,
        open: &AttachOpen,
        relay: crate::relays::Relay,
        first: Frame,
    ) -> Attached {
        let have = Offsets::new(open.stdout_offset, open.stderr_offset);
        let (events_in, events) = mpsc::channel(EVENTS);
        let (stdin, stdin_out) = mpsc::channel(STDIN);
        let (control, control_out) = mpsc::channel(CONTROL);
        let (handed, handed_out) = watch::channel(have);
        let end = Arc::new(OnceLock::new());
        let pump = Pump {
            core: Arc::clone(self),
            exec,
            relay,
            offsets: have,
            events: events_in,
            stdin: stdin_out,
            control: control_out,
            handed: handed_out.clone(),
            implicit_acks: !open.explicit_acks,
            end: Arc::clone(&end),
        };
        self.tasks.spawn(pump.run(first));
        Attached {
            input: AttachInput {
                stdin,
                control: control.clone(),
                handed: handed_out,
                writer: open.stdin_writer,
                explicit_acks: open.explicit_acks,
            },
            output: AttachOutput {
                exec,
                events,
                end,
                handed,
                view: None,
                frozen: false,
                ends_on_pause: false,
                control,
                last: Instant::now(),
                over: false,
            },
        }
    }
}

impl Attached {
    /// An exec that is over, told from the store.
    fn over(exec: ExecId, events: Vec<AttachEvent>, have: Offsets) -> Self {
        // Started, two gaps, ended.
        let (events_in, events_out) = mpsc::channel(events.len().max(1));
        for event in events {
            events_in.try_send(event).expect("the channel is as long as the list");
        }
        let end = Arc::new(OnceLock::from(End::Outcome));
        let (handed, handed_out) = watch::channel(have);
        let control = mpsc::channel(1).0;
        Self {
            input: AttachInput {
                stdin: mpsc::channel(1).0,
                control: control.clone(),
                handed: handed_out,
                writer: true,
                explicit_acks: true,
            },
            output: AttachOutput {
                exec,
                events: events_out,
                end,
                handed,
                view: None,
                frozen: false,
                ends_on_pause: false,
                control,
                last: Instant::now(),
                over: false,
            },
        }
    }
}

/// Whether the workload stands still, or is about to.
fn is_frozen(view: &View) -> bool {
    matches!(view.phase, Phase::Pausing | Phase::Paused)
}

/// Waits until the workload is frozen where it was not, or the other way round. Cancel-safe.
async fn thaw_or_freeze(view: &mut Option<watch::Receiver<Arc<View>>>, frozen: bool) -> bool {
    if let Some(view) = view
        && let Ok(view) = view.wait_for(|view| is_frozen(view) != frozen).await
    {
        return is_frozen(&view);
    }
    std::future::pending().await
}

/// What a person is told of it.
fn notice(frozen: bool) -> AttachEvent {
    let message = if frozen {
        "the sandbox is being paused: the command stands still until it is resumed"
    } else {
        "the sandbox runs on"
    };
    super::event(attach_event::Kind::Notice(Notice { message: message.to_owned() }))
}

/// A signal that the kernel knows: 1 to 64.
pub(super) fn check_signal(signal: i32) -> Result<(), CallError> {
    if (1..=64).contains(&signal) {
        return Ok(());
    }
    Err(CallError::invalid("signal", format!("{signal} is no signal: 1 to 64")))
}

fn broken(message: &str) -> CallError {
    CallError::new(Reason::StreamProtocol, message)
}
