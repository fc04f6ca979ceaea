//! Golden bytes. A change here is a change of the protocol that other versions, already out there, will not
//! follow: give new things new numbers instead.

use std::fmt::Write;

use bytes::Bytes;
use holdfast_wire::{
    api::{ExecEnded, ExecStarted, OutputStream},
    frame::Frame,
    limits::MAX_MESSAGE,
    message, spec,
    transport::ServerKeys,
};
use prost::Message;

use crate::samples;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

/// One line for each message, with its length in front as on a stream.
fn lines<M: Message>(messages: impl IntoIterator<Item = (&'static str, M)>) -> String {
    let line = |(name, message): (&str, M)| {
        format!("{name}: {}", hex(&message::encode(&message, MAX_MESSAGE).unwrap()))
    };
    messages.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn frames_never_change() {
    let info = Some(samples::info());
    let data = Bytes::from_static(b"data\0\xff");
    let frames = [
        ("started", Frame::Started(ExecStarted { exec: info.clone(), stdin_offset: 9 })),
        ("stdout", Frame::Output(OutputStream::Stdout, data.clone())),
        ("stderr", Frame::Output(OutputStream::Stderr, data.clone())),
        ("stdin", Frame::Stdin { offset: 0x0102_0304_0506_0708, data }),
        ("stdin_eof", Frame::StdinEof { offset: 9 }),
        ("resize", Frame::Resize { cols: 80, rows: 24 }),
        ("signal", Frame::Signal(15)),
        ("gap of stdout", Frame::Gap { stream: OutputStream::Stdout, from: 1, to: 0x100 }),
        ("gap of stderr", Frame::Gap { stream: OutputStream::Stderr, from: 1, to: 0x100 }),
        ("ended", Frame::Ended(ExecEnded { outcome: Some(samples::exited(3)), exec: info })),
        ("stdin_ack", Frame::StdinAck { offset: 9 }),
        ("ack", Frame::Ack { stdout: 1000, stderr: 200 }),
        ("detach", Frame::Detach),
    ];
    let text: Vec<String> =
        frames.into_iter().map(|(name, frame)| format!("{name}: {}", hex(&frame.to_bytes()))).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn transfer_frames_never_change() {
    use holdfast_wire::{api, files};
    let path = Bytes::from_static(b"a/b");
    let entry = api::FileEntry {
        path: path.clone(),
        kind: api::FileKind::Symlink.into(),
        mode: 0o755,
        mtime_seconds: 1_700_000_000,
        mtime_nanos: 5,
        size: 9,
        target: Bytes::from_static(b"\xff"),
        uid: 1,
        gid: 2,
    };
    let problem = api::FileProblem {
        path: path.clone(),
        kind: api::FileProblemKind::Vanished.into(),
        errno: 2,
        message: "gone".into(),
    };
    let digest = Bytes::from_static(&[0xd1; 32]);
    let end = api::TransferEnd { entries: 3, files: 2, bytes: 1, digest: digest.clone(), problems: 4 };
    let failure = api::FileFailure {
        kind: api::FileFailureKind::NoSpace.into(),
        path: path.clone(),
        errno: 28,
        message: "full".into(),
    };
    let frames = [
        ("entry", files::Frame::entry(&entry)),
        ("data", files::Frame::Data(Bytes::from_static(b"data\0\xff"))),
        ("hole", files::Frame::Hole(0x0102_0304_0506_0708)),
        ("close", files::Frame::Close),
        ("drop", files::Frame::Drop),
        ("problem", files::Frame::Problem(problem)),
        ("end", files::Frame::End(end)),
        ("failed", files::Frame::Failed(failure)),
        ("ack", files::Frame::Ack(9)),
        ("done", files::Frame::Done(api::TransferResult { entries: 3, files: 2, bytes: 1, digest, path })),
    ];
    let line = |(name, frame): (&str, files::Frame)| format!("{name}: {}", hex(&frame.to_bytes()));
    insta::assert_snapshot!(frames.into_iter().map(line).collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_supervisors_messages_never_change() {
    insta::assert_snapshot!(lines(samples::ups()));
}

#[test]
fn a_gateways_messages_never_change() {
    insta::assert_snapshot!(lines(samples::downs()));
}

#[test]
fn relay_headers_never_change() {
    insta::assert_snapshot!(lines(samples::headers()));
}

#[test]
fn relay_replies_never_change() {
    let text = [lines(samples::replies()), lines([("answer", samples::answer())])];
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn outcomes_never_change() {
    insta::assert_snapshot!(lines(samples::outcomes()));
}

/// The store keeps digests: another digest of the same spec would make a repeated start a conflict.
#[test]
fn a_specs_digest_never_changes() {
    insta::assert_snapshot!(hex(&spec::digest(&samples::spec())));
}

/// Other keys from the same secret would leave the supervisors of a restarted gateway without their reset.
#[test]
fn keys_are_told_apart_but_never_shown() {
    assert_eq!(format!("{:?}", ServerKeys::derive(&[7; 32])), "ServerKeys(…)");
}
