//! What is in an Ethernet frame, as far as a decision about it needs to know. Nothing is copied or kept.

use std::net::Ipv4Addr;

/// A frame's two addresses and its type.
const ETHERNET: usize = 14;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
/// Hardware and protocol types and sizes, the operation, and two pairs of addresses.
const ARP_BYTES: usize = 28;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A question or an answer about an IPv4 address on Ethernet.
    Arp {
        /// Whose hardware address is told.
        sender: Ipv4Addr,
    },
    /// A whole IPv4 packet.
    Ipv4 {
        /// From.
        source: Ipv4Addr,
        /// To.
        target: Ipv4Addr,
        /// What is in it.
        content: Content,
    },
}

/// What an IPv4 packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A datagram.
    Udp {
        /// The sender's port.
        source: u16,
        /// The receiver's port.
        target: u16,
    },
    /// A segment.
    Tcp {
        /// The sender's port.
        source: u16,
        /// The receiver's port.
        target: u16,
    },
    /// ICMP's echo request or reply.
    Echo,
}

/// Why a frame is not understood. It is dropped, whatever the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strange {
    /// Shorter than what it says that it is.
    Short,
    /// Neither ARP nor IPv4.
    Protocol,
    /// A field with a value that it cannot have.
    Malformed,
    /// A part of a packet: its ports are in another part, so nothing can be decided about it.
    Fragment,
}

/// Looks into a frame.
///
/// # Errors
/// When it is no ARP and no whole IPv4 packet of UDP, TCP or ICMP echo.
pub fn parse(frame: &[u8]) -> Result<Frame, Strange> {
    let payload = frame.get(ETHERNET..).ok_or(Strange::Short)?;
    match number(frame, 12)? {
        ARP => parse_arp(payload),
        IPV4 => parse_ipv4(payload),
        _ => Err(Strange::Protocol),
    }
}

fn parse_arp(packet: &[u8]) -> Result<Frame, Strange> {
    let packet = packet.get(..ARP_BYTES).ok_or(Strange::Short)?;
    // Ethernet, IPv4, addresses of 6 and 4 bytes; a request or a reply.
    if packet[..6] != [0, 1, 8, 0, 6, 4] || !matches!(number(packet, 6)?, 1 | 2) {
        return Err(Strange::Malformed);
    }
    Ok(Frame::Arp { sender: address(packet, 14)? })
}

fn parse_ipv4(packet: &[u8]) -> Result<Frame, Strange> {
    let first = *packet.first().ok_or(Strange::Short)?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 {
        return Err(Strange::Malformed);
    }
    let total = usize::from(number(packet, 2)?);
    // What follows the packet is padding. What it claims must be there.
    let packet = packet.get(..total).ok_or(Strange::Short)?;
    let content = packet.get(header..).ok_or(Strange::Short)?;
    // More fragments follow (0x2000), or this is not the first.
    if number(packet, 6)? & 0x3fff != 0 {
        return Err(Strange::Fragment);
    }
    let ports = || Ok((number(content, 0)?, number(content, 2)?));
    let content = match packet[9] {
        17 => {
            let (source, target) = ports()?;
            let length = usize::from(number(content, 4)?);
            if length < 8 || length != content.len() {
                return Err(Strange::Malformed);
            }
            Content::Udp { source, target }
        }
        6 => {
            let (source, target) = ports()?;
            // With a whole header.
            content.get(..20).ok_or(Strange::Short)?;
            Content::Tcp { source, target }
        }
        1 if matches!(content.first(), Some(0 | 8)) => Content::Echo,
        _ => return Err(Strange::Protocol),
    };
    Ok(Frame::Ipv4 { source: address(packet, 12)?, target: address(packet, 16)?, content })
}

fn number(bytes: &[u8], at: usize) -> Result<u16, Strange> {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => Ok(u16::from_be_bytes([high, low])),
        _ => Err(Strange::Short),
    }
}

