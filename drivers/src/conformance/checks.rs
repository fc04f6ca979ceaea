//! The facts themselves.
//!
//! Each check makes its own sandboxes and removes them, so that checks may run side by side over one harness.
//! Waiting is on the driver's watch, never on time; the harness's patience only ends a wait that is in vain.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use holdfast_wire::ids::{Generation, SandboxId};
use tokio::time::timeout;

use super::{Check, CheckResult, Harness, Verdict};
use crate::{
    ComputeDriver, DriverError, ErrorKind, Exit, Observed, ObservedStream, Origin, WorkloadSpec,
    WorkloadState,
};

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        /// Every check, in the order of a workload's life.
        pub const CHECKS: &[Check] = &[$(Check { name: stringify!($name), run: |harness| $name(harness).boxed() }),*];
    };
}

checks![
    ensure_is_idempotent,
    concurrent_ensures_make_one_workload,
    an_older_generation_is_refused,
    a_newer_generation_takes_over_the_workspace,
    delete_is_idempotent,
    list_shows_what_ensure_made,
    a_boot_is_told_stage_by_stage,
    stop_keeps_the_workspace,
    stop_is_idempotent,
    start_after_stop_has_the_same_workspace,
    workload_death_is_observed,
    a_dead_generation_stays_dead,
    adoption_after_reopen,
    a_death_between_two_drivers_is_observed,
    pause_is_observed,
    a_paused_workload_can_be_stopped,
    a_paused_workload_can_be_deleted,
    watch_repeats_levels,
    watchers_are_told_what_is_gone,
    logs_tail_is_bounded,
    nothing_is_left_after_delete,
    spec_errors_name_the_field,
    what_is_not_there_is_not_found,
    two_sandboxes_do_not_meet,
    a_closed_driver_says_unavailable,
];

/// Enough for a supervisor that listens to being asked. One that was started a moment ago may not yet, so it is short.
const GRACE: Duration = Duration::from_secs(2);

macro_rules! hold {
    ($fact:expr, $($seen:tt)+) => {
        if !$fact {
            return Err(format!($($seen)+));
        }
    };
}

async fn ensure_is_idempotent(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let first = driver.ensure(&spec).await.map_err(said)?;
    hold!(first.origin == Origin::Created, "the first ensure says {:?}", first.origin);
    hold!(first.observed.state == WorkloadState::Running, "a new workload is {:?}", first.observed);
    let second = driver.ensure(&spec).await.map_err(said)?;
    hold!(second.origin == Origin::Adopted, "the second ensure says {:?}", second.origin);
    hold!(same(&second.observed, &first.observed), "{:?}, then {:?}", first.observed, second.observed);
    end(&*driver, &spec).await
}

async fn concurrent_ensures_make_one_workload(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let all = futures::future::join_all((0..8).map(|_| driver.ensure(&spec))).await;
    let all = all.into_iter().collect::<Result<Vec<_>, _>>().map_err(said)?;
    let created = all.iter().filter(|workload| workload.origin == Origin::Created).count();
    hold!(created == 1, "{created} of 8 calls say that they made the workload");
    let now = level(&*driver, spec.sandbox).await?;
    hold!(all.iter().all(|workload| workload.observed.handle == now.handle), "several workloads: {all:?}");
    end(&*driver, &spec).await
}

async fn an_older_generation_is_refused(harness: &dyn Harness) -> CheckResult {
    let (driver, mut spec) = begin(harness).await;
    spec.generation = Generation(5);
    let made = driver.ensure(&spec).await.map_err(said)?;
    let older = WorkloadSpec { generation: Generation(4), ..spec.clone() };
    refused(driver.ensure(&older).await, ErrorKind::Conflict)?;
    let now = level(&*driver, spec.sandbox).await?;
    hold!(same(&now, &made.observed), "the refused call changed {:?} into {now:?}", made.observed);
    end(&*driver, &spec).await
}

