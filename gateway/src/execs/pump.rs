//! The task between a caller and a relay.
//!
//! ```text
//!   outbound:  relay ─▶ frame ─▶ event ─▶ caller      waits for the caller, so the command waits too
//!   inbound:   caller ─▶ control first, then stdin within its window ─▶ relay
//!   ended by:  outcome | session lost | supervisor broke the rules | caller gone or detached
//! ```
//!
//! Whatever ends it is written down first ([`End`]); then the queue to the caller is closed, which is when the
//! caller hears; then the streams are ended with a code. Nothing is awaited between the cause and the caller.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use holdfast_wire::{
    api::{AttachEvent, ExecEnded, ExecStarted, OutputStream, attach_event::Kind},
    close::CloseCode,
    frame::Frame,
    ids::ExecId,
    limits,
    transport::{MessageReader, SendStream, StreamError},
};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tracing::Instrument;

use super::{
    Core, STORE_WITHIN,
    attach::Control,
    convert::{Heard, Offsets, stdin_taken},
    event, merge, state,
};
use crate::{
    error::{CallError, Reason, key},
    relays::Relay,
    sessions::{Lost, Session},
};

/// Stdin on its way that the command has not taken. Below [`limits::STDIN_WINDOW`] by a frame, so that
/// acknowledgements and signals always find room in the stream's window, however little the command reads.
const STDIN_AHEAD: u64 = limits::STDIN_WINDOW - (64 << 10);

/// Output less than [`limits::ACK_EVERY`] is acknowledged this late. Without it, a command whose spool is smaller
/// than that would wait for ever for its last bytes to be taken; ten small frames a second are nothing.
const ACK_SOON: Duration = Duration::from_millis(100);

/// Output for one event, in bytes. What comes is cut as the network's datagrams are, 1.4 KB on most, and an event
/// costs a caller as much as 10 KiB of output do: several threads are woken for it.
const GATHER: usize = limits::MAX_FRAME_PAYLOAD;

/// How a relay ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// With the outcome.
    Outcome,
    /// The caller left on purpose.
    Detached,
    /// The caller is gone.
    CallerGone,
    /// The session is gone.
    Lost(Lost),
    /// The supervisor ended this stream without an outcome.
    Broken(CloseCode),
    /// The supervisor broke the protocol.
    Protocol(String),
}

impl End {
    /// What the caller is told; `None` where the caller knows.
    pub(super) fn error(&self) -> Option<CallError> {
        let again = "the command may run on: attach again with the same exec_id";
        Some(match self {
            Self::Outcome | Self::Detached | Self::CallerGone => return None,
            Self::Lost(lost) => CallError::new(
                Reason::SessionLost,
                format!("the session with the sandbox was lost: {lost}; {again}"),
            )
            .with(key::CAUSE, lost.label()),
            Self::Broken(code) => {
                let message = format!("the supervisor ended the relay: {code} ({}); {again}", code.text());
                CallError::new(Reason::SessionLost, message).with(key::CAUSE, code)
            }
            Self::Protocol(why) => {
                CallError::new(Reason::Internal, format!("the supervisor broke the protocol: {why}; {again}"))
            }
        })
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Outcome => "done",
            Self::Detached => "detached",
            Self::CallerGone => "caller_gone",
            Self::Lost(_) => "lost",
            Self::Broken(_) => "ended",
            Self::Protocol(_) => "protocol",
        }
    }

    fn code(&self) -> CloseCode {
        match self {
            Self::Outcome | Self::Detached => CloseCode::DONE,
            Self::CallerGone => CloseCode::CALLER_GONE,
            Self::Lost(_) => CloseCode::SESSION_LOST,
            Self::Broken(code) => *code,
            Self::Protocol(_) => CloseCode::PROTOCOL,
        }
    }
}

pub(super) struct Pump {
    pub(super) core: Arc<Core>,
    pub(super) exec: ExecId,
    pub(super) relay: Relay,
    pub(super) offsets: Offsets,
    pub(super) events: mpsc::Sender<AttachEvent>,
    pub(super) stdin: mpsc::Receiver<Frame>,
    pub(super) control: mpsc::Receiver<Control>,
    pub(super) handed: watch::Receiver<Offsets>,
    pub(super) implicit_acks: bool,
    pub(super) end: Arc<OnceLock<End>>,
}

impl Pump {
    /// Runs the relay to its end. `first` is the frame that has been read already.
    pub(super) async fn run(self, first: Frame) {
        let session = &self.relay.session;
        let span = tracing::info_span!(
            "attach",
            sandbox = %session.sandbox(),
            session = %session.id(),
            epoch = %session.epoch(),
            relay = %self.relay.id,
            exec = %self.exec,
        );
        self.drive(first).instrument(span).await;
    }

