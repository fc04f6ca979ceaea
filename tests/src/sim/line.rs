//! One direction of a simulated path: what becomes of a packet. Pure: a packet's length and an instant in, its
//! copies out, each with the instant at which it arrives.
//!
//! ```text
//!   packet ─▶ blackhole? ─▶ fits the MTU? ─▶ lost? ─▶ queue (rate) ─▶ delay, jitter, overtaken? ─▶ twice? ─▶ damaged?
//! ```
//!
//! Each line has random numbers of its own, drawn from the seed and the line's name, and draws the same number of
//! them for each packet: what happens to one line's nth packet depends on nothing that happens elsewhere.

use std::{fmt, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

/// What is wrong with a line. The default is a perfect one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Impairments {
    /// From one end to the other.
    pub delay: Duration,
    /// At most so much more, evenly distributed. Packets stay in order.
    pub jitter: Duration,
    /// The share of packets that vanish, 0 to 1.
    pub loss: f64,
    /// The share that arrives twice.
    pub duplicate: f64,
    /// The share that arrives with one byte changed.
    pub corrupt: f64,
    /// The share that is overtaken by what was sent within [`Self::reorder_by`] after it.
    pub reorder: f64,
    /// See [`Self::reorder`].
    pub reorder_by: Duration,
    /// Bytes a second; `None`: as fast as it comes.
    pub rate: Option<u64>,
    /// Bytes that wait for the rate; what finds no room vanishes.
    pub queue: usize,
    /// The largest UDP payload that gets through: 1472 is Ethernet's.
    pub mtu: usize,
}

impl Default for Impairments {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            reorder: 0.0,
            reorder_by: Duration::ZERO,
            rate: None,
            queue: 256 * 1024,
            mtu: 1472,
        }
    }
}

impl Impairments {
    /// A path as in a good network: 5 ms each way and nothing else.
    #[must_use]
    pub fn good() -> Self {
        Self { delay: Duration::from_millis(5), ..Self::default() }
    }
}

/// What a line did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that were given to it.
    pub sent: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Swallowed by a blackhole.
    pub swallowed: u64,
    /// Too long for the MTU.
    pub too_long: u64,
    /// Without room in the queue.
    pub overflowed: u64,
    /// Sent on twice.
    pub duplicated: u64,
    /// Damaged.
    pub corrupted: u64,
    /// Overtaken by later ones.
    pub reordered: u64,
}

/// One copy of a packet that comes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// When.
    pub at: Instant,
    /// Which byte is changed, and by which mask (never 0).
    pub damage: Option<(usize, u8)>,
}

