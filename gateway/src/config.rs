//! What a gateway is told: flag > `HOLDFAST_*` environment > TOML file > default.
//!
//! [`GatewayArgs`] is the command line (with its environment variables), [`FileConfig`] the file, [`Config`]
//! what comes of both, checked. An unknown key in the file is an error.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use holdfast_wire::{timing::Tuning, transport::Congestion};
use serde::Deserialize;

/// The largest configuration file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// How long a sandbox's certificate is valid if nothing else is said. Renewed at two thirds of it.
pub const SANDBOX_CERTIFICATE: Duration = Duration::from_secs(24 * 3600);

/// Run a gateway.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  holdfast gateway --data-dir ./gw
  holdfast gateway --data-dir ./gw --listen 0.0.0.0:7443 --advertise gateway.example:7443
  HOLDFAST_PROFILE=./gw/client.toml holdfast create box --wait

The data directory holds everything: the CA, the store, the client profile client.toml, the sandboxes of
the local and the vm driver. Two gateways need two data directories. Workloads live on when the gateway stops; the
next start on the same data directory adopts them.")]
pub struct GatewayArgs {
    /// Everything the gateway keeps [default: $XDG_DATA_HOME/holdfast]
    #[arg(long, env = "HOLDFAST_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// QUIC on UDP and the API on TCP, one address and port [default: 127.0.0.1:7443]
    #[arg(long, env = "HOLDFAST_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// What supervisors dial, if it is not the listen address; may be repeated
    #[arg(long, env = "HOLDFAST_ADVERTISE", value_name = "HOST:PORT", value_delimiter = ',')]
    pub advertise: Vec<String>,
    /// Plain HTTP for /healthz, /readyz and /metrics [default: 127.0.0.1, a free port, said at the start]
    #[arg(long, env = "HOLDFAST_HTTP_LISTEN", value_name = "ADDR:PORT")]
    pub http_listen: Option<SocketAddr>,
    /// What makes workloads: local, container or vm [default: local]
    #[arg(long, env = "HOLDFAST_DRIVER", value_name = "NAME")]
    pub driver: Option<String>,
    /// The container driver's engine, docker or podman, as unix:///PATH or tcp://HOST:PORT [default: DOCKER_HOST,
    /// CONTAINER_HOST, or the first of the usual sockets that answers]
    #[arg(long, env = "HOLDFAST_ENGINE", value_name = "ADDRESS")]
    pub engine: Option<String>,
    /// The container driver's image for sandboxes that name none
    #[arg(long, env = "HOLDFAST_IMAGE", value_name = "IMAGE")]
    pub image: Option<String>,
    /// The container driver's network for sandboxes that name none [default: the engine's bridge]
    #[arg(long, env = "HOLDFAST_NETWORK", value_name = "NAME")]
    pub network: Option<String>,
    /// The gateway's name, for certificates and logs [default: gateway]
    #[arg(long, env = "HOLDFAST_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// The installation's trust domain; fixed by the first start [default: holdfast.internal]
    #[arg(long, env = "HOLDFAST_TRUST_DOMAIN", value_name = "DOMAIN")]
    pub trust_domain: Option<String>,
    /// The supervisor's program. For the local driver any [default: this program's own]; for the container driver
    /// a static one [default: holdfast-supervisor beside this program]
    #[arg(long, env = "HOLDFAST_SUPERVISOR", value_name = "PATH")]
    pub supervisor: Option<PathBuf>,
    /// For the vm driver: where root file systems that callers name must lie; may be repeated
    #[arg(long, env = "HOLDFAST_ROOTFS_DIR", value_name = "DIR", value_delimiter = ':')]
    pub rootfs_dir: Vec<PathBuf>,
    /// For the vm driver: the root file system of sandboxes that name none
    #[arg(long, env = "HOLDFAST_ROOTFS", value_name = "DIR|ARCHIVE")]
    pub rootfs: Option<PathBuf>,
    /// For the vm driver: looked through first for holdfast-vmm, holdfast-supervisor, libkrunfw and gvproxy
    /// [default: $XDG_CACHE_HOME/holdfast/vm]
    #[arg(long, env = "HOLDFAST_VM_PARTS", value_name = "DIR")]
    pub vm_parts: Option<PathBuf>,
    /// Bearer tokens for the API: a file (mode 0600) of lines `NAME TOKEN`
    #[arg(long, env = "HOLDFAST_TOKENS_FILE", value_name = "FILE")]
    pub tokens_file: Option<PathBuf>,
    /// A TOML file with these settings
    #[arg(long, env = "HOLDFAST_GATEWAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Log lines as text or json [default: text]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line, for collectors.
    Json,
}

