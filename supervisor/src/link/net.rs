//! What the link needs of the network: names made into addresses, sockets towards a peer. Two seams, so that a
//! simulation can bring its own.
//!
//! Names are resolved without the C library: a static glibc loads what `nsswitch.conf` names, and in a strange
//! root file system that crashes the process. So `/etc/hosts` and `/etc/resolv.conf` are read here, anew at each
//! dial: after a resume, or once a network is attached, they may say something else.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use hickory_resolver::{
    Hosts, TokioResolver,
    config::LookupIpStrategy,
    net::runtime::TokioRuntimeProvider,
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
};
use holdfast_wire::transport::{Socket, Switch};

/// One question to one name server. Two tries of it, and a search domain, fit into [`RESOLVE_TIMEOUT`].
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);

/// All of one name's resolution: as long as a handshake may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried. A name with more is a load balancer's, where any will do.
const MAX_ADDRESSES: usize = 8;

/// A resolver file that is larger is not one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Sockets towards a peer.
pub trait Sockets: Send + Sync + std::fmt::Debug + 'static {
    /// A new socket from which `peer` can be reached: of its family, on a port of its own.
    fn towards(&self, peer: SocketAddr) -> Socket;
}

/// UDP sockets of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemSockets;

impl Sockets for SystemSockets {
    fn towards(&self, peer: SocketAddr) -> Socket {
        Socket::towards(peer)
    }
}

/// Sockets that lose everything while a switch is on.
#[derive(Debug)]
pub(super) struct LosingSockets {
    pub(super) inner: Arc<dyn Sockets>,
    pub(super) lose: Switch,
}

impl Sockets for LosingSockets {
    fn towards(&self, peer: SocketAddr) -> Socket {
        self.inner.towards(peer).losing(self.lose.clone())
    }
}

/// Names to addresses.
#[async_trait]
pub trait Resolver: Send + Sync + std::fmt::Debug + 'static {
    /// The addresses of `host`, best first, at least one. Never called with an address.
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError>;
}

/// A name that did not become an address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It is no `host:port`.
    #[error("{0:?} is not host:port")]
    NotAnAddress(String),
    /// It is no host name.
    #[error("{host:?} is no host name: {reason}")]
    BadName {
        /// The name.
        host: String,
        /// Why not.
        reason: String,
    },
    /// A resolver file cannot be read.
    #[error("resolving {host}: reading {}: {source}", path.display())]
    File {
        /// The name.
        host: String,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The name servers do not know it, or do not answer.
    #[error("resolving {host}: {reason}")]
    Lookup {
        /// The name.
        host: String,
        /// What they said.
        reason: String,
    },
    /// Nothing came in time.
    #[error("resolving {host}: no answer within {RESOLVE_TIMEOUT:?}")]
    Timeout {
        /// The name.
        host: String,
    },
}

/// The socket addresses of one configured `host:port`.
pub(crate) async fn addresses_of(
    resolver: &dyn Resolver,
    address: &str,
) -> Result<Vec<SocketAddr>, ResolveError> {
    // Literals, IPv6 in brackets: no resolver, so that these work where nothing else does.
    if let Ok(literal) = address.parse::<SocketAddr>() {
        return Ok(vec![literal]);
    }
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = parts.filter(|(host, _)| !host.is_empty()) else {
        return Err(ResolveError::NotAnAddress(address.chars().take(256).collect()));
    };
    let addresses = resolver.resolve(host).await?;
    Ok(addresses.into_iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(ip, port)).collect())
}

/// `/etc/hosts`, then the name servers of `/etc/resolv.conf`.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    hosts: PathBuf,
    resolv_conf: PathBuf,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { hosts: "/etc/hosts".into(), resolv_conf: "/etc/resolv.conf".into() }
    }
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let name = Name::from_utf8(host)
            .map_err(|error| ResolveError::BadName { host: host.to_owned(), reason: error.to_string() })?;
        let from_file = match tokio::time::timeout(RESOLVE_TIMEOUT, read(&self.hosts)).await {
            Ok(Ok(text)) => in_hosts(&text, &name),
            // No such file: a bare root file system, where the name servers have to do. Likewise a disk that hangs.
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        if !from_file.is_empty() {
            return Ok(from_file);
        }
        // RFC 6761: never asked of a name server.
        if host.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        match tokio::time::timeout(RESOLVE_TIMEOUT, self.ask(host)).await {
            Ok(answer) => answer,
            Err(_) => Err(ResolveError::Timeout { host: host.to_owned() }),
        }
    }
}

