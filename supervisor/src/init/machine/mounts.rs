//! File systems: those that the kernel makes up, and the root.

use std::{
    ffi::{CStr, CString},
    fs,
    os::unix::fs::{DirBuilderExt, symlink},
    path::Path,
};

use holdfast_wire::machine::{FILE, MOUNTS, Upper};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount, mount_move},
    process::{chdir, chroot},
};

use super::{MachineError, failed};

/// The upper layer's file system.
const DISK: &str = "/.holdfast/disk";
/// In memory an empty file takes a KiB that its size does not count: so many bytes for each, as on a disk.
const BYTES_A_FILE: u64 = 16 * 1024;
const ROOT: &str = "/.holdfast/root";

/// Makes `/proc`, `/sys` and `/dev` usable before there is a writable root: the launcher sees to it that there are
/// directories of these names.
pub(super) fn pseudo_file_systems() -> Result<(), MachineError> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    attach("proc", "/proc", "proc", quiet, None)?;
    attach("sysfs", "/sys", "sysfs", quiet, None)?;
    attach("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None)
}

/// The final root: the image below, the upper layer above.
pub(super) fn root(upper: &Upper) -> Result<(), MachineError> {
    attach("tmpfs", MOUNTS, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0700,size=1m"))?;
    for dir in [DISK, ROOT] {
        fs::create_dir(dir).map_err(failed(format!("making {dir}")))?;
    }
    match upper {
        Upper::Disk(disk) => {
            attach(&disk.display().to_string(), DISK, "ext4", MountFlags::NOATIME, None)?;
        }
        Upper::Memory(bytes) => {
            let bounds = format!("mode=0755,size={bytes},nr_inodes={}", bytes / BYTES_A_FILE);
            let bounds =
                CString::new(bounds).map_err(std::io::Error::other).map_err(failed("naming the bounds"))?;
            attach("upper", DISK, "tmpfs", MountFlags::NOATIME, Some(&bounds))?;
        }
    }
    for dir in ["upper", "work"] {
        let path = Path::new(DISK).join(dir);
        fs::create_dir_all(&path).map_err(failed(format!("making {}", path.display())))?;
    }
    let layers = format!("lowerdir=/,upperdir={DISK}/upper,workdir={DISK}/work");
    let layers = CString::new(layers).map_err(std::io::Error::other).map_err(failed("naming the layers"))?;
    attach("root", ROOT, "overlay", MountFlags::empty(), Some(&layers))?;

    let inside = |name: &str| format!("{ROOT}/{name}");
    for name in ["proc", "sys", "dev", "run", "tmp"] {
        fs::create_dir_all(inside(name)).map_err(failed(format!("making /{name}")))?;
    }
    // The image's launcher files are no business of commands. Only in this machine's layer: the image is not changed.
    for name in ["init.krun", FILE.trim_start_matches('/')] {
        let _ = fs::remove_file(inside(name));
    }
    let _ = fs::remove_dir(inside(MOUNTS.trim_start_matches('/')));
    for name in ["proc", "sys", "dev"] {
        mount_move(format!("/{name}"), inside(name)).map_err(failed(format!("moving /{name}")))?;
    }
    chdir(ROOT).map_err(failed("entering the root"))?;
    mount_move(ROOT, "/").map_err(failed("moving the root"))?;
    chroot(".").map_err(failed("changing the root"))?;
    chdir("/").map_err(failed("entering /"))?;

    let private = MountFlags::NOSUID | MountFlags::NODEV;
    attach("tmpfs", "/run", "tmpfs", private, Some(c"mode=0755"))?;
    attach("tmpfs", "/tmp", "tmpfs", private, Some(c"mode=1777"))?;
    for (dir, kind, data) in
        [("/dev/pts", "devpts", c"gid=5,mode=620,ptmxmode=666"), ("/dev/shm", "tmpfs", c"mode=1777")]
    {
        fs::create_dir_all(dir).map_err(failed(format!("making {dir}")))?;
        attach(kind, dir, kind, MountFlags::NOSUID, Some(data))?;
    }
    for (link, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = symlink(format!("/proc/self/{target}"), format!("/dev/{link}"));
    }
    // Not every guest kernel has it, and nothing but limits of execs is missed.
    if let Err(error) = attach("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::NOSUID, None) {
        tracing::debug!(%error, "no cgroups");
    }
    Ok(())
}

/// A directory for root alone.
pub(super) fn private_dir(path: &Path) -> Result<(), MachineError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed(format!("making {}", path.display())))
}

fn attach(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: Option<&CStr>,
) -> Result<(), MachineError> {
    match mount(source, target, kind, flags, data) {
        Ok(()) => Ok(()),
        // The kernel mounts /dev by itself where it can.
        Err(Errno::BUSY) => Ok(()),
        Err(errno) => Err(failed(format!("mounting {kind} ({source}) at {target}"))(errno)),
    }
}
