//! A pseudo-terminal: the master as a pair of async halves, the slave for the child.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustix::{
    fs::OFlags,
    pty::OpenptFlags,
    termios::{InputModes, OptionalActions, Winsize},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// This side of the terminal. Clones share it; when the last is gone, the terminal hangs up.
#[derive(Clone, Debug)]
pub(super) struct Master(Arc<AsyncFd<OwnedFd>>);

/// Opens a terminal of that size. The slave is opened through the master, so no `/dev/pts` need be in sight.
pub(super) fn open(
    cols: u16,
    rows: u16,
    owner: Option<rustix::process::Uid>,
) -> io::Result<(Master, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::termios::tcsetwinsize(&master, winsize(cols, rows))?;
    // The kernel's line editing then deletes whole characters.
    let mut modes = rustix::termios::tcgetattr(&slave)?;
    modes.input_modes.insert(InputModes::IUTF8);
    rustix::termios::tcsetattr(&slave, OptionalActions::Now, &modes)?;
    if owner.is_some() {
        // So that the command can open /dev/tty and its own terminal by name.
        rustix::fs::fchown(&slave, owner, None)?;
    }
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    Ok((Master(Arc::new(watched(master, Interest::READABLE | Interest::WRITABLE)?)), slave))
}

/// Puts a descriptor under the runtime's watch.
// The newer constructor is unsafe because it takes anything with a raw descriptor; an OwnedFd is one that nobody
// else closes, which is all that it asks for.
#[expect(deprecated, reason = "safe for an OwnedFd, and this crate keeps unsafe code in one file")]
pub(super) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

impl Master {
    /// Tells the terminal's size; the kernel tells the foreground group (SIGWINCH).
    pub(super) fn resize(&self, cols: u16, rows: u16) -> io::Result<()> {
        Ok(rustix::termios::tcsetwinsize(self.0.as_fd(), winsize(cols, rows))?)
    }
}

fn winsize(cols: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

impl AsyncRead for Master {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            match guard.try_io(|fd| rustix::io::read(fd.as_fd(), unfilled).map_err(Into::into)) {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // How Linux says that nobody has the slave open any more: the end.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Master {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| rustix::io::write(fd.as_fd(), data).map_err(Into::into)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
