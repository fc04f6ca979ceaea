//! Where the link stands, in a file for `healthcheck`: one line of state, replaced whole at each change.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::link::{Phase, Status};

const FILE: &str = "status.toml";

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Written {
    phase: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    since: jiff::Timestamp,
}

impl Written {
    pub(crate) fn attached(&self) -> bool {
        self.epoch.is_some()
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.epoch {
            Some(epoch) => write!(f, "{} (epoch {epoch}) since {:.0}", self.phase, self.since),
            None => write!(f, "{} since {:.0}", self.phase, self.since),
        }
    }
}

impl From<&Status> for Written {
    fn from(status: &Status) -> Self {
        let (phase, epoch) = match &status.phase {
            Phase::Dialling => ("dialling", None),
            Phase::Waiting { .. } => ("waiting to dial again", None),
            Phase::Attached { epoch } => ("attached", Some(epoch.0)),
            Phase::Resting => ("resting: told not to come back", None),
        };
        Self { phase: phase.to_owned(), epoch, since: status.since }
    }
}

/// The file could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {reason}", path.display())]
pub(crate) struct StatusError {
    action: &'static str,
    path: PathBuf,
    reason: String,
}

/// Reads the file in `state_dir`.
pub(crate) fn read(state_dir: &Path) -> Result<Written, StatusError> {
    let path = state_dir.join(FILE);
    let failed = |reason| StatusError { action: "read", path: path.clone(), reason };
    let text = fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
    toml::from_str(&text).map_err(|error| failed(error.to_string()))
}

fn write(state_dir: &Path, status: &Written) -> Result<(), StatusError> {
    let (path, next) = (state_dir.join(FILE), state_dir.join("status.toml.next"));
    let failed = |reason| StatusError { action: "write", path: path.clone(), reason };
    let text = toml::to_string(status).map_err(|error| failed(error.to_string()))?;
    let written: io::Result<()> = fs::write(&next, text).and_then(|()| fs::rename(&next, &path));
    written.map_err(|error| failed(error.to_string()))
}

/// Writes the file at each change, until `token` is cancelled.
pub(crate) async fn keep(state_dir: PathBuf, mut status: watch::Receiver<Status>, token: CancellationToken) {
    loop {
        let now = Written::from(&*status.borrow_and_update());
        let dir = state_dir.clone();
        match tokio::task::spawn_blocking(move || write(&dir, &now)).await {
            Ok(Ok(())) => {}
            // Full or read-only: a healthcheck without its second half.
            Ok(Err(error)) => tracing::warn!("{error}"),
            Err(error) => tracing::error!(%error, "writing the status"),
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = token.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::ids::Epoch;

    #[tokio::test]
    async fn the_file_follows_the_link() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("status.toml"), "{error}");
        let since = jiff::Timestamp::now();
        let (sender, receiver) = watch::channel(Status { phase: Phase::Resting, since });
        sender.send(Status { phase: Phase::Attached { epoch: Epoch(7) }, since }).unwrap();
        drop(sender);
        keep(dir.path().to_owned(), receiver, CancellationToken::new()).await;
        let written = read(dir.path()).unwrap();
        assert!(
            written.attached() && written.to_string().starts_with("attached (epoch 7) since "),
            "{written}"
        );
    }
}
