//! What an open relay counts for: the session's slot, the gauge, and how it ended.

use std::time::Duration;

use tokio::time::Instant;

use crate::{sandboxes::Busy, sessions::RelaySlot};

/// Held as long as the relay is open. Dropped without [`ended`](Self::ended), its result is `abandoned`.
#[derive(Debug)]
pub struct RelayGuard {
    kind: &'static str,
    result: &'static str,
    opened: Instant,
    _slot: RelaySlot,
    /// Unless it only looks.
    _use: Option<Busy>,
}

impl RelayGuard {
    pub(super) fn new(kind: &'static str, slot: RelaySlot, busy: Option<Busy>) -> Self {
        metrics::gauge!("holdfast_relays_open").increment(1.0);
        Self { kind, result: "abandoned", opened: Instant::now(), _slot: slot, _use: busy }
    }

    /// How it ended: `done`, `refused`, `lost`, `caller_gone`, ... For the metric's label, so from a small set.
    pub fn ended(&mut self, result: &'static str) {
        self.result = result;
    }

    /// How long it has been open.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.opened.elapsed()
    }
}

impl Drop for RelayGuard {
    fn drop(&mut self) {
        metrics::gauge!("holdfast_relays_open").decrement(1.0);
        metrics::counter!("holdfast_relays_total", "kind" => self.kind, "result" => self.result).increment(1);
    }
}
