//! Sessions: one authenticated connection of a supervisor each, from `Hello` to loss.
//!
//! ```text
//!                          serve (one task a connection)
//!  connection ─▶ certificate ─▶ control stream ─▶ Hello ─▶ admitted ─▶ Welcome ─▶ attached ─▶ lost
//!                    │                                       │                       │
//!                    └ run out: renewal alone                └ refused, closed       └ heartbeat while a relay
//!                                                                                      is open, renewal, reports
//! ```
//!
//! What enters: connections whose handshake is done. What leaves: [`Session`] handles for whoever opens relays,
//! health and reports for the sandbox and the execs. The task owns the control stream; a handle owns nothing but
//! its share of the connection. The end of a session is said once ([`Session::lost`]) and heard by everybody
//! ([`Session::token`]): each relay ends itself, nobody waits for anybody's cleaning up.
//!
//! **A session that was silent for the callers' bound is closed**, not merely deprived of its calls. The
//! supervisor has been dialling anew since its third second of silence, so the session has no future; a new call
//! put on it would wait five seconds for nothing; and once it is closed, the sandbox is `Reconnecting` and new
//! calls wait for the next session. Should the close not get through, the supervisor's next packet is answered
//! with a stateless reset.

#[cfg(test)]
pub(crate) mod fake;
mod greeting;
mod lost;
mod registry;
mod state;
mod task;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_wire::{
    api,
    close::CloseCode,
    control::{self, Chaos, ChaosKind, Down, ProbeNow, Settings, down},
    ids::{Epoch, Generation, Instance, SandboxId, SessionId},
    limits,
    transport::{Connection, OpenError, PathStats, RecvStream, SendStream},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use self::{lost::Lost, registry::Registry};
use crate::{
    execs::Execs,
    sandboxes::{Activity, Busy, Sandboxes},
};

/// Signs the public keys of supervisors whose certificates run out. Asked on the session's task: it must answer
/// from memory, in about the time of one signature.
pub trait CertificateSigner: Send + Sync + fmt::Debug {
    /// A certificate chain (PEM) for the key in the PKCS#10 request, in the name of `sandbox` and nobody else. The
    /// error is told to the supervisor.
    fn sign(&self, sandbox: SandboxId, csr_der: &[u8]) -> Result<String, String>;
}

/// Messages to the supervisor that wait to be written. Heartbeats, probes and settings are few and small; a
/// queue that is full means that the control stream stands still.
const DOWN_QUEUE: usize = 32;

/// What serving a connection takes. [`Sessions::serve`] is the task of one.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// Who may have a session.
    pub sandboxes: Sandboxes,
    /// Where reports of execs go.
    pub execs: Execs,
    /// Renews certificates.
    pub signer: Arc<dyn CertificateSigner>,
    /// Where attached sessions are found.
    pub registry: Registry,
    /// The gateway's name, for the supervisors' logs.
    pub name: String,
}

/// What a supervisor said of itself in its `Hello`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Which supervisor process.
    pub instance: Instance,
    /// Which workload it runs in.
    pub generation: Generation,
    /// Of the kernel that it runs on.
    pub boot_id: String,
    /// Its build.
    pub version: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Why it dialled.
    pub dial_reason: String,
    /// Counts its dials: of two connections of one instance the higher is newer.
    pub dial: u64,
    /// How often it has moved a connection to a new socket.
    pub rebinds: u64,
    /// How long it was without a session.
    pub away: Duration,
    /// How many execs it keeps.
    pub execs: u32,
}

/// A handle to a session. Clones are the same session; holding one keeps nothing open.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    id: SessionId,
    sandbox: SandboxId,
    epoch: Epoch,
    hello: Hello,
    attached_at: jiff::Timestamp,
    since: Instant,
    connection: Connection,
    /// Where it is noted that somebody uses the sandbox.
    activity: Activity,
    down: mpsc::Sender<Down>,
    /// Open relays; the session's task beats while there are any.
    relays: watch::Sender<u32>,
    /// Whether the supervisor's complete list of execs has been taken.
    reported: watch::Sender<bool>,
    /// Set once, before `token` is cancelled.
    lost: OnceLock<Lost>,
    token: CancellationToken,
    heard: Mutex<Heard>,
    spool: Mutex<(u64, u64)>,
    probes: AtomicU64,
    /// The last health report that answered a question, for whoever asked.
    proven: watch::Sender<control::Health>,
}

