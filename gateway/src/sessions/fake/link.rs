//! A network in memory: datagrams arrive at once, or not at all.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use holdfast_wire::transport::Socket;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// Datagrams that wait at one address; more are dropped, as a kernel would.
const INBOX: usize = 4096;

/// The network. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeWire(Arc<Mutex<Net>>);

#[derive(Debug, Default)]
struct Net {
    inboxes: HashMap<SocketAddr, Inbox>,
    cut: HashSet<SocketAddr>,
    next: u16,
}

#[derive(Debug, Default)]
struct Inbox {
    datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
}

impl FakeWire {
    /// A new address, and its socket.
    pub(crate) fn socket(&self) -> (SocketAddr, Socket) {
        let mut net = self.net();
        net.next += 1;
        let address = SocketAddr::from(([10, 0, 0, 1], 10_000 + net.next));
        net.inboxes.insert(address, Inbox::default());
        (address, Socket::Abstract(Arc::new(FakeSocket { address, wire: self.clone() })))
    }

    /// From now on nothing comes from or goes to `address`.
    pub(crate) fn cut(&self, address: SocketAddr) {
        self.net().cut.insert(address);
    }

    /// Heals it.
    pub(crate) fn heal(&self, address: SocketAddr) {
        self.net().cut.remove(&address);
    }

    fn net(&self) -> MutexGuard<'_, Net> {
        self.0.lock().unwrap()
    }
}

#[derive(Debug)]
struct FakeSocket {
    address: SocketAddr,
    wire: FakeWire,
}

impl AsyncUdpSocket for FakeSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut net = self.wire.net();
        if net.cut.contains(&self.address) || net.cut.contains(&transmit.destination) {
            return Ok(());
        }
        let Some(inbox) = net.inboxes.get_mut(&transmit.destination) else { return Ok(()) };
        if inbox.datagrams.len() < INBOX {
            inbox.datagrams.push_back((self.address, transmit.contents.to_vec()));
        }
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut net = self.wire.net();
        let inbox = net.inboxes.entry(self.address).or_default();
        let mut n = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some((addr, datagram)) = inbox.datagrams.pop_front() else { break };
            buf[..datagram.len()].copy_from_slice(&datagram);
            *meta = RecvMeta { addr, len: datagram.len(), stride: datagram.len(), ecn: None, dst_ip: None };
            n += 1;
        }
        if n > 0 {
            return Poll::Ready(Ok(n));
        }
        inbox.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
