//! A sandbox's facts, and what follows from them: its phase, its conditions, and the next step.
//!
//! No clock, no I/O. Facts are put in by the `on_…` verbs; [`State::assess`] reads them all and says everything
//! anew, so that neither the order nor the number of the facts matters, only what they are:
//!
//! ```text
//!   wanted (desired, generation) ─┐
//!   driver's level, by generation ┤
//!   driver call under way, failed ┼──▶ assess(now) ──▶ phase, reason, message, conditions
//!   session with the newest epoch ┤                    the next step for the task, and when to look again
//!   its probes, with a lease ─────┤
//!   what it says of memory ───────┘
//! ```
//!
//! Rules that the tests hold it to: the newest epoch is the session, whatever came last; a lost link alone is
//! never a failure; Ready needs all conditions in this epoch and this generation, with a fresh probe;
//! delete, stop and start are taken in every phase (start and stop not once deletion has begun).

mod boot;
mod known;
mod memory;
mod phase;
mod steps;
#[cfg(test)]
mod tests;

pub(super) use self::phase::CONSOLE_ENDS_WITH;

use std::time::Duration;

use holdfast_drivers::{Boot, BootStage, Exit, Observed, WorkloadState};
use holdfast_wire::{
    api::{ConditionStatus, Phase},
    close::CloseCode,
    control::{Health, ProbeResult},
    ids::{Epoch, Generation},
    timing,
};
use tokio::time::Instant;

use self::memory::Memory;
use super::calls::{Call, Failure};
use crate::store::{Desired, Why};

/// A health report that was on its way when the driver saw the workload die arrives soon after. One that comes
/// later than this was sent by a living supervisor, and the driver is wrong.
const DOUBT: Duration = Duration::from_secs(2);

/// A driver that can no longer tell (`Failed`) proves nothing at once. After so long without a session either,
/// the workload counts as gone, so that its execs come to an end.
const UNCERTAIN: Duration = Duration::from_secs(60);

/// What the driver last said of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Level {
    /// It has not been asked since the gateway started.
    #[default]
    Unknown,
    /// It was asked for all that it has, beginning at that instant, and this sandbox was not among it.
    Absent { asked: Instant },
    /// What it sees.
    Seen(Observed),
}

/// What is wanted, and what is stored of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) desired: Desired,
    pub(super) why: Why,
    pub(super) grace: Duration,
    pub(super) generation: Generation,
    /// The newest generation that the driver is known to have made.
    pub(super) made: Generation,
    /// The newest generation that has had a session.
    pub(super) attached: Generation,
    /// It was made by another driver than this gateway has.
    pub(super) foreign: bool,
    /// Its files go with its workload.
    pub(super) ephemeral: bool,
}

/// What the driver can do, as far as it matters here.
#[derive(Clone, Debug)]
pub(super) struct Can {
    pub(super) stop: bool,
    pub(super) logs: bool,
    /// What the kernel counts for a supervisor is its sandbox's alone.
    pub(super) own_memory: bool,
    /// The stages of a boot.
    pub(super) boot: Vec<BootStage>,
}

/// All facts about one sandbox.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) wanted: Wanted,
    can: Can,
    boot_deadline: Duration,
    level: Level,
    /// When the level became what it is.
    level_at: Instant,
    /// Workloads up to this one were ended by a stop or a delete that the driver has answered.
    ended: Generation,
    call: Option<Call>,
    /// When the last call that may have made a workload was answered.
    made_at: Option<Instant>,
    failure: Option<Failed>,
    link: Option<Link>,
    /// The newest epoch that was given to a session.
    admitted: Epoch,
    /// The newest generation whose supervisor has dialled.
    dialled: Generation,
    /// The newest epoch that was attached, or has ended: only newer ones are taken.
    newest: Epoch,
    /// Why there is no session any more.
    lost: Option<String>,
    probes: Option<Probes>,
    /// Of the wanted workload.
    memory: Option<Memory>,
    /// The newest generation that has had a good probe.
    proven: Generation,
    /// How far the driver says that the wanted workload's boot has come.
    boot: Boot,
    /// Since when the workload runs without having been proven.
    booting: Option<Instant>,
    /// Since when it runs on after it was seen paused, without a good probe.
    thawed: Option<Instant>,
    was_paused: bool,
    /// The end of the console, of this generation.
    console: Option<(Generation, String)>,
    /// What became of the main command, of this generation.
    main: Option<(Generation, Status)>,
    gone: bool,
}

