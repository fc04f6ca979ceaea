//! The NAT forgets, or the path changes under a connection.

use super::survive;

#[tokio::test]
async fn a_flushed_nat_costs_twenty_silent_calls_nothing() -> anyhow::Result<()> {
    survive("NAT table flushed, 20 silent commands").await
}

#[tokio::test]
async fn a_flushed_nat_costs_a_transfer_no_byte() -> anyhow::Result<()> {
    survive("NAT table flushed in the middle of a transfer of 1 GiB each way").await
}

#[tokio::test]
async fn a_nat_that_forgets_within_the_silence_loses_no_call() -> anyhow::Result<()> {
    survive("NAT forgets after 3 s, 10 s of silence").await
}

#[tokio::test]
async fn a_nat_that_forgets_and_is_flushed_again_and_again_costs_no_session() -> anyhow::Result<()> {
    survive("NAT forgets after 10 s and is flushed every 20 s, 20 silent commands").await
}

#[tokio::test]
async fn a_new_source_port_is_followed() -> anyhow::Result<()> {
    survive("NAT gives a new source port").await
}

#[tokio::test]
async fn a_new_source_address_is_followed() -> anyhow::Result<()> {
    survive("NAT gets a new address").await
}

#[tokio::test]
async fn a_new_port_and_then_a_new_address_are_followed() -> anyhow::Result<()> {
    survive("NAT gives a new source port, 3 s later a new address").await
}

#[tokio::test]
async fn a_new_address_of_the_supervisor_is_followed() -> anyhow::Result<()> {
    survive("supervisor's own address changes").await
}

#[tokio::test]
async fn a_new_uplink_is_followed() -> anyhow::Result<()> {
    survive("default route moves to a second uplink").await
}
