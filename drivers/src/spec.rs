//! What the gateway asks a driver to make.

use std::{collections::BTreeMap, fmt};

use holdfast_wire::ids::{Generation, SandboxId};
use serde::{Deserialize, Serialize};

use crate::DriverError;

/// The longest name: that of a DNS label, because container and pod names are made of it.
pub const MAX_NAME_BYTES: usize = 63;
/// The most environment variables, and labels, of a workload. Far above real ones; a store row stays small.
pub const MAX_ENTRIES: usize = 256;
/// The largest environment, in bytes. Linux takes 128 KiB for one string; together with the supervisor's own
/// variables this stays below it.
pub const MAX_ENV_BYTES: usize = 64 * 1024;
/// The longest value of a label, in bytes. Docker and Kubernetes both take more.
pub const MAX_LABEL_BYTES: usize = 1024;
/// The largest PEM text, in bytes. A chain of three certificates has under 4 KiB.
pub const MAX_PEM_BYTES: usize = 64 * 1024;
/// The most mounts of a workload. More are a mistake, and each makes its start longer.
pub const MAX_MOUNTS: usize = 64;
/// The longest path of a mount, in bytes: Linux's own limit.
pub const MAX_MOUNT_BYTES: usize = 4095;
/// The largest main command, in bytes: it is kept and shown with its workload. Images' own have under 1 KiB.
pub const MAX_MAIN_BYTES: usize = 32 * 1024;
/// The longest name of a network, in bytes. Engines allow less.
pub const MAX_NETWORK_BYTES: usize = 255;
/// The most gateway addresses. Each is tried in turn, so more would only make a failing dial longer.
pub const MAX_ADDRESSES: usize = 16;

/// One workload: whose, which, of what, and how its supervisor reaches the gateway.
///
/// It can be stored: serialised, it carries no secret, because `bootstrap` is left out. One that was read back
/// must be given its bootstrap again before it is handed to a driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadSpec {
    /// Whose workload it is.
    pub sandbox: SandboxId,
    /// The sandbox's name, for people: container names, labels, logs. Lower case letters, digits and `-`.
    pub name: String,
    /// Which of the sandbox's workloads; starts at 1.
    pub generation: Generation,
    /// What to run in, where the driver has images. `None` asks for the driver's default.
    #[serde(default)]
    pub image: Option<String>,
    /// The root file system, where the driver takes one: a directory or an archive on the gateway's machine.
    #[serde(default)]
    pub rootfs: Option<String>,
    /// What it may reach beside its gateway, where the driver decides that: `none` or `internet`.
    #[serde(default)]
    pub egress: Option<String>,
    /// Where its files are, where the driver has a choice: `disk` or `ephemeral`.
    #[serde(default)]
    pub workspace: Option<String>,
    /// Limits.
    #[serde(default)]
    pub resources: Resources,
    /// Variables for the supervisor's commands.
    #[serde(default)]
    pub env: Env,
    /// The user that the workload runs as, where the driver can choose. `None` asks for the driver's default.
    #[serde(default)]
    pub user: Option<String>,
    /// The caller's own marks; drivers put them where their system has labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Files and volumes of the machine that are seen in the workload.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// The network that the workload is in, where the driver has several. `None` asks for the driver's default.
    #[serde(default)]
    pub network: Option<String>,
    /// The image's files cannot be changed; the workspace, and what is mounted, can.
    #[serde(default)]
    pub read_only_root: bool,
    /// A command is run in it by the gateway: where the driver knows the image's ([`Capabilities::entrypoints`]), with
    /// these arguments in the place of the image's own, if there are any.
    ///
    /// [`Capabilities::entrypoints`]: crate::Capabilities::entrypoints
    #[serde(default)]
    pub main: Option<Vec<String>>,
    /// How the supervisor reaches the gateway, and proves who it is.
    #[serde(skip)]
    pub bootstrap: Bootstrap,
}

