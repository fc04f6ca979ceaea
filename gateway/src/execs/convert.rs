//! Between the frames of a relay and the events of a caller. Data passes as the `Bytes` that it came in.

use holdfast_wire::{
    api::{
        AttachEvent, ExecEnded, ExecInfo, ExecStarted, Gap, OutputAck, OutputData, OutputStream, StdinAck,
        attach_event::Kind,
    },
    frame::Frame,
};

use super::event;

/// Follows the output of one relay: frames carry no offsets, events do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offsets {
    /// Of the next byte of stdout.
    pub(super) stdout: u64,
    /// Likewise stderr.
    pub(super) stderr: u64,
}

/// What a frame of the supervisor is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    /// Goes to the caller as it is.
    Event(AttachEvent),
    /// Stdin before this is in the command's pipe; goes to the caller too.
    StdinTaken(u64),
    /// The outcome; to be stored first.
    Ended(ExecEnded),
    /// The exec runs; the information is to be completed.
    Started(ExecStarted),
}

impl Offsets {
    /// Where the caller wants output to begin.
    pub(super) fn new(stdout: u64, stderr: u64) -> Self {
        Self { stdout, stderr }
    }

    fn of(&mut self, stream: OutputStream) -> &mut u64 {
        match stream {
            OutputStream::Stderr => &mut self.stderr,
            OutputStream::Stdout | OutputStream::Unspecified => &mut self.stdout,
        }
    }

    /// The frame, for the caller. An error says which rule the supervisor broke.
    pub(super) fn on_frame(&mut self, frame: Frame) -> Result<Heard, String> {
        Ok(match frame {
            Frame::Output(stream, data) => {
                let next = self.of(stream);
                let offset = *next;
                let Some(end) = offset.checked_add(data.len() as u64) else {
                    return Err(format!("output beyond 2^64 on {}", stream.as_str_name()));
                };
                *next = end;
                let data = OutputData { offset, data };
                Heard::Event(event(match stream {
                    OutputStream::Stderr => Kind::Stderr(data),
                    OutputStream::Stdout | OutputStream::Unspecified => Kind::Stdout(data),
                }))
            }
            Frame::Gap { stream, from, to } => {
                let next = self.of(stream);
                if from != *next {
                    return Err(format!(
                        "a gap {from}..{to} on {} where {next} comes next",
                        stream.as_str_name()
                    ));
                }
                *next = to;
                Heard::Event(event(Kind::Gap(Gap { stream: stream.into(), from, to })))
            }
            Frame::StdinAck { offset } => Heard::StdinTaken(offset),
            Frame::Started(started) => Heard::Started(started),
            Frame::Ended(ended) => Heard::Ended(ended),
            Frame::Stdin { .. }
            | Frame::StdinEof { .. }
            | Frame::Resize { .. }
            | Frame::Signal(_)
            | Frame::Ack { .. }
            | Frame::Detach => return Err("a frame that only a gateway may send".to_owned()),
        })
    }

    /// What of an event has been handed on, when it has.
    pub(super) fn on_handed(&mut self, event: &AttachEvent) {
        match &event.kind {
            Some(Kind::Stdout(output)) => self.stdout = output.offset + output.data.len() as u64,
            Some(Kind::Stderr(output)) => self.stderr = output.offset + output.data.len() as u64,
            Some(Kind::Gap(gap)) => *self.of(gap.stream()) = gap.to,
            _ => {}
        }
    }

    /// How many bytes lie between an earlier state and this one.
    pub(super) fn since(self, earlier: Self) -> u64 {
        self.stdout.saturating_sub(earlier.stdout) + self.stderr.saturating_sub(earlier.stderr)
    }

    /// As an acknowledgement.
    pub(super) fn ack(self) -> Frame {
        Frame::Ack { stdout: self.stdout, stderr: self.stderr }
    }
}

impl From<OutputAck> for Offsets {
    fn from(ack: OutputAck) -> Self {
        Self { stdout: ack.stdout_offset, stderr: ack.stderr_offset }
    }
}

/// The event that says that stdin has been taken so far.
pub(super) fn stdin_taken(offset: u64) -> AttachEvent {
    event(Kind::StdinAck(StdinAck { offset }))
}

/// What a caller is told of an exec that is over and whose supervisor is gone: what was written and is no longer
/// kept, then the outcome.
pub(super) fn from_store(info: ExecInfo, mut have: Offsets) -> Vec<AttachEvent> {
    let mut events = vec![event(Kind::Started(ExecStarted { exec: Some(info.clone()), stdin_offset: 0 }))];
    for (stream, written) in
        [(OutputStream::Stdout, info.stdout_bytes), (OutputStream::Stderr, info.stderr_bytes)]
    {
        let from = *have.of(stream);
        if from < written {
            events.push(event(Kind::Gap(Gap { stream: stream.into(), from, to: written })));
        }
    }
    events.push(event(Kind::Ended(ExecEnded { outcome: info.outcome.clone(), exec: Some(info) })));
    events
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gap_must_begin_where_the_output_stands() {
        let mut offsets = Offsets::new(10, 0);
        let gap = |from, to| Frame::Gap { stream: OutputStream::Stdout, from, to };
        assert!(offsets.on_frame(gap(9, 20)).is_err());
        assert!(offsets.on_frame(gap(10, 20)).is_ok());
        assert_eq!(offsets, Offsets::new(20, 0));
    }

    #[test]
    fn output_passes_without_a_copy() {
        let data = Bytes::from(vec![7; 1000]);
        let heard = Offsets::default().on_frame(Frame::Output(OutputStream::Stderr, data.clone())).unwrap();
        let Heard::Event(AttachEvent { kind: Some(Kind::Stderr(output)) }) = heard else { panic!() };
        assert_eq!(output.data.as_ptr(), data.as_ptr());
    }

    proptest! {
        /// However output is cut into frames: offsets are the running sum, and what is handed on ends up where
        /// the frames did.
        #[test]
        fn offsets_are_the_running_sum(pieces in prop::collection::vec((any::<bool>(), 0usize..300), 0..50)) {
            let (mut heard, mut handed) = (Offsets::new(5, 9), Offsets::new(5, 9));
            let mut sums = (5, 9);
            for (err, length) in pieces {
                let stream = if err { OutputStream::Stderr } else { OutputStream::Stdout };
                let frame = Frame::Output(stream, Bytes::from(vec![0; length]));
                let Heard::Event(event) = heard.on_frame(frame).unwrap() else { panic!() };
                handed.on_handed(&event);
                let sum = if err { &mut sums.1 } else { &mut sums.0 };
                *sum += length as u64;
                prop_assert_eq!(handed, heard);
                prop_assert_eq!((heard.stdout, heard.stderr), sums);
            }
        }
    }
}
