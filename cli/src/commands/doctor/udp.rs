//! Does UDP reach the gateway's QUIC port? Asked by QUIC's own version negotiation (RFC 9000, section 6).
//!
//! A long-header packet of a version that nobody speaks must be answered with the versions that the server does
//! speak. It needs no credentials, opens no connection, and the answer is bound to the question by its ids.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    time::{Instant, timeout},
};

/// Questions, and the wait for each: one lost packet is no finding.
const TRIES: u32 = 3;
pub(super) const WAIT: Duration = Duration::from_secs(1);

/// Servers answer only what is as long as an Initial packet must be.
const LENGTH: usize = 1200;

/// Of the pattern 0x?a?a?a?a, which is reserved for forcing a negotiation.
const RESERVED_VERSION: u32 = 0x1a2a_3a4a;

/// An id's length, in bytes.
const ID: usize = 8;

/// The port speaks QUIC.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) took: Duration,
    pub(super) versions: Vec<u32>,
    /// Questions that it took.
    pub(super) tries: u32,
}

/// Asks, and waits `wait` for the answer to each question.
///
/// # Errors
/// No socket, nobody listens there, or nothing came back.
pub(super) async fn ask(address: SocketAddr, wait: Duration) -> io::Result<Answer> {
    let here: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(here).await?;
    // Connected, so that a port that is closed says so.
    socket.connect(address).await?;
    let (to, from) = (rand::random(), rand::random());
    for tries in 1..=TRIES {
        let asked = Instant::now();
        socket.send(&question(to, from)).await?;
        let answered = timeout(wait, async {
            let mut packet = [0; 2048];
            loop {
                let length = socket.recv(&mut packet).await?;
                // Whatever else comes is not for us.
                if let Some(versions) = answer(&packet[..length], to, from) {
                    return Ok::<_, io::Error>(versions);
                }
            }
        });
        match answered.await {
            Ok(versions) => return Ok(Answer { took: asked.elapsed(), versions: versions?, tries }),
            Err(_) if tries < TRIES => {}
            Err(_) => break,
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer to {TRIES} packets of {LENGTH} bytes within {:?}", TRIES * wait),
    ))
}

fn question(to: [u8; ID], from: [u8; ID]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(LENGTH);
    // Long header, fixed bit.
    packet.push(0xc0);
    packet.extend(RESERVED_VERSION.to_be_bytes());
    for id in [to, from] {
        packet.push(ID as u8);
        packet.extend(id);
    }
    packet.resize(LENGTH, 0);
    packet
}

/// The versions of a negotiation packet that answers our question; `None` for anything else.
fn answer(packet: &[u8], to: [u8; ID], from: [u8; ID]) -> Option<Vec<u32>> {
    let (first, rest) = packet.split_first()?;
    let rest = rest.strip_prefix(&[0; 4])?;
    // Our ids come back crossed.
    let rest = rest.strip_prefix(&[ID as u8])?.strip_prefix(&from)?;
    let rest = rest.strip_prefix(&[ID as u8])?.strip_prefix(&to)?;
    let versions: Vec<u32> =
        rest.chunks_exact(4).map(|v| u32::from_be_bytes([v[0], v[1], v[2], v[3]])).collect();
    (first & 0x80 != 0 && !versions.is_empty()).then_some(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: [u8; ID] = [1; ID];
    const FROM: [u8; ID] = [2; ID];

    fn negotiation(to: [u8; ID], from: [u8; ID]) -> Vec<u8> {
        let mut packet = vec![0x80, 0, 0, 0, 0, 8];
        packet.extend(to);
        packet.push(8);
        packet.extend(from);
        packet.extend([0x0a, 0x1a, 0x2a, 0x3a, 0, 0, 0, 1]);
        packet
    }

    #[test]
    fn an_answer_must_carry_our_ids_crossed() {
        let good = negotiation(FROM, TO);
        assert_eq!(answer(&good, TO, FROM), Some(vec![0x0a1a_2a3a, 1]));
        assert_eq!(answer(&negotiation(TO, FROM), TO, FROM), None);
        for length in 0..good.len() - 7 {
            assert_eq!(answer(&good[..length], TO, FROM), None, "{length} bytes");
        }
        assert_eq!(answer(&question(TO, FROM), TO, FROM), None, "our own question, reflected");
    }

    #[tokio::test]
    async fn a_closed_port_is_a_refusal() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        drop(taken);
        assert_eq!(ask(address, WAIT).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_silent_port_is_given_up() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = ask(silent.local_addr().unwrap(), Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("3 packets"), "{error}");
    }
}
