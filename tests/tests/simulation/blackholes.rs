//! Paths that swallow everything, one way or both, for shorter and for longer than the idle timeout.

use std::time::Duration;

use holdfast_supervisor::execs::spawn::fake::pattern_bytes;
use holdfast_tests::sim::{Impairments, Plot, Script, Way, World};

use crate::run::{SECOND, simulate};

/// From the heal (or the command's end, whichever is later) until the caller has the result: the busy link's
/// longest pause between dials and the caller's own, each 5 s, and a handshake.
const RESULT_WITHIN: Duration = Duration::from_secs(12);

async fn hole(seed: u64, way: Way, lasts: Duration) -> anyhow::Result<()> {
    let mut world = World::begin(Plot::new(seed)).await?;
    world.start(0, Script::new().sleep(2 * SECOND).exit(1));
    world.start(0, Script::new().sleep(7 * SECOND).emit(70_000).exit(2));
    world.start(0, Script::new().sleep(70 * SECOND).exit(3));
    world.start(0, Script::new().talk(300, 900, SECOND / 4).exit(4));
    // Ends right before the hole, right after its beginning, in its midst.
    for tenths in [28, 29, 30, 31, 32, 60] {
        world.start(0, Script::new().sleep(SECOND / 10 * tenths).emit(1000).exit(5));
    }
    world.pass(3 * SECOND).await;
    world.blackhole(0, way);
    // One that begins in the hole.
    world.pass(SECOND / 2).await;
    world.start(0, Script::new().emit(5).exit(6));
    world.pass(lasts - SECOND / 2).await;
    world.heal(0);
    let healed = tokio::time::Instant::now();
    for record in world.finish(120 * SECOND).await? {
        let late =
            record.ended.saturating_duration_since(healed.max(record.began + record.plan.script.takes()));
        if late > RESULT_WITHIN {
            anyhow::bail!(
                "the result of {} came {late:?} late\n{}",
                record.plan.script.text(),
                world.story()
            );
        }
    }
    world.check().await?;
    Ok(())
}

#[test]
fn a_short_hole_up() {
    simulate("a_short_hole_up", 3, async |seed| hole(seed, Way::Up, 8 * SECOND).await);
}

#[test]
fn a_short_hole_down() {
    simulate("a_short_hole_down", 3, async |seed| hole(seed, Way::Down, 8 * SECOND).await);
}

#[test]
fn a_short_hole_both_ways() {
    simulate("a_short_hole_both_ways", 3, async |seed| hole(seed, Way::Both, 8 * SECOND).await);
}

#[test]
fn a_long_hole_up() {
    simulate("a_long_hole_up", 3, async |seed| hole(seed, Way::Up, 40 * SECOND).await);
}

#[test]
fn a_long_hole_down() {
    simulate("a_long_hole_down", 3, async |seed| hole(seed, Way::Down, 40 * SECOND).await);
}

#[test]
fn a_long_hole_both_ways() {
    simulate("a_long_hole_both_ways", 3, async |seed| hole(seed, Way::Both, 40 * SECOND).await);
}

/// The hole opens while both directions are full: what was sent is lost with its congestion window.
#[test]
fn a_hole_in_mid_transfer_costs_no_byte() {
    simulate("a_hole_in_mid_transfer_costs_no_byte", 3, async |seed| {
        let path = Impairments { rate: Some(1_000_000), ..Impairments::good() };
        let mut world = World::begin(Plot { path, ..Plot::new(seed) }).await?;
        world.start(0, Script::new().emit(2_000_000).exit(1));
        world.start(0, Script::new().cat(pattern_bytes(2, 1_000_000)).exit(2));
        world.pass(SECOND / 2).await;
        let (way, lasts) = match seed % 3 {
            0 => (Way::Up, 5),
            1 => (Way::Down, 12),
            _ => (Way::Both, 30),
        };
        world.blackhole(0, way);
        world.pass(SECOND * lasts).await;
        world.heal(0);
        world.check().await?;
        Ok(())
    });
}

/// The start is on its way and does not arrive, or it arrives and the answer does not: it is said again, and the
/// command runs once.
#[test]
fn a_start_that_is_lost_in_flight_is_repeated_and_runs_once() {
    simulate("a_start_that_is_lost_in_flight_is_repeated_and_runs_once", 9, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        let way = [Way::Up, Way::Down, Way::Both][usize::try_from(seed % 3)?];
        let lasts = [2, 6, 9][usize::try_from(seed / 3 % 3)?];
        world.blackhole(0, way);
        world.start(0, Script::new().emit(100).sleep(SECOND).exit(1));
        world.start(0, Script::new().talk(10, 10, SECOND).exit(2));
        world.pass(SECOND * lasts).await;
        world.heal(0);
        for record in world.finish(60 * SECOND).await? {
            let failed = matches!(record.outcome, Some(holdfast_wire::api::outcome::Kind::StartFailed(_)));
            anyhow::ensure!(
                !failed,
                "not started although there was time: {:?}\n{}",
                record.streams,
                world.story()
            );
        }
        world.check().await?;
        Ok(())
    });
}

/// Nobody can start it in time: then it is said so, and it does not run later.
#[test]
fn a_start_that_cannot_be_had_in_time_is_told_and_never_runs() {
    simulate("a_start_that_cannot_be_had_in_time_is_told_and_never_runs", 2, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        world.blackhole(0, Way::Both);
        // The session is gone before anybody asks.
        world.pass(60 * SECOND).await;
        world.start(0, Script::new().emit(100).exit(1));
        let [record] = &world.finish(40 * SECOND).await?[..] else { anyhow::bail!("one call") };
        let failed = matches!(record.outcome, Some(holdfast_wire::api::outcome::Kind::StartFailed(_)));
        anyhow::ensure!(failed, "{:?}", record.outcome);
        world.heal(0);
        world.pass(60 * SECOND).await;
        world.check().await?;
        Ok(())
    });
}
