//! The frame decoder, against every chunking and against bytes that are no frames at all.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use holdfast_wire::{
    api::{ExecEnded, ExecStarted, OutputStream},
    frame::{Frame, FrameDecoder, FrameError, HEADER_LEN},
    limits::MAX_FRAME_PAYLOAD,
};
use proptest::prelude::*;

use crate::samples;

/// What a decoder may hold while it asks for more: a header, and a control payload that is not complete.
const MOST_BUFFERED: usize = HEADER_LEN + MAX_FRAME_PAYLOAD;

/// Cuts `stream` into chunks of the lengths in `cuts`, again from the first when they are used up.
fn chunks(mut stream: Bytes, cuts: &[usize]) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    for cut in cuts.iter().cycle() {
        if stream.is_empty() {
            break;
        }
        chunks.push(stream.split_to(stream.len().min(*cut)));
    }
    chunks
}

/// All frames in the chunks, and how it ended. Fragments that belong together are joined, so that two decodings
/// can be compared whatever the chunks were.
fn decode(chunks: impl IntoIterator<Item = Bytes>) -> (Vec<Frame>, Result<(), FrameError>) {
    let (mut decoder, mut frames) = (FrameDecoder::new(), Vec::new());
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (joined(frames), Err(error)),
            }
        }
        assert!(decoder.buffered() <= MOST_BUFFERED, "{} bytes wait for more", decoder.buffered());
    }
    (joined(frames), decoder.finish())
}

/// Neighbouring data of one stream becomes one frame, empty data none.
fn joined(frames: impl IntoIterator<Item = Frame>) -> Vec<Frame> {
    let mut out: Vec<Frame> = Vec::new();
    for frame in frames {
        match (out.last_mut(), frame) {
            (_, Frame::Output(_, data) | Frame::Stdin { data, .. }) if data.is_empty() => {}
            (Some(Frame::Output(last, head)), Frame::Output(stream, tail)) if *last == stream => {
                *head = [&head[..], &tail[..]].concat().into();
            }
            (Some(Frame::Stdin { offset: first, data: head }), Frame::Stdin { offset, data: tail })
                if *first + head.len() as u64 == offset =>
            {
                *head = [&head[..], &tail[..]].concat().into();
            }
            (_, frame) => out.push(frame),
        }
    }
    out
}

fn encoded(frames: &[Frame]) -> Bytes {
    let (mut scratch, mut pieces) = (BytesMut::new(), Vec::new());
    for frame in frames {
        frame.clone().encode(&mut scratch, &mut pieces);
    }
    pieces.concat().into()
}

fn data() -> impl Strategy<Value = Bytes> {
    // Mostly small; sometimes more than one frame may carry.
    let length = prop_oneof![8 => 0..40usize, 1 => MAX_FRAME_PAYLOAD - 20..2 * MAX_FRAME_PAYLOAD + 20];
    (length, any::<u8>())
        .prop_map(|(length, seed)| (0..length).map(|i| (i % 251) as u8 ^ seed).collect::<Vec<_>>().into())
}

fn output_stream() -> impl Strategy<Value = OutputStream> {
    prop_oneof![Just(OutputStream::Stdout), Just(OutputStream::Stderr)]
}

fn frame() -> impl Strategy<Value = Frame> {
    let ended = ExecEnded { outcome: Some(samples::exited(0)), exec: Some(samples::info()) };
    prop_oneof![
        any::<u64>().prop_map(|stdin_offset| {
            Frame::Started(ExecStarted { exec: Some(samples::info()), stdin_offset })
        }),
        (output_stream(), data()).prop_map(|(stream, data)| Frame::Output(stream, data)),
        (0..u64::MAX / 2, data()).prop_map(|(offset, data)| Frame::Stdin { offset, data }),
        any::<u64>().prop_map(|offset| Frame::StdinEof { offset }),
        any::<(u16, u16)>().prop_map(|(cols, rows)| Frame::Resize { cols, rows }),
        any::<i32>().prop_map(Frame::Signal),
        (output_stream(), 0..u64::MAX / 2, 1..u64::MAX / 2).prop_map(|(stream, from, length)| Frame::Gap {
            stream,
            from,
            to: from + length
        }),
        any::<u64>().prop_map(|offset| Frame::StdinAck { offset }),
        any::<(u64, u64)>().prop_map(|(stdout, stderr)| Frame::Ack { stdout, stderr }),
        Just(Frame::Detach),
        Just(Frame::Ended(ended)),
    ]
}

