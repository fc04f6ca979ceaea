//! What the link is tested against: a gateway that speaks the protocol and nothing else, work without processes,
//! and a NAT between the two that can go wrong.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_certs::{
    BundleFiles, CertificateAuthority, Identity as Holder, TrustDomain,
    tls::{self, LiveIdentity, NothingRefused},
};
use holdfast_wire::{
    ALPN,
    api::ExecInfo,
    bootstrap::IdentityFiles,
    close::CloseCode,
    control::{
        Accepted, Certificate, Down, ExecCall, ExecRelay, FilesRelay, Health, Hello, ProbeResult, Refuse,
        RelayHeader, RelayReply, Settings, Up, Welcome, down, relay_header, relay_reply, up,
    },
    ids::{Generation, Instance, RelayId, SandboxId, SessionId},
    limits,
    timing::Tuning,
    transport::{Connection, Listener, MessageReader, Profile, Role, SendStream, ServerKeys, Socket},
};
use tempfile::TempDir;
use tokio::{net::UdpSocket, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    identity::Identity,
    link::{Link, Notices, Route, Routes, Seams, Target},
    work::Work,
};

/// Everything that a test awaits comes in milliseconds; this is for a machine that is busy with other things.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Awaits what must come.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// One installation with one sandbox.
#[derive(Debug)]
pub(super) struct World {
    pub(super) directory: TempDir,
    pub(super) authority: CertificateAuthority,
    pub(super) sandbox: SandboxId,
    pub(super) work: Arc<FakeWork>,
}

impl World {
    /// With a certificate for an hour.
    pub(super) fn new() -> Self {
        let world = Self::bare();
        world.certify(SystemTime::now(), Duration::from_secs(3600));
        world
    }

    pub(super) fn bare() -> Self {
        // For whoever looks into a failure with RUST_LOG; only the first test of a process gets to set it.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let directory = tempfile::tempdir().unwrap();
        let authority =
            CertificateAuthority::open_or_create(&directory.path().join("ca"), TrustDomain::default())
                .unwrap();
        Self { directory, authority, sandbox: SandboxId::random(), work: Arc::new(FakeWork::default()) }
    }

    pub(super) fn holder(&self) -> Holder {
        Holder::sandbox(self.sandbox.0)
    }

    /// Gives the sandbox a certificate.
    pub(super) fn certify(&self, from: SystemTime, life: Duration) {
        let issued = self.authority.issue_at(from, &self.holder(), life, &[]).unwrap();
        self.files().write(&issued.into_bundle(self.authority.anchors()).unwrap()).unwrap();
    }

    pub(super) fn files(&self) -> BundleFiles {
        BundleFiles::within(&self.directory.path().join("identity"))
    }

    pub(super) fn identity(&self) -> Identity {
        let BundleFiles { certificate, key, ca } = self.files();
        Identity::load(&IdentityFiles { cert: certificate, key, ca }, self.sandbox).unwrap()
    }

    pub(super) fn target(&self, addresses: &[SocketAddr]) -> Target {
        Target {
            sandbox: self.sandbox,
            generation: Generation(3),
            instance: Instance::random(),
            boot_id: "a boot".to_owned(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            server_name: TrustDomain::default().gateway_dns_name(),
        }
    }

    /// A link to `addresses`, on the machine as it is but for its clocks, which no test moves.
    pub(super) fn link(&self, addresses: &[SocketAddr]) -> Link {
        self.link_with(addresses, |_| {})
    }

    pub(super) fn link_with(&self, addresses: &[SocketAddr], change: impl FnOnce(&mut Seams)) -> Link {
        let mut seams = Seams { clocks: None, routes: None, seed: 7, ..Seams::system() };
        change(&mut seams);
        let work = Arc::clone(&self.work) as Arc<dyn Work>;
        Link::start(self.target(addresses), self.identity(), work, seams, &CancellationToken::new())
    }

    pub(super) fn gateway(&self) -> FakeGateway {
        FakeGateway::listen(&self.authority, self.directory.path())
    }
}

/// Listens and hands out what dials in, after the handshake and the Hello.
#[derive(Debug)]
pub(super) struct FakeGateway {
    pub(super) listener: Listener,
    pub(super) address: SocketAddr,
}

impl FakeGateway {
    fn listen(authority: &CertificateAuthority, _directory: &Path) -> Self {
        let issued =
            authority.issue(&Holder::gateway("gw-1").unwrap(), Duration::from_secs(3600), &[]).unwrap();
        let identity = LiveIdentity::new(&issued.into_bundle(authority.anchors()).unwrap());
        let tls = tls::gateway_quic_server_config(
            &identity,
            authority.anchors(),
            Arc::new(NothingRefused),
            &[ALPN],
        )
        .unwrap();
        let socket = Socket::Bind("127.0.0.1:0".parse().unwrap());
        let listener =
            Listener::bind(socket, tls, &ServerKeys::derive(&[9; 32]), Profile::new(Role::Gateway)).unwrap();
        let address = listener.endpoint().local_address().unwrap();
        Self { listener, address }
    }

