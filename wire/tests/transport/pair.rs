//! A gateway's listener and a supervisor's dialer on loopback, with certificates made for the test.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use holdfast_wire::{
    ALPN,
    transport::{Connection, DialError, Dialer, Listener, Profile, Role, ServerKeys, Socket},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};

pub(crate) const SERVER_NAME: &str = "gateway.holdfast.internal";

/// What no test should ever wait for: a hang fails here, with a name, instead of at the runner's limit.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Awaits what must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing within {SOON:?}"),
    }
}

/// A certificate authority, and TLS for both ends by it.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn leaf(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        (vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }

    pub(crate) fn server_tls(&self) -> rustls::ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), Arc::clone(&provider));
        let (chain, key) = self.leaf(SERVER_NAME);
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls
    }

    pub(crate) fn client_tls(&self) -> rustls::ClientConfig {
        let (chain, key) = self.leaf("sandbox.test");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(chain, key)
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls
    }
}

pub(crate) fn loopback(port: u16) -> Socket {
    Socket::Bind(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// The gateway's side of the next connection, or what became of it.
pub(crate) async fn accept(listener: &Listener) -> Connection {
    soon("a handshake", async {
        let incoming = listener.accept().await.expect("the listener is open");
        incoming.accept().await.expect("the handshake")
    })
    .await
}

/// Both ends of one connection, and the endpoints that they live in.
pub(crate) struct Pair {
    pub(crate) listener: Listener,
    pub(crate) dialer: Dialer,
    pub(crate) gateway: Connection,
    pub(crate) supervisor: Connection,
}

impl Pair {
    pub(crate) async fn new() -> Self {
        let authority = Authority::new();
        let keys = ServerKeys::derive(&[1; 32]);
        let listener =
            Listener::bind(loopback(0), authority.server_tls(), &keys, Profile::new(Role::Gateway)).unwrap();
        let dialer =
            Dialer::bind(loopback(0), authority.client_tls(), Profile::new(Role::Supervisor)).unwrap();
        let address = listener.endpoint().local_address().unwrap();
        let (supervisor, gateway) =
            tokio::join!(soon("the dial", dialer.dial(address, SERVER_NAME)), accept(&listener));
        Self { listener, dialer, gateway, supervisor: supervisor.unwrap() }
    }
}

/// Dials a listener that lets everybody finish the handshake, or not.
pub(crate) async fn dial(
    tls: rustls::ClientConfig,
    listener: &Listener,
    name: &str,
) -> Result<Connection, DialError> {
    let dialer = Dialer::bind(loopback(0), tls, Profile::new(Role::Supervisor)).unwrap();
    let address = listener.endpoint().local_address().unwrap();
    soon("the dial", dialer.dial(address, name)).await
}
