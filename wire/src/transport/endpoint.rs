//! Endpoints: a gateway's listener and a supervisor's dialer, each over one UDP socket.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, EndpointConfig, Runtime as _, TokioRuntime,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hkdf;

use super::{
    connection::{Connection, Lost, varint},
    settings::{MAX_MTU, Profile, is_near},
    switch::{Leaky, Switch},
};
use crate::{close::CloseCode, timing};

/// Asked for, for both directions: bursts of many streams must not drop in the kernel. The kernel may give less
/// (net.core.rmem_max).
const SOCKET_BUFFER: usize = 4 << 20;

/// Between two stateless resets. quinn's 20 ms make a herd of 1000 supervisors wait half a minute for theirs.
const MIN_RESET_INTERVAL: Duration = Duration::from_micros(200);

/// Handshakes that wait to be looked at; beyond it they are dropped, and the peer tries again.
const MAX_INCOMING: usize = 4096;

/// Early data kept of one unaccepted handshake, in bytes: a ClientHello with room to spare.
const INCOMING_BUFFER: u64 = 64 << 10;

/// What an endpoint sends and receives by.
#[derive(Clone, Debug)]
pub enum Socket {
    /// A UDP socket of the system.
    Bind(SocketAddr),
    /// Another link: the simulation's.
    Abstract(Arc<dyn AsyncUdpSocket>),
    /// One of the others, which loses everything while the switch is on.
    Leaky(Box<Self>, Switch),
}

impl Socket {
    /// A wildcard socket of the same family as the peer: the kernel picks the source address, and follows
    /// changes of route by itself.
    #[must_use]
    pub fn towards(peer: SocketAddr) -> Self {
        Self::Bind(match peer {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        })
    }

    /// The same socket, which loses every packet both ways while `lose` is on.
    #[must_use]
    pub fn losing(self, lose: Switch) -> Self {
        Self::Leaky(Box::new(self), lose)
    }

    fn open(self) -> Result<Arc<dyn AsyncUdpSocket>, EndpointError> {
        Ok(match self {
            Self::Bind(address) => TokioRuntime.wrap_udp_socket(bind(address)?)?,
            Self::Abstract(socket) => socket,
            Self::Leaky(socket, lose) => Arc::new(Leaky { inner: socket.open()?, lose }),
        })
    }
}

/// An endpoint that could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// No socket.
    #[error("binding a UDP socket to {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The socket is there and cannot be used.
    #[error("using the UDP socket: {0}")]
    Socket(#[from] io::Error),
    /// The TLS configuration does not suit QUIC.
    #[error("the TLS configuration does not suit QUIC: {0}")]
    Tls(String),
    /// The address or name cannot be dialled.
    #[error("dialling {address}: {reason}")]
    Dial {
        /// Whom.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
}

/// Keys that must outlive a gateway's process, derived from one persisted secret.
///
/// With the same keys a restarted gateway recognises connection ids of its former life and answers them with a
/// stateless reset, so supervisors learn of the restart with their next packet. Two gateways that run at the same
/// time must not share a secret (RFC 9000, section 10.3.2).
#[derive(Clone)]
pub struct ServerKeys {
    reset: [u8; 32],
    connection_id: u64,
    token: [u8; 32],
}

impl std::fmt::Debug for ServerKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerKeys(…)")
    }
}

impl ServerKeys {
    /// Derives the keys (HKDF-SHA256) from 32 secret bytes.
    #[must_use]
    pub fn derive(secret: &[u8; 32]) -> Self {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"holdfast quic keys 1").extract(secret);
        let mut connection_id = [0; 8];
        connection_id.copy_from_slice(&expand(&prk, b"connection id")[..8]);
        Self {
            reset: expand(&prk, b"stateless reset"),
            connection_id: u64::from_be_bytes(connection_id),
            token: expand(&prk, b"address validation token"),
        }
    }
}

fn expand(prk: &hkdf::Prk, label: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    prk.expand(&[label], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out))
        .expect("32 bytes are within HKDF-SHA256's bound");
    out
}

/// An endpoint: what listener and dialer share.
#[derive(Clone, Debug)]
pub struct Endpoint {
    inner: quinn::Endpoint,
}

impl Endpoint {
    fn open(
        mut config: EndpointConfig,
        server: Option<quinn::ServerConfig>,
        socket: Socket,
    ) -> Result<Self, EndpointError> {
        config
            .max_udp_payload_size(MAX_MTU)
            .map_err(|error| EndpointError::Socket(io::Error::other(error.to_string())))?;
        let runtime = Arc::new(TokioRuntime);
        let inner = quinn::Endpoint::new_with_abstract_socket(config, server, socket.open()?, runtime)?;
        Ok(Self { inner })
    }

    /// The address that it is bound to.
    pub fn local_address(&self) -> Result<SocketAddr, EndpointError> {
        Ok(self.inner.local_addr()?)
    }

    /// Moves all connections to a new socket: a new source port, so a new NAT mapping. Cures a stale mapping;
    /// does not cure a sender whose congestion window is full (its poke is not sent either).
    pub fn rebind(&self, socket: Socket) -> Result<(), EndpointError> {
        self.inner.rebind_abstract(socket.open()?)?;
        Ok(())
    }

