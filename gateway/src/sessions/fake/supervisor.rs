//! A supervisor that does what a test tells it, over the real wire protocol.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use holdfast_certs::{CertificateBundle, tls};
use holdfast_wire::{
    ALPN,
    api::{
        ExecEnded, ExecInfo, ExecStarted, ExecState, Exited, Outcome, OutputStream, ReadExecResponse,
        outcome::Kind,
    },
    close::CloseCode,
    control::{
        Accepted, Down, ExecAnswer, ExecReport, Health, Heartbeat, Hello, ProbeResult, Refused, RefusedCode,
        RelayHeader, RelayReply, Up, Welcome, down, exec_call, relay_header, relay_reply, up,
    },
    frame::Frame,
    ids::{ExecId, Instance, SandboxId},
    limits, spec,
    transport::{Connection, Dialer, MessageReader, Profile, Role, SendStream},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::FakeWire;

/// What the supervisor does with the next exec relay.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Starts it (unless it is there), writes this to stdout, and ends with the code.
    Finish { stdout: Bytes, code: i32 },
    /// Starts it (unless it is there), writes this to stdout, and keeps running; echoes stdin.
    Run { stdout: Bytes },
    /// Hears of it after so long, then as [`Run`](Self::Run).
    RunLate { after: Duration },
    /// Starts it, and closes the connection instead of answering.
    StartAndVanish,
    /// Starts it, and never answers.
    StartAndSaySoNever,
    /// Never hears of it, and closes the connection.
    Vanish,
    /// Says no.
    Refuse(RefusedCode),
    /// Accepts, and writes this instead of frames.
    Garbage(Bytes),
    /// Accepts, starts, and ends its stream cleanly without an outcome.
    EndWithoutOutcome,
}

/// A supervisor process. Its execs outlive its links.
#[derive(Clone, Debug)]
pub(crate) struct FakeSupervisor {
    pub(crate) sandbox: SandboxId,
    pub(crate) instance: Instance,
    wire: FakeWire,
    gateway: SocketAddr,
    identity: CertificateBundle,
    dials: Arc<Mutex<u64>>,
    work: Arc<Mutex<Work>>,
    /// Frames and calls that came.
    heard: watch::Sender<Vec<Heard>>,
}

#[derive(Debug, Default)]
struct Work {
    acts: VecDeque<Act>,
    execs: HashMap<ExecId, FakeExec>,
}

#[derive(Debug)]
struct FakeExec {
    info: ExecInfo,
    stdout: Bytes,
    /// How often a command was really begun.
    begun: usize,
}

/// What came from the gateway.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    Frame(Frame),
    Call(exec_call::Kind),
    /// A relay's stream was reset, or stopped.
    Gone(CloseCode),
    Control(down::Body),
}

/// One attached connection of it.
#[derive(Debug)]
pub(crate) struct FakeLink {
    pub(crate) connection: Connection,
    pub(crate) address: SocketAddr,
    pub(crate) welcome: Welcome,
    up: mpsc::Sender<Up>,
    _dialer: Dialer,
    _tasks: JoinSet<()>,
}

impl FakeSupervisor {
    pub(crate) fn new(
        wire: &FakeWire,
        gateway: SocketAddr,
        sandbox: SandboxId,
        identity: CertificateBundle,
    ) -> Self {
        Self {
            sandbox,
            instance: Instance::random(),
            wire: wire.clone(),
            gateway,
            identity,
            dials: Arc::default(),
            work: Arc::default(),
            heard: watch::channel(Vec::new()).0,
        }
    }

    /// Another process in the same sandbox, which knows nothing of this one's execs.
    pub(crate) fn restarted(&self) -> Self {
        Self {
            instance: Instance::random(),
            work: Arc::default(),
            heard: watch::channel(Vec::new()).0,
            ..self.clone()
        }
    }

