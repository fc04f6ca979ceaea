//! Paths that lose, reorder, repeat and damage packets, and paths that move.

use std::time::Duration;

use holdfast_supervisor::execs::spawn::fake::pattern_bytes;
use holdfast_tests::sim::{Impairments, Plot, Script, Way, World};
use rand::RngExt;

use crate::run::{SECOND, simulate};

const MS: Duration = Duration::from_millis(1);

/// A path on which a transfer of two megabytes takes a second.
fn narrow() -> Impairments {
    Impairments { rate: Some(2_000_000), ..Impairments::good() }
}

fn transfers(world: &mut World) {
    world.start(0, Script::new().emit(2_000_000).exit(1));
    world.start(0, Script::new().cat(pattern_bytes(9, 1_500_000)).exit(2));
    world.start(0, Script::new().sleep(20 * SECOND).exit(3));
}

#[test]
fn a_nat_box_that_forgets_in_mid_transfer_costs_no_byte() {
    simulate("a_nat_box_that_forgets_in_mid_transfer_costs_no_byte", 3, async |seed| {
        let mut world = World::begin(Plot { path: narrow(), ..Plot::new(seed) }).await?;
        transfers(&mut world);
        for _ in 0..3 {
            let pause = 200 + world.random.random_range(0..300);
            world.pass(MS * pause).await;
            world.evict_nat(0);
        }
        world.check().await?;
        Ok(())
    });
}

#[test]
fn a_nat_box_with_a_new_address_in_mid_transfer_costs_no_byte() {
    simulate("a_nat_box_with_a_new_address_in_mid_transfer_costs_no_byte", 3, async |seed| {
        let mut world = World::begin(Plot { path: narrow(), ..Plot::new(seed) }).await?;
        transfers(&mut world);
        for _ in 0..3 {
            let pause = 200 + world.random.random_range(0..300);
            world.pass(MS * pause).await;
            world.rebind_nat(0);
        }
        world.check().await?;
        Ok(())
    });
}

#[test]
fn a_supervisor_that_moves_keeps_its_execs() {
    simulate("a_supervisor_that_moves_keeps_its_execs", 3, async |seed| {
        let nat = seed % 2 == 0;
        let mut world = World::begin(Plot { path: narrow(), nat, ..Plot::new(seed) }).await?;
        transfers(&mut world);
        for _ in 0..3 {
            let pause = 300 + world.random.random_range(0..2000);
            world.pass(MS * pause).await;
            world.move_supervisor(0);
        }
        world.check().await?;
        Ok(())
    });
}

/// Nothing comes through the old flow any more, in either direction; a new source port does. The rebind is for it.
#[test]
fn a_wedged_mapping_is_left_behind_by_a_new_port() {
    simulate("a_wedged_mapping_is_left_behind_by_a_new_port", 3, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        world.start(0, Script::new().talk(40, 500, SECOND / 2).exit(4));
        world.start(0, Script::new().sleep(15 * SECOND).exit(5));
        world.pass(5 * SECOND).await;
        world.wedge_nat(0);
        let records = world.finish(60 * SECOND).await?;
        for record in &records {
            let late = (record.ended - record.began).saturating_sub(record.plan.script.takes());
            anyhow::ensure!(late < 5 * SECOND, "the result came {late:?} late");
        }
        world.check().await?;
        Ok(())
    });
}

#[test]
fn loss_reordering_and_repeats_cost_no_byte() {
    simulate("loss_reordering_and_repeats_cost_no_byte", 3, async |seed| {
        let mut world = World::begin(Plot { sandboxes: 2, ..Plot::new(seed) }).await?;
        let bad = Impairments {
            delay: 20 * MS,
            jitter: 10 * MS,
            loss: 0.05,
            duplicate: 0.05,
            reorder: 0.1,
            reorder_by: 15 * MS,
            ..Impairments::good()
        };
        for sandbox in 0..2 {
            world.impair(sandbox, Way::Both, bad);
            world.start(sandbox, Script::new().emit(300_000).err(30_000).exit(1));
            world.start(sandbox, Script::new().cat(pattern_bytes(1, 200_000)).exit(2));
            world.start(sandbox, Script::new().talk(30, 1000, SECOND / 3).exit(3));
            world.start(sandbox, Script::new().sleep(30 * SECOND).exit(4));
        }
        world.finish(300 * SECOND).await?;
        let host = world.sandboxes[0].host;
        let counts = world.net.counts(host);
        anyhow::ensure!(
            counts.up.lost > 0 && counts.down.reordered > 0 && counts.down.duplicated > 0,
            "{counts:?}"
        );
        world.check().await?;
        Ok(())
    });
}

#[test]
fn damaged_packets_cost_no_byte() {
    simulate("damaged_packets_cost_no_byte", 3, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        world.impair(0, Way::Both, Impairments { corrupt: 0.01, ..Impairments::good() });
        world.start(0, Script::new().emit(1_000_000).err(100_000).exit(1));
        world.start(0, Script::new().cat(pattern_bytes(1, 500_000)).exit(2));
        world.start(0, Script::new().talk(60, 2000, SECOND / 4).exit(3));
        world.finish(300 * SECOND).await?;
        let host = world.sandboxes[0].host;
        let counts = world.net.counts(host);
        anyhow::ensure!(counts.up.corrupted > 0 && counts.down.corrupted > 0, "{counts:?}");
        world.check().await?;
        Ok(())
    });
}

/// The MTU shrinks below what discovery found: large packets vanish, small ones do not.
#[test]
fn a_path_whose_mtu_shrinks_is_noticed_and_used_on() {
    simulate("a_path_whose_mtu_shrinks_is_noticed_and_used_on", 2, async |seed| {
        let mut world = World::begin(Plot { path: narrow(), ..Plot::new(seed) }).await?;
        world.start(0, Script::new().talk(100, 50_000, SECOND / 5).exit(1));
        world.pass(5 * SECOND).await;
        world.impair(0, Way::Both, Impairments { mtu: 1300, ..narrow() });
        world.finish(120 * SECOND).await?;
        let host = world.sandboxes[0].host;
        anyhow::ensure!(world.net.counts(host).up.too_long > 0, "no packet was too long");
        world.check().await?;
        Ok(())
    });
}

#[test]
fn a_link_that_flaps_for_two_minutes_loses_none_of_twenty_execs() {
    simulate("a_link_that_flaps_for_two_minutes_loses_none_of_twenty_execs", 3, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        for n in 0..20 {
            let script = match n % 4 {
                0 => Script::new().sleep(SECOND * (n + 1) * 5),
                1 => Script::new().talk(u64::from(n) * 10, 400, SECOND / 2),
                2 => Script::new().emit(u64::from(n) * 10_000).sleep(SECOND * n),
                _ => Script::new().sleep(SECOND * n * 4).emit(50_000),
            };
            let code = i32::try_from(n)?;
            world.start(0, script.exit(code));
        }
        for n in 0..20 {
            world.pass(3 * SECOND).await;
            match n % 4 {
                0 => world.evict_nat(0),
                1 => world.rebind_nat(0),
                2 => world.move_supervisor(0),
                _ => world.wedge_nat(0),
            }
            world.blackhole(0, Way::Both);
            world.pass(3 * SECOND).await;
            world.heal(0);
        }
        world.check().await?;
        Ok(())
    });
}
