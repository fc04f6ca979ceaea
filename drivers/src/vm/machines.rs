//! A machine as the keepers see it: which specs can be one, and how one is laid out.
//!
//! ```text
//!   <root>/<sandbox id>/
//!     workload.json               the record
//!     disk.ext4                   what the sandbox changed of its root; outlives a generation (none if it is ephemeral)
//!     machine.json                how far the machine came, and why it ended (see `note`)
//!     console.log gvproxy.log launcher.log
//!     net.sock console.pipe       between filter and gvproxy, from the guest's console, while the machine runs
//! ```
//!
//! The identity is in no file here: it goes through a pipe into the machine's memory.

use std::{
    fs, io,
    net::{IpAddr, SocketAddrV4},
    path::{Path, PathBuf},
};

use holdfast_wire::{
    bootstrap::{GatewayAddress, IdentityFiles, SupervisorConfig},
    machine::{MachineConfig, MachineNetwork, Upper},
};

use super::{
    Parts, VmConfig, disk,
    filter::{GUEST, HOST, MTU, ROUTER},
    launch::{self, BytePath, Egress, Launch as Record},
    note::{self, Note},
    rootfs,
};
use crate::{
    BootStage, Capabilities, DriverError, Isolation, Observed, Resources, WorkloadSpec, WorkloadState,
    local::{
        files::Dir,
        kind::Kind,
        spawn::{Launch, Stdin},
    },
};

/// Of a machine that says nothing: a shell, a compiler and the supervisor have room.
const DEFAULT_MEMORY_MIB: u32 = 512;
/// Kernel and supervisor take 80 MiB; with less they do not start.
const LEAST_MEMORY_MIB: u32 = 128;
/// The guest kernel is built for so many.
const MOST_CPUS: u8 = 16;
/// What a boot goes through before its supervisor dials.
const STAGES: [BootStage; 4] = [BootStage::Spec, BootStage::Network, BootStage::Kernel, BootStage::Init];
/// Of the router's network.
const PREFIX: u8 = 24;

/// Machines, on this machine.
#[derive(Debug)]
pub(super) struct Machines {
    config: VmConfig,
    parts: Parts,
    gateway: SocketAddrV4,
    /// How machines' processes are confined here.
    confinement: String,
}

impl Machines {
    pub(super) fn new(config: VmConfig) -> Result<Self, DriverError> {
        let gateway = seen_from_inside(&config)?;
        let mut config = config;
        for dir in &mut config.rootfs_dirs {
            *dir = dir.canonicalize().map_err(|error| {
                DriverError::invalid("rootfs_dirs", format!("{}: {error}", dir.display()))
            })?;
        }
        let parts = Parts::find(config.parts_dir.as_deref())?;
        let confinement = parts.confinement(launch::FIRST_USER);
        Ok(Self { config, parts, gateway, confinement })
    }

    fn rootfs(&self, spec: &WorkloadSpec) -> Result<PathBuf, DriverError> {
        let invalid = |message: String| DriverError::invalid("rootfs", message);
        let Some(asked) = &spec.rootfs else {
            return self.config.rootfs.clone().ok_or_else(|| {
                invalid("is empty: name a directory, a tarball or an OCI archive (--rootfs)".to_owned())
            });
        };
        let path = Path::new(asked);
        if !path.is_absolute() {
            return Err(invalid(format!("{asked} is not an absolute path on the gateway's machine")));
        }
        let found = path.canonicalize().map_err(|error| invalid(format!("{asked}: {error}")))?;
        if !self.config.rootfs_dirs.iter().any(|dir| found.starts_with(dir)) {
            let dirs: Vec<String> =
                self.config.rootfs_dirs.iter().map(|dir| dir.display().to_string()).collect();
            let dirs = if dirs.is_empty() { "none is configured".to_owned() } else { dirs.join(", ") };
            return Err(invalid(format!(
                "{asked} is not in a directory that the gateway gives root file systems from ({dirs}): see its \
                 --rootfs-dir"
            )));
        }
        rootfs::check(&found).map_err(|error| invalid(format!("{asked}: {error}")))?;
        Ok(found)
    }

