//! Where a workload's files are, what is in them, and how they come and go.
//!
//! ```text
//!   <root>/                       0700, one gateway's alone (.lock)
//!     <sandbox id>/               0700
//!       workload.json             the record
//!       supervisor.toml           0600, what the supervisor reads at start
//!       identity/                 cert.pem key.pem ca.pem, 0400
//!       state/                    the supervisor's: spool and lock
//!       workspace/                the user's files; the only part that outlives a generation with `state`
//!       console.log console.log.1
//!     .trash/<sandbox id>/        what is being removed
//! ```
//!
//! There are no sockets in here, so that a long path is no trouble.

use std::{ffi::OsString, io, os::fd::OwnedFd};

use holdfast_wire::{
    bootstrap::{GatewayAddress, IdentityFiles, SpoolLimits, SupervisorConfig},
    ids::SandboxId,
};
use jiff::Timestamp;
use rustix::fs::FileType;
use tokio_util::sync::CancellationToken;

use super::{
    LocalConfig, Namespaces, Shared, console,
    files::{self, Dir},
    kind::Kind,
    process::ProcessId,
    record::{Record, Running, Stage},
    spawn::{self, Launch, Stdin},
    tree::{DIR_MARK, SANDBOX_MARK},
};
use crate::{BootStage, Capabilities, DriverError, Isolation, WorkloadSpec};

pub(super) const TRASH: &str = ".trash";
const WORKSPACE: &str = "workspace";
const STATE: &str = "state";
const IDENTITY: &str = "identity";
const CONFIG: &str = "supervisor.toml";

/// What a supervisor has of the gateway's own environment: where programs are, and how text is written.
const INHERITED: [&str; 7] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "RUST_LOG"];
/// Where programs are when the gateway itself was not told.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The record, if one could be written, and the first process.
type Made = (Option<Record>, Result<(ProcessId, OwnedFd), DriverError>);

/// Lays out the files and starts the first process; the record says how far it came. For blocking threads.
pub(super) fn make(shared: &Shared, spec: &WorkloadSpec, mut record: Record) -> Made {
    let failed = |error| {
        DriverError::io(
            format!("creating the workload of {} generation {}", spec.sandbox, spec.generation),
            error,
        )
    };
    let prepared = shared.root.make_dir(&spec.sandbox.to_string()).and_then(|dir| {
        shared.kind.prepare(spec, &dir, record.has_workspace)?;
        record.has_workspace = true;
        record.write(&dir).map(|()| dir)
    });
    let dir = match prepared {
        Ok(dir) => dir,
        Err(error) => return (None, Err(failed(error))),
    };
    let mark = (spec.sandbox, dir.path().to_owned());
    let started = shared.kind.lay_out(spec, &dir).and_then(|mut launch| {
        launch.env.push((SANDBOX_MARK.into(), mark.0.to_string().into()));
        launch.env.push((DIR_MARK.into(), mark.1.into_os_string()));
        spawn::spawn(launch, shared.kind.namespaces(), &shared.boot).map_err(failed)
    });
    record.stage = match &started {
        Ok((process, _)) => Stage::Running(Running {
            process: process.clone(),
            namespaces: shared.kind.namespaces(),
            since: Timestamp::now(),
            stop_asked: false,
            paused: None,
        }),
        Err(error) => Stage::Failed { message: error.to_string(), at: Timestamp::now() },
    };
    if let Err(error) = record.write(&dir) {
        // The next gateway finds it as `Starting`, and the process by its mark.
        tracing::warn!(sandbox = %spec.sandbox, %error, "the workload's record cannot be written");
    }
    (Some(record), started)
}

/// The local driver's workloads: supervisors on this machine.
#[derive(Debug)]
pub(super) struct Supervisors {
    command: Vec<OsString>,
    /// Why there are no namespaces.
    no_namespaces: Option<String>,
    console_bytes: u64,
    spool: SpoolLimits,
    log: String,
    /// What supervisors live by, where they are to end with this process.
    lifeline: Option<Lifeline>,
}

/// A pipe that nobody writes to. Its reading end is every supervisor's standard input; the other is held here alone, so
/// that it ends with this process, however that ends.
#[derive(Debug)]
struct Lifeline {
    end: OwnedFd,
    _held: OwnedFd,
}

