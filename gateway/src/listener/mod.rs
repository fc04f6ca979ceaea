//! The supervisors' door: takes connections in, and sees everybody out when the gateway stops.
//!
//! ```text
//!   accept ─▶ admit? ─┬ accept: a task: handshake (counted), then the session
//!                     ├ retry:  prove your address first; costs nothing here
//!                     └ ignore: come again later
//! ```
//!
//! No handshake runs in the accept loop. Handshakes at once are bounded, because each costs a millisecond of a
//! core: above the bound a peer must prove its address, so that forged ones cost nothing; above twice the bound it
//! is ignored, and its own timer brings it back.

mod admission;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use holdfast_wire::{
    close::CloseCode,
    control::{GoAway, down},
    timing,
    transport::{self, Incoming},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::admission::{Admission, admission};
use crate::sessions::Sessions;

/// Handshakes at once for each core. One takes a millisecond of a core and a few round trips.
const HANDSHAKES_PER_CORE: usize = 64;

/// One handshake, in core time: what a herd of returning supervisors costs each.
const HANDSHAKE_COST: Duration = Duration::from_micros(1040);

/// Supervisors come back over at least this time.
const MIN_WINDOW: Duration = Duration::from_secs(2);

/// The open door. Clones are the same.
#[derive(Clone, Debug)]
pub struct Listener {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    doors: Vec<transport::Listener>,
    sessions: Sessions,
    handshakes: AtomicUsize,
    limit: usize,
    tasks: TaskTracker,
    /// Ends the accept loops.
    shut: CancellationToken,
    /// Ends connections that have no session yet.
    token: CancellationToken,
}

impl Listener {
    /// Accepts connections on every one of `doors` (one for IPv4, one for IPv6), until [`drain`](Self::drain).
    #[must_use]
    pub fn start(doors: Vec<transport::Listener>, sessions: Sessions) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let inner = Arc::new(Inner {
            doors,
            sessions,
            handshakes: AtomicUsize::new(0),
            limit: cores * HANDSHAKES_PER_CORE,
            tasks: TaskTracker::new(),
            shut: CancellationToken::new(),
            token: CancellationToken::new(),
        });
        for door in &inner.doors {
            inner.tasks.spawn(Arc::clone(&inner).accept(door.clone()));
        }
        Self { inner }
    }

    /// Connections and accept loops that are alive.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.inner.tasks.len()
    }

    /// Whether [`drain`](Self::drain) has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.inner.shut.is_cancelled()
    }

    /// Sends everybody away: no new connections; `GoAway` with a window to return in; relays end; after
    /// [`timing::CLOSE_LINGER`] the connections close; then the last packets, at most [`timing::WAIT_IDLE`].
    pub async fn drain(&self, reason: &str) {
        let inner = &self.inner;
        inner.shut.cancel();
        let sessions = inner.sessions.registry.all();
        let window = return_window(sessions.len());
        tracing::info!(sessions = sessions.len(), ?window, reason, "sending the supervisors away");
        let reconnect_after_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        for session in &sessions {
            let go_away = GoAway { reconnect_after_ms, to: String::new(), reason: reason.to_owned() };
            session.send(down::Body::GoAway(go_away));
            session.close(CloseCode::GOING_AWAY, reason);
        }
        inner.token.cancel();
        inner.tasks.close();
        // Each takes the linger and little more; whoever does not is closed with the endpoint.
        if tokio::time::timeout(2 * timing::CLOSE_LINGER, inner.tasks.wait()).await.is_err() {
            tracing::warn!(left = inner.tasks.len(), "connections are still ending");
        }
        let doors = inner.doors.iter().map(|door| door.endpoint().close(CloseCode::GOING_AWAY, reason));
        futures::future::join_all(doors).await;
    }
}

impl Inner {
    async fn accept(self: Arc<Self>, door: transport::Listener) {
        loop {
            let incoming = tokio::select! {
                biased;
                () = self.shut.cancelled() => return,
                incoming = door.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            let running = self.handshakes.load(Ordering::Relaxed);
            match admission(running, self.limit, incoming.address_validated()) {
                Admission::Accept => {
                    let handshake = Handshake::begin(&self);
                    self.tasks.spawn(Arc::clone(&self).serve(incoming, handshake));
                }
                Admission::Retry => {
                    count("retried");
                    incoming.retry();
                }
                Admission::Ignore => {
                    count("ignored");
                    incoming.ignore();
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, incoming: Incoming, handshake: Handshake) {
        let remote = incoming.remote_address();
        let connection = tokio::select! {
            biased;
            () = self.token.cancelled() => return,
            connection = incoming.accept() => connection,
        };
        drop(handshake);
        match connection {
            Ok(connection) => {
                count("ok");
                self.sessions.serve(connection, self.token.child_token()).await;
            }
            Err(error) => {
                count("failed");
                tracing::info!(%remote, %error, "a handshake failed");
            }
        }
    }
}

/// One handshake, as it is counted.
#[derive(Debug)]
struct Handshake(Arc<Inner>);

impl Handshake {
    fn begin(inner: &Arc<Inner>) -> Self {
        inner.handshakes.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(inner))
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

fn count(result: &'static str) {
    metrics::counter!("holdfast_handshakes_total", "result" => result).increment(1);
}

/// Over how long so many supervisors should come back: their handshakes shall take half of the cores.
fn return_window(sessions: usize) -> Duration {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let sessions = u32::try_from(sessions).unwrap_or(u32::MAX);
    (HANDSHAKE_COST * sessions * 2 / u32::try_from(cores).unwrap_or(u32::MAX)).max(MIN_WINDOW)
}
