//! Renewal over the control stream: when to ask, how long to wait, what to do with the answer.
//!
//! ```text
//!   due by the plan, or RenewCertificate ──▶ CertificateRequest ──▶ Certificate ──▶ written, in use
//!                                               │ no answer in time, refused, unusable
//!                                               └──▶ the plan's next try
//! ```

use std::time::{Duration, SystemTime};

use holdfast_wire::control::Certificate;
use tokio::{task::JoinSet, time::Instant};

use crate::identity::{Identity, IdentityError};

/// From the request to the certificate: signing takes a millisecond, a busy gateway some more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits are rounded up to this, so that a plan that is due "now" by a hair does not spin.
const LEAST_WAIT: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Renewal {
    identity: Identity,
    state: State,
    /// The task that checks and writes an answer: it blocks on a disk, which the control loop must not.
    writing: JoinSet<Result<SystemTime, IdentityError>>,
}

#[derive(Debug)]
enum State {
    Planned { look_at: Instant },
    Asked { until: Instant },
    Writing,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Step {
    /// Send this request.
    Ask(Vec<u8>),
    /// Nothing.
    None,
}

impl Renewal {
    pub(super) fn new(identity: Identity) -> Self {
        let mut renewal =
            Self { identity, state: State::Planned { look_at: Instant::now() }, writing: JoinSet::new() };
        renewal.plan();
        renewal
    }

    /// Waits until something is to be done. Cancel-safe.
    pub(super) async fn next(&mut self) -> Step {
        match self.state {
            State::Planned { look_at } => {
                tokio::time::sleep_until(look_at).await;
                if self.identity.renewal_due_in() > LEAST_WAIT {
                    self.plan();
                    return Step::None;
                }
                self.ask()
            }
            State::Asked { until } => {
                tokio::time::sleep_until(until).await;
                self.failed(&format!("no answer within {ANSWER_TIMEOUT:?}"));
                Step::None
            }
            State::Writing => {
                match self.writing.join_next().await {
                    Some(Ok(Ok(ends))) => {
                        tracing::info!(valid_until = %jiff::Timestamp::try_from(ends).unwrap_or_default(), "the certificate has been renewed; the next dial shows the new one");
                        self.plan();
                    }
                    Some(Ok(Err(error))) => self.failed(&error.to_string()),
                    Some(Err(error)) => self.failed(&error.to_string()),
                    None => self.plan(),
                }
                Step::None
            }
        }
    }

    /// A request, now.
    pub(super) fn ask(&mut self) -> Step {
        if matches!(self.state, State::Writing) {
            // An answer is being written this instant; its successor would only race with it.
            return Step::None;
        }
        match self.identity.request() {
            Ok(csr) => {
                self.state = State::Asked { until: Instant::now() + ANSWER_TIMEOUT };
                Step::Ask(csr)
            }
            Err(error) => {
                self.failed(&error.to_string());
                Step::None
            }
        }
    }

    /// The gateway's answer.
    pub(super) fn on_certificate(&mut self, certificate: Certificate) {
        if !matches!(self.state, State::Asked { .. }) {
            tracing::warn!("a certificate came without a request for it; ignoring it");
            return;
        }
        let identity = self.identity.clone();
        self.writing.spawn(async move { identity.answer(&certificate.chain, &certificate.error).await });
        self.state = State::Writing;
    }

    fn failed(&mut self, reason: &str) {
        self.identity.renewal_failed();
        self.plan();
        tracing::warn!(reason, next_try_in = ?self.identity.renewal_due_in(), "the certificate was not renewed");
    }

    fn plan(&mut self) {
        let wait = self.identity.renewal_due_in().max(LEAST_WAIT);
        self.state = State::Planned { look_at: Instant::now() + wait };
    }
}
