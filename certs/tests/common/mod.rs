//! What the tests of this crate share: an authority in a directory of its own, a clock that is set by
//! hand, and a handshake in memory.

// Each test binary compiles this file and uses its own part of it.
#![allow(dead_code)]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_certs::tls::{LiveIdentity, RevocationPolicy};
use holdfast_certs::{
    CertificateAuthority, CertificateBundle, CertificateFacts, Fingerprint, Identity, TrustAnchors,
    TrustDomain, tls,
};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) const ALPN: &[u8] = b"holdfast/1";
pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);

/// One installation: an authority and a gateway.
pub(crate) struct Installation {
    pub(crate) directory: TempDir,
    pub(crate) authority: CertificateAuthority,
    pub(crate) gateway: Arc<LiveIdentity>,
}

impl Installation {
    pub(crate) fn new() -> Self {
        Self::of(TrustDomain::default())
    }

    pub(crate) fn of(trust_domain: TrustDomain) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority =
            CertificateAuthority::open_or_create(&directory.path().join("ca"), trust_domain).unwrap();
        let gateway = Identity::gateway("gw-1").unwrap();
        let gateway = authority.issue(&gateway, 24 * HOUR, &[]).unwrap();
        let gateway = LiveIdentity::new(&gateway.into_bundle(authority.anchors()).unwrap());
        Self { directory, authority, gateway }
    }

    pub(crate) fn anchors(&self) -> &TrustAnchors {
        self.authority.anchors()
    }

    pub(crate) fn bundle(&self, identity: &Identity) -> CertificateBundle {
        self.authority.issue(identity, HOUR, &[]).unwrap().into_bundle(self.anchors()).unwrap()
    }

    /// A bundle that ran out an hour ago.
    pub(crate) fn expired_bundle(&self, identity: &Identity) -> CertificateBundle {
        let two_hours_ago = SystemTime::now() - 2 * HOUR;
        let issued = self.authority.issue_at(two_hours_ago, identity, HOUR, &[]).unwrap();
        issued.into_bundle(self.anchors()).unwrap()
    }

    pub(crate) fn quic_server(&self, policy: impl RevocationPolicy + 'static) -> ServerConfig {
        tls::gateway_quic_server_config(&self.gateway, self.anchors(), Arc::new(policy), &[ALPN]).unwrap()
    }

    pub(crate) fn api_server(&self, client_auth_optional: bool) -> ServerConfig {
        let policy = Arc::new(tls::NothingRefused);
        tls::api_server_config(&self.gateway, self.anchors(), policy, client_auth_optional).unwrap()
    }
}

pub(crate) fn supervisor(bundle: &CertificateBundle) -> ClientConfig {
    let identity = LiveIdentity::new(bundle);
    tls::supervisor_client_config(&identity, bundle.anchors(), &[ALPN]).unwrap()
}

pub(crate) fn api_client(bundle: &CertificateBundle) -> ClientConfig {
    tls::api_client_config(Some(&LiveIdentity::new(bundle)), bundle.anchors()).unwrap()
}

pub(crate) fn some_sandbox() -> Identity {
    Identity::sandbox(Uuid::new_v4())
}

/// A clock for rustls that stands still.
#[derive(Debug)]
pub(crate) struct FakeClock(pub(crate) SystemTime);

impl TimeProvider for FakeClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.duration_since(UNIX_EPOCH).unwrap()))
    }
}

/// How a handshake ended on both sides.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// Whom the server has seen (nobody, if the client showed no certificate), or why it refused.
    pub(crate) server: Result<Option<CertificateFacts>, rustls::Error>,
    /// Which certificate the client has seen, or why it gave up.
    pub(crate) client: Result<Fingerprint, rustls::Error>,
    pub(crate) kind: Option<HandshakeKind>,
    pub(crate) tickets: u32,
    pub(crate) alpn: Option<Vec<u8>>,
}

impl Handshake {
    /// The facts of a client that was let in.
    pub(crate) fn admitted(self) -> CertificateFacts {
        self.client.expect("the client is content");
        self.server.expect("the server is content").expect("the client has shown a certificate")
    }

    /// The alert with which the server refused the client, as the client has seen it.
    pub(crate) fn alert(self) -> rustls::AlertDescription {
        self.server.expect_err("the server refuses");
        match self.client.expect_err("the client is told") {
            rustls::Error::AlertReceived(alert) => alert,
            other => panic!("no alert, but {other}"),
        }
    }
}

/// A whole TLS handshake in memory, with the gateway's name of the default trust domain.
pub(crate) fn handshake(server: &ServerConfig, client: &ClientConfig) -> Handshake {
    handshake_with(&Arc::new(server.clone()), &Arc::new(client.clone()))
}

pub(crate) fn handshake_with(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Handshake {
    let name = TrustDomain::default().gateway_server_name();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let mut client_ended = Ok(());
    let mut server_ended = Ok(());
    let mut buffer = Vec::new();
    // Each round carries what either side has to say; a handshake is over when both are silent.
    loop {
        let mut moved = false;
        while client.wants_write() {
            client.write_tls(&mut buffer).unwrap();
        }
        if !buffer.is_empty() && server_ended.is_ok() {
            moved = true;
            let mut unread = buffer.as_slice();
            while !unread.is_empty() && server_ended.is_ok() {
                server.read_tls(&mut unread).unwrap();
                server_ended = server.process_new_packets().map(drop);
            }
        }
        buffer.clear();
        while server.wants_write() {
            server.write_tls(&mut buffer).unwrap();
        }
        if !buffer.is_empty() && client_ended.is_ok() {
            moved = true;
            let mut unread = buffer.as_slice();
            while !unread.is_empty() && client_ended.is_ok() {
                client.read_tls(&mut unread).unwrap();
                client_ended = client.process_new_packets().map(drop);
            }
        }
        buffer.clear();
        if !moved {
            break;
        }
    }
    let kind = server.handshake_kind();
    let alpn = server.alpn_protocol().map(<[u8]>::to_vec);
    let tickets = client.tls13_tickets_received();
    Handshake {
        server: server_ended.map(|()| {
            assert!(!server.is_handshaking(), "the server is content but still waits");
            server.peer_certificates().map(|chain| tls::peer_facts(chain).unwrap())
        }),
        client: client_ended.map(|()| {
            assert!(!client.is_handshaking(), "the client is content but still waits");
            Fingerprint::of(&client.peer_certificates().expect("servers always show one")[0])
        }),
        kind,
        tickets,
        alpn,
    }
}
