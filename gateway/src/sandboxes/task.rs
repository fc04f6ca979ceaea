//! The one task of one sandbox: it puts facts into the state, does the steps that follow, and shows the view.
//!
//! It never waits for the driver or for execs: calls run in its `JoinSet`, facts for execs leave when there is
//! room. It does wait for the store, because nothing may be told that is not stored: an epoch before `Welcome`, a
//! wish before its answer.

mod entry;
mod lives;
mod show;
mod wishes;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use backon::BackoffBuilder;
use holdfast_drivers::{BootStage, Isolation, Observed, Verb};
use holdfast_wire::{
    api::{self, ConditionStatus, LostReason, Phase},
    close::CloseCode,
    control::{self, Health, RefuseCode, down},
    ids::{Epoch, Generation, Instance},
};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{self, AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    Activity, Core, SandboxFact,
    calls::{self, Call, Failure},
    handle::{Admission, Ask, MAILBOX, Message, Refusal},
    idle_stop,
    lifetime::{self, Due, Lifetime},
    state::{Assessment, Can, Level, State, Step, Wanted},
    unsupported,
    view::{Condition, ConditionKind, LINK_EVENTS, LinkEvent, View, word},
};
use crate::{
    error::{CallError, Reason},
    events::reason,
    sessions::{Hello, Lost, Session},
    store::{Desired, SandboxRecord, StoreError, Why, stamp},
};

/// Supervisor processes that lost their place to another one and are not let in again. More than a handful means
/// that something starts them in a loop; then the oldest may fight for its place anew.
const RETIRED: usize = 16;

/// The end of the console that is shown where a boot failed, in bytes: a panic's message and its neighbours.
const CONSOLE_TAIL: usize = 2048;

/// How long a supervisor stays away that came while the gateway could not decide.
const BUSY: Duration = Duration::from_secs(1);

/// How soon a write that failed is tried again.
const REWRITE: Duration = Duration::from_secs(1);

/// What came out of the `JoinSet`.
#[derive(Debug)]
enum Done {
    Call(Result<Option<Observed>, Failure>),
    Console { generation: Generation, text: String },
}

/// One sandbox.
pub(super) struct Task {
    core: Arc<Core>,
    name: Arc<str>,
    record: Arc<SandboxRecord>,
    /// What the record has to become, when it was not written yet.
    rewrite_at: Option<Instant>,
    state: State,
    activity: Activity,
    lifetime: Lifetime,
    /// What its lifetime makes due could not be done: it is tried again then.
    due_again: Option<Instant>,
    mailbox: mpsc::Receiver<Message>,
    levels: watch::Receiver<Level>,
    view: watch::Sender<Arc<View>>,
    session: Option<Session>,
    /// The newest dial of the instance that was let in last.
    dialled: Option<(Instance, u64)>,
    retired: VecDeque<Instance>,
    /// Why the last supervisor that dialled was not let in.
    refused: Option<String>,
    /// When somebody asked for a pause.
    paused_at: Option<Instant>,
    jobs: JoinSet<Done>,
    call: Option<AbortHandle>,
    delays: Box<dyn Iterator<Item = Duration> + Send>,
    /// Facts that execs have not been told yet: one of a kind, the newest.
    outbox: VecDeque<SandboxFact>,
    /// The stages of the boot that people were told.
    told_stages: Vec<BootStage>,
    /// The death that people were told last: of which generation, after which epoch.
    told_dead: Option<(Generation, Epoch)>,
    /// Up to which epoch execs were told that they are lost.
    told_lost: Option<Epoch>,
    /// The newest epoch of the workloads before the wanted one: dead as soon as that is made.
    replaced: Option<Epoch>,
    links: VecDeque<LinkEvent>,
    gone: bool,
}

