//! Length-prefixed messages, against every chunking and against bytes that are no messages.

use bytes::{Bytes, BytesMut};
use holdfast_wire::{
    control::{Down, RelayHeader, RelayReply, Up},
    limits::MAX_MESSAGE,
    message::{self, MessageError, PREFIX_LEN},
};
use proptest::prelude::*;
use prost::Message;

use crate::samples;

/// The messages in the chunks, and what came of the last.
fn decode<M: Message + Default>(
    chunks: impl IntoIterator<Item = Bytes>,
    limit: usize,
) -> (Vec<M>, Result<(), MessageError>) {
    let (mut buffer, mut messages) = (BytesMut::new(), Vec::new());
    for chunk in chunks {
        buffer.extend_from_slice(&chunk);
        loop {
            match message::decode(&mut buffer, limit) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Err(error)),
            }
        }
        // It asks for more only while less than one whole message is there.
        assert!(buffer.len() < PREFIX_LEN + limit, "{} bytes wait for more", buffer.len());
    }
    (messages, Ok(()))
}

fn cut(mut stream: Bytes, cuts: &[usize]) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    for cut in cuts.iter().cycle() {
        if stream.is_empty() {
            break;
        }
        chunks.push(stream.split_to(stream.len().min(*cut)));
    }
    chunks
}

proptest! {
    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_cut(
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        cuts in prop::collection::vec(1..300usize, 1..6),
    ) {
        let all = samples::ups();
        let sent: Vec<Up> = picks.iter().map(|pick| all[pick.index(all.len())].1.clone()).collect();
        let stream: Vec<Bytes> = sent.iter().map(|up| message::encode(up, MAX_MESSAGE).unwrap()).collect();
        let (got, end) = decode::<Up>(cut(stream.concat().into(), &cuts), MAX_MESSAGE);
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(got, sent);
    }

    #[test]
    fn no_bytes_make_it_panic_or_keep_more_than_the_limit(
        bytes in prop::collection::vec(any::<u8>(), 0..1000),
        small_prefix in any::<bool>(),
        cuts in prop::collection::vec(1..300usize, 1..6),
        limit in 1..2000usize,
    ) {
        // Random prefixes are almost always too long: half of the time a short one leads to the decoder itself.
        let bytes = if small_prefix { [&[0, 0, 0, 50][..], &bytes].concat() } else { bytes };
        let stream = cut(bytes.into(), &cuts);
        let _ = decode::<Up>(stream.clone(), limit);
        let _ = decode::<Down>(stream.clone(), limit);
        let _ = decode::<RelayHeader>(stream.clone(), limit);
        let _ = decode::<RelayReply>(stream, limit);
    }

    #[test]
    fn a_damaged_message_never_panics(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        for (_, header) in samples::headers() {
            let mut bytes = header.encode_to_vec();
            for (at, value) in &flips {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            let _ = RelayHeader::decode(&bytes[..]);
        }
    }
}

#[test]
fn a_message_of_exactly_the_limit_passes_and_one_more_byte_does_not() {
    let up = samples::ups().swap_remove(0).1;
    let limit = up.encoded_len();
    let stream = message::encode(&up, limit).unwrap();
    assert_eq!(decode::<Up>([stream.clone()], limit), (vec![up.clone()], Ok(())));
    let too_long = MessageError::TooLong { length: limit, limit: limit - 1 };
    assert_eq!(message::encode(&up, limit - 1), Err(too_long.clone()));
    assert_eq!(decode::<Up>([stream.slice(..PREFIX_LEN)], limit - 1), (vec![], Err(too_long)));
}

#[test]
fn nested_nonsense_is_an_error_not_a_stack_overflow() {
    // Groups in groups, ten thousand deep: an unknown field that a naive decoder follows to its end.
    let deep = [0x9b, 0x06].repeat(10_000);
    let mut buffer = BytesMut::from(&(deep.len() as u32).to_be_bytes()[..]);
    buffer.extend_from_slice(&deep);
    let error = message::decode::<Up>(&mut buffer, MAX_MESSAGE).unwrap_err();
    assert!(matches!(error, MessageError::Malformed(_)), "{error}");
}
