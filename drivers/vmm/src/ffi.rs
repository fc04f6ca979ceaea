//! libkrun, and all that is unsafe of it: a context is filled by C calls, and then becomes the process. And a machine's
//! memory, for the trial.
//!
//! The strings and descriptors that libkrun is handed here live until the process ends, as it wants it: a machine is
//! this process's only purpose.

use std::{
    ffi::{CStr, CString, c_char},
    fs::File,
    io,
    os::fd::RawFd,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// libkrun's own tag for the root file system.
const ROOT: &CStr = c"/dev/root";
/// Files are mapped into the guest's memory through a window of this size: libkrun's own default.
const ROOT_WINDOW: u64 = 1 << 29;
/// GUEST_CSUM and GUEST_TSO4 of virtio-net. Nothing is ever offloaded to the machine; but a Linux that was offered this
/// has receive buffers for frames above 1518 bytes, and there is no other way with libkrun to have them.
const TAKES_LARGE_FRAMES: u32 = 1 << 1 | 1 << 7;
/// libkrun reads argument arrays of this length.
const MAX_ARGS: usize = 4096;

/// A call that libkrun refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("libkrun: {call}: {source}")]
    Call { call: &'static str, source: io::Error },
    #[error("{what}: libkrun takes only UTF-8 without a NUL")]
    Text { what: String },
    #[error("mapping {what}: {source}")]
    Map { what: String, source: io::Error },
}

/// Loads the guest kernel's library from where it is, so that libkrun, which asks for it by name, finds it loaded.
pub(crate) fn load_kernel(library: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the library's only content is a kernel image and functions that give its address; it has no initialisers.
    let loaded = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) };
    // For ever: libkrun uses it until the process ends.
    loaded.map(std::mem::forget).map_err(|error| error.to_string())
}

/// A machine that is being described.
#[derive(Debug)]
pub(crate) struct Context(u32);

impl Context {
    /// An empty one.
    pub(crate) fn new() -> Result<Self, Refused> {
        let id = krun::krun_create_ctx();
        check("krun_create_ctx", id)?;
        Ok(Self(id.cast_unsigned()))
    }

    /// Processors and memory.
    pub(crate) fn size(&self, cpus: u8, memory_mib: u32) -> Result<(), Refused> {
        check("krun_set_vm_config", krun::krun_set_vm_config(self.0, cpus, memory_mib))
    }

    /// The root file system: a directory of the host, for reading.
    pub(crate) fn root(&self, directory: &Path) -> Result<(), Refused> {
        let directory = text(directory)?;
        // SAFETY: both strings end with NUL and are copied by the call.
        let code = unsafe {
            krun::krun_add_virtiofs4(self.0, ROOT.as_ptr(), directory.as_ptr(), ROOT_WINDOW, true, 0)
        };
        check("krun_add_virtiofs4", code)
    }

    /// A directory that only the machine sees.
    pub(crate) fn virtual_dir(&self, path: &CStr, mode: u32) -> Result<(), Refused> {
        // SAFETY: both strings end with NUL and are copied by the call.
        let code = unsafe { krun::krun_fs_add_overlay_dir(self.0, ROOT.as_ptr(), path.as_ptr(), mode) };
        check("krun_fs_add_overlay_dir", code)
    }

    /// A file that only the machine sees; `once`: it can be read once.
    pub(crate) fn virtual_file(
        &self,
        path: &CStr,
        content: &'static [u8],
        mode: u32,
        once: bool,
    ) -> Result<(), Refused> {
        // SAFETY: the strings end with NUL and are copied by the call; the content is static, as libkrun asks.
        let code = unsafe {
            krun::krun_fs_add_overlay_file(
                self.0,
                ROOT.as_ptr(),
                path.as_ptr(),
                content.as_ptr(),
                content.len(),
                mode,
                once,
            )
        };
        check("krun_fs_add_overlay_file", code)
    }

    /// A disk: the machine's first is `/dev/vda`.
    pub(crate) fn disk(&self, image: &Path) -> Result<(), Refused> {
        let image = text(image)?;
        // SAFETY: both strings end with NUL and are copied by the call.
        let code = unsafe { krun::krun_add_disk(self.0, c"upper".as_ptr(), image.as_ptr(), false) };
        check("krun_add_disk", code)
    }

