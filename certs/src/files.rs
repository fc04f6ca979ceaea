//! Files with secrets in them: written whole or not at all, never open to others, read with a bound.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::error::Error;

/// A certificate or key in PEM form has one to three kilobytes; eight anchors stay well below this.
const MAX_FILE_BYTES: usize = 64 * 1024;
/// Marks a file that is still being written, so that what a crash left behind can be recognised.
const UNFINISHED: &str = ".unfinished";

/// Who besides its owner may look at a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exposure {
    /// Anybody may read it: a certificate.
    Public,
    /// Nobody else may read or change it: the authority's key.
    OwnerOnly,
    /// Its group may read it, nobody else may. Kubernetes mounts a Secret for a user that is not root as
    /// 0440 with the pod's group, and there is no way to ask it for less.
    OwnerAndGroup,
}

impl Exposure {
    fn forbidden_bits(self) -> u32 {
        match self {
            Self::Public => 0o000,
            Self::OwnerOnly => 0o077,
            Self::OwnerAndGroup => 0o037,
        }
    }
}

/// Reads a whole PEM file, refusing one that is too large or too open. `None` if there is none.
pub(crate) fn read(path: &Path, exposure: Exposure) -> Result<Option<Zeroizing<String>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    // Asked of the open file, so that it cannot be exchanged between the check and the reading.
    let metadata = file.metadata().map_err(Error::io("inspect", path))?;
    let mode = metadata.mode() & 0o7777;
    if mode & exposure.forbidden_bits() != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode, wanted: 0o600 });
    }
    // Room for everything from the start: a buffer that grows would leave copies of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES + 1));
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(Error::TooLarge { what: path.display().to_string(), limit: MAX_FILE_BYTES });
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::Pem {
        origin: path.display().to_string(),
        wanted: "a certificate or key",
        reason: "it is not text".to_owned(),
    })?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}

/// Reads a file that has to be there.
pub(crate) fn read_required(path: &Path, exposure: Exposure) -> Result<Zeroizing<String>, Error> {
    let found = read(path, exposure)?;
    found.ok_or_else(|| Error::io("open", path)(io::Error::from(io::ErrorKind::NotFound)))
}

/// Writes `contents` to `path` so that a reader, or a crash, finds the old file or the new one, whole,
/// and never with another mode than `mode`.
pub(crate) fn write_atomically(path: &Path, contents: &str, mode: u32) -> Result<(), Error> {
    let directory = parent(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}{UNFINISHED}", Uuid::new_v4().simple()));
    let written = write_new(&temporary, contents, mode)
        .and_then(|()| std::fs::rename(&temporary, path).map_err(Error::io("rename into place", path)));
    if let Err(error) = written {
        // The first error is the one to report; a leftover is removed by the next writer.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    sync_directory(directory)
}

fn write_new(path: &Path, contents: &str, mode: u32) -> Result<(), Error> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(Error::io("create", path))?;
    // The umask took bits away from the mode at creation, and may have taken the owner's own.
    file.set_permissions(Permissions::from_mode(mode)).map_err(Error::io("set the mode of", path))?;
    file.write_all(contents.as_bytes()).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("write to disk", path))
}

/// Moves a file into place, for good.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(Error::io("rename into place", to))?;
    sync_directory(parent(to))
}

/// A rename is on disk only when its directory is.
fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("write to disk", directory))
}

/// The directory that a file is in, also for a bare file name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a directory that only its owner may enter, with what is missing above it. One that is there
/// already may be readable to others, but they must not be able to exchange the files in it.
pub(crate) fn private_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::io("create directory", path))?;
    let mode = std::fs::metadata(path).map_err(Error::io("inspect", path))?.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode, wanted: 0o700 });
    }
    Ok(())
}

/// The right to write into one directory, held until dropped; the kernel gives it back after a crash.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Waits for whoever is writing there now, which takes milliseconds, and tidies up after one that
    /// did not get to its end.
    pub(crate) fn acquire(directory: &Path) -> Result<Self, Error> {
        let path: PathBuf = directory.join(".lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        let lock = Self { _file: file };
        lock.remove_unfinished(directory)?;
        Ok(lock)
    }

    fn remove_unfinished(&self, directory: &Path) -> Result<(), Error> {
        let entries = std::fs::read_dir(directory).map_err(Error::io("list", directory))?;
        for entry in entries {
            let entry = entry.map_err(Error::io("list", directory))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.ends_with(UNFINISHED) {
                std::fs::remove_file(entry.path()).map_err(Error::io("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}
