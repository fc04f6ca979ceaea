//! The baseline's gateway: listens, has its calls run by the supervisors that dial, and says what became of each.

use std::{
    collections::HashMap,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use futures::Stream;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Identity, Server, ServerTlsConfig},
};

use super::{
    CHUNK, Call, Event, KEEPALIVE, Kind, WINDOWS, distinct, is_distinct, now_ms,
    proto::{Down, Hello, Open, Up, relays_server},
};

/// Messages on their way to a supervisor.
const QUEUE: usize = 16;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves until it is killed. `tls` holds `cert.pem` and `key.pem`.
///
/// # Errors
/// It cannot listen, or its files are not there.
pub async fn serve(listen: SocketAddr, tls: &Path, calls: Vec<Call>, keepalive: bool) -> anyhow::Result<()> {
    let identity =
        Identity::from_pem(std::fs::read(tls.join("cert.pem"))?, std::fs::read(tls.join("key.pem"))?);
    let calls = calls.into_iter().map(|call| (call.call, call)).collect();
    let relays = relays_server::RelaysServer::new(Gateway {
        waiting: Arc::new(Mutex::new(calls)),
        following: TaskTracker::new(),
    });
    let mut server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))?
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    if keepalive {
        server =
            server.http2_keepalive_interval(Some(KEEPALIVE.0)).http2_keepalive_timeout(Some(KEEPALIVE.1));
    }
    let incoming = tonic::transport::server::TcpIncoming::bind(listen)
        .with_context(|| format!("listening on {listen}"))?
        .with_nodelay(Some(true));
    say(&Event::Listening);
    server.add_service(relays).serve_with_incoming(incoming).await?;
    Ok(())
}

/// A line of JSON on stdout, at once.
fn say(event: &Event) {
    let line = serde_json::to_string(event).unwrap_or_default();
    // Whoever started this has gone: then nobody asks.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

struct Gateway {
    /// Calls that no supervisor has taken yet.
    waiting: Arc<Mutex<HashMap<u64, Call>>>,
    following: TaskTracker,
}

impl Gateway {
    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Call>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl relays_server::Relays for Gateway {
    type ControlStream = Replies<Open>;
    type ExecStream = Replies<Down>;

    async fn control(&self, request: Request<Streaming<Hello>>) -> Result<Response<Replies<Open>>, Status> {
        let mut hellos = request.into_inner();
        let hello = hellos.message().await?.ok_or_else(|| Status::invalid_argument("no Hello"))?;
        let opens: Vec<_> = self
            .waiting()
            .values()
            .filter(|call| call.sandbox == hello.sandbox)
            .map(|call| Ok(Open { call: call.call, script: call.script.clone() }))
            .collect();
        // Stays open after them, as its own side does.
        let stays = futures::stream::once(async move {
            while let Ok(Some(_)) = hellos.message().await {}
            Err(Status::unavailable("the supervisor's side has ended"))
        });
        Ok(Response::new(Box::pin(futures::StreamExt::chain(futures::stream::iter(opens), stays))))
    }

    async fn exec(&self, request: Request<Streaming<Up>>) -> Result<Response<Replies<Down>>, Status> {
        let mut up = request.into_inner();
        let first = up.message().await?.ok_or_else(|| Status::invalid_argument("an empty stream"))?;
        let call = self.waiting().remove(&first.call).ok_or_else(|| Status::not_found("no such call"))?;
        let (down, downs) = mpsc::channel(QUEUE);
        // As long as the call: ends with its streams, or with the process.
        self.following.spawn(async move {
            let number = call.call;
            let mut following = Following { call, up, latest: Duration::ZERO };
            let error = following.follow(down).await.err().map(|error| format!("{error:#}"));
            let latest_ms = u64::try_from(following.latest.as_millis()).unwrap_or(u64::MAX);
            say(&Event::Ended { call: number, at_ms: now_ms(), error, latest_ms });
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(downs))))
    }
}

/// One call to its end.
struct Following {
    call: Call,
    up: Streaming<Up>,
    latest: Duration,
}

impl Following {
    async fn follow(&mut self, down: mpsc::Sender<Result<Down, Status>>) -> anyhow::Result<()> {
        match self.call.kind {
            Kind::Talk { lines, code } => {
                // Kept open: a command that reads nothing does not mind.
                let _down = down;
                self.talk(lines, code).await
            }
            Kind::Bulk { bytes } => {
                let feed = async {
                    let mut at = 0;
                    while at < bytes {
                        let length = usize::try_from(bytes - at).unwrap_or(CHUNK).min(CHUNK);
                        let message = Down { stdin: distinct(at, length), eof: false };
                        if down.send(Ok(message)).await.is_err() {
                            break;
                        }
                        at += length as u64;
                    }
                    let _ = down.send(Ok(Down { eof: true, ..Down::default() })).await;
                    // The other half tells how it ended.
                    std::future::pending().await
                };
                tokio::select! { done = self.bulk(bytes) => done, never = feed => never }
            }
        }
    }

    async fn talk(&mut self, lines: usize, code: i32) -> anyhow::Result<()> {
        let (mut heard, mut whole) = (Vec::new(), 0);
        loop {
            let message = self.up.message().await?.context("the stream ended without an exit code")?;
            heard.extend_from_slice(&message.stdout);
            let said: Vec<_> = heard.split(|&byte| byte == b'\n').skip(whole).map(<[u8]>::to_vec).collect();
            for line in &said[..said.len() - 1] {
                let text = String::from_utf8_lossy(line);
                let (number, at) = text.split_once(' ').with_context(|| format!("a strange line: {text}"))?;
                anyhow::ensure!(number.parse() == Ok(whole), "line {number} where {whole} was due");
                let late = u128::from(now_ms()).saturating_sub(at.parse::<u128>()? / 1_000_000);
                self.latest = self.latest.max(Duration::from_millis(u64::try_from(late)?));
                if whole == 0 {
                    say(&Event::Attached { call: self.call.call });
                }
                whole += 1;
            }
            if let Some(exit) = message.exit {
                anyhow::ensure!(exit == code, "exit code {exit}, not {code}");
                anyhow::ensure!(whole == lines, "{whole} lines of {lines}");
                return Ok(());
            }
        }
    }

    async fn bulk(&mut self, bytes: u64) -> anyhow::Result<()> {
        let (mut at, mut attached) = (0, false);
        let (mut last, mut told) = (Instant::now(), Instant::now());
        loop {
            let message = self.up.message().await?.context("the stream ended without an exit code")?;
            self.latest = self.latest.max(last.elapsed());
            last = Instant::now();
            anyhow::ensure!(is_distinct(at, &message.stdout), "other bytes than were sent, from {at} on");
            at += message.stdout.len() as u64;
            if at >= bytes / 8 && !attached {
                attached = true;
                say(&Event::Attached { call: self.call.call });
            }
            if told.elapsed() > Duration::from_secs(1) {
                told = last;
                say(&Event::Progress { call: self.call.call, bytes: at });
            }
            if let Some(exit) = message.exit {
                anyhow::ensure!(exit == 0 && at == bytes, "exit code {exit} after {at} bytes of {bytes}");
                return Ok(());
            }
        }
    }
}
