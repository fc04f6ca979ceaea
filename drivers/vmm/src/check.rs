//! Can machines run here? By trying: a device file that is there may still make no machine, or run none.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use kvm_ioctls::Kvm;

use crate::{ffi, trial};

/// Says on stdout what was found, and on stderr what is missing. Exit code 0: machines run here.
pub(crate) fn run(library: Option<&Path>) -> ExitCode {
    if let Err(message) = kvm() {
        let _ = writeln!(io::stderr(), "{message}");
        return ExitCode::FAILURE;
    }
    if let Some(library) = library
        && let Err(message) = ffi::load_kernel(library)
    {
        let _ = writeln!(io::stderr(), "{}: {message}", library.display());
        return ExitCode::FAILURE;
    }
    let _ = writeln!(io::stdout(), "machines run here");
    ExitCode::SUCCESS
}

/// Makes a virtual machine with one processor, and has it run.
pub(crate) fn kvm() -> Result<(), String> {
    let kvm = Kvm::new().map_err(|error| match io::Error::from(error).kind() {
        io::ErrorKind::NotFound => "there is no /dev/kvm: this machine has no virtualisation, or it is switched off \
            in the firmware, or the kernel's module is not loaded (modprobe kvm_intel, or kvm_amd); in a virtual \
            machine, nested virtualisation must be switched on outside"
            .to_owned(),
        io::ErrorKind::PermissionDenied => "/dev/kvm may not be opened by this user: join the group kvm, and log in \
            again"
            .to_owned(),
        _ => format!("opening /dev/kvm: {error}"),
    })?;
    trial::run(kvm).map_err(|error| {
        format!(
            "/dev/kvm is there, and {error}. Machines need a KVM with hardware under it: load kvm_intel or kvm_amd; in a \
             virtual machine, have nested virtualisation switched on outside (module parameter nested=1, or an instance \
             type that offers it), or use a machine of metal; until then there are the drivers local and container"
        )
    })
}