impl SystemResolver {
    async fn ask(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let text = read(&self.resolv_conf).await.map_err(|source| ResolveError::File {
            host: host.to_owned(),
            path: self.resolv_conf.clone(),
            source,
        })?;
        let failed = |reason: String| ResolveError::Lookup { host: host.to_owned(), reason };
        let (config, options) = hickory_resolver::system_conf::parse_resolv_conf(text)
            .map_err(|error| failed(format!("{}: {error}", self.resolv_conf.display())))?;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let options = builder.options_mut();
        options.timeout = options.timeout.min(QUESTION_TIMEOUT);
        // The gateway may answer on one family only, so both are wanted.
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // A resolver lives for one question.
        options.cache_size = 0;
        let resolver = builder.build().map_err(|error| failed(error.to_string()))?;
        let answer = resolver.lookup_ip(host).await.map_err(|error| failed(error.to_string()))?;
        let addresses: Vec<IpAddr> = answer.iter().collect();
        if addresses.is_empty() {
            return Err(failed("it has no address".to_owned()));
        }
        Ok(addresses)
    }
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let mut text = Vec::new();
    tokio::fs::File::open(path).await?.take(MAX_FILE_BYTES).read_to_end(&mut text).await?;
    Ok(text)
}

fn in_hosts(text: &[u8], name: &Name) -> Vec<IpAddr> {
    let mut hosts = Hosts::default();
    // A file that is damaged in places is still read where it is not.
    let _ = hosts.read_hosts_conf(text);
    [RecordType::A, RecordType::AAAA]
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
        .flat_map(|found| {
            found.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows no names.
    #[derive(Debug)]
    struct FakeResolver;

    #[async_trait]
    impl Resolver for FakeResolver {
        async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
            Err(ResolveError::Lookup { host: host.to_owned(), reason: "unknown".to_owned() })
        }
    }

    fn resolver(hosts: &str, resolv_conf: Option<&str>) -> (tempfile::TempDir, SystemResolver) {
        let dir = tempfile::tempdir().unwrap();
        let resolver =
            SystemResolver { hosts: dir.path().join("hosts"), resolv_conf: dir.path().join("resolv.conf") };
        std::fs::write(&resolver.hosts, hosts).unwrap();
        if let Some(text) = resolv_conf {
            std::fs::write(&resolver.resolv_conf, text).unwrap();
        }
        (dir, resolver)
    }

    #[tokio::test]
    async fn literals_need_no_resolver() {
        for literal in ["127.0.0.1:7443", "[::1]:7443"] {
            let addresses = addresses_of(&FakeResolver, literal).await.unwrap();
            assert_eq!(addresses, [literal.parse().unwrap()]);
        }
    }

    #[tokio::test]
    async fn what_is_no_address_is_named() {
        for bad in ["gateway", ":7443", "gateway:port", ""] {
            let error = addresses_of(&FakeResolver, bad).await.unwrap_err();
            assert!(matches!(&error, ResolveError::NotAnAddress(text) if text == bad), "{error}");
        }
    }

    #[tokio::test]
    async fn hosts_are_read_at_each_question() {
        let (_dir, resolver) = resolver("# nothing\n", None);
        let error = addresses_of(&resolver, "gateway.example:1").await.unwrap_err().to_string();
        assert!(error.contains("gateway.example") && error.contains("resolv.conf"), "{error}");
        std::fs::write(
            &resolver.hosts,
            "10.0.0.7 other\n10.0.0.8 x gateway.example # us\nfd00::8 gateway.example\n",
        )
        .unwrap();
        let found = addresses_of(&resolver, "gateway.example:1").await.unwrap();
        assert_eq!(found, ["10.0.0.8:1".parse().unwrap(), "[fd00::8]:1".parse().unwrap()]);
    }

    #[tokio::test]
    async fn localhost_is_known_without_any_file() {
        let (_dir, resolver) = resolver("", None);
        let found = addresses_of(&resolver, "localhost:1").await.unwrap();
        assert_eq!(found, ["127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap()]);
    }

    /// One question to a name server of our own, over a real socket.
    #[tokio::test]
    async fn a_name_server_that_says_no_is_quoted_and_one_that_is_silent_is_given_up() {
        let (_dir, resolver) = resolver("", Some("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"));
        let started = tokio::time::Instant::now();
        let error = addresses_of(&resolver, "gateway.invalid:1").await.unwrap_err();
        assert!(matches!(error, ResolveError::Lookup { .. } | ResolveError::Timeout { .. }), "{error}");
        assert!(started.elapsed() <= RESOLVE_TIMEOUT + Duration::from_secs(1));
    }
}
