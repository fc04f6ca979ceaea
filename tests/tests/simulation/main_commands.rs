//! A sandbox's main command, while the gateway that is to start it dies again and again.

use std::time::Duration;

use anyhow::Context;
use holdfast_gateway::sandboxes::ConditionKind;
use holdfast_tests::sim::{Plot, Script, World};
use holdfast_wire::{
    api::{ConditionStatus, ExecState, MainCommand, SandboxSpec},
    ids::{ExecId, Generation},
};
use rand::RngExt as _;

use crate::run::{SECOND, simulate};

/// Wherever the gateway is killed (before the start was stored, before it was sent, before it was answered, while it
/// runs), the next one makes it begin, or finds that it has: once.
#[test]
fn it_is_begun_once_wherever_its_gateway_is_killed() {
    simulate("it_is_begun_once_wherever_its_gateway_is_killed", 20, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        let script = Script::new().emit(300).sleep(40 * SECOND).exit(7);
        let main = Some(MainCommand { args: vec![script.text()] });
        let number = world.add(SandboxSpec { main, ..SandboxSpec::default() }).await?;
        let id = world.sandboxes[number].id;
        let exec = ExecId::of_main(id, Generation(1));
        for _ in 0..world.random.random_range(1..4) {
            let after = Duration::from_micros(world.random.random_range(0..120_000));
            world.pass(after).await;
            world.kill_gateway()?;
            let away = Duration::from_millis(world.random.random_range(1..3000));
            world.pass(away).await;
            world.start_gateway().await?;
        }
        world.ready(number, 60 * SECOND).await?;
        let core = &world.gateway()?.core;
        let ended = core.execs.wait(&id.to_string(), exec, Some(60 * SECOND)).await?;
        anyhow::ensure!(ended.state() == ExecState::Ended, "{ended:?}\n{}", world.story());
        let outcome = ended.outcome.and_then(|outcome| outcome.kind);
        anyhow::ensure!(outcome == Some(script.outcome()), "{outcome:?}\n{}", world.story());
        let starts = world.sandboxes[number].inside.starts(exec);
        anyhow::ensure!(starts == 1, "begun {starts} times\n{}", world.story());

        // One that comes later finds it ended, and leaves it so.
        world.kill_gateway()?;
        world.start_gateway().await?;
        world.ready(number, 60 * SECOND).await?;
        world.pass(10 * SECOND).await;
        let handle = world.gateway()?.core.sandboxes.by_id(id).context("it is known")?;
        let view = handle.now();
        let told = view.condition(ConditionKind::MainCommand).context("it has a main command")?;
        anyhow::ensure!(
            (told.status, told.reason.as_str(), told.message.as_str())
                == (ConditionStatus::False, "Exited", "exit code 7"),
            "{told:?}\n{}",
            world.story()
        );
        anyhow::ensure!(world.sandboxes[number].inside.starts(exec) == 1, "{}", world.story());
        Ok(())
    });
}