/// The file's keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileConfig {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    advertise: Vec<String>,
    http_listen: Option<SocketAddr>,
    driver: Option<String>,
    name: Option<String>,
    trust_domain: Option<String>,
    supervisor: Option<PathBuf>,
    vm: FileVm,
    tokens_file: Option<PathBuf>,
    admins: Option<Vec<String>>,
    log_format: Option<LogFormat>,
    congestion: Option<String>,
    sandbox_certificate_seconds: Option<u64>,
    boot_deadline_seconds: Option<u64>,
    orphan_grace_seconds: Option<u64>,
    tuning: FileTuning,
    container: FileContainer,
}

/// The container driver's keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileContainer {
    engine: Option<String>,
    image: Option<String>,
    network: Option<String>,
    mounts: Vec<String>,
    cgroup_parent: Option<String>,
    pull_silence_seconds: Option<u64>,
}

/// The vm driver's keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileVm {
    rootfs_dirs: Vec<PathBuf>,
    rootfs: Option<PathBuf>,
    parts_dir: Option<PathBuf>,
    boot_deadline_seconds: Option<u64>,
}

/// What the vm driver is told.
#[derive(Clone, Debug, Default)]
pub struct VmSettings {
    /// Where root file systems that callers name must lie.
    pub rootfs_dirs: Vec<PathBuf>,
    /// The root file system of sandboxes that name none.
    pub rootfs: Option<PathBuf>,
    /// Looked through first for what machines need.
    pub parts_dir: Option<PathBuf>,
    /// From a guest kernel's start to its supervisor's first word; absent: the driver's default.
    pub boot_deadline: Option<Duration>,
}

/// Times that supervisors are told, in milliseconds; 0 or absent: the default.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileTuning {
    heartbeat_ms: u64,
    poke_after_ms: u64,
    suspect_after_ms: u64,
    probe_every_ms: u64,
    redial_cap_idle_ms: u64,
    redial_cap_busy_ms: u64,
    max_execs: u32,
}

/// A gateway's settings, complete and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything the gateway keeps; absolute.
    pub data_dir: PathBuf,
    /// UDP and TCP.
    pub listen: SocketAddr,
    /// What supervisors dial; empty: the listen address (loopback where that is a wildcard).
    pub advertise: Vec<String>,
    /// Plain HTTP.
    pub http_listen: SocketAddr,
    /// Which driver.
    pub driver: String,
    /// The gateway's name.
    pub name: String,
    /// The installation's trust domain.
    pub trust_domain: String,
    /// How the local driver starts a supervisor: a program and its first arguments.
    pub supervisor_command: Vec<OsString>,
    /// The container driver's own.
    pub container: ContainerSettings,
    /// What the vm driver is told.
    pub vm: VmSettings,
    /// Bearer tokens.
    pub tokens_file: Option<PathBuf>,
    /// Names of the clients (of certificates or tokens) that may order faults.
    pub admins: Vec<String>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which congestion controller.
    pub congestion: Congestion,
    /// How long a sandbox's certificate is valid.
    pub sandbox_certificate: Duration,
    /// From a workload's creation to Ready.
    pub boot_deadline: Duration,
    /// Before a workload that the store does not know is removed.
    pub orphan_grace: Duration,
    /// Times that supervisors are told.
    pub tuning: Tuning,
    /// The local driver's workloads end with this process, however it ends: for a gateway that nothing comes after.
    /// No setting of the file's.
    pub lifeline: bool,
}

/// What the container driver is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSettings {
    /// The engine's address; `None`: as docker's and podman's own tools find it.
    pub engine: Option<String>,
    /// The static supervisor; `None`: the one beside this program.
    pub supervisor: Option<PathBuf>,
    /// The image of sandboxes that name none.
    pub image: Option<String>,
    /// The network of sandboxes that name none.
    pub network: Option<String>,
    /// Paths and volumes that sandboxes may mount.
    pub mounts: Vec<String>,
    /// The cgroup that containers are put under.
    pub cgroup_parent: Option<String>,
    /// How long a pull may be silent; `None`: the driver's default.
    pub pull_silence: Option<Duration>,
}

