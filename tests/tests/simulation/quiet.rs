//! Networks that do nothing wrong, and one that does little for a long time.

use holdfast_supervisor::execs::spawn::fake::pattern_bytes;
use holdfast_tests::sim::{Plot, Script, World};

use crate::run::{SECOND, simulate};

#[test]
fn a_clean_run_loses_nothing_and_interrupts_nobody() {
    simulate("a_clean_run_loses_nothing_and_interrupts_nobody", 2, async |seed| {
        let mut world = World::begin(Plot { sandboxes: 3, ..Plot::new(seed) }).await?;
        for sandbox in 0..3 {
            world.start(sandbox, Script::new());
            world.start(sandbox, Script::new().exit(42));
            world.start(sandbox, Script::new().die(11));
            world.start(sandbox, Script::new().emit(1).err(1).exit(1));
            world.start(sandbox, Script::new().emit(700_000).err(70_000));
            world.start(sandbox, Script::new().talk(20, 3000, SECOND / 10).exit(3));
            world.start(sandbox, Script::new().sleep(90 * SECOND).exit(9));
            world.start(sandbox, Script::new().cat(pattern_bytes(3, 400_000)).exit(5));
        }
        world.finish(120 * SECOND).await?;
        let records = world.check().await?;
        anyhow::ensure!(records.iter().all(|record| record.losses() == 0), "a caller had to come back");
        Ok(())
    });
}

/// The keepalive holds the mapping; where it is taken away, the next packet from inside makes another. Nobody says
/// anything for eight hours but the protocol itself.
#[test]
fn eight_silent_hours_end_with_the_true_result() {
    simulate("eight_silent_hours_end_with_the_true_result", 1, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        world.start(0, Script::new().emit(10).sleep(8 * 3600 * SECOND).emit(20).exit(17));
        for _ in 0..12 {
            world.pass(40 * 60 * SECOND).await;
            world.evict_nat(0);
        }
        let [record] = &world.finish(60 * SECOND).await?[..] else { anyhow::bail!("one call") };
        anyhow::ensure!(record.losses() == 0, "an evicted mapping cost the caller its stream");
        let late = record.ended - record.began - 8 * 3600 * SECOND;
        anyhow::ensure!(late < 3 * SECOND, "the result came {late:?} late");
        let host = world.sandboxes[0].host;
        anyhow::ensure!(world.net.counts(host).nat.evicted >= 12, "nothing was evicted");
        world.check().await?;
        Ok(())
    });
}

/// Without any call there is no heartbeat: only the keepalive holds the path, and each evicted mapping is noticed
/// by nobody.
#[test]
fn an_idle_day_behind_a_forgetful_nat_box_leaves_one_session() {
    simulate("an_idle_day_behind_a_forgetful_nat_box_leaves_one_session", 1, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        let epoch = world.epoch(0)?;
        for _ in 0..24 {
            world.pass(3600 * SECOND).await;
            world.evict_nat(0);
        }
        anyhow::ensure!(world.epoch(0)? == epoch, "the session was replaced");
        world.check().await?;
        Ok(())
    });
}