async fn a_newer_generation_takes_over_the_workspace(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let old = driver.ensure(&spec).await.map_err(said)?.observed;
    harness.write_file(spec.sandbox, "kept", Bytes::from_static(b"by the first")).await;
    let newer = WorkloadSpec { generation: spec.generation.next(), ..spec.clone() };
    let made = driver.ensure(&newer).await.map_err(said)?;
    hold!(made.origin == Origin::Created, "ensure of a newer generation says {:?}", made.origin);
    hold!(made.observed.state == WorkloadState::Running, "the newer workload is {:?}", made.observed);
    hold!(made.observed.generation == newer.generation, "the newer workload is {:?}", made.observed);
    hold!(made.observed.handle != old.handle, "both generations are {:?}", old.handle);
    kept(harness, &spec, b"by the first").await?;
    end(&*driver, &spec).await
}

async fn delete_is_idempotent(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    driver.delete(spec.sandbox).await.map_err(said)?;
    driver.ensure(&spec).await.map_err(said)?;
    driver.delete(spec.sandbox).await.map_err(said)?;
    end(&*driver, &spec).await
}

async fn a_boot_is_told_stage_by_stage(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let wanted = driver.capabilities().boot;
    hold!(wanted.is_sorted() && !wanted.is_empty(), "the stages of a boot are {wanted:?}");
    let mut watch = driver.watch().await.map_err(said)?;
    driver.ensure(&spec).await.map_err(said)?;
    let told = |level: &Observed| level.boot.stages().collect::<Vec<_>>();
    let settled = |level: &Observed| told(level) == wanted || !wanted.starts_with(&told(level));
    let level = seen(harness, &mut watch, spec.sandbox, settled).await?;
    hold!(told(&level) == wanted, "{:?} was told of {wanted:?}", told(&level));
    end(&*driver, &spec).await
}

async fn list_shows_what_ensure_made(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let made = driver.ensure(&spec).await.map_err(said)?.observed;
    let listed = level(&*driver, spec.sandbox).await?;
    hold!(same(&listed, &made), "ensure says {made:?}, list says {listed:?}");
    driver.delete(spec.sandbox).await.map_err(said)?;
    let listed = driver.list().await.map_err(said)?;
    hold!(
        listed.iter().all(|observed| observed.sandbox != spec.sandbox),
        "listed after its removal: {listed:?}"
    );
    Ok(Verdict::Holds)
}

async fn stop_keeps_the_workspace(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let mut watch = driver.watch().await.map_err(said)?;
    driver.ensure(&spec).await.map_err(said)?;
    harness.write_file(spec.sandbox, "kept", Bytes::from_static(b"through a stop")).await;
    driver.stop(spec.sandbox, GRACE).await.map_err(said)?;
    let now = level(&*driver, spec.sandbox).await?;
    hold!(now.state == WorkloadState::Stopped, "after stop the workload is {now:?}");
    seen(harness, &mut watch, spec.sandbox, |observed| observed.state == WorkloadState::Stopped).await?;
    kept(harness, &spec, b"through a stop").await?;
    end(&*driver, &spec).await
}

async fn stop_is_idempotent(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    driver.ensure(&spec).await.map_err(said)?;
    let (one, other) = tokio::join!(driver.stop(spec.sandbox, GRACE), driver.stop(spec.sandbox, GRACE));
    one.and(other).map_err(said)?;
    driver.stop(spec.sandbox, GRACE).await.map_err(said)?;
    let again = driver.ensure(&spec).await.map_err(said)?;
    hold!(again.origin == Origin::Adopted, "a stopped generation was made again: {again:?}");
    hold!(again.observed.state == WorkloadState::Stopped, "a stopped generation came back as {again:?}");
    end(&*driver, &spec).await
}