    fn record(&self, spec: &WorkloadSpec, dir: &Path, rootfs: &Path) -> Result<Record, DriverError> {
        let size = Size::of(&spec.resources)?;
        let egress = egress(spec)?;
        let upper = upper(spec, size)?;
        let disk = matches!(upper, Upper::Disk(_)).then(|| BytePath::from(dir.join(disk::FILE).as_path()));
        let machine = self.machine_config(spec, egress, upper);
        let text = machine
            .to_toml()
            .map_err(|error| DriverError::internal("writing the machine's configuration", error))?;
        Ok(Record {
            dir: BytePath::from(dir),
            cpus: size.cpus,
            memory_mib: size.memory_mib,
            rootfs: BytePath::from(rootfs),
            disk,
            user: launch::user_of(spec.sandbox),
            supervisor: BytePath::from(self.parts.supervisor.as_path()),
            machine_config: text.into_bytes(),
            libkrunfw: BytePath::from(self.parts.libkrunfw.as_path()),
            gvproxy: BytePath::from(self.parts.gvproxy.as_path()),
            gateway: self.gateway.into(),
            egress,
            log_bytes: self.config.console_bytes,
            boot_seconds: u32::try_from(self.config.boot_deadline.as_secs()).unwrap_or(u32::MAX),
        })
    }

    fn machine_config(&self, spec: &WorkloadSpec, egress: Egress, upper: Upper) -> MachineConfig {
        let bootstrap = &spec.bootstrap;
        let identity = Path::new("/run/holdfast/identity");
        MachineConfig {
            hostname: spec.name.clone(),
            cert_pem: bootstrap.cert_chain_pem.clone(),
            key_pem: bootstrap.key_pem.expose().to_owned(),
            ca_pem: bootstrap.ca_pem.clone(),
            upper,
            network: MachineNetwork {
                address: GUEST,
                prefix: PREFIX,
                router: ROUTER,
                mtu: MTU,
                resolver: (egress == Egress::Internet).then_some(ROUTER),
            },
            env: spec.env.0.clone(),
            supervisor: SupervisorConfig {
                sandbox_id: spec.sandbox,
                workload_generation: spec.generation,
                state_dir: "/var/lib/holdfast".into(),
                workspace: "/workspace".into(),
                init: true,
                mount_proc: false,
                default_user: None,
                gateway: GatewayAddress {
                    // Whatever the gateway is called outside: there is one way to it.
                    addresses: vec![self.gateway.to_string()],
                    server_name: bootstrap.server_name.clone(),
                },
                identity: IdentityFiles {
                    cert: identity.join("cert.pem"),
                    key: identity.join("key.pem"),
                    ca: identity.join("ca.pem"),
                },
                spool: self.config.spool,
                log: self.config.log.clone(),
            },
        }
    }
}

