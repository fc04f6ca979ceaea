//! Follows the engine: what happens there is looked at, and what was missed is found by a full list.
//!
//! ```text
//!   events opened, from a moment ago on ──▶ full list ──▶ each event: look at its sandbox ──▶ ended, broken
//!          ▲                                  every 30 s: full list                              │
//!          └────────────────────────── after a growing pause ────────────────────────────────────┘
//! ```
//!
//! An event is a hint and nothing more: levels come from a look. So a repeated one is harmless, and a kind that an
//! engine does not send (podman tells nothing of a lack of memory) is seen a little later.

use std::{collections::HashMap, sync::Arc, time::Duration};

use backon::BackoffBuilder as _;
use futures::{StreamExt as _, future::join_all};
use holdfast_wire::ids::SandboxId;
use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    Shared,
    engine::{self, Listed},
    record,
    task::Request,
};
use crate::{DriverError, WorkloadState};

/// Between two full lists: for what no event told.
const EVERY: Duration = Duration::from_secs(30);
/// A stream that lived so long was a good one: the next pause is the first again.
const HEALTHY: Duration = Duration::from_secs(10);
/// Between two tries at an engine that is away.
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// How long one look is waited for: its keeper may be at work, such as with pulling an image.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// Looks under way at once. An engine answers some hundred questions a second, one after the other.
const LOOKS: usize = 16;

/// Follows the engine until the driver closes.
pub(super) async fn follow(shared: Arc<Shared>) {
    let cancel = shared.keepers.cancel().clone();
    let following = async {
        let mut pauses = pauses();
        loop {
            let begun = Instant::now();
            match follow_once(&shared).await {
                Ok(()) => tracing::info!("the engine's events have ended; asking for them again"),
                Err(error) => tracing::warn!(%error, "following the engine; trying again"),
            }
            if begun.elapsed() >= HEALTHY {
                pauses = self::pauses();
            }
            tokio::time::sleep(pauses.next().unwrap_or(LONGEST)).await;
        }
    };
    cancel.run_until_cancelled_owned(following).await;
}

async fn follow_once(shared: &Arc<Shared>) -> Result<(), DriverError> {
    let mut events = Box::pin(shared.engine.events(&shared.installation));
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => {
                    if let Some(sandbox) = engine::sandbox_of(&event) {
                        // Not waited for: a keeper that is busy holds nobody up.
                        let (reply, _) = oneshot::channel();
                        shared.ask(sandbox, Request::Look(reply));
                    }
                }
                Some(Err(error)) => return Err(engine::sort("following the engine's events", error)),
                None => return Ok(()),
            },
            // The first at once.
            _ = tick.tick() => look_at_all(shared, false).await?,
        }
    }
}

/// Lists everything and looks at what is not as the board has it; at everything if `thorough`.
pub(super) async fn look_at_all(shared: &Arc<Shared>, thorough: bool) -> Result<(), DriverError> {
    let listed = shared.engine.list(&shared.installation, None).await?;
    let mut newest: HashMap<SandboxId, Listed> = HashMap::new();
    for container in listed {
        match newest.get(&container.sandbox) {
            Some(other) if other.generation >= container.generation => {}
            _ => {
                newest.insert(container.sandbox, container);
            }
        }
    }
    let files = shared.clone();
    let recorded = tokio::task::spawn_blocking(move || record::sandboxes(&files.root)).await;
    let recorded = recorded
        .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
        .map_err(|error| DriverError::io("reading the container driver's root", error))?;
    let mut all: Vec<SandboxId> = newest.keys().copied().chain(recorded).collect();
    all.extend(shared.board.all().iter().map(|observed| observed.sandbox));
    all.sort_unstable();
    all.dedup();
    if !thorough {
        all.retain(|sandbox| !is_as_on_the_board(shared, *sandbox, newest.get(sandbox)));
    }
    for some in all.chunks(LOOKS) {
        let looks = some.iter().map(|sandbox| async {
            let (reply, answer) = oneshot::channel();
            if shared.ask(*sandbox, Request::Look(reply)) {
                // An error is on the board already, or is the engine's and comes again.
                let _ = timeout(if thorough { EVERY } else { LOOK_PATIENCE }, answer).await;
            }
        });
        join_all(looks).await;
    }
    Ok(())
}

/// Whether a look would show nothing new.
fn is_as_on_the_board(shared: &Shared, sandbox: SandboxId, listed: Option<&Listed>) -> bool {
    match (shared.board.get(sandbox), listed) {
        (Some(level), Some(listed)) => {
            let same = match level.state {
                WorkloadState::Running => listed.running,
                WorkloadState::Paused => listed.paused,
                WorkloadState::Stopped | WorkloadState::Exited(_) => !listed.running && !listed.paused,
                _ => false,
            };
            same && level.generation == listed.generation
        }
        _ => false,
    }
}

fn pauses() -> impl Iterator<Item = Duration> + Send {
    backon::ExponentialBuilder::new()
        .with_min_delay(SHORTEST)
        .with_max_delay(LONGEST)
        .with_jitter()
        .without_max_times()
        .build()
}
