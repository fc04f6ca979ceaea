//! The main command of a sandbox: an exec whose caller is the gateway itself.
//!
//! ```text
//!   view (ready, generation, ─┐                         ┌▶ start: an exec like any other, by its own id
//!     the image's command)    ├─▶ look (state, pure) ─▶ ┤
//!   store (exec, mark) ───────┘          ▲              └▶ the condition MainCommand
//!                                        └── news of the exec, changes of the view
//! ```
//!
//! One task a sandbox that has such a command, for as long as the sandbox is there. It keeps nothing between two looks
//! but whom it has asked: so a gateway that is killed anywhere is followed by one that looks and sees the same. What
//! follows an admission (sending, outcome, loss) is what follows any exec's.

mod state;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use holdfast_wire::{
    api::{Argv, ExecSpec, OnDisconnect, Phase, WhenFull, exec_spec::Command},
    ids::{ExecId, Generation, SandboxId},
    timing,
};
use tokio::time::Instant;

use self::state::Facts;
use super::{Core, START_DEADLINE_MAX};
use crate::{
    error::{CallError, Reason},
    sandboxes::{SandboxHandle, Status, View},
};

/// A store that does not answer, and a start that was refused, are tried again this often: nobody tells of either.
const AGAIN: Duration = Duration::from_secs(1);

impl Core {
    /// Sees to the sandbox's main command from now on, if it has one. Any number of times.
    pub(super) fn see_to_main(self: &Arc<Self>, sandbox: SandboxId) {
        let Some(handle) = self.sandboxes.by_id(sandbox) else { return };
        if handle.now().record.spec.main.is_none() || !self.mains().insert(sandbox) {
            return;
        }
        let core = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = core.follow_main(&handle) => {}
                () = core.token.cancelled() => {}
            }
            core.mains().remove(&sandbox);
        });
    }

    async fn follow_main(self: &Arc<Self>, handle: &SandboxHandle) {
        let mut view = handle.view();
        // A start of it that was not answered is settled by whoever sent it, on whatever session comes.
        let mut unsettled = None;
        loop {
            let now = view.borrow_and_update().clone();
            if now.gone {
                return;
            }
            let (generation, exec) = (now.generation, ExecId::of_main(now.id(), now.generation));
            // Before the look, so that no news after it is missed.
            let mut news = self.board.subscribe(exec);
            let again = match self.look_at_main(&now, exec).await {
                Ok((status, start)) => {
                    handle.main_command(generation, status).await;
                    match start.filter(|_| unsettled != Some(exec)) {
                        None => None,
                        Some(spec) => match self.start_main(handle, exec, spec, generation).await {
                            Ok(()) => continue,
                            Err(error) if error.reason == Reason::StartUnknown => {
                                unsettled = Some(exec);
                                None
                            }
                            Err(error) => {
                                tracing::warn!(sandbox = %now.id(), %exec, %error, "the main command was not started");
                                Some(Instant::now() + AGAIN)
                            }
                        },
                    }
                }
                Err(error) => {
                    tracing::error!(sandbox = %now.id(), %exec, %error, "looking at the main command");
                    Some(Instant::now() + AGAIN)
                }
            };
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = news.changed() => {}
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
        }
    }

    /// What it is now, and what to start, if it is to be started.
    async fn look_at_main(&self, view: &View, exec: ExecId) -> Result<(Status, Option<ExecSpec>), CallError> {
        let record = self.store.exec(exec).await?;
        let noted = match &record {
            Some(_) => view.generation,
            None => self.store.get(view.id()).await?.map_or(view.generation, |stored| stored.main),
        };
        let command = command_of(view, self.sandboxes.knows_entrypoints());
        let (status, start) = state::look(&Facts {
            generation: view.generation,
            noted,
            record: record.as_ref(),
            // A gateway that has just started may hear of the supervisor before the driver has said anything.
            ready: view.phase == Phase::Ready && view.workload.is_some(),
            known: command.is_some(),
        });
        Ok((status, command.filter(|_| start)))
    }

    async fn start_main(
        self: &Arc<Self>,
        handle: &SandboxHandle,
        exec: ExecId,
        spec: ExecSpec,
        generation: Generation,
    ) -> Result<(), CallError> {
        // As long as any caller may wait: what comes between now and then is an outage, not a reason to give up.
        let until = Instant::now() + START_DEADLINE_MAX;
        self.start(handle.clone(), exec, spec, until, String::new(), Some(generation)).await.map(drop)
    }

    fn mains(&self) -> std::sync::MutexGuard<'_, std::collections::HashSet<SandboxId>> {
        self.mains.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What the main command of this workload is; `None`: it is not known (yet). The same for as long as the workload
/// lives, so that a repeated start is the same request.
fn command_of(view: &View, of_an_image: bool) -> Option<ExecSpec> {
    let given = &view.record.spec.main.as_ref()?.args;
    let (argv, cwd) = if of_an_image {
        let main = view.workload.as_ref()?.main.as_ref()?;
        (&main.argv, main.cwd.as_str())
    } else {
        (given, "")
    };
    let bytes = |text: &String| bytes::Bytes::copy_from_slice(text.as_bytes());
    Some(ExecSpec {
        command: Some(Command::Argv(Argv { args: argv.iter().map(bytes).collect() })),
        cwd: bytes::Bytes::copy_from_slice(cwd.as_bytes()),
        on_disconnect: OnDisconnect::Keep.into(),
        // Nobody need ever read it.
        when_full: WhenFull::DropOldest.into(),
        // Its end may be looked for long after.
        retain_for: timing::RETAIN_FOR_MAX.try_into().ok(),
        ..ExecSpec::default()
    })
}
