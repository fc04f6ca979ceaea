//! What an earlier gateway left: reading a workload's record, and finding its process again.

use std::{io, os::fd::OwnedFd};

use holdfast_wire::ids::SandboxId;
use jiff::Timestamp;

use super::{
    Shared, layout,
    process::{self, ProcessId},
    record::{Ended, Record, Running, Stage},
    tree::Tree,
};
use crate::Exit;

/// What there is of a sandbox under the root.
pub(super) enum Loaded {
    Nothing,
    Bare,
    Strange(String),
    Workload(Record, Option<(ProcessId, OwnedFd)>),
}

/// Reads what there is of a sandbox, and looks for its process.
pub(super) fn load(shared: &Shared, sandbox: SandboxId) -> Loaded {
    if let Err(error) = layout::remove_the_rest(&shared.root, sandbox, shared.keepers.cancel()) {
        tracing::warn!(%sandbox, %error, "files of a removed workload cannot be removed; deleting it again carries on");
    }
    let path = shared.dir_of(sandbox);
    let dir = match shared.root.dir(&sandbox.to_string()) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Loaded::Nothing,
        Err(error) => return Loaded::Strange(format!("{}: {error}", path.display())),
    };
    let mut record = match Record::read(&dir, sandbox) {
        Ok(Some(record)) => record,
        Ok(None) => return Loaded::Bare,
        Err(message) => return Loaded::Strange(message),
    };
    let tree = |leader, namespaces| Tree { leader, sandbox, dir: path.clone(), namespaces };
    let running = match record.stage.clone() {
        Stage::Ended(_) | Stage::Failed { .. } => return Loaded::Workload(record, None),
        Stage::Running(running) => running,
        Stage::Starting { since } => match tree(None, false).find_leader(&shared.boot) {
            // It was started, and the gateway died before it could write that down.
            Ok(Some(process)) => {
                let namespaces = process::in_another_pid_namespace(process.pid);
                Running { process, namespaces, since, stop_asked: false, paused: None }
            }
            Err(error) => return Loaded::Strange(format!("looking for the supervisor: {error}")),
            Ok(None) => {
                let message = "the gateway ended before the supervisor was started".to_owned();
                record.stage = Stage::Failed { message, at: Timestamp::now() };
                let _ = record.write(&dir);
                return Loaded::Workload(record, None);
            }
        },
    };
    let ours = record.dir == path;
    let opened = if ours { process::open(&running.process, &shared.boot) } else { Ok(None) };
    match opened {
        Ok(Some(fd)) => {
            let id = running.process.clone();
            record.stage = Stage::Running(running);
            let _ = record.write(&dir);
            Loaded::Workload(record, Some((id, fd)))
        }
        Ok(None) => {
            if ours && !running.namespaces {
                // The supervisor ended while no gateway was there; what it left behind ends now.
                if let Err(error) = tree(None, false).kill() {
                    tracing::warn!(%sandbox, %error, "looking for the workload's processes");
                }
            }
            let rebooted = running.process.boot != shared.boot;
            let ended =
                Ended { exit: Exit::Unknown, asked: running.stop_asked, rebooted, at: Timestamp::now() };
            record.stage = Stage::Ended(ended);
            let _ = record.write(&dir);
            Loaded::Workload(record, None)
        }
        Err(error) => Loaded::Strange(format!("looking for process {}: {error}", running.process.pid)),
    }
}
