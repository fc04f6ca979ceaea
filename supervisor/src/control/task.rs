//! The control loop: what comes down the control stream, what the clock and the other rooms want, what goes up.

use std::{sync::atomic::Ordering, time::Duration};

use holdfast_wire::{
    control::{Down, Health, ProbeResult, Up, down::Body},
    limits,
    timing::Tuning,
    transport::{Connection, Endpoint, MessageReader, StreamError},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    News, Order, Tools, last_words,
    outbox::Outbox,
    renewal::{Renewal, Step},
};
use crate::link::{
    liveness::{Act, Liveness},
    routes::Route,
};

/// After a probe that failed: whoever puts right what was wrong sees that soon, and a sandbox that stays broken costs
/// little more than one that works.
const PROBE_AGAIN: Duration = Duration::from_secs(2);

/// Doubts make for one probe in so long: commands that fail by the thousand must not cost as many probes.
const DOUBTS_APART: Duration = Duration::from_secs(1);

/// The connection under a session, and its socket.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
}

/// The control loop's state.
#[derive(Debug)]
pub(super) struct Control {
    path: Path,
    tools: Tools,
    tuning: Tuning,
    liveness: Liveness,
    /// The way to the gateway when it was last looked at.
    route: Option<Route>,
    /// How many relays are open.
    open: watch::Receiver<usize>,
    /// Whether the sandbox works.
    doubts: watch::Receiver<u64>,
    news: mpsc::Sender<News>,
    outbox: Outbox,
    probes: Probes,
    renewal: Renewal,
}

impl Control {
    pub(super) fn new(
        path: Path,
        tuning: Tuning,
        tools: Tools,
        open: watch::Receiver<usize>,
        news: mpsc::Sender<News>,
    ) -> Self {
        let now = Instant::now();
        let liveness = Liveness::new(tuning, path.connection.path().received_datagrams, now);
        tools.work.set_max_execs(tuning.max_execs);
        let route = tools.routes.as_ref().and_then(|routes| routes.towards(path.connection.remote_address()));
        Self {
            liveness,
            route,
            outbox: Outbox::new(&tools.work),
            doubts: tools.work.doubts(),
            probes: Probes::new(now),
            renewal: Renewal::new(tools.identity.clone()),
            path,
            tools,
            tuning,
            open,
            news,
        }
    }

    /// Runs until the control stream breaks. What it has to say goes into `up`; after an order to leave it has said
    /// everything, and the queue ends.
    pub(super) async fn run(
        mut self,
        mut recv: MessageReader,
        mut orders: mpsc::Receiver<Order>,
        up: mpsc::Sender<Up>,
    ) -> StreamError {
        let reason = loop {
            let now = Instant::now();
            let look_at = self.liveness.next_look();
            let probe_at = self.probes.next;
            tokio::select! {
                message = recv.message::<Down>(limits::MAX_MESSAGE) => match message {
                    Ok(Some(message)) => self.on_down(message).await,
                    Ok(None) => return StreamError::Finished("a control message"),
                    Err(error) => return error,
                },
                Some(order) = orders.recv() => match order {
                    Order::Prove { away } => self.prove(away),
                    Order::Reroute => self.reroute(),
                    Order::Leave { reason } => break reason,
                },
                permit = up.reserve(), if !self.outbox.is_empty() => {
                    // The writer outlives this loop, or the session has ended and this is dropped.
                    if let Ok(permit) = permit
                        && let Some(message) = self.outbox.take(&self.tools.work)
                    {
                        permit.send(message);
                    }
                },
                () = tokio::time::sleep_until(look_at.unwrap_or(now)), if look_at.is_some() => self.look().await,
                Ok(()) = self.open.changed() => {
                    let open = *self.open.borrow_and_update();
                    self.liveness.on_relays(open, Instant::now());
                    self.look().await;
                },
                () = self.outbox.changed() => {},
                Ok(()) = self.doubts.changed() => self.probes.doubt(&self.tools),
                health = self.probes.done() => {
                    let again = if is_good(&health) { Duration::MAX } else { PROBE_AGAIN };
                    self.outbox.health(health);
                    self.probes.plan(self.tuning.probe_every.min(again));
                    self.probes.start_if_wanted(&self.tools);
                },
                () = tokio::time::sleep_until(probe_at) => {
                    self.probes.plan(self.tuning.probe_every);
                    self.probes.want(0);
                    self.probes.start_if_wanted(&self.tools);
                },
                step = self.renewal.next() => self.on_renewal(step),
            }
        };
        self.leave(reason, up).await
    }

