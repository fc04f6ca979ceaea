//! The command line: what can be said, and the help that teaches it. Parsing only; nothing here acts.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use holdfast_wire::ids::ExecId;

use crate::{terminal::detach::DetachKeys, values};

const EXAMPLES: &str = "\
Examples:
  holdfast run -- uname -a                 a sandbox for one command, removed afterwards
  holdfast gateway                         a gateway on this machine; writes its client profile
  holdfast create box --wait               a sandbox that stays
  holdfast exec box -- make test           its output and exit code, whatever the network does
  holdfast exec -it box -- sh              a terminal; ctrl-p ctrl-q leaves it running
  holdfast exec -d box -- ./train.sh       prints an exec id and returns
  holdfast attach box ID                   all of its output so far, then live, then its exit code

Exit codes: the command's own; 124 timeout; 125 Holdfast's own failure; 126 cannot be invoked;
127 not found; 128+n ended by signal n; 2 wrong usage.

Settings: flags, then HOLDFAST_* variables, then $XDG_CONFIG_HOME/holdfast/config.toml
(keys: profile, output, detach_keys, reattach_for, start_deadline), then defaults.";

/// Sandboxes whose commands always end with their true result or a named error.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// The gateway's client profile [default: $XDG_CONFIG_HOME/holdfast/client.toml]
    #[arg(long, global = true, env = "HOLDFAST_PROFILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) profile: Option<PathBuf>,
    /// How data is written to stdout; with json and jsonl, errors are JSON on stderr [default: table]
    #[arg(short, long, global = true, env = "HOLDFAST_OUTPUT", value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    /// No notices and no progress on stderr; errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Log what the client does to stderr (-vv: more); RUST_LOG refines it
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// No colours; NO_COLOR does the same
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

/// How data is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// Columns, for people
    #[default]
    Table,
    /// More columns
    Wide,
    /// One document; stable, snake_case, with schema_version
    Json,
    /// One object a line
    Jsonl,
    /// One document
    Yaml,
    /// Names alone, one a line
    Name,
}

impl Format {
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a sandbox, run a command in it, remove it
    Run(Box<RunArgs>),
    /// Run a command in a sandbox
    Exec(Box<ExecArgs>),
    /// Attach to a running or ended exec: its output from the start, then live, then its exit code
    Attach(AttachArgs),
    /// List a sandbox's execs, ended ones that are still kept included
    Execs(ExecsArgs),
    /// End an exec, or send it a signal
    Kill(KillArgs),
    /// Show a sandbox's console, or what an exec has written
    Logs(LogsArgs),
    /// Make a sandbox
    Create(CreateArgs),
    /// List sandboxes
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show sandboxes
    Get(NamesArgs),
    /// Wait until a sandbox is in a state, or an exec has ended
    Wait(WaitArgs),
    /// Delete sandboxes: legal in every phase, ends their execs
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    /// Stop sandboxes: their workloads end, their files stay
    Stop(StopArgs),
    /// Start stopped or failed sandboxes
    Start(NamesArgs),
    /// Freeze sandboxes
    Pause(NamesArgs),
    /// Thaw paused sandboxes
    Resume(NamesArgs),
    /// Show what happened to sandboxes
    Events(EventsArgs),
    /// Show the gateway and its sessions
    Status,
    /// Run a gateway
    #[cfg(feature = "embedded")]
    Gateway(crate::embedded::GatewayArgs),
    /// Run a sandbox's supervisor; drivers start it
    #[cfg(feature = "embedded")]
    #[command(hide = true)]
    Supervisor(crate::embedded::SupervisorArgs),
    /// Write a completion script for a shell
    #[command(
        after_help = "Example:\n  holdfast completions bash > ~/.local/share/bash-completion/completions/holdfast"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Show the version
    Version,
}

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
    /// How long the command may take to start, a wait for the sandbox included [default: 15s; run: 60s]
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
    /// With -t, the keys that leave the command running; `none` for none [default: ctrl-p,ctrl-q]
    #[arg(long, env = "HOLDFAST_DETACH_KEYS", value_name = "KEYS", value_parser = DetachKeys::parse)]
    pub(crate) detach_keys: Option<DetachKeys>,
    /// Write how it ended, as JSON, to a file: unambiguous, whatever the exit code
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) result_file: Option<PathBuf>,
}

/// What a sandbox is made of: shared by `run` and `create`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Making {
    /// The image, for drivers that have images
    #[arg(long)]
    pub(crate) image: Option<String>,
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
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast run -- python3 -c 'print(6 * 7)'
  echo hello | holdfast run -i -- tr a-z A-Z
  holdfast run -it -- bash
  holdfast run --memory 512Mi --timeout 10m -- make test

