//! Calls of the driver, each with its deadline, and what their failures mean to a sandbox.

use std::{fmt, time::Duration};

use bytes::Bytes;
use holdfast_drivers::{
    ComputeDriver, DriverError, Env, ErrorKind, Mount, Observed, Resources, Verb, WorkloadSpec,
    spec::{MAX_ENTRIES, MAX_MOUNTS, MAX_NETWORK_BYTES},
};
use holdfast_wire::{
    api,
    ids::{Generation, SandboxId},
    limits,
};
use tokio::time::timeout;

use super::{Bootstrapper, Parts};
use crate::{
    error::{CallError, Reason, key},
    store::SandboxRecord,
};

/// Making a workload may pull an image first.
const ENSURE: Duration = Duration::from_secs(600);
/// Freezing, thawing, removing, listing: a driver that needs longer hangs.
const SHORT: Duration = Duration::from_secs(30);
/// What a stop may take beyond its grace.
const STOP_SLACK: Duration = Duration::from_secs(30);
/// From the notice to the freeze, so that the notice leaves the machine and is acted upon.
pub(super) const PAUSE_NOTICE: Duration = Duration::from_millis(200);
/// Removing a workspace of many files.
const DELETE: Duration = Duration::from_secs(120);

/// The longest image reference, in bytes. Registries allow 255 for a name and 128 for a tag.
const MAX_IMAGE: usize = 1024;
/// The longest path: that of Linux.
const MAX_PATH: usize = 4096;
/// The longest name of a choice.
const MAX_WORD: usize = 64;

/// What a sandbox asks of the driver; one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Ensure { generation: Generation },
    Stop { grace: Duration, then_delete: bool },
    Pause,
    Resume,
    Delete,
}

impl Call {
    pub(super) fn verb(self) -> Verb {
        match self {
            Self::Ensure { .. } => Verb::Ensure,
            Self::Stop { .. } => Verb::Stop,
            Self::Pause => Verb::Pause,
            Self::Resume => Verb::Resume,
            Self::Delete => Verb::Delete,
        }
    }
}

/// A call that did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// CamelCase, for the phase's reason.
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// Whether the same call may work later.
    pub(super) retryable: bool,
    /// The driver has no such workload.
    pub(super) not_found: bool,
}

impl Failure {
    pub(super) fn late(verb: Verb, after: Duration) -> Self {
        Self {
            reason: "DriverTimeout",
            message: format!("{verb}: the driver did not answer within {} s", after.as_secs()),
            retryable: true,
            not_found: false,
        }
    }

    /// The driver has a fault.
    pub(super) fn panicked() -> Self {
        Self {
            reason: "DriverFailed",
            message: "the driver's call ended by a panic; the gateway's log says where".to_owned(),
            retryable: false,
            not_found: false,
        }
    }

    pub(super) fn of_the_store(message: &str) -> Self {
        Self { reason: "StoreFailed", message: message.to_owned(), retryable: true, not_found: false }
    }

    pub(super) fn to_call(&self, driver: &dyn ComputeDriver) -> CallError {
        CallError::new(Reason::DriverFailed, self.message.clone()).with(key::DRIVER, driver.name())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        let reason = match error.kind() {
            ErrorKind::Unsupported => "UnsupportedByDriver",
            ErrorKind::InvalidSpec => "InvalidSpec",
            ErrorKind::NotFound => "WorkloadGone",
            ErrorKind::Conflict => "DriverConflict",
            ErrorKind::Unavailable => "DriverUnavailable",
            ErrorKind::ResourceExhausted => "OutOfResources",
            ErrorKind::Image => "ImageUnavailable",
            _ => "DriverFailed",
        };
        Self {
            reason,
            message: error.to_string(),
            retryable: error.is_retryable(),
            not_found: error.kind() == ErrorKind::NotFound,
        }
    }
}

/// Does one call. An `Ensure` answers with what it made.
pub(super) async fn run(
    parts: &Parts,
    record: &SandboxRecord,
    call: Call,
) -> Result<Option<Observed>, Failure> {
    let (driver, id) = (&parts.driver, record.id);
    let within = match call {
        Call::Ensure { .. } => ENSURE,
        Call::Stop { grace, .. } => grace + STOP_SLACK,
        Call::Pause | Call::Resume => SHORT,
        Call::Delete => DELETE,
    };
    let answer = async {
        match call {
            Call::Ensure { generation } => {
                let spec =
                    workload(parts.bootstrapper.as_ref(), record, generation).map_err(|error| Failure {
                        reason: "BootstrapFailed",
                        message: error.message,
                        retryable: error.reason != Reason::InvalidArgument,
                        not_found: false,
                    })?;
                Ok(Some(driver.ensure(&spec).await?.observed))
            }
            Call::Stop { grace, .. } => Ok(driver.stop(id, grace).await.map(|()| None)?),
            Call::Pause => {
                tokio::time::sleep(PAUSE_NOTICE).await;
                Ok(driver.pause(id).await.map(|()| None)?)
            }
            Call::Resume => Ok(driver.resume(id).await.map(|()| None)?),
            Call::Delete => Ok(driver.delete(id).await.map(|()| None)?),
        }
    };
    timeout(within, answer).await.unwrap_or_else(|_| Err(Failure::late(call.verb(), within)))
}

