//! What everybody sees: the view, what people read in events, what execs are told.

use super::*;

impl Task {
    /// Tells execs and people what is new in an assessment.
    pub(super) fn note(&mut self, assessment: &Assessment) {
        self.note_boot(assessment);
        let wanted = self.state.wanted;
        if wanted.made >= wanted.generation
            && let Some(up_to) = self.replaced.take().filter(|up_to| *up_to > Epoch(0))
        {
            // The driver ends what was before when it makes the newer one.
            let message = "the workload was replaced by a newer one".to_owned();
            self.tell_gone(Generation(wanted.generation.0.saturating_sub(1)), up_to, message);
        }
        let death = (wanted.generation, self.state.newest());
        if let Some(message) = &assessment.dead
            && self.told_dead != Some(death)
        {
            self.told_dead = Some(death);
            self.event(reason::WORKLOAD_GONE, message.clone());
            self.tell_gone(death.0, death.1, message.clone());
        }
        let before = self.view.borrow().phase;
        if before != assessment.phase && assessment.phase == Phase::Stopped {
            let up_to = self.state.newest();
            self.told_lost = Some(up_to);
            self.tell(SandboxFact::Stopped { sandbox: self.record.id, up_to });
        }
        let source = match assessment.phase {
            Phase::Failed => "driver",
            Phase::Degraded => "probe",
            Phase::Reconnecting if assessment.reason == "SessionLost" => "session",
            _ if self.state.failure().is_some() => "driver",
            _ => "",
        };
        if !source.is_empty() {
            self.last_error(assessment.reason.clone(), assessment.message.clone(), source);
        }
        if self.state.wanted.attached != self.record.attached || self.state.wanted.made != self.record.made {
            self.rewrite_at.get_or_insert_with(Instant::now);
        }
    }

    /// Remembers what went wrong last.
    pub(super) fn last_error(&mut self, reason: String, message: String, source: &str) {
        let same =
            |last: &api::LastError| last.reason == reason && last.message == message && last.source == source;
        if self.record.last_error.as_ref().is_some_and(same) {
            return;
        }
        let at = Some(stamp(Timestamp::now()));
        let last_error = Some(api::LastError { reason, message, source: source.to_owned(), at });
        self.record = Arc::new(SandboxRecord { last_error, ..SandboxRecord::clone(&self.record) });
        self.rewrite_at.get_or_insert_with(Instant::now);
    }

    /// Each stage that a boot reaches is an event, in their order, however many are seen at once.
    fn note_boot(&mut self, assessment: &Assessment) {
        for reached in &assessment.boot {
            if !self.told_stages.contains(&reached.stage) {
                let stage = reached.stage;
                let message = match reached.took {
                    Some(took) => format!("{stage}, {:.1} s after the stage before", took.as_secs_f64()),
                    None => stage.to_string(),
                };
                self.event(reason::BOOT_STAGE, message);
            }
        }
        // A boot that begins anew is told anew.
        self.told_stages = assessment.boot.iter().map(|reached| reached.stage).collect();
    }

    /// Shows what is, if it is anything new.
    pub(super) fn show(&self, assessment: &Assessment) {
        let old = self.view.borrow().clone();
        let links = self.links.iter().cloned().collect();
        let view =
            shown(&self.record, &self.state, assessment, self.session.clone(), links, Some(&old), self.gone);
        if old.phase != view.phase {
            let message = match (view.reason.as_str(), view.message.as_str()) {
                (reason, "") => format!("{} to {}: {reason}", word(old.phase), word(view.phase)),
                (reason, message) => {
                    format!("{} to {}: {reason}: {message}", word(old.phase), word(view.phase))
                }
            };
            self.core.parts.events.record(
                self.record.id,
                &self.name,
                reason::PHASE_CHANGED,
                message,
                view.phase,
            );
        }
        if !same(&old, &view) {
            self.view.send_replace(Arc::new(view));
        }
    }
}

/// The view of a state. A condition's time is kept while its status is what it was.
pub(super) fn shown(
    record: &Arc<SandboxRecord>,
    state: &State,
    assessment: &Assessment,
    session: Option<Session>,
    link_events: Vec<LinkEvent>,
    old: Option<&View>,
    gone: bool,
) -> View {
    let now = Timestamp::now();
    let memory = assessment.memory.as_ref().map(|status| (ConditionKind::MemoryHealthy, status));
    let booted = [(ConditionKind::Booted, &assessment.booted)];
    let main = record.spec.main.as_ref().map(|_| (ConditionKind::MainCommand, &assessment.main));
    let conditions = ConditionKind::OF_READY.into_iter().zip(&assessment.conditions);
    let conditions = conditions.chain(booted).chain(memory).chain(main);
    let conditions = conditions.map(|(kind, status)| {
        // A stage's time is what people want to know of a boot.
        let same = |old: &&Condition| {
            old.status == status.status && (kind != ConditionKind::Booted || old.reason == status.reason)
        };
        let since = old.and_then(|old| old.condition(kind)).filter(same);
        Condition {
            kind,
            status: status.status,
            reason: status.reason.clone(),
            message: status.message.clone(),
            last_transition: since.map_or(now, |old| old.last_transition),
        }
    });
    let conditions = conditions.collect();
    View {
        record: record.clone(),
        phase: assessment.phase,
        reason: assessment.reason.clone(),
        message: assessment.message.clone(),
        conditions,
        epoch: state.admitted(),
        generation: state.wanted.generation,
        session,
        link_events,
        workload: state.workload().cloned(),
        gone,
    }
}

/// Whether two views say the same.
fn same(old: &View, new: &View) -> bool {
    let session = |view: &View| view.session.as_ref().map(Session::id);
    let View {
        record,
        phase,
        reason,
        message,
        conditions,
        epoch,
        generation,
        link_events,
        workload,
        gone,
        ..
    } = old;
    (Arc::ptr_eq(record, &new.record) || **record == *new.record)
        && (phase, reason, message, conditions) == (&new.phase, &new.reason, &new.message, &new.conditions)
        && (epoch, generation, link_events, gone)
            == (&new.epoch, &new.generation, &new.link_events, &new.gone)
        && workload == &new.workload
        && session(old) == session(new)
}