#[derive(Clone, Debug)]
struct Failed {
    call: Call,
    failure: Failure,
    /// `None`: the same call is not made again.
    retry_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    epoch: Epoch,
    generation: Generation,
    since: Instant,
}

#[derive(Clone, Debug)]
struct Probes {
    at: Instant,
    exec: Finding,
    filesystem: Finding,
}

#[derive(Clone, Debug)]
enum Finding {
    Good,
    Bad(String),
    /// The report said nothing of it.
    Missing,
}

/// One condition, without the time of its transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) status: ConditionStatus,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A stage of the boot that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) stage: BootStage,
    /// How long it took, where the driver tells.
    pub(super) took: Option<Duration>,
}

/// What follows from the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assessment {
    pub(super) phase: Phase,
    pub(super) reason: String,
    pub(super) message: String,
    /// In the order of `ConditionKind::OF_READY`.
    pub(super) conditions: [Status; 4],
    /// Memory's, where it is known.
    pub(super) memory: Option<Status>,
    pub(super) booted: Status,
    /// The stages of the boot that were reached, in their order.
    pub(super) boot: Vec<Stage>,
    /// Of the main command, if there is one.
    pub(super) main: Status,
    pub(super) steps: Vec<Step>,
    /// The wanted workload is dead for certain.
    pub(super) dead: Option<String>,
    /// The facts change by themselves then.
    pub(super) wake_at: Option<Instant>,
}

/// What the task does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Calls the driver. Never while a call is under way.
    Call(Call),
    /// Drops the call that is under way: it is not wanted any more. The driver finishes or undoes it by itself.
    Abandon,
    /// Closes the session.
    Close(CloseCode, &'static str),
    /// Reads the console's end.
    Console,
    /// What is wanted cannot be had: run on instead.
    GiveUpPausing,
    /// The workload is gone: removes the sandbox.
    Forget,
}

impl State {
    /// A sandbox as it was stored, before anything is known.
    pub(super) fn new(wanted: Wanted, can: Can, boot_deadline: Duration, epoch: Epoch, now: Instant) -> Self {
        Self {
            wanted,
            can,
            boot_deadline,
            level: Level::Unknown,
            level_at: now,
            ended: Generation(0),
            call: None,
            made_at: None,
            failure: None,
            link: None,
            admitted: epoch,
            dialled: wanted.attached,
            newest: epoch,
            lost: None,
            probes: None,
            memory: None,
            proven: wanted.attached,
            boot: Boot::default(),
            booting: None,
            thawed: None,
            was_paused: false,
            console: None,
            main: None,
            gone: false,
        }
    }

    /// Something else is wanted from now on. Past failures do not count any more.
    pub(super) fn on_wanted(&mut self, wanted: Wanted) {
        if wanted.generation != self.wanted.generation {
            self.boot = Boot::default();
            self.booting = None;
            self.thawed = None;
            self.was_paused = false;
            self.probes = None;
            self.memory = None;
            self.lost = None;
        }
        self.failure = None;
        self.wanted = wanted;
    }

    /// What the driver says. True when the stored generations have to follow it.
    pub(super) fn on_level(&mut self, level: Level, now: Instant) -> bool {
        match (&self.level, &level) {
            (_, Level::Unknown) => return false,
            // The list may have been read before the workload was made: the call's answer is newer.
            (_, Level::Absent { asked }) => {
                let making = matches!(self.call, Some(Call::Ensure { .. }));
                if making || self.made_at.is_some_and(|made| *asked <= made) {
                    return false;
                }
            }
            (Level::Seen(old), Level::Seen(new)) if old.same_level(new) => return false,
            (Level::Unknown, Level::Seen(_)) => {}
            // A list that was read before a newer workload was made.
            (_, Level::Seen(new)) if new.generation != Generation(0) && new.generation < self.wanted.made => {
                return false;
            }
            (_, Level::Seen(_)) => {}
        }
        self.level = level;
        self.level_at = now;
        self.note_workload(now)
    }

