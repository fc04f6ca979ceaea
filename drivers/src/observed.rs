//! What a driver sees of a workload: levels, never edges, and never readiness.

use std::fmt;

use futures::stream::BoxStream;
use holdfast_wire::ids::{Generation, SandboxId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Boot;

/// A stream of levels; see [`ComputeDriver::watch`](crate::ComputeDriver::watch).
pub type ObservedStream = BoxStream<'static, Observed>;

/// The [`reason`](Observed::reason) of a workload that the kernel ended because memory ran out: spelt as Kubernetes does.
pub const OOM_KILLED: &str = "OOMKilled";

/// All that a driver knows of one workload at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Whose workload it is.
    pub sandbox: SandboxId,
    /// Which of the sandbox's workloads. `Generation(0)` where the driver cannot tell any more.
    pub generation: Generation,
    /// What it is doing.
    pub state: WorkloadState,
    /// Why, in one CamelCase word for programs, such as `KilledBySignal`.
    pub reason: String,
    /// Why, for people; may be empty.
    pub message: String,
    /// How far its boot has come: see [`Capabilities::boot`](crate::Capabilities::boot).
    #[serde(default)]
    pub boot: Boot,
    /// Since when the workload is in this state, by this machine's clock. For showing, not for comparing.
    pub at: Timestamp,
    /// The process that stands for the workload on this machine, where there is one.
    pub pid: Option<u32>,
    /// What the outside system calls the workload, such as `pid 4711` or a container's id. For people.
    pub handle: Option<String>,
    /// What [`WorkloadSpec::main`](crate::WorkloadSpec::main) amounts to in this workload's image, where the driver
    /// has images: a fact about the image, which stays what it is for as long as the workload does.
    #[serde(default)]
    pub main: Option<MainCommand>,
}

/// A command with all that an image says about it, except what is the workload's own: user and environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainCommand {
    /// Never empty.
    pub argv: Vec<String>,
    /// An absolute path in the workload.
    pub cwd: String,
}

impl Observed {
    /// The last level of a workload that was removed just now.
    #[must_use]
    pub fn gone(sandbox: SandboxId, generation: Generation) -> Self {
        Self {
            sandbox,
            generation,
            state: WorkloadState::Gone,
            reason: "Removed".to_owned(),
            message: String::new(),
            boot: Boot::default(),
            at: Timestamp::now(),
            pid: None,
            handle: None,
            main: None,
        }
    }

    /// Whether `other` tells a reader nothing new. Time stamps are not looked at.
    #[must_use]
    pub fn same_level(&self, other: &Self) -> bool {
        let Self { sandbox, generation, state, reason, message, boot, at: _, pid, handle, main } = self;
        boot.stages().eq(other.boot.stages())
            && (sandbox, generation, state, reason, message, pid, handle, main)
                == (
                    &other.sandbox,
                    &other.generation,
                    &other.state,
                    &other.reason,
                    &other.message,
                    &other.pid,
                    &other.handle,
                    &other.main,
                )
    }
}

/// What a workload is doing, as its driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadState {
    /// Being made.
    Creating,
    /// Its processes run. Whether its supervisor works is not the driver's to say.
    Running,
    /// Frozen.
    Paused,
    /// Asked to end.
    Stopping,
    /// Ended because it was asked to.
    Stopped,
    /// Ended without being asked.
    Exited(Exit),
    /// It could not be made, or the driver can no longer tell what became of it.
    Failed,
    /// Removed. The last thing that is said of a workload.
    Gone,
}

impl WorkloadState {
    /// Whether any process of the workload can be there.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Creating | Self::Running | Self::Paused | Self::Stopping)
    }
}

/// How a workload's first process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody was there to see: it ended between two gateways, or was not this gateway's child.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("an exit that nobody saw"),
        }
    }
}

/// What [`ensure`](crate::ComputeDriver::ensure) answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Whether this call made it.
    pub origin: Origin,
    /// What the driver sees of it now.
    pub observed: Observed,
}

/// Where a workload came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This call made it.
    Created,
    /// It was there already, made by an earlier call or by an earlier gateway.
    Adopted,
}