/// One direction of a path.
pub struct Line {
    name: String,
    impairments: Impairments,
    blackhole: bool,
    random: StdRng,
    counts: Counts,
    /// When the rate is free again.
    free_at: Option<Instant>,
    /// No packet that stays in order arrives before this.
    floor: Option<Instant>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("name", &self.name)
            .field("impairments", &self.impairments)
            .field("blackhole", &self.blackhole)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl Line {
    /// A line whose chances are drawn from `seed` and `name`.
    #[must_use]
    pub fn new(seed: u64, name: impl Into<String>) -> Self {
        let name = name.into();
        let random = random(seed, &name);
        Self {
            name,
            impairments: Impairments::default(),
            blackhole: false,
            random,
            counts: Counts::default(),
            free_at: None,
            floor: None,
        }
    }

    /// From now on.
    pub fn impair(&mut self, impairments: Impairments) {
        self.impairments = impairments;
    }

    /// Everything vanishes from now on, or no more.
    pub fn blackhole(&mut self, on: bool) {
        self.blackhole = on;
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The copies of a packet of `length` bytes that come through: none, one or two.
    pub fn send(&mut self, length: usize, now: Instant) -> Vec<Copy> {
        // All chances are drawn before any of them is looked at: see the story above.
        let [lost, twice, overtaken, jitter] = self.random.random::<[f64; 4]>();
        let damages = [self.draw_damage(length), self.draw_damage(length)];
        let i = self.impairments;
        self.counts.sent += 1;
        if self.blackhole {
            self.counts.swallowed += 1;
            return Vec::new();
        }
        if length > i.mtu {
            self.counts.too_long += 1;
            return Vec::new();
        }
        if lost < i.loss {
            self.counts.lost += 1;
            return Vec::new();
        }
        let Some(sent) = self.queue(length, now) else {
            self.counts.overflowed += 1;
            return Vec::new();
        };
        let mut at = sent + i.delay + i.jitter.mul_f64(jitter);
        if overtaken < i.reorder {
            self.counts.reordered += 1;
            at += i.reorder_by;
        } else {
            at = at.max(self.floor.unwrap_or(at));
            self.floor = Some(at);
        }
        let copies = if twice < i.duplicate {
            self.counts.duplicated += 1;
            2
        } else {
            1
        };
        let mut out = Vec::with_capacity(copies);
        for damage in damages.into_iter().take(copies) {
            self.counts.corrupted += u64::from(damage.is_some());
            out.push(Copy { at, damage });
        }
        out
    }

    fn draw_damage(&mut self, length: usize) -> Option<(usize, u8)> {
        let [chance, place, mask] = self.random.random::<[f64; 3]>();
        // Both products are below the factor.
        let damage = ((place * length as f64) as usize, 1 + (mask * 255.0) as u8);
        (chance < self.impairments.corrupt && length > 0).then_some(damage)
    }

    /// When the last of the packet's bytes leaves; `None`: no room.
    fn queue(&mut self, length: usize, now: Instant) -> Option<Instant> {
        let Some(rate) = self.impairments.rate else { return Some(now) };
        let begins = self.free_at.unwrap_or(now).max(now);
        let waiting = (begins - now).as_secs_f64() * rate as f64;
        if waiting + length as f64 > self.impairments.queue as f64 {
            return None;
        }
        let ends = begins + Duration::from_secs_f64(length as f64 / rate as f64);
        self.free_at = Some(ends);
        Some(ends)
    }
}

/// Random numbers for one use of a seed.
#[must_use]
pub fn random(seed: u64, name: &str) -> StdRng {
    // FNV-1a: any mix will do, as long as it stays the same from build to build.
    let mixed = name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    StdRng::seed_from_u64(mixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn line(impairments: Impairments) -> Line {
        let mut line = Line::new(7, "test");
        line.impair(impairments);
        line
    }

    #[test]
    fn a_perfect_line_delivers_each_packet_once_unharmed_and_in_order() {
        let (mut line, start) =
            (line(Impairments { delay: 5 * MS, jitter: 9 * MS, ..Impairments::default() }), Instant::now());
        let mut last = start;
        for n in 0..500 {
            let now = start + MS * n;
            let copies = line.send(1200, now);
            let [copy] = copies[..] else { panic!("{copies:?}") };
            assert!(copy.at >= last && copy.at >= now + 5 * MS && copy.damage.is_none());
            last = copy.at;
        }
    }

    #[test]
    fn the_same_seed_and_name_have_the_same_fates() {
        let bad = Impairments {
            loss: 0.3,
            duplicate: 0.2,
            corrupt: 0.2,
            reorder: 0.3,
            reorder_by: 4 * MS,
            ..Impairments::good()
        };
        let start = Instant::now();
        let fates = |seed, name| {
            let mut line = Line::new(seed, name);
            line.impair(bad);
            (0..200).map(|n| line.send(100 + n, start)).collect::<Vec<_>>()
        };
        assert_eq!(fates(1, "up"), fates(1, "up"));
        assert_ne!(fates(1, "up"), fates(1, "down"));
        assert_ne!(fates(1, "up"), fates(2, "up"));
    }

    #[test]
    fn the_fate_of_a_packet_does_not_depend_on_earlier_impairments() {
        let (start, bad) = (Instant::now(), Impairments { loss: 0.5, ..Impairments::good() });
        let (mut one, mut other) = (Line::new(1, "x"), Line::new(1, "x"));
        one.blackhole(true);
        for _ in 0..50 {
            one.send(100, start);
            other.send(1_000_000, start);
        }
        one.blackhole(false);
        one.impair(bad);
        other.impair(bad);
        for _ in 0..50 {
            assert_eq!(one.send(100, start), other.send(100, start));
        }
    }

    #[test]
    fn shares_are_about_what_was_asked_for() {
        let mut line = line(Impairments {
            loss: 0.05,
            duplicate: 0.1,
            corrupt: 0.01,
            reorder: 0.2,
            reorder_by: MS,
            ..Impairments::default()
        });
        let start = Instant::now();
        for n in 0..20_000 {
            line.send(1000, start + MS * n);
        }
        let Counts { sent, lost, duplicated, corrupted, reordered, .. } = line.counts();
        assert_eq!(sent, 20_000);
        assert!((800..1200).contains(&lost), "{lost}");
        assert!((1700..2100).contains(&duplicated), "{duplicated}");
        assert!((150..270).contains(&corrupted), "{corrupted}");
        assert!((3500..4100).contains(&reordered), "{reordered}");
    }

    #[test]
    fn a_rate_makes_packets_wait_and_a_full_queue_drops() {
        let (mut line, start) = (
            line(Impairments { rate: Some(100_000), queue: 10_000, ..Impairments::default() }),
            Instant::now(),
        );
        let arrivals: Vec<_> = (0..20).filter_map(|_| line.send(1000, start).first().copied()).collect();
        assert_eq!(arrivals.len(), 10);
        assert_eq!(arrivals.last().unwrap().at, start + 100 * MS);
        assert_eq!(line.counts().overflowed, 10);
        // Half of it has left after 50 ms.
        let later: Vec<_> = (0..20).flat_map(|_| line.send(1000, start + 50 * MS)).collect();
        assert_eq!(later.len(), 5);
    }

    #[test]
    fn what_is_too_long_or_falls_into_a_blackhole_vanishes() {
        let (mut line, start) = (line(Impairments { mtu: 1280, ..Impairments::default() }), Instant::now());
        assert!(line.send(1281, start).is_empty());
        line.blackhole(true);
        assert!(line.send(100, start).is_empty());
        line.blackhole(false);
        assert_eq!(line.send(1280, start).len(), 1);
        let Counts { too_long, swallowed, .. } = line.counts();
        assert_eq!((too_long, swallowed), (1, 1));
    }
}
