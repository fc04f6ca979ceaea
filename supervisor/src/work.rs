//! What a session serves: the seam between the link and the rooms that do the work. With it the link is tested
//! without processes.

use async_trait::async_trait;
use holdfast_wire::{
    api::ExecInfo,
    control::{ExecCall, ExecRelay, FilesRelay, Health},
    transport::{MessageReader, SendStream},
};
use tokio::sync::watch;

use crate::{execs::Execs, files::Files, probe::Prober};

/// What relays and reports are made of. A future of it that is dropped is a session that ended: the caller may
/// come back.
#[async_trait]
pub trait Work: Send + Sync + std::fmt::Debug + 'static {
    /// Serves one exec relay to its end, the reply to its header included.
    async fn serve_relay(&self, request: ExecRelay, send: SendStream, recv: MessageReader);

    /// Serves one call, likewise.
    async fn serve_call(&self, call: ExecCall, send: SendStream, recv: MessageReader);

    /// Serves a transfer's relay, or a question about files, likewise.
    async fn serve_files(&self, request: FilesRelay, send: SendStream, recv: MessageReader);

    /// All execs, oldest first.
    fn report(&self) -> Vec<ExecInfo>;

    /// A revision that grows with every change of an exec.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The revision now, and what has changed after `revision`.
    fn changed_since(&self, revision: u64) -> (u64, Vec<ExecInfo>);

    /// How many execs have not ended.
    fn running(&self) -> watch::Receiver<usize>;

    /// Grows when something happened that makes it doubtful whether the sandbox works: it should be probed.
    fn doubts(&self) -> watch::Receiver<u64>;

    /// The gateway's bound on execs.
    fn set_max_execs(&self, most: usize);

    /// Probes exec and workspace, within a bound of its own. The nonce is left for the caller to fill in.
    async fn probe(&self) -> Health;
}

/// The real thing.
#[derive(Debug)]
pub(crate) struct Rooms {
    pub(crate) execs: Execs,
    pub(crate) files: Files,
    pub(crate) prober: Prober,
}

#[async_trait]
impl Work for Rooms {
    async fn serve_relay(&self, request: ExecRelay, send: SendStream, recv: MessageReader) {
        self.execs.serve_relay(request, send, recv).await;
    }

    async fn serve_call(&self, call: ExecCall, send: SendStream, recv: MessageReader) {
        self.execs.serve_call(call, send, recv).await;
    }

    async fn serve_files(&self, request: FilesRelay, send: SendStream, recv: MessageReader) {
        self.files.serve(request, send, recv).await;
    }

    fn report(&self) -> Vec<ExecInfo> {
        self.execs.report()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.execs.changes()
    }

    fn changed_since(&self, revision: u64) -> (u64, Vec<ExecInfo>) {
        self.execs.changed_since(revision)
    }

    fn running(&self) -> watch::Receiver<usize> {
        self.execs.running()
    }

    fn doubts(&self) -> watch::Receiver<u64> {
        self.execs.doubts()
    }

    fn set_max_execs(&self, most: usize) {
        self.execs.set_max_execs(most);
    }

    async fn probe(&self) -> Health {
        self.prober.probe(&self.execs).await
    }
}
