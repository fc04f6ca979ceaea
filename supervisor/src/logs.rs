//! Logs: to stderr, as text or JSON. A panic is a log line too.
//!
//! `LOG_FORMAT` is `text` (default) or `json`; `RUST_LOG` filters, else the configuration's `log`.

use std::{env, panic};

use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging; a second call (the whole product in one process) changes nothing. What is wrong with the
/// settings is said in the log itself: a misspelt filter is no reason not to run.
pub(crate) fn start(filter: &str) {
    let (source, wanted) = match env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => ("RUST_LOG", text),
        _ => ("the configuration's `log`", filter.to_owned()),
    };
    let (filter, complaint) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let format = env::var("LOG_FORMAT").unwrap_or_default();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match format.as_str() {
        "json" => layer.json().flatten_event(true).boxed(),
        _ => layer.with_ansi(false).boxed(),
    };
    if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_err() {
        return;
    }
    panic::set_hook(Box::new(|info| {
        let payload = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(place, %backtrace, "panic: {payload}");
    }));
    if let Some(error) = complaint {
        tracing::warn!(%error, "{source} is no log filter: {wanted:?}; using \"info\"");
    }
    if !matches!(format.as_str(), "" | "text" | "json") {
        tracing::warn!("LOG_FORMAT is {format:?}, which is neither text nor json; using text");
    }
}