    /// What it does with the next exec relays; without a script, an exec that exits with 0.
    pub(crate) fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.work().acts.extend(acts);
    }

    /// How much of the script has not been played.
    pub(crate) fn acts_left(&self) -> usize {
        self.work().acts.len()
    }

    /// How often the command was really begun.
    pub(crate) fn begun(&self, exec: ExecId) -> usize {
        self.work().execs.get(&exec).map_or(0, |exec| exec.begun)
    }

    /// Ends a running exec by itself, without telling anybody.
    pub(crate) fn end(&self, exec: ExecId, code: i32) -> ExecInfo {
        let mut work = self.work();
        let exec = work.execs.get_mut(&exec).unwrap();
        exec.info = ended(&exec.info, code);
        exec.info.clone()
    }

    /// Waits until the gateway has said something that `wanted` wants.
    pub(crate) async fn hears(&self, wanted: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = self.heard.subscribe();
        let all = heard.wait_for(|heard| heard.iter().any(&wanted)).await.unwrap();
        all.iter().find(|heard| wanted(heard)).unwrap().clone()
    }

    /// All that the gateway has said.
    pub(crate) fn heard_so_far(&self) -> Vec<Heard> {
        self.heard.borrow().clone()
    }

    /// A connection, and nothing said on it.
    pub(crate) async fn dial(&self) -> (Connection, SocketAddr, Dialer) {
        let (address, socket) = self.wire.socket();
        let live = tls::LiveIdentity::new(&self.identity);
        let config = tls::supervisor_client_config(&live, self.identity.anchors(), &[ALPN]).unwrap();
        let dialer = Dialer::bind(socket, config, Profile::new(Role::Supervisor)).unwrap();
        let connection = dialer.dial(self.gateway, "gateway.holdfast.internal").await.unwrap();
        (connection, address, dialer)
    }

    /// What it says first.
    pub(crate) fn hello(&self) -> Hello {
        let mut dials = self.dials.lock().unwrap();
        *dials += 1;
        Hello {
            sandbox_id: self.sandbox.to_bytes(),
            instance: self.instance.to_bytes(),
            boot_id: "boot".to_owned(),
            version: "1".to_owned(),
            workload_generation: 1,
            capabilities: vec!["exec".to_owned()],
            execs: 0,
            dial_reason: "start".to_owned(),
            away_ms: 0,
            dial: *dials,
            rebinds: 0,
        }
    }

    /// Attaches, reports its execs, and serves what comes.
    pub(crate) async fn attach(&self) -> FakeLink {
        let (connection, address, dialer) = self.dial().await;
        let (mut send, recv) = open_control(&connection, up::Body::Hello(self.hello())).await;
        let mut recv = MessageReader::new(recv);
        let down: Down = recv.message(limits::MAX_MESSAGE).await.unwrap().unwrap();
        let Some(down::Body::Welcome(welcome)) = down.body else { panic!("no Welcome but {down:?}") };
        let execs = self.work().execs.values().map(|exec| exec.info.clone()).collect();
        let report = Up { body: Some(up::Body::Execs(ExecReport { complete: true, execs })) };
        send.send_message(&report, limits::MAX_MESSAGE).await.unwrap();
        let (up, queue) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(write(send, queue));
        tasks.spawn(self.clone().control(recv, up.clone()));
        tasks.spawn(self.clone().relays(connection.clone()));
        FakeLink { connection, address, welcome, up, _dialer: dialer, _tasks: tasks }
    }

    async fn control(self, mut recv: MessageReader, up: mpsc::Sender<Up>) {
        while let Ok(Some(Down { body: Some(body) })) = recv.message::<Down>(limits::MAX_MESSAGE).await {
            self.note(Heard::Control(body.clone()));
            let answer = match body {
                down::Body::Heartbeat(Heartbeat { seq, echo: false }) => {
                    up::Body::Heartbeat(Heartbeat { seq, echo: true })
                }
                down::Body::ProbeNow(probe) => {
                    let ok = || Some(ProbeResult { ok: true, ..ProbeResult::default() });
                    up::Body::Health(Health {
                        nonce: probe.nonce,
                        exec: ok(),
                        filesystem: ok(),
                        ..Health::default()
                    })
                }
                _ => continue,
            };
            if up.send(Up { body: Some(answer) }).await.is_err() {
                return;
            }
        }
    }

    async fn relays(self, connection: Connection) {
        let mut tasks = JoinSet::new();
        while let Ok((send, recv)) = connection.accept_bi().await {
            tasks.spawn(self.clone().relay(connection.clone(), send, MessageReader::new(recv)));
        }
    }

    async fn relay(self, connection: Connection, mut send: SendStream, mut recv: MessageReader) {
        let Ok(Some(header)) = recv.message::<RelayHeader>(limits::MAX_RELAY_HEADER).await else { return };
        match header.kind {
            Some(relay_header::Kind::Exec(exec)) => self.exec(exec, connection, send, recv).await,
            Some(relay_header::Kind::ExecCall(call)) => {
                let call = call.kind.unwrap();
                self.note(Heard::Call(call.clone()));
                match self.answer(call) {
                    Ok(answer) => {
                        accept(&mut send).await;
                        let _ = send.send_message(&answer, limits::MAX_MESSAGE).await;
                        let _ = send.finish();
                    }
                    Err(code) => refuse(&mut send, code).await,
                }
                let _ = send.stopped().await;
            }
            Some(relay_header::Kind::Files(_)) | None => {}
        }
    }

    fn answer(&self, call: exec_call::Kind) -> Result<ExecAnswer, RefusedCode> {
        let mut work = self.work();
        let id = match &call {
            exec_call::Kind::Get(id) => id,
            exec_call::Kind::Signal(call) => &call.exec_id,
            exec_call::Kind::Cancel(call) => &call.exec_id,
            exec_call::Kind::Read(call) => &call.exec_id,
            _ => {
                let execs = work.execs.values().map(|exec| exec.info.clone()).collect();
                return Ok(ExecAnswer { execs, read: None });
            }
        };
        let exec = work.execs.get_mut(&ExecId::from_slice(id).unwrap()).ok_or(RefusedCode::NotFound)?;
        let read = match &call {
            exec_call::Kind::Read(call) => {
                let data = exec.stdout.slice(usize::try_from(call.offset).unwrap()..);
                Some(ReadExecResponse { offset: call.offset, data, eof: true })
            }
            _ => None,
        };
        Ok(ExecAnswer { execs: vec![exec.info.clone()], read })
    }

    async fn exec(
        self,
        header: holdfast_wire::control::ExecRelay,
        connection: Connection,
        mut send: SendStream,
        mut recv: MessageReader,
    ) {
        let id = ExecId::from_slice(&header.exec_id).unwrap();
        let act = self.work().acts.pop_front();
        let act = act.unwrap_or(Act::Finish { stdout: Bytes::new(), code: 0 });
        match &act {
            Act::Vanish => return connection.close(CloseCode::INTERNAL, "scripted"),
            Act::Refuse(code) => {
                refuse(&mut send, *code).await;
                let _ = send.stopped().await;
                return;
            }
            Act::RunLate { after } => tokio::time::sleep(*after).await,
            _ => {}
        }
        let stdout = match &act {
            Act::Finish { stdout, .. } | Act::Run { stdout } => stdout.clone(),
            _ => Bytes::new(),
        };
        if !self.begin(id, header.start.as_ref(), stdout) {
            refuse(&mut send, RefusedCode::NotFound).await;
            let _ = send.stopped().await;
            return;
        }
        match &act {
            Act::StartAndVanish => return connection.close(CloseCode::INTERNAL, "scripted"),
            Act::StartAndSaySoNever => return std::future::pending().await,
            _ => accept(&mut send).await,
        }
        if let Act::Garbage(bytes) = &act {
            let _ = send.write(bytes.clone()).await;
            let _ = send.stopped().await;
            return;
        }
        let (info, stdout) = self.look(id);
        let started = ExecStarted { exec: Some(info), stdin_offset: 0 };
        if send.send_frame(Frame::Started(started)).await.is_err() || !header.attach {
            let _ = send.finish();
            let _ = send.stopped().await;
            return;
        }
        let rest = stdout.slice(usize::try_from(header.stdout_offset).unwrap().min(stdout.len())..);
        let _ = send.send_frame(Frame::Output(OutputStream::Stdout, rest)).await;
        match act {
            Act::EndWithoutOutcome => {
                let _ = send.finish();
                let _ = send.stopped().await;
            }
            Act::Finish { code, .. } => {
                let info = match self.look(id).0 {
                    info if info.state() == ExecState::Ended => info,
                    _ => self.end(id, code),
                };
                let ended = ExecEnded { outcome: info.outcome.clone(), exec: Some(info) };
                let _ = send.send_frame(Frame::Ended(ended)).await;
                let _ = send.finish();
                let _ = send.stopped().await;
            }
            _ => self.listen(&mut send, &mut recv).await,
        }
    }

    /// Hears what the caller says, and acknowledges stdin.
    async fn listen(&self, send: &mut SendStream, recv: &mut MessageReader) {
        loop {
            match recv.frame().await {
                Ok(Some(frame)) => {
                    if let Frame::Stdin { offset, data } = &frame {
                        let offset = offset + data.len() as u64;
                        let _ = send.send_frame(Frame::StdinAck { offset }).await;
                    }
                    self.note(Heard::Frame(frame));
                }
                Ok(None) => {
                    self.note(Heard::Gone(CloseCode::DONE));
                    let _ = send.stopped().await;
                    return;
                }
                Err(error) => return self.note(Heard::Gone(error.close_code())),
            }
        }
    }

    /// Begins the command unless it is there. False: it is not there, and nobody asked to start it.
    fn begin(&self, id: ExecId, start: Option<&holdfast_wire::api::ExecSpec>, stdout: Bytes) -> bool {
        let mut work = self.work();
        if work.execs.contains_key(&id) {
            return true;
        }
        let Some(start) = start else { return false };
        let info = ExecInfo {
            exec_id: id.to_string(),
            state: ExecState::Running.into(),
            pid: 42,
            started_at: Some(std::time::SystemTime::now().into()),
            spec_digest: spec::digest(start),
            stdout_bytes: stdout.len() as u64,
            ..ExecInfo::default()
        };
        work.execs.insert(id, FakeExec { info, stdout, begun: 1 });
        true
    }

    fn look(&self, id: ExecId) -> (ExecInfo, Bytes) {
        let work = self.work();
        let exec = &work.execs[&id];
        (exec.info.clone(), exec.stdout.clone())
    }

    fn note(&self, heard: Heard) {
        self.heard.send_modify(|all| all.push(heard));
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap()
    }
}

