//! Directories and files of a workload, reached so that no symbolic link leads out of the root.
//!
//! Every directory is opened without following a link in its last part, and files are written beside their name
//! and renamed over it. Commands in a plain workload run as the gateway's own user and can change everything in
//! here: so nothing found here is trusted to be what was left here.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

/// A directory, opened.
#[derive(Debug)]
pub(crate) struct Dir {
    path: PathBuf,
    fd: OwnedFd,
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Dir {
    /// Opens a directory by its whole path, whose last part must not be a link.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = fs::openat(CWD, path, DIRECTORY, Mode::empty())?;
        Ok(Self { path: path.to_owned(), fd })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a directory in this one.
    pub(crate) fn dir(&self, name: &str) -> io::Result<Self> {
        let fd = fs::openat(&self.fd, name, DIRECTORY, Mode::empty())
            .map_err(|errno| self.explain(name, errno))?;
        Ok(Self { path: self.path.join(name), fd })
    }

    /// Opens a directory in this one, and makes it (mode 0700) where there is none.
    pub(crate) fn make_dir(&self, name: &str) -> io::Result<Self> {
        match fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => self.dir(name),
            Err(errno) => Err(self.explain(name, errno)),
        }
    }

    /// Whether there is anything of this name, and whether it is a directory. Links are not followed.
    pub(crate) fn kind(&self, name: &str) -> io::Result<Option<FileType>> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.explain(name, errno)),
        }
    }

    /// Reads a whole file of at most `limit` bytes.
    pub(crate) fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let file = self.open_file(name, OFlags::RDONLY, 0)?;
        file.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("has more than {limit} bytes")));
        }
        Ok(content)
    }

    /// Writes a file of this mode, whole or not at all, over whatever had the name.
    pub(crate) fn write(&self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        match fs::unlinkat(&self.fd, &*new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(self.explain(&new, errno)),
        }
        let mut file = self.open_file(&new, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode)?;
        file.write_all(content)?;
        // Or a power cut leaves an empty file under the right name.
        file.sync_all()?;
        fs::renameat(&self.fd, &*new, &self.fd, name).map_err(|errno| self.explain(name, errno))?;
        Ok(())
    }

    /// Opens a file in this directory. What is no plain file, such as a pipe put there to make us wait, is refused.
    pub(crate) fn open_file(&self, name: &str, flags: OFlags, mode: u32) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))
            .map_err(|errno| self.explain(name, errno))?;
        let file = File::from(fd);
        if !file.metadata()?.is_file() {
            let message = format!("{} is not a plain file", self.path.join(name).display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(file)
    }

    /// Moves what has this name, whatever it is, into `to`. A link is moved, not followed.
    pub(crate) fn move_into(&self, name: &str, to: &Self, new_name: &str) -> io::Result<()> {
        fs::renameat(&self.fd, name, &to.fd, new_name).map_err(|errno| self.explain(name, errno))
    }

    /// Removes an empty directory.
    pub(crate) fn remove_dir(&self, name: &str) -> io::Result<()> {
        match fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.explain(name, errno)),
        }
    }

    /// The names in this directory.
    pub(crate) fn names(&self) -> io::Result<Vec<CString>> {
        Ok(entries(&self.fd)?.into_iter().map(|(name, _)| name).collect())
    }

    fn explain(&self, name: &str, errno: Errno) -> io::Error {
        let path = self.path.join(name);
        let path = path.display();
        let kind = io::Error::from(errno).kind();
        match errno {
            // What opening a link with O_DIRECTORY and O_NOFOLLOW gives.
            Errno::LOOP | Errno::NOTDIR => io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("{path} is a link, or no directory: not followed"),
            ),
            Errno::BUSY => io::Error::new(kind, format!("{path} is a mount point: unmount it first")),
            // Without the path, so that it stays known what it is.
            Errno::MFILE | Errno::NFILE => errno.into(),
            _ => io::Error::new(kind, format!("{path}: {errno}")),
        }
    }
}

