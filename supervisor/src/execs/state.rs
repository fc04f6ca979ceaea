//! The life of one exec, without I/O and without a clock of its own: events and an instant in, actions out.
//!
//! ```text
//!   Accepted ──spawned──▶ Running ──leader ended──────────────────▶ Draining ──closed, quiet or late──▶ Ended
//!      │                    │ timeout, cancel: SIGTERM                  ▲
//!      │                    ▼                                           │ nothing is left, or it was killed
//!      │                  (killing) ──leader ended──▶ Resting ──────────┘
//!      │                    │ kill_grace: SIGKILL to all     │ kill_grace: SIGKILL to all
//!      └──spawn failed, deadline, cancel──▶ Ended
//! ```
//!
//! What the order of things guarantees:
//! - there is one outcome, and it follows the last output byte that is waited for;
//! - a command that ends by itself leaves its background processes running, as `docker exec` does. Its outcome
//!   does not wait for them: pipes that they hold are read for a bounded time more;
//! - a command that is ended (timeout, cancel) is over only when nothing of it lives any more.

use std::time::Duration;

use holdfast_wire::{
    api::{self, StartFailure, outcome::Kind},
    spec::Times,
    timing,
};
use tokio::time::Instant;

use super::spawn::{Exit, SpawnError};

/// From SIGKILL until a leader that does not end is given up. A process in an uninterruptible system call (a dead
/// network mount) dies when that call returns, which may be never; its caller must not wait for that.
const UNKILLABLE: Duration = Duration::from_secs(10);

/// What happens to an exec.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// The command runs.
    Spawned,
    /// It never will.
    SpawnFailed(SpawnError),
    /// Output came.
    Output,
    /// No more output can come: all of the command's pipes are closed.
    OutputClosed,
    /// The leader's end.
    LeaderEnded(Exit),
    /// Its end cannot be learned: a fault of the system, or of ours.
    LeaderLost(String),
    /// Nothing of the family lives any more.
    RestGone,
    /// The SIGKILL to all has been done; `others`: it met somebody besides the leader.
    AllKilled {
        /// See above.
        others: bool,
    },
    /// Somebody ends the command.
    Cancel {
        /// For the outcome.
        by: String,
        /// Instead of the spec's kill_grace, if shorter.
        grace: Option<Duration>,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Stop waiting for the spawner; what it may yet start must die.
    AbandonSpawn,
    /// SIGTERM to the group.
    Terminate,
    /// SIGKILL to everything; answer with [`Event::AllKilled`].
    KillAll,
    /// Tell with [`Event::RestGone`] when nothing of the family lives.
    AwaitRest,
    /// Take what the pipes hold, even beyond the spool's bounds: it has been written, and the exit is known.
    Drain,
    /// Over. Nothing comes after it.
    End {
        /// The one outcome.
        outcome: api::Outcome,
        /// What was left of the family after the leader was killed.
        left_processes: bool,
    },
}

/// Where an exec is.
#[derive(Debug)]
pub(super) struct State {
    phase: Phase,
    times: Times,
    why: Option<Why>,
    output_closed: bool,
    left_processes: bool,
}

#[derive(Debug)]
enum Phase {
    Accepted {
        start_by: Instant,
    },
    Running {
        timeout_at: Option<Instant>,
        kill: Kill,
    },
    /// The leader has ended while the command was being ended; the rest has its grace.
    Resting {
        exit: Exit,
        kill: Kill,
    },
    Draining {
        exit: Exit,
        quiet_at: Instant,
        until: Instant,
    },
    Ended,
}

/// How far ending it has come.
#[derive(Clone, Copy, Debug)]
enum Kill {
    No,
    Terminated { kill_at: Instant },
    Killing { give_up_at: Instant, after_leader: bool },
    Killed { give_up_at: Instant },
}

/// Why the supervisor ends it; the first reason stays.
#[derive(Debug)]
enum Why {
    TimedOut { after: Duration },
    Cancelled { by: String },
}

impl State {
    /// An exec accepted at `now`.
    pub(super) fn new(times: Times, now: Instant) -> Self {
        let phase = Phase::Accepted { start_by: now + timing::START_TIMEOUT };
        Self { phase, times, why: None, output_closed: false, left_processes: false }
    }

