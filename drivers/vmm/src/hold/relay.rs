//! Frames between the machine and gvproxy, each judged by the policy.
//!
//! Both directions have one buffer each, of one read and one batch of frames: whoever does not read is not written to,
//! and its peer waits, as on a cable.

use std::{fmt, io};

use bytes::BytesMut;
use holdfast_drivers::vm::filter::{Oversized, Policy, Refusal, Sieve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// About ten of the largest frames, so that a burst costs few calls.
const READ: usize = 64 * 1024;
/// How many refused frames are told in the log, before only their number grows.
const TOLD: u64 = 20;

/// Why the relay ended.
#[derive(Debug)]
pub(super) enum RelayEnd {
    /// The machine's side closed.
    Machine,
    /// gvproxy's side closed.
    Network,
    /// A side wrote what is no stream of frames.
    Broken(Oversized),
}

impl fmt::Display for RelayEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Relays until a side ends.
pub(super) async fn run(
    policy: Policy,
    machine: Option<UnixStream>,
    network: Option<UnixStream>,
) -> RelayEnd {
    let Some((machine, network)) = machine.zip(network) else { return RelayEnd::Network };
    let (from_machine, to_machine) = machine.into_split();
    let (from_network, to_network) = network.into_split();
    tokio::select! {
        end = one_way("out", from_machine, to_network, |frame| policy.outbound(frame)) => match end {
            Ok(End::Reading) => RelayEnd::Machine,
            Ok(End::Writing) => RelayEnd::Network,
            Err(broken) => RelayEnd::Broken(broken),
        },
        end = one_way("in", from_network, to_machine, |frame| policy.inbound(frame)) => match end {
            Ok(End::Reading) => RelayEnd::Network,
            Ok(End::Writing) => RelayEnd::Machine,
            Err(broken) => RelayEnd::Broken(broken),
        },
    }
}

/// Which half of a way ended.
enum End {
    Reading,
    Writing,
}

async fn one_way(
    way: &'static str,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    judge: impl Fn(&[u8]) -> Result<(), Refusal>,
) -> Result<End, Oversized> {
    let (mut sieve, mut batch, mut refused) = (Sieve::default(), BytesMut::new(), 0_u64);
    loop {
        sieve.buffer().reserve(READ);
        match from.read_buf(sieve.buffer()).await {
            Ok(0) => return Ok(End::Reading),
            Ok(_) => {}
            Err(error) => return Ok(gone(way, &error, End::Reading)),
        }
        while let Some(frame) = sieve.next_frame()? {
            match judge(Sieve::content(&frame)) {
                Ok(()) => batch.extend_from_slice(&frame),
                Err(refusal) => {
                    refused += 1;
                    if refused <= TOLD || refused.is_power_of_two() {
                        tracing::info!(way, ?refusal, refused, "frame refused");
                    }
                }
            }
        }
        if let Err(error) = to.write_all(&batch).await {
            return Ok(gone(way, &error, End::Writing));
        }
        batch.clear();
    }
}

fn gone(way: &'static str, error: &io::Error, end: End) -> End {
    tracing::debug!(way, %error, "the relay's peer is gone");
    end
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use holdfast_drivers::vm::{filter::HOST, launch::Egress};

    use super::*;

    fn policy() -> Policy {
        Policy { gateway: SocketAddrV4::new(HOST, 7443), egress: Egress::None }
    }

    fn arp() -> Vec<u8> {
        let mut frame = vec![0xff; 12];
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 192, 168, 127, 2]);
        frame.extend([0; 10]);
        frame
    }

    fn framed(content: &[u8]) -> Vec<u8> {
        [&u32::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
    }

    #[tokio::test]
    async fn allowed_frames_pass_and_others_are_gone() {
        let (mut guest, machine) = UnixStream::pair().unwrap();
        let (mut proxy, network) = UnixStream::pair().unwrap();
        let talk = async {
            let junk = framed(&[1; 60]);
            let wanted = framed(&arp());
            guest.write_all(&[junk.clone(), wanted.clone(), junk].concat()).await.unwrap();
            let mut heard = vec![0; wanted.len()];
            proxy.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, wanted);
            drop(guest);
            let mut rest = Vec::new();
            proxy.read_to_end(&mut rest).await.unwrap();
            assert!(rest.is_empty());
        };
        let (end, ()) = tokio::join!(run(policy(), Some(machine), Some(network)), talk);
        assert!(matches!(end, RelayEnd::Machine), "{end}");
    }

    #[tokio::test]
    async fn each_sides_end_is_told_apart_and_nonsense_breaks_the_relay() {
        let (_guest, machine) = UnixStream::pair().unwrap();
        let (proxy, network) = UnixStream::pair().unwrap();
        drop(proxy);
        assert!(matches!(run(policy(), Some(machine), Some(network)).await, RelayEnd::Network));

        let (mut guest, machine) = UnixStream::pair().unwrap();
        let (_proxy, network) = UnixStream::pair().unwrap();
        guest.write_all(&[0xff; 8]).await.unwrap();
        assert!(matches!(run(policy(), Some(machine), Some(network)).await, RelayEnd::Broken(_)));
    }
}
