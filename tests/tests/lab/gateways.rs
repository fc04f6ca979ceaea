//! The gateway goes, stands still, moves, or is another.

use holdfast_tests::lab::faults;

use super::survive;

#[tokio::test]
async fn a_killed_gateway_is_found_again() -> anyhow::Result<()> {
    survive(async |program| faults::gateway_killed(program).await).await
}

#[tokio::test]
async fn a_gateway_frozen_for_a_moment_loses_no_byte() -> anyhow::Result<()> {
    survive(async |program| faults::gateway_frozen(program, 5).await).await
}

#[tokio::test]
async fn a_gateway_frozen_past_the_idle_timeout_loses_no_byte() -> anyhow::Result<()> {
    survive(async |program| faults::gateway_frozen(program, 30).await).await
}

#[tokio::test]
async fn a_stale_entry_towards_a_dead_host_does_not_hold_the_supervisor() -> anyhow::Result<()> {
    survive(async |program| faults::stale_entry_towards_a_dead_gateway(program).await).await
}

#[tokio::test]
async fn a_stranger_behind_the_address_is_refused_and_outlived() -> anyhow::Result<()> {
    survive(async |program| faults::a_stranger_behind_the_address(program).await).await
}

#[tokio::test]
async fn twenty_sandboxes_find_their_gateway_again() -> anyhow::Result<()> {
    survive(async |program| faults::many_lose_their_gateway(program).await).await
}
