//! What can be said about files: `cp`.

use std::{ffi::OsString, time::Duration};

use clap::{Args, ValueHint};

use crate::values;

/// As `docker cp`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
One of the two is SANDBOX:PATH. A relative PATH there begins at the workspace. A local path with a colon is written
./like:this. `-` is a tar archive: on stdin for SRC, on stdout for DST.

  a file       to a new name, over a file, or into a directory; DST/ must exist
  a directory  into an existing directory; to a new name if there is none; with SRC/. its content alone

Files appear under their names whole or not at all. A transfer goes on by itself after a lost connection. Exit code 0
means that the receiver has it all on disk, counted and with the same digest; 1 that some entries were left out, which
are named on stderr; FIFOs, sockets and devices are always left out.

Examples:
  holdfast cp src box:/srv
  holdfast cp box:results/. ./results
  tar c -C /etc . | holdfast cp - box:/tmp")]
pub(crate) struct CpArgs {
    /// A local path, SANDBOX:PATH, or -
    #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
    pub(crate) source: OsString,
    /// SANDBOX:PATH, a local path, or -
    #[arg(value_name = "DST", value_hint = ValueHint::AnyPath)]
    pub(crate) destination: OsString,
    /// Keep owners, groups, setuid and setgid bits
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Copy what SRC names, where it is a symbolic link
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// As whom to read and write in the sandbox: a name, a uid, or uid:gid [default: the supervisor's user, root]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// How long to wait for the sandbox [default: 15s]
    #[arg(long, env = "HOLDFAST_START_DEADLINE", value_name = "DURATION", value_parser = values::duration)]
    pub(crate) start_deadline: Option<Duration>,
    /// Give up so long after a lost connection; never longer than the sandbox keeps a transfer [default: 10m]
    #[arg(long, env = "HOLDFAST_REATTACH_FOR", value_name = "DURATION", value_parser = values::duration)]
    pub(crate) reattach_for: Option<Duration>,
}
