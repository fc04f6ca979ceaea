//! A network in memory: hosts, the lines that join them, NAT boxes, and the sockets that quinn uses.
//!
//! ```text
//!   socket ─▶ host's NAT ─▶ host's up line ─▶ (in flight) ─▶ peer's down line ─▶ peer's NAT ─▶ peer's socket
//!                                                  │
//!                                               courier: one task, sleeps until the next packet arrives
//! ```
//!
//! Hosts are joined by a net without faults of its own: what happens to a packet is decided by its sender's up line
//! and its receiver's down line, at the moment at which it is sent; whether anybody is there to take it, when it
//! arrives. All time is tokio's, so under a paused clock hours pass in milliseconds. Sockets are bound as to a
//! wildcard: they follow their host's address.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    line::{self, Impairments, Line},
    nat::{self, Nat},
};

/// What a socket keeps that nobody reads, in bytes; beyond it packets vanish, as in a kernel.
const SOCKET_BUFFER: usize = 4 << 20;

/// The network. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Net {
    shared: Arc<Shared>,
}

/// One host of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostId(usize);

/// Which way a packet goes, seen from a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the host.
    Up,
    /// To the host.
    Down,
    /// Both.
    Both,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    sooner: Arc<Notify>,
    seed: u64,
}

#[derive(Debug, Default)]
struct State {
    hosts: Vec<Host>,
    in_flight: BinaryHeap<Reverse<Flight>>,
    sent: u64,
    delivered: u64,
    nobody: u64,
}

#[derive(Debug)]
struct Host {
    ip: IpAddr,
    nat: Option<Nat>,
    up: Line,
    down: Line,
    sockets: HashMap<u16, Weak<Inbox>>,
    last_port: u16,
}

/// A packet on its way. The earliest is the greatest, and of several at one instant the first that was sent.
#[derive(Debug)]
struct Flight {
    at: Instant,
    number: u64,
    from: SocketAddr,
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
    data: Bytes,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What happened to the packets of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCounts {
    /// On its line to the net.
    pub up: line::Counts,
    /// On its line from the net.
    pub down: line::Counts,
    /// In its NAT box, if it has one.
    pub nat: nat::Counts,
}

impl Net {
    /// An empty network. Its courier runs until the last clone and the last socket are gone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let sooner = Arc::new(Notify::new());
        let shared = Arc::new(Shared { state: Mutex::default(), sooner: Arc::clone(&sooner), seed });
        TaskTracker::new().spawn(courier(Arc::downgrade(&shared), sooner));
        Self { shared }
    }

    /// A host with this address. Its lines are perfect until they are impaired.
    pub fn host(&self, ip: IpAddr) -> HostId {
        let mut state = self.state();
        let id = HostId(state.hosts.len());
        let line = |way| Line::new(self.shared.seed, format!("{way} of host {}", id.0));
        let (up, down) = (line("up"), line("down"));
        state.hosts.push(Host { ip, nat: None, up, down, sockets: HashMap::new(), last_port: 40_000 });
        id
    }

    /// Puts a NAT box before a host.
    pub fn nat(&self, host: HostId, public: IpAddr, idle: std::time::Duration) {
        let seed = self.shared.seed;
        self.state().hosts[host.0].nat = Some(Nat::new(seed, public, idle));
    }

    /// Changes a host's NAT box, if it has one.
    pub fn with_nat(&self, host: HostId, change: impl FnOnce(&mut Nat)) {
        if let Some(nat) = &mut self.state().hosts[host.0].nat {
            change(nat);
        }
    }

    /// From now on the host's packets suffer this.
    pub fn impair(&self, host: HostId, way: Way, impairments: Impairments) {
        self.lines(host, way, |line| line.impair(impairments));
    }

    /// From now on the host's packets vanish, or do so no more.
    pub fn blackhole(&self, host: HostId, way: Way, on: bool) {
        self.lines(host, way, |line| line.blackhole(on));
    }