    async fn on_down(&mut self, message: Down) {
        match message.body {
            Some(Body::Heartbeat(beat)) if beat.echo => {
                if let Some(act) = self.liveness.on_echo(beat.seq, Instant::now()) {
                    self.act(act).await;
                }
            }
            Some(Body::Heartbeat(beat)) => self.outbox.echo(beat.seq),
            Some(Body::ProbeNow(probe)) => {
                self.probes.want(probe.nonce);
                self.probes.start_if_wanted(&self.tools);
            }
            Some(Body::Settings(settings)) => self.tune(Tuning::from_settings(&settings)).await,
            Some(Body::GoAway(go)) => {
                let within = Duration::from_millis(go.reconnect_after_ms);
                tracing::info!(
                    ?within,
                    to = go.to,
                    reason = go.reason,
                    "the gateway asks this supervisor to go"
                );
                let to = (!go.to.is_empty()).then_some(go.to);
                self.tell(News::GoAway { within, to }).await;
            }
            Some(Body::RenewCertificate(_)) => {
                let step = self.renewal.ask();
                self.on_renewal(step);
            }
            Some(Body::Certificate(certificate)) => self.renewal.on_certificate(certificate),
            Some(Body::Suspending(suspending)) => {
                tracing::info!(
                    grace_ms = suspending.grace_ms,
                    "the gateway is about to suspend this sandbox"
                );
            }
            Some(Body::Resumed(resumed)) => self.prove(Duration::from_millis(resumed.away_ms)),
            Some(Body::Chaos(chaos)) => {
                if self.tools.faults.begin(&chaos) == Some(Act::Rebind) {
                    self.rebind("on request");
                }
            }
            Some(Body::Welcome(_) | Body::Refuse(_)) => {
                tracing::warn!("a second answer to the Hello; ignoring it");
            }
            None => tracing::debug!("skipping a control message that this version does not know"),
        }
    }

    async fn tune(&mut self, tuning: Tuning) {
        tracing::info!(?tuning, "new settings");
        self.tuning = tuning;
        self.liveness.tune(tuning);
        self.tools.work.set_max_execs(tuning.max_execs);
        self.probes.plan(tuning.probe_every);
        self.tell(News::Tuned(tuning)).await;
    }

    /// The machine stood still: the path is proven, the gateway told, the sandbox probed.
    fn prove(&mut self, away: Duration) {
        if let Act::Heartbeat { seq } = self.liveness.prove(Instant::now()) {
            self.outbox.beat(seq);
        }
        self.outbox.resumed(u64::try_from(away.as_millis()).unwrap_or(u64::MAX));
        self.probes.want(0);
        self.probes.start_if_wanted(&self.tools);
    }

    /// The network has changed. Where the way to the gateway is another one, or is there again, the connection moves
    /// to a new socket and the path is proven: relays or not, before silence would have told.
    fn reroute(&mut self) {
        let Some(routes) = &self.tools.routes else { return };
        let route = routes.towards(self.path.connection.remote_address());
        if route == self.route {
            return;
        }
        match &route {
            Some(to) => {
                tracing::info!(%to, "another way leads to the gateway now");
                self.rebind(&format!("network changed: {to}"));
                if let Act::Heartbeat { seq } = self.liveness.prove(Instant::now()) {
                    self.outbox.beat(seq);
                }
            }
            None => tracing::warn!("no way leads to the gateway any more"),
        }
        self.route = route;
    }