impl Kind for Machines {
    fn name(&self) -> &'static str {
        "vm"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            pause: true,
            stop_start: true,
            adoption: true,
            logs: true,
            boot: STAGES.to_vec(),
            images: false,
            entrypoints: false,
            resources: true,
            isolation: Isolation::VirtualMachine,
            isolation_note: format!(
                "each sandbox is a virtual machine with a kernel, files and a network of its own; beyond its gateway it \
                 reaches nothing, unless it was made with egress; {}",
                self.confinement
            ),
        }
    }

    fn namespaces(&self) -> bool {
        // A holder is a plain process: what isolates is the machine.
        false
    }

    fn check(&self, spec: &WorkloadSpec) -> Result<(), DriverError> {
        spec.check()?;
        if let Some(field) = spec.first_of_an_image() {
            let message = "the vm driver pulls no images, and its machines have a root, a disk and a network of their \
                           own: name a root file system (rootfs)";
            return Err(DriverError::invalid(field, message));
        }
        if spec.user.is_some() {
            let message = "the vm driver's supervisor is root in its machine: leave it out, and name a user with each exec";
            return Err(DriverError::invalid("user", message));
        }
        upper(spec, Size::of(&spec.resources)?)?;
        egress(spec)?;
        self.rootfs(spec).map(drop)
    }

    fn prepare(&self, spec: &WorkloadSpec, dir: &Dir, has_workspace: bool) -> io::Result<()> {
        if is_ephemeral(spec).unwrap_or_default() {
            return Ok(());
        }
        let disk = dir.path().join(disk::FILE);
        if has_workspace && !disk.try_exists()? {
            let message = format!(
                "the disk is gone: there is no {}; put it back, then start the sandbox",
                disk.display()
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        let bytes = spec.resources.disk_bytes.unwrap_or(disk::DEFAULT_BYTES);
        disk::make(&self.parts.mkfs, dir.path(), bytes)
    }

    fn lay_out(&self, spec: &WorkloadSpec, dir: &Dir) -> Result<Launch, DriverError> {
        let failed = |error: io::Error| DriverError::io(format!("laying out {}", spec.sandbox), error);
        let asked = self.rootfs(spec)?;
        let rootfs = rootfs::unpacked(&asked, &self.config.store)
            .map_err(|error| DriverError::invalid("rootfs", format!("{}: {error}", asked.display())))?;
        match fs::remove_file(dir.path().join(note::FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            // What became of the machine before is not said of this one.
            _ => {}
        }
        let record = self.record(spec, dir.path(), &rootfs)?;
        let stdin = record.encode().map_err(|error| DriverError::internal("encoding the launch", error))?;
        let launcher = self.parts.launcher.clone().into_os_string();
        let log = fs::OpenOptions::new().append(true).create(true).open(dir.path().join("launcher.log"));
        Ok(Launch {
            // The directory for people who look at the list of processes: all it needs comes by the pipe.
            command: vec![launcher, "hold".into(), dir.path().as_os_str().to_owned()],
            env: Vec::new(),
            console: log.map_err(failed)?,
            stdin: Stdin::Text(stdin),
        })
    }

    fn describe(&self, dir: &Path, level: &mut Observed) {
        if matches!(level.state, WorkloadState::Creating | WorkloadState::Failed | WorkloadState::Gone) {
            return;
        }
        // The holder's word, from its first stage on: that it was started says nothing yet.
        let Note { boot, end } = Note::read(dir).unwrap_or_default();
        level.boot = boot;
        if let (WorkloadState::Exited(_), Some(end)) = (level.state, end) {
            level.reason = end.reason;
            level.message = end.message;
        }
    }

    fn is_booting(&self, level: &Observed) -> bool {
        level.state == WorkloadState::Running && !level.boot.is_past(BootStage::Init)
    }
}

/// What a machine is given of this one.
#[derive(Clone, Copy, Debug)]
struct Size {
    cpus: u8,
    memory_mib: u32,
}

impl Size {
    fn of(asked: &Resources) -> Result<Self, DriverError> {
        let invalid = |field: &str, message: String| Err(DriverError::invalid(field, message));
        let cpus = match asked.cpu_millis {
            None => 1,
            Some(millis) if millis % 1000 == 0 && (1000..=u32::from(MOST_CPUS) * 1000).contains(&millis) => {
                u8::try_from(millis / 1000).unwrap_or(MOST_CPUS)
            }
            Some(millis) => {
                let message = format!("is {millis}: a machine has 1 to {MOST_CPUS} whole processors");
                return invalid("resources.cpu_millis", message);
            }
        };
        let memory_mib = match asked.memory_bytes {
            None => DEFAULT_MEMORY_MIB,
            Some(bytes) => match u32::try_from(bytes >> 20) {
                Ok(mib) if mib >= LEAST_MEMORY_MIB => mib,
                Ok(mib) => {
                    let message = format!("is {mib} MiB: a machine needs {LEAST_MEMORY_MIB} MiB at least");
                    return invalid("resources.memory_bytes", message);
                }
                Err(_) => {
                    return invalid("resources.memory_bytes", "is more than any machine has".to_owned());
                }
            },
        };
        if let Some(bytes) = asked.disk_bytes
            && bytes < disk::LEAST_BYTES
        {
            let message = format!("is {bytes}: a disk has {} bytes at least", disk::LEAST_BYTES);
            return invalid("resources.disk_bytes", message);
        }
        if asked.processes.is_some() {
            let message =
                "the vm driver does not count processes: leave it out, and give the machine memory instead";
            return invalid("resources.processes", message.to_owned());
        }
        Ok(Self { cpus, memory_mib })
    }
}

/// Whether its files go with the machine.
fn is_ephemeral(spec: &WorkloadSpec) -> Result<bool, DriverError> {
    match spec.workspace.as_deref() {
        None | Some("disk") => Ok(false),
        Some("ephemeral") => Ok(true),
        Some(other) => {
            Err(DriverError::invalid("workspace", format!("{other:?} is none of disk, ephemeral")))
        }
    }
}

/// The upper layer, with its bound.
fn upper(spec: &WorkloadSpec, size: Size) -> Result<Upper, DriverError> {
    if !is_ephemeral(spec)? {
        return Ok(Upper::Disk("/dev/vda".into()));
    }
    let memory = u64::from(size.memory_mib) << 20;
    match spec.resources.disk_bytes {
        Some(bytes) if bytes > memory => {
            let message =
                format!("is {bytes}: files are in the machine's memory, which has {memory} bytes (--memory)");
            Err(DriverError::invalid("resources.disk_bytes", message))
        }
        // As much as Linux gives to files in memory.
        asked => Ok(Upper::Memory(asked.unwrap_or(memory / 2))),
    }
}

fn egress(spec: &WorkloadSpec) -> Result<Egress, DriverError> {
    spec.egress
        .as_deref()
        .unwrap_or_default()
        .parse()
        .map_err(|message: String| DriverError::invalid("egress", message))
}

/// Where a machine finds the gateway: gvproxy's name for the host's loopback, or the gateway's own address.
fn seen_from_inside(config: &VmConfig) -> Result<SocketAddrV4, DriverError> {
    let port = config.gateway.port();
    match config.gateway.ip() {
        IpAddr::V4(ip) if ip.is_loopback() || ip.is_unspecified() => Ok(SocketAddrV4::new(HOST, port)),
        IpAddr::V6(ip) if ip.is_unspecified() => Ok(SocketAddrV4::new(HOST, port)),
        IpAddr::V4(ip) => Ok(SocketAddrV4::new(ip, port)),
        IpAddr::V6(ip) => Err(DriverError::invalid(
            "gateway",
            format!(
                "listens on {ip}, and machines have IPv4 only: listen on 0.0.0.0, [::] or an IPv4 address"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_have_whole_processors_and_enough_memory() {
        let size = |cpu_millis, memory_bytes| {
            Size::of(&Resources { cpu_millis, memory_bytes, ..Resources::default() })
        };
        let default = size(None, None).unwrap();
        assert_eq!((default.cpus, default.memory_mib), (1, 512));
        let asked = size(Some(4000), Some(2 << 30)).unwrap();
        assert_eq!((asked.cpus, asked.memory_mib), (4, 2048));
        for (cpus, memory, field) in [
            (Some(500), None, "cpu_millis"),
            (Some(17_000), None, "cpu_millis"),
            (None, Some(64 << 20), "memory_bytes"),
            (None, Some(u64::MAX), "memory_bytes"),
        ] {
            let error = size(cpus, memory).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn files_in_memory_are_bounded_by_it() {
        let size = Size { cpus: 1, memory_mib: 256 };
        let of = |workspace: &str, disk_bytes| {
            let resources = Resources { disk_bytes, ..Resources::default() };
            let sample = crate::conformance::sample_spec(holdfast_wire::ids::SandboxId::random());
            upper(&WorkloadSpec { workspace: Some(workspace.to_owned()), resources, ..sample }, size)
        };
        assert_eq!(of("disk", None).unwrap(), Upper::Disk("/dev/vda".into()));
        assert_eq!(of("ephemeral", None).unwrap(), Upper::Memory(128 << 20));
        assert_eq!(of("ephemeral", Some(200 << 20)).unwrap(), Upper::Memory(200 << 20));
        assert!(of("ephemeral", Some(1 << 30)).unwrap_err().to_string().contains("in the machine's memory"));
        assert!(of("tape", None).unwrap_err().to_string().contains("none of disk, ephemeral"));
    }

    #[test]
    fn a_gateway_on_loopback_is_the_routers_host() {
        let seen = |address: &str| {
            seen_from_inside(&VmConfig::new("/r", address.parse().unwrap()))
                .map(|address| address.to_string())
        };
        for address in ["127.0.0.1:7443", "0.0.0.0:7443", "[::]:7443"] {
            assert_eq!(seen(address).unwrap(), "192.168.127.254:7443");
        }
        assert_eq!(seen("10.1.2.3:7443").unwrap(), "10.1.2.3:7443");
        assert!(seen("[2001:db8::1]:7443").unwrap_err().to_string().contains("IPv4 only"));
    }
}
