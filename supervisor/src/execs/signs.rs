//! What execs' ends say of the sandbox itself: a start that failed where it should not, and what the kernel killed
//! because memory ran out.
//!
//! Such an end is a **doubt**: the control loop probes at once, instead of with the next tick, so that a sandbox in
//! which nothing starts any more is not Ready for another ten seconds. A command that is merely wrong raises none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_wire::{
    api::{Outcome, StartFailed, StartFailure, outcome::Kind},
    control::MemoryHealth,
    ids::ExecId,
};
use rustix::io::Errno;
use tokio::{sync::watch, time::Instant};

use super::{
    exec::now,
    spawn::{MemoryUse, Spawner},
};

/// What is not the command's fault.
const SICK: [Errno; 10] = [
    Errno::IO,
    Errno::NOTCONN,
    Errno::STALE,
    Errno::ROFS,
    Errno::AGAIN,
    Errno::NOMEM,
    Errno::MFILE,
    Errno::NFILE,
    Errno::NOSPC,
    Errno::HOSTDOWN,
];

#[derive(Debug)]
pub(super) struct Signs {
    spawner: Arc<dyn Spawner>,
    doubts: watch::Sender<u64>,
    /// The kernel's count when this supervisor started: what was before is not this sandbox's.
    before: u64,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    kills: u64,
    execs_killed: u64,
    last_exec: Option<ExecId>,
    last: Option<(prost_types::Timestamp, Instant)>,
}

impl Signs {
    pub(super) fn new(spawner: Arc<dyn Spawner>) -> Self {
        let before = spawner.memory().kills.unwrap_or(0);
        Self { spawner, doubts: watch::Sender::new(0), before, memory: Mutex::default() }
    }

    /// Grows with every doubt.
    pub(super) fn doubts(&self) -> watch::Receiver<u64> {
        self.doubts.subscribe()
    }

    /// An exec has ended so.
    pub(super) fn on_end(&self, exec: ExecId, outcome: &Outcome) {
        let killed = matches!(&outcome.kind, Some(Kind::Signaled(signaled)) if signaled.oom);
        if killed {
            let mut memory = self.memory();
            memory.execs_killed += 1;
            memory.last_exec = Some(exec);
            memory.last = Some((now(), Instant::now()));
        }
        let (_, more) = self.count();
        let sick = matches!(&outcome.kind, Some(Kind::StartFailed(failed)) if is_sick(failed));
        if killed || more || sick {
            self.doubts.send_modify(|doubts| *doubts += 1);
        }
    }

    /// Everything that is known of memory; `None` where nothing is counted and nothing was killed.
    pub(super) fn memory_health(&self) -> Option<MemoryHealth> {
        let (memory_use, _) = self.count();
        let memory = self.memory();
        if memory_use.kills.is_none() && memory.last.is_none() {
            return None;
        }
        let age = memory.last.map_or(0, |(_, at)| at.elapsed().as_millis());
        Some(MemoryHealth {
            kills: memory.kills,
            execs_killed: memory.execs_killed,
            last_exec_id: memory.last_exec.map(ExecId::to_bytes).unwrap_or_default(),
            last_at: memory.last.map(|(at, _)| at),
            last_age_ms: u64::try_from(age).unwrap_or(u64::MAX),
            limit_bytes: memory_use.limit.unwrap_or(0),
        })
    }

    /// Reads the kernel's count; says whether it has risen.
    fn count(&self) -> (MemoryUse, bool) {
        let memory_use = self.spawner.memory();
        let mut memory = self.memory();
        let kills = memory_use.kills.map_or(memory.execs_killed, |kills| kills.saturating_sub(self.before));
        let more = kills > memory.kills;
        if more {
            memory.kills = kills;
            memory.last = Some((now(), Instant::now()));
        }
        (memory_use, more)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic while holding the lock cannot leave half of it that matters.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_sick(failed: &StartFailed) -> bool {
    let errno = Errno::from_raw_os_error(failed.errno);
    match StartFailure::try_from(failed.kind) {
        Ok(StartFailure::BadCwd | StartFailure::Resources | StartFailure::Deadline) => true,
        _ => failed.errno != 0 && SICK.contains(&errno),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_wire::api::{Exited, Signaled};

    use super::*;
    use crate::execs::FakeSpawner;

    fn started_not(kind: StartFailure, errno: Errno) -> Outcome {
        let failed = StartFailed { kind: kind.into(), errno: errno.raw_os_error(), message: String::new() };
        Outcome { kind: Some(Kind::StartFailed(failed)) }
    }

    fn killed(oom: bool) -> Outcome {
        Outcome { kind: Some(Kind::Signaled(Signaled { signal: 9, core_dumped: false, oom })) }
    }

    #[test]
    fn what_is_not_the_commands_fault_is_a_doubt() {
        let signs = Signs::new(Arc::new(FakeSpawner::new()));
        let mut doubts = signs.doubts();
        let mut doubted = |outcome: &Outcome| {
            signs.on_end(ExecId::random(), outcome);
            let new = doubts.has_changed().unwrap();
            doubts.mark_unchanged();
            new
        };
        assert!(doubted(&started_not(StartFailure::BadCwd, Errno::STALE)));
        assert!(doubted(&started_not(StartFailure::Resources, Errno::AGAIN)));
        assert!(doubted(&started_not(StartFailure::CannotInvoke, Errno::IO)));
        assert!(doubted(&killed(true)));
        assert!(!doubted(&killed(false)));
        assert!(!doubted(&started_not(StartFailure::NotFound, Errno::NOENT)));
        assert!(!doubted(&started_not(StartFailure::CannotInvoke, Errno::ACCESS)));
        assert!(!doubted(&Outcome { kind: Some(Kind::Exited(Exited { code: 1 })) }));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_killed_for_memory_is_counted_with_its_age_and_its_exec() {
        let spawner = FakeSpawner::new();
        spawner.set_memory(MemoryUse { kills: Some(5), limit: Some(96 << 20) });
        let signs = Signs::new(Arc::new(spawner.clone()));
        let health = signs.memory_health().unwrap();
        assert_eq!((health.kills, health.last_at), (0, None), "what was before is somebody else's");
        let exec = ExecId::random();
        spawner.set_memory(MemoryUse { kills: Some(6), limit: Some(96 << 20) });
        signs.on_end(exec, &killed(true));
        // A grandchild, of a command that lives on: seen by the next probe.
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        spawner.set_memory(MemoryUse { kills: Some(7), limit: Some(96 << 20) });
        assert_eq!(signs.memory_health().unwrap().last_age_ms, 0);
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        let health = signs.memory_health().unwrap();
        assert_eq!((health.kills, health.execs_killed, health.last_age_ms), (7 - 5, 1, 3000));
        assert_eq!((health.last_exec_id, health.limit_bytes), (exec.to_bytes(), 96 << 20));
    }

    #[test]
    fn where_nothing_is_counted_nothing_is_said() {
        let signs = Signs::new(Arc::new(FakeSpawner::new()));
        assert_eq!(signs.memory_health(), None);
        signs.on_end(ExecId::random(), &killed(true));
        assert_eq!(signs.memory_health().map(|health| health.kills), Some(1));
    }
}
