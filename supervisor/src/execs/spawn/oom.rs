//! Memory: who the kernel kills for it, and whether it did.
//!
//! In a container all commands share one limit with the supervisor. The kernel chooses the victim by size and by
//! `oom_score_adj`; where the supervisor may not lower its own, its commands' is raised. And it counts what it has
//! killed: a command that died by SIGKILL while the count rose was killed for memory.

use std::{fs, path::PathBuf};

use super::cgroup;

/// How much likelier a victim a command is than a supervisor without protection: half of the whole range.
const RAISED: i32 = 500;
/// The kernel's highest.
const HIGHEST: i32 = 1000;

/// The count of kills in the supervisor's own cgroup, below which its commands run.
#[derive(Clone, Debug, Default)]
pub(super) struct Kills {
    file: Option<PathBuf>,
}

impl Kills {
    /// Finds where it is counted: cgroup v2, then v1.
    pub(super) fn look() -> Self {
        let unified = cgroup::own_dir(cgroup::Hierarchy::Unified).map(|dir| dir.join("memory.events"));
        let memory = cgroup::own_dir(cgroup::Hierarchy::Memory).map(|dir| dir.join("memory.oom_control"));
        Self { file: [unified, memory].into_iter().flatten().find(|file| file.exists()) }
    }

    /// `None` where nothing is counted.
    pub(super) fn count(&self) -> Option<u64> {
        parse(&fs::read_to_string(self.file.as_ref()?).ok()?)
    }
}

/// Both files have a line of this name.
fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
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
    }
}
