//! The bounds fit together: what is allowed by one can be carried by the next.

use bytes::Bytes;
use holdfast_wire::{
    api::{
        Argv, EnvVar, ExecEnded, ExecInfo, ExecSpec, ExecStarted, ReadExecResponse, exec_spec::Command,
        outcome,
    },
    control::{ExecAnswer, ExecRelay, ExecReport, RelayHeader, Up, relay_header, up},
    frame::Frame,
    limits::{
        MAX_ARG, MAX_ARG_COUNT, MAX_ARGS_AND_ENV, MAX_ENV_COUNT, MAX_EXECS, MAX_FRAME_PAYLOAD, MAX_MESSAGE,
        MAX_OUTCOME_TEXT, MAX_PATH, MAX_READ, MAX_RELAY_HEADER, MAX_USER,
    },
    message, spec,
};
use prost::Message;
use prost_types::{Duration, Timestamp};

use crate::samples;

/// An exec with every field at its largest.
fn largest_info() -> ExecInfo {
    let late = Some(Timestamp { seconds: 253_402_300_799, nanos: 999_999_999 });
    // Of all outcomes, those with text are the largest.
    let (_, mut outcome) = samples::outcomes().swap_remove(5);
    let Some(outcome::Kind::StartFailed(failed)) = &mut outcome.kind else {
        panic!("the sixth: start failed")
    };
    failed.errno = -1;
    failed.kind = i32::MIN;
    failed.message = "m".repeat(MAX_OUTCOME_TEXT);
    ExecInfo {
        outcome: Some(outcome),
        command: "c".repeat(256),
        pid: u32::MAX,
        accepted_at: late,
        started_at: late,
        ended_at: late,
        stdout_bytes: u64::MAX,
        stderr_bytes: u64::MAX,
        stdout_kept_from: u64::MAX,
        stderr_kept_from: u64::MAX,
        readers: u32::MAX,
        ..samples::info()
    }
}

#[test]
fn a_full_report_of_the_most_execs_fits_a_message() {
    let execs = vec![largest_info(); MAX_EXECS];
    let report = Up { body: Some(up::Body::Execs(ExecReport { complete: true, execs: execs.clone() })) };
    message::encode(&report, MAX_MESSAGE).expect("a report of all execs");
    message::encode(&ExecAnswer { execs, read: None }, MAX_MESSAGE).expect("a list of all execs");
}

#[test]
fn the_largest_read_fits_a_message() {
    let read = ReadExecResponse { offset: u64::MAX, data: vec![0; MAX_READ].into(), eof: true };
    message::encode(&ExecAnswer { execs: vec![], read: Some(read) }, MAX_MESSAGE).expect("a full read");
}

#[test]
fn the_largest_first_and_last_frames_fit_a_frame() {
    let exec = largest_info();
    let started = ExecStarted { exec: Some(exec.clone()), stdin_offset: u64::MAX };
    let ended = ExecEnded { outcome: exec.outcome.clone(), exec: Some(exec) };
    assert!(started.encoded_len() <= MAX_FRAME_PAYLOAD && ended.encoded_len() <= MAX_FRAME_PAYLOAD);
    for frame in [Frame::Started(started), Frame::Ended(ended)] {
        let mut decoder = holdfast_wire::frame::FrameDecoder::new();
        decoder.push(frame.clone().to_bytes());
        assert_eq!(decoder.next_frame(), Ok(Some(frame)));
    }
}

fn header_of(spec: ExecSpec) -> RelayHeader {
    let (_, header) = samples::headers().swap_remove(0);
    let Some(relay_header::Kind::Exec(relay)) = header.kind else { panic!("the first: exec") };
    let relay = ExecRelay { start: Some(spec), stdout_offset: u64::MAX, stderr_offset: u64::MAX, ..relay };
    RelayHeader { kind: Some(relay_header::Kind::Exec(relay)), accept_within_ms: u64::MAX, ..header }
}

/// A spec that passes its check can always be sent: the header's bound holds what the check lets through.
#[test]
fn every_spec_that_passes_its_check_fits_a_relay_header() {
    let long = Some(Duration { seconds: 600, nanos: 999_999_999 });
    let rest = ExecSpec {
        cwd: vec![b'd'; MAX_PATH - 1].into(),
        user: "u".repeat(MAX_USER),
        timeout: Some(Duration { seconds: 315_576_000_000, nanos: 999_999_999 }),
        kill_grace: Some(Duration { seconds: 600, nanos: 0 }),
        retain_for: long,
        ..samples::spec()
    };
    let spec_of = |args: Vec<Bytes>, env: Vec<EnvVar>| ExecSpec {
        command: Some(Command::Argv(Argv { args })),
        env,
        ..rest.clone()
    };
    // The encoding adds most where there are many small pieces, so: all the pieces there may be, and all the bytes.
    let half = MAX_ARGS_AND_ENV / 2;
    let arg = Bytes::from(vec![b'a'; half / MAX_ARG_COUNT - 1]);
    let value = Bytes::from(vec![b'v'; half / MAX_ENV_COUNT - 3]);
    let many = spec_of(
        vec![arg; MAX_ARG_COUNT],
        vec![EnvVar { name: Bytes::from_static(b"N"), value }; MAX_ENV_COUNT],
    );
    // ... where the length prefixes grow by a byte ...
    let medium = spec_of(vec![Bytes::from(vec![b'a'; 128]); MAX_ARGS_AND_ENV / 129], vec![]);
    // ... and where there are few and long ones.
    let few = spec_of(vec![Bytes::from(vec![b'a'; MAX_ARG - 1]); MAX_ARGS_AND_ENV / MAX_ARG], vec![]);
    for (name, spec) in [("many", many), ("medium", medium), ("few", few)] {
        spec::check(&spec).unwrap_or_else(|error| panic!("{name}: {error}"));
        let header = header_of(spec);
        assert!(header.encoded_len() > MAX_ARGS_AND_ENV, "{name}: only {} bytes", header.encoded_len());
        message::encode(&header, MAX_RELAY_HEADER).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn one_byte_more_than_arguments_may_have_is_refused() {
    let full = vec![Bytes::from(vec![b'a'; MAX_ARG - 1]); MAX_ARGS_AND_ENV / MAX_ARG];
    let spec = |args| ExecSpec { command: Some(Command::Argv(Argv { args })), ..ExecSpec::default() };
    assert!(spec::check(&spec(full.clone())).is_ok());
    let over = [full, vec![Bytes::new()]].concat();
    assert_eq!(spec::check(&spec(over)).unwrap_err().field, "argv");
}
