//! A stand-in for today's systems, to compare with: one h2 connection over TLS and TCP, dialled by the supervisor;
//! one bidirectional gRPC stream for each command. The fault table runs it under the same faults as the product.
//!
//! ```text
//!   gateway  ◀── TLS, TCP, h2: one connection ── supervisor
//!      │   control stream: "run this"  ───────────▶ │ sh -c
//!      │ ◀───────────── one stream a command: output, exit code
//! ```
//!
//! It is meant to be fair: TCP_NODELAY on, windows of 2 MiB a stream and 4 MiB a connection, and it is run twice:
//! as it comes, and with h2 keepalives ([`KEEPALIVE`]) on both sides. A supervisor dials anew a second after its
//! connection has broken. What it does not have is what the product adds: an exec that outlives its connection.
//!
//! - [`gateway`] and [`supervisor`]: the two processes, the binary `baseline-peer`
//! - [`Call`]: what a command does, [`Event`]: what became of it, a line of JSON each

pub mod gateway;
pub mod supervisor;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The generated client and server.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all)]
pub(crate) mod proto {
    tonic::include_proto!("holdfast.baseline.v1");
}

/// With keepalive: a PING after so long, and so long for its answer. Both sides, idle or not.
pub const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// h2's windows, a stream's and a connection's: hyper's client defaults, where a server's are smaller.
pub(crate) const WINDOWS: (u32, u32) = (2 << 20, 4 << 20);

/// The gateway's name in its certificate.
pub const SERVER_NAME: &str = "baseline";

/// The most that one message carries.
pub(crate) const CHUNK: usize = 64 << 10;

/// One command, for the gateway's list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// Its number.
    pub call: u64,
    /// Where it runs.
    pub sandbox: String,
    /// What.
    pub script: String,
    /// What it does.
    pub kind: Kind,
}

/// What a command does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// Says so many lines of `NUMBER NANOSECONDS`, and exits with the code.
    Talk {
        /// Lines.
        lines: usize,
        /// Code.
        code: i32,
    },
    /// Gets so many of [`distinct`]'s bytes and gives them back.
    Bulk {
        /// Bytes.
        bytes: u64,
    },
}

/// What the gateway says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// It listens.
    Listening,
    /// The call has said its first line, or an eighth of its bytes has come back.
    Attached {
        /// Which.
        call: u64,
    },
    /// So many bytes have come back.
    Progress {
        /// Of which.
        call: u64,
        /// Bytes.
        bytes: u64,
    },
    /// It has ended.
    Ended {
        /// Which.
        call: u64,
        /// When, in milliseconds since 1970.
        at_ms: u64,
        /// Why it failed; `None`: with its command's true result.
        error: Option<String>,
        /// The latest line: from being said to being read. In a transfer the longest pause between two reads.
        latest_ms: u64,
    },
}

/// Bytes of which no eight repeat, so that none can be lost, doubled or moved unseen: `length` of them from `offset`,
/// which is a multiple of eight.
#[must_use]
pub fn distinct(offset: u64, length: usize) -> Bytes {
    let first = offset / 8;
    let words = u64::try_from(length.div_ceil(8)).unwrap_or(u64::MAX);
    let mut bytes: Vec<u8> =
        (first..first + words).flat_map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    bytes.truncate(length);
    bytes.into()
}

/// Whether `got` is what [`distinct`] gives from `offset` on.
#[must_use]
pub fn is_distinct(offset: u64, got: &[u8]) -> bool {
    let skip = usize::try_from(offset % 8).unwrap_or_default();
    distinct(offset - offset % 8, got.len() + skip)[skip..] == *got
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_bytes_are_known_again_from_anywhere() {
        let all = distinct(0, 1 << 16);
        for (from, to) in [(0, 1 << 16), (1, 9), (8, 24), (13, 4099), (65_535, 65_536)] {
            assert!(is_distinct(from as u64, &all[from..to]), "{from} to {to}");
        }
        assert!(!is_distinct(8, &all[..64]));
    }
}
