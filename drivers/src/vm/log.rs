//! A log that somebody else fills, and that stays small: of the guest's console, of gvproxy, of libkrun.
//!
//! Once the file has its bound, its newest half goes to `NAME.1` and it starts anew. On disk there is at most one and
//! a half times the bound, whatever a guest writes and however fast.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// One log.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    bound: u64,
}

impl BoundedLog {
    /// Opens the log to append to it.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(dir: &Path, name: &str, bound: u64) -> io::Result<Self> {
        let path = dir.join(name);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)?;
        Ok(Self { path, file, bound })
    }

    /// Appends.
    ///
    /// # Errors
    /// What the system says; such as that the disk is full.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        // Asked of the file, because others append to it and cut it, too.
        if self.file.metadata()?.len() > self.bound {
            let newest = self.tail(self.bound / 2)?;
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            std::fs::write(older, newest)?;
            self.file.set_len(0)?;
        }
        Ok(())
    }

    /// The last bytes, at most `most`, of the newer file.
    ///
    /// # Errors
    /// What the system says.
    pub fn tail(&mut self, most: u64) -> io::Result<Vec<u8>> {
        let length = self.file.metadata()?.len();
        self.file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut tail = Vec::new();
        (&mut self.file).take(most).read_to_end(&mut tail)?;
        Ok(tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_stays_within_one_and_a_half_bounds_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = BoundedLog::open(dir.path(), "console.log", 1000).unwrap();
        for n in 0..5000 {
            log.append(format!("line {n}\n").as_bytes()).unwrap();
        }
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size("console.log") <= 1000 && size("console.log.1") <= 500);
        assert!(log.tail(100).unwrap().ends_with(b"line 4999\n"));
    }
}
