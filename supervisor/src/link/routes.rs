//! Notices that this machine's network has changed, and asks the kernel which way leads to the gateway now.
//!
//! ```text
//!   rtnetlink: an address or a route came or went ──▶ 0.3 s to settle ──▶ link ──▶ session: still the same way?
//!                                                                          └──▶ a dial that waits: now
//! ```
//!
//! The notice is only the occasion; what counts is the kernel's answer to "by which interface, gateway and source
//! address do packets for this peer leave?". So a container that comes and goes beside this one changes nothing,
//! and a new default route, a renumbered interface or a cable that is back is seen within a second, without relays
//! and without waiting for silence. Nothing is polled; where the socket is refused (a seccomp profile, another
//! kernel), the link goes without and silence has to tell.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
    send, socket_with,
};
use tokio::{io::Interest, net::UdpSocket, sync::mpsc};
use tokio_util::sync::CancellationToken;

/// One change is many messages (an address goes, its routes go, a new one comes): looked at when they are over.
const SETTLE: Duration = Duration::from_millis(300);

/// Between two looks: a flapping interface moves the connection at most once a second.
const EVERY: Duration = Duration::from_secs(1);

/// Messages that are taken for one change.
const READS: usize = 256;

/// Larger than any answer about one route; notices are not even read.
const BUFFER: usize = 8192;

/// The way to a peer, as far as a change of it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface's number.
    pub interface: u32,
    /// The next router, if the peer is not a neighbour.
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel prefers.
    pub source: Option<IpAddr>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interface {}", self.interface)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        Ok(())
    }
}

/// Where the machine tells of its network; a simulation brings its own, or none.
pub trait Routes: Send + Sync + fmt::Debug + 'static {
    /// Begins to listen for changes.
    ///
    /// # Errors
    /// The kernel gives no such socket.
    fn listen(&self) -> io::Result<Box<dyn Notices>>;

    /// The way to `peer` now; `None`: there is none.
    fn towards(&self, peer: SocketAddr) -> Option<Route>;
}

/// What is heard of changes.
#[async_trait]
pub trait Notices: Send {
    /// Waits until something has changed.
    async fn next(&mut self) -> io::Result<()>;
}

/// Tells `changed` of each change, settled and at most once a second, until `token` is cancelled.
pub(crate) async fn watch(routes: Arc<dyn Routes>, changed: mpsc::Sender<()>, token: CancellationToken) {
    let watching = async {
        let mut notices = match routes.listen() {
            Ok(notices) => notices,
            Err(error) => {
                return tracing::info!(%error, "changes of the network are not told here; silence will tell");
            }
        };
        loop {
            if let Err(error) = notices.next().await {
                return tracing::warn!(%error, "changes of the network are not told any more");
            }
            tokio::time::sleep(SETTLE).await;
            if changed.send(()).await.is_err() {
                return;
            }
            tokio::time::sleep(EVERY - SETTLE).await;
        }
    };
    tokio::select! {
        () = watching => {}
        () = token.cancelled() => {}
    }
}

/// The kernel's, by rtnetlink.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRoutes;

impl Routes for SystemRoutes {
    fn listen(&self) -> io::Result<Box<dyn Notices>> {
        let groups = message::GROUP_IPV4_ADDRESS
            | message::GROUP_IPV4_ROUTE
            | message::GROUP_IPV6_ADDRESS
            | message::GROUP_IPV6_ROUTE;
        Ok(Box::new(Listening(UdpSocket::from_std(socket(groups)?.into())?)))
    }

    fn towards(&self, peer: SocketAddr) -> Option<Route> {
        let socket = socket(0).ok()?;
        send(&socket, &message::question(peer.ip()), SendFlags::empty()).ok()?;
        // The kernel has answered by the time the question is sent.
        let mut answer = [0; BUFFER];
        let (_, length) = recv(&socket, &mut answer[..], RecvFlags::DONTWAIT).ok()?;
        message::answer(answer.get(..length)?)
    }
}

