//! The one task of an exec: drives its state machine from the start of its command to its outcome.
//!
//! In: the spawner's answer, output, the leader's end, orders, time. Out: bytes to the spool, signals, the record
//! and the phase. Nothing in here waits for a reader or for the disk, but for the room that the spool gives (which
//! orders and time interrupt) and, bounded, for the outcome's record.

use std::{future::Future, io, sync::Arc};

use bytes::{BufMut as _, BytesMut};
use futures::future::BoxFuture;
use holdfast_wire::api::{Lost, LostReason, Outcome, outcome::Kind};
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, sleep_until},
};

use super::{
    Inner,
    exec::{End, Exec, Inbox, Order, Phase, Run, bounded, now},
    spawn::{Control, Exit, Output, SpawnError, SpawnRequest, Spawned},
    spool::{READ, Spool, Stream},
    state::{Action, Event, State},
    stdin::{Feeder, Stdin},
};

/// When a deadline strikes during the drain, so many reads are still tried: a process that was suspended finds
/// deadline and output waiting at the same instant, and the output came first.
const LAST_READS: usize = 64;

/// A buffer with less room than this is replaced before the next read.
const BUFFER_LOW: usize = 4096;

/// Runs one exec from its acceptance to its outcome.
pub(super) async fn run(core: Arc<Inner>, exec: Arc<Exec>, inbox: Inbox, request: SpawnRequest) {
    let token = core.token.child_token();
    let mut task = Task {
        state: State::new(exec.facts.times, Instant::now()),
        live: None,
        run: None,
        over: false,
        core,
        exec,
        inbox,
    };
    tokio::select! {
        () = task.drive(request) => {}
        // The supervisor is stopping without having ended its execs: dropping the task kills the command.
        () = token.cancelled() => {}
    }
}

struct Task {
    core: Arc<Inner>,
    exec: Arc<Exec>,
    inbox: Inbox,
    state: State,
    live: Option<Live>,
    run: Option<Run>,
    over: bool,
}

type Spawning = BoxFuture<'static, Result<Spawned, SpawnError>>;

impl Task {
    async fn drive(&mut self, request: SpawnRequest) {
        self.exec.spool.save(self.exec.record(&Phase::Accepted, None), false);
        let stdin_wanted = request.stdin;
        let mut spawning: Option<Spawning> = Some(self.core.config.spawner.spawn(request));
        let mut pending = None;
        while !self.over {
            let event = match pending.take() {
                Some(event) => event,
                None => self.next(&mut spawning).await,
            };
            let event = match event {
                Happened::Spawned(Ok(spawned)) => {
                    self.on_spawned(spawned, stdin_wanted);
                    Event::Spawned
                }
                Happened::Spawned(Err(error)) => Event::SpawnFailed(error),
                Happened::Event(event) => event,
                Happened::Order(order) => {
                    self.on_order(order);
                    continue;
                }
                Happened::Cancelled => match self.inbox.cancel.borrow_and_update().clone() {
                    Some(cancel) => Event::Cancel { by: cancel.by, grace: cancel.grace },
                    None => continue,
                },
                Happened::Deadline => {
                    // What the pipes hold was written before this instant.
                    if let Some(event) = self.last_reads().await {
                        pending = Some(Happened::Event(Event::Tick));
                        event
                    } else {
                        Event::Tick
                    }
                }
            };
            for action in self.state.on(event, Instant::now()) {
                match action {
                    Action::AbandonSpawn => spawning = None,
                    Action::End { outcome, left_processes } => self.end(outcome, left_processes).await,
                    action => self.act(&action),
                }
            }
        }
    }

