//! Does the path of one session still carry anything? Pure: what was heard, and an instant in; acts out.
//!
//! ```text
//!   nothing expected ── a relay opens ──▶ expecting ── the last relay ends ──▶ nothing expected
//!
//!   silent for 0.5 s ─▶ poke         a heartbeat: its echo proves the path, and our packet remakes a NAT mapping
//!   silent for 1.5 s ─▶ rebind       a new UDP socket: cures what is stale on the way, costs a live path nothing
//!   silent for 3 s   ─▶ suspect      the link dials a second connection beside this one
//! ```
//!
//! The order is that of the price. A poke is one small packet, and cures a peer that only receives: its NAT mapping
//! was evicted, and any packet from inside makes it anew. It cannot cure a mapping that is stuck (a middlebox that
//! still holds the old flow and drops it), and there a new source port can; so the rebind comes before the second
//! connection, which alone breaks relays. The rebind in turn cannot cure a *sender* whose congestion window is full
//! of lost packets: its poke waits behind them with quinn's ever longer probe timer, and only a new connection,
//! with a window of its own, gets through.
//!
//! Without a relay nothing is expected, and QUIC's keepalive and idle timeout do. After a jump of the clocks the
//! path is proven at once, relays or not: a heartbeat, a rebind after 1 s, suspicion after 3 s. There only an echo
//! counts, because datagrams from before the jump may still have been in the socket.

use std::time::Duration;

use holdfast_wire::timing::Tuning;
use tokio::time::Instant;

/// How often what was heard is looked at, as a share of `poke_after`: quinn tells nobody of a datagram, so its
/// counter has to be read, and silence is then known with this precision. 8 times a second, and only while
/// relays are open.
const LOOKS_PER_POKE: u32 = 4;

/// From the start of a proof to the rebind, and to suspicion.
const PROOF_REBIND: Duration = Duration::from_secs(1);
const PROOF_SUSPECT: Duration = Duration::from_secs(3);

/// A look that comes so late finds a process that stood still (stopped, starved), not a path that is silent.
const LATE: Duration = Duration::from_secs(1);

/// A round trip that is longer does not buy the path more patience: the callers' bound stays far away.
const LONGEST_RTT: Duration = Duration::from_secs(1);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Send a heartbeat with this number.
    Heartbeat { seq: u64 },
    /// Move to a new socket.
    Rebind,
    /// Tell the link that this session is doubtful.
    Suspect,
    /// Tell the link that it is not.
    Recovered,
}

/// How far the cure has gone in the present silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cure {
    None,
    Poked,
    Rebound,
    Suspected,
}

#[derive(Clone, Copy, Debug)]
struct Proof {
    since: Instant,
    /// The echo of this heartbeat, or of a later one, is the proof.
    seq: u64,
}

/// The liveness of one session.
#[derive(Debug)]
pub(crate) struct Liveness {
    tuning: Tuning,
    relays: usize,
    received: u64,
    heard_at: Instant,
    sent_at: Option<Instant>,
    seq: u64,
    cure: Cure,
    proof: Option<Proof>,
    looked_at: Instant,
}

impl Liveness {
    /// A session that was just attached; `received`: datagrams so far.
    pub(crate) fn new(tuning: Tuning, received: u64, now: Instant) -> Self {
        Self {
            tuning,
            relays: 0,
            received,
            heard_at: now,
            sent_at: None,
            seq: 0,
            cure: Cure::None,
            proof: None,
            looked_at: now,
        }
    }

    /// New settings.
    pub(crate) fn tune(&mut self, tuning: Tuning) {
        self.tuning = tuning;
    }

    /// So many relays are open now. What came before the first of them says nothing about the path.
    pub(crate) fn on_relays(&mut self, relays: usize, now: Instant) {
        if self.relays == 0 && relays > 0 {
            (self.heard_at, self.looked_at) = (now, now);
            if self.proof.is_none() {
                self.cure = Cure::None;
            }
        }
        self.relays = relays;
    }

    /// An echo of one of our heartbeats came.
    pub(crate) fn on_echo(&mut self, seq: u64, now: Instant) -> Option<Act> {
        let proof = self.proof?;
        if seq < proof.seq {
            return None;
        }
        self.proof = None;
        self.heard_at = now;
        self.cure = Cure::None;
        // Also without suspicion: the link may have begun to dial because of the jump itself.
        Some(Act::Recovered)
    }

