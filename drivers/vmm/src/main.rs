//! `holdfast-vmm`: what runs one microVM, outside of the gateway.
//!
//! ```text
//!   gateway's vm driver ── launch, by pipe ──▶ holder (`hold`), lives on when the gateway ends
//!                                               ├── gvproxy        the network; its end is the machine's end
//!                                               ├── filter         what the machine may say to it (in the holder)
//!                                               └── `machine`      libkrun: the virtual machine itself
//! ```
//!
//! The holder is the machine's leader: its PID stands for the workload, its end is the workload's end, and why it
//! ended is in `machine.json`. The two below it die with it: each by its parent-death signal, and the machine also by
//! the end of the pipe through which it got its launch.
//!
//! A program of its own, because libkrun takes a whole process for a machine and never gives it back, and because the
//! gateway must not need it.

mod check;
mod confine;
#[allow(unsafe_code)]
// libkrun is a C interface, and a machine's memory is this process's: all of it is in there
mod ffi;
mod hold;
mod machine;
mod parent;
mod trial;

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

/// The usual code of a wrong command line.
const USAGE: u8 = 2;

const HELP: &str = "\
holdfast-vmm runs one microVM for Holdfast's vm driver, which starts it; people need only `check`.

  holdfast-vmm check [LIBKRUNFW]    run a guest of a few instructions; says what is missing
  holdfast-vmm hold [DIR]           hold a machine: reads its launch from stdin
  holdfast-vmm machine NET CONTROL  be a machine (started by `hold`)
  holdfast-vmm network PID USER PROGRAM [ARGUMENT...]
                                    be the network that dies with PID (started by `hold`)
  holdfast-vmm confine USER         try what a machine's processes can give up here; says what not
";

fn main() -> ExitCode {
    let arguments: Vec<String> =
        env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["hold", ..] => {
            start_log();
            hold::run()
        }
        ["machine", net, control] => {
            start_log();
            machine::run(net, control)
        }
        ["network", parent, user, program, rest @ ..] => {
            start_log();
            parent::become_network(parent, user, program, rest)
        }
        ["confine", user] => try_confinement(user),
        ["check"] => check::run(None),
        ["check", library] => check::run(Some(library.as_ref())),
        ["--help" | "-h"] => {
            let _ = io::stdout().write_all(HELP.as_bytes());
            ExitCode::SUCCESS
        }
        ["--version"] => {
            let _ = writeln!(io::stdout(), "holdfast-vmm {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            let _ = io::stderr().write_all(HELP.as_bytes());
            ExitCode::from(USAGE)
        }
    }
}

/// A line for all that holds, and a line for each step that does not.
fn try_confinement(user: &str) -> ExitCode {
    let Ok(user) = user.parse() else { return ExitCode::from(USAGE) };
    let confined = confine::try_all(user);
    let mut out = io::stdout();
    let _ = writeln!(out, "{}", confined.steps());
    for (step, error) in &confined.refused {
        let _ = writeln!(out, "{step}: {error}");
    }
    ExitCode::SUCCESS
}

fn start_log() {
    // libkrun's own words come the same way: of those, what is wrong.
    let filter = tracing_subscriber::EnvFilter::new("warn,holdfast_vmm=info");
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).init();
}
