//! A machine's disk: a sparse file with an ext4 in it. It takes the room of what was written, not of its size.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Command, Stdio},
};

/// The disk's name in the workload's directory.
pub(super) const FILE: &str = "disk.ext4";
/// If nobody says. Only what is written takes room.
pub(super) const DEFAULT_BYTES: u64 = 8 << 30;
/// An ext4 with a journal, and something in it.
pub(super) const LEAST_BYTES: u64 = 64 << 20;

/// Makes the disk where there is none; one that is there is kept as it is, with all that it holds.
pub(super) fn make(mkfs: &Path, dir: &Path, bytes: u64) -> io::Result<()> {
    let disk = dir.join(FILE);
    if disk.try_exists()? {
        return Ok(());
    }
    let new = dir.join("disk.ext4.new");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.set_len(bytes)?;
    let output = Command::new(mkfs)
        // No block for root alone, and tables made when they are first used: a new disk has some hundred KiB.
        .args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
        .arg(&new)
        .env_clear()
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("{}: {}", mkfs.display(), said.trim())));
    }
    File::open(&new)?.sync_all()?;
    fs::rename(new, disk)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_disk_is_made_once_and_takes_little_room() {
        let mkfs = Path::new("/usr/sbin/mkfs.ext4");
        if !mkfs.exists() {
            use std::io::Write;
            let _ = writeln!(io::stderr(), "skipped: there is no {}", mkfs.display());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        make(mkfs, dir.path(), DEFAULT_BYTES).unwrap();
        let made = fs::metadata(dir.path().join(FILE)).unwrap();
        assert_eq!(made.len(), DEFAULT_BYTES);
        assert!(made.blocks() * 512 < 16 << 20, "{} bytes on disk", made.blocks() * 512);
        make(Path::new("/bin/false"), dir.path(), 1).unwrap();
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().ino(), made.ino());
    }
}
