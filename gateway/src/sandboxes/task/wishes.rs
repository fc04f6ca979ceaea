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
    pub(super) async fn want(&mut self, ask: Ask) -> Result<(), CallError> {
        let Some(wanted) = self.wish(ask)? else { return Ok(()) };
        let event = match ask {
            Ask::Start => reason::START_REQUESTED,
            Ask::Stop { .. } => reason::STOP_REQUESTED,
            Ask::Pause => reason::PAUSE_REQUESTED,
            Ask::Resume => reason::RESUME_REQUESTED,
            Ask::Delete { .. } => reason::DELETE_REQUESTED,
            Ask::Update { .. } => reason::UPDATED,
            Ask::IdleStop { .. } => reason::IDLE_STOPPED,
            Ask::Expire => reason::EXPIRED,
        };
        let message = match ask {
            Ask::Update { ttl, idle_stop } => return self.update(ttl, idle_stop).await,
            Ask::IdleStop { idle } => {
                format!("nothing happened in it for {}; its workspace is kept", spoken(idle))
            }
            Ask::Expire => {
                let at = self.record.expires_at.unwrap_or_default();
                format!("its time to live was over at {at:.0}; it is deleted")
            }
            _ => String::new(),
        };
        self.write(wanted, None).await?;
        self.event(event, message);
        if matches!(ask, Ask::Start | Ask::Resume) {
            self.activity.touch();
        }
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
        let now = Wanted { why: Why::Asked, ..now };
        let running = Wanted { desired: Desired::Running, ..now };
        let anew = Wanted { generation: now.generation.next(), ..running };
        let wrong = |attempted| Err(view.refusal(Reason::WrongPhase, attempted));
        Ok(match (ask, now.desired) {
            (Ask::Delete { .. }, Desired::Deleted) => None,
            (Ask::Delete { grace }, _) => Some(Wanted { desired: Desired::Deleted, grace, ..now }),
            (Ask::Expire, Desired::Deleted) => None,
            (Ask::Expire, _) => Some(Wanted { desired: Desired::Deleted, why: Why::Expired, ..now }),
            (Ask::IdleStop { .. }, Desired::Running) => {
                let grace = holdfast_wire::timing::KILL_GRACE;
                Some(Wanted { desired: Desired::Stopped, why: Why::Idle, grace, ..now })
            }
            (Ask::IdleStop { .. }, _) => None,
            (Ask::Update { .. }, Desired::Deleted) => return wrong("changing its lifetime"),
            (Ask::Update { idle_stop: Some(idle), .. }, _) if !idle.is_zero() && !can.stop_start => {
                return Err(unsupported(driver, Verb::Stop));
            }
            // What is wanted of its workload stays as it is, and why.
            (Ask::Update { .. }, _) => Some(self.state.wanted),
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

    /// Agrees on another lifetime, from now on.
    async fn update(&mut self, ttl: Option<Duration>, idle_stop: Option<Duration>) -> Result<(), CallError> {
        let now = self.clocks(Instant::now());
        let mut record = SandboxRecord::clone(&self.record);
        if let Some(ttl) = ttl {
            record.spec.ttl = ttl.try_into().ok().filter(|_| !ttl.is_zero());
            record.expires_at = now.wall.checked_add(ttl).ok().filter(|_| !ttl.is_zero());
        }
        if let Some(idle) = idle_stop {
            record.spec.idle_stop = idle.try_into().ok().filter(|_| !idle.is_zero());
            record.active_at = (!idle.is_zero()).then_some(now.wall);
        }
        self.write(self.state.wanted, Some(record)).await?;
        self.activity.touch();
        let expires = match self.record.expires_at {
            Some(at) => format!("it is deleted at {at:.0}"),
            None => "it has no time to live".to_owned(),
        };
        let idle = match super::idle_stop(&self.record.spec) {
            Some(idle) => format!("it is stopped after {} without activity", spoken(idle)),
            None => "it is not stopped for being idle".to_owned(),
        };
        self.event(reason::UPDATED, format!("{expires}; {idle}"));
        Ok(())
    }

    /// Stores what is wanted, then wants it. Somebody else may have written meanwhile: then theirs is taken over,
    /// and the caller decides again. `changed`: the rest of the record is another one too.
    async fn write(&mut self, wanted: Wanted, changed: Option<SandboxRecord>) -> Result<(), CallError> {
        let record = match changed {
            Some(changed) => Self::with(changed, wanted),
            None => self.as_record(wanted),
        };
        match self.core.parts.store.update(&record).await {
            Ok(version) => {
                if record.generation > self.record.generation {
                    self.replaced = Some(self.state.newest());
                }
                self.record = Arc::new(SandboxRecord { version, ..record });
                self.lifetime.agree(self.record.expires_at, super::idle_stop(&self.record.spec));
                if wanted != self.state.wanted {
                    self.state.on_wanted(wanted);
                    self.delays = delays();
                }
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
        Self::with(SandboxRecord::clone(&self.record), wanted)
    }

    fn with(record: SandboxRecord, wanted: Wanted) -> SandboxRecord {
        SandboxRecord {
            desired: wanted.desired,
            why: wanted.why,
            grace: wanted.grace,
            generation: wanted.generation,
            made: wanted.made,
            attached: wanted.attached,
            ..record
        }
    }

    pub(super) async fn reload(&mut self) {
        match self.core.parts.store.get(self.record.id).await {
            Ok(Some(record)) => {
                tracing::warn!(sandbox = %record.id, version = record.version, "somebody else wrote this sandbox");
                self.state.on_wanted(wanted(&record, self.core.parts.driver.name()));
                self.lifetime.agree(record.expires_at, super::idle_stop(&record.spec));
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

/// A span as people write it: `1h 30m`, `45s`.
fn spoken(span: Duration) -> String {
    let seconds = span.as_secs();
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let text: Vec<_> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text.join(" ") }
}
