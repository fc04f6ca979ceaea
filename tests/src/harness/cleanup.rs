//! Ends whatever still runs on a test's data directory: its path is unique, so whoever has it on the command
//! line belongs to the test.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// Ends the processes when dropped.
#[derive(Debug)]
pub(crate) struct Cleanup {
    dir: PathBuf,
}

impl Cleanup {
    pub(crate) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        // A supervisor that was stopped with SIGSTOP dies of SIGKILL all the same; ending the first process of a
        // PID namespace ends all in it.
        for pid in processes_of(&self.dir) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Processes whose command line names something below `dir`.
pub(super) fn processes_of(dir: &Path) -> Vec<Pid> {
    let needle = dir.as_os_str().as_encoded_bytes();
    let own = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let ours = pid != own && line.windows(needle.len()).any(|window| window == needle);
            ours.then(|| Pid::from_raw(i32::try_from(pid).ok()?)).flatten()
        })
        .collect()
}
