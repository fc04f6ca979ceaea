//! Opening: what an earlier supervisor process left is taken over before the first relay is served.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::Duration,
};

use holdfast_wire::{
    api::{ExecState, Lost, LostReason, Outcome, outcome::Kind},
    spec::Times,
    timing,
};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ExecsConfig, ExecsError, HELD_PIPES, Inner,
    exec::{Exec, now},
    signs::Signs,
    spawn::Spawner,
    spool::{Disk, Recovered, recover},
    table::Table,
};

pub(super) async fn open(config: ExecsConfig, token: CancellationToken) -> Result<Arc<Inner>, ExecsError> {
    let disk = Arc::new(Disk::new(&config.state_dir, config.spool.total_bytes));
    let (shelf, spawner) = (Arc::clone(&disk), Arc::clone(&config.spawner));
    let recovered = tokio::task::spawn_blocking(move || take_over(&shelf, &*spawner)).await;
    let recovered = recovered.map_err(|error| ExecsError::Recovery {
        state_dir: config.state_dir.clone(),
        message: error.to_string(),
    })?;
    let table = Table::default();
    for (one, remaining) in recovered {
        let Recovered { record, spool } = one;
        spool.retire();
        let retain_for = Duration::from_millis(record.retain_for_ms);
        let times = Times { timeout: None, kill_grace: timing::KILL_GRACE, retain_for };
        table.adopt(|serial| Exec::recovered(serial, &record, times, spool, Instant::now() + remaining));
    }
    let inner = Arc::new(Inner {
        max_execs: AtomicUsize::new(config.max_execs.max(1)),
        stopping: AtomicBool::new(false),
        revision: watch::Sender::new(0),
        running: watch::Sender::new(0),
        signs: Signs::new(Arc::clone(&config.spawner)),
        swept: watch::Sender::new(()),
        held_pipes: Arc::new(Semaphore::new(HELD_PIPES)),
        tracker: TaskTracker::new(),
        commands: TaskTracker::new(),
        config,
        disk,
        table,
        token,
    });
    inner.tracker.spawn(Arc::clone(&inner).sweep());
    Ok(inner)
}

/// What is to be kept of an earlier process's execs, in the order of their acceptance, and for how long each.
fn take_over(disk: &Arc<Disk>, spawner: &dyn Spawner) -> Vec<(Recovered, Duration)> {
    let mut kept = Vec::new();
    for mut one in recover(disk) {
        let info = &one.record.info;
        if info.state != ExecState::Ended as i32 || info.outcome.is_none() {
            lose(&mut one, disk, spawner);
        }
        let retain_for = Duration::from_millis(one.record.retain_for_ms).min(timing::RETAIN_FOR_MAX);
        let remaining = retain_for.saturating_sub(since(one.record.info.ended_at));
        if remaining.is_zero() {
            one.spool.forget();
            disk.remove(one.record.exec);
            continue;
        }
        kept.push((one, remaining));
    }
    kept.sort_by_key(|(one, _)| {
        let accepted = one.record.info.accepted_at.unwrap_or_default();
        (accepted.seconds, accepted.nanos, one.record.exec)
    });
    kept
}

/// It had not ended: nobody knows how it would have, and nobody will. What is left of it is killed.
fn lose(one: &mut Recovered, disk: &Disk, spawner: &dyn Spawner) {
    let exec = one.record.exec;
    let killed = one.record.process.as_ref().map_or(0, |mark| spawner.kill_leftovers(exec, mark));
    tracing::warn!(%exec, killed, "an exec of an earlier supervisor process had not ended: it is lost");
    let lost = Lost {
        reason: LostReason::SupervisorRestarted as i32,
        message: "the supervisor that ran it has been replaced by another process".to_owned(),
    };
    let info = &mut one.record.info;
    info.state = ExecState::Ended as i32;
    info.outcome = Some(Outcome { kind: Some(Kind::Lost(lost)) });
    info.ended_at = Some(now());
    info.left_processes = killed > 0;
    one.record.process = None;
    one.rewrite(disk);
}

/// How long ago a wall-clock time was. A clock that went back makes it nothing: better kept too long.
fn since(at: Option<prost_types::Timestamp>) -> Duration {
    let (at, now) = (at.unwrap_or_default(), now());
    let seconds = u64::try_from(now.seconds.saturating_sub(at.seconds)).unwrap_or(0);
    Duration::from_secs(seconds)
}
