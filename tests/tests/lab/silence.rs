//! The path is there and carries nothing.

use super::survive;

#[tokio::test]
async fn a_partition_shorter_than_the_idle_timeout_loses_no_byte() -> anyhow::Result<()> {
    survive("silence both ways, 6 s").await
}

#[tokio::test]
async fn a_partition_longer_than_the_idle_timeout_is_told_and_then_made_good() -> anyhow::Result<()> {
    survive("silence both ways, 30 s").await
}

#[tokio::test]
async fn nothing_upwards_for_a_moment_loses_no_byte() -> anyhow::Result<()> {
    survive("nothing up, 6 s").await
}

#[tokio::test]
async fn nothing_upwards_past_the_idle_timeout_is_told_and_then_made_good() -> anyhow::Result<()> {
    survive("nothing up, 28 s").await
}

#[tokio::test]
async fn nothing_downwards_for_a_moment_loses_no_byte() -> anyhow::Result<()> {
    survive("nothing down, 6 s").await
}

#[tokio::test]
async fn nothing_downwards_past_the_idle_timeout_is_told_and_then_made_good() -> anyhow::Result<()> {
    survive("nothing down, 28 s").await
}

#[tokio::test]
async fn a_link_that_goes_down_and_up_loses_no_byte() -> anyhow::Result<()> {
    survive("link down, 6 s").await
}

#[tokio::test]
async fn a_link_down_past_the_idle_timeout_is_told_and_then_made_good() -> anyhow::Result<()> {
    survive("link down, 28 s").await
}