fn socket(groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // No protocol is the first one: NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// No UDP, but a socket of datagrams all the same, and tokio's one type for those that it waits for without our
/// having to promise anything.
struct Listening(UdpSocket);

#[async_trait]
impl Notices for Listening {
    async fn next(&mut self) -> io::Result<()> {
        loop {
            self.0.readable().await?;
            // The first read tells, the others clear what belongs to the same change.
            match self.0.try_io(Interest::READABLE, || discard(&self.0)) {
                Ok(()) => {
                    // Bounded: a storm of changes is told as it goes on.
                    let _over = (0..READS).all(|_| discard(&self.0).is_ok());
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Reads one message and forgets it.
fn discard(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
        // So much has changed that some of it was dropped: it has changed.
        Ok(_) | Err(rustix::io::Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// rtnetlink's bytes (rtnetlink(7)), as little of them as is needed.
mod message {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::Route;

    pub(super) const GROUP_IPV4_ADDRESS: u32 = 0x10;
    pub(super) const GROUP_IPV4_ROUTE: u32 = 0x40;
    pub(super) const GROUP_IPV6_ADDRESS: u32 = 0x100;
    pub(super) const GROUP_IPV6_ROUTE: u32 = 0x400;

    const NEW_ROUTE: u16 = 24;
    const GET_ROUTE: u16 = 26;
    const REQUEST: u16 = 1;
    const DESTINATION: u16 = 1;
    const OUT_INTERFACE: u16 = 4;
    const GATEWAY: u16 = 5;
    const PREFERRED_SOURCE: u16 = 7;
    /// A message's header, and what describes a route before its attributes.
    const HEADER: usize = 16;
    const ROUTE: usize = 12;

    /// "Which way leads to `peer`?"
    pub(super) fn question(peer: IpAddr) -> Vec<u8> {
        let (family, address) = match peer {
            IpAddr::V4(v4) => (2, v4.octets().to_vec()),
            IpAddr::V6(v6) => (10, v6.octets().to_vec()),
        };
        let attribute = 4 + address.len();
        let length = HEADER + ROUTE + attribute;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
        bytes.extend(GET_ROUTE.to_ne_bytes());
        bytes.extend(REQUEST.to_ne_bytes());
        // Sequence and port: there is one question a socket.
        bytes.extend([0; 8]);
        bytes.extend([family, u8::try_from(8 * address.len()).unwrap_or_default()]);
        bytes.extend([0; ROUTE - 2]);
        bytes.extend(u16::try_from(attribute).unwrap_or_default().to_ne_bytes());
        bytes.extend(DESTINATION.to_ne_bytes());
        bytes.extend(address);
        bytes
    }

    /// The way that an answer names; `None` where it names none, or says that there is none.
    pub(super) fn answer(bytes: &[u8]) -> Option<Route> {
        let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let mut attributes = bytes.get(HEADER + ROUTE..length)?;
        if kind != NEW_ROUTE {
            return None;
        }
        let (mut interface, mut gateway, mut source) = (None, None, None);
        while let Some(head) = attributes.get(..4) {
            let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
            let value = attributes.get(4..length)?;
            match u16::from_ne_bytes([head[2], head[3]]) {
                OUT_INTERFACE => interface = Some(u32::from_ne_bytes(value.try_into().ok()?)),
                GATEWAY => gateway = address(value),
                PREFERRED_SOURCE => source = address(value),
                _ => {}
            }
            attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(Route { interface: interface?, gateway, source })
    }

    fn address(bytes: &[u8]) -> Option<IpAddr> {
        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            return Some(Ipv4Addr::from(v4).into());
        }
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_kernel_knows_the_way_to_itself() {
        let route = SystemRoutes.towards("127.0.0.1:1".parse().unwrap()).expect("there is a loopback");
        assert_eq!(route.source, Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(route.gateway, None);
        assert!(route.interface > 0);
    }

    #[test]
    fn an_error_is_no_way() {
        // NLMSG_ERROR with -ENETUNREACH.
        let mut bytes = vec![0; 36];
        bytes[..4].copy_from_slice(&36u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&2u16.to_ne_bytes());
        bytes[16..20].copy_from_slice(&(-101i32).to_ne_bytes());
        assert_eq!(message::answer(&bytes), None);
    }

    #[test]
    fn a_way_is_shown_in_words() {
        let route =
            Route { interface: 2, gateway: "10.77.1.1".parse().ok(), source: "10.77.1.3".parse().ok() };
        assert_eq!(route.to_string(), "interface 2 via 10.77.1.1 from 10.77.1.3");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = message::answer(&bytes);
        }

        #[test]
        fn no_attributes_are_too_strange(attributes in proptest::collection::vec(any::<u8>(), 0..96)) {
            let mut bytes = vec![0; 28];
            bytes.extend(&attributes);
            let length = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&24u16.to_ne_bytes());
            let _ = message::answer(&bytes);
        }
    }

    /// Says when it is asked, and changes when it is told.
    #[derive(Debug)]
    struct FakeRoutes(std::sync::Mutex<Option<mpsc::Receiver<()>>>);

    struct FakeNotices(mpsc::Receiver<()>);

    #[async_trait]
    impl Notices for FakeNotices {
        async fn next(&mut self) -> io::Result<()> {
            self.0.recv().await.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
        }
    }

    impl Routes for FakeRoutes {
        fn listen(&self) -> io::Result<Box<dyn Notices>> {
            let notices = self.0.lock().unwrap().take().ok_or(io::ErrorKind::PermissionDenied)?;
            Ok(Box::new(FakeNotices(notices)))
        }

        fn towards(&self, _: SocketAddr) -> Option<Route> {
            None
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flapping_network_is_looked_at_once_a_second() {
        let (flap, flaps) = mpsc::channel(1000);
        let (changed, mut changes) = mpsc::channel(1000);
        let routes = Arc::new(FakeRoutes(std::sync::Mutex::new(Some(flaps))));
        let began = tokio::time::Instant::now();
        let flapping = async {
            for _ in 0..100 {
                flap.send(()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let token = CancellationToken::new();
        let looking = watch(routes, changed, token.clone());
        tokio::select! {
            () = looking => panic!("it looks until it is told to stop"),
            () = flapping => {}
        }
        let mut looks = 0;
        while changes.try_recv().is_ok() {
            looks += 1;
        }
        assert!((9..=11).contains(&looks), "{looks} looks in {:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn where_nothing_is_told_the_link_goes_without() {
        let (changed, _changes) = mpsc::channel(1);
        let routes = Arc::new(FakeRoutes(std::sync::Mutex::new(None)));
        watch(routes, changed, CancellationToken::new()).await;
    }
}
