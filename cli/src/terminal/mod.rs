//! The user's terminal: raw while a program in the sandbox has it, and put back on every way out.
//!
//! [`Raw`] is a guard: dropping it restores the terminal, on return, error and unwinding alike. Signals that would
//! end the process are handled by the command's loop, which returns and so drops it; the panic hook restores
//! before the message is printed, so that it can be read.

pub(crate) mod detach;
pub(crate) mod modes;

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{Mutex, Once, PoisonError},
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The settings to go back to, while the terminal is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is raw as long as this lives.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    /// Makes stdin's terminal raw.
    ///
    /// # Errors
    /// Stdin is no terminal, or it is raw already by another guard.
    pub(crate) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        let stdin = io::stdin();
        let usual = tcgetattr(&stdin)?;
        let mut raw = usual.clone();
        raw.make_raw();
        {
            let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
            if saved.is_some() {
                return Err(io::Error::other("the terminal is raw already"));
            }
            *saved = Some(usual);
        }
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                before(info);
            }));
        });
        let guard = Self(());
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(guard)
    }
}

/// A guard lives: lines need a carriage return of their own.
#[must_use]
pub(crate) fn is_raw() -> bool {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(usual) = saved {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &usual);
    }
}

/// Writes the escape sequences that undo what a program left behind.
pub(crate) fn undo(modes: &modes::Modes) {
    let sequences = modes.undo();
    if !sequences.is_empty() && io::stdout().is_terminal() {
        let mut out = io::stdout().lock();
        // As above.
        let _ = out.write_all(&sequences).and_then(|()| out.flush());
    }
}

/// Columns and rows of the terminal on stdout, or else stdin's.
#[must_use]
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