    /// When [`Event::Tick`] is due, if nothing else happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Accepted { start_by } => Some(*start_by),
            Phase::Running { timeout_at, kill: Kill::No } => *timeout_at,
            Phase::Running { kill, .. } | Phase::Resting { kill, .. } => kill.deadline(),
            Phase::Draining { quiet_at, until, .. } => Some(*quiet_at.min(until)),
            Phase::Ended => None,
        }
    }

    /// Takes one event at `now`.
    pub(super) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Spawned => self.on_spawned(now),
            Event::SpawnFailed(error) => self.on_spawn_failed(error),
            Event::Output => self.on_output(now),
            Event::OutputClosed => self.on_output_closed(),
            Event::LeaderEnded(exit) => self.on_leader_ended(exit, now),
            Event::LeaderLost(message) => self.on_leader_lost(message),
            Event::RestGone => self.on_rest_gone(now),
            Event::AllKilled { others } => self.on_all_killed(others, now),
            Event::Cancel { by, grace } => self.on_cancel(by, grace, now),
            Event::Tick => self.on_tick(now),
        }
    }

    fn on_spawned(&mut self, now: Instant) -> Vec<Action> {
        if let Phase::Accepted { .. } = self.phase {
            let timeout_at = self.times.timeout.and_then(|timeout| now.checked_add(timeout));
            self.phase = Phase::Running { timeout_at, kill: Kill::No };
        }
        Vec::new()
    }

    fn on_spawn_failed(&mut self, error: SpawnError) -> Vec<Action> {
        let Phase::Accepted { .. } = self.phase else { return Vec::new() };
        self.end(start_failed(error.kind, error.errno, error.message))
    }

    fn on_output(&mut self, now: Instant) -> Vec<Action> {
        if let Phase::Draining { quiet_at, .. } = &mut self.phase {
            *quiet_at = now + timing::DRAIN_QUIET;
        }
        Vec::new()
    }

    fn on_output_closed(&mut self) -> Vec<Action> {
        self.output_closed = true;
        match self.phase {
            Phase::Draining { exit, .. } => self.end_with(Some(exit)),
            _ => Vec::new(),
        }
    }

    fn on_leader_ended(&mut self, exit: Exit, now: Instant) -> Vec<Action> {
        let Phase::Running { kill, .. } = self.phase else { return Vec::new() };
        match kill {
            Kill::No => self.drain(exit, now),
            Kill::Killed { .. } => self.drain(exit, now),
            kill => {
                self.phase = Phase::Resting { exit, kill };
                vec![Action::AwaitRest]
            }
        }
    }

    fn on_leader_lost(&mut self, message: String) -> Vec<Action> {
        let Phase::Running { .. } = self.phase else { return Vec::new() };
        self.end(Kind::Lost(api::Lost { reason: api::LostReason::Unspecified as i32, message }))
    }

    fn on_rest_gone(&mut self, now: Instant) -> Vec<Action> {
        match self.phase {
            // Gone because it is being killed: that answer says whom it met.
            Phase::Resting { kill: Kill::Killing { .. }, .. } => Vec::new(),
            Phase::Resting { exit, .. } => self.drain(exit, now),
            _ => Vec::new(),
        }
    }

    fn on_all_killed(&mut self, others: bool, now: Instant) -> Vec<Action> {
        match &mut self.phase {
            Phase::Running { kill, .. } => {
                if let Kill::Killing { give_up_at, .. } = *kill {
                    *kill = Kill::Killed { give_up_at };
                }
                Vec::new()
            }
            Phase::Resting { exit, kill } => {
                self.left_processes |= others && matches!(kill, Kill::Killing { after_leader: true, .. });
                let exit = *exit;
                self.drain(exit, now)
            }
            _ => Vec::new(),
        }
    }

    fn on_cancel(&mut self, by: String, grace: Option<Duration>, now: Instant) -> Vec<Action> {
        let grace = grace.map_or(self.times.kill_grace, |grace| grace.min(self.times.kill_grace));
        match &mut self.phase {
            Phase::Accepted { .. } => {
                let mut actions = vec![Action::AbandonSpawn];
                actions.extend(self.end(Kind::Cancelled(api::Cancelled { by })));
                actions
            }
            Phase::Running { kill: Kill::No, .. } => self.terminate(Why::Cancelled { by }, grace, now),
            // It is being ended already: the first reason stays, the shorter grace counts.
            Phase::Running { kill: Kill::Terminated { kill_at }, .. }
            | Phase::Resting { kill: Kill::Terminated { kill_at }, .. } => {
                *kill_at = (*kill_at).min(now + grace);
                self.on_tick(now)
            }
            _ => Vec::new(),
        }
    }

    fn on_tick(&mut self, now: Instant) -> Vec<Action> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match &mut self.phase {
            Phase::Accepted { .. } => {
                let message = format!("it had not started after {} s", timing::START_TIMEOUT.as_secs());
                let mut actions = vec![Action::AbandonSpawn];
                actions.extend(self.end(start_failed(StartFailure::Deadline, 0, message)));
                actions
            }
            Phase::Running { kill: Kill::No, .. } => {
                let after = self.times.timeout.unwrap_or_default();
                self.terminate(Why::TimedOut { after }, self.times.kill_grace, now)
            }
            Phase::Running { kill, .. } => match *kill {
                Kill::Terminated { .. } => {
                    *kill = Kill::Killing { give_up_at: now + UNKILLABLE, after_leader: false };
                    vec![Action::KillAll]
                }
                _ => self.end_with(None),
            },
            Phase::Resting { exit, kill } => match *kill {
                Kill::Terminated { .. } => {
                    *kill = Kill::Killing { give_up_at: now + UNKILLABLE, after_leader: true };
                    vec![Action::KillAll]
                }
                _ => {
                    let exit = *exit;
                    self.drain(exit, now)
                }
            },
            Phase::Draining { exit, .. } => {
                let exit = *exit;
                self.end_with(Some(exit))
            }
            Phase::Ended => Vec::new(),
        }
    }

    fn terminate(&mut self, why: Why, grace: Duration, now: Instant) -> Vec<Action> {
        self.why.get_or_insert(why);
        if let Phase::Running { kill, .. } = &mut self.phase {
            *kill = Kill::Terminated { kill_at: now + grace };
        }
        vec![Action::Terminate]
    }

    fn drain(&mut self, exit: Exit, now: Instant) -> Vec<Action> {
        if self.output_closed {
            return self.end_with(Some(exit));
        }
        self.phase =
            Phase::Draining { exit, quiet_at: now + timing::DRAIN_QUIET, until: now + timing::DRAIN_MAX };
        vec![Action::Drain]
    }

    /// The outcome: why it was ended, if it was; else the leader's own end.
    fn end_with(&mut self, exit: Option<Exit>) -> Vec<Action> {
        let kind = match (self.why.take(), exit) {
            (Some(Why::TimedOut { after }), _) => {
                // A timeout came from a protobuf duration, so it fits one.
                Kind::TimedOut(api::TimedOut { after: prost_types::Duration::try_from(after).ok() })
            }
            (Some(Why::Cancelled { by }), _) => Kind::Cancelled(api::Cancelled { by }),
            (None, Some(Exit::Code(code))) => Kind::Exited(api::Exited { code }),
            (None, Some(Exit::Signal { signal, core, oom })) => {
                Kind::Signaled(api::Signaled { signal, core_dumped: core, oom })
            }
            (None, None) => Kind::Lost(api::Lost {
                reason: api::LostReason::Unspecified as i32,
                message: "its end is not known".to_owned(),
            }),
        };
        self.end(kind)
    }

    fn end(&mut self, kind: Kind) -> Vec<Action> {
        self.phase = Phase::Ended;
        vec![Action::End { outcome: api::Outcome { kind: Some(kind) }, left_processes: self.left_processes }]
    }
}

impl Kill {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::No => None,
            Self::Terminated { kill_at } => Some(kill_at),
            Self::Killing { give_up_at, .. } | Self::Killed { give_up_at } => Some(give_up_at),
        }
    }
}

fn start_failed(kind: StartFailure, errno: i32, message: String) -> Kind {
    Kind::StartFailed(api::StartFailed { errno, kind: kind as i32, message })
}

#[cfg(test)]
mod tests;
