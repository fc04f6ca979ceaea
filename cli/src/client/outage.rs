//! What a lost or refused stream means for an attached exec: try again, or give up. Pure.
//!
//! ```text
//!              nothing sent ──▶ the start may have arrived ──▶ the exec is known
//!   budget:    start_deadline      reattach_for (per outage; no limit by default)
//! ```
//!
//! While the command cannot have started, the caller's deadline for starting rules. Once it may live, giving up
//! would lose a result, so only the caller's own limit ends the trying.

use std::time::Duration;

use holdfast_wire::{
    api::OnPause,
    reason::{Reason, key},
    timing,
};
use tokio::time::Instant;

use super::{error::Failure, resume::Resume};

/// A gateway that takes requests and never says a word is given up so long after the deadline for starting: it may answer
/// that late.
const UNHEARD: Duration = Duration::from_secs(15);

/// How to treat outages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    /// Give up so long after the loss of the stream. `None`: never while the exec may live.
    pub reattach_for: Option<Duration>,
}

/// One span without a stream.
#[derive(Debug)]
pub(crate) struct Outage {
    pub(crate) since: Instant,
    /// The failure that began it.
    pub(crate) cause: String,
    /// The gateway itself was gone for a while.
    gateway_gone: bool,
}

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Retry,
    /// The failure is the answer.
    Final,
    /// It could have gone on, but the time is up.
    GiveUp,
}

/// What is known over all streams of one exec.
#[derive(Debug)]
pub(crate) struct Outages {
    patience: Patience,
    began: Instant,
    start_deadline: Duration,
    /// The gateway was reached at least once.
    contacted: bool,
    /// The gateway itself has said something, be it no.
    answered: bool,
    /// A start may have reached the supervisor.
    may_live: bool,
    current: Option<Outage>,
}

impl Outages {
    pub(crate) fn new(patience: Patience, start_deadline: Option<Duration>, now: Instant) -> Self {
        let start_deadline = start_deadline.unwrap_or(timing::START_DEADLINE);
        Self {
            patience,
            began: now,
            start_deadline,
            contacted: false,
            answered: false,
            may_live: false,
            current: None,
        }
    }

    /// A stream failed, or could not be had.
    pub(crate) fn on_failure(&mut self, failure: &Failure, resume: &Resume, now: Instant) -> Verdict {
        let outage = self.current.get_or_insert_with(|| Outage {
            since: now,
            cause: cause(failure),
            gateway_gone: false,
        });
        let since = outage.since;
        let transient = match failure {
            Failure::Connect { .. } => {
                outage.gateway_gone = true;
                // A first connection that fails is a wrong address or no gateway: the caller hears it at once.
                self.contacted
            }
            Failure::Distrust(_) => false,
            Failure::Broken(_) => {
                self.contacted = true;
                self.may_live |= resume.would_start();
                true
            }
            Failure::Refused(refusal) => {
                self.contacted = true;
                self.answered = true;
                let lives = resume.is_known() || self.may_live;
                match refusal.known_reason() {
                    Some(Reason::SessionLost | Reason::StartUnknown | Reason::RelayDeadline) => {
                        self.may_live |= resume.would_start();
                        true
                    }
                    Some(Reason::GatewayStopping) => {
                        outage.gateway_gone = true;
                        true
                    }
                    Some(Reason::NoSession | Reason::Conflict) => true,
                    // A herd that comes back at once may meet a limit. A fresh start is told.
                    Some(Reason::LimitReached) => lives,
                    // A paused sandbox is resumed some day; a stopped one has ended its execs.
                    Some(Reason::WrongPhase) => {
                        let phase = refusal.metadata.get(key::PHASE).map(String::as_str);
                        let paused = matches!(phase, Some("Paused" | "Pausing" | "Resuming"));
                        lives && paused && resume.target().on_pause != OnPause::Error
                    }
                    Some(_) => false,
                    None => refusal.code == tonic::Code::Unavailable,
                }
            }
        };
        if !transient {
            return Verdict::Final;
        }
        if !resume.is_known() && !self.may_live && resume.would_start() {
            let over = now.duration_since(self.began) >= self.start_deadline;
            return if over { Verdict::Final } else { Verdict::Retry };
        }
        // A gateway that was never heard is a wrong address, or a proxy before none.
        let heard = self.answered || resume.is_known();
        if !heard && now.duration_since(self.began) >= self.start_deadline + UNHEARD {
            return Verdict::GiveUp;
        }
        match self.patience.reattach_for {
            Some(limit) if now.duration_since(since) >= limit => Verdict::GiveUp,
            _ => Verdict::Retry,
        }
    }

