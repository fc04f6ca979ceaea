//! The frame filter: what a machine may say to the network outside of it.
//!
//! ```text
//!   machine ── frames ──▶ Sieve ──▶ policy: to the gateway? allowed by egress? ──▶ gvproxy ──▶ host
//!           ◀── frames ── Sieve ◀── policy: from there? ◀───────────────────────
//! ```
//!
//! gvproxy is the machine's switch, router and NAT. It also serves an API to its guest, which opens listeners on the
//! host and removes files, and it lets the guest reach everything that listens on the host's loopback; no flag turns
//! either off. So nothing of the machine reaches gvproxy but what this filter lets through. It is a pure function of a
//! frame and a policy, beside a [`Sieve`] that cuts a byte stream into frames.

pub mod frame;
mod sieve;

use std::net::{Ipv4Addr, SocketAddrV4};

use self::frame::{Content, Frame, Strange, parse};
pub use self::sieve::{MAX_FRAME, Oversized, Sieve};
use super::launch::Egress;

/// The machine's own address, by gvproxy's static lease.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
/// gvproxy: the router, the resolver, and the API that must not be reached.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
/// The host's loopback, as the machine would see it.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 254);
/// The largest packet between machine and gvproxy, in bytes: the largest QUIC datagram (`holdfast_wire`'s MTU discovery
/// ends at 6500) and its headers. No cable is there to ask for less, and each packet costs the same, however long it is.
pub const MTU: u16 = 6528;
/// Where names are asked for.
const DNS: u16 = 53;

/// What one machine may reach.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The gateway's QUIC address, as the machine sees it.
    pub gateway: SocketAddrV4,
    /// What else.
    pub egress: Egress,
}

/// Why a frame was not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not understood.
    Strange(Strange),
    /// It says that it comes from somebody else.
    Spoofed,
    /// It would go where the policy does not lead.
    Target,
}

impl Policy {
    /// Whether a frame of the machine is passed on.
    ///
    /// # Errors
    /// Why not.
    pub fn outbound(&self, frame: &[u8]) -> Result<(), Refusal> {
        match parse(frame).map_err(Refusal::Strange)? {
            // A machine without an address yet asks with 0.0.0.0.
            Frame::Arp { sender } if sender == GUEST || sender.is_unspecified() => Ok(()),
            Frame::Arp { .. } => Err(Refusal::Spoofed),
            Frame::Ipv4 { source, .. } if source != GUEST => Err(Refusal::Spoofed),
            Frame::Ipv4 { target, content, .. } if self.may_reach(target, content.target(), content) => {
                Ok(())
            }
            Frame::Ipv4 { .. } => Err(Refusal::Target),
        }
    }

    /// Whether a frame for the machine is passed on: answers come from where questions may go.
    ///
    /// # Errors
    /// Why not.
    pub fn inbound(&self, frame: &[u8]) -> Result<(), Refusal> {
        match parse(frame).map_err(Refusal::Strange)? {
            Frame::Arp { .. } => Ok(()),
            Frame::Ipv4 { target, .. } if target != GUEST => Err(Refusal::Target),
            Frame::Ipv4 { source, content, .. } if self.may_reach(source, content.source(), content) => {
                Ok(())
            }
            Frame::Ipv4 { .. } => Err(Refusal::Spoofed),
        }
    }

    fn may_reach(&self, there: Ipv4Addr, port: u16, content: Content) -> bool {
        if (there, port) == (*self.gateway.ip(), self.gateway.port()) {
            return matches!(content, Content::Udp { .. });
        }
        match self.egress {
            Egress::None => false,
            // The resolver, and of its host nothing else: on port 80 is the API.
            Egress::Internet if there == ROUTER => port == DNS && !matches!(content, Content::Echo),
            Egress::Internet => is_public(there),
        }
    }
}

impl Content {
    fn source(self) -> u16 {
        match self {
            Self::Udp { source, .. } | Self::Tcp { source, .. } => source,
            Self::Echo => 0,
        }
    }

    fn target(self) -> u16 {
        match self {
            Self::Udp { target, .. } | Self::Tcp { target, .. } => target,
            Self::Echo => 0,
        }
    }
}