    /// Remembers what a level proves beyond its own time.
    fn note_workload(&mut self, now: Instant) -> bool {
        let Level::Seen(observed) = &self.level else { return false };
        let before = (self.wanted.generation, self.wanted.made);
        let (generation, state) = (observed.generation, observed.state);
        // The store is older than the workload: it was restored from a backup. The counter must not go back.
        if generation > self.wanted.generation {
            self.wanted.generation = generation;
            self.wanted.made = generation;
        }
        // One that is still being made may be taken back, and made again.
        if generation == self.wanted.generation
            && !matches!(state, WorkloadState::Creating | WorkloadState::Gone)
        {
            self.wanted.made = generation;
        }
        if generation == self.wanted.generation || generation == Generation(0) {
            // One that is gone keeps how far it had come.
            if state.is_alive() || !observed.boot.is_empty() {
                self.boot.clone_from(&observed.boot);
            }
            match state {
                WorkloadState::Paused => {
                    self.was_paused = true;
                    self.thawed = None;
                    self.probes = None;
                }
                WorkloadState::Running => self.note_running(now),
                _ => {}
            }
        }
        before != (self.wanted.generation, self.wanted.made)
    }

    fn note_running(&mut self, now: Instant) {
        if std::mem::take(&mut self.was_paused) {
            self.thawed = Some(now);
            self.probes = None;
        }
        if self.proven < self.wanted.generation && self.booting.is_none() {
            self.booting = Some(now);
        }
    }

    /// An epoch was stored for a session.
    pub(super) fn on_admitted(&mut self, epoch: Epoch, generation: Generation) {
        self.admitted = self.admitted.max(epoch);
        self.dialled = self.dialled.max(generation);
    }

    /// A session is there. False when a newer one is, or was: this one is superseded.
    pub(super) fn on_attached(&mut self, epoch: Epoch, generation: Generation, now: Instant) -> bool {
        if epoch <= self.newest {
            return false;
        }
        self.newest = epoch;
        self.admitted = self.admitted.max(epoch);
        self.link = Some(Link { epoch, generation, since: now });
        if generation == self.wanted.generation {
            self.wanted.attached = generation;
            self.wanted.made = generation;
        }
        self.lost = None;
        self.probes = None;
        true
    }

    /// A session ended. False when it was not the one that counts.
    pub(super) fn on_lost(&mut self, epoch: Epoch, why: String) -> bool {
        // An attach of this epoch that comes after its end is not believed.
        self.newest = self.newest.max(epoch);
        if self.link.is_none_or(|link| link.epoch != epoch) {
            return false;
        }
        self.link = None;
        self.probes = None;
        self.lost = Some(why);
        true
    }

    /// What the supervisor found. False when it is another session's.
    pub(super) fn on_health(&mut self, epoch: Epoch, health: &Health, now: Instant) -> bool {
        if self.link().is_none_or(|link| link.epoch != epoch) {
            return false;
        }
        // A frozen workload cannot have sent it since.
        if matches!(&self.level, Level::Seen(seen) if seen.state == WorkloadState::Paused) {
            return false;
        }
        let probes = Probes {
            at: now,
            exec: Finding::of(health.exec.as_ref()),
            filesystem: Finding::of(health.filesystem.as_ref()),
        };
        if matches!((&probes.exec, &probes.filesystem), (Finding::Good, Finding::Good)) {
            self.proven = self.wanted.generation;
            self.booting = None;
            self.thawed = None;
        }
        self.probes = Some(probes);
        self.memory = health.memory.as_ref().map(|memory| Memory::of(memory, self.can.own_memory, now));
        true
    }

    /// The supervisor was away: what it proved before is worth nothing.
    pub(super) fn on_resumed(&mut self, epoch: Epoch, now: Instant) -> bool {
        if self.link().is_none_or(|link| link.epoch != epoch) {
            return false;
        }
        self.probes = None;
        // Whoever says so lives: its next probe has its whole time again.
        self.link = self.link.map(|link| Link { since: now, ..link });
        true
    }

    /// The session was closed from here.
    pub(super) fn on_closed(&mut self, why: String) {
        self.link = None;
        self.probes = None;
        self.lost = Some(why);
    }

    /// The task calls the driver.
    pub(super) fn on_called(&mut self, call: Call) {
        self.call = Some(call);
    }

    /// The task has dropped its call.
    pub(super) fn on_abandoned(&mut self, now: Instant) {
        if let Some(Call::Ensure { .. }) = self.call.take() {
            // It may have made the workload all the same.
            self.made_at = Some(now);
        }
    }

