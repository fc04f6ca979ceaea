//! Streams: every way in which one can end, and what the other side sees of it.

use bytes::Bytes;
use holdfast_wire::{
    api::OutputStream,
    close::CloseCode,
    control::{Heartbeat, RelayHeader},
    frame::Frame,
    limits::{MAX_MESSAGE, MAX_SUPERVISOR_STREAMS},
    message::{self, MessageError},
    transport::{MessageReader, OpenError, RecvStream, SendStream, StreamError},
};
use tokio::{task::JoinSet, time::Duration};

use crate::pair::{Pair, SOON, soon};

type Bi = (SendStream, RecvStream);

/// A stream that the gateway opened, seen from both ends. A byte goes ahead: a stream is visible to the peer with
/// its first byte.
async fn stream(pair: &Pair) -> (Bi, Bi) {
    let (mut send, recv) = pair.gateway.open_bi(SOON).await.unwrap();
    send.write(Bytes::from_static(b"!")).await.unwrap();
    let (back, mut there) = soon("the stream", pair.supervisor.accept_bi()).await.unwrap();
    assert_eq!(there.read(1).await.unwrap().unwrap(), "!");
    ((send, recv), (back, there))
}

/// Everything up to the clean end.
async fn read_to_end(recv: &mut RecvStream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(chunk) = soon("more bytes", recv.read(64 * 1024)).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn a_finished_stream_ends_cleanly_with_all_its_bytes() {
    let pair = Pair::new().await;
    let ((mut send, _recv), (_back, mut there)) = stream(&pair).await;
    let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 253) as u8).collect();
    let all = Bytes::from(sent.clone());
    let writing = async {
        send.write(all).await.unwrap();
        send.finish().unwrap();
        // The peer has everything: `None`, no code.
        assert_eq!(send.stopped().await, Ok(None));
        // Dropped after its clean end, it stays clean.
        drop(send);
    };
    let ((), got) = tokio::join!(soon("the end", writing), read_to_end(&mut there));
    assert_eq!(got.unwrap(), sent);
}

#[tokio::test]
async fn a_dropped_sender_resets_with_abandoned_never_a_clean_end() {
    let pair = Pair::new().await;
    let ((send, _recv), (_back, mut there)) = stream(&pair).await;
    drop(send);
    assert_eq!(read_to_end(&mut there).await, Err(StreamError::Ended(CloseCode::ABANDONED)));
}

#[tokio::test]
async fn a_dropped_sender_resets_with_the_code_that_it_was_told() {
    let pair = Pair::new().await;
    let ((mut send, _recv), (_back, mut there)) = stream(&pair).await;
    send.on_drop(CloseCode::CALLER_GONE);
    drop(send);
    assert_eq!(read_to_end(&mut there).await, Err(StreamError::Ended(CloseCode::CALLER_GONE)));
}

#[tokio::test]
async fn a_panicking_task_resets_its_stream_and_no_other() {
    let pair = Pair::new().await;
    let ((mut doomed, _recv), (_back, mut there)) = stream(&pair).await;
    let ((mut healthy, _recv2), (_back2, mut there2)) = stream(&pair).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        doomed.write(Bytes::from_static(b"half a resu")).await.unwrap();
        panic!("a fault in one relay");
    });
    assert!(tasks.join_next().await.unwrap().unwrap_err().is_panic());
    assert_eq!(read_to_end(&mut there).await, Err(StreamError::Ended(CloseCode::ABANDONED)));
    healthy.write(Bytes::from_static(b"unharmed")).await.unwrap();
    healthy.finish().unwrap();
    assert_eq!(read_to_end(&mut there2).await.unwrap(), b"unharmed");
}

#[tokio::test]
async fn a_cancelled_task_resets_its_stream() {
    let pair = Pair::new().await;
    let ((mut send, _recv), (_back, mut there)) = stream(&pair).await;
    let mut tasks = JoinSet::new();
    // Nobody reads: it fills the window, and waits.
    tasks.spawn(async move {
        loop {
            send.write(Bytes::from(vec![0; 64 * 1024])).await.unwrap();
        }
    });
    soon("first bytes", there.read(1)).await.unwrap();
    tasks.shutdown().await;
    assert_eq!(read_to_end(&mut there).await, Err(StreamError::Ended(CloseCode::ABANDONED)));
}

