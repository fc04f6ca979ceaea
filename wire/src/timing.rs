//! Times, in one place. The gateway tells its supervisors the tunable ones in `Welcome`; the rest is fixed,
//! because both ends and the stated bounds build on it.

use std::time::Duration;

use crate::control::Settings;

/// QUIC keepalive, sent by the supervisor alone: only packets from inside hold a NAT mapping, or make it anew.
/// Below conntrack's 30 s for an unassured UDP flow and gvproxy's 90 s.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// QUIC idle timeout at both ends. The gateway notices a silent path after 20 s, the supervisor (whose clock
/// starts again with each keepalive it sends) after 25 s. Rides out a blackout of 10 s.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Control heartbeat while a relay is open, both ways. quinn has no cap on its probe timer and no public ping.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// The supervisor expects data and hears nothing for so long: it pokes the path with a heartbeat of its own.
pub const POKE_AFTER: Duration = Duration::from_millis(500);

/// ... and for so long: it dials a second connection beside the first. A new socket cures a stale NAT entry; a
/// new connection also cures a sender whose congestion window is full of lost packets.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(3);

/// Nothing heard for so long while calls are attached: they end with SESSION_LOST. The callers' bound.
pub const CALLER_BOUND: Duration = Duration::from_secs(10);

/// A QUIC handshake with one address.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// From the handshake's end to `Hello`, and from `Hello` to `Welcome`.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Opening a stream. `open_bi` waits silently when the peer's stream limit is reached.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// From a relay's header to its `Accepted`.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);

/// From a start's acceptance to the command's start in the supervisor.
pub const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an exec call waits for a session if the caller does not say.
pub const START_DEADLINE: Duration = Duration::from_secs(15);

/// Between SIGTERM and SIGKILL if the caller does not say.
pub const KILL_GRACE: Duration = Duration::from_secs(5);
/// The longest kill_grace that is taken.
pub const KILL_GRACE_MAX: Duration = Duration::from_secs(600);

/// How long output and outcome are kept after an exec's end if the caller does not say.
pub const RETAIN_FOR: Duration = Duration::from_secs(3600);
/// The longest retain_for that is taken.
pub const RETAIN_FOR_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// After the leader's exit the pipes are read until nothing came for so long ...
pub const DRAIN_QUIET: Duration = Duration::from_millis(500);
/// ... and at most so long in all: a grandchild that holds the pipe must not hold the call.
pub const DRAIN_MAX: Duration = Duration::from_secs(2);

/// A blocked exec whose readers have all been gone for so long drops its oldest output instead.
pub const BLOCKED_WITHOUT_READER: Duration = Duration::from_secs(60);

/// Between two probes of a supervisor.
pub const PROBE_EVERY: Duration = Duration::from_secs(10);
/// A probe that takes longer has failed.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Ready ends so long after the last good probe.
pub const PROBE_LEASE: Duration = Duration::from_secs(30);

/// The first redial's delay, doubled at each failure (full jitter).
pub const REDIAL_FIRST: Duration = Duration::from_millis(500);
/// The longest delay between dials without running execs.
pub const REDIAL_CAP_IDLE: Duration = Duration::from_secs(30);
/// The longest delay between dials while execs run: somebody waits.
pub const REDIAL_CAP_BUSY: Duration = Duration::from_secs(5);
/// A session that lived so long counts as healthy: the next redial starts from the first delay again.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// Between the reset of bulk streams and the close of their connection: a close under a full congestion window
/// is never sent (quinn issue 2785).
pub const CLOSE_LINGER: Duration = Duration::from_millis(250);
/// The longest wait for the last packets when an endpoint stops.
pub const WAIT_IDLE: Duration = Duration::from_secs(1);

/// Between two keepalive events on a caller's stream: below the 60 s after which common HTTP proxies cut it.
pub const API_KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The longest that a fault on purpose lasts: long enough for every timer of ours to run out, short enough for a
/// mistake to be over soon.
pub const CHAOS_MAX: Duration = Duration::from_secs(60);

/// A transfer whose relay is gone is kept so long: a gateway's restart and a laptop's change of networks fit in,
/// a caller that is gone for good does not leave its half of a file for ever.
pub const TRANSFER_KEPT: Duration = Duration::from_secs(600);

