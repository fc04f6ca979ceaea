//! Root file systems: what many machines share, for reading.
//!
//! ```text
//!   directory ─────────────────────────────▶ used where it is
//!   tarball, OCI or docker archive ── sha256 ─▶ <store>/<digest>/  unpacked once, under a lock, then renamed into place
//! ```
//!
//! A directory is not copied: whoever changes it changes it for the machines that run from it. An unpacked archive is
//! never changed, so two archives with one content are one root, and a crash in between leaves only a `.new`.

mod archive;
mod entries;
mod layer;

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

/// The most that is unpacked of one archive, in bytes. A distribution's full image is a tenth of it.
const MAX_BYTES: u64 = 64 << 30;
/// The most entries. A large image has some hundred thousand.
const MAX_ENTRIES: u64 = 4 << 20;

/// A root file system that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootfsError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("is neither a directory nor a plain file")]
    Kind,
    #[error("is no tar archive (plain, gzip or zstd): {0}")]
    NotTar(io::Error),
    #[error("the path is not UTF-8, which libkrun needs")]
    Name,
    #[error("{entry}: {source}")]
    Entry { entry: String, source: io::Error },
    #[error("{0}")]
    Archive(String),
    #[error("unpacks to more than {0}")]
    TooLarge(&'static str),
}

/// Whether this can be a root file system, by a look from outside.
pub(super) fn check(path: &Path) -> Result<(), RootfsError> {
    if path.to_str().is_none() {
        return Err(RootfsError::Name);
    }
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return fs::read_dir(path).map(drop).map_err(RootfsError::Io);
    }
    if !metadata.is_file() {
        return Err(RootfsError::Kind);
    }
    match entries::each(open(path)?, |_| Ok(Some(())))? {
        Some(()) => Ok(()),
        None => Err(RootfsError::Archive("is an empty archive".to_owned())),
    }
}

/// The directory to give to machines: unpacks an archive if nobody has. For blocking threads.
pub(super) fn unpacked(path: &Path, store: &Path) -> Result<PathBuf, RootfsError> {
    check(path)?;
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    private(store)?;
    let digest = digest(path)?;
    let there = store.join(&digest);
    // Two gateways' requests, or two of one, for the same archive: the second waits and finds it done.
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(store.join(format!(".lock-{digest}")))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(io::Error::from)?;
    if !there.try_exists()? {
        let new = store.join(format!(".new-{digest}"));
        // What a crash left of an earlier try.
        remove_all(&new)?;
        fs::create_dir(&new)?;
        let mut budget = Budget { bytes: MAX_BYTES, entries: MAX_ENTRIES };
        let unpacked = archive::unpack(path, &new, &mut budget);
        if let Err(error) = unpacked {
            let _ = remove_all(&new);
            return Err(error);
        }
        fs::rename(&new, &there)?;
        tracing::info!(archive = %path.display(), root = %there.display(), "root file system unpacked");
    }
    Ok(there)
}

/// What an archive may still unpack to.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: u64,
    entries: u64,
}

impl Budget {
    fn spend(&mut self, bytes: u64) -> Result<(), RootfsError> {
        self.entries = self.entries.checked_sub(1).ok_or(RootfsError::TooLarge("4 Mi entries"))?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or(RootfsError::TooLarge("64 GiB"))?;
        Ok(())
    }
}

/// A file as what is in it, whether it is compressed or not.
fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = BufReader::new(File::open(path)?);
    let mut magic = [0; 4];
    let read = file.read(&mut magic)?;
    file.rewind()?;
    match &magic[..read] {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(file);
            Ok(Box::new(
                decoder.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?,
            ))
        }
        _ => Ok(Box::new(file)),
    }
}

fn digest(path: &Path) -> io::Result<String> {
    use std::fmt::Write;
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            length => hash.update(&piece[..length]),
        }
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

fn private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A tar of `name`, `content` pairs.
    pub(super) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_directory_is_used_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(unpacked(dir.path(), Path::new("/nowhere")).unwrap(), dir.path());
    }

    #[test]
    fn an_archive_is_unpacked_once_plain_or_compressed() {
        let temp = tempfile::tempdir().unwrap();
        let (archive, store) = (temp.path().join("a.tar.gz"), temp.path().join("store"));
        fs::write(&archive, gzip(&tar_of(&[("bin/sh", b"shell"), ("etc/x", b"y")]))).unwrap();
        let root = unpacked(&archive, &store).unwrap();
        assert_eq!(fs::read(root.join("bin/sh")).unwrap(), b"shell");
        fs::write(root.join("mark"), "").unwrap();
        assert_eq!(unpacked(&archive, &store).unwrap(), root);
        assert!(root.join("mark").exists(), "it was unpacked again");
    }

    #[test]
    fn what_zstd_compressed_is_read_too() {
        let temp = tempfile::tempdir().unwrap();
        let (archive, store) = (temp.path().join("a.tar.zst"), temp.path().join("store"));
        let tar = tar_of(&[("bin/sh", b"shell")]);
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        fs::write(&archive, ruzstd::encoding::compress_to_vec(&tar[..], level)).unwrap();
        assert_eq!(fs::read(unpacked(&archive, &store).unwrap().join("bin/sh")).unwrap(), b"shell");
        // Cut: refused, not taken for a smaller one.
        let whole = fs::read(&archive).unwrap();
        fs::write(&archive, &whole[..whole.len() / 2]).unwrap();
        unpacked(&archive, &store).unwrap_err();
    }

    #[test]
    fn what_a_crash_left_is_not_taken_for_a_root() {
        let temp = tempfile::tempdir().unwrap();
        let (archive, store) = (temp.path().join("a.tar"), temp.path().join("store"));
        fs::write(&archive, tar_of(&[("file", b"whole")])).unwrap();
        let half = store.join(format!(".new-{}", digest(&archive).unwrap()));
        fs::create_dir_all(&half).unwrap();
        fs::write(half.join("half"), "").unwrap();
        let root = unpacked(&archive, &store).unwrap();
        assert!(root.join("file").exists() && !root.join("half").exists());
    }

    #[test]
    fn what_is_no_archive_is_refused_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let store = temp.path().join("store");
        let archive = temp.path().join("a");
        for content in [&b""[..], b"words", &[7; 2000]] {
            fs::write(&archive, content).unwrap();
            unpacked(&archive, &store).unwrap_err();
        }
        // Cut in the middle of a file.
        let mut cut = tar_of(&[("file", &[1; 4000])]);
        cut.truncate(2048);
        fs::write(&archive, cut).unwrap();
        unpacked(&archive, &store).unwrap_err();
        let left: Vec<_> = fs::read_dir(&store)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| !name.to_string_lossy().starts_with(".lock"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(check(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut budget = Budget { bytes: 10, entries: 2 };
        budget.spend(10).unwrap();
        assert!(budget.spend(1).unwrap_err().to_string().contains("64 GiB"));
        assert!(budget.spend(0).unwrap_err().to_string().contains("entries"));
    }
}
