//! What callers want: stored first, then wanted, then answered.

use super::*;

impl Task {
    pub(super) async fn on_ask(&mut self, ask: Ask, answer: oneshot::Sender<Result<Arc<View>, CallError>>) {
        let answered = match self.want(ask).await {
            Ok(()) => {
                // What is answered is what the wish has led to: the phase after it, not before.
                self.show(&self.state.assess(Instant::now()));
                Ok(self.view.borrow().clone())
            }
            Err(error) => Err(error),
        };
        // The caller may have hung up: the wish is stored, and holds.
        let _ = answer.send(answered);
    }

    /// Makes a wish the stored one. Legal in every phase, but for what a deletion has made pointless.
    async fn want(&mut self, ask: Ask) -> Result<(), CallError> {
        let Some(wanted) = self.wish(ask)? else { return Ok(()) };
        let event = match ask {
            Ask::Start => reason::START_REQUESTED,
            Ask::Stop { .. } => reason::STOP_REQUESTED,
            Ask::Pause => reason::PAUSE_REQUESTED,
            Ask::Resume => reason::RESUME_REQUESTED,
            Ask::Delete { .. } => reason::DELETE_REQUESTED,
        };
        self.write(wanted).await?;
        self.event(event, "");
        if ask == Ask::Pause {
            self.paused_at = Some(Instant::now());
            // Before the freeze, so that its calls can be told.
            let grace_ms = u64::try_from(calls::PAUSE_NOTICE.as_millis()).unwrap_or(u64::MAX);
            let notice = control::Suspending { grace_ms };
            self.session.as_ref().map(|session| session.send(down::Body::Suspending(notice)));
        }
        Ok(())
    }

    /// What is wanted after this; `None` when it is that already.
    fn wish(&self, ask: Ask) -> Result<Option<Wanted>, CallError> {
        let (now, view) = (self.state.wanted, self.view.borrow().clone());
        let driver = self.core.parts.driver.as_ref();
        let can = driver.capabilities();
        let running = Wanted { desired: Desired::Running, ..now };
        let anew = Wanted { generation: now.generation.next(), ..running };
        let wrong = |attempted| Err(view.refusal(Reason::WrongPhase, attempted));
        Ok(match (ask, now.desired) {
            (Ask::Delete { .. }, Desired::Deleted) => None,
            (Ask::Delete { grace }, _) => Some(Wanted { desired: Desired::Deleted, grace, ..now }),
            (Ask::Start, Desired::Deleted) => return wrong("starting"),
            (Ask::Start | Ask::Stop { .. } | Ask::Pause | Ask::Resume, _) if now.foreign => {
                return wrong("changing another driver's sandbox");
            }
            (Ask::Stop { .. }, Desired::Deleted) => return wrong("stopping"),
            (Ask::Stop { .. }, _) if !can.stop_start => return Err(unsupported(driver, Verb::Stop)),
            (Ask::Stop { .. }, Desired::Stopped) => None,
            (Ask::Stop { grace }, _) => Some(Wanted { desired: Desired::Stopped, grace, ..now }),
            (Ask::Start, Desired::Stopped) => Some(anew),
            (Ask::Start, Desired::Running | Desired::Paused) if view.phase == Phase::Failed => Some(anew),
            (Ask::Start, Desired::Running) => None,
            (Ask::Start, Desired::Paused) => Some(running),
            (Ask::Pause, _) if !can.pause => return Err(unsupported(driver, Verb::Pause)),
            (Ask::Resume, _) if !can.pause => return Err(unsupported(driver, Verb::Resume)),
            (Ask::Pause, Desired::Paused) if view.phase != Phase::Failed => None,
            (Ask::Pause, Desired::Running) => match view.phase {
                Phase::Ready | Phase::Degraded | Phase::Reconnecting | Phase::Resuming => {
                    Some(Wanted { desired: Desired::Paused, ..now })
                }
                _ => return wrong("pausing"),
            },
            (Ask::Pause, _) => return wrong("pausing"),
            (Ask::Resume, Desired::Paused) if view.phase != Phase::Failed => Some(running),
            (Ask::Resume, Desired::Running) if view.phase != Phase::Failed => None,
            (Ask::Resume, _) => return wrong("resuming"),
        })
    }

    /// Stores what is wanted, then wants it. Somebody else may have written meanwhile: then theirs is taken over,
    /// and the caller decides again.
    async fn write(&mut self, wanted: Wanted) -> Result<(), CallError> {
        let record = self.as_record(wanted);
        match self.core.parts.store.update(&record).await {
            Ok(version) => {
                if record.generation > self.record.generation {
                    self.replaced = Some(self.state.newest());
                }
                self.record = Arc::new(SandboxRecord { version, ..record });
                self.state.on_wanted(wanted);
                self.delays = delays();
                Ok(())
            }
            Err(error @ StoreError::Stale { .. }) => {
                self.reload().await;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn as_record(&self, wanted: Wanted) -> SandboxRecord {
        SandboxRecord {
            desired: wanted.desired,
            grace: wanted.grace,
            generation: wanted.generation,
            made: wanted.made,
            attached: wanted.attached,
            ..SandboxRecord::clone(&self.record)
        }
    }

    pub(super) async fn reload(&mut self) {
        match self.core.parts.store.get(self.record.id).await {
            Ok(Some(record)) => {
                tracing::warn!(sandbox = %record.id, version = record.version, "somebody else wrote this sandbox");
                self.state.on_wanted(wanted(&record, self.core.parts.driver.name()));
                self.record = Arc::new(record);
            }
            Ok(None) => self.state.on_forgotten(),
            Err(error) => tracing::error!(sandbox = %self.record.id, %error, "reading a sandbox again"),
        }
    }

    /// Stores what the facts have made of the record. Nobody waits for it; a failure is tried again.
    pub(super) async fn rewrite(&mut self, now: Instant) {
        self.rewrite_at = None;
        let record = self.as_record(self.state.wanted);
        match self.core.parts.store.update(&record).await {
            Ok(version) => self.record = Arc::new(SandboxRecord { version, ..record }),
            Err(StoreError::Stale { .. } | StoreError::SandboxMissing { .. }) => self.reload().await,
            Err(error) => {
                tracing::error!(sandbox = %self.record.id, %error, "storing what became of a sandbox");
                // What is shown is what will be stored.
                self.record = Arc::new(record);
                self.rewrite_at = Some(now + REWRITE);
            }
        }
    }
}
