//! Opening a relay.

use std::time::Duration;

use holdfast_wire::{
    close::CloseCode,
    control::{RefusedCode, RelayHeader, RelayReply, exec_call, relay_header, relay_reply},
    ids::RelayId,
    limits, timing,
    transport::{MessageReader, SendStream, StreamError},
};
use tokio::time::Instant;

use super::guard::RelayGuard;
use crate::sessions::{Lost, OpenFailure, Session};

/// A reply is a code and a sentence, in bytes.
const MAX_REPLY: usize = 64 * 1024;

/// As much of a supervisor's sentence as is passed on, in bytes: it is not trusted.
const MAX_SENTENCE: usize = 1024;

/// An accepted relay. Dropped unfinished, it tells the supervisor [`CloseCode::CALLER_GONE`].
#[derive(Debug)]
pub struct Relay {
    /// For logs.
    pub id: RelayId,
    /// The session that carries it.
    pub session: Session,
    /// Towards the supervisor.
    pub send: SendStream,
    /// From the supervisor; the reply has been read.
    pub recv: MessageReader,
    /// Counts it.
    pub guard: RelayGuard,
}

/// A relay that did not come about, or did not go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RelayError {
    /// The session carries as many as it may.
    #[error("the session carries {} relays already, and more are not allowed", limits::MAX_RELAYS)]
    TooMany,
    /// No stream became free.
    #[error("no stream became free within {0:?}")]
    OpenDeadline(Duration),
    /// The header was sent and no reply came.
    #[error("the supervisor did not answer within {0:?}")]
    AcceptDeadline(Duration),
    /// The supervisor said no.
    #[error("the supervisor refused: {message} ({code:?})")]
    Refused {
        /// Why.
        code: RefusedCode,
        /// The supervisor's words, cut.
        message: String,
    },
    /// The session ended. `delivered`: not before the header was on its way.
    #[error("the session was lost: {lost}")]
    Lost {
        /// How.
        lost: Lost,
        /// Whether the supervisor may have the header.
        delivered: bool,
    },
    /// The supervisor ended this stream alone.
    #[error("the supervisor ended the relay: {0} ({text})", text = .0.text())]
    Ended(CloseCode),
    /// The header is larger than is allowed; nothing was sent.
    #[error("the request is too large: {0}")]
    TooLarge(String),
    /// The supervisor broke the protocol.
    #[error("the supervisor broke the protocol: {0}")]
    Protocol(String),
}

impl RelayError {
    /// Whether the supervisor may have heard of the header.
    #[must_use]
    pub fn delivered(&self) -> bool {
        match self {
            Self::TooMany | Self::OpenDeadline(_) | Self::TooLarge(_) => false,
            Self::Lost { delivered, .. } => *delivered,
            Self::AcceptDeadline(_) | Self::Refused { .. } | Self::Ended(_) | Self::Protocol(_) => true,
        }
    }

    /// A word for a metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::OpenDeadline(_) => "open_deadline",
            Self::AcceptDeadline(_) => "accept_deadline",
            Self::Refused { .. } => "refused",
            Self::Lost { .. } => "lost",
            Self::Ended(_) => "ended",
            Self::TooLarge(_) => "too_large",
            Self::Protocol(_) => "protocol",
        }
    }

    /// Of an error on a stream whose header is on its way.
    #[must_use]
    pub fn of_stream(error: StreamError, session: &Session) -> Self {
        match error {
            StreamError::Lost(lost) => {
                Self::Lost { lost: session.lost().unwrap_or(Lost::Connection(lost)), delivered: true }
            }
            StreamError::Ended(code) => Self::Ended(code),
            other => Self::Protocol(other.to_string()),
        }
    }
}

