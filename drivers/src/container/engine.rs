//! The engine: bollard behind the few calls that this driver makes, each with its deadline, and what its failures
//! mean. Docker and podman answer the same API with different habits; who knows them is this file.

use std::{collections::HashMap, fmt, net::IpAddr, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error,
    models::{
        ContainerCreateBody, ContainerInspectResponse, ContainerState, ContainerStateStatusEnum,
        ContainerSummary, ContainerSummaryStateEnum, EventMessage, NetworkInspect, SystemInfo,
        SystemInfoCgroupVersionEnum, VolumeCreateRequest,
    },
    query_parameters::{
        CreateContainerOptions, EventsOptions, InspectContainerOptions, ListContainersOptions,
        ListVolumesOptions, LogsOptions, RemoveContainerOptions, RemoveVolumeOptions, StopContainerOptions,
    },
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use holdfast_wire::ids::{Generation, SandboxId};
use jiff::Timestamp;
use tokio::time::timeout;

use super::{
    recipe::{self, GENERATION_LABEL, INSTALLATION_LABEL, SANDBOX_LABEL},
    socket::Address,
    state::{Ended, Seen},
};
use crate::DriverError;

/// A question that an engine answers from memory. A loaded machine needs seconds.
const ASK: Duration = Duration::from_secs(20);
/// Making, starting, freezing and removing a container: cgroups, mounts, a network's setup.
const WORK: Duration = Duration::from_secs(60);
/// Above every wait of our own: bollard's own limit must never be what strikes, for it would cut event streams.
const NEVER: u64 = 365 * 24 * 3600;
/// An engine waits in whole seconds, in 32 bits.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 3600);
/// How far back events are asked for when a stream is opened: what happened while it was being opened.
const OVERLAP: i64 = 2;

/// Which engine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Docker,
    Podman,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        })
    }
}

/// An engine that has answered.
#[derive(Clone)]
pub(super) struct Engine {
    docker: Docker,
    pub(super) kind: Kind,
    pub(super) version: String,
    pub(super) address: Address,
    /// It runs as a plain user.
    pub(super) rootless: bool,
    pub(super) cgroup_v1: bool,
    /// Swap can be limited together with memory.
    pub(super) swap_limit: bool,
    /// Root in a container is another user on this machine.
    pub(super) remapped: bool,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("kind", &self.kind)
            .field("version", &self.version)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A network, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Network {
    /// This machine's addresses on it.
    pub(super) gateways: Vec<IpAddr>,
}

/// A container of ours in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) sandbox: SandboxId,
    pub(super) generation: Generation,
    pub(super) name: String,
    pub(super) running: bool,
    pub(super) paused: bool,
}

impl Engine {
    /// Connects, and asks who is there.
    pub(super) async fn connect(address: Address) -> Result<Self, DriverError> {
        let attempted = format!("asking the engine at {address}");
        let docker = match &address {
            Address::Unix(path) => {
                Docker::connect_with_unix(&path.to_string_lossy(), NEVER, API_DEFAULT_VERSION)
            }
            Address::Tcp(host) => Docker::connect_with_http(host, NEVER, API_DEFAULT_VERSION),
        };
        let docker = docker.map_err(|error| sort(&attempted, error))?;
        // Docker refuses a version that is newer than its own.
        let docker = within(&attempted, ASK, docker.negotiate_version()).await?;
        let version = within(&attempted, ASK, docker.version()).await?;
        let info: SystemInfo = within(&attempted, ASK, docker.info()).await?;
        let podman = version.components.iter().flatten().any(|part| part.name.contains("Podman"));
        let option = |wanted: &str| {
            info.security_options.iter().flatten().any(|option| option.split(',').any(|part| part == wanted))
        };
        Ok(Self {
            docker,
            kind: if podman { Kind::Podman } else { Kind::Docker },
            version: version.version.unwrap_or_default(),
            rootless: option("name=rootless") || is_a_users(&attempted, &address).await?,
            cgroup_v1: info.cgroup_version == Some(SystemInfoCgroupVersionEnum::_1),
            swap_limit: info.swap_limit.unwrap_or(false),
            remapped: option("name=userns"),
            address,
        })
    }

