//! Being the first process of a microVM: everything that another init would have done before.
//!
//! ```text
//!   kernel ─▶ pseudo file systems ─▶ port, configuration (read once) ─▶ host name, network
//!          ─▶ root: read-only lower + upper layer ─▶ identity into memory ─▶ become the supervisor (exec)
//!   supervisor … asked to stop ─▶ everything ended ─▶ disk synced, `stopped` ─▶ reset
//! ```
//!
//! The root that the kernel mounted is the image, shared by many machines and read-only. What this one changes goes
//! onto its own disk or into its memory, by an overlay. The supervisor starts anew there with a clean environment, because the kernel's
//! has the words of its command line in it.
//!
//! The end of a virtual machine is a reset: this kind never switches itself off. What was achieved is said through the
//! port before, because a panic looks the same from outside.

mod mounts;
mod netlink;
mod port;

pub use port::{Port, PortError};

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use holdfast_wire::machine::{FILE, MachineConfig};
use rustix::{
    fs::sync,
    system::{RebootCommand, reboot, sethostname},
};

/// In memory, so that a key never reaches the disk.
const RUN_DIR: &str = "/run/holdfast";
/// Where programs are in an image that does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A machine that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A call of the system.
    #[error("{attempted}: {source}")]
    System {
        /// What was attempted.
        attempted: String,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration.
    #[error(transparent)]
    Config(#[from] holdfast_wire::bootstrap::ConfigError),
    /// It cannot be written for the supervisor.
    #[error("writing the supervisor's configuration: {0}")]
    Write(#[from] toml::ser::Error),
    /// The port.
    #[error(transparent)]
    Port(#[from] PortError),
}

pub(crate) fn failed<E: Into<io::Error>>(attempted: impl Into<String>) -> impl FnOnce(E) -> MachineError {
    move |source| MachineError::System { attempted: attempted.into(), source: source.into() }
}

/// Sets the machine up and becomes its supervisor. Returns only after a failure that could not be told otherwise: the
/// machine is reset when one can be.
pub fn become_supervisor() -> MachineError {
    let mut port = match mounts::pseudo_file_systems().and_then(|()| Ok(Port::find()?)) {
        Ok(port) => port,
        Err(error) => {
            tracing::error!("{error}");
            reset();
            return error;
        }
    };
    let error = match set_up(&mut port) {
        Ok(become_what) => failed("starting the supervisor")(become_program(become_what, &port)),
        Err(error) => error,
    };
    give_up(&mut port, &error);
    error
}

/// Nothing can be done here: that is told, on the console for people and through the port for the driver.
pub fn give_up(port: &mut Port, error: &dyn std::error::Error) {
    tracing::error!("{error}");
    port.say_now(&format!("failed {error}"));
    reset();
}

/// Everything is on the disk, and the machine ends.
pub fn stop(port: &mut Port) {
    sync();
    port.say_now("stopped");
    reset();
}

fn reset() {
    sync();
    if let Err(errno) = reboot(RebootCommand::Restart) {
        tracing::error!(%errno, "the machine cannot be reset");
    }
}

/// What to become.
struct Become {
    config: PathBuf,
    env: Vec<(OsString, OsString)>,
}

fn set_up(port: &mut Port) -> Result<Become, MachineError> {
    let text = fs::read_to_string(FILE).map_err(failed(format!("reading {FILE}")))?;
    let machine = MachineConfig::parse(&text)?;

    sethostname(machine.hostname.as_bytes()).map_err(failed("setting the host name"))?;
    netlink::configure(&machine.network)?;
    mounts::root(&machine.upper)?;
    let supervisor = &machine.supervisor;
    for dir in [&supervisor.workspace, &supervisor.state_dir] {
        fs::create_dir_all(dir).map_err(failed(format!("making {}", dir.display())))?;
    }
    mounts::private_dir(Path::new(RUN_DIR))?;
    let identity = &supervisor.identity;
    for (path, text) in [
        (&identity.cert, &machine.cert_pem),
        (&identity.key, &machine.key_pem),
        (&identity.ca, &machine.ca_pem),
    ] {
        if let Some(dir) = path.parent() {
            mounts::private_dir(dir)?;
        }
        write(path, 0o400, text)?;
    }
    let config = Path::new(RUN_DIR).join("supervisor.toml");
    write(&config, 0o600, &supervisor.to_toml()?)?;
    name_hosts(&machine)?;

    let mut env: Vec<(OsString, OsString)> =
        vec![("PATH".into(), PATH.into()), ("HOME".into(), "/root".into())];
    env.extend(machine.env.iter().map(|(name, value)| (name.into(), value.into())));
    port.say_now("init");
    Ok(Become { config, env })
}

/// Names for the machine itself, where the image has none; and whom to ask for others, where that is allowed.
fn name_hosts(machine: &MachineConfig) -> Result<(), MachineError> {
    let etc = Path::new("/etc");
    fs::create_dir_all(etc).map_err(failed("making /etc"))?;
    let hosts = etc.join("hosts");
    if !hosts.exists() {
        let text = format!("127.0.0.1 localhost\n{} {}\n", machine.network.address, machine.hostname);
        write(&hosts, 0o644, &text)?;
    }
    if let Some(resolver) = machine.network.resolver {
        write(&etc.join("resolv.conf"), 0o644, &format!("nameserver {resolver}\n"))?;
    }
    Ok(())
}

fn become_program(what: Become, port: &Port) -> io::Error {
    let stdin = match port.to_stdin() {
        Ok(stdin) => stdin,
        Err(error) => return error,
    };
    Command::new("/proc/self/exe")
        .arg("--config")
        .arg(what.config)
        .arg("--machine")
        .stdin(stdin)
        .env_clear()
        .envs(what.env)
        .current_dir("/")
        .exec()
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), MachineError> {
    let named = || format!("writing {}", path.display());
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(named())(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed(named()))?;
    file.write_all(text.as_bytes()).map_err(failed(named()))
}