impl Task {
    /// A task that has not begun, its mailbox, and its view, which is right from the start.
    pub(super) fn new(
        core: Arc<Core>,
        record: SandboxRecord,
        name: Arc<str>,
        levels: watch::Receiver<Level>,
    ) -> (Self, mpsc::Sender<Message>, watch::Receiver<Arc<View>>) {
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let now = Instant::now();
        let can = core.parts.driver.capabilities();
        // A container without limits of its own, as a rootless engine makes them on cgroup v1, is counted with others.
        let own_memory = can.isolation >= Isolation::Container && can.resources;
        let can = Can { stop: can.stop_start, logs: can.logs, own_memory, boot: can.boot };
        let wanted = wanted(&record, core.parts.driver.name());
        // No session of the wanted workload was ever there: all that were belong to older ones.
        let replaced = (record.attached < record.generation).then_some(record.epoch);
        let state = State::new(wanted, can, core.parts.settings.boot_deadline, record.epoch, now);
        let clocks = lifetime::Now { instant: now, wall: core.parts.settings.wall.now() };
        let active = record.active_at.map_or(now, |at| lifetime::instant(at, clocks));
        let lifetime = Lifetime::new(record.expires_at, idle_stop(&record.spec));
        let record = Arc::new(record);
        let assessment = state.assess(now);
        // Of one that came up under an earlier gateway nothing is told again.
        let told_stages = assessment.boot.iter().map(|reached| reached.stage).collect();
        let view = show::shown(&record, &state, &assessment, None, Vec::new(), None, false);
        let (view, shown) = watch::channel(Arc::new(view));
        let task = Self {
            core,
            name,
            record,
            rewrite_at: None,
            state,
            activity: Activity::new(active),
            lifetime,
            due_again: None,
            mailbox,
            levels,
            view,
            session: None,
            dialled: None,
            retired: VecDeque::new(),
            refused: None,
            paused_at: None,
            jobs: JoinSet::new(),
            call: None,
            delays: delays(),
            outbox: VecDeque::new(),
            told_stages,
            told_dead: None,
            told_lost: None,
            replaced,
            links: VecDeque::new(),
            gone: false,
        };
        (task, sender, shown)
    }

