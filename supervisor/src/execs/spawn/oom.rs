//! Memory: who the kernel kills for it, and whether it did.
//!
//! In a container all commands share one limit with the supervisor. The kernel chooses the victim by size and by
//! `oom_score_adj`; where the supervisor may not lower its own, its commands' is raised. And it counts what it has
//! killed: a command that died by SIGKILL while the count rose was killed for memory.

use std::{fs, path::PathBuf};

use super::{MemoryUse, cgroup};

/// How much likelier a victim a command is than a supervisor without protection: half of the whole range.
const RAISED: i32 = 500;
/// The kernel's highest.
const HIGHEST: i32 = 1000;

/// Above any machine's memory: cgroup v1 writes a number of this size where there is no limit.
const NO_LIMIT: u64 = 1 << 60;

/// The count of kills in the supervisor's own cgroup, below which its commands run.
#[derive(Clone, Debug, Default)]
pub(super) struct Kills {
    file: Option<PathBuf>,
    limit: Option<u64>,
}

impl Kills {
    /// Finds where it is counted: cgroup v2, then v1.
    pub(super) fn look() -> Self {
        let place = |hierarchy, count: &str, limit: &str| {
            let dir = cgroup::own_dir(hierarchy)?;
            let file = dir.join(count);
            file.exists().then(|| {
                let limit = fs::read_to_string(dir.join(limit)).ok().and_then(|text| parse_limit(&text));
                Self { file: Some(file), limit }
            })
        };
        place(cgroup::Hierarchy::Unified, "memory.events", "memory.max")
            .or_else(|| place(cgroup::Hierarchy::Memory, "memory.oom_control", "memory.limit_in_bytes"))
            .unwrap_or_default()
    }

    /// Where it is counted for a whole machine.
    pub(super) fn of_the_machine() -> Self {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self { file: Some("/proc/vmstat".into()), limit: parse_total(&memory) }
    }

    /// For the sandbox's health.
    pub(super) fn memory(&self) -> MemoryUse {
        MemoryUse { kills: self.count(), limit: self.limit }
    }

    /// `None` where nothing is counted.
    pub(super) fn count(&self) -> Option<u64> {
        parse(&fs::read_to_string(self.file.as_ref()?).ok()?)
    }
}

/// All these files have a line of this name.
fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// A number, or `max`.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)
}

/// Of `/proc/meminfo`.
fn parse_total(text: &str) -> Option<u64> {
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()?;
    kib.checked_mul(1024)
}

/// What a command writes into its `oom_score_adj`, if not what it inherits. `first`: the supervisor is the first
/// process of its namespace, so that its end is the end of everything.
pub(super) fn score_of_commands(first: bool) -> Option<Vec<u8>> {
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok()?;
    let own: i32 = own.trim().parse().ok()?;
    score(own, first).map(|score| score.to_string().into_bytes())
}

fn score(own: i32, first: bool) -> Option<i32> {
    match (own, first) {
        // It is protected; its commands must not be.
        (..0, _) => Some(0),
        (_, true) => Some((own + RAISED).min(HIGHEST)),
        (_, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_likelier_victims_than_a_first_process() {
        assert_eq!(score(-1000, true), Some(0));
        assert_eq!(score(-1000, false), Some(0));
        assert_eq!(score(0, true), Some(500));
        assert_eq!(score(800, true), Some(1000));
        assert_eq!(score(0, false), None);
    }

    #[test]
    fn both_kernels_files_are_read() {
        assert_eq!(parse("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"), Some(5));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\n"), None);
        assert_eq!(parse("drop_slab 0\noom_kill 7\nnuma_hit 1\n"), Some(7), "a whole machine's");
    }

    #[test]
    fn a_limit_is_a_number_below_what_means_none() {
        assert_eq!(parse_limit("100663296\n"), Some(96 << 20));
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
        assert_eq!(parse_total("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
    }
}
