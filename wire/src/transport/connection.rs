//! One connection: opening and accepting streams, how its path is, and how it ended.

use std::{net::SocketAddr, time::Duration};

use quinn::{ConnectionError, VarInt};
use rustls::pki_types::CertificateDer;

use super::stream::{RecvStream, SendStream};
use crate::close::CloseCode;

/// A connection to the peer. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: quinn::Connection,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The peer closed it and said why.
    #[error("closed by the peer: {code} ({})", if reason.is_empty() { code.text() } else { reason.as_str() })]
    Closed {
        /// From the table.
        code: CloseCode,
        /// The peer's words, cut to 256 bytes.
        reason: String,
    },
    /// The peer does not know the connection: it was restarted (a stateless reset).
    #[error("reset: the peer does not know the connection any more (it was restarted)")]
    Reset,
    /// Nothing came for the idle timeout.
    #[error("timed out: nothing was heard of the peer for the idle timeout")]
    TimedOut,
    /// This side closed it.
    #[error("closed here")]
    ClosedHere,
    /// TLS said no, or the peer broke QUIC.
    #[error("{0}")]
    Transport(String),
}

impl Lost {
    /// A word for a metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Closed { code, .. } => code.name().unwrap_or("OTHER_CODE"),
            Self::Reset => "RESET",
            Self::TimedOut => "TIMED_OUT",
            Self::ClosedHere => "CLOSED_HERE",
            Self::Transport(_) => "TRANSPORT",
        }
    }

    /// The peer's code, if it gave one.
    #[must_use]
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Closed { code, .. } => Some(*code),
            _ => None,
        }
    }
}

impl From<ConnectionError> for Lost {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => Self::Closed {
                code: CloseCode(close.error_code.into_inner()),
                reason: String::from_utf8_lossy(&close.reason[..close.reason.len().min(256)]).into_owned(),
            },
            ConnectionError::Reset => Self::Reset,
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::LocallyClosed => Self::ClosedHere,
            other => Self::Transport(other.to_string()),
        }
    }
}

/// A stream that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The peer's limit of streams was reached and none became free in time.
    #[error("no stream became free within {0:?}: the peer's limit of streams is reached")]
    Deadline(Duration),
    /// The connection ended.
    #[error("the connection is lost: {0}")]
    Lost(#[from] Lost),
}

/// A connection's path, as counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Smoothed round trip time.
    pub rtt: Duration,
    /// The path's MTU in bytes.
    pub mtu: u16,
    /// Packets held lost.
    pub lost_packets: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// UDP bytes sent and received.
    pub sent_bytes: u64,
    /// UDP bytes received.
    pub received_bytes: u64,
    /// UDP datagrams received: a change means that the peer lives.
    pub received_datagrams: u64,
    /// Congestion events.
    pub congestion_events: u64,
    /// Black holes that MTU discovery found.
    pub black_holes: u64,
}

impl Connection {
    pub(super) fn new(inner: quinn::Connection) -> Self {
        Self { inner }
    }

    /// Opens a bidirectional stream. The peer sees it with its first byte, so write first.
    pub async fn open_bi(&self, within: Duration) -> Result<(SendStream, RecvStream), OpenError> {
        match tokio::time::timeout(within, self.inner.open_bi()).await {
            Ok(Ok((send, recv))) => Ok((SendStream::new(send), RecvStream::new(recv))),
            Ok(Err(error)) => Err(OpenError::Lost(error.into())),
            Err(_) => Err(OpenError::Deadline(within)),
        }
    }

    /// Waits for the peer's next stream.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Lost> {
        let (send, recv) = self.inner.accept_bi().await?;
        Ok((SendStream::new(send), RecvStream::new(recv)))
    }

    /// Waits until the connection has ended, and says how.
    pub async fn closed(&self) -> Lost {
        self.inner.closed().await.into()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        self.inner.close_reason().map(Into::into)
    }

    /// Closes at once; what is not sent yet is dropped. Under a full congestion window the code may never reach
    /// the peer (quinn issue 2785): reset the bulk streams and linger [`crate::timing::CLOSE_LINGER`] before.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.inner.close(varint(code), reason.as_bytes());
    }

    /// The peer's address now; it changes when the peer migrates.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// The peer's certificate (the leaf).
    #[must_use]
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        let chain = self.inner.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        chain.into_iter().next()
    }

    /// How the path is.
    #[must_use]
    pub fn path(&self) -> PathStats {
        let stats = self.inner.stats();
        PathStats {
            rtt: stats.path.rtt,
            mtu: stats.path.current_mtu,
            lost_packets: stats.path.lost_packets,
            sent_packets: stats.path.sent_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            received_datagrams: stats.udp_rx.datagrams,
            congestion_events: stats.path.congestion_events,
            black_holes: stats.path.black_holes_detected,
        }
    }

    /// Tells connections of one process apart.
    #[must_use]
    pub fn stable_id(&self) -> usize {
        self.inner.stable_id()
    }
}

pub(super) fn varint(code: CloseCode) -> VarInt {
    // Every code of the table fits; one from elsewhere is cut to QUIC's 62 bits.
    VarInt::from_u64(code.0).unwrap_or(VarInt::MAX)
}
