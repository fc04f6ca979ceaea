//! One question about execs, one answer. A call that only waits (`wait`) is accepted at once; the others are
//! accepted when their answer is known, so that a refusal can say why.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_wire::{
    api::{OutputStream, ReadExecResponse},
    close::CloseCode,
    control::{ExecAnswer, ExecCall, ReadCall, RefusedCode, exec_call::Kind},
    limits::{MAX_MESSAGE, MAX_READ},
    transport::{MessageReader, SendStream},
};

use super::{
    Inner,
    exec::{Exec, HasEnded, Phase},
    relay::{self, Refusal},
    spool::{Piece, Stream},
};

/// The longest wait of one call; who wants more asks again.
const WAIT_MOST: Duration = Duration::from_secs(600);

/// What a read gives that names no size, in bytes.
const READ_DEFAULT: usize = 64 * 1024;

/// Serves one call to its end.
pub(super) async fn serve(core: &Arc<Inner>, call: ExecCall, mut send: SendStream, mut recv: MessageReader) {
    let kind = match call.kind {
        Some(Kind::Wait(wait)) => {
            let exec = match core.find(&wait.exec_id) {
                Ok(exec) => exec,
                Err(refusal) => return relay::refuse(refusal, send, recv).await,
            };
            recv.on_drop(CloseCode::DONE);
            return self::wait(&exec, Duration::from_millis(wait.at_most_ms), send).await;
        }
        kind => kind,
    };
    match answer(core, kind).await {
        Ok(answer) => {
            recv.on_drop(CloseCode::DONE);
            if relay::accept(&mut send).await.is_ok() {
                deliver(&answer, send).await;
            }
        }
        Err(refusal) => relay::refuse(refusal, send, recv).await,
    }
}

async fn deliver(answer: &ExecAnswer, mut send: SendStream) {
    match send.send_message(answer, MAX_MESSAGE).await {
        Ok(()) => relay::finish(&mut send).await,
        // Dropping the stream resets it.
        Err(error) => tracing::debug!(%error, "an answer could not be delivered"),
    }
}

async fn wait(exec: &Exec, at_most: Duration, mut send: SendStream) {
    if relay::accept(&mut send).await.is_err() {
        return;
    }
    let mut phase = exec.phase();
    tokio::select! {
        _ = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))) => {}
        () = tokio::time::sleep(at_most.min(WAIT_MOST)) => {}
        // The caller is gone.
        _ = send.stopped() => return,
    }
    deliver(&one(exec), send).await;
}

async fn answer(core: &Inner, kind: Option<Kind>) -> Result<ExecAnswer, Refusal> {
    match kind {
        None | Some(Kind::Wait(_)) => {
            Err(Refusal::new(RefusedCode::UnknownKind, "this supervisor does not know this call"))
        }
        Some(Kind::List(_)) => Ok(ExecAnswer { execs: core.report(), read: None }),
        Some(Kind::Get(id)) => Ok(one(&*core.find(&id)?)),
        Some(Kind::Signal(call)) => {
            let exec = core.find(&call.exec_id)?;
            done(exec.signal(call.signal).await, &exec, &format!("signal {}", call.signal))
        }
        Some(Kind::Resize(call)) => {
            let exec = core.find(&call.exec_id)?;
            let size = call.size.unwrap_or_default();
            let (Ok(cols), Ok(rows)) = (u16::try_from(size.cols), u16::try_from(size.rows)) else {
                let message = format!("{} x {} is no terminal's size", size.cols, size.rows);
                return Err(Refusal::new(RefusedCode::Invalid, message));
            };
            done(exec.resize(cols, rows).await, &exec, "resize")
        }
        Some(Kind::Cancel(call)) => {
            let exec = core.find(&call.exec_id)?;
            exec.cancel(&call.by, None);
            Ok(one(&exec))
        }
        Some(Kind::Read(call)) => read(&*core.find(&call.exec_id)?, &call).await,
    }
}

fn one(exec: &Exec) -> ExecAnswer {
    ExecAnswer { execs: vec![exec.info()], read: None }
}

fn done(result: Result<io::Result<()>, HasEnded>, exec: &Exec, what: &str) -> Result<ExecAnswer, Refusal> {
    match result {
        Ok(Ok(())) => Ok(ExecAnswer::default()),
        Err(HasEnded) => Err(Refusal::new(RefusedCode::Ended, format!("exec {} has ended", exec.id))),
        Ok(Err(error)) => Err(match error.raw_os_error() {
            Some(libc::ESRCH) => Refusal::new(RefusedCode::Ended, format!("exec {} is ending", exec.id)),
            Some(libc::EINVAL) => {
                Refusal::new(RefusedCode::Invalid, format!("{what}: not a signal that can be sent"))
            }
            Some(libc::ENOTTY) => {
                Refusal::new(RefusedCode::Invalid, format!("exec {} has no terminal", exec.id))
            }
            _ if error.kind() == io::ErrorKind::NotConnected => {
                Refusal::new(RefusedCode::Invalid, format!("exec {} has not started yet", exec.id))
            }
            _ => Refusal::new(RefusedCode::Internal, format!("{what}: {error}")),
        }),
    }
}

async fn read(exec: &Exec, call: &ReadCall) -> Result<ExecAnswer, Refusal> {
    let stream = match OutputStream::try_from(call.stream) {
        Ok(OutputStream::Stdout) => Stream::Stdout,
        Ok(OutputStream::Stderr) => Stream::Stderr,
        _ => return Err(Refusal::new(RefusedCode::Invalid, format!("no output stream {}", call.stream))),
    };
    let most = match call.max_bytes as usize {
        0 => READ_DEFAULT,
        n => n.min(MAX_READ),
    };
    // Looked at first: what is read after a known end is all there is.
    let ended = exec.has_ended();
    let mut from = call.offset;
    let (mut data, mut pieces) = (0, Vec::new());
    while data < most {
        match exec.spool.read(stream, from + data as u64, most - data).await {
            Piece::Data(piece) => {
                data += piece.len();
                pieces.push(piece);
            }
            Piece::Gap { to } if pieces.is_empty() => from = to,
            // The answer has one beginning: the next read tells of the gap.
            Piece::Gap { .. } | Piece::End => break,
        }
    }
    let (_, end) = exec.spool.sizes()[stream as usize];
    let eof = ended && from + data as u64 >= end;
    let data: Bytes =
        if let [piece] = pieces.as_mut_slice() { std::mem::take(piece) } else { pieces.concat().into() };
    Ok(ExecAnswer { execs: Vec::new(), read: Some(ReadExecResponse { offset: from, data, eof }) })
}
