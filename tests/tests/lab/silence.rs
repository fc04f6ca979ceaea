//! The path is there and carries nothing.

use holdfast_tests::lab::faults;

use super::survive;

#[tokio::test]
async fn a_partition_shorter_than_the_idle_timeout_loses_no_byte() -> anyhow::Result<()> {
    survive(async |program| faults::partition(program, 6).await).await
}

#[tokio::test]
async fn a_partition_longer_than_the_idle_timeout_is_told_and_then_made_good() -> anyhow::Result<()> {
    survive(async |program| faults::partition(program, 30).await).await
}

#[tokio::test]
async fn nothing_upwards_is_told_and_then_made_good() -> anyhow::Result<()> {
    survive(async |program| faults::one_way_drop(program, "up", 14).await).await
}

#[tokio::test]
async fn nothing_downwards_is_told_and_then_made_good() -> anyhow::Result<()> {
    survive(async |program| faults::one_way_drop(program, "down", 14).await).await
}

#[tokio::test]
async fn a_link_that_goes_down_and_up_loses_no_byte() -> anyhow::Result<()> {
    survive(async |program| faults::link_down_and_up(program, 6).await).await
}
