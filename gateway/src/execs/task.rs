//! The one loop beside the calls: facts about sandboxes in, lost execs out; and forgetting what is due.

use std::{sync::Arc, time::Duration};

use holdfast_wire::api::{ExecState, LostReason};
use jiff::Timestamp;
use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::{Core, state};
use crate::{error::CallError, sandboxes::SandboxFact};

/// How often ended execs whose time is over are forgotten. `retain_for` is minutes to days.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// A fact that the store did not take is tried again this often: nobody else will say it.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn run(core: Arc<Core>, mut facts: mpsc::Receiver<SandboxFact>) {
    let mut forget = tokio::time::interval(FORGET_EVERY);
    forget.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = core.token.cancelled() => return,
            fact = facts.recv() => match fact {
                Some(fact) => core.on_fact(fact).await,
                None => return,
            },
            _ = forget.tick() => {
                if let Err(error) = core.store.forget_before(Timestamp::now()).await {
                    tracing::warn!(%error, "ended execs could not be forgotten; later");
                }
                if let Err(error) = core.see_to_left_starts().await {
                    tracing::warn!(%error, "starts that nobody sees to could not be looked for; later");
                }
            }
        }
    }
}

impl Core {
    /// An exec that is past its deadline for starting, and that nobody starts, has lost who saw to it: a store that
    /// failed at the wrong moment, or a caller that left between two steps. It is brought to its end.
    async fn see_to_left_starts(self: &Arc<Self>) -> Result<(), CallError> {
        let now = Timestamp::now();
        for view in self.sandboxes.views() {
            for record in self.store.unfinished(view.id()).await? {
                let left = record.state() == ExecState::Accepted
                    && record.start_deadline_at < now
                    && self.start_of(record.exec) == state::Start::None
                    && !self.is_settling(record.exec);
                if !left {
                    continue;
                }
                tracing::warn!(exec = %record.exec, "nobody sees to the start of this exec any more");
                match (record.sent, self.sandboxes.by_id(record.sandbox)) {
                    (Some(_), Some(handle)) => self.settle_later(record.exec, handle, false),
                    _ => self.never_started(record.exec, "nobody saw to it until its deadline").await,
                }
            }
        }
        Ok(())
    }

    async fn on_fact(self: &Arc<Self>, fact: SandboxFact) {
        let sandbox = fact.sandbox();
        let (up_to, reason, message) = match fact {
            // Its complete report follows, and settles: the new process may know outcomes of the old one.
            SandboxFact::SessionAttached { .. } => return self.see_to_main(sandbox),
            SandboxFact::WorkloadGone { up_to, reason, message, .. } => (Some(up_to), reason, message),
            SandboxFact::Stopped { up_to, .. } => {
                (Some(up_to), LostReason::SandboxStopped, "the sandbox was stopped".to_owned())
            }
            SandboxFact::Deleted { .. } => {
                (None, LostReason::SandboxDeleted, "the sandbox was deleted".to_owned())
            }
        };
        while let Err(error) = self.lose_all(sandbox, up_to, reason, &message).await {
            tracing::error!(%sandbox, %error, "the store did not take the end of the sandbox's execs; again");
            tokio::select! {
                () = self.token.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
        // What was admitted after that is ended by the store itself, together with the sandbox.
        if reason == LostReason::SandboxDeleted {
            self.board.announce_all();
        }
    }
}