    async fn drive(self, first: Frame) {
        let Self { core, exec, relay, offsets, events, stdin, control, handed, implicit_acks, end } = self;
        let Relay { session, mut send, mut recv, mut guard, .. } = relay;
        // Of what is there, the command may have taken nothing yet: how much it has, the supervisor says next.
        let taken = match &first {
            Frame::Started(started) => started.stdin_offset.saturating_sub(STDIN_AHEAD),
            _ => 0,
        };
        let (taken_in, taken) = watch::channel(taken);
        let mut outbound =
            Outbound { core: &core, exec, session: &session, offsets, events: &events, taken: taken_in };
        let inbound = Inbound {
            acked: offsets,
            stdin,
            control,
            handed,
            implicit_acks,
            taken,
            scratch: BytesMut::new(),
            pieces: Vec::with_capacity(8),
        };
        let how = tokio::select! {
            biased;
            // First: a result that is here must not be lost to the session's end.
            how = outbound.run(first, &mut recv) => how,
            how = inbound.run(&mut send) => how,
            lost = session.closed() => End::Lost(lost),
            () = events.closed() => End::CallerGone,
        };
        // The connection's end reaches its streams first: the session says it better.
        let _ = end.set(how.clone());
        drop(events);
        guard.ended(how.label());
        recv.stop(how.code());
        match &how {
            // Both ends said what they had to say: the clean end.
            End::Outcome | End::Detached => {
                let _ = send.finish();
            }
            other => send.reset(other.code()),
        }
        tracing::debug!(end = ?how, age = ?guard.age(), "relay over");
    }
}

/// From the supervisor to the caller.
struct Outbound<'a> {
    core: &'a Arc<Core>,
    exec: ExecId,
    session: &'a Session,
    offsets: Offsets,
    events: &'a mpsc::Sender<AttachEvent>,
    taken: watch::Sender<u64>,
}

impl Outbound<'_> {
    async fn run(&mut self, first: Frame, recv: &mut MessageReader) -> End {
        let bytes = metrics::counter!("holdfast_relay_bytes_total", "direction" => "out");
        let mut next = Some(Ok(Some(first)));
        loop {
            let read = match next.take() {
                Some(read) => read,
                None => recv.frame().await,
            };
            let mut frame = match read {
                Ok(Some(frame)) => frame,
                Ok(None) => return End::Protocol("its stream ended without an outcome".to_owned()),
                Err(error) => return stream_end(error, self.session),
            };
            if let Frame::Output(stream, data) = &mut frame {
                next = gather(*stream, data, recv);
                bytes.increment(data.len() as u64);
            }
            let event = match self.offsets.on_frame(frame) {
                Ok(Heard::Event(event)) => event,
                Ok(Heard::StdinTaken(offset)) => {
                    self.taken.send_replace(offset);
                    stdin_taken(offset)
                }
                Ok(Heard::Started(ExecStarted { exec, stdin_offset })) => {
                    let exec = exec.unwrap_or_default();
                    let info = match self.core.store.exec(self.exec).await {
                        Ok(Some(record)) => merge(&record, exec),
                        _ => exec,
                    };
                    event(Kind::Started(ExecStarted { exec: Some(info), stdin_offset }))
                }
                Ok(Heard::Ended(ended)) => return self.ended(ended).await,
                Err(why) => return End::Protocol(why),
            };
            if self.events.send(event).await.is_err() {
                return End::CallerGone;
            }
        }
    }

    /// Stores the outcome, then tells it: what a second caller reads is what this one hears.
    async fn ended(&self, ended: ExecEnded) -> End {
        let mut info = ended.exec.unwrap_or_default();
        info.outcome = ended.outcome;
        let now = Timestamp::now();
        let Some(finished) = state::finished(&info, now) else {
            return End::Protocol("an end without an outcome".to_owned());
        };
        let stored = tokio::time::timeout(STORE_WITHIN, self.core.finish(self.exec, &finished)).await;
        info.set_state(holdfast_wire::api::ExecState::Ended);
        let info = match stored {
            Ok(Ok(record)) => merge(&record, info),
            Ok(Err(error)) => {
                tracing::error!(%error, "the outcome is told, and could not be stored");
                info
            }
            Err(_) => {
                tracing::error!("the outcome is told, and the store did not take it within {STORE_WITHIN:?}");
                info
            }
        };
        if let Ok(delay) = Duration::try_from(now.duration_since(finished.at)) {
            metrics::histogram!("holdfast_exec_result_delay_seconds").record(delay.as_secs_f64());
        }
        let ended = ExecEnded { outcome: info.outcome.clone(), exec: Some(info) };
        match self.events.send(event(Kind::Ended(ended))).await {
            Ok(()) => End::Outcome,
            Err(_) => End::CallerGone,
        }
    }
}

