//! What can go wrong with the store: what was attempted, and why it did not work.

use std::path::PathBuf;

use holdfast_wire::ids::{ExecId, SandboxId};

use crate::error::{CallError, Reason, key};

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The URL does not name a store.
    #[error("the store {url:?}: {message}")]
    Url {
        /// As it was given.
        url: String,
        /// What would be right.
        message: String,
    },
    /// The file cannot be opened, or be made private.
    #[error("opening the store {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is not a store, or is damaged.
    #[error("the store {} is damaged: {message}; restore it from a backup, or move it away to start empty", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The file was written by a newer gateway.
    #[error(
        "the store {} has schema {found}, and this gateway knows schemas up to {known}: use the newer gateway again",
        path.display()
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest one known here.
        known: i64,
    },
    /// Another sandbox has the name.
    #[error("a sandbox named {name:?} exists")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Another sandbox has the id.
    #[error("the sandbox {id} exists")]
    IdTaken {
        /// The id.
        id: SandboxId,
    },
    /// Somebody else wrote it in between.
    #[error("the sandbox {id} was changed in between (version {version} is no longer the stored one)")]
    Stale {
        /// The sandbox.
        id: SandboxId,
        /// The version that was expected.
        version: u64,
    },
    /// There is no such sandbox.
    #[error("there is no sandbox {id}")]
    SandboxMissing {
        /// The id.
        id: SandboxId,
    },
    /// There is no such exec.
    #[error("there is no exec {id}")]
    ExecMissing {
        /// The id.
        id: ExecId,
    },
    /// A record is larger than the store takes.
    #[error("{what} has {size} bytes, more than the {most} that are stored")]
    TooLarge {
        /// Which part of which record.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The bound.
        most: usize,
    },
    /// A row does not say what its column should.
    #[error("reading {what} from the store: {message}")]
    Decode {
        /// Which column.
        what: &'static str,
        /// What it says.
        message: String,
    },
    /// The database did not do it.
    #[error("{attempted}: {source}")]
    Query {
        /// What was attempted.
        attempted: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NameTaken { .. } | StoreError::IdTaken { .. } => {
                Self::new(Reason::SandboxExists, error.to_string())
            }
            StoreError::SandboxMissing { id } => {
                Self::new(Reason::SandboxNotFound, error.to_string()).with(key::SANDBOX_ID, id)
            }
            StoreError::ExecMissing { id } => {
                Self::new(Reason::ExecNotFound, error.to_string()).with(key::EXEC_ID, id)
            }
            StoreError::Stale { id, .. } => {
                Self::new(Reason::Conflict, error.to_string()).with(key::SANDBOX_ID, id)
            }
            StoreError::TooLarge { what, .. } => {
                Self::new(Reason::LimitReached, error.to_string()).with(key::LIMIT, what)
            }
            StoreError::Url { .. }
            | StoreError::Open { .. }
            | StoreError::Corrupt { .. }
            | StoreError::NewerSchema { .. }
            | StoreError::Decode { .. }
            | StoreError::Query { .. } => Self::internal("the gateway's store", &error),
        }
    }
}