    fn rebind(&mut self, reason: &str) {
        let socket = self.tools.sockets.towards(self.path.connection.remote_address());
        match self.path.endpoint.rebind(socket) {
            Ok(()) => {
                let rebinds = self.tools.rebinds.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::info!(reason, rebinds, "moved the connection to a new socket");
                self.outbox.rebound(rebinds, reason.to_owned());
            }
            Err(error) => tracing::warn!(%error, "no new socket to move the connection to"),
        }
    }

    async fn look(&mut self) {
        let path = self.path.connection.path();
        for act in self.liveness.look(path.received_datagrams, path.rtt, Instant::now()) {
            self.act(act).await;
        }
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Heartbeat { seq } => self.outbox.beat(seq),
            Act::Rebind => self.rebind("silence"),
            Act::Suspect => {
                tracing::warn!("nothing is heard still: dialling a second connection beside this one");
                self.tell(News::Suspect).await;
            }
            Act::Recovered => self.tell(News::Recovered).await,
        }
    }

    fn on_renewal(&mut self, step: Step) {
        if let Step::Ask(csr) = step {
            self.outbox.certificate(csr);
        }
    }

    async fn tell(&self, news: News) {
        // The link is gone only when it is dropping this session too.
        let _ = self.news.send(news).await;
    }

    /// Says everything that is left, Leaving last, and ends the queue.
    async fn leave(mut self, reason: String, up: mpsc::Sender<Up>) -> StreamError {
        last_words(&mut self.open).await;
        self.outbox.leaving(reason);
        while !self.outbox.is_empty() {
            let Some(message) = self.outbox.take(&self.tools.work) else { continue };
            if up.send(message).await.is_err() {
                break;
            }
        }
        drop(up);
        // The writer ends the session once all of it is delivered.
        std::future::pending().await
    }
}

/// Probes: one at a time, on time or when asked.
#[derive(Debug)]
struct Probes {
    running: JoinSet<Health>,
    /// The nonce of the one that runs.
    nonce: u64,
    /// One more is wanted, with this nonce.
    wanted: Option<u64>,
    next: Instant,
    /// When a doubt was last followed at once.
    doubted: Option<Instant>,
}

impl Probes {
    /// The first one is due at once: Ready waits for it.
    fn new(now: Instant) -> Self {
        Self { running: JoinSet::new(), nonce: 0, wanted: None, next: now, doubted: None }
    }

    /// Whether the sandbox works is doubtful: probes at once, or as soon as the last doubt is long enough ago.
    fn doubt(&mut self, tools: &Tools) {
        let now = Instant::now();
        match self.doubted.map(|last| last + DOUBTS_APART) {
            Some(at) if at > now => self.next = self.next.min(at),
            _ => {
                self.doubted = Some(now);
                self.want(0);
                self.start_if_wanted(tools);
            }
        }
    }

    fn plan(&mut self, every: Duration) {
        self.next = Instant::now() + every;
    }

    fn want(&mut self, nonce: u64) {
        // A probe that was asked for counts for one that is due as well.
        self.wanted = Some(self.wanted.unwrap_or(0).max(nonce));
    }

    fn start_if_wanted(&mut self, tools: &Tools) {
        if !self.running.is_empty() {
            return;
        }
        let Some(nonce) = self.wanted.take() else { return };
        self.nonce = nonce;
        let work = tools.work.clone();
        self.running.spawn(async move { work.probe().await });
    }

    /// Waits for the one that runs. Cancel-safe.
    async fn done(&mut self) -> Health {
        let health = match self.running.join_next().await {
            Some(Ok(health)) => health,
            Some(Err(error)) => failed(&format!("the probe's own task failed: {error}")),
            None => std::future::pending().await,
        };
        Health { nonce: self.nonce, ..health }
    }
}

fn is_good(health: &Health) -> bool {
    [&health.exec, &health.filesystem].iter().all(|result| result.as_ref().is_some_and(|result| result.ok))
}

fn failed(message: &str) -> Health {
    let result = ProbeResult { ok: false, errno: 0, message: message.to_owned(), took_ms: 0 };
    Health { exec: Some(result.clone()), filesystem: Some(result), ..Health::default() }
}
