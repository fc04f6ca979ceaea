//! Execs over the real wire, with a paused clock: what callers are told, whatever happens to supervisors.

mod callers;
mod ends;
mod sessions;
mod starts;

use std::time::Duration;

use bytes::Bytes;
use holdfast_drivers::Exit;
use holdfast_wire::{
    api::{
        AttachEvent, ExecState, Exited, Lost, LostReason, OnDisconnect, OutputAck, StartFailed, StartFailure,
        TerminalSize, attach_event::Kind as Event, outcome::Kind,
    },
    close::CloseCode,
    control::{RefusedCode, exec_call, up},
    frame::Frame,
    ids::ExecId,
    timing,
};
use tokio::time::Instant;

use super::{AttachOutput, Attached, CallerInfo};
use crate::{
    error::{CallError, Reason, key},
    sessions::fake::{Act, FakeWorld, Heard, a_spec, an_attach, open_control},
};

const BOX: &str = "box";

fn caller() -> CallerInfo {
    CallerInfo { name: "ada".to_owned(), traceparent: String::new() }
}

/// Everything until the end: stdout, and the outcome or the error.
async fn drain(output: &mut AttachOutput) -> (Vec<u8>, Result<Kind, CallError>) {
    let mut stdout = Vec::new();
    loop {
        match output.next_event().await {
            Some(Ok(AttachEvent { kind: Some(Event::Stdout(data)) })) => {
                assert_eq!(data.offset, stdout.len() as u64);
                stdout.extend_from_slice(&data.data);
            }
            Some(Ok(AttachEvent { kind: Some(Event::Ended(ended)) })) => {
                assert!(output.next_event().await.is_none(), "nothing follows the outcome");
                return (stdout, Ok(ended.outcome.unwrap().kind.unwrap()));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return (stdout, Err(error)),
            None => panic!("an end without outcome or error"),
        }
    }
}

/// Reads until so much of stdout is there.
async fn read(output: &mut AttachOutput, length: usize) {
    let mut got = 0;
    while got < length {
        if let Some(Event::Stdout(data)) = output.next_event().await.unwrap().unwrap().kind {
            got += data.data.len();
        }
    }
}

async fn attach(world: &FakeWorld, exec: ExecId) -> Result<Attached, CallError> {
    world.execs.attach(an_attach(BOX, exec), caller()).await
}

async fn outcome(world: &FakeWorld, exec: ExecId) -> Option<Kind> {
    world.store.exec(exec).await.unwrap().unwrap().finished.and_then(|finished| finished.outcome.kind)
}
