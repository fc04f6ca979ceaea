//! The plain HTTP port.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::metrics;

/// Answers whether the gateway can serve.
#[async_trait::async_trait]
pub trait Readiness: Send + Sync + fmt::Debug + 'static {
    /// `Err` says what is missing.
    async fn ready(&self) -> Result<(), String>;
}

/// The port could not be used.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP port {address}: {source}")]
pub struct HttpError {
    /// Where.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// Serves `/healthz`, `/readyz` and `/metrics` until `token` ends it.
pub async fn serve(
    listener: TcpListener,
    readiness: Arc<dyn Readiness>,
    token: CancellationToken,
) -> Result<(), HttpError> {
    let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(readiness);
    axum::serve(listener, router)
        .with_graceful_shutdown(token.cancelled_owned())
        .await
        .map_err(|source| HttpError { address, source })
}

async fn readyz(State(readiness): State<Arc<dyn Readiness>>) -> impl IntoResponse {
    match readiness.ready().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")),
    }
}

async fn render() -> impl IntoResponse {
    match metrics::install() {
        Some(handle) => {
            handle.run_upkeep();
            (StatusCode::OK, [("content-type", "text/plain; version=0.0.4")], handle.render())
        }
        None => (
            StatusCode::NOT_IMPLEMENTED,
            [("content-type", "text/plain")],
            "this process records its metrics elsewhere\n".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[derive(Debug)]
    struct FakeReadiness(Result<(), String>);

    #[async_trait::async_trait]
    impl Readiness for FakeReadiness {
        async fn ready(&self) -> Result<(), String> {
            self.0.clone()
        }
    }

    async fn fetch(readiness: FakeReadiness, path: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(serve(listener, Arc::new(readiness), token.clone()));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        token.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn health_is_not_readiness() {
        let down = || FakeReadiness(Err("the store does not answer".to_owned()));
        assert!(fetch(down(), "/healthz").await.starts_with("HTTP/1.1 200"));
        let answer = fetch(down(), "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("the store does not answer"),
            "{answer}"
        );
        assert!(fetch(FakeReadiness(Ok(())), "/readyz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn metrics_name_the_build() {
        metrics::install();
        let answer = fetch(FakeReadiness(Ok(())), "/metrics").await;
        assert!(answer.contains("holdfast_build_info{version="), "{answer}");
    }
}
