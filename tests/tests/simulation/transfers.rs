//! A transfer of a file over paths that lose packets, move, and fall silent: all of it arrives, once, or nothing does.
//!
//! The supervisor writes with a thread, as it always does, and a thread has no simulated time: how long a transfer takes is
//! not asked here, and two runs of a seed may differ in their instants. What arrives may not.

use std::time::Duration;

use bytes::Bytes;
use holdfast_files::{Emitter, Piece, Window, emit::plain_entry};
use holdfast_gateway::{
    error::{CallError, Reason},
    files::{Files, Upload},
};
use holdfast_supervisor::execs::spawn::fake::pattern_bytes;
use holdfast_tests::sim::{Impairments, Plot, Way, World};
use holdfast_wire::{
    api::{FileKind, TransferResult, UploadOpen, UploadPlacement, UploadSpec, upload_event},
    ids::{SandboxId, TransferId},
    timing,
};
use rand::RngExt;

use crate::run::{SECOND, simulate};

const MS: Duration = Duration::from_millis(1);
/// At two megabytes a second: long enough for every fault to fall into it.
const LENGTH: usize = 4_000_000;
/// A simulated hour is longer than any transfer may need, whatever its thread does meanwhile.
const BOUND: Duration = Duration::from_secs(3600);

fn lossy() -> Impairments {
    Impairments {
        rate: Some(2_000_000),
        loss: 0.01,
        reorder: 0.02,
        reorder_by: 3 * MS,
        duplicate: 0.01,
        jitter: 2 * MS,
        ..Impairments::good()
    }
}

/// A file's whole stream, ready to be sent, and the digest that its receiver must come to.
fn stream_of(content: &[u8]) -> anyhow::Result<(Window, Bytes)> {
    let window = Window::new(u64::MAX);
    let mut emitter = Emitter::new(&window);
    emitter.entry(&plain_entry(Bytes::new(), FileKind::File, 0o640))?;
    let mut rest = content;
    while emitter.content(&mut rest, u64::MAX)?? > 0 {}
    emitter.close()?;
    let digest = emitter.end()?.end.digest;
    Ok((window, digest))
}

/// Sends the stream into a sandbox over as many relays as it takes; says how it ended, and how many that were.
async fn send(
    files: &Files,
    sandbox: SandboxId,
    window: &Window,
    path: &str,
) -> anyhow::Result<(TransferResult, usize)> {
    let (id, mut acknowledged, mut relays) = (TransferId::random(), 0, 0);
    let spec = UploadSpec {
        path: Bytes::copy_from_slice(path.as_bytes()),
        placement: UploadPlacement::Exact.into(),
        ..UploadSpec::default()
    };
    loop {
        let open = UploadOpen {
            sandbox: sandbox.to_string(),
            transfer_id: id.to_string(),
            start: Some(spec.clone()),
            offset: acknowledged,
            start_deadline: None,
        };
        let told = match files.upload(open, None, "").await {
            Ok(upload) => {
                relays += 1;
                match over_one_relay(upload, window, &mut acknowledged).await {
                    Ok(result) => return Ok((result, relays)),
                    Err(told) => told,
                }
            }
            Err(told) => told,
        };
        let again = matches!(told.reason, Reason::SessionLost | Reason::NoSession | Reason::RelayDeadline);
        anyhow::ensure!(again, "{}: {told}", told.reason);
        tokio::time::sleep(100 * MS).await;
    }
}

async fn over_one_relay(
    upload: Upload,
    window: &Window,
    acknowledged: &mut u64,
) -> Result<TransferResult, CallError> {
    let Upload { mut input, mut output } = upload;
    let mut offset = *acknowledged;
    let sending = async {
        loop {
            match window.next(offset).await {
                Piece::Data(chunk) => {
                    let length = chunk.len() as u64;
                    if !input.data(chunk).await? {
                        return std::future::pending().await;
                    }
                    offset += length;
                }
                _ => {
                    input.finish();
                    return std::future::pending::<Result<TransferResult, CallError>>().await;
                }
            }
        }
    };
    let hearing = async {
        loop {
            let event = output.next_event().await.unwrap_or_else(|| {
                Err(CallError::new(Reason::Internal, "the events ended without a last one"))
            })?;
            match event.kind {
                Some(upload_event::Kind::Ack(to)) => *acknowledged = to,
                Some(upload_event::Kind::Done(result)) => return Ok(result),
                _ => {}
            }
        }
    };
    tokio::select! {
        ended = hearing => ended,
        failed = sending => failed,
    }
}

/// A transfer while `faults` befall its path; gives the number of relays that it took.
async fn transfer(world: &mut World, faults: impl AsyncFnOnce(&mut World)) -> anyhow::Result<usize> {
    world.ready(0, 30 * SECOND).await?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    let content = pattern_bytes(7, LENGTH);
    let (window, digest) = stream_of(&content)?;
    // The path of an absolute name is the machine's own: the simulated sandbox has no root of its own.
    let to = path.to_string_lossy().into_owned();
    let (files, sandbox) = (Files::new(world.gateway()?.core.sandboxes.clone()), world.sandboxes[0].id);
    let sending = tokio::time::timeout(BOUND, send(&files, sandbox, &window, &to));
    let (sent, ()) = tokio::join!(sending, faults(world));
    let (result, relays) = sent??;
    anyhow::ensure!(result.digest == digest, "another digest than what was sent has");
    anyhow::ensure!(std::fs::read(&path)? == content, "another content than what was sent");
    let names = std::fs::read_dir(dir.path())?.count();
    anyhow::ensure!(names == 1, "{names} names, and not the file alone");
    // The supervisor remembers each of the relays so long; then nothing of the transfer is left.
    world.pass(timing::TRANSFER_KEPT + SECOND).await;
    Ok(relays)
}

#[test]
fn a_file_over_a_path_that_loses_and_moves_arrives_whole() {
    simulate("a_file_over_a_path_that_loses_and_moves_arrives_whole", 3, async |seed| {
        let mut world = World::begin(Plot { path: lossy(), nat: true, ..Plot::new(seed) }).await?;
        transfer(&mut world, async |world| {
            for _ in 0..3 {
                let pause = 200 + world.random.random_range(0..400);
                world.pass(MS * pause).await;
                match world.random.random_range(0..3) {
                    0 => world.evict_nat(0),
                    1 => world.rebind_nat(0),
                    _ => world.move_supervisor(0),
                }
            }
        })
        .await?;
        world.check().await?;
        Ok(())
    });
}

#[test]
fn a_file_whose_session_is_lost_in_the_middle_goes_on_over_the_next() {
    simulate("a_file_whose_session_is_lost_in_the_middle_goes_on_over_the_next", 3, async |seed| {
        let mut world = World::begin(Plot { path: lossy(), ..Plot::new(seed) }).await?;
        let relays = transfer(&mut world, async |world| {
            world.pass(300 * MS).await;
            // Longer than any session lives in silence.
            world.blackhole(0, Way::Both);
            world.pass(40 * SECOND).await;
            world.heal(0);
        })
        .await?;
        anyhow::ensure!(relays > 1, "the session was not lost in the middle");
        world.check().await?;
        Ok(())
    });
}
