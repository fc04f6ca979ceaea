//! Stdin's way to an exec: a thread of its own, because a read of a terminal or a pipe can block for ever and
//! nothing may wait for it. The process ends without joining it.
//!
//! The thread reads only when the session has room: what it has read is on its way, and what it has not read
//! stays for whoever reads stdin after this program.

use std::io;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::runtime::Handle;

use crate::{
    client::Input,
    terminal::detach::{DetachKeys, Matcher},
};

/// One read, in bytes: a full pipe, by the kernel's default.
const READ: usize = 64 * 1024;

/// Starts the thread. With `keys`, what is typed is searched for them.
pub(crate) fn forward(input: Input, keys: Option<DetachKeys>) -> io::Result<()> {
    let runtime = Handle::current();
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || pump(&runtime, &input, keys)).map(drop)
}

fn pump(runtime: &Handle, input: &Input, keys: Option<DetachKeys>) {
    let mut matcher = keys.map(Matcher::new);
    let mut buffer = vec![0; READ];
    loop {
        if !runtime.block_on(input.stdin_ready()) {
            return;
        }
        let typed = match rustix::io::read(rustix::stdio::stdin(), &mut buffer[..]) {
            Ok(length @ 1..) => &buffer[..length],
            Err(rustix::io::Errno::INTR) => continue,
            // Another program left the shared descriptor non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                let stdin = rustix::stdio::stdin();
                let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
                if matches!(poll(&mut fds, None), Ok(_) | Err(rustix::io::Errno::INTR)) {
                    continue;
                }
                runtime.block_on(input.stdin_eof());
                return;
            }
            // The end; or a terminal that is gone (EIO), which has nothing more to say either.
            end => {
                tracing::debug!(?end, "stdin ends");
                runtime.block_on(input.stdin_eof());
                return;
            }
        };
        let Some(matcher) = &mut matcher else {
            if !runtime.block_on(input.stdin(Bytes::copy_from_slice(typed))) {
                return;
            }
            continue;
        };
        let mut passed = Vec::with_capacity(typed.len());
        let leave = matcher.feed(typed, &mut passed);
        if !passed.is_empty() && !runtime.block_on(input.stdin(passed.into())) {
            return;
        }
        if leave {
            runtime.block_on(input.detach());
            return;
        }
    }
}