async fn start_after_stop_has_the_same_workspace(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    if !driver.capabilities().stop_start {
        return Ok(Verdict::Unsupported);
    }
    driver.ensure(&spec).await.map_err(said)?;
    harness.write_file(spec.sandbox, "kept", Bytes::from_static(b"through stop and start")).await;
    driver.stop(spec.sandbox, GRACE).await.map_err(said)?;
    let newer = WorkloadSpec { generation: spec.generation.next(), ..spec.clone() };
    let made = driver.ensure(&newer).await.map_err(said)?;
    hold!(made.observed.state == WorkloadState::Running, "after the start the workload is {made:?}");
    kept(harness, &spec, b"through stop and start").await?;
    end(&*driver, &spec).await
}

async fn workload_death_is_observed(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let mut watch = driver.watch().await.map_err(said)?;
    let made = driver.ensure(&spec).await.map_err(said)?.observed;
    harness.kill(&made).await;
    let dead = seen(harness, &mut watch, spec.sandbox, |observed| exit_of(observed).is_some()).await?;
    hold!(dead.generation == spec.generation, "the death is told of generation {}", dead.generation);
    hold!(!dead.reason.is_empty() && !dead.reason.contains(' '), "the reason is {:?}", dead.reason);
    let listed = level(&*driver, spec.sandbox).await?;
    hold!(listed.same_level(&dead), "watch says {dead:?}, list says {listed:?}");
    end(&*driver, &spec).await
}

async fn a_dead_generation_stays_dead(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let mut watch = driver.watch().await.map_err(said)?;
    let made = driver.ensure(&spec).await.map_err(said)?.observed;
    harness.kill(&made).await;
    seen(harness, &mut watch, spec.sandbox, |observed| exit_of(observed).is_some()).await?;
    let again = driver.ensure(&spec).await.map_err(said)?;
    hold!(again.origin == Origin::Adopted, "a dead generation was made again: {again:?}");
    hold!(exit_of(&again.observed).is_some(), "a dead generation came back as {again:?}");
    let newer = WorkloadSpec { generation: spec.generation.next(), ..spec.clone() };
    let newer = driver.ensure(&newer).await.map_err(said)?;
    hold!(newer.observed.state == WorkloadState::Running, "the next generation is {newer:?}");
    end(&*driver, &spec).await
}

async fn adoption_after_reopen(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    if !driver.capabilities().adoption {
        return Ok(Verdict::Unsupported);
    }
    let made = driver.ensure(&spec).await.map_err(said)?.observed;
    harness.write_file(spec.sandbox, "kept", Bytes::from_static(b"through a restart")).await;
    driver.close().await;
    drop(driver);

    let driver = harness.open().await;
    let mut watch = driver.watch().await.map_err(said)?;
    let found = level(&*driver, spec.sandbox).await?;
    hold!(found.state == WorkloadState::Running, "after the restart the workload is {found:?}");
    hold!(found.handle == made.handle && found.generation == made.generation, "{made:?} became {found:?}");
    let adopted = driver.ensure(&spec).await.map_err(said)?;
    hold!(adopted.origin == Origin::Adopted, "the running workload was made again: {adopted:?}");
    hold!(adopted.observed.handle == made.handle, "another workload: {adopted:?}");
    kept(harness, &spec, b"through a restart").await?;

    // An adopted workload is watched, and can be ended, like any other.
    harness.kill(&found).await;
    seen(harness, &mut watch, spec.sandbox, |observed| exit_of(observed).is_some()).await?;
    end(&*driver, &spec).await
}

async fn a_death_between_two_drivers_is_observed(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    if !driver.capabilities().adoption {
        return Ok(Verdict::Unsupported);
    }
    let made = driver.ensure(&spec).await.map_err(said)?.observed;
    driver.close().await;
    drop(driver);
    harness.kill(&made).await;

    let driver = harness.open().await;
    let mut watch = driver.watch().await.map_err(said)?;
    let dead = seen(harness, &mut watch, spec.sandbox, |observed| !observed.state.is_alive()).await?;
    hold!(exit_of(&dead).is_some(), "it died while nobody watched, and is {dead:?}");
    end(&*driver, &spec).await
}

