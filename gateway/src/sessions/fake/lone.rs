//! Sessions without a task and without a supervisor's words: for tests of whoever keeps sessions.
//!
//! All of them share one real connection in memory, which nobody closes: the end of such a session is what the
//! gateway says of it.

use std::{sync::Arc, time::Duration};

use holdfast_certs::{CertificateAuthority, Identity, TrustDomain, tls};
use holdfast_wire::{
    ALPN,
    control::Down,
    ids::{Epoch, SandboxId},
    transport::{Connection, Dialer, Listener, Profile, Role, ServerKeys},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::FakeWire;
use crate::{
    sandboxes::Activity,
    sessions::{Hello, Session},
};

/// Makes sessions.
#[derive(Debug)]
pub(crate) struct FakeSessions {
    connection: Connection,
    _other_end: Connection,
    _dialer: Dialer,
    _listener: Listener,
}

impl FakeSessions {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority =
            CertificateAuthority::open_or_create(directory.path(), TrustDomain::default()).unwrap();
        let issue = |identity: &Identity| {
            let issued = authority.issue(identity, Duration::from_secs(3600), &[]).unwrap();
            issued.into_bundle(authority.anchors()).unwrap()
        };
        let (gateway, supervisor) =
            (issue(&Identity::gateway("gw").unwrap()), issue(&Identity::sandbox(SandboxId::random().0)));
        let wire = FakeWire::default();
        let ((address, door), (_, socket)) = (wire.socket(), wire.socket());
        let live = tls::LiveIdentity::new(&gateway);
        let policy = Arc::new(tls::NothingRefused);
        let config = tls::gateway_quic_server_config(&live, gateway.anchors(), policy, &[ALPN]).unwrap();
        let keys = ServerKeys::derive(&[7; 32]);
        let listener = Listener::bind(door, config, &keys, Profile::new(Role::Gateway)).unwrap();
        let live = tls::LiveIdentity::new(&supervisor);
        let config = tls::supervisor_client_config(&live, supervisor.anchors(), &[ALPN]).unwrap();
        let dialer = Dialer::bind(socket, config, Profile::new(Role::Supervisor)).unwrap();
        let accepted = async { listener.accept().await.unwrap().accept().await.unwrap() };
        let (connection, other_end) =
            tokio::join!(accepted, dialer.dial(address, "gateway.holdfast.internal"));
        Self { connection, _other_end: other_end.unwrap(), _dialer: dialer, _listener: listener }
    }

    /// A session, and what is sent down it.
    pub(crate) fn session(
        &self,
        sandbox: SandboxId,
        epoch: Epoch,
        hello: Hello,
    ) -> (Session, mpsc::Receiver<Down>) {
        Session::new(
            sandbox,
            epoch,
            hello,
            self.connection.clone(),
            Activity::new(Instant::now()),
            CancellationToken::new(),
        )
    }
}
