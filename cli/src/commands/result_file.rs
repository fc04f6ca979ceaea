//! `--result-file`: opened before the command starts, written when it has ended.
//!
//! A regular file appears whole or not at all, by a temporary one beside it; a link is followed. Anything else (a pipe,
//! `/dev/fd/3`, `/dev/null`) is written as it is. What cannot be written is told before anything runs: afterwards the
//! result would be lost with it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::failure::Failed;

/// Where the result goes.
#[derive(Debug)]
pub(crate) struct ResultFile {
    path: PathBuf,
    file: File,
    /// What `file` is until it is complete; `None`: the thing itself.
    temporary: Option<Temporary>,
}

/// Gone when dropped, unless it has been put into its place.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    target: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename it is not there, and what was given up is of no use to anybody.
        let _ = fs::remove_file(&self.path);
    }
}

impl ResultFile {
    /// Makes sure that a result can be written there.
    ///
    /// # Errors
    /// It cannot.
    pub(crate) fn open(path: Option<&Path>) -> Result<Option<Self>, Failed> {
        let Some(path) = path else { return Ok(None) };
        let opened = Self::prepare(path);
        opened
            .map(Some)
            .map_err(|error| Failed::local(format!("write a result file {}", path.display()), error))
    }

    fn prepare(path: &Path) -> io::Result<Self> {
        let target = match fs::metadata(path) {
            Ok(there) if !there.is_file() => {
                let file = File::options().write(true).open(path)?;
                return Ok(Self { path: path.to_owned(), file, temporary: None });
            }
            Ok(_) => fs::canonicalize(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        let mut name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        // Not by the process's number: in a container that is 1 again and again.
        name.push(format!(".{}.tmp", uuid::Uuid::new_v4().simple()));
        let temporary = target.with_file_name(name);
        let file = File::create_new(&temporary)?;
        // Whatever becomes of this one, an earlier result must not be taken for it.
        match fs::remove_file(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let _ = fs::remove_file(&temporary);
                return Err(error);
            }
            _ => {}
        }
        Ok(Self { path: path.to_owned(), file, temporary: Some(Temporary { path: temporary, target }) })
    }

    /// The path as it was given.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the result.
    pub(crate) fn write(mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        let Some(temporary) = &self.temporary else { return Ok(()) };
        self.file.sync_all()?;
        fs::rename(&temporary.path, &temporary.target)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::fs::FileTypeExt as _};

    use super::*;

    fn open(path: &Path) -> ResultFile {
        ResultFile::open(Some(path)).unwrap().unwrap()
    }

    #[test]
    fn a_file_appears_whole_and_one_that_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result.json");
        let file = open(&path);
        assert!(!path.exists());
        file.write(b"{}\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"{}\n");
        drop(open(&path));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "an old result is none of this command's");
    }

    #[test]
    fn what_cannot_be_written_is_told_beforehand() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("missing/result.json"), dir.path().to_owned()] {
            let failed = ResultFile::open(Some(&path)).unwrap_err();
            assert!(failed.to_string().contains(&path.display().to_string()), "{failed}");
        }
    }

    #[test]
    fn a_link_is_followed_and_what_is_no_file_is_written_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        open(&link).write(b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");

        open(Path::new("/dev/null")).write(b"x").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());

        use std::os::fd::AsRawFd as _;
        let (mut reader, writer) = io::pipe().unwrap();
        let path = format!("/dev/fd/{}", writer.as_raw_fd());
        open(Path::new(&path)).write(b"told").unwrap();
        drop(writer);
        let mut told = String::new();
        reader.read_to_string(&mut told).unwrap();
        assert_eq!(told, "told");
    }
}
