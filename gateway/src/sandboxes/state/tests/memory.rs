//! What is known of memory, and for how long.

use holdfast_drivers::OOM_KILLED;
use holdfast_wire::{control::MemoryHealth, ids::ExecId};

use super::*;

/// What the supervisor says of memory, beside two good probes.
fn remembering(bench: &mut Bench, memory: MemoryHealth) {
    let good = Some(ProbeResult { ok: true, ..ProbeResult::default() });
    let health = Health { exec: good.clone(), filesystem: good, memory: Some(memory), ..Health::default() };
    bench.state.on_health(Epoch(1), &health, bench.now);
}

#[test]
fn what_was_killed_for_memory_is_a_condition_for_ten_minutes_and_the_sandbox_stays_ready() {
    let mut bench = Bench::ready();
    assert_eq!(bench.assess().memory, None, "nobody counts");
    remembering(&mut bench, MemoryHealth::default());
    assert_eq!(bench.assess().memory.unwrap().status, ConditionStatus::True);
    let exec = ExecId::random();
    let killed = MemoryHealth {
        kills: 2,
        execs_killed: 1,
        last_exec_id: exec.to_bytes(),
        last_at: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
        last_age_ms: 100_000,
        limit_bytes: 96 << 20,
    };
    remembering(&mut bench, killed.clone());
    let memory = bench.assess().memory.unwrap();
    assert_eq!((memory.status, memory.reason.as_str()), (ConditionStatus::False, "OOMKilled"));
    for words in ["2 times", "1970-01-01T00:00:00Z", &exec.to_string(), "96 MiB"] {
        assert!(memory.message.contains(words), "{words}: {}", memory.message);
    }
    assert_eq!(bench.phase(), Phase::Ready);
    bench.lost(1);
    assert_eq!(bench.assess().memory.unwrap().status, ConditionStatus::False, "a lost link changes no fact");
    bench.pass(499);
    assert_eq!(bench.assess().memory.unwrap().status, ConditionStatus::False);
    bench.pass(1);
    assert_eq!(bench.assess().memory.unwrap().status, ConditionStatus::True);
}

#[test]
fn a_workload_that_ended_for_memory_says_so_in_its_conditions_until_its_successor() {
    let mut bench = Bench::ready();
    bench.pass(1);
    let ended = Observed {
        reason: OOM_KILLED.to_owned(),
        message: "the container ran out of memory".to_owned(),
        ..seen(1, WorkloadState::Exited(Exit::Signal(9)))
    };
    bench.state.on_level(Level::Seen(ended), bench.now);
    bench.state.on_console(Generation(1), "last words".to_owned());
    let assessment = bench.assess();
    assert_eq!((assessment.phase, assessment.reason.as_str()), (Phase::Failed, "OOMKilled"));
    assert!(assessment.message.contains("ran out of memory") && assessment.message.contains("last words"));
    let running = &assessment.conditions[0];
    assert_eq!((running.status, running.reason.as_str()), (ConditionStatus::False, "OOMKilled"));
    assert!(running.message.contains("last words"), "{}", running.message);
    assert_eq!(assessment.memory.unwrap().reason, "OOMKilled");
    bench.pass(3600);
    assert_eq!(bench.assess().memory.unwrap().status, ConditionStatus::False, "it is still dead");
    let next = Wanted { generation: Generation(2), ..bench.state.wanted };
    bench.state.on_wanted(next);
    assert_eq!(bench.assess().memory, None);
}

#[test]
fn without_walls_only_the_sandboxes_own_execs_count() {
    let health = MemoryHealth { kills: 7, execs_killed: 0, ..MemoryHealth::default() };
    let mut bench = Bench::ready();
    bench.state.can.own_memory = false;
    remembering(&mut bench, health.clone());
    assert_eq!(bench.assess().memory.unwrap().status, ConditionStatus::True);
    remembering(&mut bench, MemoryHealth { execs_killed: 1, ..health });
    assert_eq!(bench.assess().memory.unwrap().status, ConditionStatus::False);
}
