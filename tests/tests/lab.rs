//! The lab: the product in a network of namespaces, behind a NAT, with a network that fails on command.
//!
//! Each test has a lab of its own. Needs root and the tools of `netem-scripts`; elsewhere the tests say that they
//! are skipped. What each fault does is in `holdfast_tests::lab`, and in docs/faults.md what became of it.

#![allow(missing_debug_implementations)] // a test binary has no callers

#[path = "lab/gateways.rs"]
mod gateways;
#[path = "lab/lines.rs"]
mod lines;
#[path = "lab/paths.rs"]
mod paths;
#[path = "lab/silence.rs"]
mod silence;
#[path = "lab/table.rs"]
mod table;
#[path = "lab/test_host.rs"]
mod test_host;

use std::path::Path;

use holdfast_tests::lab::{self, Scale, faults};

/// Runs one fault of the list, where a lab can be made.
async fn survive(fault: &str) -> anyhow::Result<()> {
    let fault = faults::named(fault)?;
    if let Some(obstacle) = lab::obstacle() {
        say(&format!("skipped: {obstacle}"));
        return Ok(());
    }
    let finding = fault.run(Path::new(env!("CARGO_BIN_EXE_holdfast-under-test")), Scale::Short).await?;
    say(&serde_json::to_string(&finding)?);
    Ok(())
}

/// On stderr, where a test's runner shows it.
fn say(line: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
}