    /// The host gets another address. Its sockets follow; what is on its way to the old one is lost.
    pub fn readdress(&self, host: HostId, ip: IpAddr) {
        self.state().hosts[host.0].ip = ip;
    }

    /// All sockets of the host go dead without a word: nothing leaves them, nothing comes. Their owners notice
    /// nothing, as the dead do not.
    pub fn kill_sockets(&self, host: HostId) {
        let sockets = std::mem::take(&mut self.state().hosts[host.0].sockets);
        for inbox in sockets.into_values().filter_map(|inbox| inbox.upgrade()) {
            inbox.dead.store(true, Ordering::Relaxed);
        }
    }

    /// A socket of the host; `port` 0: any that is free.
    ///
    /// # Errors
    /// `AddrInUse`.
    pub fn bind(&self, host: HostId, port: u16) -> io::Result<Arc<SimSocket>> {
        let mut state = self.state();
        let host_state = &mut state.hosts[host.0];
        host_state.sockets.retain(|_, inbox| inbox.strong_count() > 0);
        let port = if port == 0 { host_state.free_port()? } else { port };
        if host_state.sockets.contains_key(&port) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("port {port} of {host:?}")));
        }
        let inbox = Arc::new(Inbox::default());
        host_state.sockets.insert(port, Arc::downgrade(&inbox));
        Ok(Arc::new(SimSocket { net: self.clone(), host, port, inbox }))
    }

    /// The host's own address now, not its NAT box'.
    #[must_use]
    pub fn address(&self, host: HostId) -> IpAddr {
        self.state().hosts[host.0].ip
    }

    /// Sockets of the host that are in use.
    #[must_use]
    pub fn sockets(&self, host: HostId) -> usize {
        self.state().hosts[host.0].sockets.values().filter(|inbox| inbox.strong_count() > 0).count()
    }

    /// What happened to its packets.
    #[must_use]
    pub fn counts(&self, host: HostId) -> HostCounts {
        let state = self.state();
        let host = &state.hosts[host.0];
        HostCounts {
            up: host.up.counts(),
            down: host.down.counts(),
            nat: host.nat.as_ref().map(Nat::counts).unwrap_or_default(),
        }
    }

    fn lines(&self, host: HostId, way: Way, mut change: impl FnMut(&mut Line)) {
        let mut state = self.state();
        let host = &mut state.hosts[host.0];
        if way != Way::Down {
            change(&mut host.up);
        }
        if way != Way::Up {
            change(&mut host.down);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers what is due; when the next one is.
    fn deliver(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state();
        while let Some(Reverse(flight)) = state.in_flight.peek() {
            if flight.at > now {
                return Some(flight.at);
            }
            let Some(Reverse(flight)) = state.in_flight.pop() else { break };
            state.arrive(flight, now);
        }
        None
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.sooner.notify_one();
    }
}

/// Delivers packets when they are due.
async fn courier(net: Weak<Shared>, sooner: Arc<Notify>) {
    loop {
        let Some(next) = net.upgrade().map(|net| net.deliver(Instant::now())) else { return };
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = sooner.notified() => {}
        }
    }
}

