//! Gateways that stop, die and return.

use holdfast_supervisor::execs::spawn::fake::pattern_bytes;
use holdfast_tests::sim::{Impairments, Plot, Script, StreamEnd, World};
use tokio::time::Instant;

use crate::run::{SECOND, simulate};

#[test]
fn a_killed_gateway_comes_back_to_silent_execs() {
    simulate("a_killed_gateway_comes_back_to_silent_execs", 3, async |seed| {
        let mut world = World::begin(Plot { sandboxes: 2, ..Plot::new(seed) }).await?;
        for sandbox in 0..2 {
            world.start(sandbox, Script::new().sleep(60 * SECOND).emit(10).exit(1));
            // Ends while nobody is there to hear it.
            world.start(sandbox, Script::new().sleep(6 * SECOND).emit(20).exit(2));
        }
        world.pass(5 * SECOND).await;
        world.kill_gateway()?;
        world.pass(SECOND * u32::try_from(seed)? * 2).await;
        world.start_gateway().await?;
        let up = Instant::now();
        for record in world.finish(120 * SECOND).await? {
            let back = record.streams.iter().filter_map(|stream| stream.attached).find(|at| *at > up);
            let after = back.map(|at| at - up);
            // The supervisor dials at most every 5 s with execs open.
            anyhow::ensure!(
                after.is_some_and(|after| after < 8 * SECOND),
                "attached again after {after:?}\n{}",
                world.story()
            );
        }
        world.check().await?;
        Ok(())
    });
}

/// A gateway that is back before anybody has missed it: its stateless resets tell.
#[test]
fn a_gateway_that_restarts_at_once_is_noticed_by_its_resets() {
    simulate("a_gateway_that_restarts_at_once_is_noticed_by_its_resets", 3, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        world.start(0, Script::new().sleep(30 * SECOND).emit(10).exit(1));
        world.pass(5 * SECOND).await;
        world.kill_gateway()?;
        world.start_gateway().await?;
        let up = Instant::now();
        world.ready(0, 5 * SECOND).await?;
        let after = up.elapsed();
        // Noticed within 1.5 s, and dialled within the first delay, which is at most half a second.
        anyhow::ensure!(after < 3 * SECOND, "ready again after {after:?}");
        world.check().await?;
        Ok(())
    });
}

#[test]
fn a_gateway_killed_in_mid_transfer_costs_no_byte() {
    simulate("a_gateway_killed_in_mid_transfer_costs_no_byte", 3, async |seed| {
        let path = Impairments { rate: Some(2_000_000), ..Impairments::good() };
        let mut world = World::begin(Plot { path, ..Plot::new(seed) }).await?;
        world.start(0, Script::new().emit(3_000_000).exit(1));
        world.start(0, Script::new().cat(pattern_bytes(2, 1_500_000)).exit(2));
        for _ in 0..3 {
            world.pass(SECOND / 2).await;
            world.kill_gateway()?;
            world.pass(SECOND / 2).await;
            world.start_gateway().await?;
            world.pass(SECOND).await;
        }
        world.check().await?;
        Ok(())
    });
}

#[test]
fn a_gateway_that_stops_in_good_order_tells_everybody_and_returns() {
    simulate("a_gateway_that_stops_in_good_order_tells_everybody_and_returns", 3, async |seed| {
        let mut world = World::begin(Plot { sandboxes: 2, ..Plot::new(seed) }).await?;
        for sandbox in 0..2 {
            world.start(sandbox, Script::new().sleep(40 * SECOND).exit(1));
            world.start(sandbox, Script::new().talk(100, 5000, SECOND / 5).exit(2));
            world.start(sandbox, Script::new().cat(pattern_bytes(2, 300_000)).sleep(15 * SECOND).exit(3));
        }
        world.pass(5 * SECOND).await;
        let stopping = Instant::now();
        world.stop_gateway().await?;
        let took = stopping.elapsed();
        anyhow::ensure!(took < 2 * SECOND, "the gateway took {took:?} to stop");
        world.pass(SECOND * u32::try_from(seed)?).await;
        world.start_gateway().await?;
        for record in world.finish(120 * SECOND).await? {
            let Some(loss) = record.first_loss(stopping) else { anyhow::bail!("a caller was not told") };
            anyhow::ensure!(
                loss.ended - stopping < SECOND && matches!(loss.end, StreamEnd::Told { .. }),
                "a caller was told {:?} after {:?}",
                loss.end,
                loss.ended - stopping
            );
        }
        world.check().await?;
        Ok(())
    });
}

/// Fifty supervisors are sent away at once. They come back over the window that they were given, not together.
#[test]
fn supervisors_that_are_sent_away_come_back_one_by_one() {
    simulate("supervisors_that_are_sent_away_come_back_one_by_one", 1, async |seed| {
        let mut world = World::begin(Plot { sandboxes: 50, ..Plot::new(seed) }).await?;
        world.stop_gateway().await?;
        world.start_gateway().await?;
        let up = Instant::now();
        let mut back = Vec::new();
        while back.len() < 50 {
            anyhow::ensure!(up.elapsed() < 60 * SECOND, "only {} are back after a minute", back.len());
            world.pass(SECOND / 20).await;
            let sessions = world.sessions()?;
            back.resize(sessions.max(back.len()), up.elapsed());
        }
        let (first, last) = (back[0], back[49]);
        let most = back
            .iter()
            .map(|from| back.iter().filter(|at| (*from..*from + SECOND / 5).contains(*at)).count())
            .max();
        anyhow::ensure!(last - first > SECOND, "all came within {:?}", last - first);
        anyhow::ensure!(most < Some(20), "{most:?} of 50 came within 200 ms");
        anyhow::ensure!(last < 6 * SECOND, "the last came after {last:?}");
        world.check().await?;
        Ok(())
    });
}