    /// Lives until the sandbox is gone, or the room stops.
    pub(super) async fn run(mut self) {
        let token = self.core.token.clone();
        let facts = self.core.parts.facts.clone();
        loop {
            let wake_at = self.settle().await;
            if self.gone && self.outbox.is_empty() {
                return;
            }
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                permit = facts.reserve(), if !self.outbox.is_empty() => match (permit, self.outbox.pop_front()) {
                    (Ok(permit), Some(fact)) => permit.send(fact),
                    // Nobody listens to facts any more: the gateway stops.
                    _ => self.outbox.clear(),
                },
                lost = ended(self.session.as_ref()) => self.on_session_ended(lost),
                Some(done) = self.jobs.join_next_with_id(), if !self.jobs.is_empty() => self.on_done(done),
                message = self.mailbox.recv(), if !self.gone => match message {
                    Some(message) => self.on_message(message).await,
                    None => return,
                },
                changed = self.levels.changed(), if !self.gone => match changed {
                    Ok(()) => self.on_level(),
                    // The map has let go of this sandbox.
                    Err(_) => return,
                },
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
            }
        }
    }

    // ---- facts in ---------------------------------------------------------------------------------

    async fn on_message(&mut self, message: Message) {
        match message {
            Message::Hello { hello, answer } => {
                let answered = self.on_hello(&hello).await;
                let refused = answered.as_ref().err().map(|refusal| refusal.reason.clone());
                // One that comes again and again is told once.
                if let Some(reason) = refused.as_ref().filter(|_| self.refused != refused) {
                    self.link(format!("refused: {reason}"));
                    self.event(reason::SESSION_REFUSED, reason.clone());
                }
                self.refused = refused;
                // A session that went away meanwhile has used up an epoch, and nothing else.
                let _ = answer.send(answered);
            }
            Message::Attached { epoch, session } => self.on_attached(epoch, session),
            Message::Lost { epoch, lost } => self.on_lost(epoch, &lost),
            Message::Health { epoch, health } => self.on_health(epoch, &health),
            Message::Resumed { epoch, away } => {
                if self.state.on_resumed(epoch, Instant::now()) {
                    self.link(format!("the supervisor was away for {:.1} s", away.as_secs_f64()));
                    self.session.as_ref().map(Session::probe_now);
                }
            }
            Message::Main { generation, status } => self.state.on_main(generation, status),
            Message::Ask { ask, answer } => self.on_ask(ask, answer).await,
        }
    }

    fn on_attached(&mut self, epoch: Epoch, session: Session) {
        let now = Instant::now();
        if !self.state.on_attached(epoch, session.generation(), now) {
            session.close(CloseCode::SUPERSEDED, "a session with a newer epoch is attached");
            return;
        }
        let older = self.session.replace(session.clone());
        if let Some(older) = older {
            older.close(CloseCode::SUPERSEDED, format!("superseded by epoch {epoch}"));
        }
        self.link(format!("attached with epoch {epoch} ({})", session.hello().dial_reason));
        let message = format!("epoch {epoch}, supervisor {}", session.version());
        self.event(reason::SESSION_ATTACHED, message);
        self.tell(SandboxFact::SessionAttached {
            sandbox: self.record.id,
            epoch,
            instance: session.instance(),
            generation: session.generation(),
        });
        // It may have ended before it came here; then its end has come too, or comes at once.
    }

    fn on_session_ended(&mut self, lost: Lost) {
        if let Some(session) = &self.session {
            self.on_lost(session.epoch(), &lost);
        }
    }

    fn on_lost(&mut self, epoch: Epoch, lost: &Lost) {
        if !self.state.on_lost(epoch, lost.to_string()) {
            return;
        }
        self.session = None;
        self.link(format!("epoch {epoch} lost: {lost}"));
        self.event(reason::SESSION_LOST, format!("epoch {epoch}: {lost}"));
    }

    fn on_health(&mut self, epoch: Epoch, health: &Health) {
        let kills = self.state.memory_kills();
        self.state.on_health(epoch, health, Instant::now());
        if self.state.memory_kills() > kills {
            self.on_out_of_memory();
        }
    }

    /// The sandbox goes on without what was killed: so it is said where people look afterwards.
    fn on_out_of_memory(&mut self) {
        let Some(status) = self.state.assess(Instant::now()).memory else { return };
        // Long ago, and told by a supervisor that has come to a new gateway.
        if status.status == ConditionStatus::True {
            return;
        }
        self.event(reason::OUT_OF_MEMORY, status.message.clone());
        self.last_error(status.reason, status.message, "memory");
    }

    fn on_level(&mut self) {
        let level = self.levels.borrow_and_update().clone();
        if self.state.on_level(level, Instant::now()) {
            self.rewrite_at = Some(Instant::now());
        }
    }

    fn on_done(&mut self, done: Result<(task::Id, Done), JoinError>) {
        let current = self.call.as_ref().map(AbortHandle::id);
        match done {
            Ok((_, Done::Console { generation, text })) => self.state.on_console(generation, text),
            Ok((id, Done::Call(answer))) if Some(id) == current => self.on_answer(answer),
            Err(error) if error.is_panic() => {
                tracing::error!(sandbox = %self.record.id, %error, "a call of the driver ended by a panic");
                if Some(error.id()) == current {
                    self.on_answer(Err(Failure::panicked()));
                }
            }
            // A call that was dropped: its answer came too late, or never.
            Ok((_, Done::Call(_))) | Err(_) => {}
        }
    }

    fn on_answer(&mut self, answer: Result<Option<Observed>, Failure>) {
        let now = Instant::now();
        self.call = None;
        if matches!((self.state.call(), &answer), (Some(Call::Resume), Ok(_))) {
            self.wake_supervisor(now);
        }
        let retry = match &answer {
            Ok(made) => {
                self.delays = delays();
                if let Some(made) = made {
                    let handle = made.handle.as_deref().unwrap_or("without a handle");
                    self.event(reason::WORKLOAD_STARTED, format!("workload {} ({handle})", made.generation));
                }
                Duration::ZERO
            }
            Err(failure) => {
                self.event(reason::DRIVER_FAILED, failure.message.clone());
                self.delays.next().unwrap_or(LONGEST)
            }
        };
        if self.state.on_answer(answer, retry, now) {
            self.rewrite_at = Some(now);
        }
    }

    /// The workload runs on: its supervisor has work to do at once, wherever its own clocks think it is.
    fn wake_supervisor(&mut self, now: Instant) {
        let away = self.paused_at.take().map_or(Duration::ZERO, |paused| now - paused);
        let thawed = control::Resumed { away_ms: u64::try_from(away.as_millis()).unwrap_or(u64::MAX) };
        if let Some(session) = &self.session {
            session.send(down::Body::Resumed(thawed));
            session.probe_now();
        }
    }

    // ---- what follows -----------------------------------------------------------------------------

    /// Does the steps that follow from the facts, until none does, and shows the result. Says when to look again.
    async fn settle(&mut self) -> Option<Instant> {
        loop {
            let now = Instant::now();
            let assessment = self.state.assess(now);
            self.note(&assessment);
            if self.live_on(assessment.phase, now).await {
                continue;
            }
            if self.rewrite_at.is_some_and(|at| at <= now) {
                self.rewrite(now).await;
                continue;
            }
            self.show(&assessment);
            if self.gone || assessment.steps.is_empty() {
                let lives = self.life_wakes_at(now);
                return assessment.wake_at.into_iter().chain(self.rewrite_at).chain(lives).min();
            }
            for step in assessment.steps {
                self.step(step, now).await;
            }
        }
    }

    async fn step(&mut self, step: Step, now: Instant) {
        match step {
            Step::Call(call) => self.begin(call),
            Step::Abandon => {
                if let Some(call) = self.call.take() {
                    call.abort();
                }
                self.state.on_abandoned(now);
            }
            Step::Close(code, why) => {
                if let Some(session) = self.session.take() {
                    session.close(code, why);
                }
                let lost = Lost::here(code, why);
                self.state.on_closed(lost.to_string());
                self.link(lost.to_string());
                self.event(reason::SESSION_LOST, lost.to_string());
            }
            Step::Console => self.read_console(),
            Step::GiveUpPausing => {
                let running = Wanted { desired: Desired::Running, ..self.state.wanted };
                self.state.on_wanted(running);
                self.rewrite_at = Some(now);
                self.wake_supervisor(now);
            }
            Step::Forget => self.forget(now).await,
        }
    }

    fn begin(&mut self, call: Call) {
        let (core, record) = (self.core.clone(), self.record.clone());
        self.state.on_called(call);
        let answer = async move {
            let begun = Instant::now();
            let answer = calls::run(&core.parts, &record, call).await;
            let result = answer.as_ref().map_or_else(|failure| failure.reason, |_| "ok");
            metrics::histogram!("holdfast_driver_call_seconds", "verb" => call.verb().to_string(), "result" => result)
                .record(begun.elapsed());
            Done::Call(answer)
        };
        self.call = Some(self.jobs.spawn(answer));
    }

    fn read_console(&mut self) {
        let (core, id, generation) = (self.core.clone(), self.record.id, self.state.wanted.generation);
        self.state.on_console(generation, String::new());
        self.jobs.spawn(async move {
            let tail = calls::logs(core.parts.driver.as_ref(), id, CONSOLE_TAIL).await;
            let text = tail.map_or_else(|failure| failure.message, |tail| legible(&tail));
            Done::Console { generation, text }
        });
    }

    /// Nothing is left of the sandbox but its row.
    async fn forget(&mut self, now: Instant) {
        if let Err(error) = self.core.parts.store.delete(self.record.id, Timestamp::now()).await {
            tracing::error!(sandbox = %self.record.id, %error, "removing a sandbox from the store");
            self.state.on_forget_failed(&error.to_string(), now + REWRITE);
            return;
        }
        self.tell(SandboxFact::Deleted { sandbox: self.record.id });
        self.event(reason::DELETED, "");
        self.core.parts.events.depart(self.record.id);
        self.gone = true;
        self.core.remove(self.record.id);
        self.show(&self.state.assess(now));
        // Whoever waits for an answer gets the last one: it is gone.
        self.mailbox.close();
        while self.mailbox.try_recv().is_ok() {}
    }

    /// Execs hear once that they are lost. After a restart they hear it again: the last gateway may have died
    /// before they did.
    fn tell_gone(&mut self, generation: Generation, up_to: Epoch, message: String) {
        if self.told_lost.is_some_and(|told| told >= up_to) {
            return;
        }
        self.told_lost = Some(up_to);
        let (sandbox, reason) = (self.record.id, LostReason::WorkloadGone);
        self.tell(SandboxFact::WorkloadGone { sandbox, generation, up_to, reason, message });
    }

    fn tell(&mut self, fact: SandboxFact) {
        // A newer fact of a kind says all that an older one said: epochs only rise.
        let kind = std::mem::discriminant(&fact);
        self.outbox.retain(|waiting| std::mem::discriminant(waiting) != kind);
        self.outbox.push_back(fact);
    }

    fn link(&mut self, what: String) {
        if self.links.len() == LINK_EVENTS {
            self.links.pop_front();
        }
        self.links.push_back(LinkEvent { at: Timestamp::now(), what });
    }

    fn event(&self, reason: &'static str, message: impl Into<String>) {
        let phase = self.view.borrow().phase;
        self.core.parts.events.record(self.record.id, &self.name, reason, message, phase);
    }
}

/// The longest delay between two tries of a driver's call.
const LONGEST: Duration = Duration::from_secs(30);

fn delays() -> Box<dyn Iterator<Item = Duration> + Send> {
    Box::new(
        backon::ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(LONGEST)
            .with_jitter()
            .without_max_times()
            .build(),
    )
}

/// Waits for the end of a session; for ever where there is none.
async fn ended(session: Option<&Session>) -> Lost {
    match session {
        Some(session) => session.closed().await,
        None => std::future::pending().await,
    }
}

fn wanted(record: &SandboxRecord, driver: &str) -> Wanted {
    Wanted {
        desired: record.desired,
        why: record.why,
        grace: record.grace,
        generation: record.generation,
        made: record.made,
        attached: record.attached,
        foreign: record.driver != driver,
        ephemeral: record.spec.workspace == "ephemeral",
    }
}

/// A console's end as text: what cannot be shown is replaced, lines are kept.
fn legible(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    let text: String = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    text.trim().to_owned()
}
