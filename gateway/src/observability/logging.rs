//! Log lines on stderr: text for people, JSON for collectors. `RUST_LOG` filters; `info` is the default.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::LogFormat;

/// Sets the process's subscriber, once; a second call (tests, a gateway inside of another program) changes
/// nothing.
pub fn init(format: LogFormat) {
    // sqlx tells every statement at debug, h2 and rustls every frame.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,h2=warn"));
    let registry = tracing_subscriber::registry().with(filter);
    // An error means that a subscriber is set already.
    let _ = match format {
        LogFormat::Text => registry
            .with(fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()))
            .try_init(),
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
    };
}
