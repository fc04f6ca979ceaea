//! The file that brings a supervisor to life: who it is, whom it dials, where it may write.
//!
//! A driver writes it (TOML, mode 0600) before the workload starts; the supervisor reads it once, at
//! start. Keys are not in it, only the paths of the files (mode 0400) that hold them. An unknown key is
//! an error: a misspelt setting must not be silently ignored.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, SandboxId};

/// The largest configuration file that a supervisor reads, in bytes. Real ones are under 2 KiB.
pub const MAX_CONFIG_BYTES: u64 = 64 * 1024;

/// What a supervisor needs to know to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupervisorConfig {
    /// The sandbox that this supervisor speaks for; its certificate must say the same.
    pub sandbox_id: SandboxId,
    /// Which workload of the sandbox this is.
    pub workload_generation: Generation,
    /// For the spool, the lock and what else must outlive a connection. Never inside the workspace.
    pub state_dir: PathBuf,
    /// The user's files: the default working directory of a command, and what the file probe writes to.
    pub workspace: PathBuf,
    /// True where the supervisor is the first process of its PID namespace: it then reaps orphans, and mounts
    /// a fresh `/proc` if `mount_proc` asks for it.
    #[serde(default)]
    pub init: bool,
    /// Mount a new `/proc` at start (own PID and mount namespace, old `/proc` inherited).
    #[serde(default)]
    pub mount_proc: bool,
    /// Who runs a command that names nobody: a name or `uid[:gid]` of the sandbox. Absent: the supervisor's own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Whom to dial.
    pub gateway: GatewayAddress,
    /// Who the supervisor is.
    pub identity: IdentityFiles,
    /// Bounds of the spool.
    #[serde(default)]
    pub spool: SpoolLimits,
    /// Log filter (`info`, `holdfast_supervisor=debug`, ...) when `RUST_LOG` is not set.
    #[serde(default = "default_log")]
    pub log: String,
}

/// Where the gateway answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayAddress {
    /// `host:port` pairs, tried in order; names are resolved again at every dial. IPv6 literals in brackets.
    pub addresses: Vec<String>,
    /// The name that the gateway's certificate must carry, whatever address was dialled.
    pub server_name: String,
}

/// The files (mode 0400 or 0600) that prove who the supervisor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityFiles {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM (PKCS#8).
    pub key: PathBuf,
    /// The CA that gateways are verified against, PEM.
    pub ca: PathBuf,
}

/// How much output is kept for callers that are away or slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpoolLimits {
    /// Bytes kept of one exec, both streams together.
    pub per_exec_bytes: u64,
    /// Bytes kept of all execs of this sandbox.
    pub total_bytes: u64,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self { per_exec_bytes: 64 << 20, total_bytes: 512 << 20 }
    }
}

fn default_log() -> String {
    "info".to_owned()
}

impl SupervisorConfig {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge { path: path.to_owned(), size });
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.check().map_err(|message| ConfigError::Invalid { path: path.to_owned(), message })?;
        Ok(config)
    }

    /// The file's text, for the driver that writes it.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    fn check(&self) -> Result<(), String> {
        if self.gateway.addresses.is_empty() {
            return Err("gateway.addresses is empty: name at least one host:port".to_owned());
        }
        for address in &self.gateway.addresses {
            let port = address
                .rsplit_once(':')
                .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok()).flatten());
            if port.is_none_or(|port| port == 0) {
                return Err(format!("gateway.addresses: {address:?} is not host:port"));
            }
        }
        for (name, path) in [("state_dir", &self.state_dir), ("workspace", &self.workspace)] {
            if !path.is_absolute() {
                return Err(format!("{name}: {} is not an absolute path", path.display()));
            }
        }
        if self.spool.per_exec_bytes < 64 * 1024 || self.spool.total_bytes < self.spool.per_exec_bytes {
            return Err(
                "spool: per_exec_bytes must be at least 65536, and total_bytes no less than it".to_owned()
            );
        }
        Ok(())
    }
}

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("reading the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than any real configuration.
    #[error("the configuration {} has {size} bytes, more than the {MAX_CONFIG_BYTES} allowed", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file is not the TOML that was expected; the source names line and key.
    #[error("the configuration {} does not parse: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// The file parses, but a value makes no sense.
    #[error("the configuration {}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Which key, and what would be right.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SupervisorConfig {
        SupervisorConfig {
            sandbox_id: SandboxId::random(),
            workload_generation: Generation(3),
            state_dir: "/state".into(),
            workspace: "/workspace".into(),
            init: true,
            mount_proc: true,
            default_user: Some("ada".into()),
            gateway: GatewayAddress {
                addresses: vec!["127.0.0.1:7443".into(), "[::1]:7443".into()],
                server_name: "gateway.holdfast.internal".into(),
            },
            identity: IdentityFiles {
                cert: "/id/cert.pem".into(),
                key: "/id/key.pem".into(),
                ca: "/id/ca.pem".into(),
            },
            spool: SpoolLimits::default(),
            log: "info".into(),
        }
    }

    fn load(text: &str) -> Result<SupervisorConfig, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        SupervisorConfig::load(file.path())
    }

    #[test]
    fn what_a_driver_writes_a_supervisor_reads() {
        let config = sample();
        assert_eq!(load(&config.to_toml().unwrap()).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let text = format!("spol = 1\n{}", sample().to_toml().unwrap());
        assert!(load(&text).unwrap_err().to_string().contains("spol"));
    }

    #[test]
    fn bad_values_are_named() {
        let mut config = sample();
        config.gateway.addresses = vec!["gateway".into()];
        assert!(
            load(&config.to_toml().unwrap())
                .unwrap_err()
                .to_string()
                .contains("\"gateway\" is not host:port")
        );
        let mut config = sample();
        config.workspace = "here".into();
        assert!(load(&config.to_toml().unwrap()).unwrap_err().to_string().contains("workspace"));
    }
}