    /// The clocks jumped: prove the path now.
    pub(crate) fn prove(&mut self, now: Instant) -> Act {
        self.cure = Cure::Poked;
        let beat = self.beat(now);
        self.looked_at = now;
        self.proof = Some(Proof { since: now, seq: self.seq });
        beat
    }

    /// Looks at the path: datagrams received so far, and its round trip time.
    pub(crate) fn look(&mut self, received: u64, rtt: Duration, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        let late = now.saturating_duration_since(self.looked_at) > LATE;
        self.looked_at = now;
        if late && self.cure == Cure::None {
            // This process stood still, and what came meanwhile has not been read yet: no silence of the path's.
            self.heard_at = now;
        }
        if received != self.received {
            self.received = received;
            self.heard_at = now;
            if self.proof.is_none() {
                if self.cure == Cure::Suspected {
                    acts.push(Act::Recovered);
                }
                self.cure = Cure::None;
            }
        }
        if !self.expecting() {
            // The last relay ended in the middle of a doubt: nobody waits any more, the idle timeout will do.
            if self.cure == Cure::Suspected && self.proof.is_none() {
                acts.push(Act::Recovered);
                self.cure = Cure::None;
            }
            return acts;
        }
        let [poke, rebind, suspect] = self.steps(rtt);
        if self.cure < Cure::Poked && now >= poke {
            self.cure = Cure::Poked;
            acts.push(self.beat(now));
        }
        if self.cure < Cure::Rebound && now >= rebind {
            self.cure = Cure::Rebound;
            acts.push(Act::Rebind);
            acts.push(self.beat(now));
        }
        if self.cure < Cure::Suspected && now >= suspect {
            self.cure = Cure::Suspected;
            acts.push(Act::Suspect);
        }
        if self.sent_at.is_none_or(|sent| now >= sent + self.tuning.heartbeat) {
            acts.push(self.beat(now));
        }
        acts
    }