impl Lifeline {
    fn new() -> io::Result<Self> {
        let (end, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { end, _held: held })
    }
}

impl Supervisors {
    pub(super) fn new(config: &LocalConfig) -> Result<Self, DriverError> {
        let command = spawn::resolve(&config.supervisor_command)
            .map_err(|message| DriverError::invalid("supervisor_command", message))?;
        let no_namespaces = match config.namespaces {
            Namespaces::Never => Some("namespaces are switched off".to_owned()),
            Namespaces::Auto | Namespaces::Require => {
                spawn::may_leave_namespaces().err().map(|error| format!("no namespaces: {error}"))
            }
        };
        if let (Namespaces::Require, Some(why)) = (config.namespaces, &no_namespaces) {
            return Err(DriverError::invalid(
                "namespaces",
                format!("are required, and not permitted here: {why}"),
            ));
        }
        let lifeline = config.lifeline.then(Lifeline::new).transpose();
        Ok(Self {
            lifeline: lifeline.map_err(|error| DriverError::io("making the supervisors' lifeline", error))?,
            command,
            no_namespaces,
            console_bytes: config.console_bytes,
            spool: config.spool,
            log: config.log.clone(),
        })
    }

    /// Writes the supervisor's files, and says how it is started.
    fn launch(&self, spec: &WorkloadSpec, dir: &Dir) -> io::Result<Launch> {
        let identity = dir.dir(IDENTITY)?;
        let bootstrap = &spec.bootstrap;
        identity.write("cert.pem", 0o400, bootstrap.cert_chain_pem.as_bytes())?;
        identity.write("key.pem", 0o400, bootstrap.key_pem.expose().as_bytes())?;
        identity.write("ca.pem", 0o400, bootstrap.ca_pem.as_bytes())?;

        let config = SupervisorConfig {
            sandbox_id: spec.sandbox,
            workload_generation: spec.generation,
            state_dir: dir.path().join(STATE),
            workspace: dir.path().join(WORKSPACE),
            init: self.namespaces(),
            mount_proc: self.namespaces(),
            default_user: None,
            gateway: GatewayAddress {
                addresses: bootstrap.addresses.clone(),
                server_name: bootstrap.server_name.clone(),
            },
            identity: IdentityFiles {
                cert: identity.path().join("cert.pem"),
                key: identity.path().join("key.pem"),
                ca: identity.path().join("ca.pem"),
            },
            spool: self.spool,
            log: self.log.clone(),
        };
        let text = config.to_toml().map_err(io::Error::other)?;
        dir.write(CONFIG, 0o600, text.as_bytes())?;

        console::keep_bounded(dir, self.console_bytes)?;
        let mut command = self.command.clone();
        command.extend(["--config".into(), dir.path().join(CONFIG).into_os_string()]);
        let stdin = match &self.lifeline {
            Some(lifeline) => {
                command.push("--lifeline".into());
                Stdin::Lifeline(lifeline.end.try_clone()?)
            }
            None => Stdin::Null,
        };
        Ok(Launch { command, env: environment(spec), console: console::open(dir)?, stdin })
    }
}

impl Kind for Supervisors {
    fn name(&self) -> &'static str {
        "local"
    }

    fn capabilities(&self) -> Capabilities {
        let (isolation, note) = match &self.no_namespaces {
            None => (
                Isolation::Processes,
                "does not isolate: commands have their own process and mount tables, but the gateway's user, files, \
                 network and kernel"
                    .to_owned(),
            ),
            Some(why) => (
                Isolation::None,
                format!("does not isolate: commands are plain processes of the gateway's user ({why})"),
            ),
        };
        Capabilities {
            pause: true,
            stop_start: true,
            adoption: true,
            logs: true,
            boot: vec![BootStage::Started],
            images: false,
            entrypoints: false,
            resources: false,
            isolation,
            isolation_note: note,
        }
    }

    fn namespaces(&self) -> bool {
        self.no_namespaces.is_none()
    }

    fn check(&self, spec: &WorkloadSpec) -> Result<(), DriverError> {
        check(spec)
    }

    /// Makes the directories that are not there yet. A workspace that was there before is not made anew: an empty one
    /// under the old name would pass for it.
    fn prepare(&self, _: &WorkloadSpec, dir: &Dir, has_workspace: bool) -> io::Result<()> {
        if has_workspace {
            dir.dir(WORKSPACE).map_err(|error| {
                let message = format!("the workspace is gone: {error}; put it back, then start the sandbox");
                io::Error::new(error.kind(), message)
            })?;
        }
        for name in [WORKSPACE, STATE, IDENTITY] {
            dir.make_dir(name)?;
        }
        Ok(())
    }

    fn lay_out(&self, spec: &WorkloadSpec, dir: &Dir) -> Result<Launch, DriverError> {
        self.launch(spec, dir).map_err(|error| DriverError::io(format!("laying out {}", spec.sandbox), error))
    }
}