/// Settings that make no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not parse; the source names line and key.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("{key}: {message}")]
    Invalid {
        /// Which setting.
        key: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
}

impl Config {
    /// The defaults for one data directory: what tests and `holdfast run` start from.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>, listen: SocketAddr, supervisor_command: Vec<OsString>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen,
            advertise: Vec::new(),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            driver: "local".to_owned(),
            name: "gateway".to_owned(),
            trust_domain: "holdfast.internal".to_owned(),
            supervisor_command,
            container: ContainerSettings::default(),
            vm: VmSettings::default(),
            tokens_file: None,
            admins: vec!["admin".to_owned()],
            log_format: LogFormat::Text,
            congestion: Congestion::Auto,
            sandbox_certificate: SANDBOX_CERTIFICATE,
            boot_deadline: Duration::from_secs(60),
            orphan_grace: Duration::from_secs(60),
            tuning: Tuning::default(),
            lifeline: false,
        }
    }

    /// Flags over environment (clap has joined the two) over file over default. `own_supervisor` is how this
    /// program starts a supervisor of its own.
    pub fn resolve(args: &GatewayArgs, own_supervisor: Vec<OsString>) -> Result<Self, ConfigError> {
        let file = match &args.config {
            Some(path) => read(path)?,
            None => FileConfig::default(),
        };
        let data_dir = match args.data_dir.clone().or(file.data_dir) {
            Some(dir) => dir,
            None => default_data_dir()?,
        };
        let data_dir = std::path::absolute(&data_dir)
            .map_err(|source| ConfigError::Read { path: data_dir.clone(), source })?;
        let supervisor = args.supervisor.clone().or(file.supervisor);
        let supervisor_command = match &supervisor {
            Some(path) => vec![path.clone().into_os_string()],
            None => own_supervisor,
        };
        let mut config = Self::new(data_dir, SocketAddr::from(([127, 0, 0, 1], 7443)), supervisor_command);
        if let Some(listen) = args.listen.or(file.listen) {
            config.listen = listen;
        }
        if let Some(http) = args.http_listen.or(file.http_listen) {
            config.http_listen = http;
        }
        config.advertise = if args.advertise.is_empty() { file.advertise } else { args.advertise.clone() };
        config.vm = file.vm.resolve(args);
        config.tokens_file = args.tokens_file.clone().or(file.tokens_file);
        if let Some(admins) = file.admins {
            config.admins = admins;
        }
        config.log_format = args.log_format.or(file.log_format).unwrap_or_default();
        for (slot, value) in [
            (&mut config.driver, args.driver.clone().or(file.driver)),
            (&mut config.name, args.name.clone().or(file.name)),
            (&mut config.trust_domain, args.trust_domain.clone().or(file.trust_domain)),
        ] {
            if let Some(value) = value {
                *slot = value;
            }
        }
        config.container = ContainerSettings {
            engine: args.engine.clone().or(file.container.engine),
            supervisor,
            image: args.image.clone().or(file.container.image),
            network: args.network.clone().or(file.container.network),
            mounts: file.container.mounts,
            cgroup_parent: file.container.cgroup_parent,
            // None at all would be a pull that fails before it has begun.
            pull_silence: file
                .container
                .pull_silence_seconds
                .map(|seconds| Duration::from_secs(seconds.max(1))),
        };
        if let Some(congestion) = file.congestion {
            config.congestion =
                congestion.parse().map_err(|message| ConfigError::Invalid { key: "congestion", message })?;
        }
        for (slot, seconds) in [
            (&mut config.sandbox_certificate, file.sandbox_certificate_seconds),
            (&mut config.boot_deadline, file.boot_deadline_seconds),
            (&mut config.orphan_grace, file.orphan_grace_seconds),
        ] {
            if let Some(seconds) = seconds {
                *slot = Duration::from_secs(seconds);
            }
        }
        config.tuning = file.tuning.resolve();
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key, message: String| Err(ConfigError::Invalid { key, message });
        if self.sandbox_certificate < Duration::from_secs(1) {
            return invalid("sandbox_certificate_seconds", "at least 1".to_owned());
        }
        for address in &self.advertise {
            let port = address
                .rsplit_once(':')
                .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok()).flatten());
            if port.is_none_or(|port| port == 0) {
                return invalid("advertise", format!("{address:?} is not host:port"));
            }
        }
        if self.supervisor_command.is_empty() {
            return invalid("supervisor", "no supervisor to start: name its program".to_owned());
        }
        Ok(())
    }
}

