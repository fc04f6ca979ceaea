//! What a machine is made of, and where it is on this one: launcher, supervisor, guest kernel, network, a formatter.
//!
//! Looked for in the configured directory, in the private one that `drivers/vmm/install-parts` fills, and in the
//! system's. What is missing is named with the way to get it, before anything is made.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::DriverError;

/// The parts, by their paths.
#[derive(Clone, Debug)]
pub struct Parts {
    /// `holdfast-vmm`.
    pub launcher: PathBuf,
    /// `holdfast-supervisor`, linked statically.
    pub supervisor: PathBuf,
    /// The guest kernel, as a library.
    pub libkrunfw: PathBuf,
    /// The user-mode network.
    pub gvproxy: PathBuf,
    /// Makes the disks' file system.
    pub mkfs: PathBuf,
}

/// How a part is found.
struct Part {
    names: &'static [&'static str],
    system: &'static [&'static str],
    get: &'static str,
}

const LAUNCHER: Part = Part {
    names: &["holdfast-vmm"],
    system: &["/usr/libexec/holdfast", "/usr/local/libexec/holdfast", "/usr/local/bin", "/usr/bin"],
    get: "build it: cargo build --release -p holdfast-vmm",
};
const SUPERVISOR: Part = Part {
    names: &["holdfast-supervisor"],
    system: &["/usr/libexec/holdfast", "/usr/local/libexec/holdfast", "/usr/local/bin", "/usr/bin"],
    get: "build it statically: drivers/vmm/install-parts --supervisor",
};
const LIBKRUNFW: Part = Part {
    names: &["libkrunfw.so.5", "libkrunfw.5.dylib"],
    system: &[
        "/usr/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib",
        "/usr/local/lib64",
        "/usr/local/lib",
        "/opt/homebrew/lib",
        "/home/linuxbrew/.linuxbrew/lib",
    ],
    get: "Debian: drivers/vmm/install-parts; Fedora: dnf install libkrunfw; macOS: brew install libkrunfw",
};
const GVPROXY: Part = Part {
    names: &["gvproxy"],
    system: &[
        "/usr/bin",
        "/usr/local/bin",
        "/usr/libexec/podman",
        "/usr/lib/podman",
        "/opt/homebrew/bin",
        "/opt/homebrew/opt/podman/libexec/podman",
        "/home/linuxbrew/.linuxbrew/bin",
    ],
    get: "Debian: drivers/vmm/install-parts; Fedora: dnf install gvisor-tap-vsock; macOS: brew install podman",
};
const MKFS: Part = Part {
    names: &["mkfs.ext4"],
    system: &[
        "/usr/sbin",
        "/sbin",
        "/usr/local/sbin",
        "/opt/homebrew/opt/e2fsprogs/sbin",
        "/home/linuxbrew/.linuxbrew/sbin",
    ],
    get: "Debian and Fedora: package e2fsprogs; macOS: brew install e2fsprogs",
};

impl Parts {
    /// Finds all parts, and tries whether machines can be made here.
    ///
    /// # Errors
    /// The first that is missing or does not work.
    pub fn find(configured: Option<&Path>) -> Result<Self, DriverError> {
        let parts = Self {
            launcher: LAUNCHER.find(configured)?,
            supervisor: SUPERVISOR.find(configured)?,
            libkrunfw: LIBKRUNFW.find(configured)?,
            gvproxy: GVPROXY.find(configured)?,
            mkfs: MKFS.find(configured)?,
        };
        match needs_a_loader(&parts.supervisor) {
            Ok(false) => {}
            Ok(true) => {
                let message = format!(
                    "{} is linked dynamically, and a machine's image may have other libraries; {}",
                    parts.supervisor.display(),
                    SUPERVISOR.get
                );
                return Err(missing(message));
            }
            Err(error) => return Err(missing(format!("{}: {error}", parts.supervisor.display()))),
        }
        parts.try_machine()?;
        Ok(parts)
    }

