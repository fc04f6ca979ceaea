//! Findings and what to make of them: numbers in, a level and a word of advice out. Nothing here looks at anything.

use std::time::{Duration, SystemTime};

use holdfast_certs::CertificateFacts;
use holdfast_wire::{api, timing};
use serde::Serialize;

use crate::{output::Row, show};

/// Clocks that differ by more make logs hard to read side by side ...
const CLOCK_WARN: Duration = Duration::from_secs(5);
/// ... and by more than this make certificates look as if they were not valid yet.
const CLOCK_FAIL: Duration = Duration::from_secs(300);

/// Loss beyond this slows transfers down; below, it is usual. Not judged on fewer packets than this.
const LOSS_WARN: f64 = 0.02;
const LOSS_PACKETS: u64 = 500;

/// QUIC's least: a path that was measured carries more.
const LEAST_MTU: u32 = 1200;

/// A session this young has not measured its path's MTU, and its numbers mean little.
const YOUNG: Duration = Duration::from_secs(10);

/// Changes of address in an hour that are more than a NAT's occasional new mapping.
const MOVES_AN_HOUR: f64 = 6.0;

/// Dials of one process that are more than a restart or two of its gateway.
const MANY_DIALS: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    Warn,
    Fail,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was looked at.
    pub(super) check: String,
    pub(super) found: String,
    /// What to do; empty where there is nothing to do.
    pub(super) advice: String,
}

impl Finding {
    pub(super) fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, check: check.into(), found: found.into(), advice: String::new() }
    }

    pub(super) fn warn(
        check: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warn, advice: advice.into(), ..Self::ok(check, found) }
    }

    pub(super) fn fail(
        check: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { level: Level::Fail, advice: advice.into(), ..Self::ok(check, found) }
    }
}

impl Row for Finding {
    fn header(_: bool) -> Vec<&'static str> {
        vec!["", "check", "found", "what to do"]
    }

    fn cells(&self, _: bool) -> Vec<String> {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        vec![level.to_owned(), self.check.clone(), self.found.clone(), self.advice.clone()]
    }

    fn name(&self) -> String {
        self.check.clone()
    }
}

/// A certificate's time: it should not be in the last sixth of its life.
pub(super) fn certificate(check: &str, facts: &CertificateFacts, now: SystemTime, renew: &str) -> Finding {
    let days = |time: Duration| match time.as_secs() {
        hours @ 0..172_800 => format!("{} h", hours / 3600),
        more => format!("{} days", more / 86_400),
    };
    if now < facts.not_before {
        let wait = facts.not_before.duration_since(now).unwrap_or_default();
        let advice = "set this machine's clock, or the one where it was issued";
        return Finding::fail(check, format!("{}: valid only in {}", facts.spiffe_id, days(wait)), advice);
    }
    if facts.expired_at(now) {
        let past = now.duration_since(facts.not_after).unwrap_or_default();
        return Finding::fail(check, format!("{}: ran out {} ago", facts.spiffe_id, days(past)), renew);
    }
    let left = facts.remaining_at(now);
    let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
    let found = format!("{}: {} left", facts.spiffe_id, days(left));
    if left < life / 6 { Finding::warn(check, found, renew) } else { Finding::ok(check, found) }
}

/// `ahead`: how far the gateway's clock is ahead, in seconds; known no better than half of the answer's time.
pub(super) fn clock(ahead: f64, took: Duration) -> Finding {
    let found = format!("{:+.3} s from here, to within {} ms", ahead, took.as_millis() / 2 + 1);
    let sure = ahead.abs() - took.as_secs_f64() / 2.0;
    let advice = "set both clocks by NTP";
    if sure > CLOCK_FAIL.as_secs_f64() {
        Finding::fail("gateway's clock", found, advice)
    } else if sure > CLOCK_WARN.as_secs_f64() {
        Finding::warn("gateway's clock", found, advice)
    } else {
        Finding::ok("gateway's clock", found)
    }
}

/// Two builds that talk to each other.
pub(super) fn version(check: &str, version: &str, other: &str, own: &str) -> Finding {
    if version == own {
        return Finding::ok(check, version);
    }
    let found = format!("{version}, and the {other} is {own}");
    Finding::warn(check, found, "versions may differ; upgrade the older when convenient")
}

/// A session, in as many lines as there are subjects.
pub(super) fn session(name: &str, session: &api::Session, gateway: &str, now: SystemTime) -> Vec<Finding> {
    let since = session.attached_at.and_then(|at| SystemTime::try_from(at).ok());
    let age = since.and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
    vec![
        path(name, session, age),
        heard(name, session),
        stability(name, session, age),
        version(&format!("{name}: supervisor"), &session.supervisor_version, "gateway", gateway),
    ]
}