/// An address of the internet: not this network, not a private one, not this host, nobody's group.
fn is_public(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_multicast()
        || shared
        || a == 0
        || a >= 240)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        frame::samples::{arp, ipv4, tcp_content, udp_content},
        *,
    };

    const PORT: u16 = 7443;

    fn policy(egress: Egress) -> Policy {
        Policy { gateway: SocketAddrV4::new(HOST, PORT), egress }
    }

    fn udp(target: Ipv4Addr, port: u16) -> Vec<u8> {
        ipv4(GUEST, target, 17, 0, &udp_content(40000, port, 10))
    }

    fn tcp(target: Ipv4Addr, port: u16) -> Vec<u8> {
        ipv4(GUEST, target, 6, 0, &tcp_content(40000, port))
    }

    #[test]
    fn the_gateway_is_reached_under_every_policy() {
        for egress in [Egress::None, Egress::Internet] {
            assert_eq!(policy(egress).outbound(&udp(HOST, PORT)), Ok(()));
            assert_eq!(policy(egress).outbound(&arp(GUEST)), Ok(()));
            let answer = ipv4(HOST, GUEST, 17, 0, &udp_content(PORT, 40000, 10));
            assert_eq!(policy(egress).inbound(&answer), Ok(()));
        }
    }

    #[test]
    fn the_api_the_hosts_loopback_and_other_ports_are_never_reached() {
        for egress in [Egress::None, Egress::Internet] {
            for frame in [
                tcp(ROUTER, 80),
                tcp(HOST, PORT),
                tcp(HOST, 80),
                udp(HOST, PORT + 1),
                udp(ROUTER, PORT),
                tcp(Ipv4Addr::LOCALHOST, 80),
                tcp(Ipv4Addr::new(169, 254, 169, 254), 80),
                tcp(Ipv4Addr::new(10, 0, 0, 1), 22),
                udp(Ipv4Addr::BROADCAST, 67),
            ] {
                assert_eq!(policy(egress).outbound(&frame), Err(Refusal::Target));
            }
        }
    }

    #[test]
    fn the_internet_is_reached_only_when_it_is_allowed() {
        for frame in [tcp(Ipv4Addr::new(1, 1, 1, 1), 443), udp(ROUTER, DNS), tcp(ROUTER, DNS)] {
            assert_eq!(policy(Egress::None).outbound(&frame), Err(Refusal::Target));
            assert_eq!(policy(Egress::Internet).outbound(&frame), Ok(()));
        }
    }

    #[test]
    fn a_machine_speaks_in_its_own_name() {
        let other = Ipv4Addr::new(192, 168, 127, 3);
        let frame = ipv4(other, HOST, 17, 0, &udp_content(1, PORT, 0));
        assert_eq!(policy(Egress::None).outbound(&frame), Err(Refusal::Spoofed));
        assert_eq!(policy(Egress::None).outbound(&arp(ROUTER)), Err(Refusal::Spoofed));
    }

    #[test]
    fn a_fragment_to_the_gateway_is_refused() {
        let frame = ipv4(GUEST, HOST, 17, 0x2000, &udp_content(1, PORT, 0));
        assert_eq!(policy(Egress::None).outbound(&frame), Err(Refusal::Strange(Strange::Fragment)));
    }

    proptest! {
        #[test]
        fn without_egress_only_arp_and_datagrams_to_the_gateway_pass(
            frame in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..120),
                (any::<u32>(), any::<u16>(), prop_oneof![Just(17_u8), Just(6), Just(1), any::<u8>()], any::<u16>())
                    .prop_map(|(target, port, protocol, fragment)| {
                        ipv4(GUEST, Ipv4Addr::from(target), protocol, fragment, &udp_content(9, port, 12))
                    }),
            ],
        ) {
            if policy(Egress::None).outbound(&frame).is_ok() {
                match parse(&frame).unwrap() {
                    Frame::Arp { .. } => {}
                    Frame::Ipv4 { source, target, content } => {
                        prop_assert_eq!((source, target), (GUEST, HOST));
                        let to_the_gateway = matches!(content, Content::Udp { target: PORT, .. });
                        prop_assert!(to_the_gateway, "{:?}", content);
                    }
                }
            }
        }

        #[test]
        fn nothing_of_the_machines_own_network_is_the_internet(low: u8, port: u16) {
            let target = Ipv4Addr::new(192, 168, 127, low);
            let frame = tcp(target, port);
            let passed = policy(Egress::Internet).outbound(&frame).is_ok();
            prop_assert_eq!(passed, target == ROUTER && port == DNS);
        }
    }
}
