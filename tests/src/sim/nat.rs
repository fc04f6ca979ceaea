//! A NAT box: internal addresses behind one public address. Pure.
//!
//! ```text
//!   outbound (inner, remote) ──▶ mapping: found or made, used now ──▶ public ip : port
//!   inbound  (port, remote)  ──▶ mapping that this remote was written to by ──▶ inner, or dropped
//!                                 ▲ gone: idle too long, evicted, the box restarted
//! ```
//!
//! As Linux' conntrack with masquerading does it: one mapping for each pair of inner and remote address, which
//! both directions hold. A mapping that is made anew gets another port, which is the harder case: a kernel would
//! often give the old one back, and nobody would notice.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rand::{RngExt, rngs::StdRng};
use tokio::time::Instant;

use super::line::random;

/// An idle UDP flow is forgotten after so long: conntrack's `nf_conntrack_udp_timeout`.
pub const IDLE: Duration = Duration::from_secs(30);

/// A NAT box.
#[derive(Debug)]
pub struct Nat {
    public: IpAddr,
    idle: Duration,
    random: StdRng,
    flows: HashMap<(SocketAddr, SocketAddr), Flow>,
    ports: HashMap<u16, (SocketAddr, SocketAddr)>,
    counts: Counts,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    port: u16,
    used: Instant,
    wedged: bool,
}

/// What a box did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Mappings made.
    pub mapped: u64,
    /// Inbound packets without a mapping.
    pub unsolicited: u64,
    /// Mappings that were idle for too long.
    pub expired: u64,
    /// Mappings that were taken away.
    pub evicted: u64,
    /// Packets of a wedged mapping.
    pub wedged: u64,
}

impl Nat {
    /// A box with this public address, which forgets flows that are `idle` for so long.
    #[must_use]
    pub fn new(seed: u64, public: IpAddr, idle: Duration) -> Self {
        let random = random(seed, &format!("nat {public}"));
        Self { public, idle, random, flows: HashMap::new(), ports: HashMap::new(), counts: Counts::default() }
    }

