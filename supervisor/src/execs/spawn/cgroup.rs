//! A cgroup for each exec, where the supervisor may make one (cgroup v2, writable): its processes are then known
//! to the kernel, whatever sessions they make, and die by one write.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use holdfast_wire::ids::ExecId;

/// In front of the exec's id, in the name of its cgroup.
const PREFIX: &str = "holdfast-exec-";

/// An empty cgroup of this age is nobody's: from its making to its command's start it takes milliseconds.
const OLD: Duration = Duration::from_secs(120);

/// A tree of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hierarchy {
    /// Version 2.
    Unified,
    /// Version 1's, of the memory controller.
    Memory,
}

/// The directory of this very process's cgroup, as it is seen from here.
pub(super) fn own_dir(hierarchy: Hierarchy) -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    find_dir(hierarchy, &own, &mounts)
}

fn find_dir(hierarchy: Hierarchy, own: &str, mounts: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let found = match hierarchy {
            Hierarchy::Unified => controllers.is_empty(),
            Hierarchy::Memory => controllers.split(',').any(|controller| controller == "memory"),
        };
        found.then_some(path)
    })?;
    mounts.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        let mut kind = fs.split(' ');
        let found = match (hierarchy, kind.next()?) {
            (Hierarchy::Unified, "cgroup2") => true,
            (Hierarchy::Memory, "cgroup") => {
                kind.nth(1).is_some_and(|options| options.split(',').any(|option| option == "memory"))
            }
            _ => false,
        };
        if !found {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

/// One exec's cgroup.
#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// The cgroup v2 directory of this very process, if cgroups can be made below it: found by trying.
    pub(super) fn base() -> Option<PathBuf> {
        let base = own_dir(Hierarchy::Unified)?;
        let trial = base.join(format!("holdfast-trial-{}", std::process::id()));
        fs::create_dir(&trial).ok()?;
        let writable = fs::OpenOptions::new().write(true).open(trial.join("cgroup.procs")).is_ok();
        fs::remove_dir(&trial).ok()?;
        if !writable {
            return None;
        }
        Self::sweep(&base);
        Some(base)
    }

    /// Removes empty cgroups that a supervisor left when it was killed. Young ones are left alone: another
    /// supervisor may be about to put its command there.
    fn sweep(base: &Path) {
        let Ok(entries) = fs::read_dir(base) else { return };
        for entry in entries.flatten() {
            let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
            let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
            if named && age.is_some_and(|age| age >= OLD) {
                // Not empty: somebody lives in it.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// Makes the cgroup and opens its door for the child. `None`: it cannot be had; the exec does without.
    pub(super) fn create(base: &Path, exec: ExecId) -> Option<(Self, OwnedFd)> {
        let dir = base.join(format!("{PREFIX}{exec}"));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
            _ => {}
        }
        let door = fs::OpenOptions::new().write(true).open(dir.join("cgroup.procs")).ok()?;
        Some((Self { dir }, door.into()))
    }

    /// One that an earlier process made, if its name is of this exec and it is still there.
    pub(super) fn reopen(dir: &str, exec: ExecId) -> Option<Self> {
        let dir = PathBuf::from(dir);
        let named = dir.file_name()?.to_str()? == format!("{PREFIX}{exec}");
        (named && dir.join("cgroup.procs").exists()).then_some(Self { dir })
    }

    /// For the record.
    pub(super) fn path(&self) -> String {
        self.dir.to_string_lossy().into_owned()
    }

    /// Kills everything in it by one write. Before Linux 5.14 there is no such file; the caller kills one by one
    /// in any case.
    pub(super) fn kill(&self) {
        let _ = fs::write(self.dir.join("cgroup.kill"), "1");
    }

    /// The processes in it.
    pub(super) fn pids(&self) -> Vec<u32> {
        let procs = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        procs.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// True where the kernel counts at least one out-of-memory kill in here (only with the memory controller).
    pub(super) fn oom_killed(&self) -> bool {
        let events = fs::read_to_string(self.dir.join("memory.events")).unwrap_or_default();
        events.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count != "0")
    }

    /// Removes it; false while processes are in it.
    pub(super) fn remove(&self) -> bool {
        match fs::remove_dir(&self.dir) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_directory_is_found_in_a_container_and_on_a_machine() {
        let mounts = "40 30 0:30 /pods/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n\
                      41 30 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "3:cpu,cpuacct:/pods/abc\n2:memory:/pods/abc\n0::/pods/abc\n";
        let dir = |hierarchy| find_dir(hierarchy, own, mounts);
        assert_eq!(dir(Hierarchy::Memory), Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(dir(Hierarchy::Unified), Some("/sys/fs/cgroup/unified/pods/abc".into()));
        assert_eq!(find_dir(Hierarchy::Memory, "0::/\n", mounts), None);
    }
}
