//! The path carries less than it should.

use super::survive;

#[tokio::test]
async fn one_lost_packet_in_a_hundred_costs_a_transfer_no_byte() -> anyhow::Result<()> {
    survive("1 % loss, transfer of 16 MiB each way").await
}

#[tokio::test]
async fn one_lost_packet_in_twenty_costs_a_transfer_no_byte() -> anyhow::Result<()> {
    survive("5 % loss, transfer of 8 MiB each way").await
}

#[tokio::test]
async fn one_lost_packet_in_five_costs_a_transfer_no_byte() -> anyhow::Result<()> {
    survive("20 % loss, transfer of 2 MiB each way").await
}

#[tokio::test]
async fn one_lost_packet_in_five_costs_attached_calls_nothing() -> anyhow::Result<()> {
    survive("20 % loss for 15 s").await
}

#[tokio::test]
async fn a_path_that_shrinks_costs_a_transfer_no_byte() -> anyhow::Result<()> {
    survive("MTU 1280 in a transfer of 16 MiB each way").await
}

#[tokio::test]
async fn a_path_that_shrinks_in_silence_costs_a_transfer_no_byte() -> anyhow::Result<()> {
    survive("MTU 1280 and no ICMP in a transfer of 16 MiB each way").await
}
