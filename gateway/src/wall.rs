//! The wall clock, as a seam: what is stored across gateways is dated by it. In the simulation it runs with the
//! paused clock, so that days pass in milliseconds for it too.

use jiff::Timestamp;
use tokio::time::Instant;

/// Where "now" is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wall {
    /// This machine's clock.
    #[default]
    System,
    /// A clock that runs as tokio's does.
    Simulated {
        /// An instant ...
        began: Instant,
        /// ... and what the clock showed then.
        at: Timestamp,
    },
}

impl Wall {
    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Simulated { began, at } => at.checked_add(began.elapsed()).unwrap_or(Timestamp::MAX),
        }
    }
}
