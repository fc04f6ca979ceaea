//! The room as a gateway sees it: real processes and scripted ones, relays over a real QUIC pair on loopback.

mod processes;
mod recovery;
mod relays;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use holdfast_wire::{
    ALPN,
    api::{
        Argv, EnvVar, ExecEnded, ExecSpec, ExecStarted, Outcome, OutputStream, exec_spec::Command,
        outcome::Kind,
    },
    bootstrap::SpoolLimits,
    control::{
        ExecAnswer, ExecCall, ExecRelay, Refused, RelayHeader, RelayReply, exec_call, relay_header,
        relay_reply,
    },
    frame::Frame,
    ids::{ExecId, RelayId, SandboxId},
    limits::{MAX_MESSAGE, MAX_RELAY_HEADER},
    transport::{
        Connection, Dialer, Listener, MessageReader, Profile, Role, SendStream, ServerKeys, Socket,
        StreamError,
    },
};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Execs, ExecsConfig,
    spawn::{FakeSpawner, RealSpawner, Spawner},
};

/// Execs in a directory of their own, with a gateway's connection to them.
struct Lab {
    execs: Execs,
    gateway: Connection,
    dir: Arc<tempfile::TempDir>,
    supervisor: Connection,
    _tasks: JoinSet<()>,
    _token: DropGuard,
}

fn config(dir: &tempfile::TempDir, spawner: Arc<dyn Spawner>) -> ExecsConfig {
    let workspace = dir.path().join("workspace");
    std::fs::create_dir_all(&workspace).unwrap();
    ExecsConfig {
        state_dir: dir.path().join("state"),
        workspace,
        spool: SpoolLimits::default(),
        base_env: vec![("LAB".into(), "yes".into())],
        default_user: None,
        max_execs: 64,
        spawner,
        sandbox_id: SandboxId::random(),
        probe: vec!["/bin/echo".into()],
    }
}

impl Lab {
    async fn real() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut ExecsConfig)) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut config = config(&dir, Arc::new(RealSpawner::new()));
        change(&mut config);
        Self::over(dir, config).await
    }

    async fn over(dir: Arc<tempfile::TempDir>, config: ExecsConfig) -> Self {
        let token = CancellationToken::new();
        let execs = Execs::open(config, token.clone()).await.unwrap();
        let (gateway, supervisor, mut tasks) = connect().await;
        let (served, accepting) = (execs.clone(), supervisor.clone());
        tasks.spawn(async move {
            let mut relays = JoinSet::new();
            while let Ok((send, recv)) = accepting.accept_bi().await {
                relays.spawn(serve(served.clone(), send, MessageReader::new(recv)));
            }
            // As the link does: the session is lost, and so are its relays.
        });
        Self { execs, gateway, dir, supervisor, _tasks: tasks, _token: token.drop_guard() }
    }

    async fn relay(&self, request: ExecRelay) -> Caller {
        self.try_relay(request).await.expect("accepted")
    }

    async fn try_relay(&self, request: ExecRelay) -> Result<Caller, Refused> {
        self.open(relay_header::Kind::Exec(request)).await
    }

    async fn open(&self, kind: relay_header::Kind) -> Result<Caller, Refused> {
        let (mut send, recv) = self.gateway.open_bi(Duration::from_secs(5)).await.unwrap();
        let header = RelayHeader {
            relay_id: RelayId::random().to_bytes(),
            kind: Some(kind),
            ..RelayHeader::default()
        };
        send.send_message(&header, MAX_RELAY_HEADER).await.unwrap();
        let mut recv = MessageReader::new(recv);
        let reply: RelayReply = recv.message(MAX_MESSAGE).await.unwrap().unwrap();
        match reply.kind.unwrap() {
            relay_reply::Kind::Accepted(_) => Ok(Caller { send, recv }),
            relay_reply::Kind::Refused(refused) => Err(refused),
        }
    }

    async fn call(&self, kind: exec_call::Kind) -> Result<ExecAnswer, Refused> {
        let call = ExecCall { kind: Some(kind) };
        let mut caller = self.open(relay_header::Kind::ExecCall(call)).await?;
        Ok(caller.recv.message(MAX_MESSAGE).await.unwrap().unwrap())
    }

    /// Starts, attaches, and reads to the end.
    async fn run(&self, spec: ExecSpec) -> Report {
        self.relay(start(ExecId::random(), spec)).await.finish().await
    }
}

async fn serve(execs: Execs, send: SendStream, mut recv: MessageReader) {
    let Ok(Some(header)) = recv.message::<RelayHeader>(MAX_RELAY_HEADER).await else { return };
    match header.kind {
        Some(relay_header::Kind::Exec(request)) => execs.serve_relay(request, send, recv).await,
        Some(relay_header::Kind::ExecCall(call)) => execs.serve_call(call, send, recv).await,
        Some(relay_header::Kind::Files(_)) | None => {}
    }
}

