//! The API's TCP port: accepting, TLS, and what a service may know of a connection.
//!
//! Handshakes run beside the accept loop, bounded in number and time: a peer that connects and says nothing
//! holds one slot for [`HANDSHAKE`], and nobody else.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// A TLS handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes at once. Each costs about a millisecond of CPU; the rest is waiting for the peer.
const HANDSHAKES: usize = 256;

/// After a failed accept (no descriptors left): time for some to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Read from a socket at once, in bytes: by itself rustls asks for 4 KiB at a time. Each connection has as much of it
/// for as long as it lives; a thousand callers are 32 MiB.
const READ_AHEAD: usize = 32 << 10;

/// What a service may know of its connection.
#[derive(Clone, Debug)]
pub(super) struct ApiConnectInfo {
    /// The client's certificate; TLS has verified it.
    pub(super) peer_certificate: Option<CertificateDer<'static>>,
}

/// A connection after its handshake.
#[derive(Debug)]
pub(super) struct ApiStream {
    inner: TlsStream<BufReader<TcpStream>>,
}

/// Accepts until `token` ends it; the connections come out of the stream.
pub(super) fn connections(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    token: CancellationToken,
    tasks: &tokio_util::task::TaskTracker,
) -> ReceiverStream<io::Result<ApiStream>> {
    let (sender, receiver) = mpsc::channel(HANDSHAKES);
    tasks.spawn(accept(listener, TlsAcceptor::from(tls), sender, token));
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<io::Result<ApiStream>>,
    token: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    let mut handshakes = JoinSet::new();
    loop {
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot,
            () = token.cancelled() => return,
        };
        // The semaphore is never closed.
        let Ok(slot) = slot else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = token.cancelled() => return,
        };
        // Finished ones are forgotten here, so that the set stays as small as what runs.
        while handshakes.try_join_next().is_some() {}
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting an API connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without it a small answer waits 40 ms for the peer's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let stream = BufReader::with_capacity(READ_AHEAD, stream);
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        handshakes.spawn(async move {
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                // An error means that the server has ended.
                Ok(Ok(inner)) => drop(sender.send(Ok(ApiStream { inner })).await),
                Ok(Err(error)) => tracing::debug!(%remote, %error, "an API handshake failed"),
                Err(_) => tracing::debug!(%remote, "an API handshake took longer than {HANDSHAKE:?}"),
            }
            drop(slot);
        });
    }
}

impl Connected for ApiStream {
    type ConnectInfo = ApiConnectInfo;

    fn connect_info(&self) -> ApiConnectInfo {
        let (_, tls) = self.inner.get_ref();
        ApiConnectInfo {
            peer_certificate: tls
                .peer_certificates()
                .and_then(|chain| chain.first())
                .map(|c| c.clone().into_owned()),
        }
    }
}

impl AsyncRead for ApiStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for ApiStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