/// Bytes that look like frames for a while: real kinds and made-up ones, lengths that are true or not.
fn nearly_frames() -> impl Strategy<Value = Bytes> {
    let length = prop_oneof![4 => 0..40u32, 1 => 0..=2 * MAX_FRAME_PAYLOAD as u32, 1 => any::<u32>()];
    let one = (0..0x0e_u8, length, any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(
        |(kind, length, honest, payload)| {
            let length = if honest { payload.len() as u32 } else { length };
            [&[kind][..], &length.to_be_bytes(), &payload].concat()
        },
    );
    prop::collection::vec(one, 0..12).prop_map(|frames| frames.concat().into())
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    let cut = prop_oneof![3 => 1..10usize, 1 => 1..100_000usize];
    prop::collection::vec(cut, 1..8)
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut(
        frames in prop::collection::vec(frame(), 0..10),
        cuts in cuts(),
    ) {
        let (got, end) = decode(chunks(encoded(&frames), &cuts));
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(got, joined(frames));
    }

    #[test]
    fn a_stream_cut_off_inside_a_frame_is_never_a_clean_end(frame in frame(), at in any::<prop::sample::Index>()) {
        let stream = frame.to_bytes();
        // What has been cut off must be a part of the last frame: a cut between two pieces of long data is clean.
        let last = stream.len() - stream.len() % (HEADER_LEN + MAX_FRAME_PAYLOAD);
        prop_assume!(stream.len() - last > 1);
        let at = last + 1 + at.index(stream.len() - last - 1);
        let (_, end) = decode([stream.slice(..at)]);
        prop_assert!(matches!(end, Err(FrameError::Truncated { .. })), "{end:?}");
    }

    #[test]
    fn nonsense_is_refused_alike_however_it_is_cut(stream in nearly_frames(), cuts in cuts()) {
        let whole = decode([stream.clone()]);
        prop_assert_eq!(decode(chunks(stream, &cuts)), whole);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), cuts in cuts()) {
        let (frames, _) = decode(chunks(bytes.clone().into(), &cuts));
        let handed_out: usize = frames.iter().map(|frame| match frame {
            Frame::Output(_, data) | Frame::Stdin { data, .. } => data.len(),
            _ => 0,
        }).sum();
        prop_assert!(handed_out <= bytes.len());
    }
}

#[test]
fn a_gateway_is_not_brought_down_by_frames_without_content() {
    // 64 KiB, one read's worth, and more: each of the frames is only a header.
    let empty = Bytes::from([0x02, 0, 0, 0, 0].repeat(200_000));
    assert_eq!(decode([empty]), (vec![], Ok(())));
    let no_stdin = Bytes::from([&[0x04, 0, 0, 0, 8][..], &[0; 8]].concat().repeat(100_000));
    assert_eq!(decode([no_stdin]), (vec![], Ok(())));
}

/// Counts how many chunks are alive.
struct Chunk(Arc<AtomicUsize>, [u8; 1]);

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Each chunk is a slice of a datagram and holds all of it in memory: a peer that sends a control frame byte by
/// byte must not pin a datagram for each byte.
#[test]
fn a_trickled_frame_pins_few_chunks() {
    let alive = Arc::new(AtomicUsize::new(0));
    let mut decoder = FrameDecoder::new();
    // A `started` that never becomes complete.
    let head = [0x01, 0, 1, 0, 0];
    for i in 0..HEADER_LEN + MAX_FRAME_PAYLOAD - 1 {
        alive.fetch_add(1, Ordering::Relaxed);
        let byte = head.get(i).copied().unwrap_or(0);
        decoder.push(Bytes::from_owner(Chunk(Arc::clone(&alive), [byte])));
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(
            alive.load(Ordering::Relaxed) <= 64,
            "{} chunks after {i} bytes",
            alive.load(Ordering::Relaxed)
        );
    }
    assert!(decoder.buffered() <= MOST_BUFFERED);
}

#[test]
fn data_is_handed_on_without_a_copy() {
    let data = Bytes::from(vec![7; 1000]);
    let mut pieces = Vec::new();
    Frame::Output(OutputStream::Stdout, data.clone()).encode(&mut BytesMut::new(), &mut pieces);
    assert_eq!(pieces[1].as_ptr(), data.as_ptr(), "the encoder passes the bytes on");

    let chunk = Bytes::from(pieces.concat());
    let mut decoder = FrameDecoder::new();
    decoder.push(chunk.clone());
    let Ok(Some(Frame::Output(_, got))) = decoder.next_frame() else { panic!("output is there") };
    assert_eq!(got.as_ptr(), chunk[HEADER_LEN..].as_ptr(), "the decoder gives a slice of the chunk");
}

#[test]
fn data_flows_before_its_frame_is_complete() {
    let mut decoder = FrameDecoder::new();
    decoder.push(Bytes::from_static(&[0x03, 0, 0, 0, 4, b'a', b'b']));
    let first = decoder.next_frame().unwrap().unwrap();
    assert_eq!(first, Frame::Output(OutputStream::Stderr, Bytes::from_static(b"ab")));
    assert_eq!(decoder.next_frame(), Ok(None));
    assert_eq!(decoder.finish(), Err(FrameError::Truncated { kind: "stderr" }));
}

#[test]
fn a_frame_that_lies_is_named() {
    let refused = |bytes: &[u8]| decode([Bytes::copy_from_slice(bytes)]).1.unwrap_err().to_string();
    assert_eq!(refused(&[0x00, 0, 0, 0, 0]), "unknown frame kind 0x00");
    assert_eq!(refused(&[0x0d, 0, 0, 0, 0]), "unknown frame kind 0x0d");
    assert_eq!(refused(&[0x02, 0, 1, 0, 1]), "a stdout frame of 65537 bytes: at most 65536 are allowed");
    assert_eq!(refused(&[0x04, 0, 0, 0, 7]), "a malformed stdin frame: shorter than its offset");
    assert_eq!(refused(&[0x07, 0, 0, 0, 1, 9]), "a malformed signal frame: 1 bytes, not 4");
    let gap = |stream: u8, from: u64, to: u64| {
        refused(&[&[0x08, 0, 0, 0, 17, stream][..], &from.to_be_bytes(), &to.to_be_bytes()].concat())
    };
    assert_eq!(gap(3, 0, 1), "a malformed gap frame: no output stream 3");
    assert_eq!(gap(1, 5, 5), "a malformed gap frame: 5..5 is empty");
    let beyond = [&[0x04, 0, 0, 0, 9][..], &u64::MAX.to_be_bytes(), &[0]].concat();
    assert_eq!(refused(&beyond), "a malformed stdin frame: its offset is beyond 2^64");
}
