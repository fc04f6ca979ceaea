//! Being the first process of a PID namespace: collect orphans, mount `/proc`, survive a lack of memory.
//!
//! The first process is special to the kernel: whoever loses its parent becomes its child, signals without a
//! handler do not reach it, and its end ends everything. What it must not do is wait for *any* child: tokio waits
//! for those that it started, and each exit status can be collected once.

mod children;
pub mod machine;
mod proc;
mod reap;

pub use children::{Children, OwnChild};
pub use proc::{MountProcError, mount_proc};
pub use reap::reap;

use std::{fs, io};

/// The kernel kills this process last when memory runs out, if it lets us say so (CAP_SYS_RESOURCE). Commands must
/// not inherit it: whoever starts them sets it back.
pub fn shield_from_oom_killer() {
    match fs::write("/proc/self/oom_score_adj", "-1000") {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => {
            tracing::debug!(%error, "this supervisor is as likely a victim of the OOM killer as any process here");
        }
        Err(error) => tracing::warn!(%error, "cannot write /proc/self/oom_score_adj"),
    }
}
