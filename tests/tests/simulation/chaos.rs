//! Random faults over random execs. Every invariant at the end, for as many seeds as one has time for.

use std::time::Duration;

use holdfast_supervisor::execs::spawn::fake::pattern_bytes;
use holdfast_tests::sim::{Impairments, Plot, Script, Way, World};
use rand::{RngExt, seq::IndexedRandom};

use crate::run::simulate;

const MS: Duration = Duration::from_millis(1);

/// Sandboxes of one world.
const SANDBOXES: usize = 2;

/// Faults of one world.
const FAULTS: usize = 14;

#[test]
fn random_faults_on_the_path() {
    simulate("random_faults_on_the_path", 4, async |seed| chaos(seed, false, false).await);
}

#[test]
fn random_faults_of_path_and_gateway() {
    simulate("random_faults_of_path_and_gateway", 4, async |seed| chaos(seed, true, false).await);
}

#[test]
fn random_faults_of_everything() {
    simulate("random_faults_of_everything", 4, async |seed| chaos(seed, true, true).await);
}

async fn chaos(seed: u64, gateways: bool, supervisors: bool) -> anyhow::Result<()> {
    let mut world =
        World::begin(Plot { sandboxes: SANDBOXES, nat: !seed.is_multiple_of(4), ..Plot::new(seed) }).await?;
    for _ in 0..FAULTS {
        for _ in 0..world.random.random_range(0..3) {
            let sandbox = world.random.random_range(0..SANDBOXES);
            let script = script(&mut world);
            world.start(sandbox, script);
        }
        let pause = world.random.random_range(0..6000);
        world.pass(MS * pause).await;
        fault(&mut world, gateways, supervisors).await?;
    }
    world.check().await?;
    Ok(())
}

fn script(world: &mut World) -> Script {
    let random = &mut world.random;
    let code = random.random_range(0..256);
    let script = match random.random_range(0..6) {
        0 => Script::new(),
        1 => Script::new().sleep(MS * random.random_range(0..90_000)),
        2 => Script::new().emit(random.random_range(0..400_000)).err(random.random_range(0..1000)),
        3 => Script::new().talk(
            random.random_range(1..100),
            random.random_range(0..3000),
            MS * random.random_range(1..700),
        ),
        4 => Script::new().cat(pattern_bytes(code as u64, random.random_range(0..300_000))),
        _ => Script::new().sleep(MS * random.random_range(0..20_000)).emit(random.random_range(0..100_000)),
    };
    if random.random_range(0..5) == 0 { script.die(9) } else { script.exit(code) }
}

async fn fault(world: &mut World, gateways: bool, supervisors: bool) -> anyhow::Result<()> {
    let sandbox = world.random.random_range(0..SANDBOXES);
    let way = *[Way::Up, Way::Down, Way::Both].choose(&mut world.random).unwrap_or(&Way::Both);
    match world.random.random_range(0..20) {
        0..=2 => world.blackhole(sandbox, way),
        3..=6 => world.heal(sandbox),
        7 => world.evict_nat(sandbox),
        8 => world.rebind_nat(sandbox),
        9 => world.wedge_nat(sandbox),
        10 => world.move_supervisor(sandbox),
        11 | 12 => {
            let random = &mut world.random;
            let bad = Impairments {
                delay: MS * random.random_range(0..100),
                jitter: MS * random.random_range(0..50),
                loss: random.random_range(0.0..0.15),
                duplicate: random.random_range(0.0..0.1),
                corrupt: random.random_range(0.0..0.02),
                reorder: random.random_range(0.0..0.2),
                reorder_by: MS * random.random_range(1..60),
                rate: Some(random.random_range(100_000..2_000_000)),
                ..Impairments::default()
            };
            world.impair(sandbox, way, bad);
        }
        13..=15 if gateways && world.has_gateway() => world.kill_gateway()?,
        16 if gateways && world.has_gateway() => world.stop_gateway().await?,
        13..=16 if gateways => world.start_gateway().await?,
        17 if supervisors => world.restart_supervisor(sandbox).await?,
        _ => {}
    }
    Ok(())
}
