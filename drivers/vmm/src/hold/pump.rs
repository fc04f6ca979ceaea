//! From a pipe into a log, to the pipe's end.

use holdfast_drivers::vm::log::BoundedLog;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A console's lines are short; a flood is taken in pieces of this size.
const PIECE: usize = 16 * 1024;

/// Ends with the pipe. A log that cannot be written loses its text; the pipe is read all the same, or its writer would
/// stand still.
pub(super) async fn run(mut pipe: impl AsyncRead + Unpin, mut log: BoundedLog) {
    let mut piece = vec![0; PIECE];
    let mut complained = false;
    while let Ok(length) = pipe.read(&mut piece).await {
        if length == 0 {
            return;
        }
        if let Err(error) = log.append(&piece[..length])
            && !std::mem::replace(&mut complained, true)
        {
            tracing::warn!(%error, "a log cannot be written");
        }
    }
}
