//! One dial: names to addresses, addresses to a connection, Hello to Welcome.
//!
//! ```text
//!   addresses, in order ── each starts 250 ms after the one before, or when that one failed ──▶ first handshake wins
//!   handshake ── control stream, Hello ──▶ Welcome                   attached
//!                                      ──▶ Refuse                    not now, or never
//!                                      ──▶ Refuse CERTIFICATE_EXPIRED ── request ── certificate ──▶ dial again
//! ```
//!
//! Each handshake has an endpoint of its own: a socket of the peer's family, a port that no NAT knows yet.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use holdfast_wire::{
    VERSION,
    close::CloseCode,
    control::{self, Down, Hello, RefuseCode, Up, Welcome, down, up},
    ids::{Epoch, Generation, IdError, Instance, SandboxId, SessionId},
    limits, timing,
    timing::Tuning,
    transport::{
        Connection, DialError, Dialer, EndpointError, MessageReader, OpenError, SendStream, StreamError,
    },
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Seams,
    net::{ResolveError, addresses_of},
    state::{Failure, Order},
};
use crate::{
    control::{CONTROL_PRIORITY, Session, Tools, linger},
    identity::IdentityError,
};

/// What this supervisor can do, for gateways that must know before they ask.
const CAPABILITIES: &[&str] = &["exec", "pty", "chaos", "files"];

/// Between the starts of two attempts (RFC 8305, section 8): long enough for a near gateway to answer the first.
const STAGGER: Duration = Duration::from_millis(250);

/// Addresses of one dial, all names together: a dial has to end.
const MAX_ATTEMPTS: usize = 16;

/// Whom to dial, and who dials.
#[derive(Clone, Debug)]
pub struct Target {
    /// The sandbox that is spoken for.
    pub sandbox: SandboxId,
    /// Its workload's generation.
    pub generation: Generation,
    /// This process.
    pub instance: Instance,
    /// Of the kernel.
    pub boot_id: String,
    /// `host:port`, in order.
    pub addresses: Vec<String>,
    /// The name that the gateway's certificate must carry.
    pub server_name: String,
}

/// A dial that was welcomed.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) session: Session,
    pub(super) epoch: Epoch,
    pub(super) gateway: String,
}

