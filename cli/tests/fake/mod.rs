//! A gateway's exec service with one scripted command behind it, that loses its streams when told to.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::Stream;
use holdfast_wire::api::{
    self, AttachEvent, AttachRequest, Cancelled, ExecEnded, ExecInfo, ExecStarted, Exited, KeepAlive,
    Outcome, OutputData, Signaled, StdinAck, attach_event::Kind as Event, attach_request::Kind as Ask,
    execs_server::Execs, outcome,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// How a stream is lost.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// With the gateway's word.
    SessionLost,
    /// Without any: the stream just ends.
    Silently,
    /// Reset, as by a proxy.
    Reset,
    /// By a stopping gateway.
    Stopping,
}

/// What the fake does.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// What the command writes to stdout and stderr.
    pub(crate) output: [Bytes; 2],
    /// The streams are cut after about so many bytes of output each, so often.
    pub(crate) cuts: usize,
    pub(crate) cut_after: u64,
    /// The command ends once stdin has ended with so many bytes. `None`: at the end of its output.
    pub(crate) stdin: bool,
    /// The first opens are refused with this reason.
    pub(crate) refuse: Vec<&'static str>,
    /// After the output the command runs on.
    pub(crate) hang: bool,
    /// After the output the command runs on until a signal or a cancellation ends it.
    pub(crate) until_signal: bool,
    pub(crate) seed: u64,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            output: [Bytes::from_static(b"out\n"), Bytes::from_static(b"err\n")],
            cuts: 0,
            cut_after: 1000,
            stdin: false,
            refuse: vec![],
            hang: false,
            until_signal: false,
            seed: 1,
        }
    }
}

/// What the fake has seen.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) opens: usize,
    /// Opens with a start in them.
    pub(crate) starts: usize,
    pub(crate) stdin: Vec<u8>,
    pub(crate) stdin_eof: bool,
    pub(crate) signals: Vec<i32>,
    pub(crate) sizes: Vec<(u32, u32)>,
    pub(crate) acked: (u64, u64),
    pub(crate) detached: bool,
    pub(crate) cancelled: bool,
    pub(crate) tokens: Vec<String>,
    pub(crate) sent: u64,
    /// Streams that ended without a detach, seen from the gateway.
    pub(crate) dropped: usize,
}

#[derive(Debug)]
struct Inner {
    script: Script,
    record: Mutex<Record>,
    changed: watch::Sender<u64>,
    rng: Mutex<StdRng>,
    tasks: Mutex<JoinSet<()>>,
}

/// The gateway. Ends with its last clone and its server's task.
#[derive(Clone, Debug)]
pub(crate) struct FakeGateway(Arc<Inner>);

impl FakeGateway {
    pub(crate) fn new(script: Script) -> Self {
        let rng = Mutex::new(StdRng::seed_from_u64(script.seed));
        Self(Arc::new(Inner {
            script,
            record: Mutex::default(),
            changed: watch::Sender::new(0),
            rng,
            tasks: Mutex::default(),
        }))
    }

    /// Serves on a port of the system's choice.
    pub(crate) async fn serve(
        &self,
        tasks: &mut JoinSet<()>,
        tls: Option<tonic::transport::ServerTlsConfig>,
    ) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = api::execs_server::ExecsServer::new(self.clone());
        tasks.spawn(async move {
            let mut server = tonic::transport::Server::builder();
            if let Some(tls) = tls {
                server = server.tls_config(tls).unwrap();
            }
            server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        address
    }

    pub(crate) fn record<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        read(&self.0.record.lock().unwrap())
    }

    fn note<T>(&self, write: impl FnOnce(&mut Record) -> T) -> T {
        let result = write(&mut self.0.record.lock().unwrap());
        self.0.changed.send_modify(|n| *n += 1);
        result
    }

