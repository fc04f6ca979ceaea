//! Sandboxes that are paused and resumed, that run out of their time, and that nobody uses, while the network and the
//! gateway have days of their own.

use std::time::Duration;

use holdfast_gateway::sandboxes::SandboxHandle;
use holdfast_tests::sim::{Plot, Script, Way, World};
use holdfast_wire::api::{LostReason, Phase, SandboxSpec, outcome::Kind};

use crate::run::{SECOND, simulate};

const HOUR: Duration = Duration::from_secs(3600);

fn paused_world(seed: u64) -> Plot {
    Plot { pauses: true, ..Plot::new(seed) }
}

/// A sandbox that only exists: its supervisor never dials.
async fn bare(world: &World, name: &str, spec: SandboxSpec) -> anyhow::Result<SandboxHandle> {
    let sandboxes = &world.gateway()?.core.sandboxes;
    sandboxes.create(name, spec).await?;
    Ok(sandboxes.resolve(name)?)
}

fn span(span: Duration) -> Option<prost_types::Duration> {
    span.try_into().ok()
}

/// Waits until it is over with a sandbox, and says after how long.
async fn gone(handle: &SandboxHandle, within: Duration) -> anyhow::Result<Duration> {
    let began = tokio::time::Instant::now();
    tokio::time::timeout(within, handle.view().wait_for(|view| view.gone)).await??;
    Ok(began.elapsed())
}

fn reasons(world: &World, handle: &SandboxHandle) -> anyhow::Result<Vec<(String, String)>> {
    let past = world.gateway()?.core.events.past(Some(handle.id()), 0);
    Ok(past.iter().map(|event| (event.reason.to_owned(), event.message.clone())).collect())
}

#[test]
fn a_pause_within_the_idle_timeout_costs_the_caller_nothing_but_time() {
    simulate("a_pause_within_the_idle_timeout_costs_the_caller_nothing_but_time", 3, async |seed| {
        let mut world = World::begin(paused_world(seed)).await?;
        world.start(0, Script::new().talk(40, 300, SECOND).exit(4));
        world.pass(5 * SECOND).await;
        let epoch = world.epoch(0)?;
        world.pause(0).await?;
        // Longer than the bound for attached callers, which does not count while it is paused.
        world.pass(14 * SECOND).await;
        world.resume(0, 14 * SECOND).await?;
        world.ready(0, 10 * SECOND).await?;
        anyhow::ensure!(world.epoch(0)? <= epoch + 1, "more than one new session\n{}", world.story());
        world.check().await?;
        Ok(())
    });
}

#[test]
fn a_sandbox_resumed_after_hours_is_ready_at_once_and_its_callers_get_the_truth() {
    simulate(
        "a_sandbox_resumed_after_hours_is_ready_at_once_and_its_callers_get_the_truth",
        1,
        async |seed| {
            let mut world = World::begin(paused_world(seed)).await?;
            world.start(0, Script::new().emit(2000).sleep(3 * HOUR).emit(100).exit(5));
            world.pass(5 * SECOND).await;
            world.pause(0).await?;
            world.pass(2 * HOUR).await;
            world.phase(0, Phase::Paused, SECOND).await?;
            world.resume(0, 2 * HOUR).await?;
            world.ready(0, 10 * SECOND).await?;
            world.check().await?;
            Ok(())
        },
    );
}

#[test]
fn a_pause_across_a_partition_ends_ready() {
    simulate("a_pause_across_a_partition_ends_ready", 3, async |seed| {
        let mut world = World::begin(paused_world(seed)).await?;
        world.start(0, Script::new().sleep(200 * SECOND).emit(500).exit(6));
        world.pass(5 * SECOND).await;
        // The notice does not arrive, and neither does anything else for a while. (Not a silence by the book: who is
        // attached to a paused sandbox is not told after 10 s.)
        let host = world.sandboxes[0].host;
        world.net.blackhole(host, Way::Both, true);
        world.pass(SECOND * u32::try_from(seed)? * 5).await;
        world.pause(0).await?;
        world.pass(80 * SECOND).await;
        world.phase(0, Phase::Paused, SECOND).await?;
        world.resume(0, 80 * SECOND).await?;
        world.ready(0, 10 * SECOND).await?;
        world.check().await?;
        Ok(())
    });
}

