//! The signals that this process gets, as a stream. From here on none of them ends it by itself: whoever holds
//! this decides, and leaves in order.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    resized: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caught {
    Interrupt,
    Quit,
    Terminate,
    Hangup,
    /// The terminal has another size.
    Resized,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            resized: signal(SignalKind::window_change())?,
        })
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.interrupt.recv() => Caught::Interrupt,
            _ = self.terminate.recv() => Caught::Terminate,
            _ = self.hangup.recv() => Caught::Hangup,
            _ = self.quit.recv() => Caught::Quit,
            _ = self.resized.recv() => Caught::Resized,
        }
    }

    /// The next one that asks this program to go.
    pub(crate) async fn leave(&mut self) -> Caught {
        loop {
            match self.next().await {
                Caught::Resized => {}
                other => return other,
            }
        }
    }
}

impl Caught {
    /// What this program exits with when it goes because of it.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => crate::exit::INTERRUPTED,
            Self::Quit => 131,
            Self::Hangup => crate::exit::HUNG_UP,
            Self::Terminate | Self::Resized => crate::exit::TERMINATED,
        }
    }
}
