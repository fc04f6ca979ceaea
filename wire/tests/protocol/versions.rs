//! Versions that do not know each other: fields, messages and values of a later version do not hurt.

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_wire::{
    api::{ExecEnded, Outcome},
    close::{CloseCode, ComeBack},
    control::{Down, Hello, Refuse, RefuseCode, RelayHeader, RelayReply, Up, down, relay_reply, up},
    frame::{Frame, FrameDecoder},
    limits::MAX_MESSAGE,
    message, spec,
};
use prost::Message;

use crate::samples;

/// A length-delimited field as protobuf writes it; `number` below 2048.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.put_slice(content);
    out.to_vec()
}

fn with_prefix(content: &[u8]) -> BytesMut {
    let mut buffer = BytesMut::from(&(content.len() as u32).to_be_bytes()[..]);
    buffer.put_slice(content);
    buffer
}

#[test]
fn a_message_from_the_future_is_skipped_and_the_next_one_read() {
    let mut stream = with_prefix(&field(99, b"a message of 2030"));
    stream.extend_from_slice(&message::encode(&samples::downs().swap_remove(0).1, MAX_MESSAGE).unwrap());
    let unknown: Down = message::decode(&mut stream, MAX_MESSAGE).unwrap().unwrap();
    assert_eq!(unknown.body, None);
    let known: Down = message::decode(&mut stream, MAX_MESSAGE).unwrap().unwrap();
    assert!(matches!(known.body, Some(down::Body::Welcome(_))));
}

#[test]
fn fields_from_the_future_leave_the_known_ones_alone() {
    let hello = [samples::hello().encode_to_vec(), field(500, b"?"), field(501, &[0xff; 100])].concat();
    let up = Up::decode(&field(1, &hello)[..]).unwrap();
    assert_eq!(up.body, Some(up::Body::Hello(samples::hello())));
}

#[test]
fn fields_that_an_older_peer_does_not_send_have_their_defaults() {
    let old = Hello { sandbox_id: samples::sandbox_id().to_bytes(), ..Hello::default() };
    assert_eq!(Hello::decode(&old.encode_to_vec()[..]).unwrap(), old);
}

#[test]
fn a_relay_of_an_unknown_kind_still_tells_its_id() {
    let (_, known) = samples::headers().swap_remove(0);
    let header = RelayHeader { kind: None, ..known.clone() };
    let bytes = [header.encode_to_vec(), field(77, b"a kind of 2030")].concat();
    let got = RelayHeader::decode(&bytes[..]).unwrap();
    assert_eq!((got.kind, got.relay_id), (None, known.relay_id));
}

#[test]
fn an_unknown_enum_value_is_kept_and_read_as_unspecified() {
    let refuse = Refuse { code: 1234, reason: "a reason of 2030".to_owned(), retry_after_ms: 10 };
    let got = Refuse::decode(&refuse.encode_to_vec()[..]).unwrap();
    assert_eq!((got.code(), got.code), (RefuseCode::Unspecified, 1234));
    let reply = RelayReply::decode(&field(9, b"an answer of 2030")[..]).unwrap();
    assert_eq!(reply.kind, None::<relay_reply::Kind>);
}

/// The one thing that must not happen is that an unknown end passes for a good one.
#[test]
fn an_outcome_of_an_unknown_kind_is_no_outcome() {
    let outcome = Outcome::decode(&field(50, b"an end of 2030")[..]).unwrap();
    assert_eq!(outcome.kind, None);
    let ended = ExecEnded { outcome: Some(outcome.clone()), exec: None };
    let mut decoder = FrameDecoder::new();
    decoder.push(Frame::Ended(ended).to_bytes());
    let Ok(Some(Frame::Ended(got))) = decoder.next_frame() else { panic!("the frame is whole") };
    assert_eq!(got.outcome, Some(outcome));
}

/// Frames are the exception: a reader that skipped an unknown one could miss output. Both sides agree on kinds by
/// capability first.
#[test]
fn an_unknown_frame_kind_is_an_error() {
    let mut decoder = FrameDecoder::new();
    decoder.push(Bytes::from_static(&[0x7f, 0, 0, 0, 0]));
    assert!(decoder.next_frame().is_err());
}

/// A choice that this version does not know is refused rather than taken for the default: KEEP in place of a
/// stricter wish would be a silent lie.
#[test]
fn an_unknown_choice_in_a_spec_is_refused_by_name() {
    let mut spec = samples::spec();
    spec.on_disconnect = 9;
    assert_eq!(spec::check(&spec).unwrap_err().to_string(), "on_disconnect: no such choice: 9");
    let mut spec = samples::spec();
    spec.when_full = 9;
    assert_eq!(spec::check(&spec).unwrap_err().to_string(), "when_full: no such choice: 9");
}

#[test]
fn a_close_code_of_a_later_version_brings_a_supervisor_back() {
    assert_eq!(CloseCode(0x3fff_ffff_ffff_ffff).come_back(), ComeBack::AfterBackoff);
}