/// What this driver cannot make, beside what no driver can.
fn check(spec: &WorkloadSpec) -> Result<(), DriverError> {
    spec.check()?;
    if let Some(field) = spec.first_of_an_image() {
        return Err(DriverError::invalid(
            field,
            "the local driver runs no images, on the machine's own files and network: leave it out, or choose another driver",
        ));
    }
    if let Some(field) = spec.first_of_a_machine() {
        let message =
            "the local driver's workloads have this machine's own: leave it out, or choose the vm driver";
        return Err(DriverError::invalid(field, message));
    }
    if spec.user.is_some() {
        let message = "the local driver runs workloads as the gateway's own user: leave it out, and name a user with each exec";
        return Err(DriverError::invalid("user", message));
    }
    match spec.resources.first_set() {
        Some(field) => Err(DriverError::invalid(
            field,
            "the local driver enforces no limits: leave it out, or choose another driver",
        )),
        None => Ok(()),
    }
}

/// Ends with nothing of the sandbox under the root. Whatever has its name is moved away first, so that a removal
/// that is interrupted is never taken for a workload.
pub(super) fn remove(root: &Dir, sandbox: SandboxId, stop: &CancellationToken) -> io::Result<()> {
    let name = sandbox.to_string();
    if root.kind(&name)?.is_some() {
        let trash = root.make_dir(TRASH)?.make_dir(&name)?;
        let mut free = 1_u64;
        while trash.kind(&free.to_string())?.is_some() {
            free += 1;
        }
        root.move_into(&name, &trash, &free.to_string())?;
    }
    remove_the_rest(root, sandbox, stop)
}

/// Empties the sandbox's trash, if there is any.
pub(super) fn remove_the_rest(root: &Dir, sandbox: SandboxId, stop: &CancellationToken) -> io::Result<()> {
    let name = sandbox.to_string();
    if root.kind(TRASH)?.is_none() {
        return Ok(());
    }
    let all = root.dir(TRASH)?;
    if all.kind(&name)?.is_none() {
        return Ok(());
    }
    files::empty(&all.dir(&name)?, stop)?;
    all.remove_dir(&name)
}

/// The sandboxes under the root, and those that were being removed.
pub(super) fn sandboxes(root: &Dir) -> io::Result<(Vec<SandboxId>, Vec<SandboxId>)> {
    let there = ids(root)?;
    let removed = match root.kind(TRASH)? {
        Some(FileType::Directory) => ids(&root.dir(TRASH)?)?,
        _ => Vec::new(),
    };
    Ok((there, removed))
}

fn ids(dir: &Dir) -> io::Result<Vec<SandboxId>> {
    let name_of = |name: &std::ffi::CString| {
        let name = name.to_str().ok()?;
        // Written as Holdfast writes it: other spellings of a UUID are somebody else's directories.
        name.parse::<SandboxId>().ok().filter(|id| id.to_string() == name)
    };
    Ok(dir.names()?.iter().filter_map(name_of).collect())
}

fn environment(spec: &WorkloadSpec) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = vec![("PATH".into(), DEFAULT_PATH.into())];
    env.extend(INHERITED.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))));
    // Later ones win.
    env.extend(spec.env.0.iter().map(|(name, value)| (name.into(), value.into())));
    env
}