    /// What a machine's processes give up on this machine, in a line for people. What they cannot is logged: once, here.
    pub(super) fn confinement(&self, user: u32) -> String {
        let tried = Command::new(&self.launcher)
            .args(["confine", &user.to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .output();
        let said = match tried {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => {
                tracing::warn!(%error, "trying how machines can be confined");
                String::new()
            }
        };
        let mut lines = said.lines();
        let holds = lines.next().unwrap_or("nothing that could be tried");
        let refused: Vec<&str> = lines.collect();
        if refused.is_empty() {
            return format!("its processes are confined by {holds}");
        }
        tracing::warn!(?refused, "machines are confined by less than they could be");
        format!("its processes are confined by {holds}; not by {}", refused.join("; "))
    }

    /// By trying: a device that is there may still make no machine, and a library may be another's.
    fn try_machine(&self) -> Result<(), DriverError> {
        let check = Command::new(&self.launcher)
            .arg("check")
            .arg(&self.libkrunfw)
            .env_clear()
            .stdin(Stdio::null())
            .output();
        match check {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                let said = if said.is_empty() { output.status.to_string() } else { said };
                Err(missing(said))
            }
            Err(error) => Err(missing(format!("{}: {error}", self.launcher.display()))),
        }
    }
}

impl Part {
    fn find(&self, configured: Option<&Path>) -> Result<PathBuf, DriverError> {
        let own = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
        let private = private_dir();
        let dirs = configured
            .map(Path::to_owned)
            .into_iter()
            .chain(private)
            .chain(own)
            .chain(self.system.iter().map(PathBuf::from));
        let mut looked = Vec::new();
        for dir in dirs {
            for name in self.names {
                let path = dir.join(name);
                if path.is_file() {
                    return path
                        .canonicalize()
                        .map_err(|error| missing(format!("{}: {error}", path.display())));
                }
            }
            looked.push(dir.display().to_string());
        }
        Err(missing(format!("there is no {} in {}; {}", self.names[0], looked.join(", "), self.get)))
    }
}

/// What `install-parts` fills.
fn private_dir() -> Option<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) if !cache.is_empty() => PathBuf::from(cache),
        _ => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    Some(cache.join("holdfast/vm"))
}

fn missing(message: String) -> DriverError {
    DriverError::unavailable("looking for what machines need", message)
}

/// Whether a program asks for a loader (PT_INTERP) and thereby for libraries of the system that it runs on.
fn needs_a_loader(program: &Path) -> io::Result<bool> {
    let not_elf = || io::Error::new(io::ErrorKind::InvalidData, "is no 64-bit ELF program");
    let mut file = File::open(program)?;
    let mut header = [0; 64];
    file.read_exact(&mut header).map_err(|_| not_elf())?;
    if header[..5] != *b"\x7fELF\x02" {
        return Err(not_elf());
    }
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (size, count) = (word(54), word(56));
    let mut table = [0; 8];
    table.copy_from_slice(&header[32..40]);
    file.seek(SeekFrom::Start(u64::from_le_bytes(table)))?;
    for _ in 0..count {
        let mut entry = vec![0; usize::from(size.max(4))];
        file.read_exact(&mut entry)?;
        if entry[..4] == 3_u32.to_le_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let nowhere = Part { names: &["holdfast-no-such-part"], system: &[], get: "ask somebody" };
        let error = nowhere.find(Some(Path::new("/nowhere"))).unwrap_err().to_string();
        assert!(error.contains("no holdfast-no-such-part in /nowhere"), "{error}");
        assert!(error.ends_with("ask somebody"), "{error}");
    }

    #[test]
    fn the_configured_directory_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("sh"), "").unwrap();
        let part = Part { names: &["sh"], system: &["/bin"], get: "" };
        assert_eq!(part.find(Some(dir.path())).unwrap(), dir.path().canonicalize().unwrap().join("sh"));
    }

    #[test]
    fn this_test_needs_a_loader_and_a_script_is_no_program() {
        assert!(needs_a_loader(&std::env::current_exe().unwrap()).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(needs_a_loader(&script).unwrap_err().to_string().contains("no 64-bit ELF"));
    }
}
