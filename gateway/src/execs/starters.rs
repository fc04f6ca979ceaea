//! Who starts which exec just now, and how far it came.
//!
//! An exec that nobody starts and that no supervisor has heard of can be ended; one that a supervisor may have heard
//! of cannot. So every starter is counted, and every start that is under way.

use std::sync::Arc;

use holdfast_wire::ids::ExecId;

use super::{Core, state};

impl Core {
    /// Counts one more starter until the guard is dropped. Before the exec is admitted, so that no report finds an
    /// exec that nobody starts.
    pub(super) fn enter_start(self: &Arc<Self>, exec: ExecId) -> Starter {
        self.starting().entry(exec).or_default().starters += 1;
        Starter { core: Arc::clone(self), exec }
    }

    /// Whether a supervisor may have heard of the exec. Without a starter: it may.
    pub(super) fn may_be_delivered(&self, exec: ExecId) -> bool {
        self.start_of(exec) != state::Start::Undelivered
    }

    /// How many start the exec.
    pub(super) fn starters_of(&self, exec: ExecId) -> usize {
        self.starting().get(&exec).map_or(0, |starting| starting.starters)
    }

    /// How far a start of the exec is.
    pub(super) fn start_of(&self, exec: ExecId) -> state::Start {
        match self.starting().get(&exec) {
            None => state::Start::None,
            Some(starting) if starting.delivered || starting.opening > 0 => state::Start::Delivered,
            Some(_) => state::Start::Undelivered,
        }
    }
}

/// One starter, as it is counted.
#[derive(Debug)]
pub(super) struct Starter {
    core: Arc<Core>,
    exec: ExecId,
}

impl Starter {
    /// The exec is admitted; `sent`: somebody before has sent it, and nobody knows how far it came.
    pub(super) fn admitted(&self, sent: bool) {
        if let Some(starting) = self.core.starting().get_mut(&self.exec) {
            starting.delivered |= sent;
        }
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        let mut starting = self.core.starting();
        if let Some(entry) = starting.get_mut(&self.exec) {
            entry.starters -= 1;
            if entry.starters == 0 {
                starting.remove(&self.exec);
            }
        }
    }
}

/// A start that is being sent. Dropped without an answer, it counts as delivered.
pub(super) struct Opening<'a> {
    core: &'a Core,
    exec: ExecId,
    delivered: bool,
}

impl<'a> Opening<'a> {
    pub(super) fn begin(core: &'a Core, exec: ExecId) -> Self {
        if let Some(starting) = core.starting().get_mut(&exec) {
            starting.opening += 1;
        }
        Self { core, exec, delivered: true }
    }

    pub(super) fn resolve(mut self, delivered: bool) {
        self.delivered = delivered;
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if let Some(starting) = self.core.starting().get_mut(&self.exec) {
            starting.opening -= 1;
            starting.delivered |= self.delivered;
        }
    }
}