    /// The driver has answered; a failed call is made again after `retry`, if that makes sense. True when the
    /// stored generations have to follow.
    pub(super) fn on_answer(
        &mut self,
        answer: Result<Option<Observed>, Failure>,
        retry: Duration,
        now: Instant,
    ) -> bool {
        let Some(call) = self.call.take() else { return false };
        if matches!(call, Call::Ensure { .. }) {
            self.made_at = Some(now);
        }
        let newest = match &self.level {
            Level::Seen(observed) => observed.generation.max(self.wanted.made),
            Level::Unknown | Level::Absent { .. } => self.wanted.made,
        };
        match (call, answer) {
            (Call::Ensure { generation }, Ok(observed)) => {
                self.failure = None;
                return self.on_made(generation, observed, now);
            }
            (Call::Stop { .. }, Ok(_)) => self.ended = self.ended.max(newest),
            (Call::Stop { .. }, Err(failure)) if failure.not_found => self.ended = self.ended.max(newest),
            // Deleting does not depend on stopping first.
            (Call::Stop { then_delete: true, .. }, Err(_)) => self.ended = self.ended.max(newest),
            (Call::Delete, Ok(_)) => self.gone = true,
            (Call::Pause, Ok(_)) => self.on_done(WorkloadState::Paused, now),
            (Call::Resume, Ok(_)) => self.on_done(WorkloadState::Running, now),
            (_, Err(failure)) => {
                // Stopping and deleting are never given up.
                let again = failure.retryable || matches!(call, Call::Stop { .. } | Call::Delete);
                self.failure = Some(Failed { call, failure, retry_at: again.then_some(now + retry) });
                return false;
            }
        }
        self.failure = None;
        false
    }

    /// A workload was made. What the watch has told of it is newer than the call's own answer.
    fn on_made(&mut self, generation: Generation, observed: Option<Observed>, now: Instant) -> bool {
        if generation != self.wanted.generation {
            return false;
        }
        let changed = self.wanted.made < generation;
        self.wanted.made = self.wanted.made.max(generation);
        let told = matches!(&self.level, Level::Seen(seen) if seen.generation >= generation);
        if let Some(observed) = observed.filter(|_| !told) {
            self.level = Level::Seen(observed);
            self.level_at = now;
            self.note_workload(now);
        }
        changed
    }

    /// The driver has answered that the workload is in this state now; its own level follows.
    fn on_done(&mut self, state: WorkloadState, now: Instant) {
        let Level::Seen(observed) = &mut self.level else { return };
        if observed.state.is_alive() && observed.state != state {
            observed.state = state;
            self.level_at = now;
            self.note_workload(now);
        }
    }

    /// The store does not have the sandbox any more: somebody else removed it.
    pub(super) fn on_forgotten(&mut self) {
        self.wanted.desired = Desired::Deleted;
        self.gone = true;
    }

    /// The sandbox could not be removed from the store.
    pub(super) fn on_forget_failed(&mut self, message: &str, retry_at: Instant) {
        let failure = Failure::of_the_store(message);
        self.failure = Some(Failed { call: Call::Delete, failure, retry_at: Some(retry_at) });
    }

    /// The console's end was read; empty while it is being read, or where it could not be.
    pub(super) fn on_console(&mut self, generation: Generation, text: String) {
        self.console = Some((generation, text));
    }

    /// What became of a workload's main command.
    pub(super) fn on_main(&mut self, generation: Generation, status: Status) {
        // Another workload's is told late, or before its wish was: the newest is what may still be asked for.
        if self.main.as_ref().is_none_or(|(known, _)| *known <= generation) {
            self.main = Some((generation, status));
        }
    }

    /// The call of the driver that is under way.
    pub(super) fn call(&self) -> Option<Call> {
        self.call
    }

    fn is_calling(&self) -> bool {
        self.call.is_some()
    }

    /// The newest epoch that was given to a session.
    pub(super) fn admitted(&self) -> Epoch {
        self.admitted
    }

    /// No exec was sent by a session with a newer epoch than this.
    pub(super) fn newest(&self) -> Epoch {
        self.newest
    }

    /// What the driver sees of the wanted workload.
    pub(super) fn workload(&self) -> Option<&Observed> {
        match &self.level {
            Level::Seen(observed) if self.is_wanted(observed.generation) => Some(observed),
            _ => None,
        }
    }

    /// The last failure of a call, while it matters.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref().map(|failed| &failed.failure)
    }
}

impl Finding {
    fn of(result: Option<&ProbeResult>) -> Self {
        match result {
            None => Self::Missing,
            Some(result) if result.ok => Self::Good,
            Some(result) if result.errno != 0 => {
                Self::Bad(format!("{} (errno {})", shortened(&result.message), result.errno))
            }
            Some(result) => Self::Bad(shortened(&result.message)),
        }
    }
}

/// As much of a supervisor's words as a sandbox keeps: it is not trusted with more.
fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(512)].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
