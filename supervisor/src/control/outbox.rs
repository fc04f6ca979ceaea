//! What the control stream has yet to say: one place for each kind of message, the latest one wins. It cannot
//! grow, however slow the path is.

use std::{collections::VecDeque, sync::Arc};

use holdfast_wire::{
    api::ExecInfo,
    control::{CertificateRequest, ExecReport, Health, Heartbeat, Leaving, Rebound, Resumed, Up, up::Body},
    limits,
};
use prost::Message;
use tokio::sync::watch;

use crate::work::Work;

/// The changes of one report, in encoded bytes: small enough to let a heartbeat pass in between.
const BATCH: usize = 256 * 1024;

/// A complete report has to be one message; where its execs' command lines (256 bytes each) make it too long, they
/// are cut to so many bytes. Nothing else in an `ExecInfo` grows.
const SHORT_COMMAND: usize = 32;

/// What is to be sent, most urgent first.
#[derive(Debug)]
pub(super) struct Outbox {
    echo: Option<u64>,
    beat: Option<u64>,
    resumed: Option<Resumed>,
    rebound: Option<Rebound>,
    certificate: Option<CertificateRequest>,
    health: Option<Health>,
    leaving: Option<Leaving>,
    execs: ExecReports,
}

impl Outbox {
    pub(super) fn new(work: &Arc<dyn Work>) -> Self {
        Self {
            echo: None,
            beat: None,
            resumed: None,
            rebound: None,
            certificate: None,
            health: None,
            leaving: None,
            execs: ExecReports::new(work),
        }
    }

    pub(super) fn echo(&mut self, seq: u64) {
        self.echo = Some(seq);
    }

    pub(super) fn beat(&mut self, seq: u64) {
        self.beat = Some(seq);
    }

    pub(super) fn resumed(&mut self, away_ms: u64) {
        self.resumed = Some(Resumed { away_ms });
    }

    pub(super) fn rebound(&mut self, rebinds: u64, reason: String) {
        self.rebound = Some(Rebound { rebinds, reason });
    }

    pub(super) fn certificate(&mut self, csr: Vec<u8>) {
        self.certificate = Some(CertificateRequest { csr: csr.into() });
    }

    pub(super) fn health(&mut self, health: Health) {
        self.health = Some(health);
    }

    /// The last message: sent when all else has been.
    pub(super) fn leaving(&mut self, reason: String) {
        self.leaving = Some(Leaving { reason });
    }

    /// Waits until an exec has changed since what was reported last.
    pub(super) async fn changed(&mut self) {
        self.execs.changed().await;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.echo.is_none()
            && self.beat.is_none()
            && self.resumed.is_none()
            && self.rebound.is_none()
            && self.certificate.is_none()
            && self.health.is_none()
            && self.leaving.is_none()
            && self.execs.is_empty()
    }

    /// The next message.
    pub(super) fn take(&mut self, work: &Arc<dyn Work>) -> Option<Up> {
        let beat = |seq, echo| Body::Heartbeat(Heartbeat { seq, echo });
        let body = self
            .echo
            .take()
            .map(|seq| beat(seq, true))
            .or_else(|| self.beat.take().map(|seq| beat(seq, false)))
            .or_else(|| self.resumed.take().map(Body::Resumed))
            .or_else(|| self.rebound.take().map(Body::Rebound))
            .or_else(|| self.certificate.take().map(Body::CertificateRequest))
            .or_else(|| self.execs.take(work).map(Body::Execs))
            .or_else(|| self.health.take().map(Body::Health))
            .or_else(|| self.leaving.take().map(Body::Leaving));
        body.map(|body| Up { body: Some(body) })
    }
}

/// The complete report first, then changes, in batches.
#[derive(Debug)]
struct ExecReports {
    changes: watch::Receiver<u64>,
    /// What has been put into reports so far; `None` before the complete one.
    reported: Option<u64>,
    stale: bool,
    batches: VecDeque<ExecReport>,
}

impl ExecReports {
    fn new(work: &Arc<dyn Work>) -> Self {
        Self { changes: work.changes(), reported: None, stale: true, batches: VecDeque::new() }
    }

    async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The execs are gone, so nothing will change.
            std::future::pending::<()>().await;
        }
        self.stale = true;
    }

    fn is_empty(&self) -> bool {
        self.batches.is_empty() && !self.stale
    }

    fn take(&mut self, work: &Arc<dyn Work>) -> Option<ExecReport> {
        if self.batches.is_empty() && self.stale {
            self.stale = false;
            match self.reported {
                None => {
                    // The revision first: what changes in between is then reported twice rather than not at all.
                    self.reported = Some(*self.changes.borrow_and_update());
                    self.batches.push_back(complete(work.report()));
                }
                Some(reported) => {
                    let (revision, execs) = work.changed_since(reported);
                    self.reported = Some(revision);
                    self.batches.extend(batches(execs));
                }
            }
        }
        self.batches.pop_front()
    }
}

fn complete(execs: Vec<ExecInfo>) -> ExecReport {
    let mut report = ExecReport { complete: true, execs };
    // The envelope adds a tag and a length.
    if report.encoded_len() + 16 > limits::MAX_MESSAGE {
        for exec in &mut report.execs {
            let end = exec.command.floor_char_boundary(SHORT_COMMAND);
            exec.command.truncate(end);
        }
    }
    report
}

fn batches(execs: Vec<ExecInfo>) -> Vec<ExecReport> {
    let mut batches = Vec::new();
    let (mut batch, mut size) = (Vec::new(), 0);
    for exec in execs {
        let length = exec.encoded_len();
        if size + length > BATCH && !batch.is_empty() {
            batches.push(ExecReport { complete: false, execs: std::mem::take(&mut batch) });
            size = 0;
        }
        size += length;
        batch.push(exec);
    }
    if !batch.is_empty() {
        batches.push(ExecReport { complete: false, execs: batch });
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn execs(count: usize, command: usize) -> Vec<ExecInfo> {
        (0..count)
            .map(|n| ExecInfo {
                exec_id: format!("{n:036}"),
                command: "ü".repeat(command / 2),
                spec_digest: vec![7; 32].into(),
                ..ExecInfo::default()
            })
            .collect()
    }

    #[test]
    fn a_complete_report_always_fits_into_one_message() {
        for command in [0, 256, 768, 4096] {
            let report = complete(execs(limits::MAX_EXECS, command));
            let message = Up { body: Some(Body::Execs(report)) };
            assert!(message.encoded_len() <= limits::MAX_MESSAGE, "commands of {command} bytes");
        }
    }

    proptest! {
        #[test]
        fn batches_keep_every_exec_in_order_and_fit(count in 0usize..400, command in 0usize..4096) {
            let all = execs(count, command);
            let batches = batches(all.clone());
            for batch in &batches {
                prop_assert!(!batch.complete && !batch.execs.is_empty());
                prop_assert!(batch.encoded_len() < limits::MAX_MESSAGE);
            }
            let joined: Vec<ExecInfo> = batches.into_iter().flat_map(|batch| batch.execs).collect();
            prop_assert_eq!(joined, all);
        }
    }
}
