//! The container driver, end to end: the real gateway and command, docker and podman, images made here.
//!
//! Each test runs once with each engine, in a machine of its own (see `holdfast_tests::engines`), so tests run side by
//! side and leave nothing.

#![allow(missing_debug_implementations)] // a test binary has no callers
#![allow(clippy::print_stderr)] // what is skipped is said

#[path = "containers/conformance.rs"]
mod conformance;
#[path = "containers/faults.rs"]
mod faults;
#[path = "containers/files.rs"]
mod files;
#[path = "containers/life.rs"]
mod life;
#[path = "containers/limits.rs"]
mod limits;
#[path = "containers/main_command.rs"]
mod main_command;
#[path = "containers/many.rs"]
mod many;
#[path = "containers/nat.rs"]
mod nat;
#[path = "containers/phantoms.rs"]
mod phantoms;
#[path = "containers/pulls.rs"]
mod pulls;
#[path = "containers/site.rs"]
mod site;
#[path = "containers/workspace.rs"]
mod workspace;

/// The command under test.
const HOLDFAST: &str = env!("CARGO_BIN_EXE_holdfast-under-test");

/// One test a fact and engine.
macro_rules! with_both_engines {
    ($($fact:ident),* $(,)?) => {
        mod docker {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() -> anyhow::Result<()> {
                let kind = holdfast_tests::engines::Kind::Docker;
                if $crate::skipped(kind) { return Ok(()); }
                super::$fact(kind).await
            })*
        }
        mod podman {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() -> anyhow::Result<()> {
                let kind = holdfast_tests::engines::Kind::Podman;
                if $crate::skipped(kind) { return Ok(()); }
                super::$fact(kind).await
            })*
        }
    };
}
pub(crate) use with_both_engines;

/// Says why there is no such engine here, if there is none.
fn skipped(kind: holdfast_tests::engines::Kind) -> bool {
    let obstacle = holdfast_tests::engines::obstacle(kind);
    if let Some(why) = &obstacle {
        eprintln!("skipped: {why}");
    }
    obstacle.is_some()
}