/// The same in one line: the worst of them, with all that was found.
pub(super) fn in_one_line(name: &str, findings: Vec<Finding>) -> Finding {
    let level = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    let join =
        |parts: Vec<String>| parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    Finding {
        level,
        check: format!("{name}: session"),
        advice: join(findings.iter().map(|finding| finding.advice.clone()).collect()),
        found: join(findings.into_iter().map(|finding| finding.found).collect()),
    }
}

fn path(name: &str, session: &api::Session, age: Duration) -> Finding {
    let check = format!("{name}: path");
    let loss = session.lost_packets as f64 / (session.sent_packets.max(1)) as f64;
    let rtt = session.rtt.and_then(|rtt| Duration::try_from(rtt).ok()).unwrap_or_default();
    let found = format!(
        "{} from the gateway, rtt {:.1} ms, lost {} of {} packets, MTU {}",
        session.remote_address,
        rtt.as_secs_f64() * 1000.0,
        session.lost_packets,
        session.sent_packets,
        session.mtu
    );
    if loss > LOSS_WARN && session.sent_packets >= LOSS_PACKETS {
        let advice = format!("{:.1} % loss: look for a full link or a rate limit on UDP", loss * 100.0);
        return Finding::warn(check, found, advice);
    }
    if session.mtu <= LEAST_MTU && age > YOUNG {
        let advice =
            "only QUIC's least MTU gets through: look for a tunnel, or a filter of large UDP packets";
        return Finding::warn(check, found, advice);
    }
    Finding::ok(check, found)
}

/// What keeps NAT mappings, against those that forget soonest, and against what the sessions have seen: a NAT that
/// forgets sooner than the keepalive comes shows itself by new addresses.
pub(super) fn keepalive<'a>(sessions: impl Iterator<Item = &'a api::Session>, now: SystemTime) -> Finding {
    let (mut count, mut hours, mut moves) = (0, 0.0, 0);
    for session in sessions {
        let since = session.attached_at.and_then(|at| SystemTime::try_from(at).ok());
        let age = since.and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
        count += 1;
        hours += age.as_secs_f64() / 3600.0;
        moves += session.migrations;
    }
    let every = timing::KEEP_ALIVE.as_secs();
    let seen = match count {
        0 => "no session is there to tell of the path".to_owned(),
        1 => format!("{moves} changes of address in {hours:.1} hours of one session"),
        _ => format!("{moves} changes of address in {hours:.1} hours of {count} sessions"),
    };
    let found = format!(
        "one every {every} s, where conntrack forgets new UDP flows after 30 s and gvproxy after 90 s; {seen}"
    );
    // A single move of young sessions is no rate.
    if moves as f64 / hours.max(0.5) > MOVES_AN_HOUR {
        let advice = format!(
            "a NAT on the way may forget within {every} s, or have several ways out: compare the sessions' addresses"
        );
        return Finding::warn("keepalive", found, advice);
    }
    Finding::ok("keepalive", found)
}

fn heard(name: &str, session: &api::Session) -> Finding {
    let check = format!("{name}: heard");
    let ago = session.last_heard.and_then(|heard| Duration::try_from(heard).ok()).unwrap_or_default();
    let found = format!("heard {:.1} s ago", ago.as_secs_f64());
    if ago > 2 * timing::KEEP_ALIVE {
        let advice = format!(
            "silent for more than two keepalives: the session ends at {} s; see `holdfast events {name}`",
            timing::IDLE_TIMEOUT.as_secs()
        );
        return Finding::warn(check, found, advice);
    }
    Finding::ok(check, found)
}

fn stability(name: &str, session: &api::Session, age: Duration) -> Finding {
    let check = format!("{name}: stability");
    let away = session.last_away.and_then(|away| Duration::try_from(away).ok()).unwrap_or_default();
    let found = format!(
        "up {} s, address changes {}, new sockets {}, dials {}, the last for {:?} after {:.1} s away; last change of the \
         path: {}",
        age.as_secs(),
        session.migrations,
        session.rebinds,
        session.dials,
        session.last_dial_reason,
        away.as_secs_f64(),
        if session.last_path_change.is_empty() { "not told" } else { &session.last_path_change },
    );
    // A single move of a young session is no rate.
    let hours = (age.as_secs_f64() / 3600.0).max(0.5);
    if session.migrations as f64 / hours > MOVES_AN_HOUR {
        let advice = "its address changes often: look for a NAT with a short timeout or several uplinks";
        return Finding::warn(check, found, advice);
    }
    if session.dials > MANY_DIALS {
        let advice = format!("it has been lost often: see `holdfast events {name}`");
        return Finding::warn(check, found, advice);
    }
    Finding::ok(check, found)
}