async fn pause_is_observed(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let mut watch = driver.watch().await.map_err(said)?;
    driver.ensure(&spec).await.map_err(said)?;
    if !driver.capabilities().pause {
        refused(driver.pause(spec.sandbox).await, ErrorKind::Unsupported)?;
        refused(driver.resume(spec.sandbox).await, ErrorKind::Unsupported)?;
        end(&*driver, &spec).await?;
        return Ok(Verdict::Unsupported);
    }
    driver.resume(spec.sandbox).await.map_err(said)?;
    for _ in 0..2 {
        driver.pause(spec.sandbox).await.map_err(said)?;
        driver.pause(spec.sandbox).await.map_err(said)?;
        seen(harness, &mut watch, spec.sandbox, |observed| observed.state == WorkloadState::Paused).await?;
        let now = level(&*driver, spec.sandbox).await?;
        hold!(now.state == WorkloadState::Paused, "after pause the workload is {now:?}");
        driver.resume(spec.sandbox).await.map_err(said)?;
        driver.resume(spec.sandbox).await.map_err(said)?;
        seen(harness, &mut watch, spec.sandbox, |observed| observed.state == WorkloadState::Running).await?;
    }
    driver.stop(spec.sandbox, GRACE).await.map_err(said)?;
    refused(driver.pause(spec.sandbox).await, ErrorKind::Conflict)?;
    refused(driver.resume(spec.sandbox).await, ErrorKind::Conflict)?;
    end(&*driver, &spec).await
}

async fn a_paused_workload_can_be_stopped(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    if !driver.capabilities().pause {
        return Ok(Verdict::Unsupported);
    }
    driver.ensure(&spec).await.map_err(said)?;
    driver.pause(spec.sandbox).await.map_err(said)?;
    driver.stop(spec.sandbox, GRACE).await.map_err(said)?;
    let now = level(&*driver, spec.sandbox).await?;
    hold!(now.state == WorkloadState::Stopped, "after stop the workload is {now:?}");
    end(&*driver, &spec).await
}

async fn a_paused_workload_can_be_deleted(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    if !driver.capabilities().pause {
        return Ok(Verdict::Unsupported);
    }
    let made = driver.ensure(&spec).await.map_err(said)?.observed;
    driver.pause(spec.sandbox).await.map_err(said)?;
    driver.delete(spec.sandbox).await.map_err(said)?;
    let left = harness.leftovers(&made).await;
    hold!(left.is_empty(), "left after the removal of a paused workload: {left:?}");
    Ok(Verdict::Holds)
}

async fn watch_repeats_levels(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let made = driver.ensure(&spec).await.map_err(said)?.observed;
    for _ in 0..2 {
        let mut watch = driver.watch().await.map_err(said)?;
        let first = seen(harness, &mut watch, spec.sandbox, |_| true).await?;
        hold!(same(&first, &made), "ensure says {made:?}, a new watch says {first:?}");
    }
    end(&*driver, &spec).await
}

async fn watchers_are_told_what_is_gone(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let mut watch = driver.watch().await.map_err(said)?;
    driver.ensure(&spec).await.map_err(said)?;
    seen(harness, &mut watch, spec.sandbox, |observed| observed.state == WorkloadState::Running).await?;
    driver.delete(spec.sandbox).await.map_err(said)?;
    seen(harness, &mut watch, spec.sandbox, |observed| observed.state == WorkloadState::Gone).await?;
    Ok(Verdict::Holds)
}