/// Opens a relay on `session`: at most [`timing::OPEN_TIMEOUT`] for a stream and [`timing::ACCEPT_TIMEOUT`] for
/// the reply, and no longer than `until` in all.
pub async fn open(
    session: &Session,
    kind: relay_header::Kind,
    traceparent: &str,
    until: Instant,
) -> Result<Relay, RelayError> {
    let name = match &kind {
        relay_header::Kind::Exec(_) => "exec",
        relay_header::Kind::ExecCall(_) => "exec_call",
        relay_header::Kind::Files(_) => "files",
    };
    let id = RelayId::random();
    let Some(slot) = session.relay_slot() else {
        metrics::counter!("holdfast_relays_total", "kind" => name, "result" => "too_many").increment(1);
        return Err(RelayError::TooMany);
    };
    let busy = (!only_looks(&kind)).then(|| session.begin_use());
    let mut guard = RelayGuard::new(name, slot, busy);
    match negotiate(session, id, kind, traceparent, until).await {
        Ok((send, recv)) => Ok(Relay { id, session: session.clone(), send, recv, guard }),
        Err(error) => {
            guard.ended(error.label());
            tracing::debug!(sandbox = %session.sandbox(), session = %session.id(), relay = %id, %error, "no relay");
            Err(error)
        }
    }
}

async fn negotiate(
    session: &Session,
    id: RelayId,
    kind: relay_header::Kind,
    traceparent: &str,
    until: Instant,
) -> Result<(SendStream, MessageReader), RelayError> {
    let within = timing::OPEN_TIMEOUT.min(until.saturating_duration_since(Instant::now()));
    let (mut send, recv) = session.open_stream(within).await.map_err(|failure| match failure {
        OpenFailure::Deadline(after) => RelayError::OpenDeadline(after),
        OpenFailure::Lost(lost) => RelayError::Lost { lost, delivered: false },
    })?;
    let mut recv = MessageReader::new(recv);
    // Until something else ends it, being dropped means that the caller is gone.
    send.on_drop(CloseCode::CALLER_GONE);
    recv.on_drop(CloseCode::CALLER_GONE);

    let within = timing::ACCEPT_TIMEOUT.min(until.saturating_duration_since(Instant::now()));
    let header = RelayHeader {
        relay_id: id.to_bytes(),
        accept_within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        traceparent: traceparent.to_owned(),
        kind: Some(kind),
    };
    let header = holdfast_wire::message::encode(&header, limits::MAX_RELAY_HEADER)
        .map_err(|error| RelayError::TooLarge(error.to_string()))?;
    let talk = async {
        send.write(header).await?;
        recv.message::<RelayReply>(MAX_REPLY).await?.ok_or(StreamError::Finished("the relay's reply"))
    };
    let reply = tokio::select! {
        biased;
        reply = talk => reply.map_err(|error| RelayError::of_stream(error, session))?,
        lost = session.closed() => {
            send.reset(CloseCode::SESSION_LOST);
            recv.stop(CloseCode::SESSION_LOST);
            return Err(RelayError::Lost { lost, delivered: true });
        }
        () = tokio::time::sleep(within) => {
            send.reset(CloseCode::RELAY_DEADLINE);
            recv.stop(CloseCode::RELAY_DEADLINE);
            return Err(RelayError::AcceptDeadline(within));
        }
    };
    match reply.kind {
        Some(relay_reply::Kind::Accepted(_)) => Ok((send, recv)),
        Some(relay_reply::Kind::Refused(refused)) => {
            send.on_drop(CloseCode::REFUSED);
            recv.on_drop(CloseCode::REFUSED);
            Err(RelayError::Refused { code: refused.code(), message: cut(&refused.message) })
        }
        None => {
            send.on_drop(CloseCode::PROTOCOL);
            recv.on_drop(CloseCode::PROTOCOL);
            Err(RelayError::Protocol("a relay's reply without content".to_owned()))
        }
    }
}

/// Whether a relay is nobody's use of the sandbox: a listing that is asked for every minute must not keep an idle
/// sandbox running. Every other kind is.
fn only_looks(kind: &relay_header::Kind) -> bool {
    use exec_call::Kind::{Get, List};
    matches!(kind, relay_header::Kind::ExecCall(call) if matches!(call.kind, Some(Get(_) | List(_))))
}

/// A peer's sentence, for people: short, and on one line.
pub(crate) fn cut(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_SENTENCE));
    for c in text.chars() {
        if out.len() + c.len_utf8() > MAX_SENTENCE {
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}
