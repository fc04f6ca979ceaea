//! What a workload is made of: the part in which drivers whose workloads are processes of this machine differ.

use std::{fmt, io, path::Path};

use super::{files::Dir, spawn::Launch};
use crate::{Capabilities, DriverError, Observed, WorkloadSpec};

/// How workloads of one sort are checked, laid out and described. Its calls may block, and are made from threads that
/// may, except for [`describe`](Kind::describe).
pub(crate) trait Kind: fmt::Debug + Send + Sync {
    /// The driver's name.
    fn name(&self) -> &'static str;

    fn capabilities(&self) -> Capabilities;

    /// Whether a workload's first process gets PID and mount namespaces.
    fn namespaces(&self) -> bool;

    /// What cannot be made, and why.
    fn check(&self, spec: &WorkloadSpec) -> Result<(), DriverError>;

    /// Makes the places for the workload's files, the workspace first of all. `has_workspace`: there was a workspace before, which must still be there.
    fn prepare(&self, spec: &WorkloadSpec, dir: &Dir, has_workspace: bool) -> io::Result<()>;

    /// Lays out the workload's files in its directory, and says how its first process is started.
    fn lay_out(&self, spec: &WorkloadSpec, dir: &Dir) -> Result<Launch, DriverError>;

    /// Adds to a level what the workload's own files tell of it. For a moment only: a small file at most.
    fn describe(&self, dir: &Path, level: &mut Observed) {
        let _ = (dir, level);
    }

    /// Whether the workload's own files will soon tell of another stage of its boot than this level does.
    fn is_booting(&self, level: &Observed) -> bool {
        let _ = level;
        false
    }
}