/// The settings as times, defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// See [`HEARTBEAT`].
    pub heartbeat: Duration,
    /// See [`POKE_AFTER`].
    pub poke_after: Duration,
    /// See [`SUSPECT_AFTER`].
    pub suspect_after: Duration,
    /// See [`PROBE_EVERY`].
    pub probe_every: Duration,
    /// See [`REDIAL_CAP_IDLE`].
    pub redial_cap_idle: Duration,
    /// See [`REDIAL_CAP_BUSY`].
    pub redial_cap_busy: Duration,
    /// See [`crate::limits::MAX_EXECS`].
    pub max_execs: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat: HEARTBEAT,
            poke_after: POKE_AFTER,
            suspect_after: SUSPECT_AFTER,
            probe_every: PROBE_EVERY,
            redial_cap_idle: REDIAL_CAP_IDLE,
            redial_cap_busy: REDIAL_CAP_BUSY,
            max_execs: crate::limits::MAX_EXECS,
        }
    }
}

impl Tuning {
    /// What a gateway sends.
    #[must_use]
    pub fn to_settings(&self) -> Settings {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Settings {
            heartbeat_ms: ms(self.heartbeat),
            poke_after_ms: ms(self.poke_after),
            suspect_after_ms: ms(self.suspect_after),
            probe_every_ms: ms(self.probe_every),
            redial_cap_idle_ms: ms(self.redial_cap_idle),
            redial_cap_busy_ms: ms(self.redial_cap_busy),
            max_execs: u32::try_from(self.max_execs).unwrap_or(u32::MAX),
        }
    }

    /// What a supervisor makes of it. 0 means the default; a value outside of what makes sense is clamped, so
    /// that a mistaken gateway can neither make its supervisors spin nor put them to sleep.
    #[must_use]
    pub fn from_settings(settings: &Settings) -> Self {
        let default = Self::default();
        let pick = |ms: u64, default: Duration, low: Duration, high: Duration| {
            if ms == 0 { default } else { Duration::from_millis(ms).clamp(low, high) }
        };
        let (tenth, minute) = (Duration::from_millis(100), Duration::from_secs(60));
        Self {
            heartbeat: pick(settings.heartbeat_ms, default.heartbeat, tenth, IDLE_TIMEOUT / 2),
            poke_after: pick(settings.poke_after_ms, default.poke_after, tenth, IDLE_TIMEOUT),
            suspect_after: pick(settings.suspect_after_ms, default.suspect_after, tenth, IDLE_TIMEOUT),
            probe_every: pick(settings.probe_every_ms, default.probe_every, tenth, 10 * minute),
            redial_cap_idle: pick(settings.redial_cap_idle_ms, default.redial_cap_idle, tenth, 10 * minute),
            redial_cap_busy: pick(settings.redial_cap_busy_ms, default.redial_cap_busy, tenth, minute),
            max_execs: match settings.max_execs {
                0 => default.max_execs,
                n => (n as usize).min(crate::limits::MAX_EXECS),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_wire() {
        let tuning = Tuning { heartbeat: Duration::from_millis(700), max_execs: 7, ..Tuning::default() };
        assert_eq!(Tuning::from_settings(&tuning.to_settings()), tuning);
    }

    #[test]
    fn zero_is_the_default_and_nonsense_is_clamped() {
        assert_eq!(Tuning::from_settings(&Settings::default()), Tuning::default());
        let mad = Settings {
            heartbeat_ms: 1,
            probe_every_ms: u64::MAX,
            max_execs: u32::MAX,
            ..Settings::default()
        };
        let tuning = Tuning::from_settings(&mad);
        assert_eq!(tuning.heartbeat, Duration::from_millis(100));
        assert_eq!(tuning.probe_every, Duration::from_secs(600));
        assert_eq!(tuning.max_execs, crate::limits::MAX_EXECS);
    }

    #[test]
    fn the_bounds_fit_together() {
        assert!(POKE_AFTER < SUSPECT_AFTER && SUSPECT_AFTER < CALLER_BOUND && CALLER_BOUND < IDLE_TIMEOUT);
        assert!(KEEP_ALIVE < Duration::from_secs(30), "conntrack drops an unassured UDP flow after 30 s");
    }
}