Without a client profile, a gateway runs inside this process for as long as the command does, with
the local driver: a plain process on this machine, which is not isolated from it.
The sandbox is removed on every way out, Ctrl-C included; --keep leaves it.")]
pub(crate) struct RunArgs {
    /// The sandbox's name [default: one is made up]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Use a gateway inside this process, even if another one is configured
    #[arg(long, conflicts_with_all = ["keep", "profile"])]
    pub(crate) embedded: bool,
    /// Leave the sandbox there afterwards (needs a gateway that stays)
    #[arg(long)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) making: Making,
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
every byte of output comes once. Ctrl-C is sent to the command; a second one within 2 s ends it.")]
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
  holdfast attach --no-replay box 0199b2c0  only what is written from now on")]
pub(crate) struct AttachArgs {
    /// The sandbox's name or id
    pub(crate) sandbox: String,
    /// The exec's id, or the beginning of it
    pub(crate) exec: String,
    /// Write its stdin from here on (and take its terminal, if it has one)
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Only output that comes from now on
    #[arg(long)]
    pub(crate) no_replay: bool,
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
    /// The execs' ids, or the beginnings of them
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
    /// An exec's id, or the beginning of it [default: the sandbox's console]
    pub(crate) exec: Option<String>,
    /// Only the last so many bytes [default: all that is kept of an exec; 64Ki of a console]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) tail: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast create box --wait
  box=$(holdfast create --label job=42 --memory 4Gi)")]
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
    /// Return when it is ready
    #[arg(long)]
    pub(crate) wait: bool,
    /// With --wait: at most so long
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "5m", requires = "wait")]
    pub(crate) timeout: Duration,
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
  holdfast wait box --exec 0199b2c0       and end with the exec's own exit code")]
pub(crate) struct WaitArgs {
    /// The sandbox's name or id
    pub(crate) sandbox: String,
    /// What to wait for: ready, deleted, phase=NAME, condition=NAME
    #[arg(long = "for", value_name = "STATE", default_value = "ready", value_parser = until)]
    pub(crate) until: String,
    /// Wait for this exec's end instead
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

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WhenFull {
    Block,
    DropOldest,
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
const CONDITIONS: &[&str] = &["WorkloadRunning", "SupervisorConnected", "ExecHealthy", "FilesystemHealthy"];

/// `ready`, `deleted`, `phase=X`, `condition=Y`, in any case.
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
        Some(("condition", name)) => known("condition", name, CONDITIONS),
        None if text.eq_ignore_ascii_case("ready") => Ok("ready".to_owned()),
        None if text.eq_ignore_ascii_case("deleted") => Ok("deleted".to_owned()),
        _ => Err("wait for ready, deleted, phase=NAME or condition=NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    fn error(line: &str) -> String {
        parse(line).unwrap_err().to_string()
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exec_takes_dockers_letters() {
        let line = "holdfast exec -it -e A=1 -e B -w /tmp -u 1000:1000 box -- ls -l --color";
        let Ok(Command::Exec(exec)) = parse(line) else { panic!() };
        let running = &exec.running;
        assert!(running.interactive && running.tty && !exec.detach);
        assert_eq!(exec.sandbox, "box");
        assert_eq!(running.command, ["ls", "-l", "--color"]);
        assert_eq!(running.env, ["A=1", "B"]);
        assert_eq!(
            (running.workdir.as_deref(), running.user.as_deref()),
            (Some("/tmp".as_ref()), Some("1000:1000"))
        );
    }

    #[test]
    fn the_command_comes_after_two_dashes() {
        assert!(error("holdfast exec box ls").contains("--"));
        assert!(error("holdfast exec box").contains("COMMAND"));
        assert!(parse("holdfast exec --shell ls box").is_ok());
        assert!(parse("holdfast exec --shell ls box -- ls").is_err());
        assert_eq!(parse("holdfast exec box").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(parse("holdfast exec -di box -- cat").is_err());
        assert!(parse("holdfast exec -d --kill-on-disconnect box -- cat").is_err());
        assert!(parse("holdfast create box --timeout 1m").is_err(), "a timeout without a wait");
        assert!(parse("holdfast exec --exec-id nonsense box -- true").is_err());
    }

    #[test]
    fn waiting_is_for_states_that_exist() {
        let Ok(Command::Wait(wait)) = parse("holdfast wait box --for phase=stopped") else { panic!() };
        assert_eq!(wait.until, "phase=Stopped");
        assert!(error("holdfast wait box --for phase=Bored").contains("Provisioning"));
        assert!(error("holdfast wait box --for happy").contains("condition=NAME"));
    }

    #[test]
    fn an_unknown_word_gets_a_suggestion() {
        assert!(error("holdfast atach box x").contains("attach"));
        assert!(error("holdfast exec --timout 5s box -- true").contains("--timeout"));
    }

    #[test]
    fn output_formats_are_global() {
        let cli = Cli::try_parse_from(["holdfast", "ls", "-o", "json"]).unwrap();
        assert_eq!(cli.globals.output, Some(Format::Json));
        assert!(matches!(cli.command, Command::List(_)));
    }
}