/// Something of the machine that is seen in a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// An absolute path of the machine, or the name of a volume.
    pub source: String,
    /// An absolute path in the workload.
    pub target: String,
    /// It can be read and not changed.
    #[serde(default)]
    pub read_only: bool,
}

/// Limits of a workload; `None` is the driver's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Processor time, in thousandths of a processor.
    pub cpu_millis: Option<u32>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Space for the files that are written, in bytes.
    pub disk_bytes: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u32>,
}

/// Environment variables. Values may be secrets, so `Debug` shows the names alone.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Env(pub BTreeMap<String, String>);

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// How a supervisor reaches the gateway, and proves who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bootstrap {
    /// `host:port` pairs, tried in order.
    pub addresses: Vec<String>,
    /// The name that the gateway's certificate carries.
    pub server_name: String,
    /// The supervisor's certificate chain, PEM.
    pub cert_chain_pem: String,
    /// Its private key, PEM.
    pub key_pem: Secret,
    /// The CA that gateways are verified against, PEM.
    pub ca_pem: String,
}

/// Text that must not be seen: no `Display`, no `Serialize`, and `Debug` hides it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for writing it into a file of mode 0400 and for nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl WorkloadSpec {
    /// Checks what must hold for every driver; each adds what it cannot make.
    ///
    /// # Errors
    /// [`DriverError::InvalidSpec`], for the first field that is wrong.
    pub fn check(&self) -> Result<(), DriverError> {
        check_name(&self.name)?;
        if self.generation == Generation(0) {
            return Err(DriverError::invalid("generation", "is 0: generations start at 1"));
        }
        if self.image.as_deref().is_some_and(|image| image.is_empty() || image.contains(char::is_whitespace))
        {
            return Err(DriverError::invalid(
                "image",
                "is empty or has a space in it: leave it out, or name an image",
            ));
        }
        if self.user.as_deref().is_some_and(str::is_empty) {
            return Err(DriverError::invalid("user", "is empty: leave it out, or name a user"));
        }
        self.resources.check()?;
        self.env.check()?;
        self.check_labels()?;
        self.check_mounts()?;
        self.check_main()?;
        if self.network.as_deref().is_some_and(|name| {
            name.is_empty()
                || name.len() > MAX_NETWORK_BYTES
                || name.contains(|c: char| c.is_control() || c == ' ')
        }) {
            return Err(DriverError::invalid(
                "network",
                "is empty, too long, or no name: leave it out, or name a network",
            ));
        }
        self.bootstrap.check()
    }

    fn check_main(&self) -> Result<(), DriverError> {
        let args = self.main.as_deref().unwrap_or_default();
        let bytes: usize = args.iter().map(|arg| arg.len() + 1).sum();
        if args.len() > MAX_ENTRIES || bytes > MAX_MAIN_BYTES {
            let message = format!(
                "has {} arguments of {bytes} bytes, more than the {MAX_ENTRIES} of {MAX_MAIN_BYTES} allowed",
                args.len()
            );
            return Err(DriverError::invalid("main.args", message));
        }
        match args.iter().position(|arg| arg.contains('\0')) {
            Some(i) => Err(DriverError::invalid(format!("main.args[{i}]"), "has a NUL in it")),
            None => Ok(()),
        }
    }

    fn check_mounts(&self) -> Result<(), DriverError> {
        if self.mounts.len() > MAX_MOUNTS {
            let message = format!("has {} entries, more than the {MAX_MOUNTS} allowed", self.mounts.len());
            return Err(DriverError::invalid("mounts", message));
        }
        for (i, mount) in self.mounts.iter().enumerate() {
            let invalid = |part: &str, message: String| {
                Err(DriverError::invalid(format!("mounts[{i}].{part}"), message))
            };
            for (part, text) in [("source", &mount.source), ("target", &mount.target)] {
                // Engines split the text at these.
                if text.is_empty() || text.len() > MAX_MOUNT_BYTES || text.contains([',', ':', '\0', '\n']) {
                    let message =
                        format!("{:?} is empty, too long, or has a ',' or a ':' in it", short(text));
                    return invalid(part, message);
                }
            }
            let up = |path: &str| path.split('/').any(|part| part == "..");
            if !mount.target.starts_with('/')
                || mount.target.trim_matches('/').is_empty()
                || up(&mount.target)
            {
                let message = format!("{:?} is no absolute path below / without ..", short(&mount.target));
                return invalid("target", message);
            }
            if mount.source.contains('/') && (!mount.source.starts_with('/') || up(&mount.source)) {
                let message = format!(
                    "{:?} is neither an absolute path without .. nor the name of a volume",
                    short(&mount.source)
                );
                return invalid("source", message);
            }
            if self.mounts[..i].iter().any(|other| other.target == mount.target) {
                return invalid("target", format!("{:?} is mounted on twice", short(&mount.target)));
            }
        }
        Ok(())
    }

    /// The first field that only drivers with containers or machines can honour, by its path: for those without.
    #[must_use]
    pub fn first_of_an_image(&self) -> Option<&'static str> {
        [
            ("image", self.image.is_some()),
            ("mounts", !self.mounts.is_empty()),
            ("network", self.network.is_some()),
            ("read_only_root", self.read_only_root),
        ]
        .into_iter()
        .find_map(|(field, set)| set.then_some(field))
    }

    /// The first field that only a driver of whole machines can honour, if any is set.
    #[must_use]
    pub fn first_of_a_machine(&self) -> Option<&'static str> {
        [
            ("rootfs", self.rootfs.is_some()),
            ("egress", self.egress.is_some()),
            ("workspace", self.workspace.is_some()),
        ]
        .into_iter()
        .find_map(|(field, set)| set.then_some(field))
    }

    fn check_labels(&self) -> Result<(), DriverError> {
        if self.labels.len() > MAX_ENTRIES {
            let message = format!("has {} entries, more than the {MAX_ENTRIES} allowed", self.labels.len());
            return Err(DriverError::invalid("labels", message));
        }
        for (key, value) in &self.labels {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
            if key.is_empty() || key.len() > MAX_LABEL_BYTES || !key.chars().all(plain) {
                let message =
                    format!("{:?} is no label: use letters, digits, '.', '-', '_' and '/'", short(key));
                return Err(DriverError::invalid("labels", message));
            }
            if value.len() > MAX_LABEL_BYTES || value.contains('\0') {
                let message = format!("is longer than {MAX_LABEL_BYTES} bytes, or has a NUL in it");
                return Err(DriverError::invalid(format!("labels.{}", short(key)), message));
            }
        }
        Ok(())
    }
}

