//! A switch that is on until an instant, and sockets that lose everything while it is on: a black hole to order.
//!
//! For users who want to see what a silent path does to their own cluster. Nothing here ends by being told so: a
//! black hole that could only be lifted over the path that it swallows would stay.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::time::Instant;

/// On until an instant, off otherwise. Clones are the same switch. Off, asking costs one load.
#[derive(Clone)]
pub struct Switch(Arc<Inner>);

struct Inner {
    epoch: Instant,
    /// Milliseconds after `epoch`, rounded up; 0 is off.
    until: AtomicU64,
}

impl Default for Switch {
    fn default() -> Self {
        Self(Arc::new(Inner { epoch: Instant::now(), until: AtomicU64::new(0) }))
    }
}

impl Switch {
    /// On for so long from now, whatever it was before; zero is off.
    pub fn turn_on(&self, time: Duration) {
        let after = (Instant::now() + time).duration_since(self.0.epoch);
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        self.0.until.store(if time.is_zero() { 0 } else { ms }, Ordering::Relaxed);
    }

    /// When it goes off; `None`: it is off.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        let ms = self.0.until.load(Ordering::Relaxed);
        if ms == 0 {
            return None;
        }
        let until = self.0.epoch + Duration::from_millis(ms);
        if Instant::now() < until {
            return Some(until);
        }
        // Unless it was turned on again meanwhile.
        let _ = self.0.until.compare_exchange(ms, 0, Ordering::Relaxed, Ordering::Relaxed);
        None
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.until().is_some()
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "Switch(on)" } else { "Switch(off)" })
    }
}

/// A socket that loses every packet, both ways, while its switch is on.
#[derive(Debug)]
pub(super) struct Leaky {
    pub(super) inner: Arc<dyn AsyncUdpSocket>,
    pub(super) lose: Switch,
}

impl AsyncUdpSocket for Leaky {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.lose.is_on() { Ok(()) } else { self.inner.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, bufs, meta);
        if matches!(received, Poll::Ready(Ok(_))) && self.lose.is_on() {
            // There may be more: this task comes back for it, after others have had their turn.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_switch_goes_off_by_itself() {
        let switch = Switch::default();
        assert!(!switch.is_on());
        switch.turn_on(Duration::from_secs(2));
        let same = switch.clone();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(same.is_on());
        tokio::time::advance(Duration::from_millis(1010)).await;
        assert!(!same.is_on() && !switch.is_on());
    }

    #[tokio::test(start_paused = true)]
    async fn a_switch_can_be_turned_off_and_on_again() {
        let switch = Switch::default();
        switch.turn_on(Duration::from_secs(60));
        switch.turn_on(Duration::ZERO);
        assert!(!switch.is_on());
        switch.turn_on(Duration::from_secs(1));
        assert!(switch.is_on());
    }
}