    /// Closes all connections with one code, then waits until the last packets are out, at most
    /// [`timing::WAIT_IDLE`].
    pub async fn close(&self, code: CloseCode, reason: &str) {
        self.inner.close(varint(code), reason.as_bytes());
        // Past the bound the peers' idle timeout does the rest.
        let _ = tokio::time::timeout(timing::WAIT_IDLE, self.inner.wait_idle()).await;
    }

    /// Open connections, handshakes included.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.inner.open_connections()
    }
}

/// A gateway's side.
#[derive(Clone, Debug)]
pub struct Listener {
    endpoint: Endpoint,
}

impl Listener {
    /// Listens on `socket`. Bind one listener for IPv4 and one for IPv6: on a dual-stack socket quinn takes every
    /// port change of an IPv4 peer for a new path and forgets what it measured.
    pub fn bind(
        socket: Socket,
        tls: rustls::ServerConfig,
        keys: &ServerKeys,
        profile: Profile,
    ) -> Result<Self, EndpointError> {
        let crypto =
            QuicServerConfig::try_from(tls).map_err(|error| EndpointError::Tls(error.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let token_prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"").extract(&keys.token);
        config
            .transport_config(profile.transport())
            .migration(true)
            .token_key(Arc::new(token_prk))
            .max_incoming(MAX_INCOMING)
            .incoming_buffer_size(INCOMING_BUFFER);
        let mut endpoint =
            EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &keys.reset)));
        let connection_id = keys.connection_id;
        endpoint
            .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(connection_id)))
            .min_reset_interval(MIN_RESET_INTERVAL);
        Ok(Self { endpoint: Endpoint::open(endpoint, Some(config), socket)? })
    }

    /// The next handshake; `None` when the endpoint is closed. Every one must be disposed of.
    pub async fn accept(&self) -> Option<Incoming> {
        self.endpoint.inner.accept().await.map(|inner| Incoming { inner })
    }

    /// The endpoint under it.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

/// A handshake that has not been answered yet.
#[derive(Debug)]
pub struct Incoming {
    inner: quinn::Incoming,
}

impl Incoming {
    /// Whence it claims to come.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// True: the peer has proven that it receives at that address (a token of ours came back).
    #[must_use]
    pub fn address_validated(&self) -> bool {
        self.inner.remote_address_validated()
    }

    /// Goes on with the handshake, to its end or for [`timing::DIAL_TIMEOUT`].
    pub async fn accept(self) -> Result<Connection, Lost> {
        let connecting = self.inner.accept()?;
        match tokio::time::timeout(timing::DIAL_TIMEOUT, connecting).await {
            Ok(connection) => Ok(Connection::new(connection?)),
            Err(_) => Err(Lost::TimedOut),
        }
    }

    /// Asks the peer to prove its address first: costs it a round trip, and us nothing.
    pub fn retry(self) {
        // An error means that it has proven it already: then this is a refusal.
        if let Err(error) = self.inner.retry() {
            error.into_incoming().refuse();
        }
    }

    /// Says no.
    pub fn refuse(self) {
        self.inner.refuse();
    }

    /// Says nothing: the peer tries again later. Cheapest.
    pub fn ignore(self) {
        self.inner.ignore();
    }
}

/// A supervisor's side.
#[derive(Clone)]
pub struct Dialer {
    endpoint: Endpoint,
    crypto: Arc<QuicClientConfig>,
    profile: Profile,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer")
            .field("endpoint", &self.endpoint)
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// Dials from `socket`.
    pub fn bind(socket: Socket, tls: rustls::ClientConfig, profile: Profile) -> Result<Self, EndpointError> {
        let crypto =
            QuicClientConfig::try_from(tls).map_err(|error| EndpointError::Tls(error.to_string()))?;
        let endpoint = Endpoint::open(EndpointConfig::default(), None, socket)?;
        Ok(Self { endpoint, crypto: Arc::new(crypto), profile })
    }

    /// Dials `address` and waits for the handshake, at most [`timing::DIAL_TIMEOUT`]. The peer's certificate must
    /// carry `server_name`.
    pub async fn dial(&self, address: SocketAddr, server_name: &str) -> Result<Connection, DialError> {
        let mut config = quinn::ClientConfig::new(Arc::clone(&self.crypto) as _);
        let profile = Profile { near: is_near(address.ip()), ..self.profile };
        config.transport_config(profile.transport());
        let connecting = self
            .endpoint
            .inner
            .connect_with(config, address, server_name)
            .map_err(|error| EndpointError::Dial { address, reason: error.to_string() })?;
        match tokio::time::timeout(timing::DIAL_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(Connection::new(connection)),
            Ok(Err(error)) => Err(DialError::Lost(error.into())),
            Err(_) => Err(DialError::Timeout),
        }
    }

    /// The endpoint under it.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

/// A dial that did not become a connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// It could not even begin.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The handshake failed.
    #[error("the handshake failed: {0}")]
    Lost(Lost),
    /// Nobody answered in time.
    #[error("no answer within {:?}", timing::DIAL_TIMEOUT)]
    Timeout,
}

fn bind(address: SocketAddr) -> Result<std::net::UdpSocket, EndpointError> {
    let attempt = || {
        let domain = if address.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // The kernel clamps these; a small buffer is no error.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        socket.bind(&address.into())?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    attempt().map_err(|source| EndpointError::Bind { address, source })
}