/// Empties a directory that is being thrown away, however deep and wide it is.
///
/// Sub-directories are moved up into `trash` before they are emptied, so that depth costs nothing: no recursion,
/// and two descriptors in all. As a mount point cannot be moved, nothing of another file system is ever reached.
/// After an error or a crash, emptying again carries on.
pub(crate) fn empty(trash: &Dir, stop: &CancellationToken) -> io::Result<()> {
    let mut doomed: Vec<CString> = trash.names()?;
    let mut next =
        1 + doomed.iter().filter_map(|name| name.to_str().ok()?.parse::<u64>().ok()).max().unwrap_or(0);
    while let Some(name) = doomed.pop() {
        if stop.is_cancelled() {
            return Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "the driver closes; the rest goes next time",
            ));
        }
        let path = trash.path.join(name.to_string_lossy().as_ref());
        let failed = |errno: Errno| {
            io::Error::new(io::Error::from(errno).kind(), format!("{}: {errno}", path.display()))
        };
        let directory = match fs::openat(&trash.fd, &*name, DIRECTORY, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => continue,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                fs::unlinkat(&trash.fd, &*name, AtFlags::empty()).map_err(failed)?;
                continue;
            }
            // A directory without our permission to read it; it is ours to change.
            Err(Errno::ACCESS) => {
                fs::chmodat(&trash.fd, &*name, Mode::RWXU, AtFlags::empty()).map_err(failed)?;
                fs::openat(&trash.fd, &*name, DIRECTORY, Mode::empty()).map_err(failed)?
            }
            Err(errno) => return Err(failed(errno)),
        };
        // Writable for us, or its entries cannot be removed. As root this is never needed, and may fail.
        let _ = fs::fchmod(&directory, Mode::RWXU);
        for (entry, kind) in entries(&directory)? {
            if kind == FileType::Directory {
                let up = CString::new(next.to_string()).map_err(io::Error::other)?;
                next += 1;
                let moved = match fs::renameat(&directory, &*entry, &trash.fd, &*up) {
                    // Moving a directory writes to it, because its ".." changes. Only then: what is a mount point
                    // was refused before that, and keeps its mode.
                    Err(Errno::ACCESS) => fs::chmodat(&directory, &*entry, Mode::RWXU, AtFlags::empty())
                        .and_then(|()| fs::renameat(&directory, &*entry, &trash.fd, &*up)),
                    moved => moved,
                };
                moved.map_err(|errno| busy(&path, &entry, errno))?;
                doomed.push(up);
            } else {
                fs::unlinkat(&directory, &*entry, AtFlags::empty())
                    .map_err(|errno| busy(&path, &entry, errno))?;
            }
        }
        drop(directory);
        fs::unlinkat(&trash.fd, &*name, AtFlags::REMOVEDIR).map_err(failed)?;
    }
    Ok(())
}

fn busy(dir: &Path, entry: &CStr, errno: Errno) -> io::Error {
    let path = dir.join(entry.to_string_lossy().as_ref());
    let why = if errno == Errno::BUSY {
        "is a mount point: unmount it first".to_owned()
    } else {
        errno.to_string()
    };
    io::Error::new(io::Error::from(errno).kind(), format!("{}: {why}", path.display()))
}

fn entries(fd: &OwnedFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut entries = Vec::new();
    for entry in fs::Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not say.
            FileType::Unknown => {
                FileType::from_raw_mode(fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
            }
            kind => kind,
        };
        entries.push((name.to_owned(), kind));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn temp() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        (temp, dir)
    }

    fn empty_all(dir: &Dir) {
        empty(dir, &CancellationToken::new()).unwrap();
        assert!(dir.names().unwrap().is_empty());
    }

    #[test]
    fn what_links_point_to_stays() {
        let (outside, _) = temp();
        std::fs::write(outside.path().join("file"), "precious").unwrap();
        let (temp, dir) = temp();
        symlink(outside.path(), temp.path().join("top")).unwrap();
        std::fs::create_dir(temp.path().join("sub")).unwrap();
        symlink(outside.path(), temp.path().join("sub/link")).unwrap();
        symlink(outside.path().join("file"), temp.path().join("sub/file")).unwrap();
        empty_all(&dir);
        assert_eq!(std::fs::read_to_string(outside.path().join("file")).unwrap(), "precious");
    }

    #[test]
    fn depth_width_and_missing_permission_do_not_matter() {
        let (temp, dir) = temp();
        let mut here = Dir::open(temp.path()).unwrap();
        for _ in 0..1000 {
            // By descriptor: the whole path is far longer than a path may be.
            here = here.make_dir("a-directory-with-a-name").unwrap();
        }
        here.write("file", 0o400, b"content").unwrap();
        for n in 0..300 {
            std::fs::create_dir_all(temp.path().join(format!("wide/{n}/b"))).unwrap();
        }
        for name in ["wide/7", "wide"] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o000);
            std::fs::set_permissions(temp.path().join(name), mode).unwrap();
        }
        empty_all(&dir);
    }

    #[test]
    fn an_interrupted_removal_carries_on() {
        let (temp, dir) = temp();
        std::fs::create_dir_all(temp.path().join("1/a/b")).unwrap();
        std::fs::create_dir_all(temp.path().join("7/c")).unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        assert_eq!(empty(&dir, &stop).unwrap_err().kind(), io::ErrorKind::Interrupted);
        empty_all(&dir);
    }

    #[test]
    fn a_directory_is_not_opened_through_a_link() {
        let (temp, dir) = temp();
        symlink("/etc", temp.path().join("workspace")).unwrap();
        let error = dir.make_dir("workspace").unwrap_err().to_string();
        assert!(error.contains("workspace is a link"), "{error}");
        symlink("/etc/hostname", temp.path().join("file")).unwrap();
        dir.read("file", 100).unwrap_err();
        dir.write("file", 0o600, b"ours").unwrap();
        assert_eq!(dir.read("file", 100).unwrap(), b"ours");
        assert_eq!(dir.read("file", 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_pipe_in_place_of_a_file_does_not_make_us_wait() {
        let (_temp, dir) = temp();
        fs::mknodat(&dir.fd, "console.log", FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(dir.open_file("console.log", OFlags::RDONLY, 0).is_err());
    }
}
