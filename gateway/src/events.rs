//! What happened, for people: the last events of each sandbox, and a live feed of all.
//!
//! Rooms [`record`](Events::record) what they did; callers read the past and follow the present. Nothing here is
//! a source of truth, and nothing waits: a sandbox keeps its last [`KEPT`] events, and a follower that is too
//! slow is told how many it missed ([`Missed`]). The lists of the last [`DEPARTED`] deleted sandboxes are kept a
//! while, because "why is it gone" is asked afterwards.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{Stream, StreamExt, stream};
use holdfast_wire::{
    api::{self, Phase},
    ids::SandboxId,
};
use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::store::stamp;

/// Events kept of one sandbox. A day of a quiet one; a busy one's last hour.
pub const KEPT: usize = 256;
/// Deleted sandboxes whose events are kept.
const DEPARTED: usize = 64;
/// Events that a follower may be behind. A thousand sandboxes that change at once are a few events each.
const FEED: usize = 4096;
/// The longest message, in bytes: a console's tail may be in it.
const MAX_MESSAGE: usize = 4096;

/// The reasons of events, CamelCase as in Kubernetes.
pub mod reason {
    /// A sandbox was asked for.
    pub const CREATED: &str = "Created";
    /// The phase is another one now.
    pub const PHASE_CHANGED: &str = "PhaseChanged";
    /// A boot has reached another stage.
    pub const BOOT_STAGE: &str = "BootStage";
    /// A workload was made, or found.
    pub const WORKLOAD_STARTED: &str = "WorkloadStarted";
    /// The driver says that the workload is dead.
    pub const WORKLOAD_GONE: &str = "WorkloadGone";
    /// A call of the driver failed.
    pub const DRIVER_FAILED: &str = "DriverFailed";
    /// A supervisor was not let in.
    pub const SESSION_REFUSED: &str = "SessionRefused";
    /// A supervisor is there.
    pub const SESSION_ATTACHED: &str = "SessionAttached";
    /// Its session ended.
    pub const SESSION_LOST: &str = "SessionLost";
    /// An admin ordered a fault.
    pub const CHAOS: &str = "Chaos";
    /// A probe failed.
    pub const PROBE_FAILED: &str = "ProbeFailed";
    /// Something in it was killed because memory ran out.
    pub const OUT_OF_MEMORY: &str = "OutOfMemory";
    /// Somebody asked for it to be stopped.
    pub const STOP_REQUESTED: &str = "StopRequested";
    /// Somebody asked for it to be started.
    pub const START_REQUESTED: &str = "StartRequested";
    /// Somebody asked for it to be paused.
    pub const PAUSE_REQUESTED: &str = "PauseRequested";
    /// Somebody asked for it to be resumed.
    pub const RESUME_REQUESTED: &str = "ResumeRequested";
    /// Somebody changed how long it lives, or may be idle.
    pub const UPDATED: &str = "Updated";
    /// Nothing happened in it for as long as was agreed: it is stopped.
    pub const IDLE_STOPPED: &str = "IdleStopped";
    /// Its time to live is over: it is deleted.
    pub const EXPIRED: &str = "Expired";
    /// Somebody asked for it to be deleted.
    pub const DELETE_REQUESTED: &str = "DeleteRequested";
    /// Nothing of it is left.
    pub const DELETED: &str = "Deleted";
    /// The driver has a workload that no sandbox owns.
    pub const ORPHAN_FOUND: &str = "OrphanFound";
    /// ... and it was removed.
    pub const ORPHAN_REMOVED: &str = "OrphanRemoved";
    /// A reader of the feed was too slow for it.
    pub const EVENTS_MISSED: &str = "EventsMissed";
    /// An exec began.
    pub const EXEC_STARTED: &str = "ExecStarted";
    /// An exec ended.
    pub const EXEC_ENDED: &str = "ExecEnded";
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place among all events of this gateway: clocks may jump, this only rises.
    pub seq: u64,
    /// When, by this machine's clock.
    pub at: Timestamp,
    /// Where.
    pub sandbox: SandboxId,
    /// Its name; empty where it has none that is known.
    pub name: Arc<str>,
    /// One of [`reason`].
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The sandbox's phase afterwards; unspecified where the event is not about it.
    pub phase: Phase,
}

