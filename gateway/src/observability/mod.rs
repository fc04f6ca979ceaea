//! What operators see: log lines, metrics, and the plain HTTP port.
//!
//! - `/healthz`: the process answers. Never asks a dependency: a slow disk must not make an orchestrator restart
//!   a gateway that holds a thousand sessions.
//! - `/readyz`: store and listener work, and the gateway is not draining. Speaks for the UDP port too, which
//!   orchestrators cannot probe.
//! - `/metrics`: Prometheus text. Base units, no ids in labels.

mod http;
mod logging;
pub mod metrics;

pub use http::{HttpError, Readiness, serve};
pub use logging::init as init_logging;
