//! The gateway's address as a container sees it.
//!
//! ```text
//!   --advertise given ─────────────▶ that
//!   listens on one address ────────▶ that, unless it is loopback: no container reaches it
//!   listens on all addresses ──────▶ the network's own gateway address, which is this machine, then
//!                                    host.containers.internal, for engines that run in a machine of their own
//! ```

use std::net::{IpAddr, SocketAddr};

/// A name for this machine inside of containers: podman's own, and given to docker's by `ExtraHosts`.
pub(super) const HOST_NAME: &str = "host.containers.internal";

/// Where a gateway can be found, from its own point of view.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    /// What it listens on.
    pub(super) listen: SocketAddr,
    /// What its operator says that supervisors dial; empty: nothing was said.
    pub(super) advertised: Vec<String>,
}

impl Reach {
    /// Refuses what no container could dial, before anything is made.
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.advertised.is_empty() || !self.listen.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        let (listen, port) = (self.listen, self.listen.port());
        Err(format!(
            "the gateway listens on {listen} only, which is this machine's own loopback: no container can dial it. \
             Listen on all addresses (--listen 0.0.0.0:{port}) or on one of the containers' network \
             (docker: 172.17.0.1, podman: 10.88.0.1), or name what containers can dial by --advertise HOST:PORT"
        ))
    }

    /// What the supervisor of a container dials, in order. `gateways`: the addresses that its network has on this
    /// machine's side.
    pub(super) fn dials_on(&self, gateways: &[IpAddr]) -> Vec<String> {
        if !self.advertised.is_empty() {
            return self.advertised.clone();
        }
        if !self.listen.ip().is_unspecified() {
            return vec![self.listen.to_string()];
        }
        let port = self.listen.port();
        // A wildcard of one family is not reached by the other.
        let heard = |ip: &&IpAddr| ip.is_ipv4() || self.listen.is_ipv6();
        let mut all: Vec<String> =
            gateways.iter().filter(heard).map(|ip| SocketAddr::new(*ip, port).to_string()).collect();
        all.push(format!("{HOST_NAME}:{port}"));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(listen: &str, advertised: &[&str]) -> Reach {
        Reach {
            listen: listen.parse().unwrap(),
            advertised: advertised.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn loopback_is_refused_with_what_to_do() {
        for listen in ["127.0.0.1:7443", "[::1]:7443", "[::ffff:127.0.0.1]:7443"] {
            let said = reach(listen, &[]).check().unwrap_err();
            assert!(said.contains("--listen 0.0.0.0:7443") && said.contains("--advertise"), "{said}");
        }
        reach("127.0.0.1:7443", &["gateway:7443"]).check().unwrap();
        reach("0.0.0.0:7443", &[]).check().unwrap();
    }

    #[test]
    fn what_is_dialled_is_what_the_container_can_reach() {
        let bridge: [IpAddr; 2] = ["10.88.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let dials = |listen, advertised: &[&str]| reach(listen, advertised).dials_on(&bridge);
        assert_eq!(dials("0.0.0.0:1", &[]), ["10.88.0.1:1", "host.containers.internal:1"]);
        assert_eq!(dials("[::]:1", &[]), ["10.88.0.1:1", "[fd00::1]:1", "host.containers.internal:1"]);
        assert_eq!(dials("192.0.2.7:1", &[]), ["192.0.2.7:1"]);
        assert_eq!(dials("127.0.0.1:1", &["a:1", "b:2"]), ["a:1", "b:2"]);
        assert_eq!(reach("0.0.0.0:1", &[]).dials_on(&[]), ["host.containers.internal:1"]);
    }
}