impl Resources {
    fn check(&self) -> Result<(), DriverError> {
        let zero = [
            ("resources.cpu_millis", self.cpu_millis == Some(0)),
            ("resources.memory_bytes", self.memory_bytes == Some(0)),
            ("resources.disk_bytes", self.disk_bytes == Some(0)),
            ("resources.processes", self.processes == Some(0)),
        ];
        match zero.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((field, _)) => Err(DriverError::invalid(field, "is 0: leave it out for no limit")),
            None => Ok(()),
        }
    }

    /// The first limit that is set, by its field's path: for drivers that cannot enforce any.
    #[must_use]
    pub fn first_set(&self) -> Option<&'static str> {
        let Self { cpu_millis, memory_bytes, disk_bytes, processes } = self;
        [
            ("resources.cpu_millis", cpu_millis.is_some()),
            ("resources.memory_bytes", memory_bytes.is_some()),
            ("resources.disk_bytes", disk_bytes.is_some()),
            ("resources.processes", processes.is_some()),
        ]
        .into_iter()
        .find_map(|(field, set)| set.then_some(field))
    }
}

impl Env {
    fn check(&self) -> Result<(), DriverError> {
        if self.0.len() > MAX_ENTRIES {
            let message = format!("has {} variables, more than the {MAX_ENTRIES} allowed", self.0.len());
            return Err(DriverError::invalid("env", message));
        }
        let bytes: usize = self.0.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if bytes > MAX_ENV_BYTES {
            let message = format!("has {bytes} bytes, more than the {MAX_ENV_BYTES} allowed");
            return Err(DriverError::invalid("env", message));
        }
        for (name, value) in &self.0 {
            let field = || format!("env.{}", short(name));
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(DriverError::invalid(
                    field(),
                    "is no variable name: it is empty, or has a '=' or a NUL in it",
                ));
            }
            if name.starts_with("HOLDFAST_") {
                return Err(DriverError::invalid(
                    field(),
                    "is reserved: names that start with HOLDFAST_ are Holdfast's",
                ));
            }
            if value.contains('\0') {
                return Err(DriverError::invalid(field(), "has a NUL in its value"));
            }
        }
        Ok(())
    }
}

