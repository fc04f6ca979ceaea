//! One exec relay: starts or attaches, carries output and input, tells the outcome.
//!
//! ```text
//!   gateway ── ExecRelay ──▶ refused, or accepted
//!           ◀── started (unless the command never ran)
//!           ◀── stdout, stderr, gap, stdin_ack ...        from the offsets that were asked for
//!           ──▶ stdin, stdin_eof, resize, signal, ack, detach ...
//!           ◀── ended, then the end of the stream
//! ```
//!
//! With `attach = false`, `started` (or `ended`, if it is over) is all. `ended` follows the last byte of output; a
//! stream that ends without it has not told the outcome. What a caller still sends when the outcome has been
//! delivered (a last acknowledgement, input) meets a stop with DONE, which is no fault. A relay waits only for its own peer: the spool keeps what
//! a slow one has not read. However a relay ends without `detach` (reset, lost session, a panic in here), its
//! attachment's drop decides about on_disconnect.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use holdfast_wire::{
    api::{ExecEnded, ExecStarted},
    close::CloseCode,
    control::{self, RefusedCode, RelayReply, relay_reply},
    frame::Frame,
    limits::MAX_MESSAGE,
    timing,
    transport::{MessageReader, SendStream, StreamError},
};

use super::{
    Inner,
    exec::{Exec, Phase},
    spool::{Piece, Reader, Stream},
};

/// Output that is gathered for one write, in bytes.
const BATCH: usize = 256 * 1024;

/// Why a relay or call is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(super) code: RefusedCode,
    pub(super) message: String,
}

