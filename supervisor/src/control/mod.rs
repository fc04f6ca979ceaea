//! One session at work: the control stream's loop, the relays beside it, and the end of both.
//!
//! ```text
//!            ┌──────────────── select: the first to end ends the session ────────────────┐
//!   Down ──▶ │ control loop ── Up ──▶ writer ── stream, priority 100                     │ ──▶ Lost
//!   orders ▶ │   │ liveness, probe, reports, renewal          relays (crate::relays)     │
//!            └───┼───────────────────────────────────────────────────────────────────────┘
//!                ▼ news: suspect, recovered, go away, settings        to the link
//! ```
//!
//! The loop never waits for the writer: bulk data may hold the connection's send window, and reading must go on
//! meanwhile. What is to be sent waits in [`outbox::Outbox`], one place for each kind of message, so that it
//! cannot grow.

mod faults;
mod outbox;
mod renewal;
mod task;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use holdfast_wire::{
    close::CloseCode,
    control::{Leaving, Up, up::Body},
    limits, timing,
    timing::Tuning,
    transport::{Connection, Endpoint, Lost, MessageReader, SendStream, StreamError},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use self::faults::{Faults, unless_stalled};
use crate::{
    identity::Identity,
    link::{net::Sockets, routes::Routes},
    relays,
    work::Work,
};

/// Control messages go before all relays' data.
pub(crate) const CONTROL_PRIORITY: i32 = 100;

/// Messages that wait for the stream, beside the outbox: two, so that the writer always finds one.
const QUEUE: usize = 2;

/// Relays that have their outcome get so long to deliver it before a stopping supervisor closes.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a session works with.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) work: Arc<dyn Work>,
    pub(crate) identity: Identity,
    pub(crate) sockets: Arc<dyn Sockets>,
    pub(crate) routes: Option<Arc<dyn Routes>>,
    pub(crate) faults: Faults,
    /// How often this process has moved a connection to a new socket.
    pub(crate) rebinds: Arc<AtomicU64>,
}

/// An attached connection, Welcome received, nothing served yet.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) endpoint: Endpoint,
    pub(crate) send: SendStream,
    pub(crate) recv: MessageReader,
    pub(crate) tuning: Tuning,
}

/// What the link tells a session.
#[derive(Debug)]
pub(crate) enum Order {
    /// The machine stood still for so long: prove the path now.
    Prove { away: Duration },
    /// This machine's network has changed: see whether the path leads elsewhere now.
    Reroute,
    /// The supervisor stops and its execs have ended: say so, then close.
    Leave { reason: String },
}

/// What a session tells the link.
#[derive(Debug)]
pub(crate) enum News {
    /// Nothing is heard.
    Suspect,
    /// Something was heard again.
    Recovered,
    /// The gateway wants this supervisor to go.
    GoAway { within: Duration, to: Option<String> },
    /// New settings.
    Tuned(Tuning),
}

impl Session {
    /// Serves until the connection is lost, `token` is cancelled (another session takes over), or an order to leave
    /// has been followed; says how it ended.
    pub(crate) async fn run(
        self,
        tools: Tools,
        orders: mpsc::Receiver<Order>,
        news: mpsc::Sender<News>,
        token: CancellationToken,
    ) -> Lost {
        let Self { connection, endpoint, send, recv, tuning } = self;
        let (open, opened) = watch::channel(0);
        let (up, queue) = mpsc::channel(QUEUE);
        let path = task::Path { connection: connection.clone(), endpoint: endpoint.clone() };
        let control = task::Control::new(path, tuning, tools.clone(), opened, news);
        let stall = &tools.faults.stall;
        let end = tokio::select! {
            // In this order: a retired session serves nothing more, whatever else is ready.
            biased;
            () = token.cancelled() => End::Retired,
            lost = connection.closed() => End::Lost(lost),
            broken = unless_stalled(stall, control.run(recv, orders, up)) => End::Broken(broken),
            ended = unless_stalled(stall, write(send, queue)) => ended,
            lost = relays::serve(&connection, &tools.work, stall, &open, &token) => End::Lost(lost),
        };
        // From here on no relay of this session is served: the select has dropped them all.
        let (lost, code, reason) = match end {
            End::Lost(lost) => return lost,
            End::Retired => {
                (Lost::ClosedHere, CloseCode::UNRESPONSIVE, "a newer connection took its place".to_owned())
            }
            End::Broken(StreamError::Lost(lost)) => return lost,
            End::Broken(error) => {
                tracing::error!(%error, "the control stream broke; closing the connection");
                (
                    Lost::Transport(format!("the control stream broke: {error}")),
                    error.close_code(),
                    error.to_string(),
                )
            }
            End::Left(reason) => (Lost::ClosedHere, CloseCode::SUPERVISOR_STOPPING, reason),
        };
        linger(&connection).await;
        connection.close(code, &reason);
        endpoint.close(code, &reason).await;
        lost
    }
}

/// Lets the path come to rest before a close: one that finds the congestion window full is never sent (quinn issue
/// 2785). A window is full under bulk data, whose streams have been reset by now, and on a young connection while
/// MTU discovery has a probe on its way.
pub(crate) async fn linger(connection: &Connection) {
    // Lost meanwhile: then there is nobody to tell.
    let _ = tokio::time::timeout(timing::CLOSE_LINGER, connection.closed()).await;
}

/// How a session's parts end.
#[derive(Debug)]
enum End {
    Lost(Lost),
    Retired,
    Broken(StreamError),
    Left(String),
}

/// Writes what comes in. When the queue ends, the last message was Leaving: then its delivery is waited for.
async fn write(mut send: SendStream, mut queue: mpsc::Receiver<Up>) -> End {
    let mut leaving = String::new();
    while let Some(message) = queue.recv().await {
        match send.send_message(&message, limits::MAX_MESSAGE).await {
            Ok(()) => {}
            // The outbox cuts its reports to size, so this is a fault of ours; the peer need not suffer for it.
            Err(StreamError::Message(error)) => tracing::error!(%error, "a control message was not sent"),
            Err(error) => return End::Broken(error),
        }
        if let Some(Body::Leaving(Leaving { reason })) = message.body {
            leaving = reason;
        }
    }
    // Without the end, dropping the stream would take back what is still on its way.
    if send.finish().is_ok() {
        let _ = tokio::time::timeout(timing::WAIT_IDLE, send.stopped()).await;
    }
    End::Left(leaving)
}

/// Waits until no relay is open, at most [`LAST_WORDS`].
async fn last_words(open: &mut watch::Receiver<usize>) {
    // Past the bound the relays are reset: their callers have gone, or read too slowly to be waited for.
    let _ = tokio::time::timeout(LAST_WORDS, open.wait_for(|n| *n == 0)).await;
}
