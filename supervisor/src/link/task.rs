//! The link's loop: feeds the state machine, does what it says. Owns all dials and sessions.

use std::{collections::HashMap, sync::Arc, time::Duration};

use holdfast_wire::transport::Lost;
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Leave, Seams, Status,
    dial::{self, Attached, Target},
    state::{Action, Dial, Event, Failure, Order, State},
};
use crate::control::{self, News, Tools};

/// News of one session on their way here. Each is a state of the path, seldom more than one a second.
const NEWS: usize = 16;

/// Orders to one session: more than can be given before it looks.
const ORDERS: usize = 8;

/// What a dial's task ends with.
type Dialled = Result<Attached, (Failure, dial::Error)>;

pub(super) struct Link {
    target: Arc<Target>,
    seams: Seams,
    tools: Tools,
    state: State,
    busy: watch::Receiver<usize>,
    status: watch::Sender<Status>,
    dials: JoinSet<Dialled>,
    dialling: HashMap<Id, (Dial, CancellationToken)>,
    /// Welcomed, and not activated or retired yet.
    fresh: Option<(Dial, Attached)>,
    sessions: JoinSet<Lost>,
    active: HashMap<Id, Active>,
    news: mpsc::Sender<(Dial, News)>,
}

struct Active {
    dial: Dial,
    token: CancellationToken,
    orders: mpsc::Sender<control::Order>,
}

/// What the loop woke up for.
enum Wake {
    Event(Event),
    Leave(Leave),
    Nothing,
}

impl Link {
    pub(super) fn new(
        target: Target,
        seams: Seams,
        tools: Tools,
        status: watch::Sender<Status>,
    ) -> (Self, mpsc::Receiver<(Dial, News)>) {
        let (news, from_sessions) = mpsc::channel(NEWS);
        let link = Self {
            state: State::new(seams.seed),
            target: Arc::new(target),
            busy: tools.work.running(),
            seams,
            tools,
            status,
            dials: JoinSet::new(),
            dialling: HashMap::new(),
            fresh: None,
            sessions: JoinSet::new(),
            active: HashMap::new(),
            news,
        };
        (link, from_sessions)
    }

    /// Runs until an order to leave has been followed, or `token` is cancelled.
    pub(super) async fn run(
        mut self,
        mut from_sessions: mpsc::Receiver<(Dial, News)>,
        mut leave: mpsc::Receiver<Leave>,
        token: CancellationToken,
    ) {
        let (jumps, mut jumped) = mpsc::channel(1);
        let mut looking = JoinSet::new();
        if let Some(clocks) = self.seams.clocks.clone() {
            let token = token.child_token();
            looking.spawn(async move { crate::clocks::watch(&*clocks, jumps, token).await });
        }
        let (changes, mut changed) = mpsc::channel(1);
        if let Some(routes) = self.seams.routes.clone() {
            looking.spawn(super::routes::watch(routes, changes, token.child_token()));
        }
        self.take(Event::Start);
        loop {
            let tick_at = self.state.next_wake();
            let wake = tokio::select! {
                () = token.cancelled() => return,
                Some(order) = leave.recv() => Wake::Leave(order),
                Some(ended) = self.dials.join_next_with_id() => self.dial_ended(ended),
                Some(ended) = self.sessions.join_next_with_id() => self.session_ended(ended),
                Some((dial, news)) = from_sessions.recv() => Wake::Event(event(dial, news)),
                Some(away) = jumped.recv() => {
                    tracing::info!(?away, "the clocks say that this machine stood still");
                    Wake::Event(Event::Jumped { away })
                }
                Some(()) = changed.recv() => Wake::Event(Event::Rerouted),
                () = sleep_until(tick_at) => Wake::Event(Event::Tick),
            };
            match wake {
                Wake::Event(event) => self.take(event),
                Wake::Leave(order) => return self.leave(order).await,
                Wake::Nothing => {}
            }
        }
    }

    /// Gives an event to the state machine and does what it says, in its order.
    fn take(&mut self, event: Event) {
        let now = Instant::now();
        let busy = *self.busy.borrow() > 0;
        for action in self.state.on(event, now, busy) {
            match action {
                Action::Dial(order) => self.dial(order),
                Action::Abandon { dial } => {
                    for (running, unwanted) in self.dialling.values() {
                        if *running == dial {
                            unwanted.cancel();
                        }
                    }
                }
                Action::Retire { dial } => self.retire(dial),
                Action::Activate { dial } => self.activate(dial),
                Action::Prove { dial, away } => self.order(dial, control::Order::Prove { away }),
                Action::Reroute { dial } => self.order(dial, control::Order::Reroute),
            }
        }
        let status = Status { phase: self.state.phase(now), since: jiff::Timestamp::now() };
        self.status.send_if_modified(|old| {
            let changed = !old.phase.is_like(&status.phase);
            *old = if changed { status } else { Status { since: old.since, ..status } };
            changed
        });
    }