/// A gateway's and a supervisor's end of one connection; the tasks hold the endpoints.
async fn connect() -> (Connection, Connection, JoinSet<()>) {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let cert = key.cert.der().clone();
    let secret = rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    let mut server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], secret)
        .unwrap();
    server.alpn_protocols = vec![ALPN.to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).unwrap();
    let mut client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];
    let loopback = || Socket::Bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    let keys = ServerKeys::derive(&[7; 32]);
    let listener = Listener::bind(loopback(), server, &keys, Profile::new(Role::Gateway)).unwrap();
    let dialer = Dialer::bind(loopback(), client, Profile::new(Role::Supervisor)).unwrap();
    let address = listener.endpoint().local_address().unwrap();
    let accept = async { listener.accept().await.unwrap().accept().await.unwrap() };
    let (gateway, supervisor) = tokio::join!(accept, dialer.dial(address, "localhost"));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _held = (listener, dialer);
        std::future::pending::<()>().await;
    });
    (gateway, supervisor.unwrap(), tasks)
}

/// A gateway's side of one relay.
struct Caller {
    send: SendStream,
    recv: MessageReader,
}

/// All that a relay told.
#[derive(Debug, Default)]
struct Report {
    started: Option<ExecStarted>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    gaps: Vec<(OutputStream, u64, u64)>,
    stdin_ack: u64,
    ended: Option<ExecEnded>,
}

impl Report {
    fn outcome(&self) -> Kind {
        self.ended.as_ref().expect("an outcome").outcome.clone().unwrap().kind.unwrap()
    }

    fn code(&self) -> i32 {
        match self.outcome() {
            Kind::Exited(exited) => exited.code,
            other => panic!("{other:?}, stderr {:?}", self.stderr()),
        }
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Caller {
    async fn send(&mut self, frame: Frame) {
        self.send.send_frame(frame).await.unwrap();
    }

    async fn stdin(&mut self, offset: u64, data: &[u8]) {
        self.send(Frame::Stdin { offset, data: Bytes::copy_from_slice(data) }).await;
    }

    async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        self.recv.frame().await
    }

    /// Reads to the end, acknowledging as it goes.
    async fn finish(&mut self) -> Report {
        let mut report = Report::default();
        let mut acknowledged = 0;
        while let Some(frame) = self.next().await.expect("a stream that ends well") {
            assert!(report.ended.is_none(), "{frame:?} after the outcome");
            report.take(frame);
            let taken = (report.stdout.len() + report.stderr.len()) as u64;
            if taken - acknowledged >= holdfast_wire::limits::ACK_EVERY {
                acknowledged = taken;
                let (stdout, stderr) = (report.stdout.len() as u64, report.stderr.len() as u64);
                // The exec may have ended, and the relay with it.
                let _ = self.send.send_frame(Frame::Ack { stdout, stderr }).await;
            }
        }
        assert!(report.ended.is_some(), "the stream ended without an outcome");
        report
    }

    /// Reads until stdout holds `text`.
    async fn until_stdout(&mut self, text: &str) -> Report {
        let mut report = Report::default();
        while !report.stdout().contains(text) {
            report.take(self.next().await.unwrap().expect("more output"));
        }
        report
    }
}

impl Report {
    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Started(started) => {
                assert!(self.stdout.is_empty() && self.stderr.is_empty() && self.started.is_none());
                self.started = Some(started);
            }
            Frame::Output(OutputStream::Stderr, data) => self.stderr.extend_from_slice(&data),
            Frame::Output(_, data) => self.stdout.extend_from_slice(&data),
            Frame::Gap { stream, from, to } => self.gaps.push((stream, from, to)),
            Frame::StdinAck { offset } => self.stdin_ack = offset,
            Frame::Ended(ended) => self.ended = Some(ended),
            other => panic!("a supervisor never sends {other:?}"),
        }
    }
}

fn start(id: ExecId, spec: ExecSpec) -> ExecRelay {
    ExecRelay {
        exec_id: id.to_bytes(),
        start: Some(spec),
        attach: true,
        stdin_writer: true,
        ..ExecRelay::default()
    }
}

fn attach(id: ExecId, stdout_offset: u64) -> ExecRelay {
    ExecRelay {
        exec_id: id.to_bytes(),
        attach: true,
        stdin_writer: true,
        stdout_offset,
        ..ExecRelay::default()
    }
}

fn argv(args: &[&str]) -> ExecSpec {
    let args = args.iter().map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect();
    ExecSpec { command: Some(Command::Argv(Argv { args })), ..ExecSpec::default() }
}

fn shell(line: &str) -> ExecSpec {
    ExecSpec { command: Some(Command::Shell(Bytes::copy_from_slice(line.as_bytes()))), ..ExecSpec::default() }
}

fn seconds(n: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: n, nanos: 0 })
}

fn millis(n: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: i64::from(n / 1000), nanos: n % 1000 * 1_000_000 })
}

#[expect(clippy::print_stdout, reason = "a test that checks nothing says so")]
fn skipped(why: &str) {
    println!("skipped: {why}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Waits until no process carries the marker of this exec, which `/proc` alone can tell.
async fn nothing_left(id: ExecId) {
    let marker = format!("HOLDFAST_EXEC_ID={id}");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let alive: Vec<String> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environ.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
            })
            .map(|pid| pid.to_string())
            .collect();
        if alive.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "still alive: {alive:?}");
        // The kernel tells nobody but the parent of a process's end.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