    /// The containers of an installation, or of one sandbox of it.
    pub(super) async fn list(
        &self,
        installation: &str,
        sandbox: Option<SandboxId>,
    ) -> Result<Vec<Listed>, DriverError> {
        let options = ListContainersOptions {
            all: true,
            filters: Some(labelled(installation, sandbox)),
            ..ListContainersOptions::default()
        };
        let all = within("listing containers", ASK, self.docker.list_containers(Some(options))).await?;
        Ok(all.into_iter().filter_map(listed).collect())
    }

    /// What a container is doing.
    pub(super) async fn inspect(&self, id: &str) -> Result<Seen, DriverError> {
        let attempted = format!("inspecting container {id}");
        let asked = self.docker.inspect_container(id, None::<InspectContainerOptions>);
        let answer: ContainerInspectResponse = match timeout(ASK, asked).await {
            Err(_) => return Err(late(&attempted, ASK)),
            Ok(Err(error)) if is_status(&error, 404) => return Ok(Seen::Absent),
            Ok(answer) => answer.map_err(|error| sort(&attempted, error))?,
        };
        Ok(seen(&answer.state.unwrap_or_default()))
    }

    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, DriverError> {
        let options =
            CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() };
        let made = self.docker.create_container(Some(options), body);
        let made = within(&format!("creating container {name}"), WORK, made).await?;
        for warning in made.warnings {
            tracing::warn!(container = name, warning, "the engine warns");
        }
        Ok(made.id)
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), DriverError> {
        within(&format!("starting container {id}"), WORK, self.docker.start_container(id, None)).await
    }

    /// SIGTERM, and SIGKILL after the grace; answers when it has ended. The engine itself keeps the time, so that a
    /// gateway that dies meanwhile leaves no half stop.
    pub(super) async fn stop(&self, id: &str, grace: Duration) -> Result<(), DriverError> {
        let grace = grace.min(LONGEST_GRACE);
        let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let options = StopContainerOptions { t: Some(seconds), signal: None };
        let stop = self.docker.stop_container(id, Some(options));
        within_or(&format!("stopping container {id}"), grace + WORK, stop, 404).await
    }

    pub(super) async fn pause(&self, id: &str) -> Result<(), DriverError> {
        within(&format!("pausing container {id}"), WORK, self.docker.pause_container(id)).await
    }

    pub(super) async fn unpause(&self, id: &str) -> Result<(), DriverError> {
        within(&format!("unpausing container {id}"), WORK, self.docker.unpause_container(id)).await
    }

    /// Ends it at once and removes it. One that is not there is no error.
    pub(super) async fn remove(&self, id: &str) -> Result<(), DriverError> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        let remove = self.docker.remove_container(id, Some(options));
        within_or(&format!("removing container {id}"), WORK, remove, 404).await
    }

    pub(super) async fn create_volume(
        &self,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), DriverError> {
        let volume = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        within(&format!("creating volume {name}"), WORK, self.docker.create_volume(volume)).await.map(drop)
    }

    pub(super) async fn has_volume(&self, name: &str) -> Result<bool, DriverError> {
        let attempted = format!("inspecting volume {name}");
        match timeout(ASK, self.docker.inspect_volume(name)).await {
            Err(_) => Err(late(&attempted, ASK)),
            Ok(Err(error)) if is_status(&error, 404) => Ok(false),
            Ok(answer) => answer.map(|_| true).map_err(|error| sort(&attempted, error)),
        }
    }

    /// Removes the volumes of a sandbox, those that a record knows nothing of too.
    pub(super) async fn remove_volumes(
        &self,
        installation: &str,
        sandbox: SandboxId,
    ) -> Result<(), DriverError> {
        let options = ListVolumesOptions { filters: Some(labelled(installation, Some(sandbox))) };
        let found = within("listing volumes", ASK, self.docker.list_volumes(Some(options))).await?;
        for volume in found.volumes.unwrap_or_default() {
            // A filter that an engine does not know is a filter that it does not apply.
            if volume.labels.get(SANDBOX_LABEL) != Some(&sandbox.to_string()) {
                continue;
            }
            let name = volume.name;
            let remove = self.docker.remove_volume(&name, None::<RemoveVolumeOptions>);
            within_or(&format!("removing volume {name}"), WORK, remove, 404).await?;
        }
        Ok(())
    }

    /// A network by the name that containers use; `None`: there is no such.
    pub(super) async fn network(&self, name: &str) -> Result<Option<Network>, DriverError> {
        // Podman calls the default one `podman`, and takes `bridge` for it where a container is made.
        let asked = if self.kind == Kind::Podman && name == recipe::BRIDGE { "podman" } else { name };
        let attempted = format!("inspecting network {asked}");
        let answer = self.docker.inspect_network(asked, None);
        match timeout(ASK, answer).await {
            Err(_) => Err(late(&attempted, ASK)),
            Ok(Err(error)) if is_status(&error, 404) => Ok(None),
            Ok(answer) => Ok(Some(network(answer.map_err(|error| sort(&attempted, error))?))),
        }
    }

    /// The last bytes of what a container wrote.
    pub(super) async fn logs(&self, id: &str, tail: usize) -> Result<Option<Bytes>, DriverError> {
        let attempted = format!("reading the log of container {id}");
        // Engines count lines: so many that they hold the bytes, if a line has ten.
        let lines = if tail == usize::MAX { "all".to_owned() } else { (tail / 10 + 16).to_string() };
        let options = LogsOptions { stdout: true, stderr: true, tail: lines, ..LogsOptions::default() };
        let mut log = self.docker.logs(id, Some(options));
        let read = async {
            let mut bytes = BytesMut::new();
            while let Some(piece) = log.next().await {
                bytes.extend_from_slice(&piece?.into_bytes());
                // Twice what is wanted is held, whatever a container writes; the log's own bound limits the rest.
                if tail != usize::MAX && bytes.len() > tail.saturating_mul(2) + 4096 {
                    let _ = bytes.split_to(bytes.len() - tail);
                }
            }
            Ok(bytes.freeze())
        };
        match timeout(ASK, read).await {
            Err(_) => Err(late(&attempted, ASK)),
            Ok(Err(error)) if is_status(&error, 404) => Ok(None),
            Ok(read) => {
                let bytes: Bytes = read.map_err(|error| sort(&attempted, error))?;
                Ok(Some(bytes.slice(bytes.len().saturating_sub(tail)..)))
            }
        }
    }

    /// What happens to the containers of an installation, from a moment ago on.
    pub(super) fn events(
        &self,
        installation: &str,
    ) -> impl Stream<Item = Result<EventMessage, Error>> + use<> {
        let mut filters = labelled(installation, None);
        filters.insert("type".to_owned(), vec!["container".to_owned()]);
        let since = Timestamp::now().as_second() - OVERLAP;
        self.docker.events(Some(EventsOptions {
            since: Some(since.to_string()),
            until: None,
            filters: Some(filters),
        }))
    }

    /// For the image room.
    pub(super) fn docker(&self) -> &Docker {
        &self.docker
    }
}

