//! Which handshakes are taken on. Pure.

/// What is done with a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Goes on.
    Accept,
    /// Has to prove its address first.
    Retry,
    /// Gets no answer.
    Ignore,
}

/// With `running` handshakes under way, where `limit` are taken on without more ado.
pub(super) fn admission(running: usize, limit: usize, validated: bool) -> Admission {
    if running < limit {
        Admission::Accept
    } else if running >= 2 * limit {
        Admission::Ignore
    } else if validated {
        Admission::Accept
    } else {
        Admission::Retry
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn under_load_an_address_must_be_proven() {
        assert_eq!(admission(63, 64, false), Admission::Accept);
        assert_eq!(admission(64, 64, false), Admission::Retry);
        assert_eq!(admission(64, 64, true), Admission::Accept);
        assert_eq!(admission(128, 64, true), Admission::Ignore);
    }

    proptest! {
        /// However many come, and in whatever order they finish: never more than twice the limit run.
        #[test]
        fn twice_the_limit_is_the_most(limit in 1usize..50, events in prop::collection::vec((any::<bool>(), any::<bool>()), 0..500)) {
            let mut running = 0usize;
            for (comes, validated) in events {
                if !comes {
                    running = running.saturating_sub(1);
                } else if admission(running, limit, validated) == Admission::Accept {
                    running += 1;
                }
                prop_assert!(running <= 2 * limit);
            }
        }
    }
}
