//! Runs every fault of the lab's list and writes what was seen: `docs/faults.md` and `docs/faults.json`.
//!
//! ```text
//! cargo build -p holdfast-tests --bins && cargo run -p holdfast-tests --bin fault-table
//! ```

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::Parser;
use futures::StreamExt;
use holdfast_tests::lab::{self, calls::Finding, faults};
use serde::Serialize;

/// Runs every fault of the lab's list and writes a table of what happened.
#[derive(Debug, Parser)]
struct Args {
    /// Where `faults.md` and `faults.json` go.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"))]
    out: PathBuf,
    /// How many labs at a time: more than one makes them wait for each other's CPU.
    #[arg(long, default_value_t = 1)]
    labs: usize,
    /// Only faults with this in their name.
    #[arg(default_value = "")]
    filter: String,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Line {
    fault: &'static str,
    pass: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<Finding>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(obstacle) = lab::obstacle() {
        anyhow::bail!("no lab can be made here: {obstacle}");
    }
    let own = std::env::current_exe()?;
    let program = own.parent().context("a program is in a directory")?.join("holdfast-under-test");
    ensure!(
        program.exists(),
        "{} is not there: build it, cargo build -p holdfast-tests --bins",
        program.display()
    );

    let chosen: Vec<_> =
        faults::all().into_iter().filter(|fault| fault.name.contains(&args.filter)).collect();
    ensure!(!chosen.is_empty(), "no fault has {:?} in its name", args.filter);
    let lines: Vec<Line> = futures::stream::iter(chosen)
        .map(|fault| run(fault, &program))
        .buffered(args.labs.max(1))
        .collect()
        .await;

    std::fs::write(args.out.join("faults.json"), serde_json::to_string_pretty(&lines)? + "\n")?;
    std::fs::write(args.out.join("faults.md"), table(&lines)?)?;
    let failed = lines.iter().filter(|line| !line.pass).count();
    ensure!(failed == 0, "{failed} of {} faults broke a promise", lines.len());
    Ok(())
}

async fn run(fault: faults::Fault, program: &Path) -> Line {
    let result = fault.run(program).await;
    let error = result.as_ref().err().map(|error| error.root_cause().to_string());
    if let Err(error) = &result {
        say(&format!("FAILED {}: {error:#}", fault.name));
    } else {
        say(&format!("passed {}", fault.name));
    }
    Line { fault: fault.name, pass: error.is_none(), error, finding: result.ok() }
}

fn table(lines: &[Line]) -> anyhow::Result<String> {
    let mut text = String::from(
        "# What faults do\n\n\
         Written by `cargo run -p holdfast-tests --bin fault-table` from one run of the lab (`netem-scripts/`): the\n\
         gateway, the supervisor and the command as they are, debug build, in network namespaces behind a NAT. Callers\n\
         are attached before each fault; every byte that they read is compared with what the command wrote.\n\n\
         - **true / named**: calls that ended with the command's true result / with `SESSION_LOST`, which only a caller\n  \
           that said not to attach again gets\n\
         - **told**: from the fault to that error\n\
         - **latest byte**: the longest that any byte of output was under way; in a transfer, the longest pause between\n  \
           two reads; where the gateway's host dies, until the sandbox was ready again\n\
         - **path**: the connection was `kept` with its address, `moved` to new ones, or `redialled`\n\
         - **bound**: what the check allowed for being told, twice the 11 s of a quiet machine; an outcome is given 30 s\n  \
           after its command has ended and the network is whole; a transfer, or a sandbox to be ready, has the bound in all\n\n\
         | fault | lasted | calls | true / named | told | latest byte | lost / extra bytes | path | bound | |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for line in lines {
        let Some(found) = &line.finding else {
            let error = line.error.as_deref().unwrap_or_default().replace('|', "\\|").replace('\n', " ");
            writeln!(text, "| {} | | | | | | | | | **fail**: {error} |", line.fault)?;
            continue;
        };
        let path = match (found.redials, found.migrations) {
            (0, 0) => "kept".to_owned(),
            (0, moved) => format!("moved {moved}"),
            (redials, _) => format!("redialled {redials}"),
        };
        writeln!(
            text,
            "| {} | {} | {} | {} / {} | {} | {} | {} / {} | {path} | {} | pass |",
            line.fault,
            seconds(found.fault_ms),
            found.calls,
            found.true_results,
            found.named_errors,
            found.told_after_ms.map(seconds).unwrap_or_default(),
            seconds(found.latest_byte_ms),
            found.bytes_lost,
            found.bytes_extra,
            seconds(found.bound_ms),
        )?;
    }
    Ok(text)
}

fn seconds(milliseconds: u128) -> String {
    format!("{}.{:02} s", milliseconds / 1000, milliseconds % 1000 / 10)
}

/// On stderr: how far it is.
fn say(line: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
}
