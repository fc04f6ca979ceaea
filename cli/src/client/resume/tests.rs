//! Any sequence of cuts and re-attaches yields the exact byte streams, once, in both directions.

use holdfast_wire::api::{Exited, Outcome, StdinAck, StdinData, StdinEof, outcome};
use proptest::prelude::*;

use super::*;

fn target(stdin: bool) -> Target {
    Target {
        sandbox: "box".into(),
        exec_id: ExecId::random(),
        start: Some(ExecSpec::default()),
        start_deadline: None,
        stdin,
        stdout_offset: 0,
        stderr_offset: 0,
        on_pause: OnPause::Notice,
    }
}

fn event(kind: attach_event::Kind) -> AttachEvent {
    AttachEvent { kind: Some(kind) }
}

fn started(stdin_offset: u64, kept_from: u64) -> AttachEvent {
    let exec = ExecInfo { stdout_kept_from: kept_from, ..ExecInfo::default() };
    event(attach_event::Kind::Started(holdfast_wire::api::ExecStarted { exec: Some(exec), stdin_offset }))
}

fn stdout(offset: u64, data: &[u8]) -> AttachEvent {
    event(attach_event::Kind::Stdout(OutputData { offset, data: Bytes::copy_from_slice(data) }))
}

fn ended(stdout_bytes: u64) -> AttachEvent {
    let outcome = Outcome { kind: Some(outcome::Kind::Exited(Exited { code: 0 })) };
    let exec = ExecInfo { stdout_bytes, ..ExecInfo::default() };
    event(attach_event::Kind::Ended(ExecEnded { outcome: Some(outcome), exec: Some(exec) }))
}

fn open_of(request: AttachRequest) -> AttachOpen {
    match request.kind {
        Some(Kind::Open(open)) => open,
        other => panic!("not an open: {other:?}"),
    }
}

#[test]
fn a_repeated_prefix_is_cut_away() {
    let mut resume = Resume::new(target(false));
    resume.open();
    resume.on_event(started(0, 0)).unwrap();
    resume.on_event(stdout(0, b"hello ")).unwrap();
    let Some(Seen::Output { data, end, .. }) = resume.on_event(stdout(2, b"llo world")).unwrap() else {
        panic!()
    };
    assert_eq!((&data[..], end), (&b"world"[..], 11));
    assert!(resume.on_event(stdout(0, b"hello world")).unwrap().is_none());
}

#[test]
fn a_hole_without_a_gap_is_a_violation() {
    let mut resume = Resume::new(target(false));
    resume.open();
    resume.on_event(started(0, 0)).unwrap();
    let hole = Violation::Hole { stream: "stdout", expected: 0, got: 3 };
    assert_eq!(resume.on_event(stdout(3, b"x")).unwrap_err(), hole);
    let gap = Gap { stream: OutputStream::Stdout.into(), from: 0, to: 3 };
    let seen = resume.on_event(event(attach_event::Kind::Gap(gap))).unwrap();
    assert!(matches!(seen, Some(Seen::Lost { bytes: 3, .. })), "{seen:?}");
    assert!(resume.on_event(stdout(3, b"x")).unwrap().is_some());
    assert_eq!(resume.lost(), 3);
}

#[test]
fn what_started_says_is_gone_is_told_once() {
    let mut resume = Resume::new(target(false));
    resume.open();
    let seen = resume.on_event(started(0, 10)).unwrap();
    assert!(matches!(seen, Some(Seen::Started { lost: 10, first: true, .. })), "{seen:?}");
    let gap = Gap { stream: OutputStream::Stdout.into(), from: 0, to: 10 };
    assert!(resume.on_event(event(attach_event::Kind::Gap(gap))).unwrap().is_none());
    let seen = resume.on_event(stdout(10, b"x")).unwrap();
    assert!(matches!(seen, Some(Seen::Output { end: 11, .. })), "{seen:?}");
    assert_eq!(resume.lost(), 10);
}

#[test]
fn output_that_never_came_is_counted_at_the_end() {
    let mut resume = Resume::new(target(false));
    resume.open();
    resume.on_event(started(0, 0)).unwrap();
    resume.on_event(stdout(0, b"abc")).unwrap();
    let seen = resume.on_event(ended(5)).unwrap();
    assert!(matches!(seen, Some(Seen::Ended { missing: 2, .. })), "{seen:?}");
}

#[test]
fn a_start_is_asked_for_until_the_exec_is_known() {
    let mut resume = Resume::new(target(false));
    assert!(open_of(resume.open()).start.is_some());
    assert!(open_of(resume.open()).start.is_some(), "a lost start is repeated");
    resume.on_event(started(0, 0)).unwrap();
    assert!(open_of(resume.open()).start.is_none(), "never run twice");
}