/// The end of the workload's console.
pub(super) async fn logs(driver: &dyn ComputeDriver, id: SandboxId, tail: usize) -> Result<Bytes, Failure> {
    match timeout(SHORT, driver.logs(id, tail)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::late(Verb::Logs, SHORT)),
    }
}

/// All that the driver has.
pub(super) async fn list(driver: &dyn ComputeDriver) -> Result<Vec<Observed>, Failure> {
    match timeout(SHORT, driver.list()).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::late(Verb::List, SHORT)),
    }
}

/// Removes a workload that has no sandbox.
pub(super) async fn remove(driver: &dyn ComputeDriver, id: SandboxId) -> Result<(), Failure> {
    match timeout(DELETE, driver.delete(id)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::late(Verb::Delete, DELETE)),
    }
}

/// Asks the driver whether it could make this sandbox's workload.
pub(super) async fn validate(parts: &Parts, record: &SandboxRecord) -> Result<(), CallError> {
    let spec = workload(parts.bootstrapper.as_ref(), record, record.generation)?;
    match timeout(SHORT, parts.driver.validate(&spec)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(DriverError::InvalidSpec { field, message })) => {
            Err(CallError::invalid(&field, message).with(key::DRIVER, parts.driver.name()))
        }
        Ok(Err(error)) => Err(Failure::from(error).to_call(parts.driver.as_ref())),
        Err(_) => Err(Failure::late(Verb::Validate, SHORT).to_call(parts.driver.as_ref())),
    }
}

/// A sandbox's spec as the drivers read it.
fn workload(
    bootstrapper: &dyn Bootstrapper,
    record: &SandboxRecord,
    generation: Generation,
) -> Result<WorkloadSpec, CallError> {
    let spec = &record.spec;
    if spec.env.len() > MAX_ENTRIES || spec.labels.len() > MAX_ENTRIES {
        return Err(CallError::invalid("spec", format!("more than {MAX_ENTRIES} variables or labels")));
    }
    if spec.mounts.len() > MAX_MOUNTS {
        return Err(CallError::invalid("mounts", format!("more than {MAX_MOUNTS}")));
    }
    for (field, text, most) in [
        ("image", &spec.image, MAX_IMAGE),
        ("user", &spec.user, limits::MAX_USER),
        ("network", &spec.network, MAX_NETWORK_BYTES),
        ("rootfs", &spec.rootfs, MAX_PATH),
        ("egress", &spec.egress, MAX_WORD),
        ("workspace", &spec.workspace, MAX_WORD),
    ] {
        if text.len() > most {
            return Err(CallError::invalid(
                field,
                format!("{} bytes, at most {most} are allowed", text.len()),
            ));
        }
    }
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    Ok(WorkloadSpec {
        sandbox: record.id,
        name: record.name.clone(),
        generation,
        image: text(&spec.image),
        rootfs: text(&spec.rootfs),
        egress: text(&spec.egress),
        workspace: text(&spec.workspace),
        resources: resources(spec.resources.as_ref())?,
        env: Env::from_iter(spec.env.iter().map(|(name, value)| (name.clone(), value.clone()))),
        user: text(&spec.user),
        labels: spec.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        mounts: spec.mounts.iter().map(mount).collect(),
        network: text(&spec.network),
        read_only_root: spec.read_only_root,
        main: spec.main.as_ref().map(|main| main.args.clone()),
        bootstrap: bootstrapper.bootstrap(record.id, generation)?,
    })
}

fn mount(asked: &api::Mount) -> Mount {
    Mount { source: asked.source.clone(), target: asked.target.clone(), read_only: asked.read_only }
}

fn resources(asked: Option<&api::Resources>) -> Result<Resources, CallError> {
    let Some(asked) = asked else { return Ok(Resources::default()) };
    let small = |field: &str, value: u64| match u32::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(CallError::invalid(field, format!("{value} is more than any machine has"))),
    };
    Ok(Resources {
        cpu_millis: small("resources.cpu_millis", asked.cpu_millis)?,
        memory_bytes: (asked.memory_bytes > 0).then_some(asked.memory_bytes),
        disk_bytes: (asked.disk_bytes > 0).then_some(asked.disk_bytes),
        processes: small("resources.pids", asked.pids)?,
    })
}
