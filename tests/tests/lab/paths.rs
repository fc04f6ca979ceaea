//! The path changes under a connection.

use holdfast_tests::lab::faults;

use super::survive;

#[tokio::test]
async fn a_flushed_nat_costs_twenty_silent_calls_nothing() -> anyhow::Result<()> {
    survive(async |program| faults::conntrack_flush_while_twenty_are_silent(program).await).await
}

#[tokio::test]
async fn a_flushed_nat_costs_a_transfer_no_byte() -> anyhow::Result<()> {
    survive(async |program| faults::conntrack_flush_in_a_transfer(program).await).await
}

#[tokio::test]
async fn a_nat_that_forgets_within_the_silence_loses_no_call() -> anyhow::Result<()> {
    survive(async |program| faults::udp_timeout_shorter_than_the_silence(program).await).await
}

#[tokio::test]
async fn a_new_source_port_is_followed() -> anyhow::Result<()> {
    survive(async |program| faults::new_source_port(program).await).await
}

#[tokio::test]
async fn a_new_source_address_is_followed() -> anyhow::Result<()> {
    survive(async |program| faults::new_source_address(program).await).await
}

#[tokio::test]
async fn a_new_address_of_the_supervisor_is_followed() -> anyhow::Result<()> {
    survive(async |program| faults::own_address_changes(program).await).await
}

#[tokio::test]
async fn a_new_uplink_is_followed() -> anyhow::Result<()> {
    survive(async |program| faults::uplink_moves(program).await).await
}

#[tokio::test]
async fn one_lost_packet_in_a_hundred_costs_a_transfer_no_byte() -> anyhow::Result<()> {
    survive(async |program| faults::loss_in_a_transfer(program, "1%", 16 << 20).await).await
}

#[tokio::test]
async fn one_lost_packet_in_twenty_costs_a_transfer_no_byte() -> anyhow::Result<()> {
    survive(async |program| faults::loss_in_a_transfer(program, "5%", 8 << 20).await).await
}

#[tokio::test]
async fn a_path_that_shrinks_in_silence_costs_a_transfer_no_byte() -> anyhow::Result<()> {
    survive(async |program| faults::mtu_black_hole_in_a_transfer(program).await).await
}
