//! What comes out of a microVM, where whoever is root in it decides over every byte: frames, and lines of the control
//! port. And the launch, whose bytes come through a pipe from the driver.

use std::net::SocketAddrV4;

use holdfast_drivers::vm::{
    control::Report,
    filter::{
        GUEST, HOST, MAX_FRAME, Policy, Sieve,
        frame::{Content, Frame, parse},
    },
    launch::{Egress, Launch},
};

const PORT: u16 = 7443;

/// A stream of frames: without egress, what passes is ARP or a datagram to the gateway.
pub fn machine_frames(data: &[u8]) {
    let policy = Policy { gateway: SocketAddrV4::new(HOST, PORT), egress: Egress::None };
    let internet = Policy { egress: Egress::Internet, ..policy };
    let mut sieve = Sieve::default();
    sieve.buffer().extend_from_slice(data);
    while let Ok(Some(framed)) = sieve.next_frame() {
        let frame = Sieve::content(&framed);
        assert!(frame.len() <= MAX_FRAME);
        let _ = internet.inbound(frame);
        if policy.outbound(frame).is_ok() {
            assert!(internet.outbound(frame).is_ok(), "more is allowed with egress, not less");
            match parse(frame).expect("what passed was understood") {
                Frame::Arp { .. } => {}
                Frame::Ipv4 { source, target, content } => {
                    assert_eq!((source, target), (GUEST, HOST));
                    assert!(matches!(content, Content::Udp { target: PORT, .. }));
                }
            }
        }
    }
}

/// A launch: it is read or refused, and what was read can be written and read again. A line: likewise.
pub fn machine_launch(data: &[u8]) {
    let _ = Report::parse(data);
    let Ok(launch) = Launch::decode(data) else { return };
    let again =
        Launch::decode(&launch.encode().expect("what was read fits")).expect("what we write we can read");
    assert_eq!(again, launch);
}
