//! This machine's end of a transfer: files and pipes, on threads of their own.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use holdfast_files::{Failure, Window, Writer, archive, write::Progress};
use holdfast_wire::api::TransferResult;
use tokio::sync::{oneshot, watch};

use super::Copied;
use crate::failure::Failed;

/// Writes the transfer's stream to files.
pub(super) fn write(
    mut writer: Writer,
    window: &Window,
    used: &watch::Sender<(u64, bool)>,
    counter: &AtomicU64,
) -> Result<Copied, Failure> {
    let _close = CloseOnDrop(window);
    let mut at = 0;
    while let Some(chunk) = window.take_blocking() {
        at += chunk.len() as u64;
        match writer.take(chunk)? {
            Progress::More => used.send_replace((at, false)),
            Progress::Done(result) => {
                used.send_replace((at, true));
                let problems = writer.problems().to_vec();
                // Until the stream's end, so that the sandbox hears that all is here.
                while window.take_blocking().is_some() {}
                return Ok(Copied { result, problems });
            }
        };
        counter.store(writer.progress().0, Ordering::Relaxed);
    }
    Err(Failure::abandoned("the stream ended before the transfer did"))
}

/// Writes it to stdout as an archive.
pub(super) fn pack(
    root: Vec<u8>,
    window: &Window,
    used: &watch::Sender<(u64, bool)>,
    counter: &AtomicU64,
) -> Result<Copied, Failure> {
    let _close = CloseOnDrop(window);
    let out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let mut packer = archive::Packer::new(out, root);
    let mut at = 0;
    while let Some(chunk) = window.take_blocking() {
        at += chunk.len() as u64;
        let over = packer.take(chunk)?;
        used.send_replace((at, over));
        counter.store(packer.progress().0, Ordering::Relaxed);
        if let Some(end) = packer.end() {
            let problems = packer.problems().to_vec();
            let result = TransferResult {
                entries: end.entries,
                files: end.files,
                bytes: end.bytes,
                digest: end.digest.clone(),
                path: Bytes::from_static(b"-"),
            };
            while window.take_blocking().is_some() {}
            return Ok(Copied { result, problems });
        }
    }
    Err(Failure::abandoned("the stream ended before the transfer did"))
}

/// A writer that fails wants nothing more, and who fills its window must hear it.
struct CloseOnDrop<'a>(&'a Window);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Runs `work` on a thread of its own; it ends with the process at the latest.
pub(super) fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, Failed> {
    let (tell, told) = oneshot::channel();
    let run = move || drop(tell.send(work()));
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| Failed::local("start a thread", error))?;
    Ok(told)
}

pub(super) async fn joined<T>(thread: oneshot::Receiver<T>) -> Result<T, Failed> {
    thread.await.map_err(|_| Failed::local("copy", "a thread of this program has panicked"))
}