impl Refusal {
    pub(crate) fn new(code: RefusedCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Says yes.
pub(crate) async fn accept(send: &mut SendStream) -> Result<(), StreamError> {
    let kind = Some(relay_reply::Kind::Accepted(control::Accepted {}));
    send.send_message(&RelayReply { kind }, MAX_MESSAGE).await
}

/// Says no, and why.
pub(crate) async fn refuse(refusal: Refusal, mut send: SendStream, mut recv: MessageReader) {
    let Refusal { code, message } = refusal;
    tracing::debug!(?code, %message, "refused");
    let kind = Some(relay_reply::Kind::Refused(control::Refused { code: code as i32, message }));
    recv.stop(CloseCode::REFUSED);
    if send.send_message(&RelayReply { kind }, MAX_MESSAGE).await.is_ok() {
        finish(&mut send).await;
    }
}

/// The clean end, and the wait until the peer has it: as long as it does not, the relay is not over.
pub(crate) async fn finish(send: &mut SendStream) {
    if send.finish().is_ok() {
        // Past the bound, or with the session lost, nobody waits for it any more.
        let _ = tokio::time::timeout(timing::CALLER_BOUND, send.stopped()).await;
    }
}

/// Serves one relay to its end.
pub(super) async fn serve(
    core: &Arc<Inner>,
    request: control::ExecRelay,
    mut send: SendStream,
    mut recv: MessageReader,
) {
    let exec = match core.start_or_find(&request) {
        Ok(exec) => exec,
        Err(refusal) => return refuse(refusal, send, recv).await,
    };
    if !request.attach {
        recv.on_drop(CloseCode::DONE);
        // An error means that nobody waits for the answer any more; the exec does not depend on it.
        let _ = tell(&exec, &mut send).await;
        return;
    }
    let offsets = [request.stdout_offset, request.stderr_offset];
    if let Err(refusal) = check_offsets(&exec, offsets) {
        return refuse(refusal, send, recv).await;
    }
    let mut attached = Attached { reader: Some(exec.spool.attach(offsets)), exec, on_purpose: false };
    let left = attached.serve(offsets, request.stdin_writer, &mut send, &mut recv).await;
    attached.on_purpose = !matches!(left, Leave::Gone(_));
    match left {
        Leave::Done => recv.on_drop(CloseCode::DONE),
        Leave::Detached => {
            send.reset(CloseCode::DONE);
            recv.stop(CloseCode::DONE);
        }
        Leave::Gone(error) => {
            tracing::debug!(exec = %attached.exec.id, %error, "a caller is gone");
            send.reset(error.close_code());
            recv.stop(error.close_code());
        }
    }
}

/// Nobody can have what was never written. An ended exec is told all the same: after a restart of the supervisor its
/// output may end earlier than what a caller had.
fn check_offsets(exec: &Exec, offsets: [u64; 2]) -> Result<(), Refusal> {
    if exec.has_ended() {
        return Ok(());
    }
    for (stream, (_, end)) in Stream::BOTH.into_iter().zip(exec.spool.sizes()) {
        let asked = offsets[stream as usize];
        if asked > end {
            let message = format!("{stream:?} from {asked}: only {end} bytes have been written");
            return Err(Refusal::new(RefusedCode::Invalid, message));
        }
    }
    Ok(())
}

/// `attach = false`: started, or ended, and that is all.
async fn tell(exec: &Exec, send: &mut SendStream) -> Result<(), StreamError> {
    accept(send).await?;
    let mut phase = exec.phase();
    // An error cannot be: the exec holds the sender. Whoever looks at the phase must be done with it before the next
    // look: between the two somebody may wait to change it, whom the second would wait for, and who waits for the first.
    let over = matches!(phase.wait_for(Phase::has_begun).await.as_deref(), Ok(Phase::Ended(_)));
    let frame = if over { ended(exec) } else { started(exec) };
    send.send_frame(frame).await?;
    finish(send).await;
    Ok(())
}

fn started(exec: &Exec) -> Frame {
    Frame::Started(ExecStarted { exec: Some(exec.info()), stdin_offset: exec.stdin.offset() })
}

fn ended(exec: &Exec) -> Frame {
    let info = exec.info();
    Frame::Ended(ExecEnded { outcome: info.outcome.clone(), exec: Some(info) })
}

/// How a relay is over.
enum Leave {
    /// The outcome has been told.
    Done,
    /// The caller left on purpose.
    Detached,
    /// The caller, or the way to it, is gone; or it broke the rules.
    Gone(StreamError),
}

/// A caller's hold on an exec.
struct Attached {
    reader: Option<Reader>,
    exec: Arc<Exec>,
    on_purpose: bool,
}

impl Drop for Attached {
    fn drop(&mut self) {
        // First it is no reader any more: the last of several decides.
        self.reader = None;
        let exec = &self.exec;
        if !self.on_purpose && exec.facts.kill_on_disconnect && exec.spool.readers() == 0 {
            exec.cancel("disconnect", None);
        }
    }
}

impl Attached {
    async fn serve(
        &self,
        offsets: [u64; 2],
        stdin_writer: bool,
        send: &mut SendStream,
        recv: &mut MessageReader,
    ) -> Leave {
        let exec = &self.exec;
        let ran = match begin(exec, send).await {
            Ok(ran) => ran,
            Err(error) => return Leave::Gone(error),
        };
        // First: where this one goes on must not move any more when it is told.
        let writer = stdin_writer.then(|| exec.stdin.take_over());
        if ran && let Err(error) = send.send_frame(started(exec)).await {
            return Leave::Gone(error);
        }
        let output = async {
            match (Telling { exec, writer, send, cursors: offsets }).run().await {
                Ok(()) => Leave::Done,
                Err(error) => Leave::Gone(error),
            }
        };
        tokio::select! {
            left = output => left,
            left = self.listen(recv, writer) => left,
        }
    }

    /// Takes what the caller sends. The clean end of its direction is no leaving: output goes on.
    async fn listen(&self, recv: &mut MessageReader, writer: Option<u64>) -> Leave {
        let exec = &self.exec;
        loop {
            let frame = match recv.frame().await {
                Ok(Some(frame)) => frame,
                Ok(None) => std::future::pending().await,
                Err(error) => return Leave::Gone(error),
            };
            let fault = match frame {
                Frame::Stdin { offset, data } => match writer {
                    Some(writer) => {
                        exec.stdin.push(writer, offset, data).err().map(|fault| fault.to_string())
                    }
                    None => Some("stdin from a relay that did not ask to write it".to_owned()),
                },
                Frame::StdinEof { offset } => match writer {
                    Some(writer) => exec.stdin.finish(writer, offset).err().map(|fault| fault.to_string()),
                    None => Some("the end of stdin from a relay that did not ask to write it".to_owned()),
                },
                Frame::Ack { stdout, stderr } => {
                    if let Some(reader) = &self.reader {
                        reader.ack([stdout, stderr]);
                    }
                    None
                }
                Frame::Resize { cols, rows } => {
                    report("resize", exec, exec.resize(cols, rows).await);
                    None
                }
                Frame::Signal(number) => {
                    report("signal", exec, exec.signal(number).await);
                    None
                }
                Frame::Detach => return Leave::Detached,
                Frame::Started(_)
                | Frame::Output(..)
                | Frame::Gap { .. }
                | Frame::StdinAck { .. }
                | Frame::Ended(_) => Some("a frame that only a supervisor sends".to_owned()),
            };
            if let Some(fault) = fault {
                tracing::warn!(exec = %exec.id, %fault, "the peer broke the protocol");
                return Leave::Gone(StreamError::Ended(CloseCode::PROTOCOL));
            }
        }
    }
}

/// These have no answer on a relay; who needs one makes a call.
fn report(what: &str, exec: &Exec, result: Result<std::io::Result<()>, super::exec::HasEnded>) {
    if let Ok(Err(error)) = result {
        tracing::warn!(exec = %exec.id, %error, "{what} failed");
    }
}

/// Accepts, and waits for the command's start. Says whether there was one: a command that never ran has none to tell.
async fn begin(exec: &Exec, send: &mut SendStream) -> Result<bool, StreamError> {
    accept(send).await?;
    let mut phase = exec.phase();
    let ran = tokio::select! {
        // The look that was waited for, and no second one (see `tell`).
        phase = phase.wait_for(Phase::has_begun) => match phase.as_deref() {
            Ok(Phase::Ended(end)) => end.run.is_some(),
            _ => true,
        },
        stopped = send.stopped() => return Err(gone(stopped)),
    };
    Ok(ran)
}

fn gone(stopped: Result<Option<CloseCode>, holdfast_wire::transport::Lost>) -> StreamError {
    match stopped {
        Ok(code) => StreamError::Ended(code.unwrap_or(CloseCode::DONE)),
        Err(lost) => StreamError::Lost(lost),
    }
}

/// Tells output, acknowledgements of input, and the outcome.
struct Telling<'a> {
    exec: &'a Exec,
    writer: Option<u64>,
    send: &'a mut SendStream,
    cursors: [u64; 2],
}

impl Telling<'_> {
    async fn run(self) -> Result<(), StreamError> {
        let Self { exec, writer, send, mut cursors } = self;
        let (mut readable, mut phase) = (exec.spool.readable(), exec.phase());
        let mut written = exec.stdin.written();
        let mut acknowledged = 0;
        let (mut scratch, mut pieces) = (BytesMut::new(), Vec::<Bytes>::new());
        loop {
            // Looked at before the output: what is read after a known end is all there is.
            let over = matches!(&*phase.borrow_and_update(), Phase::Ended(_));
            readable.borrow_and_update();
            let taken = *written.borrow_and_update();
            if let Some(writer) = writer
                && taken > acknowledged
                && exec.stdin.is_writer(writer)
            {
                acknowledged = taken;
                Frame::StdinAck { offset: taken }.encode(&mut scratch, &mut pieces);
            }
            let mut batch = 0;
            while batch < BATCH {
                let mut nothing = true;
                for stream in Stream::BOTH {
                    let cursor = &mut cursors[stream as usize];
                    match exec.spool.read(stream, *cursor, BATCH / 2).await {
                        Piece::Data(data) => {
                            *cursor += data.len() as u64;
                            batch += data.len();
                            Frame::Output(stream.wire(), data).encode(&mut scratch, &mut pieces);
                        }
                        Piece::Gap { to } => {
                            let from = std::mem::replace(cursor, to);
                            Frame::Gap { stream: stream.wire(), from, to }.encode(&mut scratch, &mut pieces);
                        }
                        Piece::End => continue,
                    }
                    nothing = false;
                }
                if nothing {
                    break;
                }
            }
            if !pieces.is_empty() {
                send.write_all(&mut pieces).await?;
                pieces.clear();
                if batch > 0 {
                    continue;
                }
            }
            if batch == 0 && over {
                break;
            }
            tokio::select! {
                // The exec holds these senders: no error.
                _ = readable.changed() => {}
                _ = phase.changed() => {}
                _ = written.changed(), if writer.is_some() => {}
                stopped = send.stopped() => return Err(gone(stopped)),
            }
        }
        send.send_frame(ended(exec)).await?;
        finish(send).await;
        Ok(())
    }
}
