//! Memory: what the kernel killed in the sandbox because it ran out. A fifth condition, beside the four that Ready is
//! made of: the sandbox works, but something that ran in it does not run any more.
//!
//! ```text
//!   supervisor's count, in its health ──┐
//!   driver: the workload ended so ──────┼──▶ MemoryHealthy=False/OOMKilled ──▶ True: [`SHOWN`] after the last kill,
//!                                       │                                      or with the next workload
//!   nothing is counted ─────────────────┴──▶ no such condition
//! ```

use holdfast_drivers::OOM_KILLED;
use holdfast_wire::{control::MemoryHealth, ids::ExecId};

use super::{
    phase::{no, yes},
    *,
};
use crate::store::from_stamp;

/// For how long a kill is shown: whoever looks why something failed looks soon, and the events keep it longer.
const SHOWN: Duration = Duration::from_secs(600);

/// As the supervisor last told it.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    kills: u64,
    exec: Option<ExecId>,
    at: Option<prost_types::Timestamp>,
    /// When the last one was.
    since: Instant,
    limit: u64,
}

impl Memory {
    pub(super) fn of(health: &MemoryHealth, own: bool, now: Instant) -> Self {
        let age = Duration::from_millis(health.last_age_ms);
        Self {
            // Without walls the count is of all that the machine, or the gateway's own cgroup, runs.
            kills: if own { health.kills } else { health.execs_killed },
            exec: ExecId::from_slice(&health.last_exec_id).ok(),
            at: health.last_at,
            since: now.checked_sub(age).unwrap_or(now),
            limit: health.limit_bytes,
        }
    }

    fn shown_until(&self) -> Option<Instant> {
        (self.kills > 0).then(|| self.since + SHOWN)
    }

    fn message(&self) -> String {
        let times = if self.kills == 1 { "once".to_owned() } else { format!("{} times", self.kills) };
        let mut text = format!("memory ran out and something was killed, {times}");
        if let Some(at) = self.at.as_ref().and_then(from_stamp) {
            text.push_str(&format!("; the last time at {at:.0}"));
        }
        if let Some(exec) = self.exec {
            text.push_str(&format!("; the last exec that ended so is {exec}"));
        }
        if self.limit > 0 {
            text.push_str(&format!("; the limit is {} MiB", self.limit >> 20));
        }
        text
    }
}

impl State {
    /// How often memory ran out in the wanted workload, as far as is known.
    pub(in crate::sandboxes) fn memory_kills(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.kills)
    }

    /// The condition; `None` where nobody counts.
    pub(super) fn memory_status(&self, now: Instant) -> Option<Status> {
        if let Some(ended) =
            self.workload().filter(|seen| !seen.state.is_alive() && seen.reason == OOM_KILLED)
        {
            return Some(no(OOM_KILLED, &ended.message));
        }
        let memory = self.memory.as_ref()?;
        Some(match memory.shown_until() {
            Some(until) if now < until => no(OOM_KILLED, &memory.message()),
            _ => yes("NothingKilled"),
        })
    }

    pub(super) fn memory_wakes_at(&self) -> Option<Instant> {
        self.memory.as_ref().and_then(Memory::shown_until)
    }
}
