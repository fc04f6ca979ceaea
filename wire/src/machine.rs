//! What a microVM's supervisor reads at its start: its own configuration, and the machine around it.
//!
//! The vm driver writes it (TOML) and gives it to the machine as a virtual file that can be read once, so that no
//! command finds the key there. An unknown key is an error, as in [`SupervisorConfig`].

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::bootstrap::{ConfigError, SupervisorConfig};

/// Where the machine finds it, at the top of its first root file system.
pub const FILE: &str = "/.holdfast-machine.toml";
/// A directory beside it, for mounting what the final root is made of.
pub const MOUNTS: &str = "/.holdfast";
/// The largest that is read, in bytes: certificates of 64 KiB each, and an environment of 64 KiB.
const MAX_BYTES: usize = 512 * 1024;

/// A machine, as its first process must set it up.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// The sandbox's name.
    pub hostname: String,
    /// The supervisor's certificate chain, PEM.
    pub cert_pem: String,
    /// Its private key, PEM.
    pub key_pem: String,
    /// The CA that gateways are verified against, PEM.
    pub ca_pem: String,
    /// Where it keeps what it changes of its root.
    pub upper: Upper,
    /// The one network.
    pub network: MachineNetwork,
    /// The base environment of every command.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What the supervisor would read from its own file elsewhere.
    pub supervisor: SupervisorConfig,
}

/// Where a machine keeps what it changes of its root: the upper layer, over the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upper {
    /// On a disk, an ext4: it outlives the machine.
    Disk(PathBuf),
    /// In its memory, at most so many bytes: it goes with the machine.
    Memory(u64),
}

/// The machine's network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineNetwork {
    /// The machine's address.
    pub address: Ipv4Addr,
    /// The bits of it that are the network's.
    pub prefix: u8,
    /// Where everything else goes.
    pub router: Ipv4Addr,
    /// The largest packet, in bytes.
    pub mtu: u16,
    /// Who knows names, where the sandbox may ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Ipv4Addr>,
}

impl fmt::Debug for MachineConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the key nor the environment's values.
        f.debug_struct("MachineConfig")
            .field("hostname", &self.hostname)
            .field("network", &self.network)
            .field("env", &self.env.keys())
            .finish_non_exhaustive()
    }
}

impl MachineConfig {
    /// The file's text, for the driver.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Reads the text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let path = || PathBuf::from(FILE);
        if text.len() > MAX_BYTES {
            return Err(ConfigError::TooLarge { path: path(), size: text.len() as u64 });
        }
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path(), source: Box::new(source) })?;
        if config.network.prefix > 32 {
            return Err(ConfigError::Invalid {
                path: path(),
                message: "network.prefix: at most 32".to_owned(),
            });
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bootstrap::{GatewayAddress, IdentityFiles, SpoolLimits},
        ids::{Generation, SandboxId},
    };

    fn sample() -> MachineConfig {
        MachineConfig {
            hostname: "box".into(),
            cert_pem: "C\n".into(),
            key_pem: "SECRET\n".into(),
            ca_pem: "A\n".into(),
            upper: Upper::Disk("/dev/vda".into()),
            network: MachineNetwork {
                address: [192, 168, 127, 2].into(),
                prefix: 24,
                router: [192, 168, 127, 1].into(),
                mtu: 6528,
                resolver: None,
            },
            env: [("A".to_owned(), "b\n\"c\"".to_owned())].into(),
            supervisor: SupervisorConfig {
                sandbox_id: SandboxId::random(),
                workload_generation: Generation(1),
                state_dir: "/s".into(),
                workspace: "/w".into(),
                init: true,
                mount_proc: false,
                default_user: None,
                gateway: GatewayAddress {
                    addresses: vec!["192.168.127.254:1".into()],
                    server_name: "g".into(),
                },
                identity: IdentityFiles { cert: "/c".into(), key: "/k".into(), ca: "/a".into() },
                spool: SpoolLimits::default(),
                log: "info".into(),
            },
        }
    }

    #[test]
    fn what_the_driver_writes_the_machine_reads() {
        for upper in [Upper::Disk("/dev/vda".into()), Upper::Memory(1 << 30)] {
            let config = MachineConfig { upper, ..sample() };
            assert_eq!(MachineConfig::parse(&config.to_toml().unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn an_unknown_key_is_named_and_the_key_is_not_shown() {
        let text = format!("hots = 1\n{}", sample().to_toml().unwrap());
        assert!(MachineConfig::parse(&text).unwrap_err().to_string().contains("hots"));
        assert!(!format!("{:?}", sample()).contains("SECRET"));
    }
}
