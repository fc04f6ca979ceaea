//! What can be said about finding out: `doctor` and `chaos`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use holdfast_wire::timing;

use crate::values;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast doctor                 this machine's way to the gateway, and every session in a line
  holdfast doctor box             one sandbox in detail, with a real exec and a file written in it
  holdfast doctor -o json | jq '.checks[] | select(.level != \"ok\")'

Each line is ok, warn or FAIL: what was checked, what was found, what to do. UDP is checked from this
machine, by QUIC's version negotiation, which needs no credentials; what matters in the end is the way from
the sandboxes, which the sessions' lines tell. How long a NAT keeps an idle mapping is not measured (the
reason is in docs/adr): the keepalive's line says instead how often the sessions' addresses have changed,
which is what a NAT that forgets too soon does.")]
pub(crate) struct DoctorArgs {
    /// The sandbox's name or id [default: the gateway and all sessions]
    pub(crate) sandbox: Option<String>,
    /// Where QUIC is, if it is not where the API is
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) quic: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Faults:
  drop-path      every UDP packet of the supervisor is lost, both ways, for the time: a black hole
  rebind         the supervisor's connection moves to a new UDP socket, as after a change of NAT mapping
  reset-session  the gateway closes the session; the supervisor dials anew
  stall          the supervisor neither reads nor writes for the time, while QUIC itself lives on

Commands in the sandbox run on through all of them. Allowed for the gateway's `admins` (its TOML file; the
client named \"admin\" if nothing is said there). Recorded as an event, and in holdfast_chaos_total.

Examples:
  holdfast chaos box drop-path --for 15s --yes
  holdfast chaos box reset-session --yes -o json

Exit codes: 0 ready again; 125 not ready within the bound, or refused; 2 without --yes.")]
pub(crate) struct ChaosArgs {
    /// The sandbox's name or id
    pub(crate) sandbox: String,
    /// What happens to its session
    pub(crate) fault: Fault,
    /// For drop-path and stall: how long, at most 60s [default: 10s]
    #[arg(long = "for", value_name = "DURATION", value_parser = fault_time)]
    pub(crate) time: Option<Duration>,
    /// Really do it: callers of this sandbox will notice
    #[arg(long)]
    pub(crate) yes: bool,
    /// How long after the fault's end the sandbox may take until it is ready
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "60s")]
    pub(crate) within: Duration,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// A black hole
    DropPath,
    /// A new UDP socket
    Rebind,
    /// A closed session
    ResetSession,
    /// A supervisor that does not answer
    Stall,
}

impl Fault {
    /// Whether it has a duration.
    pub(crate) fn lasts(self) -> bool {
        matches!(self, Self::DropPath | Self::Stall)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DropPath => "drop-path",
            Self::Rebind => "rebind",
            Self::ResetSession => "reset-session",
            Self::Stall => "stall",
        }
    }
}

fn fault_time(text: &str) -> Result<Duration, String> {
    let time = values::duration(text)?;
    if time > timing::CHAOS_MAX {
        return Err(format!("at most {}", humantime::format_duration(timing::CHAOS_MAX)));
    }
    if time < Duration::from_millis(1) {
        return Err("at least 1ms".to_owned());
    }
    Ok(time)
}
