//! The client library: a gateway's API as a caller uses it.
//!
//! ```text
//!   Profile ─▶ Client ─ call() ─▶ sandboxes, execs, gateway (tonic stubs, one lazy mTLS connection)
//!                 │
//!                 └─ attach() ─▶ ExecSession: one exec's output, input and outcome, over any number of
//!                                streams (task: session.rs, bytes: resume.rs, failures: outage.rs)
//!                 └─ Transfer: files in or out, over any number of streams (transfer.rs)
//! ```
//!
//! A [`Client`] is cheap to clone; its clones share one connection, made when first needed and made anew when
//! lost. Nothing here prints or exits: that is the command's business.

mod error;
mod outage;
mod resume;
mod session;
mod transfer;

use std::{sync::Arc, time::Duration};

use holdfast_wire::api::{
    execs_client::ExecsClient, files_client::FilesClient, gateway_client::GatewayClient,
    sandboxes_client::SandboxesClient,
};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{io::BufReader, net::TcpStream};
use tonic::{
    Request, Response, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tower::ServiceExt as _;

use self::error::Failure;
pub use self::{
    error::{Error, Refusal, code_name},
    outage::Patience,
    resume::{Resume, Seen, Target, Violation},
    session::{Event, ExecSession, Input, Reattached},
    transfer::{Transfer, TransferNotice},
};
use crate::profile::Profile;

/// Reaching the gateway's port, and the TLS handshake, each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// HTTP/2 pings, while idle too: a gateway whose machine vanished is noticed 20 s later.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// An answer to a call that only reads or changes a row. Drivers may take a while to stop or pause.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What may be on its way on one stream, in bytes. hyper's 64 KiB would limit an attached exec to 640 kB/s at 100 ms
/// of round trip.
const STREAM_WINDOW: u32 = 1 << 20;

/// And on the connection: HTTP/2's largest. A finite one lets a few execs that nobody reads hold up all others of
/// the same client; what is kept is bounded by the number of streams.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// One HTTP/2 frame, in bytes: a message of 64 KiB of output, its names too. HTTP/2's own 16 KiB would make five of it.
const FRAME: u32 = (64 << 10) + 1024;

/// Read from the socket at once, in bytes: by itself rustls asks for 4 KiB at a time, and bulk output is then mostly
/// system calls.
const READ_AHEAD: usize = 64 << 10;

/// A page of 1000 sandboxes, each with its conditions and some labels, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// The stubs' transport: the connection, and the token put into each request.
pub type Service = InterceptedService<Channel, Auth>;

/// A gateway's API.
#[derive(Clone, Debug)]
pub struct Client {
    address: Arc<str>,
    channel: Channel,
    auth: Auth,
}

impl Client {
    /// A client for the gateway of `profile`. Reads the profile's files; connects when first used. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// A file of the profile is missing or wrong.
    pub fn new(profile: &Profile) -> Result<Self, Error> {
        let credentials = profile.credentials()?;
        let address = profile.host_port();
        let wrong = |cause: String| Error::Tls { address: address.to_owned(), cause };

        let mut tls = ClientTlsConfig::new()
            .domain_name(profile.server_name.clone())
            .ca_certificate(Certificate::from_pem(&credentials.ca))
            .timeout(CONNECT_TIMEOUT);
        if let Some((cert, key)) = &credentials.identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{address}"))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| wrong(innermost(&error)))?;
        let auth = Auth::bearer(credentials.token.as_deref()).map_err(wrong)?;
        let connect = tcp().map_response(|tcp| {
            TokioIo::new(BufReader::with_capacity(READ_AHEAD, TokioIo::<TcpStream>::into_inner(tcp)))
        });
        let channel = tuned(endpoint).connect_with_connector_lazy(connect);
        Ok(Self { address: address.into(), channel, auth })
    }

    /// A client over a channel that exists: for tests, and for programs with a transport of their own.
    #[must_use]
    pub fn over(channel: Channel, address: &str) -> Self {
        Self { address: address.into(), channel, auth: Auth(None) }
    }

    /// The gateway's address, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The stub of the sandboxes service.
    #[must_use]
    pub fn sandboxes(&self) -> SandboxesClient<Service> {
        SandboxesClient::with_interceptor(self.channel.clone(), self.auth.clone())
            .max_decoding_message_size(MAX_ANSWER)
    }

    /// The stub of the execs service.
    #[must_use]
    pub fn execs(&self) -> ExecsClient<Service> {
        ExecsClient::with_interceptor(self.channel.clone(), self.auth.clone())
            .max_decoding_message_size(MAX_ANSWER)
    }

    /// The stub of the files service.
    #[must_use]
    pub fn files(&self) -> FilesClient<Service> {
        FilesClient::with_interceptor(self.channel.clone(), self.auth.clone())
            .max_decoding_message_size(MAX_ANSWER)
    }

    /// The stub of the gateway service.
    #[must_use]
    pub fn gateway(&self) -> GatewayClient<Service> {
        GatewayClient::with_interceptor(self.channel.clone(), self.auth.clone())
    }

    /// Waits for one call's answer, at most `at_most`. `what` says what was attempted, for the error.
    ///
    /// # Errors
    /// The gateway cannot be reached, said no, or did not answer in time.
    pub async fn call<T>(
        &self,
        what: &str,
        at_most: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(at_most, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(what, &status)),
            Err(_) => Err(Error::NoAnswer { what: what.to_owned(), after: at_most }),
        }
    }

    /// Attaches to an exec (and starts it, where the target says so), and stays attached until its outcome.
    #[must_use]
    pub fn attach(&self, target: Target, patience: Patience) -> ExecSession {
        ExecSession::start(self.clone(), target, patience)
    }

    /// The error behind a stream's or a call's status.
    #[must_use]
    pub fn error(&self, what: &str, status: &Status) -> Error {
        Failure::of(status).into_error(what, &self.address)
    }
}

/// The settings that every connection has.
#[must_use]
pub fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .tcp_nodelay(true)
}

/// Reaches the gateway's port: every address of its name, both families. TLS is the endpoint's.
fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp
}

/// Puts the bearer token, if there is one, into each request.
#[derive(Clone)]
pub struct Auth(Option<AsciiMetadataValue>);

impl Auth {
    fn bearer(token: Option<&str>) -> Result<Self, String> {
        let Some(token) = token else { return Ok(Self(None)) };
        let mut value: AsciiMetadataValue = format!("Bearer {token}")
            .parse()
            .map_err(|_| "the token cannot be sent in a header".to_owned())?;
        // Keeps it out of HPACK's tables and of Debug output.
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Auth {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Auth(token)" } else { "Auth(none)" })
    }
}

/// The cause beneath all wrappings.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .last()
        .map(ToString::to_string)
        .unwrap_or_default()
}
