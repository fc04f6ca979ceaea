//! The vm driver: a workload is a microVM of its own, by libkrun, with gvproxy for its network.
//!
//! ```text
//!   VmDriver ── the same keepers as `local` ──▶ files under root/<sandbox>/
//!                                           └─▶ holder (holdfast-vmm) ─┬─ gvproxy ◀─ filter ─┐
//!                                                                      └─ machine: kernel ───┘
//!                                                                           └─ supervisor, PID 1
//! ```
//!
//! What a gateway keeps of a machine is one process, its holder, as the local driver keeps a supervisor: so adoption,
//! pausing, ending and the record are that driver's. This room adds what a machine is made of ([`parts`], [`rootfs`],
//! the disk), what its holder is told ([`launch`]) and what may leave it ([`filter`]). The holder itself is another
//! program, because libkrun takes a process whole; nothing of libkrun is linked here.

pub mod control;
mod disk;
pub mod filter;
pub mod launch;
pub mod log;
mod machines;
pub mod note;
mod parts;
mod rootfs;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_wire::{bootstrap::SpoolLimits, ids::SandboxId};

use self::machines::Machines;
pub use self::parts::Parts;
use crate::{
    Capabilities, ComputeDriver, DriverError, Observed, ObservedStream, Workload, WorkloadSpec,
    local::{LocalDriver, kind::Kind},
};

/// How a vm driver is opened.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Where machines live; made (mode 0700) if it is not there. One gateway's alone.
    pub root: PathBuf,
    /// Where archives are unpacked to, once each.
    pub store: PathBuf,
    /// Where root file systems that callers name must lie.
    pub rootfs_dirs: Vec<PathBuf>,
    /// The root file system of sandboxes that name none.
    pub rootfs: Option<PathBuf>,
    /// Looked through first for the programs and libraries that a machine needs.
    pub parts_dir: Option<PathBuf>,
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// From the start of a guest's kernel to its supervisor's first word.
    pub boot_deadline: Duration,
    /// How much console is kept of each machine, in bytes.
    pub console_bytes: u64,
    /// The bounds of each supervisor's spool.
    pub spool: SpoolLimits,
    /// The supervisors' log filter.
    pub log: String,
}

impl VmConfig {
    /// Machines under `root`, for the gateway that listens on `gateway`, and the defaults for the rest.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, gateway: SocketAddr) -> Self {
        let root = root.into();
        Self {
            store: root.with_file_name("rootfs"),
            root,
            rootfs_dirs: Vec::new(),
            rootfs: None,
            parts_dir: None,
            gateway,
            // Under emulation on a loaded machine a guest takes half a minute; a good one takes half a second.
            boot_deadline: Duration::from_secs(90),
            // A boot's messages, and some thousand events of a supervisor.
            console_bytes: 1024 * 1024,
            spool: SpoolLimits::default(),
            log: "info".to_owned(),
        }
    }
}

/// The driver.
#[derive(Debug)]
pub struct VmDriver(LocalDriver);

impl VmDriver {
    /// Looks for all that machines need, tries whether they can be made here, and takes hold of those that are there.
    ///
    /// # Errors
    /// `Unavailable`, with what is missing and how to get it; and as [`LocalDriver::open`].
    pub async fn open(config: VmConfig) -> Result<Self, DriverError> {
        let driver = LocalDriver::open_kind(move || {
            let (root, console_bytes) = (config.root.clone(), config.console_bytes);
            Ok((root, console_bytes, Box::new(Machines::new(config)?) as Box<dyn Kind>))
        });
        Ok(Self(driver.await?))
    }
}

// The keepers do it all.
#[async_trait]
impl ComputeDriver for VmDriver {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn validate(&self, spec: &WorkloadSpec) -> Result<(), DriverError> {
        self.0.validate(spec).await
    }

    async fn ensure(&self, spec: &WorkloadSpec) -> Result<Workload, DriverError> {
        self.0.ensure(spec).await
    }

    async fn stop(&self, sandbox: SandboxId, grace: Duration) -> Result<(), DriverError> {
        self.0.stop(sandbox, grace).await
    }

    async fn pause(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        self.0.pause(sandbox).await
    }

    async fn resume(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        self.0.resume(sandbox).await
    }

    async fn delete(&self, sandbox: SandboxId) -> Result<(), DriverError> {
        self.0.delete(sandbox).await
    }

    async fn list(&self) -> Result<Vec<Observed>, DriverError> {
        self.0.list().await
    }

    async fn watch(&self) -> Result<ObservedStream, DriverError> {
        self.0.watch().await
    }

    async fn logs(&self, sandbox: SandboxId, tail: usize) -> Result<Bytes, DriverError> {
        self.0.logs(sandbox, tail).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}
