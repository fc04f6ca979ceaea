//! Cuts the byte stream between libkrun and gvproxy into frames: each has its length in front, 4 bytes, big-endian.

use bytes::{Buf, Bytes, BytesMut};

/// The largest frame: a packet and its Ethernet header, with a tag that one side may add. Segments are cut before: the
/// machine is offered no offload for what it sends.
pub const MAX_FRAME: usize = super::MTU as usize + 18;
const PREFIX: usize = 4;

/// A frame that claims more than [`MAX_FRAME`] bytes: what follows it cannot be found any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes: the stream is broken, or its writer is hostile")]
pub struct Oversized(pub usize);

/// What has come of a stream and is not yet a whole frame. It never holds more than one frame and one read.
#[derive(Debug, Default)]
pub struct Sieve {
    buffer: BytesMut,
}

impl Sieve {
    /// Where the next bytes of the stream go.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame with its prefix, ready to be passed on; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The stream cannot be used any more.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, Oversized> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(Oversized(length));
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        Ok(Some(self.buffer.split_to(PREFIX + length).freeze()))
    }

    /// The frame itself, without the prefix.
    #[must_use]
    pub fn content(framed: &Bytes) -> &[u8] {
        let mut rest = &framed[..];
        rest.advance(PREFIX.min(rest.len()));
        rest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(content: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(content.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(content);
        bytes
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            cut in 1_usize..500,
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
            let (mut sieve, mut out) = (Sieve::default(), Vec::new());
            for part in stream.chunks(cut) {
                sieve.buffer().extend_from_slice(part);
                while let Some(frame) = sieve.next_frame().unwrap() {
                    out.push(Sieve::content(&frame).to_vec());
                }
            }
            prop_assert_eq!(out, frames);
            prop_assert!(sieve.buffer().is_empty());
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_breaks_the_stream_at_once() {
        let mut sieve = Sieve::default();
        sieve.buffer().extend_from_slice(&0xffff_ffff_u32.to_be_bytes());
        assert_eq!(sieve.next_frame(), Err(Oversized(0xffff_ffff)));
    }
}
