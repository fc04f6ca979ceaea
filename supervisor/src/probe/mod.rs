//! The probe: a real exec and a real file, by the same way as a user's. A path that answers says that the machine
//! lives; only this says that the sandbox works.
//!
//! Both run at the same time, each at most [`PROBE_TIMEOUT`](timing::PROBE_TIMEOUT). A system call on a hung mount
//! cannot be cancelled: its thread is left behind and counted, and while too many are stuck no further one is
//! started, so that a mount that hangs for a day costs a handful of threads and not ten thousand.

mod filesystem;

use std::sync::Arc;

use holdfast_wire::{
    control::{Health, ProbeResult},
    timing,
};
use tokio::time::Instant;

use crate::{
    execs::{Execs, SpoolUsage},
    workspace::Workspace,
};
use filesystem::FilesystemProbe;

/// Probes one sandbox.
#[derive(Debug)]
pub(crate) struct Prober {
    filesystem: Arc<FilesystemProbe>,
}

impl Prober {
    /// Probes files in `workspace`, as `user`; empty: as who the supervisor is.
    #[must_use]
    pub(crate) fn new(workspace: Workspace, user: String) -> Self {
        Self { filesystem: Arc::new(FilesystemProbe::new(workspace, user)) }
    }

    /// Both probes and the spool's state. Takes at most [`timing::PROBE_TIMEOUT`] and a little; the nonce is 0.
    pub(crate) async fn probe(&self, execs: &Execs) -> Health {
        let deadline = Instant::now() + timing::PROBE_TIMEOUT;
        let (exec, filesystem) = tokio::join!(probe_exec(execs, deadline), self.filesystem.probe(deadline));
        let SpoolUsage { bytes, limit, error } = execs.spool_usage();
        Health {
            nonce: 0,
            exec: Some(exec),
            filesystem: Some(filesystem),
            spool_bytes: bytes,
            spool_limit_bytes: limit,
            execs_running: u32::try_from(*execs.running().borrow()).unwrap_or(u32::MAX),
            spool_error: error.unwrap_or_default(),
            memory: execs.memory_health(),
        }
    }
}

async fn probe_exec(execs: &Execs, deadline: Instant) -> ProbeResult {
    let started = Instant::now();
    let (ok, errno, message) = match execs.probe(deadline).await {
        Ok(_) => (true, 0, String::new()),
        Err(failure) => (false, failure.errno, failure.message),
    };
    ProbeResult { ok, errno, message, took_ms: millis(started) }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