/// How a change of the path begins that the supervisor made itself.
const REBOUND: &str = "rebound";

/// A new address within this after a rebind is that rebind's.
const SAME_MOVE: jiff::SignedDuration = jiff::SignedDuration::from_secs(2);

/// What was last seen of the path.
struct Heard {
    datagrams: u64,
    /// Heartbeats of ours that were answered.
    echoes: u64,
    at: Instant,
    remote: SocketAddr,
    migrations: u64,
    rebinds: u64,
    /// What happened to the path last, and when; `None` since it was dialled.
    changed: Option<(String, jiff::Timestamp)>,
}

impl Session {
    fn new(
        sandbox: SandboxId,
        epoch: Epoch,
        hello: Hello,
        connection: Connection,
        activity: Activity,
        token: CancellationToken,
    ) -> (Self, mpsc::Receiver<Down>) {
        let (down, queue) = mpsc::channel(DOWN_QUEUE);
        let (datagrams, remote) = sample(&connection);
        let rebinds = hello.rebinds;
        let session = Self {
            inner: Arc::new(Inner {
                id: SessionId::random(),
                sandbox,
                epoch,
                hello,
                attached_at: jiff::Timestamp::now(),
                since: Instant::now(),
                connection,
                activity,
                down,
                relays: watch::channel(0).0,
                reported: watch::channel(false).0,
                lost: OnceLock::new(),
                token,
                heard: Mutex::new(Heard {
                    datagrams,
                    echoes: 0,
                    at: Instant::now(),
                    remote,
                    migrations: 0,
                    rebinds,
                    changed: None,
                }),
                spool: Mutex::new((0, 0)),
                probes: AtomicU64::new(0),
                proven: watch::channel(control::Health::default()).0,
            }),
        };
        (session, queue)
    }

