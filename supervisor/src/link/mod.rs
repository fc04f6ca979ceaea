//! The link: this supervisor's way to its gateway. Dials, keeps, doubts, redials; never gives up by itself.
//!
//! ```text
//!   Link::start ──▶ task: state machine ──▶ dials (dial.rs) ──▶ sessions (crate::control)
//!                     ▲   state.rs                                  │  liveness.rs, one each
//!                     ├── clocks jumped, network changed            │
//!                     └── news: suspect, recovered, go away ────────┘
//!   Link::leave ──▶ Leaving, close, wait
//! ```
//!
//! What enters: whom to dial, who we are, the work that sessions serve, and the seams to the network and the
//! clocks. What leaves: where the link stands, by `watch`. The gateway may be away for hours: the link then waits
//! and dials, in the same memory, and nothing else of the supervisor notices.

mod dial;
pub(crate) mod liveness;
pub(crate) mod net;
pub(crate) mod routes;
mod state;
mod task;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use holdfast_wire::transport::{Profile, Role};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clocks::{Clocks, SystemClocks},
    control::{Faults, Tools},
    identity::Identity,
    work::Work,
};
pub use dial::Target;
pub use net::{ResolveError, Resolver, Sockets, SystemResolver, SystemSockets};
pub use routes::{Notices, Route, Routes, SystemRoutes};
pub use state::Phase;

/// Where the link meets the machine: a simulation brings its own.
#[derive(Clone, Debug)]
pub struct Seams {
    /// Sockets towards a peer.
    pub sockets: Arc<dyn Sockets>,
    /// Names to addresses.
    pub resolver: Arc<dyn Resolver>,
    /// Clocks that show a suspension; `None` where time is simulated and nothing is ever suspended.
    pub clocks: Option<Arc<dyn Clocks>>,
    /// What the machine tells of its network; `None` where there is no machine.
    pub routes: Option<Arc<dyn Routes>>,
    /// QUIC's settings.
    pub profile: Profile,
    /// Of the random delays.
    pub seed: u64,
}

impl Seams {
    /// The machine as it is.
    #[must_use]
    pub fn system() -> Self {
        Self {
            sockets: Arc::new(SystemSockets),
            resolver: Arc::new(SystemResolver::default()),
            clocks: Some(Arc::new(SystemClocks)),
            routes: Some(Arc::new(SystemRoutes)),
            profile: Profile::new(Role::Supervisor),
            seed: rand::random(),
        }
    }
}

/// Where the link stands, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where.
    pub phase: Phase,
    /// Since when, by the wall clock.
    pub since: jiff::Timestamp,
}

/// The link. Dropped, it ends its sessions without a word; [`leave`](Self::leave) says goodbye.
#[derive(Debug)]
pub struct Link {
    status: watch::Receiver<Status>,
    leave: mpsc::Sender<Leave>,
    tasks: TaskTracker,
    _ends: tokio_util::sync::DropGuard,
}

#[derive(Debug)]
struct Leave {
    reason: String,
    within: std::time::Duration,
    done: oneshot::Sender<()>,
}

impl Link {
    /// Starts dialling. Ends when it is told to leave, is dropped, or `token` is cancelled.
    #[must_use]
    pub fn start(
        target: Target,
        identity: Identity,
        work: Arc<dyn Work>,
        mut seams: Seams,
        token: &CancellationToken,
    ) -> Self {
        let faults = Faults::default();
        // Dials too: a path that is dark is dark for whatever this supervisor tries.
        seams.sockets = Arc::new(net::LosingSockets { inner: seams.sockets, lose: faults.lose.clone() });
        let tools = Tools {
            work,
            identity,
            sockets: Arc::clone(&seams.sockets),
            routes: seams.routes.clone(),
            faults,
            rebinds: Arc::default(),
        };
        let (sender, status) =
            watch::channel(Status { phase: Phase::Dialling, since: jiff::Timestamp::now() });
        let (leave, left) = mpsc::channel(1);
        let token = token.child_token();
        let tasks = TaskTracker::new();
        let (link, news) = task::Link::new(target, seams, tools, sender);
        tasks.spawn(link.run(news, left, token.clone()));
        tasks.close();
        Self { status, leave, tasks, _ends: token.drop_guard() }
    }

    /// Where it stands.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Tells the gateway that this supervisor stops, and closes. Bounded: a gateway that is away is not waited for.
    pub async fn leave(self, reason: &str) {
        let (done, gone) = oneshot::channel();
        let order = Leave { reason: reason.to_owned(), within: task::LEAVE, done };
        if self.leave.send(order).await.is_ok() {
            let _ = gone.await;
        }
        self.tasks.wait().await;
    }
}

impl Phase {
    /// The same, a remaining time aside, which changes by itself.
    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && match (self, other) {
                (Self::Attached { epoch: a }, Self::Attached { epoch: b }) => a == b,
                _ => true,
            }
    }
}