    /// Its public address now.
    #[must_use]
    pub fn public(&self) -> IpAddr {
        self.public
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A packet goes out: from which public address. `None`: it is dropped.
    pub fn outbound(&mut self, inner: SocketAddr, remote: SocketAddr, now: Instant) -> Option<SocketAddr> {
        self.expire(inner, remote, now);
        let flow = match self.flows.get_mut(&(inner, remote)) {
            Some(flow) => flow,
            None => {
                let port = self.free_port();
                self.counts.mapped += 1;
                self.ports.insert(port, (inner, remote));
                self.flows.entry((inner, remote)).or_insert(Flow { port, used: now, wedged: false })
            }
        };
        flow.used = now;
        if flow.wedged {
            self.counts.wedged += 1;
            return None;
        }
        Some(SocketAddr::new(self.public, flow.port))
    }

    /// A packet comes for a public port: whose it is. `None`: it is dropped.
    pub fn inbound(&mut self, port: u16, remote: SocketAddr, now: Instant) -> Option<SocketAddr> {
        let known = self.ports.get(&port).copied().filter(|(_, to)| *to == remote);
        if let Some((inner, remote)) = known {
            self.expire(inner, remote, now);
        }
        let flow = known.and_then(|pair| self.flows.get_mut(&pair));
        let (Some(flow), Some((inner, _))) = (flow, known) else {
            self.counts.unsolicited += 1;
            return None;
        };
        flow.used = now;
        if flow.wedged {
            self.counts.wedged += 1;
            return None;
        }
        Some(inner)
    }

    /// All mappings go, as when the table is flushed or under pressure: the next packet from inside makes new ones.
    pub fn evict(&mut self) {
        self.counts.evicted += self.flows.len() as u64;
        self.flows.clear();
        self.ports.clear();
    }

    /// The box gets another public address (a new lease, another uplink); mappings go.
    pub fn rebind(&mut self, public: IpAddr) {
        self.evict();
        self.public = public;
    }

    /// The mappings that there are stay, and carry nothing any more; new flows work. A middlebox that lost half
    /// of its state does this.
    pub fn wedge(&mut self) {
        self.flows.values_mut().for_each(|flow| flow.wedged = true);
    }

    fn expire(&mut self, inner: SocketAddr, remote: SocketAddr, now: Instant) {
        let idle = self.idle;
        if let Some(flow) = self.flows.get(&(inner, remote))
            && now.saturating_duration_since(flow.used) > idle
        {
            self.ports.remove(&flow.port);
            self.flows.remove(&(inner, remote));
            self.counts.expired += 1;
        }
    }

    fn free_port(&mut self) -> u16 {
        loop {
            let port = self.random.random_range(1024..=u16::MAX);
            if !self.ports.contains_key(&port) {
                return port;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn addresses() -> (SocketAddr, SocketAddr, SocketAddr) {
        (
            "10.0.0.2:4000".parse().unwrap(),
            "198.51.100.1:7443".parse().unwrap(),
            "198.51.100.9:7443".parse().unwrap(),
        )
    }

    fn nat() -> Nat {
        Nat::new(1, "203.0.113.1".parse().unwrap(), IDLE)
    }

    #[test]
    fn answers_find_back_and_strangers_do_not() {
        let ((inner, remote, stranger), mut nat, now) = (addresses(), nat(), Instant::now());
        let public = nat.outbound(inner, remote, now).unwrap();
        assert_eq!(nat.outbound(inner, remote, now), Some(public));
        assert_eq!(nat.inbound(public.port(), remote, now), Some(inner));
        assert_eq!(nat.inbound(public.port(), stranger, now), None);
        assert_eq!(nat.inbound(public.port() ^ 1, remote, now), None);
        assert_eq!(nat.counts(), Counts { mapped: 1, unsolicited: 2, ..Counts::default() });
    }

    #[test]
    fn an_idle_mapping_is_forgotten_and_either_direction_holds_it() {
        let ((inner, remote, _), mut nat, start) = (addresses(), nat(), Instant::now());
        let public = nat.outbound(inner, remote, start).unwrap();
        assert!(nat.inbound(public.port(), remote, start + 29 * SECOND).is_some());
        assert_eq!(nat.outbound(inner, remote, start + 58 * SECOND), Some(public));
        assert_eq!(nat.inbound(public.port(), remote, start + 89 * SECOND), None);
        assert_ne!(nat.outbound(inner, remote, start + 90 * SECOND), Some(public));
    }

    #[test]
    fn an_evicted_mapping_is_made_anew_by_packets_from_inside_alone() {
        let ((inner, remote, _), mut nat, now) = (addresses(), nat(), Instant::now());
        let old = nat.outbound(inner, remote, now).unwrap();
        nat.evict();
        assert_eq!(nat.inbound(old.port(), remote, now), None);
        let new = nat.outbound(inner, remote, now).unwrap();
        assert_ne!(old, new);
        assert_eq!(nat.inbound(new.port(), remote, now), Some(inner));
    }

    #[test]
    fn a_rebound_box_has_another_address() {
        let ((inner, remote, _), mut nat, now) = (addresses(), nat(), Instant::now());
        nat.outbound(inner, remote, now);
        nat.rebind("203.0.113.7".parse().unwrap());
        assert_eq!(nat.outbound(inner, remote, now).unwrap().ip(), nat.public());
    }

    #[test]
    fn a_wedged_mapping_carries_nothing_and_a_new_flow_does() {
        let ((inner, remote, _), mut nat, now) = (addresses(), nat(), Instant::now());
        let old = nat.outbound(inner, remote, now).unwrap();
        nat.wedge();
        assert_eq!(nat.outbound(inner, remote, now), None);
        assert_eq!(nat.inbound(old.port(), remote, now), None);
        let other = SocketAddr::new(inner.ip(), inner.port() + 1);
        assert!(nat.outbound(other, remote, now).is_some());
    }
}
