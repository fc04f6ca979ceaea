//! The public API: gRPC over TLS on TCP. It only adapts: requests to the rooms' calls, their errors to statuses.
//!
//! ```text
//! listener (TCP, TLS) ─▶ auth (certificate or token) ─▶ sandboxes │ execs │ files │ status ─▶ the gateway's rooms
//! ```

mod auth;
mod chaos;
mod execs;
mod files;
mod gateway;
mod listener;
mod sandboxes;
mod status;

use std::{sync::Arc, time::Duration};

use holdfast_wire::api::{
    execs_server::ExecsServer, files_server::FilesServer, gateway_server::GatewayServer,
    sandboxes_server::SandboxesServer,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::interceptor::InterceptedService, transport::Server};

pub use auth::{Caller, Tokens, TokensError};
pub use gateway::Facts;
pub use status::code;

use crate::{error::CallError, events::Events, execs::Execs, files::Files, sandboxes::Sandboxes};

/// h2 keepalive towards callers: a caller that vanished without a word is noticed after these two.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream's window, in bytes; and no bound on a connection's, so that one caller's slow exec holds up none of
/// its others (HTTP/2's largest window is 2^31 - 1).
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// One HTTP/2 frame, in bytes: a message of 64 KiB of stdin or of a file, its names too. HTTP/2's own 16 KiB would make
/// five of it.
const FRAME: u32 = (64 << 10) + 1024;

/// Streams of one connection: a harness may hold a thousand execs on one.
const STREAMS: u32 = 2048;

/// A request message, in bytes. An ExecSpec may have 2 MiB of arguments; what is somewhat larger is taken in all the
/// same, so that the caller is told which field is too large instead of a number of bytes.
const MAX_REQUEST: usize = 16 << 20;

/// The API's parts.
#[derive(Debug)]
pub struct Api {
    /// Sandboxes.
    pub sandboxes: Sandboxes,
    /// Execs.
    pub execs: Execs,
    /// Files.
    pub files: Files,
    /// What happens.
    pub events: Events,
    /// What `Status` says of the gateway itself.
    pub facts: Arc<Facts>,
    /// Who gets in without a certificate.
    pub tokens: Tokens,
}

/// The API's server has failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// gRPC reflection could not be set up.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Serving ended.
    #[error("serving the API: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves until `token` ends it; then open calls have until the caller of this gives up on it.
pub async fn serve(
    api: Api,
    listener: TcpListener,
    tls: rustls::ServerConfig,
    token: CancellationToken,
    tasks: TaskTracker,
) -> Result<(), ApiError> {
    let door = auth::Authenticate::new(api.tokens.clone());
    let (health_reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(holdfast_wire::DESCRIPTORS)
        .build_v1()?;
    health_reporter.set_serving::<SandboxesServer<sandboxes::SandboxService>>().await;
    health_reporter.set_serving::<ExecsServer<execs::ExecService>>().await;
    health_reporter.set_serving::<FilesServer<files::FileService>>().await;

    let gateway = gateway::GatewayService::new(api.facts, api.sandboxes.clone(), api.events.clone());
    let execs = execs::ExecService::new(api.execs, tasks.clone());
    let files = files::FileService::new(api.files, tasks.clone());
    let sandboxes = sandboxes::SandboxService::new(api.sandboxes, api.events);
    let connections = listener::connections(listener, Arc::new(tls), token.clone(), &tasks);
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS)
        .add_service(InterceptedService::new(health, door.clone()))
        .add_service(InterceptedService::new(reflection, door.clone()))
        .add_service(InterceptedService::new(GatewayServer::new(gateway), door.clone()))
        .add_service(InterceptedService::new(SandboxesServer::new(sandboxes), door.clone()))
        .add_service(InterceptedService::new(FilesServer::new(files), door.clone()))
        .add_service(InterceptedService::new(
            ExecsServer::new(execs).max_decoding_message_size(MAX_REQUEST),
            door,
        ))
        .serve_with_incoming_shutdown(connections, token.cancelled_owned())
        .await?;
    Ok(())
}

/// A request's duration: absent is `default`; negative or above `max` is an error.
fn duration(
    field: &str,
    given: Option<prost_types::Duration>,
    default: Duration,
    max: Duration,
) -> Result<Duration, CallError> {
    let Some(given) = given else { return Ok(default) };
    let given =
        Duration::try_from(given).map_err(|_| CallError::invalid(field, "negative or out of range"))?;
    if given > max {
        return Err(CallError::invalid(
            field,
            format!("{} s, at most {} s are allowed", given.as_secs(), max.as_secs()),
        ));
    }
    Ok(given)
}