impl Event {
    /// As callers see it.
    #[must_use]
    pub fn to_api(&self) -> api::SandboxEvent {
        api::SandboxEvent {
            at: Some(stamp(self.at)),
            sandbox_id: self.sandbox.to_string(),
            sandbox_name: self.name.to_string(),
            reason: self.reason.to_owned(),
            message: self.message.clone(),
            phase: self.phase.into(),
        }
    }
}

/// The events of all sandboxes. Clones are the same.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rings: Mutex<Rings>,
    feed: broadcast::Sender<Arc<Event>>,
}

#[derive(Debug, Default)]
struct Rings {
    seq: u64,
    kept: HashMap<SandboxId, VecDeque<Arc<Event>>>,
    departed: VecDeque<SandboxId>,
}

impl Events {
    /// No events yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner { rings: Mutex::default(), feed: broadcast::channel(FEED).0 }))
    }

    /// Something happened just now. The phase is unspecified where the event is not about it.
    pub fn record(
        &self,
        sandbox: SandboxId,
        name: &Arc<str>,
        reason: &'static str,
        message: impl Into<String>,
        phase: Phase,
    ) {
        let message = shortened(message.into());
        let mut rings = self.rings();
        rings.seq += 1;
        let (seq, at, name) = (rings.seq, Timestamp::now(), name.clone());
        let event = Arc::new(Event { seq, at, sandbox, name, reason, message, phase });
        tracing::info!(%sandbox, name = %event.name, reason, phase = phase.as_str_name(), message = %event.message, "event");
        let ring = rings.kept.entry(sandbox).or_default();
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        // Under the lock, so that a new follower misses nothing between its past and its present. Nobody
        // listening is no error.
        let _ = self.0.feed.send(event);
    }

    /// The sandbox has been deleted: its events are kept until enough others have followed it.
    pub fn depart(&self, sandbox: SandboxId) {
        let mut rings = self.rings();
        rings.departed.push_back(sandbox);
        if rings.departed.len() > DEPARTED
            && let Some(oldest) = rings.departed.pop_front()
        {
            rings.kept.remove(&oldest);
        }
    }

    /// The past, oldest first: of one sandbox, or of all; the last `tail` of them, or with 0 all that is kept.
    #[must_use]
    pub fn past(&self, sandbox: Option<SandboxId>, tail: usize) -> Vec<Arc<Event>> {
        self.rings().past(sandbox, tail)
    }

    /// The past, and from there on the present, without a gap and without repetition.
    #[must_use]
    pub fn follow(&self, sandbox: Option<SandboxId>, tail: usize) -> (Vec<Arc<Event>>, Follower) {
        let rings = self.rings();
        let feed = self.0.feed.subscribe();
        (rings.past(sandbox, tail), Follower { feed, sandbox })
    }

    /// The same for an API: with `follow`, the present too, and a line of its own for events that were missed.
    pub fn stream(
        &self,
        sandbox: Option<SandboxId>,
        tail: usize,
        follow: bool,
    ) -> impl Stream<Item = api::SandboxEvent> + Send + use<> {
        let (past, follower) = self.follow(sandbox, tail);
        let present = stream::unfold(follow.then_some(follower), |follower| async move {
            let mut follower = follower?;
            let event = match follower.next().await? {
                Ok(event) => event.to_api(),
                Err(missed) => api::SandboxEvent {
                    at: Some(stamp(Timestamp::now())),
                    reason: reason::EVENTS_MISSED.to_owned(),
                    message: missed.to_string(),
                    ..api::SandboxEvent::default()
                },
            };
            Some((event, Some(follower)))
        });
        stream::iter(past).map(|event| event.to_api()).chain(present)
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        // A panic while holding the lock leaves whole events: the worst is a ring one too long.
        self.0.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Rings {
    fn past(&self, sandbox: Option<SandboxId>, tail: usize) -> Vec<Arc<Event>> {
        let mut events: Vec<_> = match sandbox {
            Some(sandbox) => self.kept.get(&sandbox).into_iter().flatten().cloned().collect(),
            None => {
                let mut all: Vec<_> = self.kept.values().flatten().cloned().collect();
                all.sort_unstable_by_key(|event| event.seq);
                all
            }
        };
        let surplus = if tail == 0 { 0 } else { events.len().saturating_sub(tail) };
        events.drain(..surplus);
        events
    }
}

/// A reader of the present.
#[derive(Debug)]
pub struct Follower {
    feed: broadcast::Receiver<Arc<Event>>,
    sandbox: Option<SandboxId>,
}

/// The follower was too slow: so many events (of all sandboxes) were dropped before it read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} events were missed: read them too slowly")]
pub struct Missed(pub u64);

impl Follower {
    /// The next event; `None` once the gateway has let go of its events. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Missed`]; following goes on after it.
    pub async fn next(&mut self) -> Option<Result<Arc<Event>, Missed>> {
        loop {
            match self.feed.recv().await {
                Ok(event) if self.sandbox.is_none_or(|sandbox| sandbox == event.sandbox) => {
                    return Some(Ok(event));
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => return Some(Err(Missed(missed))),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = message.floor_char_boundary(MAX_MESSAGE - '…'.len_utf8());
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn named(name: &str) -> (SandboxId, Arc<str>) {
        (SandboxId::random(), name.into())
    }

    fn messages(events: &[Arc<Event>]) -> Vec<&str> {
        events.iter().map(|event| event.message.as_str()).collect()
    }

    #[test]
    fn the_oldest_events_of_a_sandbox_go_first_and_no_other_sandboxes() {
        let events = Events::new();
        let ((busy, busy_name), (quiet, quiet_name)) = (named("busy"), named("quiet"));
        events.record(quiet, &quiet_name, reason::CREATED, "quiet", Phase::Pending);
        for i in 0..=KEPT {
            events.record(busy, &busy_name, reason::PHASE_CHANGED, i.to_string(), Phase::Ready);
        }
        let past = events.past(Some(busy), 0);
        assert_eq!((past.len(), past[0].message.as_str()), (KEPT, "1"));
        assert_eq!(messages(&events.past(Some(busy), 2)), ["255", "256"]);
        assert_eq!(messages(&events.past(Some(quiet), 0)), ["quiet"]);
        assert_eq!(events.past(None, 0).len(), KEPT + 1);
    }

    #[tokio::test]
    async fn a_follower_sees_past_and_present_without_a_gap() {
        let events = Events::new();
        let ((mine, name), (other, other_name)) = (named("mine"), named("other"));
        events.record(mine, &name, reason::CREATED, "before", Phase::Pending);
        let (past, mut follower) = events.follow(Some(mine), 0);
        events.record(other, &other_name, reason::CREATED, "elsewhere", Phase::Pending);
        events.record(mine, &name, reason::PHASE_CHANGED, "after", Phase::Ready);
        assert_eq!(messages(&past), ["before"]);
        let event = follower.next().await.unwrap().unwrap();
        assert_eq!((event.message.as_str(), event.phase), ("after", Phase::Ready));
        drop(events);
        assert!(follower.next().await.is_none());
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_what_it_missed_and_goes_on() {
        let events = Events::new();
        let (id, name) = named("busy");
        let (_, mut follower) = events.follow(None, 0);
        for i in 0..FEED + 10 {
            events.record(id, &name, reason::PHASE_CHANGED, i.to_string(), Phase::Ready);
        }
        assert_eq!(follower.next().await, Some(Err(Missed(10))));
        assert_eq!(follower.next().await.unwrap().unwrap().message, "10");
        assert!(follower.next().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_stream_without_follow_ends_with_the_past() {
        let events = Events::new();
        let (id, name) = named("dev");
        events.record(id, &name, reason::CREATED, "made", Phase::Pending);
        let all: Vec<_> = events.stream(Some(id), 0, false).collect().await;
        assert_eq!((all.len(), all[0].reason.as_str(), all[0].sandbox_name.as_str()), (1, "Created", "dev"));
        let mut following = std::pin::pin!(events.stream(None, 0, true));
        assert_eq!(following.next().await.unwrap().message, "made");
        assert!(following.next().now_or_never().is_none(), "the present has not come yet");
    }

    #[test]
    fn the_events_of_the_deleted_are_kept_a_while_and_not_for_ever() {
        let events = Events::new();
        let all: Vec<_> = (0..=DEPARTED).map(|i| named(&format!("box-{i}"))).collect();
        for (id, name) in &all {
            events.record(*id, name, reason::DELETED, "", Phase::Unspecified);
            events.depart(*id);
        }
        assert!(events.past(Some(all[0].0), 0).is_empty());
        assert_eq!(events.past(Some(all[DEPARTED].0), 0).len(), 1);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let cut = shortened("ü".repeat(MAX_MESSAGE));
        assert!(cut.len() <= MAX_MESSAGE && cut.ends_with("ü…"));
    }
}