    /// The next connection that says Hello.
    pub(super) async fn accept(&self) -> FakeSession {
        soon("a Hello", async {
            loop {
                let incoming = self.listener.accept().await.expect("the endpoint is open");
                // A dial that was given up in the handshake is none.
                let Ok(connection) = incoming.accept().await else { continue };
                let Ok((send, recv)) = connection.accept_bi().await else { continue };
                let mut recv = MessageReader::new(recv);
                let Ok(Some(Up { body: Some(up::Body::Hello(hello)) })) =
                    recv.message(limits::MAX_MESSAGE).await
                else {
                    panic!("the first message is the Hello")
                };
                return FakeSession { connection, send, recv, hello };
            }
        })
        .await
    }

    /// The next connection, welcomed with `epoch`.
    pub(super) async fn welcome(&self, epoch: u64) -> FakeSession {
        let mut session = self.accept().await;
        session.welcome(epoch).await;
        session
    }

    /// Waits `for_long` for a dial that must not come.
    pub(super) async fn hears_nothing(&self, for_long: Duration) {
        if let Ok(Some(incoming)) = tokio::time::timeout(for_long, self.listener.accept()).await {
            panic!("{} dialled", incoming.remote_address());
        }
    }
}

/// One connection of a supervisor, from the other side.
#[derive(Debug)]
pub(super) struct FakeSession {
    pub(super) connection: Connection,
    pub(super) send: SendStream,
    pub(super) recv: MessageReader,
    pub(super) hello: Hello,
}

/// Quicker than a gateway's, so that tests are.
pub(super) fn settings() -> Settings {
    Tuning { probe_every: Duration::from_millis(200), ..Tuning::default() }.to_settings()
}

impl FakeSession {
    pub(super) async fn down(&mut self, body: down::Body) {
        self.send.send_message(&Down { body: Some(body) }, limits::MAX_MESSAGE).await.unwrap();
    }

    pub(super) async fn welcome(&mut self, epoch: u64) {
        let welcome = Welcome {
            session_id: SessionId::random().to_bytes(),
            epoch,
            settings: Some(settings()),
            gateway_version: "test".to_owned(),
            gateway_name: "gw-1".to_owned(),
        };
        self.down(down::Body::Welcome(welcome)).await;
    }

    pub(super) async fn refuse(&mut self, code: holdfast_wire::control::RefuseCode, retry_after_ms: u64) {
        let refuse = Refuse { code: code.into(), reason: "a test".to_owned(), retry_after_ms };
        self.down(down::Body::Refuse(refuse)).await;
    }

    /// The next message that `wanted` takes. Heartbeats are answered on the way, as a gateway does.
    pub(super) async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(up::Body) -> Option<T>) -> T {
        soon(what, async {
            loop {
                let message: Option<Up> = self.recv.message(limits::MAX_MESSAGE).await.unwrap();
                let body = message.and_then(|message| message.body).expect("the stream goes on");
                if let up::Body::Heartbeat(beat) = &body
                    && !beat.echo
                {
                    let echo = holdfast_wire::control::Heartbeat { seq: beat.seq, echo: true };
                    self.down(down::Body::Heartbeat(echo)).await;
                }
                if let Some(taken) = wanted(body) {
                    return taken;
                }
            }
        })
        .await
    }

    pub(super) async fn health(&mut self, nonce: u64) -> Health {
        self.until("Health", |body| match body {
            up::Body::Health(health) if health.nonce == nonce => Some(health),
            _ => None,
        })
        .await
    }

    /// Signs the request that comes next, for `life`, and answers with the certificate.
    pub(super) async fn certify(&mut self, world: &World, life: Duration) {
        let csr = self
            .until("a CertificateRequest", |body| match body {
                up::Body::CertificateRequest(request) => Some(request.csr),
                _ => None,
            })
            .await;
        let signed = world.authority.sign_csr(&csr, &world.holder(), life).unwrap();
        self.down(down::Body::Certificate(Certificate {
            chain: signed.cert_chain_pem,
            error: String::new(),
        }))
        .await;
    }

