//! Files that are seen: a small root of its own, of what was asked for and nothing else.
//!
//! ```text
//!   own mounts ─▶ empty file system in memory ─▶ what is asked for, bound below it ─▶ it becomes / ─▶ the old / is let go
//! ```
//!
//! libkrun shares the image by opening what a guest asks for, and says itself that this does not confine a hostile
//! guest: so there is nothing else to be opened.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, chown, symlink},
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat},
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
        mount_remount, unmount,
    },
    process::{chdir, getegid, geteuid, pivot_root},
};

/// One thing that is seen.
#[derive(Clone, Debug)]
struct Seen {
    source: PathBuf,
    /// Below the new root, without a slash before it.
    target: PathBuf,
    writable: bool,
}

/// What a process sees.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// A directory to build it on: nobody else sees what is built there.
    place: PathBuf,
    seen: Vec<Seen>,
    links: Vec<(PathBuf, PathBuf)>,
    device: Option<PathBuf>,
}

impl View {
    /// Nothing but the process's own open files, which libkrun goes through.
    pub(crate) fn new(place: &Path) -> Self {
        let view = Self { place: place.to_owned(), seen: Vec::new(), links: Vec::new(), device: None };
        view.bind(Path::new("/proc/self/fd"), "/proc/self/fd", true)
    }

    /// A file or a directory, under another name.
    pub(crate) fn bind(mut self, source: &Path, target: &str, writable: bool) -> Self {
        let target = PathBuf::from(target.trim_start_matches('/'));
        self.seen.push(Seen { source: source.to_owned(), target, writable });
        self
    }

    /// A directory of the system, or a link to one, where it is. One that is not there is left out.
    pub(crate) fn system(mut self, path: &Path) -> Self {
        let target = path.strip_prefix("/").unwrap_or(path).to_owned();
        match (path.symlink_metadata(), fs::read_link(path)) {
            (_, Ok(link)) => self.links.push((link, target)),
            (Ok(there), _) if there.is_dir() => {
                self.seen.push(Seen { source: path.to_owned(), target, writable: false });
            }
            _ => {}
        }
        self
    }

    /// A device file, at its own path.
    pub(crate) fn device(mut self, path: &Path) -> Self {
        self.device = Some(path.to_owned());
        self
    }

    /// The groups that may use the device.
    pub(super) fn groups(&self) -> Vec<u32> {
        let device = self.device.as_ref().and_then(|path| fs::metadata(path).ok());
        // As it is now, after entering: made for its user, the group says nothing.
        device
            .filter(|device| device.mode() & 0o060 == 0o060)
            .map(|device| device.gid())
            .into_iter()
            .collect()
    }

    /// Sees this and nothing else from now on. True if `user`, or whoever this is, may use the device. After an error
    /// everything is as it was, but for a namespace that is this process's own.
    pub(super) fn enter(&self, user: Option<u32>) -> io::Result<bool> {
        own_mounts()?;
        // Sources are held before anything is mounted: the place may lie over them.
        let mut held = Vec::new();
        for seen in &self.seen {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&seen.source, flags, Mode::empty())
                .map_err(|errno| named(&seen.source, errno))?;
            let is_dir = seen.source.is_dir();
            held.push((seen, fd, is_dir));
        }
        let device =
            self.device.as_ref().map(|path| path.metadata().map(|device| (path, device))).transpose()?;
        let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
        mount("tmpfs", &self.place, "tmpfs", quiet, Some(c"mode=0755,size=256k,nr_inodes=256"))
            .map_err(|errno| named(&self.place, errno))?;
        let built = (|| {
            for (seen, fd, is_dir) in &held {
                use std::os::fd::AsRawFd;
                self.put(seen, &format!("/proc/self/fd/{}", fd.as_raw_fd()), *is_dir)?;
            }
            for (link, name) in &self.links {
                let path = self.place.join(name);
                path.parent().map_or(Ok(()), fs::create_dir_all)?;
                symlink(link, path)?;
            }
            let usable = match &device {
                Some((path, device)) => self.put_device(path, device, user)?,
                None => true,
            };
            drop(held);
            chdir(&self.place)?;
            pivot_root(".", ".").map_err(|errno| named(Path::new("/"), errno))?;
            Ok(usable)
        })();
        let usable = match built {
            Ok(usable) => usable,
            Err(error) => {
                unmount(&self.place, UnmountFlags::DETACH)?;
                return Err(error);
            }
        };
        // The old root lies over the new one.
        unmount(".", UnmountFlags::DETACH)?;
        chdir("/")?;
        let closed = quiet | MountFlags::RDONLY | MountFlags::BIND;
        if let Err(errno) = mount_remount("/", closed, "") {
            tracing::debug!(%errno, "the root of mount points stays writable");
        }
        Ok(usable)
    }

    fn put(&self, seen: &Seen, source: &str, is_dir: bool) -> io::Result<()> {
        let target = self.place.join(&seen.target);
        if is_dir {
            fs::create_dir_all(&target)?;
        } else {
            target.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::File::create(&target)?;
        }
        mount_bind_recursive(source, &target).map_err(|errno| named(&seen.source, errno))?;
        if !seen.writable {
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            // What a mount of the system locks may not be left out here; whoever shares an image says that it is for
            // reading, too, and a user of its own has no right to write there.
            if let Err(errno) = mount_remount(&target, flags, "") {
                tracing::debug!(path = %seen.source.display(), %errno, "stays writable");
            }
        }
        Ok(())
    }

    /// The device, made anew for the user, or the system's own.
    fn put_device(&self, path: &Path, device: &fs::Metadata, user: Option<u32>) -> io::Result<bool> {
        let target = self.place.join(path.strip_prefix("/").unwrap_or(path));
        target.parent().map_or(Ok(()), fs::create_dir_all)?;
        if let Some(user) = user
            && device.file_type().is_char_device()
            && mknodat(CWD, &target, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device.rdev())
                .is_ok()
        {
            chown(&target, Some(user), Some(user))?;
            return Ok(true);
        }
        fs::File::create(&target)?;
        mount_bind_recursive(path, &target).map_err(|errno| named(path, errno))?;
        Ok(user.is_none() || device.mode() & 0o006 == 0o006 || device.mode() & 0o060 == 0o060)
    }
}

/// Mounts that are this process's own: as root, else by a user namespace in which it is nobody else.
fn own_mounts() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        unshare(CloneFlags::CLONE_NEWNS)?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1", uid = uid.as_raw()))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1", gid = gid.as_raw()))?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

fn named(path: &Path, errno: rustix::io::Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
