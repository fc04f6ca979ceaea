//! Can machines run here? By trying, because a device file that is there may still not work.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use kvm_ioctls::Kvm;

use crate::ffi;

/// Says on stdout what was found, and on stderr what is missing. Exit code 0: machines can be made here.
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
    let _ = writeln!(io::stdout(), "machines can be made here");
    ExitCode::SUCCESS
}

/// Makes a virtual machine with one processor, and lets it go.
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
    let failed = |what: &str, error: kvm_ioctls::Error| {
        format!("/dev/kvm is there and cannot make {what}: {error}; it may be a nested one that is broken")
    };
    let machine = kvm.create_vm().map_err(|error| failed("a virtual machine", error))?;
    machine.create_vcpu(0).map_err(|error| failed("a processor", error))?;
    Ok(())
}
