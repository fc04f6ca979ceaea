//! Relays of one session: streams that the gateway opens, each served by a task of its own.
//!
//! ```text
//!   gateway ── stream, RelayHeader ──▶ accept ── kind ──▶ the room that serves it (reply and bytes are its own)
//!                                        │ unknown kind ─▶ Refused UNKNOWN_KIND
//!                                        │ no header in time, too long, garbage ─▶ reset
//! ```
//!
//! A relay that panics ends alone: its task unwinds, its streams reset with ABANDONED. When the session ends, its
//! relays are dropped wherever they are; a command that belongs to one runs on.

use std::sync::Arc;

use holdfast_wire::{
    close::CloseCode,
    control::{Refused, RefusedCode, RelayHeader, RelayReply, relay_header::Kind, relay_reply},
    ids::RelayId,
    limits, timing,
    transport::{Connection, Lost, MessageReader, RecvStream, SendStream, StreamError, Switch},
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{control::unless_stalled, work::Work};

/// Accepts and serves relays until the connection is lost. `open` tells how many there are.
pub(crate) async fn serve(
    connection: &Connection,
    work: &Arc<dyn Work>,
    stall: &Switch,
    open: &watch::Sender<usize>,
    token: &CancellationToken,
) -> Lost {
    let mut relays = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => {
                let (send, recv) = match accepted {
                    Ok(streams) => streams,
                    Err(lost) => return lost,
                };
                admit(send, recv, work, (stall, token), &mut relays);
            }
            Some(ended) = relays.join_next() => {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    tracing::error!("a relay panicked; it alone has ended, with ABANDONED");
                }
            }
        }
        open.send_if_modified(|n| std::mem::replace(n, relays.len()) != relays.len());
    }
}

fn admit(
    mut send: SendStream,
    mut recv: RecvStream,
    work: &Arc<dyn Work>,
    (stall, token): (&Switch, &CancellationToken),
    relays: &mut JoinSet<()>,
) {
    // The transport allows no more streams at once; but one that the gateway has ended may still be at its clean-up.
    if relays.len() >= 2 * limits::MAX_RELAYS as usize {
        send.reset(CloseCode::BUSY);
        recv.stop(CloseCode::BUSY);
        return;
    }
    let (work, stall, token) = (Arc::clone(work), stall.clone(), token.child_token());
    relays.spawn(async move {
        tokio::select! {
            () = token.cancelled() => {}
            () = unless_stalled(&stall, relay(send, recv, work)) => {}
        }
    });
}

async fn relay(mut send: SendStream, recv: RecvStream, work: Arc<dyn Work>) {
    let mut recv = MessageReader::new(recv);
    let header =
        tokio::time::timeout(timing::ACCEPT_TIMEOUT, recv.message::<RelayHeader>(limits::MAX_RELAY_HEADER));
    let header = match header.await {
        Ok(Ok(Some(header))) => header,
        Ok(Ok(None)) => {
            return refuse_stream(&mut send, &mut recv, &StreamError::Finished("a relay's header"));
        }
        Ok(Err(error)) => return refuse_stream(&mut send, &mut recv, &error),
        Err(_) => {
            tracing::warn!(within = ?timing::ACCEPT_TIMEOUT, "a relay's header did not come in time");
            send.reset(CloseCode::RELAY_DEADLINE);
            recv.stop(CloseCode::RELAY_DEADLINE);
            return;
        }
    };
    let Ok(id) = RelayId::from_slice(&header.relay_id) else {
        let message = format!("relay_id: {} bytes where 16 were expected", header.relay_id.len());
        return refuse(send, RefusedCode::Invalid, message).await;
    };
    let span = tracing::info_span!("relay", relay = %id, traceparent = printable(&header.traceparent));
    async {
        match header.kind {
            Some(Kind::Exec(request)) => work.serve_relay(request, send, recv).await,
            Some(Kind::ExecCall(call)) => work.serve_call(call, send, recv).await,
            Some(Kind::Files(request)) => work.serve_files(request, send, recv).await,
            None => {
                let message = format!(
                    "supervisor {} does not know this kind of relay: the gateway is newer",
                    holdfast_wire::VERSION
                );
                refuse(send, RefusedCode::UnknownKind, message).await;
            }
        }
    }
    .instrument(span)
    .await;
}

/// A W3C traceparent has 55 characters; whatever else a peer sends is not logged.
fn printable(traceparent: &str) -> &str {
    let fits = traceparent.len() <= 64 && traceparent.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if fits { traceparent } else { "" }
}

fn refuse_stream(send: &mut SendStream, recv: &mut MessageReader, error: &StreamError) {
    tracing::warn!(%error, "a relay without a usable header");
    send.reset(error.close_code());
    recv.stop(error.close_code());
}

async fn refuse(mut send: SendStream, code: RefusedCode, message: String) {
    tracing::warn!(?code, message, "a relay was refused");
    let refused = Refused { code: code.into(), message };
    let reply = RelayReply { kind: Some(relay_reply::Kind::Refused(refused)) };
    // An error here is a stream or connection that the gateway has ended itself.
    if send.send_message(&reply, limits::MAX_MESSAGE).await.is_ok() {
        let _ = send.finish();
    }
}