/// Whether somebody else than root listens there. Podman's answers to Docker's questions do not tell.
async fn is_a_users(attempted: &str, address: &Address) -> Result<bool, DriverError> {
    let Address::Unix(path) = address else { return Ok(false) };
    let owner = async { tokio::net::UnixStream::connect(path).await?.peer_cred() };
    match timeout(ASK, owner).await {
        Err(_) => Err(late(attempted, ASK)),
        Ok(owner) => {
            let owner = owner.map_err(|error| DriverError::unavailable(attempted, error.to_string()))?;
            Ok(owner.uid() != 0)
        }
    }
}

/// The sandbox that an event is about.
pub(super) fn sandbox_of(event: &EventMessage) -> Option<SandboxId> {
    event.actor.as_ref()?.attributes.as_ref()?.get(SANDBOX_LABEL)?.parse().ok()
}

fn labelled(installation: &str, sandbox: Option<SandboxId>) -> HashMap<String, Vec<String>> {
    let mut labels = vec![format!("{INSTALLATION_LABEL}={installation}")];
    labels.extend(sandbox.map(|sandbox| format!("{SANDBOX_LABEL}={sandbox}")));
    HashMap::from([("label".to_owned(), labels)])
}

fn listed(summary: ContainerSummary) -> Option<Listed> {
    let labels = summary.labels?;
    Some(Listed {
        id: summary.id?,
        sandbox: labels.get(SANDBOX_LABEL)?.parse().ok()?,
        generation: Generation(labels.get(GENERATION_LABEL)?.parse().ok()?),
        name: labels.get(recipe::NAME_LABEL).cloned().unwrap_or_default(),
        running: summary.state == Some(ContainerSummaryStateEnum::RUNNING),
        paused: summary.state == Some(ContainerSummaryStateEnum::PAUSED),
    })
}