impl FakeLink {
    /// Says something on the control stream.
    pub(crate) async fn say(&self, body: up::Body) {
        self.up.send(Up { body: Some(body) }).await.unwrap();
    }
}

/// Opens the control stream with its first message.
pub(crate) async fn open_control(
    connection: &Connection,
    body: up::Body,
) -> (SendStream, holdfast_wire::transport::RecvStream) {
    let (mut send, recv) = connection.open_bi(holdfast_wire::timing::OPEN_TIMEOUT).await.unwrap();
    send.send_message(&Up { body: Some(body) }, limits::MAX_MESSAGE).await.unwrap();
    (send, recv)
}

async fn write(mut send: SendStream, mut queue: mpsc::Receiver<Up>) {
    while let Some(message) = queue.recv().await {
        if send.send_message(&message, limits::MAX_MESSAGE).await.is_err() {
            return;
        }
    }
}

async fn accept(send: &mut SendStream) {
    let reply = RelayReply { kind: Some(relay_reply::Kind::Accepted(Accepted {})) };
    let _ = send.send_message(&reply, limits::MAX_MESSAGE).await;
}

async fn refuse(send: &mut SendStream, code: RefusedCode) {
    let refused = Refused { code: code.into(), message: "scripted".to_owned() };
    let reply = RelayReply { kind: Some(relay_reply::Kind::Refused(refused)) };
    let _ = send.send_message(&reply, limits::MAX_MESSAGE).await;
    let _ = send.finish();
}

fn ended(info: &ExecInfo, code: i32) -> ExecInfo {
    ExecInfo {
        state: ExecState::Ended.into(),
        outcome: Some(Outcome { kind: Some(Kind::Exited(Exited { code })) }),
        ended_at: Some(std::time::SystemTime::now().into()),
        ..info.clone()
    }
}