/// A sandbox's phase.
pub(super) fn phase(name: &str, sandbox: &api::Sandbox) -> Finding {
    let status = sandbox.status.clone().unwrap_or_default();
    let check = format!("{name}: phase");
    let mut found = show::phase(status.phase);
    for part in [&status.reason, &status.message].into_iter().filter(|part| !part.is_empty()) {
        found.push_str(": ");
        found.push_str(part);
    }
    match status.phase() {
        api::Phase::Ready => Finding::ok(check, found),
        api::Phase::Degraded | api::Phase::Failed => {
            Finding::fail(check, found, format!("see `holdfast events {name}` and `holdfast logs {name}`"))
        }
        _ => Finding::warn(check, found, format!("not ready now: `holdfast wait {name}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn facts(from: SystemTime, life: Duration) -> CertificateFacts {
        let der = rustls::pki_types::CertificateDer::from(vec![0]);
        CertificateFacts {
            spiffe_id: "spiffe://holdfast.internal/client/admin".parse().unwrap(),
            not_before: from,
            not_after: from + life,
            serial: "1".to_owned(),
            fingerprint: holdfast_certs::Fingerprint::of(&der),
        }
    }

    fn healthy() -> api::Session {
        api::Session {
            remote_address: "192.0.2.7:4711".to_owned(),
            supervisor_version: "0.1.0".to_owned(),
            mtu: 1452,
            sent_packets: 10_000,
            lost_packets: 3,
            dials: 1,
            last_dial_reason: "start".to_owned(),
            last_heard: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
            attached_at: Some(SystemTime::UNIX_EPOCH.into()),
            ..api::Session::default()
        }
    }

    fn levels(of: &api::Session) -> Vec<Level> {
        let now = SystemTime::UNIX_EPOCH + DAY;
        session("box", of, "0.1.0", now).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn a_nat_that_forgets_too_soon_shows_itself_by_moves() {
        // Their attaching was an hour ago.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(3600);
        let quiet = healthy();
        assert_eq!(keepalive([].into_iter(), now).level, Level::Ok);
        assert_eq!(keepalive([&quiet].into_iter(), now).level, Level::Ok);
        let restless = api::Session { migrations: 1000, ..healthy() };
        let found = keepalive([&quiet, &restless].into_iter(), now);
        assert_eq!(found.level, Level::Warn);
        assert!(found.found.contains("2 sessions"), "{}", found.found);
    }

    #[test]
    fn a_certificate_fails_outside_of_its_life_and_warns_near_its_end() {
        let from = SystemTime::UNIX_EPOCH + 100 * DAY;
        let facts = facts(from, 60 * DAY);
        let level = |now| certificate("c", &facts, now, "renew").level;
        assert_eq!(level(from - DAY), Level::Fail);
        assert_eq!(level(from + DAY), Level::Ok);
        assert_eq!(level(from + 51 * DAY), Level::Warn);
        assert_eq!(level(from + 61 * DAY), Level::Fail);
        assert!(certificate("c", &facts, from + DAY, "").found.contains("59 days left"));
    }

    #[test]
    fn a_slow_answer_is_no_wrong_clock() {
        assert_eq!(clock(0.2, Duration::from_millis(3)).level, Level::Ok);
        assert_eq!(clock(-7.0, Duration::from_secs(10)).level, Level::Ok);
        assert_eq!(clock(-7.0, Duration::from_millis(3)).level, Level::Warn);
        assert_eq!(clock(400.0, Duration::from_millis(3)).level, Level::Fail);
    }

    #[test]
    fn each_subject_of_a_session_is_judged_by_itself() {
        let warned = |change: fn(&mut api::Session)| {
            let mut session = healthy();
            change(&mut session);
            levels(&session).iter().position(|level| *level == Level::Warn)
        };
        assert_eq!(levels(&healthy()), [Level::Ok; 4]);
        assert_eq!(warned(|s| s.lost_packets = 500), Some(0));
        assert_eq!(warned(|s| s.mtu = 1200), Some(0));
        assert_eq!(warned(|s| s.last_heard = Some(prost_types::Duration { seconds: 15, nanos: 0 })), Some(1));
        assert_eq!(warned(|s| s.migrations = 1000), Some(2));
        assert_eq!(warned(|s| s.dials = 11), Some(2));
        assert_eq!(warned(|s| s.supervisor_version = "0.0.9".to_owned()), Some(3));
    }

    #[test]
    fn one_line_is_as_bad_as_the_worst() {
        let line = in_one_line(
            "box",
            vec![
                Finding::ok("a", "fine"),
                Finding::fail("b", "broken", "mend"),
                Finding::warn("c", "odd", "look"),
            ],
        );
        assert_eq!(
            (line.level, line.found.as_str(), line.advice.as_str()),
            (Level::Fail, "fine; broken; odd", "mend; look")
        );
    }
}
