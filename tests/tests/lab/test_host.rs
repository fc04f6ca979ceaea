//! Rung three: the lab in the test host, whose kernel has `sch_netem`. Here a smoke of it; the whole is
//! `cargo run -p holdfast-tests --bin fault-table -- --test-host`.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::Context;
use tokio::process::Command;

use super::say;

/// Booting and a lab of its own take half a minute under emulation; a busy machine gets its time.
const PATIENCE: Duration = Duration::from_secs(400);

#[tokio::test]
async fn a_real_delay_with_reordering_costs_attached_calls_nothing() -> anyhow::Result<()> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../netem-scripts");
    let tools = Command::new(scripts.join("install-deps"))
        .args(["--test-host", "--check"])
        .stdin(Stdio::null())
        .output()
        .await?;
    if !tools.status.success() {
        let missing = String::from_utf8_lossy(&tools.stderr);
        say(&format!("skipped: the test host's tools are not there: {missing}"));
        return Ok(());
    }
    let out = tempfile::tempdir()?;
    let run = Command::new(env!("CARGO_BIN_EXE_fault-table"))
        .args(["--test-host", "--skip-baseline", "--only", "delay 200 ms", "--out"])
        .arg(out.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, run).await.context("the test host does not end")??;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{said}");
    let table: serde_json::Value = serde_json::from_slice(&std::fs::read(out.path().join("faults.json"))?)?;
    let rows = table["test_host"]["rows"].as_array().context("rows of the test host")?;
    anyhow::ensure!(rows.len() == 1 && rows[0]["pass"] == true, "{table}");
    say(&rows[0].to_string());
    Ok(())
}