#[test]
fn output_before_started_is_a_violation() {
    let mut resume = Resume::new(target(false));
    resume.open();
    assert_eq!(resume.on_event(stdout(0, b"x")).unwrap_err(), Violation::NotStarted);
    resume.on_event(started(0, 0)).unwrap();
    resume.open();
    assert_eq!(resume.on_event(stdout(0, b"x")).unwrap_err(), Violation::NotStarted, "on each stream");
}

#[test]
fn impossible_offsets_are_violations() {
    let mut resume = Resume::new(target(true));
    resume.open();
    resume.on_event(started(0, 0)).unwrap();
    assert_eq!(resume.on_event(stdout(u64::MAX, b"xx")).unwrap_err(), Violation::Offset("stdout"));
    let gap = Gap { stream: OutputStream::Stdout.into(), from: 9, to: 3 };
    assert_eq!(
        resume.on_event(event(attach_event::Kind::Gap(gap))).unwrap_err(),
        Violation::Offset("stdout")
    );
    resume.push_stdin(Bytes::from_static(b"abc"));
    let ack = event(attach_event::Kind::StdinAck(StdinAck { offset: 4 }));
    assert_eq!(resume.on_event(ack).unwrap_err(), Violation::StdinTaken { got: 4, sent: 3 });
}

#[test]
fn a_later_writer_goes_on_where_the_earlier_one_ended() {
    let mut resume = Resume::new(target(true));
    resume.open();
    resume.push_stdin(Bytes::from_static(b"abc"));
    assert!(!resume.has_outgoing(), "the place is not known before `started`");
    resume.on_event(started(100, 0)).unwrap();
    let sent = resume.next_outgoing().unwrap();
    assert_eq!(sent.kind, Some(Kind::Stdin(StdinData { offset: 100, data: Bytes::from_static(b"abc") })));
}

#[test]
fn the_newest_size_is_told_again_on_each_stream() {
    let mut resume = Resume::new(target(false));
    resume.open();
    resume.on_event(started(0, 0)).unwrap();
    resume.resize(TerminalSize { cols: 1, rows: 1 });
    resume.resize(TerminalSize { cols: 80, rows: 24 });
    assert_eq!(resume.next_outgoing().unwrap().kind, Some(Kind::Resize(TerminalSize { cols: 80, rows: 24 })));
    assert!(!resume.has_outgoing());
    resume.open();
    resume.on_event(started(0, 0)).unwrap();
    assert_eq!(resume.next_outgoing().unwrap().kind, Some(Kind::Resize(TerminalSize { cols: 80, rows: 24 })));
}

#[test]
fn output_is_confirmed_after_enough_of_it_or_on_quiet() {
    let mut resume = Resume::new(target(false));
    resume.open();
    resume.on_event(started(0, 0)).unwrap();
    resume.on_event(stdout(0, b"abc")).unwrap();
    resume.on_consumed(3, 0);
    assert!(!resume.has_outgoing());
    resume.flush_acks();
    let ack = OutputAck { stdout_offset: 3, stderr_offset: 0 };
    assert_eq!(resume.next_outgoing().unwrap().kind, Some(Kind::Ack(ack)));
    let much = vec![0; limits::ACK_EVERY as usize];
    resume.on_event(stdout(3, &much)).unwrap();
    resume.on_consumed(u64::MAX, 0);
    let ack = OutputAck { stdout_offset: 3 + limits::ACK_EVERY, stderr_offset: 0 };
    assert_eq!(resume.next_outgoing().unwrap().kind, Some(Kind::Ack(ack)), "never beyond what came");
}

#[test]
fn too_many_signals_are_refused() {
    let mut resume = Resume::new(target(false));
    assert!((0..MAX_SIGNALS).all(|_| resume.signal(2)));
    assert!(!resume.signal(2));
}

/// One step of a hostile but honest peer.
#[derive(Clone, Debug)]
enum Step {
    /// Output: which stream, how far back it repeats, how much.
    Output { err: bool, back: usize, length: usize },
    /// Takes what was sent so far of stdin, and acknowledges all but so much of it.
    Stdin { messages: usize, unconfirmed: u64 },
    /// The caller types.
    Type(usize),
    /// The stream is lost, and `unread` of the last events with it; the next one opens.
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (any::<bool>(), 0..40usize, 0..60usize).prop_map(|(err, back, length)| Step::Output { err, back, length }),
        3 => (0..4usize, 0..50u64).prop_map(|(messages, unconfirmed)| Step::Stdin { messages, unconfirmed }),
        3 => (0..5000usize).prop_map(Step::Type),
        2 => Just(Step::Cut),
    ]
}