    /// Opens a relay of `kind`; the streams after the reply.
    pub(super) async fn relay(
        &self,
        kind: Option<relay_header::Kind>,
    ) -> (SendStream, MessageReader, relay_reply::Kind) {
        let (mut send, recv) = self.connection.open_bi(PATIENCE).await.unwrap();
        let header = RelayHeader {
            relay_id: RelayId::random().to_bytes(),
            accept_within_ms: 5000,
            traceparent: String::new(),
            kind,
        };
        send.send_message(&header, limits::MAX_RELAY_HEADER).await.unwrap();
        let mut recv = MessageReader::new(recv);
        let reply: RelayReply = soon("a reply", recv.message(limits::MAX_MESSAGE)).await.unwrap().unwrap();
        (send, recv, reply.kind.unwrap())
    }

    /// An exec relay that gives back what it is sent.
    pub(super) async fn echo_relay(&self) -> (SendStream, MessageReader) {
        let kind = relay_header::Kind::Exec(ExecRelay::default());
        let (send, recv, reply) = self.relay(Some(kind)).await;
        assert!(matches!(reply, relay_reply::Kind::Accepted(_)), "{reply:?}");
        (send, recv)
    }

    pub(super) async fn close_code(&self) -> CloseCode {
        soon("a close", self.connection.closed()).await.code().expect("closed with a code")
    }
}

/// Sends `text` and waits until it came back.
pub(super) async fn echoes(send: &mut SendStream, recv: &mut MessageReader, text: &'static str) {
    send.write(Bytes::from_static(text.as_bytes())).await.unwrap();
    let mut back = Vec::new();
    while back.len() < text.len() {
        let bytes = soon("an echo", recv.bytes(64)).await.unwrap().expect("the relay goes on");
        back.extend_from_slice(&bytes);
    }
    assert_eq!(back, text.as_bytes());
}

/// Relays that echo, calls that end at once, probes that pass.
#[derive(Debug)]
pub(super) struct FakeWork {
    pub(super) execs: Mutex<Vec<ExecInfo>>,
    pub(super) revision: watch::Sender<u64>,
    pub(super) running: watch::Sender<usize>,
    pub(super) doubts: watch::Sender<u64>,
    pub(super) serving: Arc<AtomicUsize>,
    pub(super) probes: AtomicUsize,
    pub(super) max_execs: AtomicUsize,
}

/// An exec id that makes its relay panic.
pub(super) const PANIC: &[u8] = b"panic";

impl Default for FakeWork {
    fn default() -> Self {
        Self {
            execs: Mutex::default(),
            revision: watch::Sender::new(0),
            running: watch::Sender::new(0),
            doubts: watch::Sender::new(0),
            serving: Arc::default(),
            probes: AtomicUsize::new(0),
            max_execs: AtomicUsize::new(0),
        }
    }
}

impl FakeWork {
    pub(super) fn change(&self, exec_id: &str) {
        self.execs.lock().unwrap().push(ExecInfo { exec_id: exec_id.to_owned(), ..ExecInfo::default() });
        self.revision.send_modify(|revision| *revision += 1);
    }
}

