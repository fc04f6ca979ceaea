//! Faults on purpose: what an operator orders through the gateway to see what it does to callers.
//!
//! ```text
//!   Down.chaos ─▶ begin ── DROP_PATH ─▶ lose: every socket of this supervisor, dials too
//!                       ── STALL ─────▶ stall: sessions are not polled (QUIC's own task goes on)
//!                       ── REBIND ────▶ a new socket, now
//! ```
//!
//! Each lasts at most [`timing::CHAOS_MAX`] and ends by itself: the order to end it might not arrive.

use std::{future::poll_fn, pin::pin, task::ready, time::Duration};

use holdfast_wire::{
    control::{Chaos, ChaosKind},
    timing,
    transport::Switch,
};
use tokio::time::{Instant, sleep_until};

use crate::link::liveness::Act;

/// The faults of one supervisor, shared by all of its sessions and dials.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Every packet is lost.
    pub(crate) lose: Switch,
    /// Nothing is read or written.
    pub(crate) stall: Switch,
}

impl Faults {
    /// Begins what was ordered; what the session has to do for it, if anything.
    pub(super) fn begin(&self, order: &Chaos) -> Option<Act> {
        let time = Duration::from_millis(order.for_ms).min(timing::CHAOS_MAX);
        match order.kind() {
            ChaosKind::DropPath => {
                tracing::warn!(?time, "on request: losing every packet");
                self.lose.turn_on(time);
                None
            }
            ChaosKind::Stall => {
                tracing::warn!(?time, "on request: neither reading nor writing");
                self.stall.turn_on(time);
                None
            }
            ChaosKind::Rebind => {
                tracing::warn!("on request: moving to a new socket");
                Some(Act::Rebind)
            }
            ChaosKind::Unspecified => {
                tracing::warn!(kind = order.kind, "a fault that this version does not know; skipping it");
                None
            }
        }
    }
}

/// The future, which makes no progress while `stall` is on.
pub(crate) async fn unless_stalled<F: Future>(stall: &Switch, future: F) -> F::Output {
    let mut future = pin!(future);
    let mut over = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        if let Some(until) = stall.until() {
            over.as_mut().reset(until);
            // What wakes the future meanwhile comes here; it is polled once the time is over.
            ready!(over.as_mut().poll(cx));
        }
        future.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(kind: ChaosKind, for_ms: u64) -> Chaos {
        Chaos { kind: kind.into(), for_ms }
    }

    #[tokio::test(start_paused = true)]
    async fn a_mistaken_order_is_over_within_the_bound() {
        let faults = Faults::default();
        assert!(faults.begin(&order(ChaosKind::DropPath, u64::MAX)).is_none());
        assert!(faults.lose.is_on() && !faults.stall.is_on());
        tokio::time::advance(timing::CHAOS_MAX + Duration::from_millis(10)).await;
        assert!(!faults.lose.is_on());
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_fault_does_nothing() {
        let faults = Faults::default();
        assert!(faults.begin(&Chaos { kind: 99, for_ms: 1000 }).is_none());
        assert!(!faults.lose.is_on() && !faults.stall.is_on());
        assert!(matches!(faults.begin(&order(ChaosKind::Rebind, 0)), Some(Act::Rebind)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_stalled_goes_on_afterwards() {
        let stall = Switch::default();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
        let began = Instant::now();
        stall.turn_on(Duration::from_secs(5));
        sender.send(7).await.unwrap();
        assert_eq!(unless_stalled(&stall, receiver.recv()).await, Some(7));
        assert!(began.elapsed() >= Duration::from_secs(5), "{:?}", began.elapsed());
    }
}
