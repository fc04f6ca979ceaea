//! Who may have a session: decided by comparing generations, processes and dials, never by who came last.

use super::*;

impl Task {
    pub(super) async fn on_hello(&mut self, hello: &Hello) -> Result<Admission, Refusal> {
        self.may_enter(hello)?;
        let epoch = match self.core.parts.store.next_epoch(self.record.id).await {
            Ok(epoch) => epoch,
            Err(StoreError::SandboxMissing { .. }) => {
                self.reload().await;
                return Err(Refusal::never(RefuseCode::UnknownSandbox, "the sandbox has been deleted"));
            }
            Err(error) => {
                tracing::error!(sandbox = %self.record.id, %error, "storing a session's epoch");
                return Err(Refusal::later(RefuseCode::Busy, "the gateway's store does not answer", BUSY));
            }
        };
        if let Some((instance, _)) = self.dialled
            && instance != hello.instance
        {
            if self.retired.len() == RETIRED {
                self.retired.pop_front();
            }
            self.retired.push_back(instance);
        }
        self.dialled = Some((hello.instance, hello.dial));
        Arc::make_mut(&mut self.record).epoch = epoch;
        self.state.on_admitted(epoch, hello.generation);
        Ok(Admission { epoch, tuning: self.core.parts.tuning })
    }

    /// Whether this supervisor may have a session.
    fn may_enter(&self, hello: &Hello) -> Result<(), Refusal> {
        let wanted = &self.state.wanted;
        match wanted.desired {
            Desired::Deleted => {
                return Err(Refusal::never(RefuseCode::UnknownSandbox, "the sandbox is being deleted"));
            }
            Desired::Stopped if self.view.borrow().phase == Phase::Stopped => {
                return Err(Refusal::never(RefuseCode::StaleGeneration, "the sandbox is stopped"));
            }
            Desired::Stopped | Desired::Running | Desired::Paused => {}
        }
        if hello.generation < wanted.generation {
            let reason = format!("workload {} is wanted, this is {}", wanted.generation, hello.generation);
            return Err(Refusal::never(RefuseCode::StaleGeneration, reason));
        }
        if hello.generation > wanted.generation {
            // The store may be an older one, put back from a backup: the driver will say.
            let reason = format!("workload {} is not known here yet", hello.generation);
            return Err(Refusal::later(RefuseCode::Busy, reason, BUSY));
        }
        if self.retired.contains(&hello.instance) {
            let reason = "another supervisor process has taken this one's place";
            return Err(Refusal::never(RefuseCode::StaleGeneration, reason));
        }
        match self.dialled {
            Some((instance, dial)) if instance == hello.instance && hello.dial <= dial => {
                let reason =
                    format!("dial {dial} of this process came before, and is newer than {}", hello.dial);
                Err(Refusal::later(RefuseCode::Busy, reason, BUSY))
            }
            _ => Ok(()),
        }
    }
}
