//! One of the two ends goes, stands still, moves, or is another.

use super::survive;

#[tokio::test]
async fn a_killed_gateway_is_found_again() -> anyhow::Result<()> {
    survive("gateway killed and started").await
}

#[tokio::test]
async fn a_gateway_that_moves_behind_its_name_is_found_again() -> anyhow::Result<()> {
    survive("gateway killed, started on another host behind the same name").await
}

#[tokio::test]
async fn a_gateway_frozen_for_a_moment_loses_no_byte() -> anyhow::Result<()> {
    survive("gateway frozen, 5 s").await
}

#[tokio::test]
async fn a_gateway_frozen_past_the_idle_timeout_loses_no_byte() -> anyhow::Result<()> {
    survive("gateway frozen, 60 s").await
}

#[tokio::test]
async fn a_supervisor_frozen_for_a_moment_loses_no_byte() -> anyhow::Result<()> {
    survive("supervisor frozen, 5 s").await
}

#[tokio::test]
async fn a_supervisor_frozen_past_the_idle_timeout_is_told_and_then_made_good() -> anyhow::Result<()> {
    survive("supervisor frozen, 60 s").await
}

#[tokio::test]
async fn a_stale_entry_towards_a_dead_host_does_not_hold_the_supervisor() -> anyhow::Result<()> {
    survive("gateway's host dies, NAT holds the old flow").await
}

#[tokio::test]
async fn a_stranger_behind_the_address_is_refused_and_outlived() -> anyhow::Result<()> {
    survive("another installation's gateway behind the address, 5 s").await
}

#[tokio::test]
async fn a_flow_that_lands_on_a_strange_gateway_finds_its_own_again() -> anyhow::Result<()> {
    survive("two gateways behind one address at random, evicted 4 times").await
}

#[tokio::test]
async fn forty_sandboxes_find_their_gateway_again() -> anyhow::Result<()> {
    survive("gateway of 40 sandboxes killed and started").await
}