/// Why a dial came to nothing, in words.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no gateway answered: {}", .0.join("; "))]
    Unreachable(Vec<String>),
    #[error("preparing TLS: {0}")]
    Tls(IdentityError),
    #[error("opening the control stream: {0}")]
    Open(#[from] OpenError),
    #[error("on the control stream: {0}")]
    Stream(#[from] StreamError),
    #[error("no {0} within {timeout:?}", timeout = timing::HELLO_TIMEOUT)]
    Silent(&'static str),
    #[error("a Welcome that makes no sense: {0}")]
    Welcome(#[from] IdError),
    #[error("refused ({code:?}): {reason}")]
    Refused { code: RefuseCode, reason: String },
    #[error("the certificate has run out, and renewing it failed: {0}")]
    Renewal(IdentityError),
    #[error("the certificate had run out and has been renewed until {}", jiff::Timestamp::try_from(*.0).unwrap_or_default())]
    Renewed(SystemTime),
    #[error("given up: not wanted any more")]
    Abandoned,
}

/// Dials. `unwanted` ends it at once, but not once the Hello has been sent: from then on the gateway may hold the
/// new session for the sandbox's only one.
pub(super) async fn dial(
    target: &Target,
    seams: &Seams,
    tools: &Tools,
    order: &Order,
    unwanted: &CancellationToken,
) -> Result<Attached, (Failure, Error)> {
    let before = |error| (Failure::Failed { unsure: false }, error);
    let connected = tokio::select! {
        biased;
        () = unwanted.cancelled() => return Err((Failure::Abandoned, Error::Abandoned)),
        connected = connect(target, seams, tools, order) => connected.map_err(before)?,
    };
    let (send, recv) =
        connected.connection.open_bi(timing::OPEN_TIMEOUT).await.map_err(|error| before(error.into()))?;
    send.set_priority(CONTROL_PRIORITY);
    if unwanted.is_cancelled() {
        return Err((Failure::Abandoned, Error::Abandoned));
    }
    let greeting = Greeting { connected, send, recv: MessageReader::new(recv) };
    greeting.greet(target, tools, order).await
}

struct Connected {
    connection: Connection,
    dialer: Dialer,
}

/// An attempt's next step.
enum Step {
    Resolved(Result<Vec<SocketAddr>, ResolveError>),
    Shaken(SocketAddr, Result<Connected, DialError>),
}

enum Candidate {
    Name(String),
    Address(SocketAddr),
}

async fn connect(target: &Target, seams: &Seams, tools: &Tools, order: &Order) -> Result<Connected, Error> {
    let tls = tools.identity.client_config().map_err(Error::Tls)?;
    let names = order.to.iter().chain(&target.addresses);
    let mut waiting: VecDeque<Candidate> = names.cloned().map(Candidate::Name).collect();
    let mut steps: FuturesUnordered<BoxFuture<'_, Step>> = FuturesUnordered::new();
    let (mut tried, mut failures) = (Vec::new(), Vec::new());
    let mut start_at = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(start_at), if !waiting.is_empty() => {
                match waiting.pop_front() {
                    Some(Candidate::Name(name)) => {
                        let resolver = Arc::clone(&seams.resolver);
                        steps.push(async move { Step::Resolved(addresses_of(&*resolver, &name).await) }.boxed());
                    }
                    Some(Candidate::Address(address)) => {
                        tried.push(address);
                        steps.push(shake(address, target, seams, tls.clone()).boxed());
                    }
                    None => {}
                }
                start_at = Instant::now() + STAGGER;
            }
            Some(step) = steps.next(), if !steps.is_empty() => {
                // Whatever ended, the next one need not wait for its turn.
                start_at = Instant::now();
                match step {
                    Step::Resolved(Ok(addresses)) => {
                        for address in addresses.into_iter().rev() {
                            let known = tried.contains(&address)
                                || waiting.iter().any(|other| matches!(other, Candidate::Address(a) if *a == address));
                            if !known && tried.len() + waiting.len() < MAX_ATTEMPTS {
                                waiting.push_front(Candidate::Address(address));
                            }
                        }
                    }
                    Step::Resolved(Err(error)) => failures.push(error.to_string()),
                    Step::Shaken(_, Ok(connected)) => return Ok(connected),
                    Step::Shaken(address, Err(error)) => failures.push(format!("{address}: {error}")),
                }
            }
            else => return Err(Error::Unreachable(failures)),
        }
    }
}

async fn shake(address: SocketAddr, target: &Target, seams: &Seams, tls: rustls::ClientConfig) -> Step {
    let attempt = async {
        let socket = seams.sockets.towards(address);
        let dialer = Dialer::bind(socket, tls, seams.profile).map_err(|error: EndpointError| error)?;
        let connection = dialer.dial(address, &target.server_name).await?;
        Ok(Connected { connection, dialer })
    };
    Step::Shaken(address, attempt.await)
}

/// A connection with an open control stream.
struct Greeting {
    connected: Connected,
    send: SendStream,
    recv: MessageReader,
}

impl Greeting {
    async fn greet(
        mut self,
        target: &Target,
        tools: &Tools,
        order: &Order,
    ) -> Result<Attached, (Failure, Error)> {
        match self.exchange(target, tools, order).await {
            Ok(Ok(welcome)) => match attached(self, welcome) {
                Ok(attached) => Ok(attached),
                Err(error) => Err((Failure::Failed { unsure: true }, error)),
            },
            Ok(Err(refused)) => {
                let end = self.refused(tools, &refused).await;
                self.close(if matches!(end.0, Failure::Renewed) {
                    CloseCode::RENEWED
                } else {
                    CloseCode::DONE
                })
                .await;
                Err(end)
            }
            Err(error) => {
                // The gateway may have attached it: a close tells it that nobody is there.
                self.close(CloseCode::UNRESPONSIVE).await;
                Err((Failure::Failed { unsure: true }, error))
            }
        }
    }

    async fn exchange(
        &mut self,
        target: &Target,
        tools: &Tools,
        order: &Order,
    ) -> Result<Result<Welcome, control::Refuse>, Error> {
        let hello = Hello {
            sandbox_id: target.sandbox.to_bytes(),
            instance: target.instance.to_bytes(),
            boot_id: target.boot_id.clone(),
            version: VERSION.to_owned(),
            workload_generation: target.generation.0,
            capabilities: CAPABILITIES.iter().map(|&capability| capability.to_owned()).collect(),
            execs: u32::try_from(tools.work.report().len()).unwrap_or(u32::MAX),
            dial_reason: order.reason.clone(),
            away_ms: u64::try_from(order.away.as_millis()).unwrap_or(u64::MAX),
            dial: order.dial.0,
            rebinds: tools.rebinds.load(std::sync::atomic::Ordering::Relaxed),
        };
        self.say(up::Body::Hello(hello)).await?;
        self.hear("answer to the Hello", |body| match body {
            down::Body::Welcome(welcome) => Some(Ok(welcome)),
            down::Body::Refuse(refuse) => Some(Err(refuse)),
            _ => None,
        })
        .await
    }

    async fn refused(&mut self, tools: &Tools, refuse: &control::Refuse) -> (Failure, Error) {
        if refuse.code() == RefuseCode::CertificateExpired {
            return match self.renew(tools).await {
                Ok(ends) => (Failure::Renewed, Error::Renewed(ends)),
                Err(error) => {
                    tools.identity.renewal_failed();
                    (Failure::Failed { unsure: false }, error)
                }
            };
        }
        let failure = match refuse.retry_after_ms {
            0 => Failure::RefusedForGood,
            ms => Failure::Refused { retry_after: Duration::from_millis(ms) },
        };
        let reason = refuse.reason.chars().take(256).collect();
        (failure, Error::Refused { code: refuse.code(), reason })
    }

    /// The one thing that a gateway grants to a certificate that has run out.
    async fn renew(&mut self, tools: &Tools) -> Result<SystemTime, Error> {
        let csr = tools.identity.request().map_err(Error::Renewal)?;
        self.say(up::Body::CertificateRequest(control::CertificateRequest { csr: csr.into() })).await?;
        let certificate = self
            .hear("certificate", |body| match body {
                down::Body::Certificate(certificate) => Some(certificate),
                _ => None,
            })
            .await?;
        tools.identity.answer(&certificate.chain, &certificate.error).await.map_err(Error::Renewal)
    }

    async fn say(&mut self, body: up::Body) -> Result<(), Error> {
        let message = Up { body: Some(body) };
        let sent = self.send.send_message(&message, limits::MAX_MESSAGE);
        match tokio::time::timeout(timing::HELLO_TIMEOUT, sent).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(Error::Silent("room for a message")),
        }
    }

    /// The next message that `wanted` takes; others are skipped, as an older gateway's or a newer one's.
    async fn hear<T>(
        &mut self,
        what: &'static str,
        wanted: impl Fn(down::Body) -> Option<T>,
    ) -> Result<T, Error> {
        let heard = async {
            loop {
                let message = self.recv.message::<Down>(limits::MAX_MESSAGE).await?;
                let message = message.ok_or(StreamError::Finished(what))?;
                if let Some(taken) = message.body.and_then(&wanted) {
                    return Ok(taken);
                }
            }
        };
        match tokio::time::timeout(timing::HELLO_TIMEOUT, heard).await {
            Ok(heard) => heard,
            Err(_) => Err(Error::Silent(what)),
        }
    }

    async fn close(&self, code: CloseCode) {
        linger(&self.connected.connection).await;
        self.connected.connection.close(code, "");
        self.connected.dialer.endpoint().close(code, "").await;
    }
}

fn attached(greeting: Greeting, welcome: Welcome) -> Result<Attached, Error> {
    let Greeting { connected, send, recv } = greeting;
    let id = SessionId::from_slice(&welcome.session_id)?;
    tracing::info!(
        session = %id,
        epoch = welcome.epoch,
        gateway = welcome.gateway_name,
        version = welcome.gateway_version,
        address = %connected.connection.remote_address(),
        "attached"
    );
    let session = Session {
        endpoint: connected.dialer.endpoint().clone(),
        connection: connected.connection,
        send,
        recv,
        tuning: Tuning::from_settings(&welcome.settings.unwrap_or_default()),
    };
    Ok(Attached { session, epoch: Epoch(welcome.epoch), gateway: welcome.gateway_name })
}