struct Serving(Arc<AtomicUsize>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Work for FakeWork {
    async fn serve_relay(&self, request: ExecRelay, mut send: SendStream, mut recv: MessageReader) {
        self.serving.fetch_add(1, Ordering::SeqCst);
        let _serving = Serving(Arc::clone(&self.serving));
        assert!(request.exec_id != PANIC, "asked for by a test");
        let reply = RelayReply { kind: Some(relay_reply::Kind::Accepted(Accepted {})) };
        send.send_message(&reply, limits::MAX_MESSAGE).await.unwrap();
        while let Ok(Some(bytes)) = recv.bytes(64 * 1024).await {
            if send.write(bytes).await.is_err() {
                return;
            }
        }
        let _ = send.finish();
    }

    async fn serve_call(&self, _call: ExecCall, mut send: SendStream, _recv: MessageReader) {
        let reply = RelayReply { kind: Some(relay_reply::Kind::Accepted(Accepted {})) };
        send.send_message(&reply, limits::MAX_MESSAGE).await.unwrap();
        send.finish().unwrap();
    }

    async fn serve_files(&self, _request: FilesRelay, _send: SendStream, _recv: MessageReader) {}

    fn report(&self) -> Vec<ExecInfo> {
        self.execs.lock().unwrap().clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn changed_since(&self, revision: u64) -> (u64, Vec<ExecInfo>) {
        let execs = self.execs.lock().unwrap();
        (execs.len() as u64, execs[revision as usize..].to_vec())
    }

    fn running(&self) -> watch::Receiver<usize> {
        self.running.subscribe()
    }

    fn doubts(&self) -> watch::Receiver<u64> {
        self.doubts.subscribe()
    }

    fn set_max_execs(&self, most: usize) {
        self.max_execs.store(most, Ordering::SeqCst);
    }

    async fn probe(&self) -> Health {
        self.probes.fetch_add(1, Ordering::SeqCst);
        let result = ProbeResult { ok: true, ..ProbeResult::default() };
        Health { exec: Some(result.clone()), filesystem: Some(result), ..Health::default() }
    }
}

/// A NAT on the way to one gateway: each source gets a socket of its own, a mapping. Mappings can die: then
/// their packets vanish in both directions, silently, as in a middlebox that lost its state.
#[derive(Debug)]
pub(super) struct FakeNat {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<NatState>>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct NatState {
    mappings: HashMap<SocketAddr, Arc<UdpSocket>>,
    dead: Vec<SocketAddr>,
    /// New mappings that are born dead.
    stillborn: Stillborn,
}

/// Which flows a NAT lets nothing through of from their first packet on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stillborn {
    #[default]
    None,
    /// Those that do not begin with a QUIC handshake (a long header): a connection that moved to a new socket.
    Moved,
    All,
}

impl Stillborn {
    fn takes(self, first_packet: &[u8]) -> bool {
        let handshake = first_packet.first().is_some_and(|first| first & 0x80 != 0);
        match self {
            Self::None => false,
            Self::Moved => !handshake,
            Self::All => true,
        }
    }
}

impl FakeNat {
    pub(super) async fn towards(gateway: SocketAddr) -> Self {
        let outside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = outside.local_addr().unwrap();
        let state: Arc<Mutex<NatState>> = Arc::default();
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut returning = JoinSet::new();
            let mut buffer = vec![0; 65536];
            loop {
                let (n, source) = outside.recv_from(&mut buffer).await.unwrap();
                let known = shared.lock().unwrap().mappings.get(&source).cloned();
                let mapping = match known {
                    Some(mapping) => mapping,
                    None => {
                        let mapping = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                        mapping.connect(gateway).await.unwrap();
                        {
                            let mut state = shared.lock().unwrap();
                            state.mappings.insert(source, Arc::clone(&mapping));
                            if state.stillborn.takes(&buffer[..n]) {
                                state.dead.push(source);
                            }
                        }
                        let (back, outside, shared) =
                            (Arc::clone(&mapping), Arc::clone(&outside), Arc::clone(&shared));
                        returning.spawn(async move {
                            let mut buffer = vec![0; 65536];
                            while let Ok(n) = back.recv(&mut buffer).await {
                                if !shared.lock().unwrap().dead.contains(&source) {
                                    let _ = outside.send_to(&buffer[..n], source).await;
                                }
                            }
                        });
                        mapping
                    }
                };
                if !shared.lock().unwrap().dead.contains(&source) {
                    let _ = mapping.send(&buffer[..n]).await;
                }
            }
        });
        Self { address, state, _tasks: tasks }
    }

    /// Lets all mappings die that there are, and such new ones.
    pub(super) fn forget(&self, stillborn: Stillborn) {
        let mut state = self.state.lock().unwrap();
        let sources: Vec<SocketAddr> = state.mappings.keys().copied().collect();
        state.dead.extend(sources);
        state.stillborn = stillborn;
    }

    /// All mappings live again.
    pub(super) fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.dead.clear();
        state.stillborn = Stillborn::None;
    }
}

/// A machine whose network changes when a test says so.
#[derive(Debug)]
pub(super) struct FakeRoutes {
    way: Mutex<Option<Route>>,
    changed: tokio::sync::watch::Sender<u64>,
}

struct FakeNotices(tokio::sync::watch::Receiver<u64>);

impl FakeRoutes {
    pub(super) fn by(interface: u32) -> Self {
        Self { way: Mutex::new(Some(way(interface))), changed: tokio::sync::watch::channel(0).0 }
    }

    /// From now on the way leads there, or nowhere; told like any change.
    pub(super) fn lead_by(&self, interface: Option<u32>) {
        *self.way.lock().unwrap() = interface.map(way);
        self.changed.send_modify(|changes| *changes += 1);
    }
}

fn way(interface: u32) -> Route {
    Route { interface, gateway: None, source: None }
}

impl Routes for FakeRoutes {
    fn listen(&self) -> std::io::Result<Box<dyn Notices>> {
        Ok(Box::new(FakeNotices(self.changed.subscribe())))
    }

    fn towards(&self, _: SocketAddr) -> Option<Route> {
        self.way.lock().unwrap().clone()
    }
}

#[async_trait]
impl Notices for FakeNotices {
    async fn next(&mut self) -> std::io::Result<()> {
        self.0.changed().await.map_err(std::io::Error::other)
    }
}
