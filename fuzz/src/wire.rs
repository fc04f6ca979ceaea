//! The protocol's decoders. Bytes of a peer that is not trusted go in; out comes a message, or an error, and never
//! a panic, nor more memory than the bounds allow.

use bytes::{Bytes, BytesMut};
use holdfast_wire::{
    control::{Down, RelayHeader, RelayReply, Up, relay_header},
    files,
    frame::{Frame, FrameDecoder, FrameError, HEADER_LEN},
    limits::{MAX_FRAME_PAYLOAD, MAX_MESSAGE, MAX_RELAY_HEADER},
    message, spec,
};
use prost::Message;

/// A control stream, read as either side would.
pub fn control_message(data: &[u8]) {
    run::<Up>(data, MAX_MESSAGE);
    run::<Down>(data, MAX_MESSAGE);
}

/// A relay's first bytes, in both directions; a spec in them is checked and shown as a supervisor would.
pub fn relay_header(data: &[u8]) {
    run::<RelayReply>(data, MAX_MESSAGE);
    for header in run::<RelayHeader>(data, MAX_RELAY_HEADER) {
        let Some(relay_header::Kind::Exec(relay)) = header.kind else { continue };
        let Some(start) = relay.start else { continue };
        assert!(spec::display(&start).len() <= 256, "shown in more than 256 bytes");
        if spec::check(&start).is_ok() {
            assert_eq!(spec::digest(&start).len(), 32);
        }
    }
}

/// An exec relay's frames: the same come out however the bytes are cut.
pub fn exec_frames(data: &[u8]) {
    let Some((seed, stream)) = data.split_first() else { return };
    let stream = Bytes::copy_from_slice(stream);
    let whole = frames([stream.clone()]);
    // Chunks of changing lengths, from one byte up, out of the seed.
    let (mut rest, mut chunks, mut length) = (stream, Vec::new(), usize::from(*seed));
    while !rest.is_empty() {
        length = (length * 31 + 7) % 97;
        chunks.push(rest.split_to(rest.len().min(length + 1)));
    }
    assert_eq!(frames(chunks), whole, "the chunks make a difference");
}

/// All messages of a stream up to its end or first fault. What was read is written and read again.
fn run<M: Message + Default + PartialEq>(data: &[u8], limit: usize) -> Vec<M> {
    let (mut buffer, mut messages) = (BytesMut::from(data), Vec::new());
    while let Ok(Some(message)) = message::decode::<M>(&mut buffer, limit) {
        // Not by the same limit: a negative number may come in five bytes, and always goes out in ten.
        let mut again = BytesMut::from(&message::encode(&message, 2 * limit).expect("not twice as long")[..]);
        let second = message::decode::<M>(&mut again, 2 * limit).expect("what we write we can read");
        assert!(second.as_ref() == Some(&message), "read back as another message");
        messages.push(message);
    }
    messages
}

/// All frames of a stream, neighbouring data of one stream joined, and how it ended.
fn frames(chunks: impl IntoIterator<Item = Bytes>) -> (Vec<Frame>, Result<(), FrameError>) {
    let (mut decoder, mut frames) = (FrameDecoder::new(), Vec::new());
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => join(&mut frames, frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
        assert!(decoder.buffered() < HEADER_LEN + MAX_FRAME_PAYLOAD, "it keeps more than one control frame");
    }
    (frames, decoder.finish())
}

fn join(frames: &mut Vec<Frame>, next: Frame) {
    match (frames.last_mut(), next) {
        (Some(Frame::Output(last, head)), Frame::Output(stream, tail)) if *last == stream => {
            *head = [&head[..], &tail[..]].concat().into();
        }
        (Some(Frame::Stdin { offset: first, data: head }), Frame::Stdin { offset, data: tail })
            if *first + head.len() as u64 == offset =>
        {
            *head = [&head[..], &tail[..]].concat().into();
        }
        (_, next) => frames.push(next),
    }
}

/// A transfer's frames: the same come out however the bytes are cut, and what comes out can be written again.
pub fn transfer_frames(data: &[u8]) {
    let Some((seed, stream)) = data.split_first() else { return };
    let stream = Bytes::copy_from_slice(stream);
    let whole = transfer([stream.clone()]);
    let (mut rest, mut chunks, mut length) = (stream, Vec::new(), usize::from(*seed));
    while !rest.is_empty() {
        length = (length * 31 + 7) % 97;
        chunks.push(rest.split_to(rest.len().min(length + 1)));
    }
    assert_eq!(transfer(chunks), whole, "the chunks make a difference");
    let again: Vec<Bytes> = whole.0.iter().map(files::Frame::to_bytes).collect();
    // A negative number may come in five bytes, and always goes out in ten: a frame at its limit may grow beyond it.
    if again.iter().all(|bytes| bytes.len() <= files::HEADER_LEN + files::MAX_CONTROL_PAYLOAD) {
        assert_eq!(transfer(again).0, whole.0, "read back as other frames");
    }
}

/// All frames, neighbouring content joined, and how it ended.
fn transfer(chunks: impl IntoIterator<Item = Bytes>) -> (Vec<files::Frame>, Result<(), files::FrameError>) {
    let (mut decoder, mut frames) = (files::Decoder::new(), Vec::<files::Frame>::new());
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next_frame() {
                Ok(Some(files::Frame::Data(tail))) => match frames.last_mut() {
                    Some(files::Frame::Data(head)) => *head = [&head[..], &tail[..]].concat().into(),
                    _ => frames.push(files::Frame::Data(tail)),
                },
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
        let most = files::HEADER_LEN + files::MAX_CONTROL_PAYLOAD;
        assert!(decoder.buffered() < most, "it keeps more than one control frame");
    }
    (frames, decoder.finish())
}