    /// Waits for whatever happens next.
    async fn next(&mut self, spawning: &mut Option<Spawning>) -> Happened {
        let deadline = self.state.deadline();
        let (exec, live) = (&self.exec, &mut self.live);
        tokio::select! {
            result = or_never(spawning) => {
                *spawning = None;
                Happened::Spawned(result)
            }
            event = async {
                match live {
                    Some(live) => live.next(&exec.spool, &exec.stdin).await,
                    None => std::future::pending().await,
                }
            } => Happened::Event(event),
            Some(order) = self.inbox.orders.recv() => Happened::Order(order),
            Ok(()) = self.inbox.cancel.changed() => Happened::Cancelled,
            () = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            } => Happened::Deadline,
        }
    }

    fn on_spawned(&mut self, spawned: Spawned, stdin_wanted: bool) {
        let run = Run { pid: spawned.pid, started_at: now() };
        let mark = spawned.control.mark();
        self.run = Some(run);
        self.live = Some(Live::new(spawned, &self.exec));
        if !stdin_wanted {
            self.exec.stdin.close();
        }
        let phase = Phase::Running(run);
        self.exec.spool.save(self.exec.record(&phase, Some(mark)), false);
        self.core.advance(&self.exec, phase);
    }

    /// Nobody waits for an answer any more: fine.
    fn on_order(&mut self, order: Order) {
        let not_yet = || Err(io::Error::from(io::ErrorKind::NotConnected));
        match order {
            Order::Signal(signal, done) => {
                let _ = done.send(match &mut self.live {
                    Some(live) => live.control.signal(signal),
                    None => not_yet(),
                });
            }
            Order::Resize { cols, rows, done } => {
                let _ = done.send(match &mut self.live {
                    Some(live) => live.control.resize(cols, rows),
                    None => not_yet(),
                });
            }
        }
    }

    fn act(&mut self, action: &Action) {
        if *action == Action::Drain {
            self.exec.spool.drain();
        }
        let Some(live) = &mut self.live else { return };
        match action {
            // ESRCH: the group is gone already, and the leader's end on its way.
            Action::Terminate => {
                let _ = live.control.signal(libc::SIGTERM);
                // A stopped process does not see a SIGTERM.
                let _ = live.control.signal(libc::SIGCONT);
            }
            Action::KillAll => live.killing = Some(live.control.kill_all()),
            Action::AwaitRest => live.resting = Some(live.control.gone()),
            _ => {}
        }
    }

    /// Reads what the pipes hold right now; says whether that was something.
    async fn last_reads(&mut self) -> Option<Event> {
        let live = self.live.as_mut().filter(|live| live.leader_ended)?;
        let mut event = None;
        for _ in 0..LAST_READS {
            let pump = live.pumps(&self.exec.spool);
            let now = std::future::ready(());
            // Without the runtime's budget: it would say "nothing" when it means "later".
            let read = tokio::task::unconstrained(async {
                tokio::select! {
                    biased;
                    event = pump => Some(event),
                    () = now => None,
                }
            });
            match read.await {
                Some(Event::Output) => event = Some(Event::Output),
                Some(closed) => return Some(closed),
                None => break,
            }
        }
        event
    }

    /// The outcome: kept first, told then.
    async fn end(&mut self, outcome: Outcome, left_processes: bool) {
        self.over = true;
        if let Some(live) = self.live.take() {
            live.end(&self.core);
        }
        self.exec.stdin.close();
        self.exec.spool.close();
        self.publish(outcome, left_processes).await;
    }

    async fn publish(&mut self, outcome: Outcome, left_processes: bool) {
        let outcome = bounded(outcome);
        let phase = self.ended(outcome, left_processes);
        let revision = self.exec.spool.save(self.exec.record(&phase, None), true);
        if !self.exec.spool.saved(revision).await {
            tracing::warn!(exec = %self.exec.id, "the outcome is told before its record is on disk");
        }
        self.core.advance(&self.exec, phase);
        self.exec.spool.retire();
    }

    fn ended(&self, outcome: Outcome, left_processes: bool) -> Phase {
        let expires = Instant::now() + self.exec.facts.times.retain_for;
        Phase::Ended(End { run: self.run, outcome, ended_at: now(), left_processes, expires })
    }
}

impl Drop for Task {
    /// However the task ends, its exec does not stay "running": after a panic, or when the supervisor goes down.
    fn drop(&mut self) {
        if self.exec.has_ended() {
            return;
        }
        let lost = Lost {
            reason: LostReason::Unspecified as i32,
            message: "the supervisor's task for it ended without an outcome".to_owned(),
        };
        let phase = self.ended(Outcome { kind: Some(Kind::Lost(lost)) }, false);
        self.exec.stdin.close();
        self.exec.spool.close();
        self.exec.spool.save(self.exec.record(&phase, None), true);
        self.core.advance(&self.exec, phase);
        self.exec.spool.retire();
    }
}