    fn dial(&mut self, order: Order) {
        tracing::info!(dial = order.dial.0, reason = order.reason, away = ?order.away, "dialling");
        let (target, seams, tools) = (Arc::clone(&self.target), self.seams.clone(), self.tools.clone());
        let (number, unwanted) = (order.dial, CancellationToken::new());
        let token = unwanted.clone();
        let task = self.dials.spawn(async move { dial::dial(&target, &seams, &tools, &order, &token).await });
        self.dialling.insert(task.id(), (number, unwanted));
    }

    fn dial_ended(&mut self, ended: Result<(Id, Dialled), JoinError>) -> Wake {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some((dial, _)) = self.dialling.remove(&id) else { return Wake::Nothing };
        let failure = match ended {
            Ok((_, Ok(attached))) => {
                let (epoch, gateway) = (attached.epoch, attached.gateway.clone());
                // The settings count for the delays after this session too.
                let tuned = Event::Tuned(attached.session.tuning);
                self.fresh = Some((dial, attached));
                self.take(tuned);
                return Wake::Event(Event::Attached { dial, epoch, gateway });
            }
            Ok((_, Err((failure, error)))) => {
                match failure {
                    Failure::Abandoned | Failure::Renewed => tracing::info!(dial = dial.0, "{error}"),
                    Failure::RefusedForGood => {
                        tracing::error!(dial = dial.0, %error, "the gateway wants this supervisor never to come back");
                    }
                    _ => tracing::warn!(dial = dial.0, %error, "the dial failed"),
                }
                failure
            }
            Err(error) => {
                tracing::error!(dial = dial.0, %error, "the dial's task failed");
                Failure::Failed { unsure: true }
            }
        };
        Wake::Event(Event::DialFailed { dial, failure })
    }

    fn session_ended(&mut self, ended: Result<(Id, Lost), JoinError>) -> Wake {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some(Active { dial, .. }) = self.active.remove(&id) else { return Wake::Nothing };
        let lost = match ended {
            Ok((_, lost)) => lost,
            Err(error) => Lost::Transport(format!("the session's task failed: {error}")),
        };
        tracing::info!(dial = dial.0, %lost, "the session has ended");
        Wake::Event(Event::Lost { dial, lost })
    }

    fn activate(&mut self, dial: Dial) {
        let Some((_, attached)) = self.fresh.take_if(|(fresh, _)| *fresh == dial) else { return };
        let token = CancellationToken::new();
        let (orders, order_of) = mpsc::channel(ORDERS);
        let (news, mut told) = mpsc::channel(1);
        let (tools, link, ends) = (self.tools.clone(), self.news.clone(), token.clone());
        let task = self.sessions.spawn(async move {
            let session = attached.session.run(tools, order_of, news, ends);
            // Each session's news are marked with its dial: a retired one's are not the present one's.
            let marking = async {
                while let Some(news) = told.recv().await {
                    if link.send((dial, news)).await.is_err() {
                        break;
                    }
                }
                std::future::pending().await
            };
            tokio::select! { lost = session => lost, never = marking => never }
        });
        self.active.insert(task.id(), Active { dial, token, orders });
    }

    /// The token first: no relay of the old session is served when the new one reports its execs.
    fn retire(&mut self, dial: Dial) {
        for session in self.active.values().filter(|session| session.dial == dial) {
            session.token.cancel();
        }
        // Welcomed, but older than what is held.
        if let Some((_, attached)) = self.fresh.take_if(|(fresh, _)| *fresh == dial) {
            attached
                .session
                .connection
                .close(holdfast_wire::close::CloseCode::UNRESPONSIVE, "a newer connection is held already");
        }
    }

    fn order(&self, dial: Dial, order: control::Order) {
        if let Some(session) = self.active.values().find(|session| session.dial == dial)
            && session.orders.try_send(order).is_err()
        {
            tracing::warn!(dial = dial.0, "the session takes no orders now");
        }
    }

    /// Lets every session say goodbye, and waits for their ends. Dials are dropped.
    async fn leave(mut self, order: Leave) {
        self.dials.abort_all();
        for session in self.active.values() {
            // A session that takes no orders has lost its path; its peer will notice by itself.
            let _ = session.orders.try_send(control::Order::Leave { reason: order.reason.clone() });
        }
        let ended = async { while self.sessions.join_next().await.is_some() {} };
        if tokio::time::timeout(order.within, ended).await.is_err() {
            tracing::warn!(within = ?order.within, "the gateway could not be told in time that this supervisor stops");
        }
        let _ = order.done.send(());
    }
}

fn event(dial: Dial, news: News) -> Event {
    match news {
        News::Suspect => Event::Suspect { dial },
        News::Recovered => Event::Recovered { dial },
        News::GoAway { within, to } => Event::GoAway { dial, within, to },
        News::Tuned(tuning) => Event::Tuned(tuning),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// How long the goodbye may take: the last words of relays, the linger, the drain, and a little.
pub(super) const LEAVE: Duration = Duration::from_secs(5);