    /// When to look next; `None` while nothing is expected. Whatever happens meanwhile does not put it off.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.expecting().then(|| self.looked_at + self.tuning.poke_after / LOOKS_PER_POKE)
    }

    fn expecting(&self) -> bool {
        self.proof.is_some() || self.relays > 0
    }

    /// When the path is poked, rebound, suspected if it stays silent.
    fn steps(&self, rtt: Duration) -> [Instant; 3] {
        if let Some(proof) = self.proof {
            return [proof.since, proof.since + PROOF_REBIND, proof.since + PROOF_SUSPECT];
        }
        // After each cure its answer needs a round trip, and two more where the first packet is lost.
        let answer = 3 * rtt.min(LONGEST_RTT);
        let poke = self.heard_at + self.tuning.poke_after;
        let rebind = poke + (2 * self.tuning.poke_after).max(answer);
        let suspect = (self.heard_at + self.tuning.suspect_after).max(rebind + answer);
        [poke, rebind, suspect]
    }

    fn beat(&mut self, now: Instant) -> Act {
        self.seq += 1;
        self.sent_at = Some(now);
        Act::Heartbeat { seq: self.seq }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RTT: Duration = Duration::from_millis(20);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Looks whenever a look is due until `for_long` has passed in silence; the acts with their times.
    fn silence(
        liveness: &mut Liveness,
        start: Instant,
        received: u64,
        for_long: Duration,
    ) -> Vec<(Duration, Act)> {
        let mut seen = Vec::new();
        while let Some(now) = liveness.next_look().filter(|next| *next <= start + for_long) {
            seen.extend(liveness.look(received, RTT, now).into_iter().map(|act| (now - start, act)));
        }
        seen
    }

    fn first(seen: &[(Duration, Act)], wanted: impl Fn(&Act) -> bool) -> Option<Duration> {
        seen.iter().find(|(_, act)| wanted(act)).map(|(at, _)| *at)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_poked_then_rebound_then_suspected() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Tuning::default(), 5, start);
        liveness.on_relays(1, start);
        liveness.look(5, RTT, start);
        let seen = silence(&mut liveness, start, 5, ms(4000));
        assert_eq!(first(&seen, |act| matches!(act, Act::Heartbeat { .. })), Some(ms(500)));
        assert_eq!(first(&seen, |act| *act == Act::Rebind), Some(ms(1500)));
        assert_eq!(first(&seen, |act| *act == Act::Suspect), Some(ms(3000)));
        assert_eq!(seen.iter().filter(|(_, act)| *act == Act::Suspect).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_relays_nothing_is_done() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Tuning::default(), 5, start);
        assert_eq!(liveness.next_look(), None);
        assert_eq!(liveness.look(5, RTT, start + ms(60_000)), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_datagram_ends_the_suspicion() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Tuning::default(), 5, start);
        liveness.on_relays(1, start);
        silence(&mut liveness, start, 5, ms(3500));
        assert!(liveness.look(6, RTT, start + ms(3600)).contains(&Act::Recovered));
        let again = silence(&mut liveness, start + ms(3600), 6, ms(3500));
        assert_eq!(first(&again, |act| *act == Act::Suspect), Some(ms(3000)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_takes_an_echo_and_no_older_packet() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Tuning::default(), 5, start);
        let Act::Heartbeat { seq } = liveness.prove(start) else { panic!("a proof begins with a heartbeat") };
        // Something that was in the socket since before the jump.
        assert_eq!(liveness.look(6, RTT, start + ms(10)), []);
        let seen = silence(&mut liveness, start + ms(10), 6, ms(3500));
        assert!(first(&seen, |act| *act == Act::Rebind).is_some_and(|at| at <= ms(1200)));
        assert!(first(&seen, |act| *act == Act::Suspect).is_some_and(|at| at <= ms(3200)));
        assert_eq!(liveness.on_echo(seq - 1, start + ms(3600)), None);
        assert_eq!(liveness.on_echo(seq, start + ms(3600)), Some(Act::Recovered));
        assert_eq!(liveness.next_look(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_distant_path_gets_more_patience() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Tuning::default(), 5, start);
        liveness.on_relays(1, start);
        let [poke, rebind, suspect] = liveness.steps(ms(800));
        assert_eq!(poke - start, ms(500));
        assert_eq!(rebind - start, ms(2900));
        assert!(suspect - start <= ms(8000), "well before the callers' bound of 10 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stood_still_does_not_blame_the_path() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Tuning::default(), 5, start);
        liveness.on_relays(1, start);
        liveness.look(5, RTT, start + ms(125));
        let acts = liveness.look(5, RTT, start + ms(60_000));
        assert!(!acts.contains(&Act::Suspect) && !acts.contains(&Act::Rebind), "{acts:?}");
        let seen = silence(&mut liveness, start + ms(60_000), 5, ms(3500));
        assert_eq!(
            first(&seen, |act| *act == Act::Suspect),
            Some(ms(3000)),
            "and blames it when it is silent"
        );
    }

    proptest! {
        /// Whatever is heard when: heartbeats flow at least at their pace while relays are open, suspicion comes
        /// only after real silence, and each suspicion is followed by a recovery before the next one.
        #[test]
        fn suspicion_needs_silence(heard in proptest::collection::vec(1u64..4000, 1..20)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let start = Instant::now();
                let tuning = Tuning::default();
                let mut liveness = Liveness::new(tuning, 0, start);
                liveness.on_relays(1, start);
                let mut arrivals = Vec::new();
                let mut at = start;
                for gap in heard {
                    at += ms(gap);
                    arrivals.push(at);
                }
                let end = at + ms(5000);
                let (mut now, mut last_beat, mut suspected) = (start, start, false);
                while now < end {
                    now = liveness.next_look().expect("a relay is open");
                    let received = arrivals.iter().filter(|arrival| **arrival <= now).count() as u64;
                    let last = arrivals.iter().copied().filter(|arrival| *arrival <= now).max().unwrap_or(start);
                    for act in liveness.look(received, RTT, now) {
                        match act {
                            Act::Heartbeat { .. } => last_beat = now,
                            Act::Rebind => prop_assert!(now - last >= ms(1375)),
                            Act::Suspect => {
                                prop_assert!(!suspected && now - last >= ms(2875));
                                suspected = true;
                            }
                            Act::Recovered => {
                                prop_assert!(suspected);
                                suspected = false;
                            }
                        }
                    }
                    prop_assert!(now - last_beat <= tuning.heartbeat + ms(125));
                }
                prop_assert!(suspected, "5 s of silence at the end");
                Ok(())
            })?;
        }
    }
}
