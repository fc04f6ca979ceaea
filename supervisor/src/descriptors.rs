//! How many files the supervisor may have open: as many as it is allowed, however few it was started with.
//!
//! Many systems start everything with a soft limit of 1024, for programs that use `select`; a thousand execs and some
//! transfers need more. Commands get the limit that the supervisor was started with: what they use is their own affair.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than [`MAX_EXECS`](holdfast_wire::limits::MAX_EXECS) execs and 32 transfers can hold; some systems allow a
/// billion, of which the kernel makes a table.
const ENOUGH: u64 = 65_536;

static INHERITED: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit. To be called once, before anything is opened.
pub(crate) fn raise() {
    let inherited = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: raised(inherited), maximum: inherited.maximum };
    if raised.current == inherited.current {
        return;
    }
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => {
            let _ = INHERITED.set(inherited);
            tracing::debug!(from = ?inherited.current, to = ?raised.current, "the limit of open files is raised");
        }
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}

/// `None` is no limit.
fn raised(limit: Rlimit) -> Option<u64> {
    let most = limit.maximum.map_or(ENOUGH, |maximum| maximum.min(ENOUGH));
    limit.current.map(|current| current.max(most))
}

/// What a command is to be given back; `None`: it was not changed.
pub(crate) fn inherited() -> Option<Rlimit> {
    INHERITED.get().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_within_what_is_allowed_and_never_lowered() {
        let of = |current, maximum| raised(Rlimit { current, maximum });
        assert_eq!(of(Some(1024), Some(4096)), Some(4096));
        assert_eq!(of(Some(1024), Some(1 << 30)), Some(ENOUGH));
        assert_eq!(of(Some(1024), None), Some(ENOUGH));
        assert_eq!(of(Some(1 << 20), Some(1 << 20)), Some(1 << 20));
        assert_eq!(of(None, None), None);
    }
}