fn seen(state: &ContainerState) -> Seen {
    use ContainerStateStatusEnum as Status;
    let pid = state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
    match state.status.unwrap_or(Status::EMPTY) {
        Status::RUNNING | Status::RESTARTING | Status::STOPPING => Seen::Running { pid },
        Status::PAUSED => Seen::Paused { pid },
        Status::REMOVING => Seen::Removing,
        Status::EXITED | Status::DEAD => Seen::Ended(Ended {
            code: state.exit_code.unwrap_or(-1),
            oom: state.oom_killed.unwrap_or(false),
            error: state.error.clone().unwrap_or_default(),
            at: state
                .finished_at
                .as_deref()
                .and_then(|text| text.parse().ok())
                .unwrap_or_else(Timestamp::now),
        }),
        // podman's `configured` and `initialized` come as created.
        Status::CREATED | Status::EMPTY => Seen::Created,
    }
}

fn network(network: NetworkInspect) -> Network {
    let pools = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    let gateways = pools.iter().filter_map(|pool| {
        // Podman may write it with its prefix's length.
        pool.gateway.as_deref()?.split('/').next()?.parse().ok()
    });
    Network { gateways: gateways.collect() }
}

/// A call with a deadline.
pub(super) async fn within<T>(
    attempted: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, DriverError> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| sort(attempted, error)),
        Err(_) => Err(late(attempted, limit)),
    }
}

/// A call for which a status of the engine means that it was done already.
async fn within_or(
    attempted: &str,
    limit: Duration,
    call: impl Future<Output = Result<(), Error>>,
    fine: u16,
) -> Result<(), DriverError> {
    match timeout(limit, call).await {
        Ok(Err(error)) if is_status(&error, fine) => Ok(()),
        Ok(answer) => answer.map_err(|error| sort(attempted, error)),
        Err(_) => Err(late(attempted, limit)),
    }
}

pub(super) fn is_status(error: &Error, status: u16) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}

pub(super) fn late(attempted: &str, after: Duration) -> DriverError {
    DriverError::unavailable(attempted, format!("the engine did not answer within {} s", after.as_secs()))
}

/// What a failure means for whoever asked.
pub(super) fn sort(attempted: &str, error: Error) -> DriverError {
    match error {
        Error::DockerResponseServerError { status_code, message } => {
            let out_of =
                ["no space left", "cannot allocate memory", "too many open files", "resource temporarily"];
            let low = message.to_lowercase();
            if out_of.iter().any(|words| low.contains(words)) {
                return DriverError::ResourceExhausted {
                    attempted: attempted.to_owned(),
                    source: std::sync::Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(message)),
                };
            }
            match status_code {
                409 => DriverError::conflict(attempted, message),
                _ => DriverError::internal(
                    attempted,
                    format!("the engine says: {message} (status {status_code})"),
                ),
            }
        }
        Error::DockerStreamError { error } => {
            DriverError::internal(attempted, format!("the engine says: {error}"))
        }
        // What is left is a connection that was not made, or broke.
        other => DriverError::unavailable(attempted, spelled_out(&other)),
    }
}

/// An error with its causes: bollard's and hyper's own words leave out the errno.
fn spelled_out(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_failures_are_sorted_by_whether_waiting_helps() {
        let said = |status_code, message: &str| {
            sort("x", Error::DockerResponseServerError { status_code, message: message.into() }).kind()
        };
        use crate::ErrorKind;
        assert_eq!(said(500, "write /var/lib: no space left on device"), ErrorKind::ResourceExhausted);
        assert_eq!(said(409, "is paused"), ErrorKind::Conflict);
        assert_eq!(said(500, "runc create failed"), ErrorKind::Internal);
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(sort("x", Error::IOError { err: refused }).is_retryable());
    }
}