async fn logs_tail_is_bounded(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    driver.ensure(&spec).await.map_err(said)?;
    if !driver.capabilities().logs {
        refused(driver.logs(spec.sandbox, 10).await, ErrorKind::Unsupported)?;
        end(&*driver, &spec).await?;
        return Ok(Verdict::Unsupported);
    }
    harness.write_console(spec.sandbox, Bytes::from(format!("{}the end\n", "x".repeat(4096)))).await;
    let tail = driver.logs(spec.sandbox, 8).await.map_err(said)?;
    hold!(&tail[..] == b"the end\n", "the last 8 bytes are {tail:?}");
    let tail = driver.logs(spec.sandbox, 1000).await.map_err(said)?;
    hold!(tail.len() == 1000, "asked for 1000 bytes of more than 4096, got {}", tail.len());
    let tail = driver.logs(spec.sandbox, 0).await.map_err(said)?;
    hold!(tail.is_empty(), "asked for nothing, got {} bytes", tail.len());
    driver.stop(spec.sandbox, GRACE).await.map_err(said)?;
    let tail = driver.logs(spec.sandbox, usize::MAX).await.map_err(said)?;
    hold!(tail.len() > 4096, "of a stopped workload's console {} bytes are left", tail.len());
    end(&*driver, &spec).await
}

async fn nothing_is_left_after_delete(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let made = driver.ensure(&spec).await.map_err(said)?.observed;
    harness.write_file(spec.sandbox, "file", Bytes::from_static(b"content")).await;
    driver.delete(spec.sandbox).await.map_err(said)?;
    let left = harness.leftovers(&made).await;
    hold!(left.is_empty(), "left after the removal: {left:?}");
    refused(driver.logs(spec.sandbox, 1).await, ErrorKind::NotFound)?;

    // The same sandbox may come again, and finds an empty workspace.
    driver.ensure(&spec).await.map_err(said)?;
    let file = harness.read_file(spec.sandbox, "file").await;
    hold!(file.is_none(), "the new workspace has a file of the removed one");
    end(&*driver, &spec).await
}

async fn spec_errors_name_the_field(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    driver.validate(&spec).await.map_err(said)?;
    let mut wrong = harness.invalid_specs();
    wrong.push((WorkloadSpec { name: "../up".into(), ..spec.clone() }, "name"));
    wrong.push((WorkloadSpec { generation: Generation(0), ..spec.clone() }, "generation"));
    wrong.push((WorkloadSpec { bootstrap: Default::default(), ..spec.clone() }, "bootstrap.addresses"));
    for (spec, field) in wrong {
        for answer in [driver.validate(&spec).await, driver.ensure(&spec).await.map(drop)] {
            match answer {
                Err(DriverError::InvalidSpec { field: named, .. }) if named == field => {}
                other => return Err(format!("{field} is wrong, the answer is {other:?}")),
            }
        }
    }
    let listed = driver.list().await.map_err(said)?;
    hold!(listed.iter().all(|observed| observed.sandbox != spec.sandbox), "a refused spec left {listed:?}");
    Ok(Verdict::Holds)
}

async fn what_is_not_there_is_not_found(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let capabilities = driver.capabilities();
    refused(driver.stop(spec.sandbox, GRACE).await, ErrorKind::NotFound)?;
    if capabilities.pause {
        refused(driver.pause(spec.sandbox).await, ErrorKind::NotFound)?;
        refused(driver.resume(spec.sandbox).await, ErrorKind::NotFound)?;
    }
    if capabilities.logs {
        refused(driver.logs(spec.sandbox, 10).await, ErrorKind::NotFound)?;
    }
    end(&*driver, &spec).await
}

async fn two_sandboxes_do_not_meet(harness: &dyn Harness) -> CheckResult {
    let (driver, one) = begin(harness).await;
    let other = harness.spec();
    let (made, kept_made) = tokio::join!(driver.ensure(&one), driver.ensure(&other));
    let (made, kept_made) = (made.map_err(said)?.observed, kept_made.map_err(said)?.observed);
    hold!(made.handle != kept_made.handle, "two sandboxes, one workload: {made:?}");
    harness.write_file(other.sandbox, "kept", Bytes::from_static(b"the other's")).await;
    hold!(harness.read_file(one.sandbox, "kept").await.is_none(), "two sandboxes, one workspace");
    driver.stop(one.sandbox, GRACE).await.map_err(said)?;
    driver.delete(one.sandbox).await.map_err(said)?;
    let now = level(&*driver, other.sandbox).await?;
    hold!(same(&now, &kept_made), "the other sandbox went from {kept_made:?} to {now:?}");
    kept(harness, &other, b"the other's").await?;
    end(&*driver, &other).await
}

