//! What was seen of a fault.

use std::time::Duration;

use serde::Serialize;

/// What a fault did to the product's calls that were attached.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Finding {
    /// Attached callers.
    pub calls: usize,
    /// Those that ended with their command's true result.
    pub true_results: usize,
    /// Those that ended with a named error (callers that had said that they do not attach again).
    pub named_errors: usize,
    /// From the fault to those errors.
    pub told: Spread,
    /// Of each call, its latest byte: from being said to being read. In a transfer, the longest pause between two
    /// reads.
    pub latest_byte: Spread,
    /// How long the fault lasted, in milliseconds.
    pub fault_ms: u64,
    /// Bytes that a caller should have had and did not.
    pub bytes_lost: usize,
    /// Bytes that a caller had beyond those that were said.
    pub bytes_extra: usize,
    /// Sessions that the sandbox has had since.
    pub redials: u64,
    /// How often the last session's address has changed.
    pub migrations: u64,
    /// How often the supervisor took a new socket.
    pub rebinds: u64,
    /// What the check allowed, in milliseconds.
    pub bound_ms: u64,
}

/// What the same fault did to the baseline's calls.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Compared {
    /// Calls.
    pub calls: usize,
    /// Those that ended with their command's true result.
    pub true_results: usize,
    /// Those that ended with an error: the result is lost.
    pub errors: usize,
    /// From the fault to those errors.
    pub told: Spread,
    /// One of the errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Those that had not ended when it was given up.
    pub hung: usize,
    /// When it was given up, in seconds after the fault began.
    pub given_up_s: u64,
    /// Of a transfer that had not ended but had gone on in the last seconds, how much of it was done, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub still_going_percent: Option<u64>,
    /// Of the true results, the latest byte.
    pub latest_byte: Spread,
}

/// Times of several calls, in milliseconds; none, if there were none.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Spread {
    /// The middle one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<u64>,
    /// The longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ms: Option<u64>,
}

impl Spread {
    /// Of these.
    #[must_use]
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let ms = |time: &Duration| milliseconds(*time);
        Self { p50_ms: times.get(times.len().saturating_sub(1) / 2).map(ms), max_ms: times.last().map(ms) }
    }
}

/// Whole milliseconds.
pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_longest_of_some_times() {
        let of = |times: &[u64]| {
            let spread = Spread::of(times.iter().copied().map(Duration::from_millis).collect());
            (spread.p50_ms, spread.max_ms)
        };
        assert_eq!(of(&[]), (None, None));
        assert_eq!(of(&[7]), (Some(7), Some(7)));
        assert_eq!(of(&[9, 1, 5]), (Some(5), Some(9)));
        assert_eq!(of(&[4, 3, 2, 1]), (Some(2), Some(4)));
    }
}
