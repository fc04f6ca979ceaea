//! The list and its tests belong together, and so do the list and the baseline.

use std::path::Path;

use holdfast_tests::lab::{self, Scale, faults};

use super::say;

#[test]
fn every_fault_that_this_kernel_can_make_has_a_test() {
    let tests = [
        include_str!("gateways.rs"),
        include_str!("lines.rs"),
        include_str!("paths.rs"),
        include_str!("silence.rs"),
    ]
    .concat();
    for fault in faults::all().iter().filter(|fault| !fault.netem) {
        let name = format!("survive(\"{}\")", fault.name);
        assert!(tests.contains(&name), "no test runs {:?}", fault.name);
    }
}

/// The comparison must not be won by a baseline that does not work.
#[tokio::test]
async fn the_baseline_does_its_work_where_its_connection_lives() -> anyhow::Result<()> {
    if let Some(obstacle) = lab::obstacle() {
        say(&format!("skipped: {obstacle}"));
        return Ok(());
    }
    let peer = Path::new(env!("CARGO_BIN_EXE_baseline-peer"));
    for name in ["silence both ways, 6 s", "1 % loss, transfer of 16 MiB each way"] {
        let found = faults::named(name)?.run_baseline(peer, Scale::Short, true).await?;
        anyhow::ensure!(found.true_results == found.calls, "{name}: {found:?}");
        say(&serde_json::to_string(&found)?);
    }
    Ok(())
}
