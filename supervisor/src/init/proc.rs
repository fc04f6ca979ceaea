//! A fresh `/proc` for a fresh PID namespace: the inherited one shows the processes of another.

use std::ffi::CStr;

use rustix::{
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
};

const NO_DATA: Option<&CStr> = None;

/// `/proc` could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("{attempt}: {source}: mount_proc needs a mount namespace of its own and the right to mount in it")]
pub struct MountProcError {
    attempt: &'static str,
    source: Errno,
}

/// Mounts a new procfs over `/proc`. Needs a PID and a mount namespace of its own.
pub fn mount_proc() -> Result<(), MountProcError> {
    let failed = |attempt| move |source| MountProcError { attempt, source };
    // Private first: in a shared tree the new mount would appear in the namespace that this one was copied from, and
    // hide the host's /proc there.
    match mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC) {
        Ok(()) => {}
        // In a chroot `/` may be a plain directory, which has no propagation of its own; and what a new mount in it
        // hides elsewhere is that directory's `proc`, and not the host's.
        Err(Errno::INVAL) => tracing::debug!("/ is no mount point, so its mounts stay as shared as they are"),
        Err(errno) => return Err(failed("making all mounts private")(errno)),
    }
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, NO_DATA)
        .map_err(failed("mounting /proc"))
}
