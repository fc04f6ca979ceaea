//! The network card: its MTU, an address and a route, told to the kernel by netlink.
//!
//! ```text
//!   request: header (length, type, flags, sequence, 0), body, attributes (length, type, value; padded to 4)
//!   answer:  header, error code (0: done), the request's header
//! ```

use std::{io, net::Ipv4Addr, os::fd::AsRawFd};

use holdfast_wire::machine::MachineNetwork;
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    },
};

use super::{MachineError, failed};

/// The one card.
const CARD: &str = "eth0";
const LOOPBACK: &str = "lo";

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
/// REQUEST | ACK.
const CHANGE: u16 = 0x005;
/// CREATE | EXCL beside it.
const CREATE: u16 = CHANGE | 0x600;

const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const AF_INET: u8 = 2;

/// Gives the card its MTU and its address, and the machine its route.
pub(super) fn configure(network: &MachineNetwork) -> Result<(), MachineError> {
    up(LOOPBACK, &[])?;
    let card = up(CARD, &attribute(IFLA_MTU, &u32::from(network.mtu).to_ne_bytes()))?;
    let address = network.address.octets();
    let body = [&[AF_INET, network.prefix, 0, 0][..], &card.to_ne_bytes()].concat();
    let attributes = [attribute(IFA_LOCAL, &address), attribute(IFA_ADDRESS, &address)].concat();
    ask(RTM_NEWADDR, CREATE, &body, &attributes).map_err(failed(format!("giving {CARD} its address")))?;
    route(network.router, card)
}

fn up(name: &str, attributes: &[u8]) -> Result<u32, MachineError> {
    let index = if_nametoindex(name).map_err(failed(format!("looking for the network card {name}")))?;
    let body = [&[0; 4][..], &index.to_ne_bytes(), &IFF_UP.to_ne_bytes(), &IFF_UP.to_ne_bytes()].concat();
    ask(RTM_NEWLINK, CHANGE, &body, attributes).map_err(failed(format!("switching {name} on")))?;
    Ok(index)
}

fn route(router: Ipv4Addr, card: u32) -> Result<(), MachineError> {
    // To everywhere (a prefix of 0 bits), main table, by the boot, universe, unicast.
    let body = [AF_INET, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    let attributes =
        [attribute(RTA_GATEWAY, &router.octets()), attribute(RTA_OIF, &card.to_ne_bytes())].concat();
    ask(RTM_NEWROUTE, CREATE, &body, &attributes).map_err(failed("setting the route"))
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // All values here have 4 bytes, so that there is nothing to pad.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
}

fn request(kind: u16, flags: u16, body: &[u8], attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len() + attributes.len()).unwrap_or(u32::MAX);
    [
        &length.to_ne_bytes()[..],
        &kind.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &1_u32.to_ne_bytes(),
        &[0; 4],
        body,
        attributes,
    ]
    .concat()
}

fn ask(kind: u16, flags: u16, body: &[u8], attributes: &[u8]) -> io::Result<()> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let message = request(kind, flags, body, attributes);
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    verdict(answer.get(..length).unwrap_or_default())
}

fn verdict(answer: &[u8]) -> io::Result<()> {
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "netlink answered something else");
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(strange()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_its_own_length() {
        let message = request(RTM_NEWADDR, CREATE, &[1; 8], &attribute(IFA_LOCAL, &[10, 0, 0, 1]));
        assert_eq!(message.len(), 16 + 8 + 8);
        assert_eq!(message[..4], 32_u32.to_ne_bytes());
        assert_eq!(message[24..], [8, 0, 2, 0, 10, 0, 0, 1]);
    }

    #[test]
    fn the_kernels_refusal_is_an_error_and_nonsense_too() {
        let answer = |code: i32| {
            let mut answer = request(NLMSG_ERROR, 0, &code.to_ne_bytes(), &[0; 16]);
            answer.truncate(36);
            verdict(&answer)
        };
        answer(0).unwrap();
        assert_eq!(answer(-17).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        verdict(&[]).unwrap_err();
        verdict(&[0; 20]).unwrap_err();
    }

    #[test]
    fn the_real_kernel_answers() {
        // Loopback is up everywhere: switching it on needs a right, and is answered either way.
        let body = [&[0; 4][..], &1_u32.to_ne_bytes(), &IFF_UP.to_ne_bytes(), &IFF_UP.to_ne_bytes()].concat();
        match ask(RTM_NEWLINK, CHANGE, &body, &[]) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