/// The supervisor as the caller imagines it.
struct FakePeer {
    output: [Vec<u8>; 2],
    at: [usize; 2],
    stdin: Vec<u8>,
    confirmed: u64,
    eof: bool,
}

impl FakePeer {
    fn on_request(&mut self, request: AttachRequest) {
        match request.kind.unwrap() {
            Kind::Stdin(StdinData { offset, data }) => {
                let offset = usize::try_from(offset).unwrap();
                assert!(offset <= self.stdin.len(), "a hole in stdin");
                let known = self.stdin.len() - offset;
                if known < data.len() {
                    self.stdin.extend_from_slice(&data[known..]);
                }
            }
            Kind::StdinEof(StdinEof { offset }) => {
                assert_eq!(offset, self.stdin.len() as u64, "the end is the end");
                self.eof = true;
            }
            _ => {}
        }
    }

    /// A new stream.
    fn on_open(&mut self, resume: &mut Resume) {
        let open = open_of(resume.open());
        self.at =
            [usize::try_from(open.stdout_offset).unwrap(), usize::try_from(open.stderr_offset).unwrap()];
        // A supervisor may tell more than it had confirmed before: what it took is what it took.
        self.confirmed = self.stdin.len() as u64;
        resume.on_event(started(self.confirmed, 0)).unwrap();
    }

    fn output(
        &mut self,
        resume: &mut Resume,
        err: bool,
        back: usize,
        length: usize,
        seen: &mut [Vec<u8>; 2],
    ) {
        let which = usize::from(err);
        let from = self.at[which].saturating_sub(back);
        let to = (self.at[which] + length).min(self.output[which].len());
        self.at[which] = to;
        let data = OutputData {
            offset: from as u64,
            data: Bytes::copy_from_slice(&self.output[which][from..to.max(from)]),
        };
        let kind = if err { attach_event::Kind::Stderr(data) } else { attach_event::Kind::Stdout(data) };
        if let Some(Seen::Output { stream, data, end }) = resume.on_event(event(kind)).unwrap() {
            assert_eq!(stream == OutputStream::Stderr, err);
            seen[which].extend_from_slice(&data);
            assert_eq!(end, seen[which].len() as u64);
        }
    }
}

proptest! {
    #[test]
    fn cuts_and_repeats_never_change_the_bytes(steps in prop::collection::vec(step(), 0..120)) {
        let output = [
            (0..700u32).map(|i| (i % 251) as u8).collect::<Vec<_>>(),
            (0..500u32).map(|i| (i % 241) as u8 ^ 0x55).collect::<Vec<_>>(),
        ];
        let mut peer = FakePeer { output, at: [0, 0], stdin: vec![], confirmed: 0, eof: false };
        let mut resume = Resume::new(target(true));
        let mut seen = [vec![], vec![]];
        let mut typed = Vec::new();
        peer.on_open(&mut resume);
        for step in steps {
            match step {
                Step::Output { err, back, length } => peer.output(&mut resume, err, back, length, &mut seen),
                Step::Stdin { messages, unconfirmed } => {
                    for _ in 0..messages {
                        if let Some(request) = resume.next_outgoing() { peer.on_request(request); }
                    }
                    let offset = (peer.stdin.len() as u64).saturating_sub(unconfirmed).max(peer.confirmed);
                    peer.confirmed = offset;
                    let ack = event(attach_event::Kind::StdinAck(StdinAck { offset }));
                    resume.on_event(ack).unwrap();
                }
                Step::Type(length) => {
                    let data: Vec<u8> = (0..length).map(|i| ((typed.len() + i) % 239) as u8).collect();
                    typed.extend_from_slice(&data);
                    resume.push_stdin(data.into());
                }
                Step::Cut => {
                    // What is on its way when the stream dies is lost.
                    resume.next_outgoing();
                    peer.on_open(&mut resume);
                }
            }
            let stdin = resume.stdin.as_ref().unwrap();
            prop_assert_eq!(stdin.chunks.iter().map(|c| c.len() as u64).sum::<u64>(), stdin.end - stdin.base);
        }
        // The last stream lives to the end.
        resume.end_stdin();
        while let Some(request) = resume.next_outgoing() { peer.on_request(request); }
        for err in [false, true] { peer.output(&mut resume, err, 7, 1000, &mut seen); }
        prop_assert_eq!(&peer.stdin, &typed);
        prop_assert!(peer.eof);
        prop_assert_eq!(&seen[0], &peer.output[0]);
        prop_assert_eq!(&seen[1], &peer.output[1]);
        prop_assert_eq!(resume.lost(), 0);
    }
}
