//! The command line: what can be said, and the help that teaches it. Parsing only; nothing here acts.

mod checks;
mod execs;
mod files;
mod sandboxes;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

pub(crate) use self::{
    checks::{ChaosArgs, DoctorArgs, Fault},
    execs::{
        AttachArgs, ExecArgs, ExecsArgs, Following, KillArgs, LogsArgs, OnPause, RunArgs, Running, WhenFull,
    },
    files::CpArgs,
    sandboxes::{
        CreateArgs, DeleteArgs, EventsArgs, ListArgs, Making, NamesArgs, StopArgs, UpdateArgs, WaitArgs,
    },
};

const EXAMPLES: &str = "\
Examples:
  holdfast run -- uname -a                 a sandbox for one command, removed afterwards
  holdfast gateway                         a gateway on this machine; writes its client profile
  holdfast create box --wait               a sandbox that stays
  holdfast exec box -- make test           its output and exit code, whatever the network does
  holdfast exec -it box -- sh              a terminal; ctrl-p ctrl-q leaves it running
  holdfast exec -d box -- ./train.sh       prints an exec id and returns
  holdfast cp src box:/srv                 files in, and out with the two exchanged
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
    /// Copy files between this machine and a sandbox
    Cp(CpArgs),
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
    /// Change how long sandboxes live, and how long they may be idle
    Update(UpdateArgs),
    /// Show what happened to sandboxes
    Events(EventsArgs),
    /// Show the gateway and its sessions
    Status,
    /// Check the profile, the way to the gateway and the sessions; exit code 0 if nothing fails, else 1
    Doctor(DoctorArgs),
    /// Commit a fault on a sandbox's session, and tell when it was ready again; for admins
    Chaos(ChaosArgs),
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
    fn a_condition_can_be_waited_for_with_its_value() {
        let Ok(Command::Wait(wait)) = parse("holdfast wait box --for condition=exechealthy=false") else {
            panic!()
        };
        assert_eq!(wait.until, "condition=ExecHealthy=False");
        assert!(error("holdfast wait box --for condition=ExecHealthy=maybe").contains("Unknown"));
    }

    #[test]
    fn a_lifetime_is_agreed_at_creation_or_changed_by_name() {
        let Ok(Command::Create(create)) = parse("holdfast create box --ttl 2h --idle-stop 15m") else {
            panic!()
        };
        let minutes = |n: u64| Some(std::time::Duration::from_secs(n * 60));
        assert_eq!((create.making.ttl, create.making.idle_stop), (minutes(120), minutes(15)));
        assert!(parse("holdfast update box --ttl 0").is_ok());
        assert!(error("holdfast update box").contains("--ttl"), "nothing to change");
    }

    #[test]
    fn a_sandbox_of_run_has_a_user_and_variables_beside_the_commands() {
        let line = "holdfast run --sandbox-user ada --sandbox-env A=1 --idle-stop 15m -u root -e B=2 -- id";
        let Ok(Command::Run(run)) = parse(line) else { panic!() };
        assert_eq!((run.sandbox_user.as_deref(), run.running.user.as_deref()), (Some("ada"), Some("root")));
        assert_eq!((&run.sandbox_env[..], &run.running.env[..]), (&["A=1".into()][..], &["B=2".into()][..]));
        assert!(run.making.idle_stop.is_some());
    }

    #[test]
    fn a_main_command_is_asked_for_and_its_arguments_only_with_it() {
        let Ok(Command::Create(create)) = parse("holdfast create box --main -- serve --all") else {
            panic!()
        };
        assert!(create.main);
        assert_eq!(create.main_args, ["serve", "--all"]);
        assert!(error("holdfast create box -- serve").contains("--main"));
    }

    #[test]
    fn an_unknown_word_gets_a_suggestion() {
        assert!(error("holdfast atach box x").contains("attach"));
        assert!(error("holdfast exec --timout 5s box -- true").contains("--timeout"));
    }

    #[test]
    fn chaos_needs_a_known_fault_and_a_bounded_time() {
        let Ok(Command::Chaos(chaos)) = parse("holdfast chaos box drop-path --for 3s --yes") else {
            panic!()
        };
        assert_eq!((chaos.fault, chaos.time), (Fault::DropPath, Some(std::time::Duration::from_secs(3))));
        assert!(chaos.yes);
        assert!(error("holdfast chaos box meteor").contains("reset-session"));
        assert!(error("holdfast chaos box stall --for 61s").contains("at most 1m"));
        assert!(error("holdfast chaos box stall --for 0s").contains("at least"));
    }

    #[test]
    fn output_formats_are_global() {
        let cli = Cli::try_parse_from(["holdfast", "ls", "-o", "json"]).unwrap();
        assert_eq!(cli.globals.output, Some(Format::Json));
        assert!(matches!(cli.command, Command::List(_)));
    }
}