#[tokio::test]
async fn a_resets_code_arrives() {
    let pair = Pair::new().await;
    let ((mut send, _recv), (_back, mut there)) = stream(&pair).await;
    send.reset(CloseCode::RELAY_DEADLINE);
    // What came first is what counts: dropped after its reset, it does not change its mind.
    drop(send);
    assert_eq!(read_to_end(&mut there).await, Err(StreamError::Ended(CloseCode::RELAY_DEADLINE)));
}

#[tokio::test]
async fn a_reader_that_wants_no_more_stops_the_writer_with_its_code() {
    let pair = Pair::new().await;
    let ((mut send, _recv), (_back, mut there)) = stream(&pair).await;
    there.stop(CloseCode::DONE);
    assert_eq!(soon("the stop", send.stopped()).await, Ok(Some(CloseCode::DONE)));
    let late = send.write(Bytes::from_static(b"late")).await;
    assert_eq!(late, Err(StreamError::Ended(CloseCode::DONE)));
}

#[tokio::test]
async fn a_dropped_reader_stops_the_writer_with_abandoned() {
    let pair = Pair::new().await;
    let ((send, _recv), (_back, there)) = stream(&pair).await;
    drop(there);
    assert_eq!(soon("the stop", send.stopped()).await, Ok(Some(CloseCode::ABANDONED)));
}

#[tokio::test]
async fn half_a_stream_may_end_while_the_other_half_goes_on() {
    let pair = Pair::new().await;
    let ((mut send, mut recv), (mut back, mut there)) = stream(&pair).await;
    send.write(Bytes::from_static(b"all of stdin")).await.unwrap();
    send.finish().unwrap();
    assert_eq!(read_to_end(&mut there).await.unwrap(), b"all of stdin");
    // The end of input has been seen, and only now the answer begins.
    let answer = Bytes::from(vec![9; 300_000]);
    let writing = async {
        back.write(answer.clone()).await.unwrap();
        back.finish().unwrap();
    };
    let ((), got) = tokio::join!(writing, read_to_end(&mut recv));
    assert_eq!(got.unwrap(), answer);
}

#[tokio::test]
async fn opening_past_the_peers_limit_fails_at_its_deadline_and_works_once_a_stream_is_free() {
    let pair = Pair::new().await;
    let mut open = Vec::new();
    for _ in 0..MAX_SUPERVISOR_STREAMS {
        open.push(pair.supervisor.open_bi(SOON).await.unwrap());
    }
    let within = Duration::from_millis(50);
    let refused = soon("the deadline", pair.supervisor.open_bi(within)).await.unwrap_err();
    assert_eq!(refused, OpenError::Deadline(within));

    // A stream is free when both of its halves have ended on both sides.
    let (mut send, _recv) = open.remove(0);
    send.write(Bytes::from_static(b"!")).await.unwrap();
    send.reset(CloseCode::DONE);
    let (mut back, mut there) = soon("the stream", pair.gateway.accept_bi()).await.unwrap();
    back.reset(CloseCode::DONE);
    let ended = read_to_end(&mut there).await;
    assert_eq!(ended, Err(StreamError::Ended(CloseCode::DONE)));
    soon("a free stream", pair.supervisor.open_bi(SOON)).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_is_cancelled_at_any_point_loses_nothing() {
    let pair = Pair::new().await;
    let ((mut send, _recv), (_back, there)) = stream(&pair).await;
    let beats: Vec<Heartbeat> = (1..=20).map(|seq| Heartbeat { seq: seq << 40, echo: true }).collect();
    let bytes: Vec<u8> =
        beats.iter().flat_map(|beat| message::encode(beat, MAX_MESSAGE).unwrap().to_vec()).collect();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for byte in bytes {
            send.write(Bytes::copy_from_slice(&[byte])).await.unwrap();
            tokio::task::yield_now().await;
        }
        send.finish().unwrap();
        send.stopped().await.unwrap();
    });
    let (mut reader, mut got, mut cancelled) = (MessageReader::new(there), Vec::new(), 0);
    soon("all messages", async {
        loop {
            tokio::select! {
                biased;
                message = reader.message::<Heartbeat>(MAX_MESSAGE) => match message.unwrap() {
                    Some(message) => got.push(message),
                    None => break,
                },
                () = tokio::task::yield_now() => cancelled += 1,
            }
        }
    })
    .await;
    assert_eq!(got, beats);
    assert!(cancelled > 20, "it was cancelled only {cancelled} times");
}

