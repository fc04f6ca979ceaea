//! Supervisors that die, return, and meet another of their kind.

use std::cell::Cell;

use holdfast_supervisor::execs::spawn::fake::pattern_bytes;
use holdfast_tests::sim::{Impairments, Plot, Script, Way, World};
use holdfast_wire::api::{LostReason, outcome::Kind};

use crate::run::{SECOND, simulate};

/// Whoever ran when the supervisor died is lost, and says so; what had ended before is kept.
#[test]
fn a_supervisor_that_dies_loses_its_execs_and_says_so() {
    simulate("a_supervisor_that_dies_loses_its_execs_and_says_so", 3, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        world.start(0, Script::new().emit(10).sleep(60 * SECOND).exit(1));
        world.start(0, Script::new().talk(100, 100, SECOND).exit(2));
        world.pass(10 * SECOND).await;
        world.restart_supervisor(0).await?;
        let restarted = tokio::time::Instant::now();
        for record in world.finish(60 * SECOND).await? {
            let Some(Kind::Lost(lost)) = &record.outcome else { anyhow::bail!("{:?}", record.outcome) };
            anyhow::ensure!(lost.reason() == LostReason::SupervisorRestarted, "{lost:?}");
            let after = record.ended - restarted;
            anyhow::ensure!(after < 3 * SECOND, "told {after:?} after the new supervisor started");
        }
        world.check().await?;
        Ok(())
    });
}

#[test]
fn what_ended_before_its_supervisor_died_keeps_its_result() {
    simulate("what_ended_before_its_supervisor_died_keeps_its_result", 2, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        world.start(0, Script::new().emit(100).sleep(6 * SECOND).emit(100).exit(9));
        world.pass(5 * SECOND).await;
        world.blackhole(0, Way::Both);
        // It ends in the hole: nobody has heard of it when its supervisor dies.
        world.pass(5 * SECOND).await;
        world.restart_supervisor(0).await?;
        world.pass(10 * SECOND).await;
        world.heal(0);
        let [record] = &world.finish(60 * SECOND).await?[..] else { anyhow::bail!("one call") };
        anyhow::ensure!(record.outcome == Some(record.plan.script.outcome()), "{:?}", record.outcome);
        world.check().await?;
        Ok(())
    });
}

/// The path is silent long enough for the link to doubt it, and works again before the gateway has given the first
/// session up: the second attaches beside it and supersedes it, and every relay moves. Now and then a probe timer of the
/// first strikes just when the path works again, and the second is given up: not with every seed.
#[test]
fn a_second_connection_of_the_same_supervisor_takes_over() {
    let (runs, taken_over) = (Cell::new(0), Cell::new(0));
    simulate("a_second_connection_of_the_same_supervisor_takes_over", 3, async |seed| {
        runs.set(runs.get() + 1);
        let path = Impairments { rate: Some(1_000_000), ..Impairments::good() };
        let mut world = World::begin(Plot { path, ..Plot::new(seed) }).await?;
        let epoch = world.epoch(0)?;
        world.start(0, Script::new().sleep(30 * SECOND).exit(1));
        world.start(0, Script::new().talk(80, 700, SECOND / 4).exit(2));
        // Both directions are full, so both senders wait for their probe timers when the path works again.
        world.start(0, Script::new().emit(6_000_000).exit(3));
        world.start(0, Script::new().cat(pattern_bytes(1, 6_000_000)).exit(4));
        world.pass(3 * SECOND).await;
        world.blackhole(0, Way::Both);
        world.pass(SECOND * 7).await;
        world.heal(0);
        world.pass(10 * SECOND).await;
        taken_over.set(taken_over.get() + i32::from(world.epoch(0)? > epoch));
        world.check().await?;
        Ok(())
    });
    let (runs, taken_over) = (runs.get(), taken_over.get());
    assert!(2 * taken_over > runs, "a second connection took over in {taken_over} of {runs} runs");
}

/// A copy of the sandbox dials with the same identity: the newest wins, the first stays away, and what it ran is
/// lost, once and for all.
#[test]
fn a_rival_takes_over_and_the_first_stays_away() {
    simulate("a_rival_takes_over_and_the_first_stays_away", 2, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        world.start(0, Script::new().emit(10).sleep(30 * SECOND).exit(1));
        world.pass(3 * SECOND).await;
        let epoch = world.epoch(0)?;
        let rival = world.rival(0).await?;
        let [record] = &world.finish(20 * SECOND).await?[..] else { anyhow::bail!("one call") };
        anyhow::ensure!(matches!(record.outcome, Some(Kind::Lost(_))), "{:?}", record.outcome);
        world.pass(60 * SECOND).await;
        anyhow::ensure!(world.epoch(0)? == epoch + 1, "the two supersede each other again and again");
        drop(rival);
        // The first was told never to come back: whoever owns the workload starts it anew.
        world.restart_supervisor(0).await?;
        world.check().await?;
        Ok(())
    });
}