#[test]
fn a_resume_into_a_dead_path_says_so_within_its_deadline_and_recovers_by_itself() {
    simulate(
        "a_resume_into_a_dead_path_says_so_within_its_deadline_and_recovers_by_itself",
        2,
        async |seed| {
            let mut world = World::begin(paused_world(seed)).await?;
            world.pause(0).await?;
            world.pass(60 * SECOND).await;
            world.resume(0, 60 * SECOND).await?;
            world.blackhole(0, Way::Both);
            world.phase(0, Phase::Resuming, SECOND).await?;
            world.phase(0, Phase::Degraded, 61 * SECOND).await?;
            let view =
                world.gateway()?.core.sandboxes.by_id(world.sandboxes[0].id).map(|handle| handle.now());
            let told = view.map(|view| format!("{}: {}", view.reason, view.message)).unwrap_or_default();
            anyhow::ensure!(told.starts_with("ResumeDeadline: "), "{told}");
            world.heal(0);
            world.ready(0, 45 * SECOND).await?;
            world.check().await?;
            Ok(())
        },
    );
}

#[test]
fn a_gateway_that_restarts_while_a_sandbox_is_paused_leaves_it_paused() {
    simulate("a_gateway_that_restarts_while_a_sandbox_is_paused_leaves_it_paused", 3, async |seed| {
        let mut world = World::begin(paused_world(seed)).await?;
        world.start(0, Script::new().sleep(300 * SECOND).emit(500).exit(7));
        world.pass(5 * SECOND).await;
        world.pause(0).await?;
        world.pass(SECOND * u32::try_from(seed)? * 10).await;
        world.kill_gateway()?;
        world.pass(10 * SECOND).await;
        world.start_gateway().await?;
        world.phase(0, Phase::Paused, 5 * SECOND).await?;
        world.pass(60 * SECOND).await;
        world.phase(0, Phase::Paused, SECOND).await?;
        world.resume(0, 120 * SECOND).await?;
        world.ready(0, 10 * SECOND).await?;
        world.check().await?;
        Ok(())
    });
}

/// The session is away, the caller waits to attach again, and the sandbox's time is over: it is deleted all the same,
/// and the exec has a named end.
#[test]
fn a_ttl_that_ends_while_the_session_is_lost_deletes_and_ends_its_execs() {
    simulate("a_ttl_that_ends_while_the_session_is_lost_deletes_and_ends_its_execs", 2, async |seed| {
        let mut world = World::begin(Plot { sandboxes: 2, ..Plot::new(seed) }).await?;
        let id = world.sandboxes[1].id;
        world.start(1, Script::new().emit(10).sleep(10 * HOUR).exit(1));
        world.pass(5 * SECOND).await;
        world.gateway()?.core.sandboxes.update(&id.to_string(), span(HOUR), None).await?;
        let handle = world.gateway()?.core.sandboxes.resolve(&id.to_string())?;
        world.pass(HOUR / 2).await;
        world.blackhole(1, Way::Both);
        let after = gone(&handle, HOUR).await?;
        anyhow::ensure!(after <= HOUR / 2 + 30 * SECOND, "deleted only after {after:?}");
        let [record] = &world.finish(60 * SECOND).await?[..] else { anyhow::bail!("one call") };
        // The caller is told the outcome, or that it goes, whatever came first; what is stored is the outcome.
        let told = record.gave_up.clone().unwrap_or_default();
        anyhow::ensure!(record.outcome.is_some() || told.contains("is Deleting (Stopping"), "{told}");
        let stored = world.gateway()?.core.execs.wait(&id.to_string(), record.plan.exec, None).await?;
        let Some(Kind::Lost(lost)) = stored.outcome.and_then(|outcome| outcome.kind) else {
            anyhow::bail!("no outcome is stored");
        };
        anyhow::ensure!(
            [LostReason::SandboxDeleted, LostReason::WorkloadGone].contains(&lost.reason()),
            "{lost:?}"
        );
        let told = reasons(&world, &handle)?;
        anyhow::ensure!(
            told.iter().any(|(reason, why)| reason == "Expired" && why.contains("time to live")),
            "{told:?}"
        );
        Ok(())
    });
}