    /// A stream is attached: the outage that it ends, if any.
    pub(crate) fn on_attached(&mut self) -> Option<Outage> {
        self.contacted = true;
        self.answered = true;
        self.current.take()
    }

    /// When trying ends: the delay before the next try must not reach beyond it.
    pub(crate) fn remaining(&self, resume: &Resume, now: Instant) -> Option<Duration> {
        if !resume.is_known() && !self.may_live && resume.would_start() {
            return Some((self.began + self.start_deadline).saturating_duration_since(now));
        }
        let since = self.current.as_ref()?.since;
        Some((since + self.patience.reattach_for?).saturating_duration_since(now))
    }

    /// The current outage's beginning and cause.
    pub(crate) fn current(&self) -> Option<&Outage> {
        self.current.as_ref()
    }
}

impl Outage {
    /// In a word or two: what happened.
    pub(crate) fn story(&self) -> String {
        if self.gateway_gone { "gateway restarted".to_owned() } else { self.cause.clone() }
    }
}

fn cause(failure: &Failure) -> String {
    match failure {
        Failure::Connect { .. } => "gateway not reachable".to_owned(),
        Failure::Distrust(_) => "certificate refused".to_owned(),
        Failure::Broken(_) => "connection to the gateway lost".to_owned(),
        Failure::Refused(refusal) => match (refusal.known_reason(), refusal.metadata.get(key::CAUSE)) {
            (Some(Reason::SessionLost), Some(cause)) => format!("session lost: {cause}"),
            (Some(Reason::SessionLost), None) => "session lost".to_owned(),
            (Some(Reason::GatewayStopping), _) => "gateway stopped".to_owned(),
            (Some(Reason::NoSession), _) => "sandbox not connected".to_owned(),
            _ => refusal.message.clone(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use holdfast_wire::{
        api::{AttachEvent, ExecInfo, ExecSpec, ExecStarted, attach_event},
        ids::ExecId,
    };

    use super::{
        super::{error::Refusal, resume::Target},
        *,
    };

    fn resume(known: bool) -> Resume {
        let resume = Resume::new(Target {
            sandbox: "box".into(),
            exec_id: ExecId::random(),
            start: Some(ExecSpec::default()),
            start_deadline: None,
            stdin: false,
            stdout_offset: 0,
            stderr_offset: 0,
            on_pause: OnPause::Notice,
        });
        if known { self::known(resume.target().clone()) } else { resume }
    }

    fn known(target: Target) -> Resume {
        let mut resume = Resume::new(target);
        let started = ExecStarted { exec: Some(ExecInfo::default()), stdin_offset: 0 };
        resume.on_event(AttachEvent { kind: Some(attach_event::Kind::Started(started)) }).unwrap();
        resume
    }

    fn refused(reason: Reason) -> Failure {
        Failure::Refused(Box::new(Refusal {
            code: tonic::Code::Unavailable,
            reason: Some(reason.as_str().into()),
            message: String::new(),
            metadata: BTreeMap::new(),
        }))
    }

    fn connect() -> Failure {
        Failure::Connect { cause: "refused".into(), refused: true }
    }

    fn outages(limit: Option<u64>, now: Instant) -> Outages {
        Outages::new(Patience { reattach_for: limit.map(Duration::from_secs) }, None, now)
    }

    #[test]
    fn a_gateway_that_was_never_reached_is_told_at_once() {
        let now = Instant::now();
        assert_eq!(outages(None, now).on_failure(&connect(), &resume(false), now), Verdict::Final);
    }

    #[test]
    fn without_a_session_the_start_deadline_rules() {
        let (now, resume) = (Instant::now(), resume(false));
        let mut outages = outages(None, now);
        assert_eq!(outages.on_failure(&refused(Reason::NoSession), &resume, now), Verdict::Retry);
        assert_eq!(outages.on_failure(&connect(), &resume, now), Verdict::Retry, "it was reached before");
        let late = now + timing::START_DEADLINE;
        assert_eq!(outages.on_failure(&refused(Reason::NoSession), &resume, late), Verdict::Final);
    }

    #[test]
    fn a_start_that_may_have_arrived_is_followed_without_limit() {
        let (now, resume) = (Instant::now(), resume(false));
        let mut outages = outages(None, now);
        assert_eq!(outages.on_failure(&refused(Reason::StartUnknown), &resume, now), Verdict::Retry);
        let late = now + Duration::from_secs(24 * 3600);
        assert_eq!(outages.on_failure(&refused(Reason::NoSession), &resume, late), Verdict::Retry);
        assert_eq!(outages.on_failure(&connect(), &resume, late), Verdict::Retry);
    }

    #[test]
    fn a_gateway_that_never_says_a_word_is_given_up() {
        let (now, resume) = (Instant::now(), resume(false));
        let mut outages = outages(None, now);
        let broken = || Failure::Broken("connection closed".into());
        assert_eq!(outages.on_failure(&broken(), &resume, now), Verdict::Retry);
        let late = now + timing::START_DEADLINE + UNHEARD;
        assert_eq!(outages.on_failure(&broken(), &resume, late), Verdict::GiveUp);
        assert_eq!(
            outages.on_failure(&refused(Reason::NoSession), &resume, late),
            Verdict::Retry,
            "it is there"
        );
        assert_eq!(outages.on_failure(&broken(), &resume, late), Verdict::Retry);
    }

    #[test]
    fn the_limit_counts_from_the_loss_and_anew_for_each() {
        let (now, resume) = (Instant::now(), resume(true));
        let mut outages = outages(Some(10), now);
        let late = now + Duration::from_secs(100);
        assert_eq!(outages.on_failure(&Failure::Broken("reset".into()), &resume, late), Verdict::Retry);
        assert_eq!(outages.remaining(&resume, late), Some(Duration::from_secs(10)));
        let outage = outages.on_attached().unwrap();
        assert_eq!(outage.story(), "connection to the gateway lost");
        let later = late + Duration::from_secs(100);
        assert_eq!(outages.on_failure(&Failure::Broken("reset".into()), &resume, later), Verdict::Retry);
        let over = later + Duration::from_secs(10);
        assert_eq!(outages.on_failure(&connect(), &resume, over), Verdict::GiveUp);
    }

    #[test]
    fn a_pause_is_waited_for_unless_the_caller_wants_an_error() {
        let now = Instant::now();
        let paused = || {
            let Failure::Refused(mut refusal) = refused(Reason::WrongPhase) else { panic!() };
            refusal.metadata.insert(key::PHASE.into(), "Paused".into());
            Failure::Refused(refusal)
        };
        let mut resume = resume(true);
        assert_eq!(outages(None, now).on_failure(&paused(), &resume, now), Verdict::Retry);
        let error = Target { on_pause: OnPause::Error, ..resume.target().clone() };
        resume = known(error);
        assert_eq!(outages(None, now).on_failure(&paused(), &resume, now), Verdict::Final);
    }

    #[test]
    fn an_answer_that_will_not_change_is_final() {
        let (now, resume) = (Instant::now(), resume(true));
        for reason in
            [Reason::ExecNotFound, Reason::SandboxNotFound, Reason::Unauthenticated, Reason::Internal]
        {
            assert_eq!(
                outages(None, now).on_failure(&refused(reason), &resume, now),
                Verdict::Final,
                "{reason}"
            );
        }
    }
}