    /// Its own id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.inner.id
    }

    /// Whose it is.
    #[must_use]
    pub fn sandbox(&self) -> SandboxId {
        self.inner.sandbox
    }

    /// Which attach of the sandbox it is: the highest is the newest.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.inner.epoch
    }

    /// The supervisor process at its other end.
    #[must_use]
    pub fn instance(&self) -> Instance {
        self.inner.hello.instance
    }

    /// The workload that the supervisor runs in.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.inner.hello.generation
    }

    /// The supervisor's build.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.inner.hello.version
    }

    /// All that the supervisor said of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.inner.hello
    }

    /// When it was attached, by this machine's clock.
    #[must_use]
    pub fn attached_at(&self) -> jiff::Timestamp {
        self.inner.attached_at
    }

    /// Queues a message to the supervisor. Never waits; false: the queue is full or the session is gone.
    pub fn send(&self, message: down::Body) -> bool {
        !self.inner.token.is_cancelled() && self.inner.down.try_send(Down { body: Some(message) }).is_ok()
    }

    /// Asks for a probe now. The answer is a `Health` with the returned nonce, which is never 0.
    pub fn probe_now(&self) -> u64 {
        let nonce = self.inner.probes.fetch_add(1, Ordering::Relaxed) + 1;
        self.send(down::Body::ProbeNow(ProbeNow { nonce }));
        nonce
    }

    /// Asks for a probe now and waits for its result, or for the session's end.
    ///
    /// # Errors
    /// The session ended first.
    pub async fn prove(&self) -> Result<control::Health, Lost> {
        let mut proven = self.inner.proven.subscribe();
        let nonce = self.probe_now();
        tokio::select! {
            biased;
            lost = self.closed() => Err(lost),
            // A probe asked for later counts for this question too. The sender lives in the session.
            Ok(health) = proven.wait_for(|health| health.nonce >= nonce) => Ok(health.clone()),
        }
    }

    fn note_proof(&self, health: &control::Health) {
        if health.nonce != 0 {
            self.inner.proven.send_replace(health.clone());
        }
    }

    /// Whether its supervisor takes orders for faults.
    #[must_use]
    pub fn can_do_chaos(&self) -> bool {
        self.inner.hello.capabilities.iter().any(|word| word == "chaos")
    }

    /// Orders a fault, for `time` where the kind lasts. False: the queue is full or the session is gone.
    pub fn chaos(&self, kind: ChaosKind, time: Duration) -> bool {
        let for_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.send(down::Body::Chaos(Chaos { kind: kind.into(), for_ms }))
    }

    /// Tells new settings.
    pub fn settings(&self, settings: Settings) -> bool {
        self.send(down::Body::Settings(settings))
    }

    /// Ends it in good order: from this call on it is lost for everybody here, its relays end themselves, and
    /// after [`holdfast_wire::timing::CLOSE_LINGER`] its task closes the connection with `code`. The first call
    /// counts.
    pub fn close(&self, code: CloseCode, reason: impl Into<String>) {
        self.end(Lost::here(code, reason));
    }

    /// Says how it ended, once, and wakes everybody.
    fn end(&self, lost: Lost) {
        if self.inner.lost.set(lost).is_ok() {
            self.inner.token.cancel();
        }
    }

    /// Waits for its end.
    pub async fn closed(&self) -> Lost {
        self.inner.token.cancelled().await;
        self.lost().unwrap_or_else(|| Lost::here(CloseCode::GOING_AWAY, "the gateway stops"))
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        self.inner.lost.get().cloned()
    }

    /// Cancelled once the session is lost, never before [`lost`](Self::lost) says how.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.inner.token
    }

    /// How long ago anything was heard of the supervisor, as far as anybody has looked: exact to a heartbeat
    /// while relays are open, to a health report otherwise.
    #[must_use]
    pub fn last_heard(&self) -> Duration {
        self.observe();
        self.heard().at.elapsed()
    }

    /// How the path is.
    #[must_use]
    pub fn path(&self) -> PathStats {
        self.inner.connection.path()
    }

    /// Its supervisor's complete list of execs has been taken.
    pub(crate) fn note_reported(&self) {
        self.inner.reported.send_replace(true);
    }

    /// Waits until the supervisor's complete list of execs has been taken, or the session is lost. Nothing is
    /// started before: a list must not be older than a start that it lacks.
    pub(crate) async fn reported(&self) -> Result<(), Lost> {
        let mut reported = self.inner.reported.subscribe();
        tokio::select! {
            biased;
            lost = self.closed() => Err(lost),
            _ = reported.wait_for(|reported| *reported) => Ok(()),
        }
    }

    /// How long it has been attached.
    pub(crate) fn lived(&self) -> Duration {
        self.inner.since.elapsed()
    }

    /// Relays that are open now.
    #[must_use]
    pub fn open_relays(&self) -> u32 {
        *self.inner.relays.borrow()
    }

    /// How often the supervisor's address changed, as far as anybody has looked.
    #[must_use]
    pub fn migrations(&self) -> u64 {
        self.observe();
        self.heard().migrations
    }

    /// Bytes that the supervisor's spool keeps, and may keep, by its last health report.
    #[must_use]
    pub fn spool(&self) -> (u64, u64) {
        *self.inner.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_spool(&self, bytes: u64, limit: u64) {
        *self.inner.spool.lock().unwrap_or_else(PoisonError::into_inner) = (bytes, limit);
    }

    /// As callers see it.
    #[must_use]
    pub fn to_api(&self) -> api::Session {
        let path = self.path();
        let (spool_bytes, spool_limit_bytes) = self.spool();
        let (migrations, last_heard) = (self.migrations(), self.last_heard());
        let (remote, rebinds, changed) = {
            let heard = self.heard();
            (heard.remote, heard.rebinds, heard.changed.clone())
        };
        let (last_path_change, changed_at) =
            changed.unwrap_or_else(|| (format!("dialled: {}", self.hello().dial_reason), self.attached_at()));
        api::Session {
            session_id: self.id().to_string(),
            epoch: self.epoch().0,
            instance: self.instance().to_string(),
            supervisor_version: self.version().to_owned(),
            attached_at: Some(std::time::SystemTime::from(self.attached_at()).into()),
            remote_address: remote.to_string(),
            rtt: prost_types::Duration::try_from(path.rtt).ok(),
            lost_packets: path.lost_packets,
            sent_packets: path.sent_packets,
            received_bytes: path.received_bytes,
            sent_bytes: path.sent_bytes,
            migrations,
            mtu: u32::from(path.mtu),
            open_relays: self.open_relays(),
            last_heard: prost_types::Duration::try_from(last_heard).ok(),
            spool_bytes,
            spool_limit_bytes,
            dials: self.hello().dial,
            last_dial_reason: self.hello().dial_reason.clone(),
            last_away: prost_types::Duration::try_from(self.hello().away).ok(),
            rebinds,
            last_path_change,
            last_path_change_at: Some(std::time::SystemTime::from(changed_at).into()),
        }
    }

    /// Opens a stream to the supervisor, unless the session ends first.
    pub(crate) async fn open_stream(
        &self,
        within: Duration,
    ) -> Result<(SendStream, RecvStream), OpenFailure> {
        let opened = self.inner.connection.open_bi(within);
        tokio::select! {
            biased;
            lost = self.closed() => Err(OpenFailure::Lost(lost)),
            opened = opened => opened.map_err(|error| match error {
                OpenError::Deadline(after) => OpenFailure::Deadline(after),
                OpenError::Lost(lost) => OpenFailure::Lost(self.lost().unwrap_or(lost.into())),
            }),
        }
    }

    /// Counts one more relay until the slot is dropped; `None`: there are [`limits::MAX_RELAYS`].
    pub(crate) fn relay_slot(&self) -> Option<RelaySlot> {
        let free = self.inner.relays.send_if_modified(|open| {
            let free = *open < limits::MAX_RELAYS;
            *open += u32::from(free);
            free
        });
        free.then(|| RelaySlot(self.clone()))
    }

    /// Somebody uses the sandbox, until the guard is dropped.
    pub(crate) fn begin_use(&self) -> Busy {
        self.inner.activity.begin()
    }

    /// Looks at the path: has anything come since the last look, and from where? Says how many datagrams in all.
    fn observe(&self) -> u64 {
        let (datagrams, remote) = sample(&self.inner.connection);
        let mut heard = self.heard();
        if datagrams != heard.datagrams {
            heard.datagrams = datagrams;
            heard.at = Instant::now();
        }
        if remote != heard.remote {
            heard.migrations += 1;
            tracing::info!(sandbox = %self.sandbox(), session = %self.id(), from = %heard.remote, to = %remote, "the path has moved");
            metrics::counter!("holdfast_session_migrations_total").increment(1);
            // A rebind that was told already is the cause, and says more.
            let rebound = heard.changed.as_ref().filter(|(what, at)| {
                what.starts_with(REBOUND) && at.duration_until(jiff::Timestamp::now()) < SAME_MOVE
            });
            let what = match rebound {
                Some((what, _)) => format!("{what}, from {} to {remote}", heard.remote),
                None => format!("moved: from {} to {remote}", heard.remote),
            };
            heard.changed = Some((what, jiff::Timestamp::now()));
            heard.remote = remote;
        }
        datagrams
    }

    /// The supervisor has moved its connection to a new socket. Its count is believed as far as it grows.
    fn note_rebound(&self, rebinds: u64, reason: &str) {
        let label = greeting::rebind_label(reason);
        metrics::counter!("holdfast_session_rebinds_total", "reason" => label).increment(1);
        let mut heard = self.heard();
        heard.rebinds = heard.rebinds.max(rebinds);
        heard.changed = Some((format!("{REBOUND}: {reason}"), jiff::Timestamp::now()));
        tracing::info!(sandbox = %self.sandbox(), session = %self.id(), reason, rebinds, "the supervisor has a new socket");
    }

    /// One of our heartbeats was answered.
    fn note_echo(&self) {
        self.heard().echoes += 1;
    }

    /// How many were, so far.
    fn echoes(&self) -> u64 {
        self.heard().echoes
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many datagrams came so far, and whence they come now.
fn sample(connection: &Connection) -> (u64, SocketAddr) {
    (connection.path().received_datagrams, connection.remote_address())
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.inner.id)
            .field("sandbox", &self.inner.sandbox)
            .field("epoch", &self.inner.epoch)
            .field("instance", &self.inner.hello.instance)
            .field("relays", &self.open_relays())
            .field("lost", &self.inner.lost.get())
            .finish_non_exhaustive()
    }
}

/// A stream that could not be opened on a session.
#[derive(Clone, Debug)]
pub(crate) enum OpenFailure {
    /// None became free in time.
    Deadline(Duration),
    /// The session ended.
    Lost(Lost),
}

/// One open relay, as the session counts it.
#[derive(Debug)]
pub(crate) struct RelaySlot(Session);

impl Drop for RelaySlot {
    fn drop(&mut self) {
        self.0.inner.relays.send_modify(|open| *open -= 1);
    }
}