impl Host {
    fn free_port(&mut self) -> io::Result<u16> {
        for _ in 0..u16::MAX {
            self.last_port = self.last_port.checked_add(1).unwrap_or(40_000);
            if !self.sockets.contains_key(&self.last_port) {
                return Ok(self.last_port);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no port is free"))
    }
}

impl State {
    /// The host that packets to this address go to.
    fn route(&self, ip: IpAddr) -> Option<usize> {
        self.hosts.iter().position(|host| host.nat.as_ref().map_or(host.ip, Nat::public) == ip)
    }

    /// Sends a packet; says whether anything is due earlier than before.
    fn send(
        &mut self,
        host: HostId,
        port: u16,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
        data: &[u8],
        now: Instant,
    ) -> bool {
        let before = self.in_flight.peek().map(|Reverse(flight)| flight.at);
        let sender = &mut self.hosts[host.0];
        let inner = SocketAddr::new(sender.ip, port);
        let from = match &mut sender.nat {
            None => inner,
            Some(nat) => match nat.outbound(inner, to, now) {
                Some(public) => public,
                None => return false,
            },
        };
        let copies = sender.up.send(data.len(), now);
        let Some(receiver) = self.route(to.ip()) else {
            self.nobody += 1;
            return false;
        };
        for copy in copies {
            for last in self.hosts[receiver].down.send(data.len(), copy.at) {
                let mut bytes = BytesMut::from(data);
                for (place, mask) in [copy.damage, last.damage].into_iter().flatten() {
                    bytes[place] ^= mask;
                }
                self.sent += 1;
                let flight = Flight { at: last.at, number: self.sent, from, to, ecn, data: bytes.freeze() };
                self.in_flight.push(Reverse(flight));
            }
        }
        let after = self.in_flight.peek().map(|Reverse(flight)| flight.at);
        match (before, after) {
            (Some(before), Some(after)) => after < before,
            (before, after) => before.is_none() && after.is_some(),
        }
    }

    fn arrive(&mut self, flight: Flight, now: Instant) {
        let inbox = self.route(flight.to.ip()).and_then(|host| {
            let host = &mut self.hosts[host];
            let inner = match &mut host.nat {
                None => flight.to,
                Some(nat) => nat.inbound(flight.to.port(), flight.from, now)?,
            };
            // A mapping may still name the address that the host had.
            (inner.ip() == host.ip).then(|| host.sockets.get(&inner.port())?.upgrade()).flatten()
        });
        match inbox {
            Some(inbox) => {
                self.delivered += 1;
                inbox.put(flight);
            }
            None => self.nobody += 1,
        }
    }
}

/// What has come for a socket.
#[derive(Debug, Default)]
struct Inbox {
    waiting: Mutex<Waiting>,
    dead: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    packets: VecDeque<Flight>,
    bytes: usize,
    reader: Option<Waker>,
}

impl Inbox {
    fn put(&self, flight: Flight) {
        let mut waiting = self.waiting();
        if waiting.bytes + flight.data.len() <= SOCKET_BUFFER {
            waiting.bytes += flight.data.len();
            waiting.packets.push_back(flight);
        }
        if let Some(reader) = waiting.reader.take() {
            reader.wake();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A UDP socket of a simulated host.
pub struct SimSocket {
    net: Net,
    host: HostId,
    port: u16,
    inbox: Arc<Inbox>,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimSocket")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.inbox.dead.load(Ordering::Relaxed) {
            return Ok(());
        }
        let now = Instant::now();
        let mut state = self.net.state();
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let mut sooner = false;
        for data in transmit.contents.chunks(size) {
            sooner |= state.send(self.host, self.port, transmit.destination, transmit.ecn, data, now);
        }
        drop(state);
        if sooner {
            self.net.shared.sooner.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut waiting = self.inbox.waiting();
        let mut count = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta) {
            let Some(flight) = waiting.packets.pop_front() else { break };
            waiting.bytes -= flight.data.len();
            // A packet that is longer than the buffer is cut, as a kernel does.
            let len = flight.data.len().min(buffer.len());
            buffer[..len].copy_from_slice(&flight.data[..len]);
            *meta = RecvMeta { addr: flight.from, len, stride: len, ecn: flight.ecn, dst_ip: None };
            count += 1;
        }
        if count == 0 {
            waiting.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::new(self.net.address(self.host), self.port))
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let mut state = self.net.state();
        let sockets = &mut state.hosts[self.host.0].sockets;
        // After a kill the port may be another's.
        if sockets.get(&self.port).is_some_and(|inbox| std::ptr::eq(inbox.as_ptr(), Arc::as_ptr(&self.inbox)))
        {
            sockets.remove(&self.port);
        }
    }
}

/// The simulated network takes packets at any time; what does not fit vanishes on a line.
#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
