//! What the driver tells a machine's holder, and the holder its machine process: one record, over a pipe.
//!
//! Both ends are one build, so this is bincode (see `docs/adr/0003-bincode-pinned.md`): a version byte, then the
//! record, bounded before anything is allocated. It goes over an inherited pipe, never through arguments or the
//! environment, because both can be read by others and this has the supervisor's key in it.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
};

use bincode::{Decode, Encode};
use holdfast_wire::ids::SandboxId;

/// The first byte of a launch. A holder of another build refuses what it would misread.
pub const VERSION: u8 = 2;

/// The users of machines: no distribution, no container engine and no range of subordinate ids has these numbers
/// (systemd's table of ids calls 1879048192 to 2147483647 unused).
pub const FIRST_USER: u32 = 0x7000_0000;
/// Among them, those of networks.
const OF_NETWORKS: u32 = 0x0800_0000;

/// A user for a machine, from its sandbox's random id. Two of many machines may have the same one: then each is kept
/// from the other's files by its own mounts alone.
#[must_use]
pub fn user_of(sandbox: SandboxId) -> u32 {
    let [.., a, b, c, d] = *sandbox.0.as_bytes();
    FIRST_USER | (u32::from_be_bytes([a, b, c, d]) & (OF_NETWORKS - 1))
}

/// The largest launch, in bytes: two PEM chains, a key and an environment of 64 KiB each stay far below.
pub const MAX_BYTES: usize = 1 << 20;

/// All that is needed to run one machine.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Launch {
    /// The workload's directory, where the holder writes what became of the machine.
    pub dir: BytePath,
    /// Processors of the machine.
    pub cpus: u8,
    /// Its memory.
    pub memory_mib: u32,
    /// The read-only lower layer of its file system.
    pub rootfs: BytePath,
    /// The disk that holds the upper layer; `None`: it is in the machine's memory.
    pub disk: Option<BytePath>,
    /// Whom the machine process becomes, where it may choose; gvproxy becomes [`network_user`](Self::network_user).
    pub user: u32,
    /// The static supervisor, which becomes the machine's first process.
    pub supervisor: BytePath,
    /// What the supervisor reads once, at its start (TOML): identity included.
    pub machine_config: Vec<u8>,
    /// The guest kernel.
    pub libkrunfw: BytePath,
    /// The user-mode network.
    pub gvproxy: BytePath,
    /// Where the machine may send datagrams, as it sees it.
    pub gateway: Endpoint,
    /// What else it may reach.
    pub egress: Egress,
    /// How much is kept of each log, in bytes.
    pub log_bytes: u64,
    /// How long the guest may take from its start to the supervisor's first word, in seconds.
    pub boot_seconds: u32,
}

/// What a sandbox may reach beside its gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Egress {
    /// Nothing.
    #[default]
    None,
    /// Public addresses, and names by the host's resolver.
    Internet,
}

impl std::str::FromStr for Egress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "none" => Ok(Self::None),
            "internet" => Ok(Self::Internet),
            other => Err(format!("{other:?} is none of none, internet")),
        }
    }
}

/// An IPv4 address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Endpoint {
    /// The address.
    pub address: [u8; 4],
    /// The port.
    pub port: u16,
}

impl From<SocketAddrV4> for Endpoint {
    fn from(address: SocketAddrV4) -> Self {
        Self { address: address.ip().octets(), port: address.port() }
    }
}

impl From<Endpoint> for SocketAddrV4 {
    fn from(endpoint: Endpoint) -> Self {
        Self::new(Ipv4Addr::from(endpoint.address), endpoint.port)
    }
}

/// A path as its bytes: not every path is UTF-8.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct BytePath(Vec<u8>);

impl BytePath {
    /// The path.
    #[must_use]
    pub fn to_path(&self) -> PathBuf {
        use std::os::unix::ffi::OsStringExt;
        std::ffi::OsString::from_vec(self.0.clone()).into()
    }
}

impl From<&Path> for BytePath {
    fn from(path: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        Self(path.as_os_str().as_bytes().to_vec())
    }
}

