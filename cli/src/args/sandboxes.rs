//! What can be said about sandboxes: `create`, `list`, `get`, `wait`, `delete`, `stop`, `events` and the like.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, ValueHint};
use holdfast_wire::api::Mount;

use crate::values;

/// What a sandbox is made of: shared by `run` and `create`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Making {
    /// The image, for drivers that have images
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// The root file system, for the vm driver: a directory or an archive, by its absolute path at the gateway
    #[arg(long, value_name = "DIR|ARCHIVE")]
    pub(crate) rootfs: Option<String>,
    /// What it may reach beside its gateway, for the vm driver: none or internet [default: none]
    #[arg(long, value_name = "POLICY")]
    pub(crate) egress: Option<String>,
    /// Where its files are, for the vm driver: disk, or ephemeral: in its memory, gone with a stop [default: disk]
    #[arg(long, value_name = "disk|ephemeral")]
    pub(crate) workspace: Option<String>,
    /// Space for the files that it writes, for the vm driver [default: 8Gi; ephemeral: half of its memory]
    #[arg(long, value_parser = values::size, value_name = "SIZE")]
    pub(crate) disk: Option<u64>,
    /// A label; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = values::label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Cores, such as 2 or 0.5 [default: no limit]
    #[arg(long, value_parser = values::cpus, value_name = "CORES")]
    pub(crate) cpus: Option<u64>,
    /// Memory, such as 512Mi or 4Gi [default: no limit]
    #[arg(short, long, value_parser = values::size, value_name = "SIZE")]
    pub(crate) memory: Option<u64>,
    /// Processes and threads [default: no limit]
    #[arg(long, value_name = "COUNT")]
    pub(crate) pids: Option<u64>,
    /// Delete it so long after its creation, whatever it does; using it changes nothing [default: never]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) ttl: Option<Duration>,
    /// Stop it after so long without activity: no command runs, nobody is attached. Files stay [default: never]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) idle_stop: Option<Duration>,
    /// A path of the gateway's machine, or a volume, if its operator allows it; may be repeated
    #[arg(long = "mount", value_name = "SOURCE:TARGET[:ro]", value_parser = values::mount)]
    pub(crate) mounts: Vec<Mount>,
    /// The network, for drivers that have several [default: the driver's]
    #[arg(long)]
    pub(crate) network: Option<String>,
    /// The image's files cannot be changed; the workspace can
    #[arg(long)]
    pub(crate) read_only: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast create box --wait
  box=$(holdfast create --label job=42 --memory 4Gi)
  holdfast create box --image debian:13 --cpus 2 --memory 4Gi --pids 1000 --user ada --wait
  holdfast create job --ttl 2h --idle-stop 15m      gone in two hours; stopped when nobody uses it
  holdfast create db --image postgres:17 --main -e POSTGRES_PASSWORD --wait; holdfast attach db main
  holdfast create job --main -- ./train.sh          whose end leaves the sandbox as it is: wait job --exec main")]
pub(crate) struct CreateArgs {
    /// The sandbox's name [default: one is made up]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) making: Making,
    /// A variable of every command in it; NAME alone takes this program's value
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// The variables of a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) env_file: Vec<PathBuf>,
    /// Who runs commands that name nobody
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Run the image's own command (ENTRYPOINT, CMD) in it, once it is ready and after each start: exec `main`
    #[arg(long)]
    pub(crate) main: bool,
    /// Return when it is ready
    #[arg(long)]
    pub(crate) wait: bool,
    /// With --wait: at most so long
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "5m", requires = "wait")]
    pub(crate) timeout: Duration,
    /// With --main: arguments in the place of the image's CMD; without an image, the whole command
    #[arg(last = true, requires = "main", value_name = "ARG", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) main_args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only sandboxes with this label; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = values::label)]
    pub(crate) labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct NamesArgs {
    /// Names or ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub(crate) sandboxes: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast wait box
  holdfast wait box --for phase=Stopped --timeout 1m
  holdfast wait box --for condition=ExecHealthy
  holdfast wait box --for condition=FilesystemHealthy=False
  holdfast wait box --exec 0199b2c0       and end with the exec's own exit code")]
pub(crate) struct WaitArgs {
    /// The sandbox's name or id
    pub(crate) sandbox: String,
    /// What to wait for: ready, deleted, phase=NAME, condition=NAME, condition=NAME=VALUE
    #[arg(long = "for", value_name = "STATE", default_value = "ready", value_parser = until)]
    pub(crate) until: String,
    /// Wait for this exec's end instead: an id, the beginning of one, or `main`
    #[arg(long, value_name = "EXEC", conflicts_with = "until")]
    pub(crate) exec: Option<String>,
    /// At most so long; then exit code 124 [default: 5m; with --exec: for ever]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) names: NamesArgs,
    /// Between SIGTERM and SIGKILL [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) grace: Option<Duration>,
    /// Return when deletion has begun, not when it is done
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// It is no error if there is no such sandbox
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) names: NamesArgs,
    /// Between SIGTERM and SIGKILL [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) grace: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast update job --ttl 1h             it is deleted in an hour from now
  holdfast update job --ttl 0              it lives on
  holdfast update job --idle-stop 30m")]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    pub(crate) names: NamesArgs,
    /// Delete them so long from now; 0: never
    #[arg(long, value_name = "DURATION", value_parser = values::duration, required_unless_present = "idle_stop")]
    pub(crate) ttl: Option<Duration>,
    /// Stop them after so long without activity; 0: never
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) idle_stop: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// The sandbox's name or id [default: all]
    pub(crate) sandbox: Option<String>,
    /// Go on with what happens
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last so many of what happened
    #[arg(long, value_name = "COUNT")]
    pub(crate) tail: Option<u32>,
}

const PHASES: &[&str] = &[
    "Pending",
    "Provisioning",
    "Ready",
    "Reconnecting",
    "Pausing",
    "Paused",
    "Resuming",
    "Stopping",
    "Stopped",
    "Degraded",
    "Failed",
    "Deleting",
];
const CONDITIONS: &[&str] = &[
    "WorkloadRunning",
    "SupervisorConnected",
    "ExecHealthy",
    "FilesystemHealthy",
    "Booted",
    "MemoryHealthy",
    "MainCommand",
];

/// What a condition can be.
const VALUES: &[&str] = &["True", "False", "Unknown"];

/// `ready`, `deleted`, `phase=X`, `condition=Y`, `condition=Y=True`, in any case.
fn until(text: &str) -> Result<String, String> {
    let known = |what: &str, name: &str, names: &[&str]| {
        names
            .iter()
            .find(|known| known.eq_ignore_ascii_case(name))
            .map(|known| format!("{what}={known}"))
            .ok_or_else(|| format!("no {what} {name:?}; there are {}", names.join(", ")))
    };
    match text.split_once('=') {
        Some(("phase", name)) => known("phase", name, PHASES),
        Some(("condition", name)) => match name.split_once('=') {
            None => known("condition", name, CONDITIONS),
            Some((name, value)) => {
                let condition = known("condition", name, CONDITIONS)?;
                let value = VALUES.iter().find(|known| known.eq_ignore_ascii_case(value));
                value
                    .map(|value| format!("{condition}={value}"))
                    .ok_or_else(|| format!("a condition is {}", VALUES.join(", ")))
            }
        },
        None if text.eq_ignore_ascii_case("ready") => Ok("ready".to_owned()),
        None if text.eq_ignore_ascii_case("deleted") => Ok("deleted".to_owned()),
        _ => Err("wait for ready, deleted, phase=NAME, condition=NAME or condition=NAME=VALUE".to_owned()),
    }
}