    /// A network card whose frames go through `socket`.
    pub(crate) fn network(&self, socket: RawFd, mac: [u8; 6]) -> Result<(), Refused> {
        // None for what it sends: each frame is one packet that the filter can judge.
        // SAFETY: there is no path; the address is read by the call; the socket was inherited for this, and nobody
        // else in this process uses it.
        let code = unsafe {
            krun::krun_add_net_unixstream(self.0, ptr::null(), socket, mac.as_ptr(), TAKES_LARGE_FRAMES, 0)
        };
        check("krun_add_net_unixstream", code)
    }

    /// The console, into `output`, and beside it a port of this name, whose both ends are `control`. No vsock: nothing
    /// else leads out of the machine.
    pub(crate) fn consoles(&self, output: &Path, port: &CStr, control: RawFd) -> Result<(), Refused> {
        check("krun_disable_implicit_vsock", krun::krun_disable_implicit_vsock(self.0))?;
        let output = text(output)?;
        // SAFETY: the string ends with NUL and is copied by the call.
        let code = unsafe { krun::krun_set_console_output(self.0, output.as_ptr()) };
        check("krun_set_console_output", code)?;
        // SAFETY: the call takes a number only.
        let console = unsafe { krun::krun_add_virtio_console_multiport(self.0) };
        check("krun_add_virtio_console_multiport", console)?;
        // SAFETY: the name ends with NUL and is copied; the descriptor was inherited for this, and is duplicated.
        let code = unsafe {
            krun::krun_add_console_port_inout(
                self.0,
                console.cast_unsigned(),
                port.as_ptr(),
                control,
                control,
            )
        };
        check("krun_add_console_port_inout", code)
    }

    /// The words that the first process is started with. They go on the kernel's command line: no secrets, no text of
    /// users.
    pub(crate) fn arguments(&self, words: &[&'static CStr]) -> Result<(), Refused> {
        let mut argv: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
        // As long as libkrun takes it to be, and with nothing behind the words.
        argv.resize(MAX_ARGS, ptr::null());
        let envp = vec![ptr::null::<c_char>(); MAX_ARGS];
        // SAFETY: the path and the words end with NUL, both arrays have MAX_ARGS entries; all is copied by the call.
        let code =
            unsafe { krun::krun_set_exec(self.0, c"/init.krun".as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        check("krun_set_exec", code)
    }

    /// Becomes the machine. Returns only if it could not be started.
    pub(crate) fn start(self) -> Refused {
        let code = krun::krun_start_enter(self.0);
        match check("krun_start_enter", code) {
            Ok(()) => Refused::Call { call: "krun_start_enter", source: io::Error::other("it returned") },
            Err(refused) => refused,
        }
    }
}

/// A page of a machine's memory.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [u8; 4096]);

impl Default for Page {
    fn default() -> Self {
        Self([0; 4096])
    }
}

/// Makes these pages a machine's memory, from address 0 on.
pub(crate) fn give_memory(machine: &VmFd, pages: &'static mut [Page]) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: size_of_val(pages) as u64,
        userspace_addr: pages.as_mut_ptr() as u64,
    };
    // SAFETY: the pages are aligned as KVM wants it, never freed, and nobody else's: this was the only reference to them.
    unsafe { machine.set_user_memory_region(region) }
}

/// A file's content, mapped for as long as the process lives: machines share the memory of one supervisor.
pub(crate) fn map(path: &Path) -> Result<&'static [u8], Refused> {
    let failed = |source: io::Error| Refused::Map { what: path.display().to_string(), source };
    let file = File::open(path).map_err(failed)?;
    let length =
        usize::try_from(file.metadata().map_err(failed)?.len()).map_err(io::Error::other).map_err(failed)?;
    if length == 0 {
        return Err(failed(io::Error::other("it is empty")));
    }
    // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
    let start = unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, &file, 0) };
    let start = start.map_err(|errno| failed(errno.into()))?;
    // SAFETY: the mapping is `length` bytes long, readable, and never unmapped. A supervisor's file is replaced by
    // renaming another over it, as package managers do, and not written to while machines run from it.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) })
}

fn text(path: &Path) -> Result<CString, Refused> {
    let refused = || Refused::Text { what: path.display().to_string() };
    if path.to_str().is_none() {
        return Err(refused());
    }
    CString::new(path.as_os_str().as_bytes()).map_err(|_| refused())
}

fn check(call: &'static str, code: i32) -> Result<(), Refused> {
    if code < 0 { Err(Refused::Call { call, source: io::Error::from_raw_os_error(-code) }) } else { Ok(()) }
}
