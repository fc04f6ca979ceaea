//! Whether the kernel killed a container for memory: asked of the kernel's own log, because podman does not know.
//!
//! A container whose first process is killed takes its cgroup, and the count in it, away at once. What stays is the
//! kernel's line, which names the cgroup, and with it the container's id:
//!
//! ```text
//!   oom-kill:constraint=CONSTRAINT_MEMCG,…,task_memcg=/libpod_parent/libpod-<id>,task=supervisor,pid=4711,uid=0
//! ```
//!
//! Where the log cannot be read (no right, a gateway in a container of its own) nothing is claimed.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

const LOG: &str = "/dev/kmsg";
/// A record of the log is at most 8 KiB.
const RECORD: usize = 8192;
/// More records than any kernel's log holds.
const MOST: usize = 1 << 18;
/// What the kernel calls a container's first process: the name of the supervisor's file there.
const SUPERVISOR: &str = "supervisor";

/// Whether the first process of this container was killed for memory. Blocks for as long as reading the log takes.
pub(super) fn killed(container: &str) -> bool {
    let opened = OpenOptions::new().read(true).custom_flags(libc_nonblock()).open(LOG);
    let Ok(mut log) = opened else { return false };
    let mut record = vec![0; RECORD];
    for _ in 0..MOST {
        match log.read(&mut record) {
            Ok(0) => return false,
            Ok(n) if tells(&String::from_utf8_lossy(&record[..n]), container) => return true,
            Ok(_) => {}
            // Overwritten while it was being read: the next one is there.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
            // Its end, or nothing that more reading would cure.
            Err(_) => return false,
        }
    }
    false
}

/// Whether a record tells of this container's end.
fn tells(record: &str, container: &str) -> bool {
    let field = |name: &str| {
        let (_, value) = record.split_once(name)?;
        value.split([',', '\n']).next()
    };
    record.contains("oom-kill:")
        && !container.is_empty()
        && field(",task_memcg=").is_some_and(|cgroup| cgroup.contains(container))
        && field(",task=") == Some(SUPERVISOR)
}

fn libc_nonblock() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "4,1062,353823500,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=libpod-908e9be7,\
        mems_allowed=0,oom_memcg=/a/libpod-908e9be7,task_memcg=/a/libpod-908e9be7,task=supervisor,pid=10580,uid=0\n";

    #[test]
    fn the_kernels_line_names_the_container_and_its_first_process() {
        assert!(tells(LINE, "908e9be7"));
        assert!(!tells(LINE, "20eaabca"));
        assert!(!tells(LINE, ""));
        assert!(!tells(&LINE.replace("task=supervisor", "task=busybox"), "908e9be7"), "a command's end");
        assert!(!tells("4,1,1,-;Memory cgroup out of memory: Killed process 1 (supervisor)", "908e9be7"));
    }

    #[test]
    fn a_log_that_tells_nothing_ends() {
        assert!(!killed("no container has this id"));
    }
}
