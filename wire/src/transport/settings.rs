//! Transport settings of both ends. Measurements behind the numbers: `docs/adr/0002-transport-settings.md`.

use std::{sync::Arc, time::Duration};

use quinn::{
    IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
    congestion::{BbrConfig, CubicConfig},
};

use crate::{limits, timing};

/// Where MTU discovery stops, in bytes. quinn sends up to ten segments with one call; above 6553 bytes each the
/// call exceeds 64 KiB and fails, and quinn 0.11 takes that for success.
pub const MAX_MTU: u16 = 6500;

/// What cubic lets be on its way before the first acknowledgement, in bytes: three of the largest datagrams. quinn's
/// own 12,000 are ten of the smallest, and it asks for room for a whole datagram before it sends a small one: while
/// MTU discovery has grown them and its next, larger probe is lost with the path, there would be none, and the ping of
/// a rebind would wait until the link dials anew. (RFC 9002, section 7.2, has 14,720 for datagrams of this size;
/// cubic is used where paths are near.)
const CUBIC_INITIAL_WINDOW: u64 = 3 * MAX_MTU as u64;

/// Which end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Dials, keeps the path alive, accepts relays.
    Supervisor,
    /// Listens, opens relays.
    Gateway,
}

/// Which congestion controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// [`Self::Cubic`] where the peer is on this machine or a private network, [`Self::Bbr`] elsewhere: cubic
    /// collapses under random loss at a distance, BBR sends a fifth more than needed into shallow buffers.
    #[default]
    Auto,
    /// The internet's default.
    Cubic,
    /// Measures bandwidth and delay instead of waiting for loss.
    Bbr,
}

impl std::str::FromStr for Congestion {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cubic" => Ok(Self::Cubic),
            "bbr" => Ok(Self::Bbr),
            other => Err(format!("{other:?} is no congestion controller: auto, cubic or bbr")),
        }
    }
}

/// All that distinguishes one connection's settings from another's.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Which end.
    pub role: Role,
    /// Which controller. `Auto` is settled by the peer's address where it is known, else cubic.
    pub congestion: Congestion,
    /// The peer is near: see [`Congestion::Auto`].
    pub near: bool,
    /// The supervisor's keepalive.
    pub keep_alive: Duration,
    /// Both ends' idle timeout.
    pub idle_timeout: Duration,
}

impl Profile {
    /// The design's values.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self {
            role,
            congestion: Congestion::Auto,
            near: true,
            keep_alive: timing::KEEP_ALIVE,
            idle_timeout: timing::IDLE_TIMEOUT,
        }
    }

    pub(super) fn transport(&self) -> Arc<TransportConfig> {
        const MIB: u32 = 1 << 20;
        // Windows: 4 MiB into the supervisor and 2 MiB into the gateway carry 40 MB/s at 100 ms and 50 ms. What
        // a relay can pin in the gateway is its 2 MiB in and its share of the 4 MiB out.
        let (stream_window, send_window, streams, keep_alive) = match self.role {
            Role::Supervisor => (4 * MIB, 8 * MIB, limits::MAX_RELAYS, Some(self.keep_alive)),
            // The gateway sends no keepalive: its packets cannot remake a NAT mapping.
            Role::Gateway => (2 * MIB, 4 * MIB, limits::MAX_SUPERVISOR_STREAMS, None),
        };
        let mut config = TransportConfig::default();
        config
            .max_idle_timeout(Some(idle(self.idle_timeout)))
            .keep_alive_interval(keep_alive)
            .stream_receive_window(VarInt::from_u32(stream_window))
            .receive_window(VarInt::MAX)
            .send_window(u64::from(send_window))
            .max_concurrent_bidi_streams(VarInt::from_u32(streams))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            // Datagrams are not used.
            .datagram_receive_buffer_size(None)
            // The first packets' retransmission after 300 ms instead of quinn's 1 s.
            .initial_rtt(Duration::from_millis(100));
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(MAX_MTU);
        config.mtu_discovery_config(Some(discovery));
        let bbr = match self.congestion {
            Congestion::Auto => !self.near,
            Congestion::Bbr => true,
            Congestion::Cubic => false,
        };
        if bbr {
            config.congestion_controller_factory(Arc::new(BbrConfig::default()));
        } else {
            let mut cubic = CubicConfig::default();
            cubic.initial_window(CUBIC_INITIAL_WINDOW);
            config.congestion_controller_factory(Arc::new(cubic));
        }
        Arc::new(config)
    }
}

fn idle(timeout: Duration) -> IdleTimeout {
    let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    IdleTimeout::from(VarInt::from_u32(ms))
}

/// Loopback, private, link-local, unique-local: a path without the internet's random loss.
pub(super) fn is_near(address: std::net::IpAddr) -> bool {
    match address.to_canonical() {
        std::net::IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}
