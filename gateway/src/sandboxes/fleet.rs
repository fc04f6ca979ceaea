//! The driver's side of all sandboxes: what it has is told to their tasks; what nobody owns is removed.
//!
//! One task. It opens the driver's watch, asks once for all that there is, and follows the watch until it ends;
//! then again, after a growing delay. A level goes to its sandbox by a `watch`: a slow sandbox sees the newest and
//! holds nobody up. A workload without a sandbox is an orphan: it is named in an event, and removed after a grace
//! if it is still there and still nobody's.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use backon::BackoffBuilder;
use futures::StreamExt;
use holdfast_drivers::{Observed, Verb, WorkloadState};
use holdfast_wire::{api::Phase, ids::SandboxId};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Core,
    calls::{self, Failure},
    state::Level,
};
use crate::events::reason;

/// The most orphans that are remembered: more are found again by the next list.
const ORPHANS: usize = 1024;
/// Opening a watch.
const OPEN: Duration = Duration::from_secs(30);
/// A watch that lived so long was a good one: the next delay is the first again.
const HEALTHY: Duration = Duration::from_secs(10);
/// Between two tries, at most.
const LONGEST: Duration = Duration::from_secs(30);

/// Follows the driver until the room stops.
pub(super) async fn run(core: Arc<Core>) {
    let token = core.token.clone();
    let fleet = Fleet { core, orphans: BTreeMap::new(), removals: JoinSet::new() };
    token.run_until_cancelled_owned(fleet.follow()).await;
}

struct Fleet {
    core: Arc<Core>,
    orphans: BTreeMap<SandboxId, Orphan>,
    /// Orphans being removed: at most one call each.
    removals: JoinSet<(SandboxId, Result<(), Failure>)>,
}

/// A workload that no sandbox owns.
#[derive(Clone, Copy)]
struct Orphan {
    /// When it is looked at again, to be removed. `None`: it is being removed.
    due: Option<Instant>,
}

impl Fleet {
    async fn follow(mut self) {
        let mut delays = delays();
        loop {
            let begun = Instant::now();
            match self.watch_once().await {
                Ok(()) => tracing::info!("the driver's watch ended; opening it again"),
                Err(failure) => tracing::warn!(%failure, "following the driver; trying again"),
            }
            if begun.elapsed() >= HEALTHY {
                delays = self::delays();
            }
            sleep(delays.next().unwrap_or(LONGEST)).await;
        }
    }

    /// One watch, from its opening to its end.
    async fn watch_once(&mut self) -> Result<(), Failure> {
        let core = self.core.clone();
        let mut watch = match timeout(OPEN, core.parts.driver.watch()).await {
            Ok(watch) => watch?,
            Err(_) => return Err(Failure::late(Verb::Watch, OPEN)),
        };
        // After the watch has begun, so that nothing falls between the two.
        self.list().await?;
        loop {
            let due = self.orphans.values().filter_map(|orphan| orphan.due).min();
            tokio::select! {
                observed = watch.next() => match observed {
                    Some(observed) => self.tell(observed),
                    None => return Ok(()),
                },
                Some(removed) = self.removals.join_next() => match removed {
                    Ok((id, result)) => self.on_removed(id, result),
                    Err(error) => tracing::error!(%error, "removing an orphan"),
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    // Seen again now, so that what has been adopted or removed since is left alone.
                    self.list().await?;
                    self.remove_due();
                }
            }
        }
    }

    /// Asks for all that there is, and tells every sandbox.
    async fn list(&mut self) -> Result<(), Failure> {
        let asked = Instant::now();
        let all = calls::list(self.core.parts.driver.as_ref()).await?;
        let mut seen: BTreeMap<SandboxId, Observed> =
            all.into_iter().map(|observed| (observed.sandbox, observed)).collect();
        for (id, entry) in &self.core.map().by_id {
            let level = seen.remove(id).map_or(Level::Absent { asked }, Level::Seen);
            entry.level.send_replace(level);
        }
        let vanished =
            self.orphans.extract_if(.., |id, orphan| orphan.due.is_some() && !seen.contains_key(id));
        vanished.for_each(|(id, _)| self.core.parts.events.depart(id));
        seen.into_values().for_each(|observed| self.note_orphan(&observed));
        Ok(())
    }

    fn tell(&mut self, observed: Observed) {
        if let Some(entry) = self.core.map().by_id.get(&observed.sandbox) {
            entry.level.send_replace(Level::Seen(observed));
            return;
        }
        self.note_orphan(&observed);
    }

    fn note_orphan(&mut self, observed: &Observed) {
        let id = observed.sandbox;
        // One that goes by itself is dropped by the next list.
        let known = self.orphans.contains_key(&id) || self.orphans.len() >= ORPHANS;
        if known || observed.state == WorkloadState::Gone {
            return;
        }
        let grace = self.core.parts.settings.orphan_grace;
        self.orphans.insert(id, Orphan { due: Some(Instant::now() + grace) });
        let message = format!(
            "the {} driver has a workload ({}) that no sandbox owns; it is removed in {} s",
            self.core.parts.driver.name(),
            observed.handle.as_deref().unwrap_or("without a handle"),
            grace.as_secs()
        );
        tracing::warn!(sandbox = %id, "{message}");
        self.event(id, reason::ORPHAN_FOUND, message);
    }

    /// Begins to remove those whose time has come.
    fn remove_due(&mut self) {
        let now = Instant::now();
        for (id, orphan) in &mut self.orphans {
            if orphan.due.is_some_and(|due| due <= now) {
                orphan.due = None;
                let (id, core) = (*id, self.core.clone());
                self.removals.spawn(async move { (id, calls::remove(core.parts.driver.as_ref(), id).await) });
            }
        }
    }

    /// One that cannot be removed gets its grace again.
    fn on_removed(&mut self, id: SandboxId, result: Result<(), Failure>) {
        match result {
            Ok(()) => {
                self.orphans.remove(&id);
                self.event(id, reason::ORPHAN_REMOVED, "nobody owned it".to_owned());
                self.core.parts.events.depart(id);
            }
            Err(failure) => {
                let due = Some(Instant::now() + self.core.parts.settings.orphan_grace);
                self.orphans.insert(id, Orphan { due });
                self.event(id, reason::DRIVER_FAILED, format!("removing an orphan: {failure}"));
            }
        }
    }

    fn event(&self, id: SandboxId, reason: &'static str, message: String) {
        self.core.parts.events.record(id, &Arc::from(""), reason, message, Phase::Unspecified);
    }
}

fn delays() -> impl Iterator<Item = Duration> + Send {
    backon::ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(LONGEST)
        .with_jitter()
        .without_max_times()
        .build()
}
