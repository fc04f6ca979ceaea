//! Rung three: this program again, inside of the test host, where the kernel has `sch_netem`.

use std::{path::Path, process::Stdio};

use anyhow::{Context, ensure};
use tokio::process::Command;

use super::{Args, Table, Tables};

/// For all of it, under emulation.
const TIMEOUT_S: &str = "3000";

pub(super) async fn run(args: &Args) -> anyhow::Result<Table> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../netem-scripts");
    let results = tempfile::tempdir()?;
    let mut command = Command::new(scripts.join("test-host"));
    command
        .args(["run", "--modules", "net", "--memory", "2048", "--timeout", TIMEOUT_S, "--mount"])
        .arg(results.path())
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(["--inside", "--labs", "1", "--out"])
        .arg(results.path());
    for only in &args.only {
        command.args(["--only", only]);
    }
    if args.skip_baseline {
        command.arg("--skip-baseline");
    }
    // What fails inside is in the table as well; without a table there is nothing to say but this.
    let status =
        command.stdin(Stdio::null()).kill_on_drop(true).status().await.context("starting test-host")?;
    let file = results.path().join("faults.json");
    ensure!(file.exists(), "the test host ended with {status} and left no results");
    let tables: Tables = serde_json::from_slice(&std::fs::read(file)?)?;
    tables.test_host.context("the test host left no results")
}