#[tokio::test]
async fn frames_follow_a_message_without_a_byte_lost_between() {
    let pair = Pair::new().await;
    let ((mut send, _recv), (_back, there)) = stream(&pair).await;
    let header = RelayHeader { accept_within_ms: 7, ..RelayHeader::default() };
    // In one write, so that the header's read takes in what follows.
    let frames = [
        Frame::Stdin { offset: 0, data: Bytes::from_static(b"early data") },
        Frame::StdinEof { offset: 10 },
        Frame::Output(OutputStream::Stderr, Bytes::from_static(b"x")),
    ];
    let mut bytes = message::encode(&header, MAX_MESSAGE).unwrap().to_vec();
    frames.iter().for_each(|frame| bytes.extend_from_slice(&frame.clone().to_bytes()));
    send.write(bytes.into()).await.unwrap();
    send.finish().unwrap();

    let mut reader = MessageReader::new(there);
    assert_eq!(soon("the header", reader.message(MAX_MESSAGE)).await.unwrap(), Some(header));
    for frame in frames {
        assert_eq!(soon("a frame", reader.frame()).await.unwrap(), Some(frame));
    }
    assert_eq!(soon("the end", reader.frame()).await.unwrap(), None);
}

#[tokio::test]
async fn raw_bytes_follow_a_message_what_was_read_ahead_first() {
    let pair = Pair::new().await;
    let ((mut send, _recv), (_back, there)) = stream(&pair).await;
    send.send_message(&Heartbeat { seq: 1, echo: false }, MAX_MESSAGE).await.unwrap();
    send.write(Bytes::from_static(b"raw bytes")).await.unwrap();
    send.finish().unwrap();
    let mut reader = MessageReader::new(there);
    soon("the message", reader.message::<Heartbeat>(MAX_MESSAGE)).await.unwrap().unwrap();
    let mut raw = Vec::new();
    while let Some(chunk) = soon("raw bytes", reader.bytes(4)).await.unwrap() {
        assert!(chunk.len() <= 4);
        raw.extend_from_slice(&chunk);
    }
    assert_eq!(raw, b"raw bytes");
}

#[tokio::test]
async fn a_clean_end_inside_a_message_or_frame_is_an_error() {
    let pair = Pair::new().await;
    let ((mut send, _recv), (_back, there)) = stream(&pair).await;
    send.write(Bytes::from_static(&[0, 0, 0, 9, 1])).await.unwrap();
    send.finish().unwrap();
    let mut reader = MessageReader::new(there);
    let ended = soon("the end", reader.message::<Heartbeat>(MAX_MESSAGE)).await;
    assert_eq!(ended, Err(StreamError::Message(MessageError::Truncated)));

    let ((mut send, _recv), (_back, there)) = stream(&pair).await;
    send.write(Frame::Signal(9).to_bytes().slice(..7)).await.unwrap();
    send.finish().unwrap();
    let error = soon("the end", MessageReader::new(there).frame()).await.unwrap_err();
    assert_eq!(error.to_string(), "the stream ended in the middle of a signal frame");
    assert_eq!(error.close_code(), CloseCode::PROTOCOL);
}

#[tokio::test]
async fn two_readers_that_are_stuck_do_not_hold_up_a_third() {
    let pair = Pair::new().await;
    // Each fills the whole window of its stream, and nobody reads.
    let mut tasks = JoinSet::new();
    let mut stuck = Vec::new();
    for _ in 0..2 {
        let ((mut send, recv), there) = stream(&pair).await;
        stuck.push((recv, there));
        tasks.spawn(async move {
            loop {
                if send.write(Bytes::from(vec![0; 64 * 1024])).await.is_err() {
                    return;
                }
            }
        });
    }
    let ((mut send, _recv), (_back, mut there)) = stream(&pair).await;
    let all = Bytes::from(vec![5; 3_000_000]);
    let writing = async {
        send.write(all.clone()).await.unwrap();
        send.finish().unwrap();
    };
    let ((), got) = tokio::join!(soon("the third writer", writing), read_to_end(&mut there));
    assert_eq!(got.unwrap().len(), all.len());
    tasks.shutdown().await;
    drop(stuck);
}