enum Happened {
    Spawned(Result<Spawned, SpawnError>),
    Event(Event),
    Order(Order),
    Cancelled,
    Deadline,
}

/// A command that runs, with everything that comes from it.
struct Live {
    pumps: [Pump; 2],
    closed_told: bool,
    feeder: Feeder,
    wait: BoxFuture<'static, io::Result<Exit>>,
    leader_ended: bool,
    killing: Option<BoxFuture<'static, bool>>,
    resting: Option<BoxFuture<'static, ()>>,
    // Last: what is still running is killed after its pipes are closed.
    control: Box<dyn Control>,
}

impl Live {
    fn new(spawned: Spawned, exec: &Exec) -> Self {
        let Spawned { stdin, stdout, stderr, wait, control, .. } = spawned;
        Self {
            pumps: [Pump::new(Stream::Stdout, Some(stdout)), Pump::new(Stream::Stderr, stderr)],
            closed_told: false,
            feeder: Feeder::new(stdin, exec.facts.tty, &exec.stdin),
            wait,
            leader_ended: false,
            killing: None,
            resting: None,
            control,
        }
    }

    /// The next event of the command's own. Cancel-safe.
    async fn next(&mut self, spool: &Spool, stdin: &Stdin) -> Event {
        let [stdout, stderr] = &mut self.pumps;
        if !self.closed_told && stdout.source.is_none() && stderr.source.is_none() {
            self.closed_told = true;
            return Event::OutputClosed;
        }
        tokio::select! {
            () = stdout.step(spool) => Event::Output,
            () = stderr.step(spool) => Event::Output,
            exit = &mut self.wait, if !self.leader_ended => {
                self.leader_ended = true;
                self.control.reaped();
                match exit {
                    Ok(exit) => Event::LeaderEnded(exit),
                    Err(error) => Event::LeaderLost(format!("waiting for the command: {error}")),
                }
            }
            others = or_never(&mut self.killing) => {
                self.killing = None;
                Event::AllKilled { others }
            }
            () = or_never(&mut self.resting) => {
                self.resting = None;
                Event::RestGone
            }
            never = self.feeder.run(stdin) => match never {},
        }
    }

    /// Output alone. Cancel-safe.
    async fn pumps(&mut self, spool: &Spool) -> Event {
        let [stdout, stderr] = &mut self.pumps;
        if stdout.source.is_none() && stderr.source.is_none() {
            self.closed_told = true;
            return Event::OutputClosed;
        }
        tokio::select! {
            () = stdout.step(spool) => Event::Output,
            () = stderr.step(spool) => Event::Output,
        }
    }

    /// Lets go: what lives on may, and finds somebody who reads what it writes.
    fn end(mut self, core: &Inner) {
        if self.leader_ended {
            self.control.release();
        }
        for source in self.pumps.into_iter().filter_map(|pump| pump.source) {
            core.discard(source);
        }
    }
}

/// Moves one output stream to the spool.
struct Pump {
    stream: Stream,
    /// `None`: at its end.
    source: Option<Output>,
    buffer: BytesMut,
}

impl Pump {
    fn new(stream: Stream, source: Option<Output>) -> Self {
        Self { stream, source, buffer: BytesMut::new() }
    }

    /// Moves what there is next; at the stream's end it forgets the source; then never returns. Cancel-safe.
    async fn step(&mut self, spool: &Spool) {
        let Some(source) = &mut self.source else { return std::future::pending().await };
        let room = spool.room(self.stream).await;
        if self.buffer.capacity() < BUFFER_LOW {
            self.buffer.reserve(READ);
        }
        let most = room.min(self.buffer.capacity());
        match source.read_buf(&mut (&mut self.buffer).limit(most)).await {
            Ok(n) if n > 0 => spool.append(self.stream, self.buffer.split().freeze()),
            // A pipe cannot fail in a way that more reading would cure: an error is its end too.
            _ => self.source = None,
        }
    }
}

async fn or_never<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