async fn a_closed_driver_says_unavailable(harness: &dyn Harness) -> CheckResult {
    let (driver, spec) = begin(harness).await;
    let mut watch = driver.watch().await.map_err(said)?;
    driver.close().await;
    let ended = timeout(harness.patience(), async { while watch.next().await.is_some() {} }).await;
    hold!(ended.is_ok(), "the watch goes on after close");
    refused(driver.ensure(&spec).await, ErrorKind::Unavailable)?;
    refused(driver.list().await, ErrorKind::Unavailable)?;
    refused(driver.delete(spec.sandbox).await, ErrorKind::Unavailable)?;
    Ok(Verdict::Holds)
}

async fn begin(harness: &dyn Harness) -> (Arc<dyn ComputeDriver>, WorkloadSpec) {
    (harness.open().await, harness.spec())
}

async fn end(driver: &dyn ComputeDriver, spec: &WorkloadSpec) -> CheckResult {
    driver.delete(spec.sandbox).await.map_err(said)?;
    driver.delete(spec.sandbox).await.map_err(said)?;
    Ok(Verdict::Holds)
}

/// Whether two levels say the same but for how far the boot is, which goes on by itself.
fn same(one: &Observed, other: &Observed) -> bool {
    one.same_level(&Observed { boot: one.boot.clone(), ..other.clone() })
}

/// The level that `list` gives.
async fn level(driver: &dyn ComputeDriver, sandbox: SandboxId) -> Result<Observed, String> {
    let mut listed = driver.list().await.map_err(said)?;
    listed.retain(|observed| observed.sandbox == sandbox);
    match <[Observed; 1]>::try_from(listed) {
        Ok([observed]) => Ok(observed),
        Err(listed) => Err(format!("list shows the workload {} times: {listed:?}", listed.len())),
    }
}

/// Waits for a level of the sandbox on the watch.
async fn seen(
    harness: &dyn Harness,
    watch: &mut ObservedStream,
    sandbox: SandboxId,
    wanted: impl Fn(&Observed) -> bool,
) -> Result<Observed, String> {
    let mut last = None;
    let wait = async {
        while let Some(observed) = watch.next().await {
            if observed.sandbox != sandbox {
                continue;
            }
            if wanted(&observed) {
                return Some(observed);
            }
            last = Some(observed);
        }
        None
    };
    match timeout(harness.patience(), wait).await {
        Ok(Some(observed)) => Ok(observed),
        Ok(None) => Err(format!("the watch ended; the last level was {last:?}")),
        Err(_) => Err(format!("not seen within {:?}; the last level was {last:?}", harness.patience())),
    }
}

async fn kept(harness: &dyn Harness, spec: &WorkloadSpec, content: &'static [u8]) -> Result<(), String> {
    let file = harness.read_file(spec.sandbox, "kept").await;
    hold!(file.as_deref() == Some(content), "the workspace's file is {file:?}");
    Ok(())
}

fn refused<T: std::fmt::Debug>(answer: Result<T, DriverError>, kind: ErrorKind) -> Result<(), String> {
    match answer {
        Err(error) if error.kind() == kind => Ok(()),
        other => Err(format!("expected a refusal of kind {kind:?}, got {other:?}")),
    }
}

fn exit_of(observed: &Observed) -> Option<Exit> {
    match observed.state {
        WorkloadState::Exited(exit) => Some(exit),
        _ => None,
    }
}

fn said(error: DriverError) -> String {
    format!("unexpected error: {error}")
}