impl Bootstrap {
    fn check(&self) -> Result<(), DriverError> {
        if self.addresses.is_empty() || self.addresses.len() > MAX_ADDRESSES {
            let message = format!("needs 1 to {MAX_ADDRESSES} host:port pairs, not {}", self.addresses.len());
            return Err(DriverError::invalid("bootstrap.addresses", message));
        }
        for address in &self.addresses {
            let port = address
                .rsplit_once(':')
                .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok()).flatten());
            if port.is_none_or(|port| port == 0) {
                let message = format!("{:?} is not host:port", short(address));
                return Err(DriverError::invalid("bootstrap.addresses", message));
            }
        }
        if self.server_name.is_empty() {
            return Err(DriverError::invalid(
                "bootstrap.server_name",
                "is empty: name the gateway's certificate",
            ));
        }
        let pems = [
            ("bootstrap.cert_chain_pem", self.cert_chain_pem.as_str()),
            ("bootstrap.key_pem", self.key_pem.expose()),
            ("bootstrap.ca_pem", self.ca_pem.as_str()),
        ];
        for (field, pem) in pems {
            if !pem.trim_start().starts_with("-----BEGIN ") || pem.len() > MAX_PEM_BYTES {
                let message = format!("is not PEM text of at most {MAX_PEM_BYTES} bytes");
                return Err(DriverError::invalid(field, message));
            }
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), DriverError> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if name.is_empty()
        || name.len() > MAX_NAME_BYTES
        || !plain
        || name.starts_with('-')
        || name.ends_with('-')
    {
        let message = format!(
            "{:?} is no name: use 1 to {MAX_NAME_BYTES} lower case letters, digits and '-', not at either end",
            short(name)
        );
        return Err(DriverError::invalid("name", message));
    }
    Ok(())
}