fn address(bytes: &[u8], at: usize) -> Result<Ipv4Addr, Strange> {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => Ok(Ipv4Addr::new(a, b, c, d)),
        _ => Err(Strange::Short),
    }
}

#[cfg(test)]
pub(super) mod samples {
    //! Frames as a guest sends them.

    use super::*;

    pub(in super::super) fn ipv4(
        source: Ipv4Addr,
        target: Ipv4Addr,
        protocol: u8,
        fragment: u16,
        content: &[u8],
    ) -> Vec<u8> {
        let total = u16::try_from(20 + content.len()).unwrap().to_be_bytes();
        let mut frame = vec![0xff; 12];
        frame.extend(IPV4.to_be_bytes());
        frame.extend([0x45, 0, total[0], total[1], 0, 1]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0]);
        frame.extend(source.octets());
        frame.extend(target.octets());
        frame.extend(content);
        frame
    }

    pub(in super::super) fn udp_content(source: u16, target: u16, bytes: usize) -> Vec<u8> {
        let mut content = Vec::new();
        content.extend(source.to_be_bytes());
        content.extend(target.to_be_bytes());
        content.extend(u16::try_from(8 + bytes).unwrap().to_be_bytes());
        content.extend([0, 0]);
        content.extend(vec![7; bytes]);
        content
    }

    pub(in super::super) fn tcp_content(source: u16, target: u16) -> Vec<u8> {
        let mut content = Vec::new();
        content.extend(source.to_be_bytes());
        content.extend(target.to_be_bytes());
        content.extend([0; 16]);
        content
    }

    pub(in super::super) fn arp(sender: Ipv4Addr) -> Vec<u8> {
        let mut frame = vec![0xff; 12];
        frame.extend(ARP.to_be_bytes());
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2]);
        frame.extend(sender.octets());
        frame.extend([0; 10]);
        frame
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{samples::*, *};

    const A: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
    const B: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 254);

    #[test]
    fn whole_packets_are_understood() {
        let udp = parse(&ipv4(A, B, 17, 0x4000, &udp_content(5, 7443, 3)));
        let content = Content::Udp { source: 5, target: 7443 };
        assert_eq!(udp, Ok(Frame::Ipv4 { source: A, target: B, content }));
        let tcp = parse(&ipv4(A, B, 6, 0, &tcp_content(5, 80)));
        assert_eq!(
            tcp,
            Ok(Frame::Ipv4 { source: A, target: B, content: Content::Tcp { source: 5, target: 80 } })
        );
        assert_eq!(parse(&arp(A)), Ok(Frame::Arp { sender: A }));
    }

    #[test]
    fn padding_after_a_packet_is_no_part_of_it() {
        let mut frame = ipv4(A, B, 17, 0, &udp_content(5, 7443, 0));
        frame.extend([0; 18]);
        assert!(parse(&frame).is_ok());
    }

    #[test]
    fn parts_of_packets_are_strange() {
        for fragment in [0x2000, 0x0001, 0x2004] {
            let frame = ipv4(A, B, 17, fragment, &udp_content(5, 7443, 3));
            assert_eq!(parse(&frame), Err(Strange::Fragment));
        }
    }

    #[test]
    fn a_datagram_that_lies_about_its_length_is_strange() {
        let mut frame = ipv4(A, B, 17, 0, &udp_content(5, 7443, 3));
        frame[14 + 20 + 5] = 200;
        assert_eq!(parse(&frame), Err(Strange::Malformed));
    }

    #[test]
    fn every_cut_of_a_frame_is_strange() {
        for whole in
            [ipv4(A, B, 17, 0, &udp_content(5, 7443, 3)), ipv4(A, B, 6, 0, &tcp_content(5, 80)), arp(A)]
        {
            for end in 0..whole.len() {
                assert!(parse(&whole[..end]).is_err(), "cut at {end}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_changed_byte_makes_it_panic(at in 0_usize..45, value: u8) {
            let mut frame = ipv4(A, B, 17, 0, &udp_content(5, 7443, 3));
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
            let _ = parse(&frame);
        }
    }
}
