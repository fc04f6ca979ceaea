//! The contract between the gateway and whatever workloads are made of.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_wire::ids::SandboxId;
use serde::{Deserialize, Serialize};

use crate::{BootStage, DriverError, Observed, ObservedStream, Workload, WorkloadSpec};

/// Makes workloads, ends them, and says what it sees of them.
///
/// Rules that hold for every driver, and that the conformance suite checks:
///
/// - **Verbs are idempotent.** A verb whose answer was lost may be sent again. A future that is dropped does
///   not leave half a verb: the driver finishes it or undoes it by itself.
/// - **Verbs on one sandbox take effect one after another**, in the order in which they arrived; verbs on
///   different sandboxes do not wait for each other.
/// - **A generation is one workload.** A driver never makes a second workload for the same generation, and never
///   restarts one by itself: it reports the death, and the gateway asks for a newer generation.
/// - **Workloads outlive the driver** where [`Capabilities::adoption`] says so: dropping the driver, or the death
///   of its process, leaves them running, and the next driver over the same storage finds them.
#[async_trait]
pub trait ComputeDriver: Send + Sync + fmt::Debug {
    /// The driver's name in configuration, errors and metrics, such as `local`.
    fn name(&self) -> &'static str;

    /// What this driver can do on this machine. It does not change while the driver lives.
    fn capabilities(&self) -> Capabilities;

    /// Says whether [`ensure`](Self::ensure) could make this workload, without making anything.
    ///
    /// # Errors
    /// [`DriverError::InvalidSpec`] names the field, and what would be right.
    async fn validate(&self, spec: &WorkloadSpec) -> Result<(), DriverError>;

    /// Creates the workload, or adopts it when the same generation is there already.
    ///
    /// - The same generation again gives the same workload, in whatever state it is in: a dead one stays dead.
    /// - A newer generation ends the older workload, if it still runs, and starts anew over the same workspace.
    ///
    /// The answer comes when the workload was started, not when its supervisor has connected.
    ///
    /// # Errors
    /// `InvalidSpec`; `Conflict` for a generation older than the one that is there; `ResourceExhausted` and
    /// `Unavailable` when it may work later.
    async fn ensure(&self, spec: &WorkloadSpec) -> Result<Workload, DriverError>;

    /// Asks the workload to end, and ends it by force after `grace`. Its workspace is kept.
    ///
    /// Answers once the workload is gone. A workload that had ended already is left as it is: that is no error.
    ///
    /// # Errors
    /// `NotFound`, and what the outside system says.
    async fn stop(&self, sandbox: SandboxId, grace: Duration) -> Result<(), DriverError>;

    /// Freezes every process of the workload. A frozen workload stays frozen: that is no error.
    ///
    /// # Errors
    /// `Unsupported` where [`Capabilities::pause`] is false, `NotFound`, `Conflict` when it is not running.
    async fn pause(&self, sandbox: SandboxId) -> Result<(), DriverError>;

    /// Lets a frozen workload run on. A running workload runs on: that is no error.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    async fn resume(&self, sandbox: SandboxId) -> Result<(), DriverError>;

    /// Ends the workload at once and removes everything of it, the workspace too.
    ///
    /// Deleting what is not there is no error. After an error, deleting again carries on.
    ///
    /// # Errors
    /// What the outside system says; never `NotFound`.
    async fn delete(&self, sandbox: SandboxId) -> Result<(), DriverError>;

    /// Every workload that this driver has, ended ones too, in no order.
    ///
    /// # Errors
    /// `Unavailable` when the outside system does not answer.
    async fn list(&self) -> Result<Vec<Observed>, DriverError>;

    /// What the driver sees, from now on: first each workload as it is, then each whenever it changes.
    ///
    /// The items are levels: each says all that is known, a repeated one is harmless, and steps between two of
    /// them may be skipped when the reader is slow. A workload that was removed comes once more, as `Gone`. The
    /// stream ends when its source is lost or the driver closes; watching again starts over. Any number of
    /// readers may watch.
    ///
    /// # Errors
    /// `Unavailable` when the outside system does not answer.
    async fn watch(&self) -> Result<ObservedStream, DriverError>;

    /// The last bytes, at most `tail`, of what the supervisor and its machine wrote to the console.
    ///
    /// # Errors
    /// `Unsupported` where [`Capabilities::logs`] is false; `NotFound`.
    async fn logs(&self, sandbox: SandboxId, tail: usize) -> Result<Bytes, DriverError>;

    /// Lets go: ends the driver's own tasks and streams and frees its storage for the next driver. Workloads are
    /// left as they are. Verbs after it answer `Unavailable`. Dropping the driver does the same, a little later.
    async fn close(&self) {}
}

/// What a driver can do on this machine. The gateway asks here before it offers a verb to callers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `pause` and `resume` work.
    pub pause: bool,
    /// A stopped workload can be followed by a new generation over the same workspace.
    pub stop_start: bool,
    /// Workloads outlive the gateway's process, and are found again by the next one.
    pub adoption: bool,
    /// `logs` works.
    pub logs: bool,
    /// The stages that a boot goes through before its supervisor dials, in their order.
    pub boot: Vec<BootStage>,
    /// [`WorkloadSpec::image`] is honoured. Where this is false a spec with an image is refused.
    pub images: bool,
    /// An image's own command is known: [`WorkloadSpec::main`] is answered by [`Observed::main`]. Where this is false
    /// a main command has to be given whole, and its driver has nothing to do with it.
    pub entrypoints: bool,
    /// [`WorkloadSpec::resources`] are enforced. Where this is false a spec with limits is refused.
    pub resources: bool,
    /// What keeps a workload from the rest of the machine.
    pub isolation: Isolation,
    /// The same in plain words, for people: what it keeps apart, and what it does not.
    pub isolation_note: String,
}

/// What stands between a workload and the machine that it runs on, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Isolation {
    /// Nothing: a plain process.
    None,
    /// Its own process and mount tables; the same files, network and kernel. Tidiness, not security.
    Processes,
    /// A container: the same kernel.
    Container,
    /// A virtual machine: its own kernel.
    VirtualMachine,
}

/// One of the trait's verbs, for errors and for scripts of the fake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// [`ComputeDriver::validate`].
    Validate,
    /// [`ComputeDriver::ensure`].
    Ensure,
    /// [`ComputeDriver::stop`].
    Stop,
    /// [`ComputeDriver::pause`].
    Pause,
    /// [`ComputeDriver::resume`].
    Resume,
    /// [`ComputeDriver::delete`].
    Delete,
    /// [`ComputeDriver::list`].
    List,
    /// [`ComputeDriver::watch`].
    Watch,
    /// [`ComputeDriver::logs`].
    Logs,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Validate => "validate",
            Self::Ensure => "ensure",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Logs => "logs",
        })
    }
}