/// From the caller to the supervisor.
struct Inbound {
    stdin: mpsc::Receiver<Frame>,
    control: mpsc::Receiver<Control>,
    handed: watch::Receiver<Offsets>,
    implicit_acks: bool,
    acked: Offsets,
    taken: watch::Receiver<u64>,
    scratch: BytesMut,
    pieces: Vec<Bytes>,
}

impl Inbound {
    async fn run(mut self, send: &mut SendStream) -> End {
        let bytes = metrics::counter!("holdfast_relay_bytes_total", "direction" => "in");
        // Stdin that waits until the command has taken what is before it.
        let mut waiting: Option<Frame> = None;
        let (mut stdin_open, mut control_open) = (true, true);
        loop {
            let frame = tokio::select! {
                biased;
                control = self.control.recv(), if control_open => match control {
                    Some(Control::Resize { cols, rows }) => Frame::Resize { cols, rows },
                    Some(Control::Signal(signal)) => Frame::Signal(signal),
                    Some(Control::Ack(ack)) => ack.ack(),
                    Some(Control::Detach) => {
                        return match self.write(send, Frame::Detach).await {
                            Ok(()) => End::Detached,
                            Err(error) => Self::failed(error).await,
                        };
                    }
                    None => {
                        control_open = false;
                        continue;
                    }
                },
                ack = Self::due(&mut self.handed, self.acked), if self.implicit_acks => {
                    self.acked = ack;
                    ack.ack()
                }
                () = Self::room(&mut self.taken, waiting.as_ref()), if waiting.is_some() => {
                    let Some(frame) = waiting.take() else { continue };
                    frame
                }
                frame = self.stdin.recv(), if waiting.is_none() && stdin_open => match frame {
                    Some(frame) => {
                        waiting = Some(frame);
                        continue;
                    }
                    None => {
                        stdin_open = false;
                        continue;
                    }
                },
                // All senders are gone: nothing more will be said. The other direction goes on.
                else => std::future::pending().await,
            };
            if let Frame::Stdin { data, .. } = &frame {
                bytes.increment(data.len() as u64);
            }
            if let Err(error) = self.write(send, frame).await {
                return Self::failed(error).await;
            }
        }
    }

    async fn write(&mut self, send: &mut SendStream, frame: Frame) -> Result<(), StreamError> {
        self.pieces.clear();
        frame.encode(&mut self.scratch, &mut self.pieces);
        send.write_all(&mut self.pieces).await
    }

    /// A supervisor that wants no more input says more on its own side: an outcome, or a reset. A session that
    /// is lost says so itself.
    async fn failed(error: StreamError) -> End {
        tracing::debug!(%error, "no more input");
        std::future::pending().await
    }

    /// Waits until output has been handed to the caller that should be acknowledged on its behalf: much, or some
    /// a while ago.
    async fn due(handed: &mut watch::Receiver<Offsets>, acked: Offsets) -> Offsets {
        if handed.wait_for(|handed| *handed != acked).await.is_err() {
            // The caller's half is gone; the pump is about to hear of it.
            return std::future::pending().await;
        }
        let much = handed.wait_for(|handed| handed.since(acked) >= limits::ACK_EVERY);
        // Either way what is handed now is what counts.
        let _ = tokio::time::timeout(ACK_SOON, much).await;
        *handed.borrow()
    }

    /// Waits until the command has taken enough of stdin for `frame`.
    async fn room(taken: &mut watch::Receiver<u64>, frame: Option<&Frame>) {
        let end = match frame {
            Some(Frame::Stdin { offset, data }) => offset + data.len() as u64,
            _ => 0,
        };
        if taken.wait_for(|taken| end <= taken.saturating_add(STDIN_AHEAD)).await.is_err() {
            std::future::pending().await
        }
    }
}

/// A relay's next frame, or how it ended.
type Read = Result<Option<Frame>, StreamError>;

/// Adds to `data` what has come of the same stream, up to [`GATHER`], and waits for nothing. Returns what was read
/// beyond it, if anything was. Output that comes alone stays where it is; what is joined is copied once.
fn gather(stream: OutputStream, data: &mut Bytes, recv: &mut MessageReader) -> Option<Read> {
    let (mut length, mut pieces) = (data.len(), Vec::new());
    let beyond = loop {
        match recv.frame().now_or_never() {
            Some(Ok(Some(Frame::Output(of, more)))) if of == stream && length + more.len() <= GATHER => {
                length += more.len();
                pieces.push(more);
            }
            beyond => break beyond,
        }
    };
    if !pieces.is_empty() {
        let mut joined = BytesMut::with_capacity(length);
        joined.extend_from_slice(data);
        pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
        *data = joined.freeze();
    }
    beyond
}

fn stream_end(error: StreamError, session: &Session) -> End {
    match error {
        StreamError::Lost(lost) => End::Lost(session.lost().unwrap_or(Lost::Connection(lost))),
        StreamError::Ended(code) => End::Broken(code),
        other => End::Protocol(other.to_string()),
    }
}