impl FileVm {
    fn resolve(self, args: &GatewayArgs) -> VmSettings {
        VmSettings {
            rootfs_dirs: if args.rootfs_dir.is_empty() { self.rootfs_dirs } else { args.rootfs_dir.clone() },
            rootfs: args.rootfs.clone().or(self.rootfs),
            parts_dir: args.vm_parts.clone().or(self.parts_dir),
            boot_deadline: self.boot_deadline_seconds.map(Duration::from_secs),
        }
    }
}

impl FileTuning {
    fn resolve(self) -> Tuning {
        Tuning::from_settings(&holdfast_wire::control::Settings {
            heartbeat_ms: self.heartbeat_ms,
            poke_after_ms: self.poke_after_ms,
            suspect_after_ms: self.suspect_after_ms,
            probe_every_ms: self.probe_every_ms,
            redial_cap_idle_ms: self.redial_cap_idle_ms,
            redial_cap_busy_ms: self.redial_cap_busy_ms,
            max_execs: self.max_execs,
        })
    }
}

fn read(path: &Path) -> Result<FileConfig, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(failed(std::io::Error::other(format!("larger than {MAX_FILE} bytes"))));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    toml::from_str(&text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

fn default_data_dir() -> Result<PathBuf, ConfigError> {
    use etcetera::BaseStrategy;
    let strategy = etcetera::choose_base_strategy().map_err(|error| ConfigError::Invalid {
        key: "data_dir",
        message: format!("no home directory ({error}): name one with --data-dir"),
    })?;
    Ok(strategy.data_dir().join("holdfast"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: &GatewayArgs) -> Result<Config, ConfigError> {
        Config::resolve(args, vec!["/bin/supervisor".into()])
    }

    fn with_file(text: &str) -> (tempfile::NamedTempFile, GatewayArgs) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let args = GatewayArgs {
            config: Some(file.path().to_owned()),
            data_dir: Some("/data".into()),
            ..GatewayArgs::default()
        };
        (file, args)
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let (_file, mut args) =
            with_file("listen = \"127.0.0.1:9000\"\nname = \"west\"\n[tuning]\nheartbeat_ms = 500\n");
        let config = resolve(&args).unwrap();
        assert_eq!((config.listen.port(), config.name.as_str()), (9000, "west"));
        assert_eq!(config.tuning.heartbeat, Duration::from_millis(500));
        args.listen = Some("127.0.0.1:9001".parse().unwrap());
        assert_eq!(resolve(&args).unwrap().listen.port(), 9001);
    }

    #[test]
    fn admins_are_the_files_or_the_one_named_admin() {
        let (_file, args) = with_file("name = \"west\"\n");
        assert_eq!(resolve(&args).unwrap().admins, ["admin"]);
        let (_file, args) = with_file("admins = [\"ops\", \"ci\"]\n");
        assert_eq!(resolve(&args).unwrap().admins, ["ops", "ci"]);
        let (_file, args) = with_file("admins = []\n");
        assert!(resolve(&args).unwrap().admins.is_empty());
    }

    #[test]
    fn an_unknown_key_is_named() {
        let (_file, args) = with_file("lisen = \"127.0.0.1:9000\"\n");
        assert!(resolve(&args).unwrap_err().to_string().contains("lisen"));
        let (_file, args) = with_file("[container]\nengin = \"unix:///x\"\n");
        assert!(resolve(&args).unwrap_err().to_string().contains("engin"));
    }

    #[test]
    fn the_container_driver_has_a_section_of_its_own() {
        let text = "driver = \"container\"\n[container]\nengine = \"unix:///x\"\nimage = \"debian\"\nmounts = [\"/srv\"]\n";
        let (_file, mut args) = with_file(text);
        args.image = Some("busybox".to_owned());
        let container = resolve(&args).unwrap().container;
        assert_eq!(container.engine.as_deref(), Some("unix:///x"));
        assert_eq!(container.image.as_deref(), Some("busybox"));
        assert_eq!(container.mounts, ["/srv"]);
        assert_eq!(container.supervisor, None);
    }

    #[test]
    fn an_address_without_a_port_is_refused() {
        let args = GatewayArgs {
            advertise: vec!["gateway".into()],
            data_dir: Some("/d".into()),
            ..GatewayArgs::default()
        };
        assert_eq!(resolve(&args).unwrap_err().to_string(), "advertise: \"gateway\" is not host:port");
    }
}