#[test]
fn a_ttl_holds_over_restarts_and_is_never_renewed_by_use() {
    simulate("a_ttl_holds_over_restarts_and_is_never_renewed_by_use", 2, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        let spec = SandboxSpec { ttl: span(3 * HOUR), ..SandboxSpec::default() };
        let began = tokio::time::Instant::now();
        let handle = bare(&world, "short", spec).await?;
        for _ in 0..2 {
            world.pass(HOUR).await;
            world.kill_gateway()?;
            world.pass(SECOND).await;
            world.start_gateway().await?;
            // Whoever comes, starts, stops or looks changes nothing about it.
            let sandboxes = &world.gateway()?.core.sandboxes;
            sandboxes.stop("short", Duration::ZERO).await?;
            sandboxes.resolve("short")?.view().wait_for(|view| view.phase == Phase::Stopped).await?;
            sandboxes.start_workload("short").await?;
        }
        drop(handle);
        let handle = world.gateway()?.core.sandboxes.resolve("short")?;
        gone(&handle, 2 * HOUR).await?;
        let lived = began.elapsed();
        anyhow::ensure!(lived >= 3 * HOUR && lived < 3 * HOUR + 10 * SECOND, "it lived {lived:?}");
        world.check().await?;
        Ok(())
    });
}

#[test]
fn a_ttl_that_ends_while_no_gateway_runs_is_kept_by_the_next_one() {
    simulate("a_ttl_that_ends_while_no_gateway_runs_is_kept_by_the_next_one", 2, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        let spec = SandboxSpec { ttl: span(HOUR), ..SandboxSpec::default() };
        bare(&world, "short", spec).await?;
        world.pass(10 * SECOND).await;
        world.kill_gateway()?;
        world.pass(2 * HOUR).await;
        world.start_gateway().await?;
        let handle = world.gateway()?.core.sandboxes.resolve("short")?;
        gone(&handle, 10 * SECOND).await?;
        world.check().await?;
        Ok(())
    });
}

/// A silent hour of a command that nobody is attached to is activity; the time after it is not.
#[test]
fn a_sandbox_is_stopped_when_nothing_has_happened_in_it_and_not_before() {
    simulate("a_sandbox_is_stopped_when_nothing_has_happened_in_it_and_not_before", 1, async |seed| {
        let mut world = World::begin(Plot::new(seed)).await?;
        let id = world.sandboxes[0].id.to_string();
        world.gateway()?.core.sandboxes.update(&id, None, span(HOUR / 4)).await?;
        world.start(0, Script::new().emit(5).sleep(HOUR).exit(2));
        world.pass(HOUR / 2).await;
        // The gateway knows of the command by its store alone, until the supervisor is back.
        world.kill_gateway()?;
        world.pass(SECOND).await;
        world.start_gateway().await?;
        world.pass(90 * SECOND).await;
        world.ready(0, SECOND).await?;
        world.finish(4 * HOUR).await?;
        let ended = tokio::time::Instant::now();
        world.phase(0, Phase::Stopped, HOUR).await?;
        let idle = ended.elapsed();
        anyhow::ensure!(idle >= HOUR / 4 && idle < HOUR / 4 + 30 * SECOND, "stopped after {idle:?}");
        let handle = world.gateway()?.core.sandboxes.resolve(&id)?;
        anyhow::ensure!(handle.now().reason == "IdleStop", "{:?}", handle.now());
        let told = reasons(&world, &handle)?;
        anyhow::ensure!(
            told.iter().any(
                |(reason, why)| reason == "IdleStopped" && why.contains("nothing happened in it for 15m")
            ),
            "{told:?}"
        );
        Ok(())
    });
}

/// While it is paused or the path is dark with a command running, no time counts.
#[test]
fn neither_a_pause_nor_a_dark_path_makes_a_sandbox_idle() {
    simulate("neither_a_pause_nor_a_dark_path_makes_a_sandbox_idle", 1, async |seed| {
        let mut world = World::begin(paused_world(seed)).await?;
        let id = world.sandboxes[0].id.to_string();
        world.gateway()?.core.sandboxes.update(&id, None, span(HOUR / 4)).await?;
        world.pause(0).await?;
        world.pass(HOUR).await;
        world.phase(0, Phase::Paused, SECOND).await?;
        world.resume(0, HOUR).await?;
        world.ready(0, 10 * SECOND).await?;
        world.start(0, Script::new().sleep(HOUR).emit(5).exit(3));
        world.pass(10 * SECOND).await;
        world.blackhole(0, Way::Both);
        world.pass(HOUR / 2).await;
        world.phase(0, Phase::Reconnecting, SECOND).await?;
        world.heal(0);
        world.finish(2 * HOUR).await?;
        world.gateway()?.core.sandboxes.update(&id, None, span(Duration::ZERO)).await?;
        world.check().await?;
        Ok(())
    });
}