impl fmt::Debug for BytePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_path().fmt(f)
    }
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the machine's configuration: it has a key in it.
        f.debug_struct("Launch")
            .field("dir", &self.dir)
            .field("cpus", &self.cpus)
            .field("memory_mib", &self.memory_mib)
            .field("rootfs", &self.rootfs)
            .field("gateway", &self.gateway)
            .field("egress", &self.egress)
            .finish_non_exhaustive()
    }
}

/// A launch that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Nothing came.
    #[error("the launch is empty: its writer ended before it wrote")]
    Empty,
    /// Of another build.
    #[error(
        "the launch has version {0}, this build reads {VERSION}: the driver and holdfast-vmm are of two builds"
    )]
    Version(u8),
    /// Too much.
    #[error("the launch has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not a launch.
    #[error("the launch does not decode: {0}")]
    Decode(String),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_BYTES>()
}

impl Launch {
    /// The bytes for the pipe.
    ///
    /// # Errors
    /// When it is larger than [`MAX_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, LaunchError> {
        let mut bytes = vec![VERSION];
        let record =
            bincode::encode_to_vec(self, config()).map_err(|error| LaunchError::Decode(error.to_string()))?;
        bytes.extend(record);
        if bytes.len() > MAX_BYTES { Err(LaunchError::TooLarge) } else { Ok(bytes) }
    }

    /// Whom gvproxy becomes: another one than the machine.
    #[must_use]
    pub fn network_user(&self) -> u32 {
        self.user | OF_NETWORKS
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// When it is something else, or of another build.
    pub fn decode(bytes: &[u8]) -> Result<Self, LaunchError> {
        let (version, record) = bytes.split_first().ok_or(LaunchError::Empty)?;
        if *version != VERSION {
            return Err(LaunchError::Version(*version));
        }
        if bytes.len() > MAX_BYTES {
            return Err(LaunchError::TooLarge);
        }
        let (launch, used) = bincode::decode_from_slice(record, config())
            .map_err(|error| LaunchError::Decode(error.to_string()))?;
        if used != record.len() {
            return Err(LaunchError::Decode(format!("{} bytes follow it", record.len() - used)));
        }
        Ok(launch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Launch {
        let path = |text: &str| BytePath::from(Path::new(text));
        Launch {
            dir: path("/d"),
            cpus: 2,
            memory_mib: 512,
            rootfs: path("/r"),
            disk: Some(path("/d/disk")),
            user: 0x7000_0001,
            supervisor: path("/s"),
            machine_config: b"hostname = \"box\"".to_vec(),
            libkrunfw: path("/k"),
            gvproxy: path("/g"),
            gateway: Endpoint { address: [192, 168, 127, 254], port: 7443 },
            egress: Egress::Internet,
            log_bytes: 65536,
            boot_seconds: 60,
        }
    }

    #[test]
    fn the_bytes_of_a_launch_never_change_within_a_version() {
        let hex: String = sample().encode().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "02022f6402fb0002022f7201072f642f6469736bfc01000070022f7310686f73746e616d65203d2022626f7822022f6b022f67c0a87ffefb131d01fc000001003c"
        );
    }

    #[test]
    fn what_was_encoded_is_decoded_and_nothing_else() {
        let bytes = sample().encode().unwrap();
        assert_eq!(Launch::decode(&bytes).unwrap(), sample());
        assert!(matches!(Launch::decode(&[]), Err(LaunchError::Empty)));
        for end in 1..bytes.len() {
            assert!(Launch::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Launch::decode(&longer).unwrap_err().to_string().contains("1 bytes follow"));
        let mut other = bytes;
        other[0] = 3;
        assert!(Launch::decode(&other).unwrap_err().to_string().contains("version 3"));
    }

    #[test]
    fn a_length_that_claims_the_world_is_refused_before_anything_is_allocated() {
        // The first path's length as u64::MAX.
        let bytes = [&[VERSION, 0xfd][..], &[0xff; 8]].concat();
        assert!(matches!(Launch::decode(&bytes), Err(LaunchError::Decode(_))));
    }

    #[test]
    fn a_key_is_not_shown() {
        assert!(!format!("{:?}", sample()).contains("hostname"));
    }
}
