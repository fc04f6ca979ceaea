//! A transfer's relay: carries its stream one way and what the receiver says the other.
//!
//! The stream's bytes are raw, from the offset that the header named; the other direction has frames (`ack`, `done`,
//! `failed`). A relay that is lost leaves its transfer as it is; one that is reset with ABORTED ends it.

use std::sync::Arc;

use holdfast_files::Piece;
use holdfast_wire::{
    close::CloseCode,
    files::{Decoder, Frame},
    limits::ACK_EVERY,
    transport::{MessageReader, SendStream, StreamError},
};
use tokio_util::sync::CancellationToken;

use super::{Inner, transfer::Transfer};
use crate::execs::{accept, finish};

/// One read of the stream, in bytes.
const READ: usize = 256 << 10;

/// Why a relay is over.
enum Left {
    /// All was told.
    Done,
    /// A newer relay has the transfer.
    TakenOver,
    Gone(StreamError),
}

pub(super) async fn upload(
    room: &Arc<Inner>,
    transfer: &Arc<Transfer>,
    offset: u64,
    mut send: SendStream,
    mut recv: MessageReader,
) {
    let mut held = Held::take(room, transfer);
    let token = held.token.clone();
    let left = tokio::select! {
        biased;
        () = token.cancelled() => Left::TakenOver,
        told = tell_progress(transfer, &mut send) => told,
        gone = take_stream(transfer, offset, &mut recv) => Left::Gone(gone),
    };
    held.leave(left, &mut send, &mut recv);
}

pub(super) async fn download(
    room: &Arc<Inner>,
    transfer: &Arc<Transfer>,
    offset: u64,
    mut send: SendStream,
    mut recv: MessageReader,
) {
    let mut held = Held::take(room, transfer);
    let token = held.token.clone();
    transfer.window.release(offset);
    let left = tokio::select! {
        biased;
        () = token.cancelled() => Left::TakenOver,
        gone = take_acks(transfer, &mut recv) => Left::Gone(gone),
        told = tell_stream(transfer, offset, &mut send) => told,
    };
    held.leave(left, &mut send, &mut recv);
}

/// A relay's hold on its transfer. Dropped in the middle, because the session ended, it leaves the transfer to be
/// taken up again.
struct Held<'a> {
    room: &'a Arc<Inner>,
    transfer: &'a Arc<Transfer>,
    turn: u64,
    token: CancellationToken,
    /// Nothing more will be wanted of the transfer.
    forget: bool,
}

impl<'a> Held<'a> {
    fn take(room: &'a Arc<Inner>, transfer: &'a Arc<Transfer>) -> Self {
        let (turn, token) = transfer.attach();
        Self { room, transfer, turn, token, forget: false }
    }

    fn leave(&mut self, left: Left, send: &mut SendStream, recv: &mut MessageReader) {
        match left {
            Left::Done => {
                recv.on_drop(CloseCode::DONE);
                // All of a download is with its caller; how an upload ended may be asked for once more.
                self.forget = !self.transfer.is_upload();
            }
            Left::TakenOver => {
                send.reset(CloseCode::SUPERSEDED);
                recv.stop(CloseCode::SUPERSEDED);
            }
            Left::Gone(error) => {
                tracing::debug!(transfer = %self.transfer.id, %error, "a transfer's caller is gone");
                send.reset(error.close_code());
                recv.stop(error.close_code());
                self.forget = matches!(error, StreamError::Ended(CloseCode::ABORTED));
            }
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.transfer.detach(self.turn) {
            return;
        }
        if self.forget {
            self.room.forget(self.transfer);
        } else {
            self.room.keep_for_a_while(self.transfer, self.turn);
        }
    }
}

/// Puts the stream's bytes into the window. Returns when no more can come.
async fn take_stream(transfer: &Transfer, mut offset: u64, recv: &mut MessageReader) -> StreamError {
    loop {
        match recv.bytes(READ).await {
            Ok(Some(chunk)) => {
                let next = offset + chunk.len() as u64;
                match transfer.window.offer(offset, chunk).await {
                    Ok(true) => offset = next,
                    Ok(false) => return StreamError::Ended(CloseCode::PROTOCOL),
                    // It is over: the other direction says how.
                    Err(_) => std::future::pending().await,
                }
            }
            // Said to its end: now the answer is awaited.
            Ok(None) => std::future::pending().await,
            Err(error) => return error,
        }
    }
}

/// Tells how far an upload has come, and how it ended.
async fn tell_progress(transfer: &Transfer, send: &mut SendStream) -> Left {
    let (mut applied, mut end) = (transfer.applied.subscribe(), transfer.end.subscribe());
    if let Err(error) = accept(send).await {
        return Left::Gone(error);
    }
    let mut told = 0;
    loop {
        let over = end.borrow_and_update().clone();
        if let Some(over) = over {
            let frame = match over {
                Ok(result) => Frame::Done(result),
                Err(failure) => Frame::Failed(failure.to_wire()),
            };
            return match send.write(frame.to_bytes()).await {
                Ok(()) => {
                    finish(send).await;
                    Left::Done
                }
                Err(error) => Left::Gone(error),
            };
        }
        let now = *applied.borrow_and_update();
        if now >= told + ACK_EVERY {
            told = now;
            if let Err(error) = send.write(Frame::Ack(now).to_bytes()).await {
                return Left::Gone(error);
            }
        }
        tokio::select! {
            // The transfer holds these senders: no error.
            _ = end.changed() => {}
            _ = applied.changed() => {}
            stopped = send.stopped() => return Left::Gone(gone(stopped)),
        }
    }
}

/// Tells a download's stream to its end.
async fn tell_stream(transfer: &Transfer, mut offset: u64, send: &mut SendStream) -> Left {
    if let Err(error) = accept(send).await {
        return Left::Gone(error);
    }
    loop {
        let piece = tokio::select! {
            piece = transfer.window.next(offset) => piece,
            stopped = send.stopped() => return Left::Gone(gone(stopped)),
        };
        match piece {
            Piece::Data(data) => {
                offset += data.len() as u64;
                if let Err(error) = send.write(data).await {
                    return Left::Gone(error);
                }
            }
            Piece::End => {
                // The last acknowledgement says that the caller has it all: then nothing need be kept.
                tokio::select! {
                    () = transfer.window.drained() => {}
                    stopped = send.stopped() => return Left::Gone(gone(stopped)),
                }
                finish(send).await;
                return Left::Done;
            }
            Piece::Nothing | Piece::Gone => return Left::Gone(StreamError::Ended(CloseCode::INTERNAL)),
        }
    }
}

/// Takes a download's acknowledgements.
async fn take_acks(transfer: &Transfer, recv: &mut MessageReader) -> StreamError {
    let mut decoder = Decoder::new();
    loop {
        match recv.bytes(READ).await {
            Ok(Some(chunk)) => decoder.push(chunk),
            Ok(None) => std::future::pending().await,
            Err(error) => return error,
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(Frame::Ack(offset))) => transfer.window.release(offset),
                Ok(None) => break,
                Ok(Some(_)) | Err(_) => return StreamError::Ended(CloseCode::PROTOCOL),
            }
        }
    }
}

fn gone(stopped: Result<Option<CloseCode>, holdfast_wire::transport::Lost>) -> StreamError {
    match stopped {
        Ok(code) => StreamError::Ended(code.unwrap_or(CloseCode::DONE)),
        Err(lost) => StreamError::Lost(lost),
    }
}
