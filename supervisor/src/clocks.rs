//! Did this machine stand still? Clocks that a suspension stops against clocks that it does not.
//!
//! A suspended VM or a frozen process wakes up believing that no time has passed: its QUIC timers run on
//! CLOCK_MONOTONIC, and its connection looks healthy until something times out. So once a second the clocks are
//! compared, and a jump is told to the link, which then proves its path or dials.
//!
//! | what happened | what shows it |
//! | --- | --- |
//! | the machine was suspended (S3, hypervisor pause with catch-up) | BOOTTIME ran on, MONOTONIC stood still |
//! | a snapshot was restored and the wall clock set right | REALTIME ran on, MONOTONIC stood still |
//! | the process or its cgroup was frozen | the ticker fires late |
//!
//! A wall clock that an operator sets forwards looks like the second; then the path is proven once for nothing.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Between two looks at the clocks.
const EVERY: Duration = Duration::from_secs(1);

/// A jump must be longer: a busy machine delays a ticker by tenths of a second, rarely by whole ones.
const LEAST: Duration = Duration::from_secs(2);

/// What the clocks show, each from its own zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Stands still during a suspension.
    pub monotonic: Duration,
    /// Runs on during a suspension.
    pub boottime: Duration,
    /// The wall clock.
    pub realtime: Duration,
}

/// Clocks to look at; a simulation brings its own, or none.
pub trait Clocks: Send + Sync + std::fmt::Debug + 'static {
    /// All three, at one instant.
    fn read(&self) -> Reading;
}

/// The kernel's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClocks;

impl Clocks for SystemClocks {
    fn read(&self) -> Reading {
        let get = |clock| {
            let time = clock_gettime(clock);
            // Neither part is negative for a time after 1970.
            Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
        };
        Reading {
            monotonic: get(ClockId::Monotonic),
            boottime: get(ClockId::Boottime),
            realtime: get(ClockId::Realtime),
        }
    }
}

/// Looks at the clocks once a second until `token` is cancelled, and sends how long each jump was.
pub(crate) async fn watch(clocks: &dyn Clocks, jumps: mpsc::Sender<Duration>, token: CancellationToken) {
    let mut ticker = tokio::time::interval(EVERY);
    // A late tick is the finding itself; the ones that were missed are not made up for.
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = clocks.read();
    loop {
        tokio::select! {
            _ = ticker.tick() => {}
            () = token.cancelled() => return,
        }
        let now = clocks.read();
        let jump = jump_between(last, now);
        last = now;
        if let Some(away) = jump
            && jumps.send(away).await.is_err()
        {
            return;
        }
    }
}

/// How long the machine stood still between two looks that were meant to be [`EVERY`] apart.
fn jump_between(last: Reading, now: Reading) -> Option<Duration> {
    let passed = now.monotonic.saturating_sub(last.monotonic);
    let late = passed.saturating_sub(EVERY);
    let asleep = now.boottime.saturating_sub(last.boottime).saturating_sub(passed);
    let stepped = now.realtime.saturating_sub(last.realtime).saturating_sub(passed);
    // A suspension shows in BOOTTIME and in REALTIME, and the freeze before it in the lateness.
    let jump = late + asleep.max(stepped);
    (jump > LEAST).then_some(jump)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::VecDeque, sync::Mutex};

    fn at(monotonic: u64, boottime: u64, realtime: u64) -> Reading {
        Reading {
            monotonic: Duration::from_millis(monotonic),
            boottime: Duration::from_millis(boottime),
            realtime: Duration::from_millis(realtime),
        }
    }

    #[test]
    fn each_kind_of_standstill_is_seen() {
        let start = at(10_000, 10_000, 1_000_000);
        for (now, away) in [
            (at(11_000, 11_000, 1_001_000), None),
            (at(12_900, 12_900, 1_002_900), None),
            (at(11_000, 41_000, 1_031_000), Some(30_000)),
            (at(11_000, 11_000, 1_031_000), Some(30_000)),
            (at(41_000, 41_000, 1_031_000), Some(30_000)),
            // The wall clock set back an hour is no standstill.
            (at(11_000, 11_000, 0), None),
        ] {
            assert_eq!(jump_between(start, now), away.map(Duration::from_millis), "{now:?}");
        }
    }

    proptest! {
        #[test]
        fn clocks_that_agree_never_jump(start: u32, passed in 0u64..2_900, skew in -50i64..50) {
            let start = u64::from(start) + 100;
            let last = at(start, start + 7, start + 1_000_000);
            let wall = (start + 1_000_000 + passed).saturating_add_signed(skew);
            prop_assert_eq!(jump_between(last, at(start + passed, start + 7 + passed, wall)), None);
        }

        #[test]
        fn a_suspension_is_seen_with_its_length(start: u32, away in 2_001u64..10_000_000) {
            let start = u64::from(start);
            let jump = jump_between(at(start, start, start), at(start + 1000, start + 1000 + away, start + 1000 + away));
            prop_assert_eq!(jump, Some(Duration::from_millis(away)));
        }
    }

    /// Readings given in advance; the last one repeats.
    #[derive(Debug)]
    struct FakeClocks(Mutex<VecDeque<Reading>>);

    impl Clocks for FakeClocks {
        fn read(&self) -> Reading {
            let mut readings = self.0.lock().unwrap();
            if readings.len() > 1 { readings.pop_front().unwrap() } else { readings[0] }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_is_told_once() {
        let readings = [at(0, 0, 0), at(0, 0, 0), at(1000, 61_000, 61_000), at(2000, 62_000, 62_000)];
        let clocks = FakeClocks(Mutex::new(readings.into()));
        let (send, mut jumps) = mpsc::channel(4);
        let token = CancellationToken::new();
        let looking = watch(&clocks, send, token.clone());
        let listening = async {
            let jump = jumps.recv().await;
            // The last reading repeats: time seems to stand still, which is no jump.
            tokio::time::sleep(Duration::from_secs(5)).await;
            token.cancel();
            (jump, jumps.try_recv().ok())
        };
        let ((), heard) = tokio::join!(looking, listening);
        assert_eq!(heard, (Some(Duration::from_secs(60)), None));
    }
}