    /// Waits until the record says so.
    pub(crate) async fn until(&self, what: impl Fn(&Record) -> bool) {
        let mut changed = self.0.changed.subscribe();
        let wait = async {
            while !self.record(&what) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the fake never saw it");
    }

    fn random(&self, below: usize) -> usize {
        self.0.rng.lock().unwrap().random_range(0..below.max(1))
    }

    fn info(&self, ended: bool) -> ExecInfo {
        let [stdout, stderr] = &self.0.script.output;
        ExecInfo {
            exec_id: "x".into(),
            stdout_bytes: if ended { stdout.len() as u64 } else { 0 },
            stderr_bytes: if ended { stderr.len() as u64 } else { 0 },
            ..ExecInfo::default()
        }
    }

    async fn on_requests(
        self,
        mut requests: Streaming<AttachRequest>,
        events: mpsc::WeakSender<Result<AttachEvent, Status>>,
    ) {
        let answer = async |answer| {
            if let Some(events) = events.upgrade() {
                let _ = events.send(answer).await;
            }
        };
        loop {
            let request = requests.message().await;
            let Ok(Some(AttachRequest { kind: Some(kind) })) = request else {
                self.note(|record| record.dropped += usize::from(!record.detached));
                return;
            };
            match kind {
                Ask::Stdin(data) => {
                    let taken = self.note(|record| {
                        let offset = usize::try_from(data.offset).unwrap();
                        assert!(offset <= record.stdin.len(), "a hole in stdin");
                        let known = (record.stdin.len() - offset).min(data.data.len());
                        record.stdin.extend_from_slice(&data.data[known..]);
                        record.stdin.len() as u64
                    });
                    answer(Ok(event(Event::StdinAck(StdinAck { offset: taken })))).await;
                }
                Ask::StdinEof(eof) => self.note(|record| {
                    assert_eq!(eof.offset, record.stdin.len() as u64);
                    record.stdin_eof = true;
                }),
                Ask::Resize(size) => self.note(|record| record.sizes.push((size.cols, size.rows))),
                Ask::Signal(signal) => self.note(|record| record.signals.push(signal)),
                Ask::Ack(ack) => self.note(|record| {
                    assert!(ack.stdout_offset >= record.acked.0 && ack.stderr_offset >= record.acked.1);
                    record.acked = (ack.stdout_offset, ack.stderr_offset);
                }),
                Ask::Detach(_) => {
                    self.note(|record| record.detached = true);
                    answer(Err(Status::cancelled("detached"))).await;
                    return;
                }
                Ask::Open(_) => panic!("a second open on one stream"),
            }
        }
    }

    async fn play(self, from: [u64; 2], cut: Option<Cut>, events: mpsc::Sender<Result<AttachEvent, Status>>) {
        let stdin_offset = self.record(|record| record.stdin.len() as u64);
        let started = ExecStarted { exec: Some(self.info(false)), stdin_offset };
        if events.send(Ok(event(Event::Started(started)))).await.is_err() {
            return;
        }
        let mut at = from.map(|offset| usize::try_from(offset).unwrap());
        let mut left = cut.map(|_| self.random(2 * usize::try_from(self.0.script.cut_after).unwrap()));
        while (0..2).any(|i| at[i] < self.0.script.output[i].len()) {
            let which = self.random(2);
            let whole = &self.0.script.output[which];
            // An honest peer may repeat a little: a supervisor that reads its spool by records does.
            let from = at[which].saturating_sub(self.random(20));
            let to = (at[which] + 1 + self.random(8000)).min(whole.len());
            if at[which] >= whole.len() {
                continue;
            }
            at[which] = to;
            let data = OutputData { offset: from as u64, data: whole.slice(from..to) };
            let kind = if which == 1 { Event::Stderr(data) } else { Event::Stdout(data) };
            if events.send(Ok(event(kind))).await.is_err() {
                return;
            }
            self.note(|record| record.sent += (to - from) as u64);
            if self.random(10) == 0 {
                let _ = events.send(Ok(event(Event::KeepAlive(KeepAlive {})))).await;
            }
            if let Some(budget) = &mut left {
                *budget = budget.saturating_sub(to - from);
                if *budget == 0 {
                    break;
                }
            }
        }
        if let Some(cut) = cut {
            return match cut {
                Cut::Silently => {}
                Cut::SessionLost => drop(events.send(Err(refusal("SESSION_LOST"))).await),
                Cut::Stopping => drop(events.send(Err(refusal("GATEWAY_STOPPING"))).await),
                Cut::Reset => drop(events.send(Err(Status::unavailable("upstream reset"))).await),
            };
        }
        if self.0.script.stdin {
            self.until(|record| record.stdin_eof).await;
        }
        if self.0.script.hang {
            events.closed().await;
            return;
        }
        let mut kind = outcome::Kind::Exited(Exited { code: 7 });
        if self.0.script.until_signal {
            tokio::select! {
                () = self.until(|record| record.cancelled || !record.signals.is_empty()) => {}
                () = events.closed() => return,
            }
            kind = match self.record(|record| record.signals.first().copied()) {
                Some(signal) => outcome::Kind::Signaled(Signaled { signal, ..Signaled::default() }),
                None => outcome::Kind::Cancelled(Cancelled { by: "the test".into() }),
            };
        }
        let outcome = Outcome { kind: Some(kind) };
        let ended = ExecEnded { outcome: Some(outcome), exec: Some(self.info(true)) };
        let _ = events.send(Ok(event(Event::Ended(ended)))).await;
    }
}

fn event(kind: Event) -> AttachEvent {
    AttachEvent { kind: Some(kind) }
}

fn refusal(reason: &str) -> Status {
    let metadata: BTreeMap<_, _> = [("cause".to_owned(), "scripted".to_owned())].into();
    let details = ErrorDetails::with_error_info(
        reason,
        "holdfast",
        metadata.into_iter().collect::<std::collections::HashMap<_, _>>(),
    );
    Status::with_error_details(Code::Unavailable, "scripted", details)
}

#[tonic::async_trait]
impl Execs for FakeGateway {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachEvent, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let token =
            request.metadata().get("authorization").and_then(|value| value.to_str().ok().map(str::to_owned));
        let mut requests = request.into_inner();
        let Some(AttachRequest { kind: Some(Ask::Open(open)) }) = requests.message().await? else {
            return Err(Status::invalid_argument("no open"));
        };
        let opens = self.note(|record| {
            record.opens += 1;
            record.tokens.extend(token);
            record.starts += usize::from(open.start.is_some());
            record.opens
        });
        if let Some(reason) = self.0.script.refuse.get(opens - 1) {
            return Err(refusal(reason));
        }
        let kinds = [Cut::SessionLost, Cut::Silently, Cut::Reset, Cut::Stopping];
        let cut = (opens - self.0.script.refuse.len() <= self.0.script.cuts)
            .then(|| kinds[self.random(kinds.len())]);
        let (events, receiver) = mpsc::channel(4);
        let mut tasks = self.0.tasks.lock().unwrap();
        // The stream ends when the player drops the only strong sender.
        tasks.spawn(self.clone().on_requests(requests, events.downgrade()));
        tasks.spawn(self.clone().play([open.stdout_offset, open.stderr_offset], cut, events));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn start(
        &self,
        request: Request<api::StartExecRequest>,
    ) -> Result<Response<api::StartExecResponse>, Status> {
        let request = request.into_inner();
        let first = self.note(|record| {
            record.starts += 1;
            record.starts
        });
        if let Some(reason) = self.0.script.refuse.get(first - 1) {
            return Err(refusal(reason));
        }
        Ok(Response::new(api::StartExecResponse {
            exec: Some(ExecInfo { exec_id: request.exec_id, ..self.info(false) }),
        }))
    }
    async fn wait(
        &self,
        _: Request<api::WaitExecRequest>,
    ) -> Result<Response<api::WaitExecResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
    async fn get(&self, _: Request<api::GetExecRequest>) -> Result<Response<api::GetExecResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
    async fn list(
        &self,
        _: Request<api::ListExecsRequest>,
    ) -> Result<Response<api::ListExecsResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
    async fn read(
        &self,
        _: Request<api::ReadExecRequest>,
    ) -> Result<Response<api::ReadExecResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
    async fn signal(
        &self,
        _: Request<api::SignalExecRequest>,
    ) -> Result<Response<api::SignalExecResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
    async fn resize(
        &self,
        _: Request<api::ResizeExecRequest>,
    ) -> Result<Response<api::ResizeExecResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
    async fn cancel(
        &self,
        _: Request<api::CancelExecRequest>,
    ) -> Result<Response<api::CancelExecResponse>, Status> {
        self.note(|record| record.cancelled = true);
        Ok(Response::new(api::CancelExecResponse { exec: Some(self.info(true)) }))
    }
}
