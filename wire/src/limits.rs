//! Bounds on everything that a peer can make grow. A number carries the reason for its size.

/// A control message or a relay header: the largest that is read or written, in bytes. An [`ExecReport`] of
/// [`MAX_EXECS`] execs at no more than 900 bytes each is the largest real one.
///
/// [`ExecReport`]: crate::control::ExecReport
pub const MAX_MESSAGE: usize = 1 << 20;

/// The payload of one exec frame, in bytes. One read of a full pipe (64 KiB, the kernel's default) fits.
pub const MAX_FRAME_PAYLOAD: usize = 64 * 1024;

/// A relay header that carries an exec's spec. execve's own bound is 2 MiB for arguments and environment
/// (a quarter of the default 8 MiB stack); the slack is for the encoding.
pub const MAX_RELAY_HEADER: usize = (2 << 20) + (256 << 10);

/// Arguments and environment together, in bytes: what Linux takes with the default stack limit.
pub const MAX_ARGS_AND_ENV: usize = 2 << 20;

/// One argument or one `NAME=value`, in bytes: the kernel's MAX_ARG_STRLEN (32 pages), the NUL included.
pub const MAX_ARG: usize = 128 * 1024;

/// Arguments of one exec. Far more than [`MAX_ARGS_AND_ENV`] lets through with real arguments.
pub const MAX_ARG_COUNT: usize = 32 * 1024;

/// Environment variables of one exec.
pub const MAX_ENV_COUNT: usize = 4096;

/// A path, in bytes: the kernel's PATH_MAX, the NUL included.
pub const MAX_PATH: usize = 4096;

/// A user's name as asked for. useradd stops at 32; `uid:gid` is shorter.
pub const MAX_USER: usize = 64;

/// Free text inside an outcome (why a start failed, who cancelled), in bytes: with it a report of [`MAX_EXECS`]
/// execs still fits [`MAX_MESSAGE`]. Whoever makes an outcome cuts its text with [`cut`].
pub const MAX_OUTCOME_TEXT: usize = 256;

/// Execs that one supervisor keeps, ended ones included. The oldest ended ones go first.
pub const MAX_EXECS: usize = 1024;

/// Relays that one session carries at once: the supervisor's limit of incoming bidirectional streams.
pub const MAX_RELAYS: u32 = 1024;

/// Streams that a supervisor may open: the control stream and a spare. Sandboxes are not trusted.
pub const MAX_SUPERVISOR_STREAMS: u32 = 4;

/// One read of kept output, in bytes.
pub const MAX_READ: usize = 512 * 1024;

/// Stdin that is on its way to the command and not yet acknowledged, in bytes: what a caller keeps for a repeat.
/// 4 MiB is 40 MB/s at 100 ms of round trip.
pub const STDIN_WINDOW: u64 = 4 << 20;

/// Output that a caller receives before it acknowledges, in bytes: well below the smallest spool.
pub const ACK_EVERY: u64 = 256 * 1024;

/// What a transfer's sender keeps until it is acknowledged, in bytes, and what its receiver takes ahead of its disk:
/// 8 MiB is 80 MB/s at 100 ms of round trip.
pub const TRANSFER_WINDOW: u64 = 8 << 20;

/// One chunk of a transfer's stream in a caller's message, in bytes.
pub const MAX_TRANSFER_CHUNK: usize = 256 << 10;

/// Transfers that one supervisor keeps, ended and interrupted ones included. Each has a thread, two windows at the
/// most and some 130 descriptors.
pub const MAX_TRANSFERS: usize = 32;

/// Directories inside each other in a transfer: each is a descriptor while it is walked.
pub const MAX_TREE_DEPTH: usize = 256;

/// Problems that one transfer tells of. The rest is counted.
pub const MAX_TRANSFER_PROBLEMS: usize = 1000;

/// Entries of one page of a directory.
pub const MAX_LIST: usize = 1000;

/// `text` in at most `most` bytes; what was cut off leaves an ellipsis.
#[must_use]
pub fn cut(mut text: String, most: usize) -> String {
    const MARK: char = '…';
    if text.len() > most {
        let mut end = most.saturating_sub(MARK.len_utf8());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        if most >= MARK.len_utf8() {
            text.push(MARK);
        }
    }
    text
}
