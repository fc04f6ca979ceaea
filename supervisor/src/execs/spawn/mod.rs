//! Starting a process.

/// Starts processes.
pub trait Spawner: Send + Sync + std::fmt::Debug + 'static {}

/// The real one.
#[derive(Debug, Default)]
pub struct RealSpawner {}

impl RealSpawner {
    /// Looks at what this machine offers (cgroups, pidfds).
    #[must_use]
    pub fn new() -> Self {
        Self {}
    }
}

impl Spawner for RealSpawner {}