/// As much of a caller's text as an error message should repeat.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> WorkloadSpec {
        WorkloadSpec {
            sandbox: SandboxId::random(),
            name: "dev".into(),
            generation: Generation(1),
            image: None,
            rootfs: None,
            egress: None,
            workspace: None,
            resources: Resources::default(),
            env: Env::from_iter([("TOKEN", "hunter2")]),
            user: None,
            labels: BTreeMap::from([("team".to_owned(), "core".to_owned())]),
            mounts: Vec::new(),
            network: None,
            read_only_root: false,
            main: None,
            bootstrap: Bootstrap {
                addresses: vec!["127.0.0.1:7443".into()],
                server_name: "gateway.holdfast.internal".into(),
                cert_chain_pem: "-----BEGIN CERTIFICATE-----\n".into(),
                key_pem: Secret::new("-----BEGIN PRIVATE KEY-----\nhunter3\n"),
                ca_pem: "-----BEGIN CERTIFICATE-----\n".into(),
            },
        }
    }

    fn field_of(spec: &WorkloadSpec) -> String {
        match spec.check() {
            Err(DriverError::InvalidSpec { field, .. }) => field,
            other => panic!("expected an invalid spec, got {other:?}"),
        }
    }

    #[test]
    fn a_good_spec_passes() {
        sample().check().unwrap();
    }

    #[test]
    fn secrets_are_neither_shown_nor_stored() {
        let spec = sample();
        let shown = format!("{spec:?} {spec:#?}");
        assert!(!shown.contains("hunter2") && !shown.contains("hunter3"), "{shown}");
        let stored = serde_json::to_string(&spec).unwrap();
        assert!(!stored.contains("hunter3") && !stored.contains("PRIVATE"), "{stored}");
        let read: WorkloadSpec = serde_json::from_str(&stored).unwrap();
        assert_eq!(WorkloadSpec { bootstrap: spec.bootstrap.clone(), ..read.clone() }, spec);
        assert_eq!(field_of(&read), "bootstrap.addresses");
    }

    #[test]
    fn the_field_that_is_wrong_is_named() {
        type Spoil = fn(&mut WorkloadSpec);
        let mount = |source: &str, target: &str| Mount {
            source: source.into(),
            target: target.into(),
            read_only: false,
        };
        for (field, mount) in [
            ("mounts[0].source", mount("a/b", "/x")),
            ("mounts[0].source", mount("/a/../b", "/x")),
            ("mounts[0].source", mount("/a:b", "/x")),
            ("mounts[0].target", mount("/a", "x")),
            ("mounts[0].target", mount("/a", "/")),
            ("mounts[0].target", mount("/a", "/x/../..")),
        ] {
            assert_eq!(field_of(&WorkloadSpec { mounts: vec![mount], ..sample() }), field);
        }
        let twice = vec![mount("/a", "/x"), mount("cache", "/x")];
        assert_eq!(field_of(&WorkloadSpec { mounts: twice, ..sample() }), "mounts[1].target");
        let wrong: [(&str, Spoil); 15] = [
            ("main.args[1]", |spec| spec.main = Some(vec!["a".into(), "\0".into()])),
            ("main.args", |spec| spec.main = Some(vec!["x".repeat(MAX_MAIN_BYTES)])),
            ("network", |spec| spec.network = Some("two words".into())),
            ("name", |spec| spec.name = "../etc".into()),
            ("name", |spec| spec.name = "x".repeat(64)),
            ("generation", |spec| spec.generation = Generation(0)),
            ("image", |spec| spec.image = Some(String::new())),
            ("user", |spec| spec.user = Some(String::new())),
            ("resources.memory_bytes", |spec| spec.resources.memory_bytes = Some(0)),
            ("env.HOLDFAST_X", |spec| spec.env = Env::from_iter([("HOLDFAST_X", "1")])),
            ("env.A=B", |spec| spec.env = Env::from_iter([("A=B", "1")])),
            ("env", |spec| spec.env = Env::from_iter([("A", "x".repeat(MAX_ENV_BYTES))])),
            ("labels", |spec| spec.labels = BTreeMap::from([("a b".to_owned(), String::new())])),
            ("bootstrap.addresses", |spec| spec.bootstrap.addresses = vec!["gateway".into()]),
            ("bootstrap.key_pem", |spec| spec.bootstrap.key_pem = Secret::default()),
        ];
        for (field, spoil) in wrong {
            let mut spec = sample();
            spoil(&mut spec);
            assert_eq!(field_of(&spec), field);
        }
    }

    proptest! {
        #[test]
        fn a_name_that_passes_is_one_harmless_path_component(name in "\\PC{0,70}") {
            if check_name(&name).is_ok() {
                prop_assert!(!name.contains(['/', '.', '\0']) && !name.is_empty() && name.len() <= MAX_NAME_BYTES);
            }
        }
    }
}
