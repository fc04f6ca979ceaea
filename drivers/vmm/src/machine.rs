//! The machine process: takes its launch, shuts itself in, and becomes the virtual machine.
//!
//! ```text
//!   stdin: PID of the holder, launch … then never another byte ─▶ its end is the holder's end, and ours
//!   stderr: libkrun's complaints     console.pipe: the guest's console
//!   NET: frames     CONTROL: the port to the supervisor inside
//! ```

use std::{
    ffi::CStr,
    io::{self, Read},
    os::fd::RawFd,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use holdfast_drivers::vm::launch::{BytePath, Launch, LaunchError, MAX_BYTES};
use rustix::thread::CapabilitySet;

use crate::{
    confine::{FILES_OF_A_MACHINE, Needs, Step, View, confine},
    ffi::{self, Context, Refused},
    parent,
};

/// gvproxy leases its one address to this one.
const MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
/// What the guest knows the port by.
const PORT: &CStr = c"holdfast";
/// A named pipe in the workload's directory: libkrun takes the console's end by a path only.
pub(crate) const CONSOLE: &str = "console.pipe";
/// What makes machines.
const KVM: &str = "/dev/kvm";
/// The holder's end, seen through the pipe.
const ORPHANED: i32 = 97;

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
enum MachineError {
    #[error("reading the launch: {0}")]
    Pipe(#[from] io::Error),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("{0} is no descriptor")]
    Descriptor(String),
    #[error("{0}")]
    Kvm(String),
    #[error("loading {library}: {message}")]
    Kernel { library: String, message: String },
    #[error(transparent)]
    Refused(#[from] Refused),
}

pub(crate) fn run(net: &str, control: &str) -> ExitCode {
    match start(net, control) {
        Ok(never) => never,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn start(net: &str, control: &str) -> Result<ExitCode, MachineError> {
    let (launch, holder) = take_launch()?;
    let descriptor =
        |word: &str| word.parse::<RawFd>().map_err(|_| MachineError::Descriptor(word.to_owned()));
    let (net, control) = (descriptor(net)?, descriptor(control)?);
    let library = launch.libkrunfw.to_path();
    ffi::load_kernel(&library)
        .map_err(|message| MachineError::Kernel { library: library.display().to_string(), message })?;
    let supervisor = ffi::map(&launch.supervisor.to_path())?;
    let inside = shut_in(&launch, &holder)?;
    watch_holder()?;
    crate::check::kvm().map_err(MachineError::Kvm)?;
    let config: &'static [u8] = Vec::leak(launch.machine_config);

    let context = Context::new()?;
    context.size(launch.cpus, launch.memory_mib)?;
    context.root(&inside.rootfs)?;
    context.virtual_file(c"init.krun", supervisor, 0o755, false)?;
    context.virtual_dir(c".holdfast", 0o700)?;
    context.virtual_file(c".holdfast-machine.toml", config, 0o400, true)?;
    if let Some(disk) = &inside.disk {
        context.disk(disk)?;
    }
    context.network(net, MAC)?;
    context.consoles(&inside.console, PORT, control)?;
    context.arguments(&[c"machine"])?;
    Err(context.start().into())
}

/// The paths that libkrun is told.
struct Inside {
    rootfs: PathBuf,
    disk: Option<PathBuf>,
    console: PathBuf,
}

/// Gives up all that libkrun does not need: the guest may take it over.
fn shut_in(launch: &Launch, holder: &str) -> io::Result<Inside> {
    let dir = launch.dir.to_path();
    let outside = Inside {
        rootfs: launch.rootfs.to_path(),
        disk: launch.disk.as_ref().map(BytePath::to_path),
        console: dir.join(CONSOLE),
    };
    let mut view = View::new(&dir)
        .bind(&outside.rootfs, "/image", false)
        .bind(&outside.console, "/console", true)
        .device(Path::new(KVM));
    if let Some(disk) = &outside.disk {
        view = view.bind(disk, "/disk", true);
    }
    let confined = confine(Needs {
        view: Some(view),
        user: Some(launch.user),
        // A guest's root may read what is root's alone in its image.
        capabilities: CapabilitySet::DAC_READ_SEARCH,
        files: Some(FILES_OF_A_MACHINE),
        calls: true,
    });
    confined.tell();
    // A change of the user takes it back.
    parent::die_with(holder)?;
    if !confined.has(Step::View) {
        return Ok(outside);
    }
    Ok(Inside {
        rootfs: "/image".into(),
        disk: outside.disk.map(|_| "/disk".into()),
        console: "/console".into(),
    })
}

/// The launch, and who holds this machine: the holder's PID and a length, both 4 bytes, then the record.
fn take_launch() -> Result<(Launch, String), MachineError> {
    let number = || {
        let mut bytes = [0; 4];
        io::stdin().read_exact(&mut bytes).map(|()| u32::from_be_bytes(bytes))
    };
    let (holder, length) = (number()?, number()? as usize);
    let holder = holder.to_string();
    parent::die_with(&holder)?;
    if length > MAX_BYTES {
        return Err(LaunchError::TooLarge.into());
    }
    let mut bytes = vec![0; length];
    io::stdin().read_exact(&mut bytes)?;
    Ok((Launch::decode(&bytes)?, holder))
}

/// Ends this process when the pipe does. The parent-death signal does the same on Linux; the pipe needs no Linux.
fn watch_holder() -> io::Result<()> {
    let watch = || {
        let mut byte = [0];
        // Nothing is ever written: whatever ends the wait is the end.
        let _ = io::stdin().read(&mut byte);
        std::process::exit(ORPHANED);
    };
    thread::Builder::new().name("holder".to_owned()).spawn(watch).map(drop)
}
