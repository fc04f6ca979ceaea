//! What can be said about execs: `run`, `exec`, `attach`, `execs`, `kill`, `logs`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, ValueHint};
use holdfast_wire::ids::ExecId;

use super::Making;
use crate::{terminal::detach::DetachKeys, values};

/// How a command is run: shared by `run` and `exec`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Running {
    /// Pass stdin on to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Run on a terminal; stdout and stderr are then one
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable; NAME alone takes this program's value. Secrets are better in --env-file
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// Set the variables of a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) env_file: Vec<PathBuf>,
    /// Where to run [default: the workspace]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<OsString>,
    /// As whom to run: a name, a uid, or uid:gid
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// End the command after so long, with exit code 124 [default: never]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) kill_grace: Option<Duration>,
    /// How long the command may take to start, a wait for the sandbox included; at most 10m [default: 15s; run: 60s]
    #[arg(long, env = "HOLDFAST_START_DEADLINE", value_name = "DURATION", value_parser = values::duration)]
    pub(crate) start_deadline: Option<Duration>,
    /// How long output and outcome are kept after the end [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) retain_for: Option<Duration>,
    /// When output is not read: `block` the command, or `drop-oldest` [default: block; with -d: drop-oldest]
    #[arg(long, value_name = "POLICY")]
    pub(crate) when_full: Option<WhenFull>,
    /// Choose the exec's id: the same id with the same command is the same exec, never a second run
    #[arg(long, value_name = "UUID")]
    pub(crate) exec_id: Option<ExecId>,
    /// Run the line by /bin/sh -c, instead of a command after --
    #[arg(long, value_name = "LINE", conflicts_with = "command")]
    pub(crate) shell: Option<OsString>,
    #[command(flatten)]
    pub(crate) following: Following,
    /// The command and its arguments, as they are: no shell takes them apart
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "shell", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// How an attached exec is followed: shared by `run`, `exec` and `attach`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Following {
    /// When this program goes away, end the command instead of letting it run on
    #[arg(long)]
    pub(crate) kill_on_disconnect: bool,
    /// After a lost connection, try so long to attach again [default: until the outcome is known]
    #[arg(long, env = "HOLDFAST_REATTACH_FOR", value_name = "DURATION", value_parser = values::duration)]
    pub(crate) reattach_for: Option<Duration>,
    /// When the sandbox is paused: `wait` for its resume, or `fail` at once; the command stands still either way
    #[arg(long, value_name = "ACTION", default_value = "wait")]
    pub(crate) on_pause: OnPause,
    /// With -t, the keys that leave the command running; `none` for none [default: ctrl-p,ctrl-q]
    #[arg(long, env = "HOLDFAST_DETACH_KEYS", value_name = "KEYS", value_parser = DetachKeys::parse)]
    pub(crate) detach_keys: Option<DetachKeys>,
    /// Write how it ended, as JSON, to a file: unambiguous, whatever the exit code
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) result_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OnPause {
    Wait,
    Fail,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WhenFull {
    Block,
    DropOldest,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast run -- python3 -c 'print(6 * 7)'
  echo hello | holdfast run -i -- tr a-z A-Z
  holdfast run -it -- bash
  holdfast run --memory 512Mi --timeout 10m -- make test
  holdfast run --image debian:13 --sandbox-user nobody -- touch mine

Without a client profile (--profile, HOLDFAST_PROFILE, the configuration's, or the one that a `holdfast gateway` of this
user has written), a gateway runs inside this process for as long as the command does, with the local driver: a plain
process on this machine, which is not isolated from it. --embedded does so even if there is a profile.
The sandbox is removed on every way out that this process can take, Ctrl-C included, and that reaches the gateway;
--keep leaves it, and so does leaving by the detach keys.")]
pub(crate) struct RunArgs {
    /// The sandbox's name [default: one is made up]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Use a gateway inside this process, even if another one is configured
    #[arg(long, conflicts_with = "keep")]
    pub(crate) embedded: bool,
    /// Leave the sandbox there afterwards (needs a gateway that stays)
    #[arg(long)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) making: Making,
    /// Whose the workspace is, and who runs commands that name nobody: create's --user. The command's own is --user
    #[arg(long, value_name = "USER")]
    pub(crate) sandbox_user: Option<String>,
    /// A variable of every command in the sandbox: create's --env. The command's own are --env
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) sandbox_env: Vec<OsString>,
    /// The same, of a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) sandbox_env_file: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) running: Running,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast exec box -- ls -l /
  tar c src | holdfast exec -i box -- tar x -C /workspace
  holdfast exec -it box -- sh
  id=$(holdfast exec -d box -- ./train.sh); holdfast attach box $id
  holdfast exec --timeout 10m --result-file out.json box -- make test

The command outlives a lost connection: holdfast attaches again by itself, says so on stderr, and
every byte of output comes once. Ctrl-C is sent to the command; a second one within 2 s ends it.
When what reads the output leaves (`| head -1`), the command runs on, unless --kill-on-disconnect is given.")]
pub(crate) struct ExecArgs {
    /// Start the command, print its exec id, and return
    #[arg(short, long, conflicts_with_all = ["interactive", "result_file", "kill_on_disconnect"])]
    pub(crate) detach: bool,
    /// The sandbox's name or id
    pub(crate) sandbox: String,
    #[command(flatten)]
    pub(crate) running: Running,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast attach box 0199b2c0-5e0e-7b3a-9a50-2f8a4c1d9e77
  holdfast attach -i box 0199b2c0           a beginning of the id will do, where only one exec has it
  holdfast attach --no-replay box 0199b2c0  only what is written from now on
  holdfast attach box main                  the main command, of a sandbox that was made with --main
  holdfast attach --sig-proxy=false box main   only watch: Ctrl-C leaves, and the command does not hear of it

Ctrl-C is sent to the command, once it runs; a second one within 2 s ends it. With -i on a terminal, ctrl-p ctrl-q
leaves it running.")]
pub(crate) struct AttachArgs {
    /// The sandbox's name or id
    pub(crate) sandbox: String,
    /// The exec's id, or the beginning of it; `main` for the main command
    pub(crate) exec: String,
    /// Write its stdin from here on (and take its terminal, if it has one)
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Only output that comes from now on
    #[arg(long)]
    pub(crate) no_replay: bool,
    /// Send Ctrl-C and Ctrl-\ to the command; `false`: they leave, and the command runs on
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) sig_proxy: bool,
    #[command(flatten)]
    pub(crate) following: Following,
}

#[derive(Debug, Args)]
pub(crate) struct ExecsArgs {
    /// The sandbox's name or id
    pub(crate) sandbox: String,
    /// Only those that have not ended
    #[arg(long)]
    pub(crate) running: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast kill box 0199b2c0            SIGTERM, and SIGKILL after the exec's kill grace
  holdfast kill -s USR1 box 0199b2c0    that signal alone, to its process group")]
pub(crate) struct KillArgs {
    /// Send only this signal, and do not end the exec otherwise
    #[arg(short, long, value_parser = values::signal)]
    pub(crate) signal: Option<i32>,
    /// The sandbox's name or id
    pub(crate) sandbox: String,
    /// The execs' ids, or the beginnings of them; `main` for the main command
    #[arg(required = true)]
    pub(crate) execs: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast logs box             the workload's console: why it does not come up
  holdfast logs box 0199b2c0    stdout and stderr of an exec, as far as they are kept")]
pub(crate) struct LogsArgs {
    /// The sandbox's name or id
    pub(crate) sandbox: String,
    /// An exec's id, or the beginning of it; `main` for the main command [default: the sandbox's console]
    pub(crate) exec: Option<String>,
    /// Only the last so many bytes [default: all that is kept of an exec; 64Ki of a console]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) tail: Option<u64>,
}
