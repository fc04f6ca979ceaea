//! Which directories a transfer has temporary files in, on disk, so that a successor of a process that was killed can
//! remove them.
//!
//! ```text
//!   before a temporary file is made: its directory is noted ──▶ all renamed: the journal is empty again
//!   killed in between ──▶ the next start: `.holdfast-<word>-<n>.part` in the noted directories are removed
//! ```
//!
//! The word is random and in the journal's name: so a file of a user's is never taken for one of these. Noted are paths;
//! one that is a symbolic link by now is left alone. Nothing is synced: a process's death loses no write, and where the
//! whole machine dies, a temporary file may stay.

use std::{
    collections::HashSet,
    ffi::{CStr, OsString},
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use crate::batch::Directory;

/// Directories that are noted at once; then what is pending is committed. A bound on the file: 1 MiB of paths.
const MOST: usize = 256;
/// What is read of a journal.
const MOST_BYTES: u64 = 2 << 20;
/// Journals that are looked at: as many transfers as a room ever holds, several times.
const MOST_JOURNALS: usize = 1024;

/// The name of a transfer's temporary file.
pub(crate) fn temporary(word: &str, counter: u64) -> String {
    format!(".holdfast-{word}-{counter}.part")
}

fn is_temporary(name: &[u8], word: &str) -> bool {
    let middle = name
        .strip_prefix(b".holdfast-")
        .and_then(|rest| rest.strip_prefix(word.as_bytes()))
        .and_then(|rest| rest.strip_prefix(b"-"))
        .and_then(|rest| rest.strip_suffix(b".part"));
    middle.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// One transfer's.
#[derive(Debug)]
pub struct Journal {
    file: File,
    noted: HashSet<PathBuf>,
}

impl Journal {
    /// In `dir`, which is made; for the transfer of this word.
    ///
    /// # Errors
    /// It cannot be written: the transfer does without.
    pub fn create(dir: &Path, word: &str) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let file = File::options().create_new(true).write(true).mode(0o600).open(dir.join(word))?;
        Ok(Self { file, noted: HashSet::new() })
    }

    pub(crate) fn note(&mut self, dir: &Directory) {
        if self.noted.contains(&dir.path) {
            return;
        }
        // A full disk: what a death leaves behind then stays, and nothing else is lost.
        let _ = self.file.write_all(&[dir.path.as_os_str().as_bytes(), b"\0"].concat());
        self.noted.insert(dir.path.clone());
    }

    pub(crate) fn is_full(&self) -> bool {
        self.noted.len() >= MOST
    }

    /// All temporary files have their names.
    pub(crate) fn clear(&mut self) {
        if !self.noted.is_empty() {
            self.noted.clear();
            let _ = self.file.set_len(0).and_then(|()| self.file.rewind());
        }
    }
}

/// What an earlier process left, as it is found now: later transfers are not among it.
#[derive(Debug, Default)]
pub struct Leftovers {
    journals: Vec<PathBuf>,
}

impl Leftovers {
    /// The journals in `dir`.
    #[must_use]
    pub fn find(dir: &Path) -> Self {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        Self { journals: entries.map(|entry| entry.path()).take(MOST_JOURNALS).collect() }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.journals.is_empty()
    }

    /// Removes the temporary files and the journals; says how many files that were. Hangs where a file system does.
    #[must_use]
    pub fn remove(self) -> usize {
        let mut removed = 0;
        for journal in self.journals {
            if let Some(word) = journal.file_name().and_then(|name| name.to_str())
                && is_word(word)
            {
                for dir in noted(&journal) {
                    removed += sweep(&dir, word).unwrap_or(0);
                }
            }
            let _ = fs::remove_file(&journal);
        }
        removed
    }
}

/// As a transfer's id has it.
fn is_word(word: &str) -> bool {
    word.len() >= 12 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn noted(journal: &Path) -> Vec<PathBuf> {
    let mut bytes = Vec::new();
    let opened = File::options().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(journal);
    let Ok(file) = opened else { return Vec::new() };
    if file.take(MOST_BYTES).read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    // The last one may have been cut short by the death, and is then no path.
    let paths = bytes.split_inclusive(|byte| *byte == 0).filter_map(|path| path.strip_suffix(b"\0"));
    paths
        .map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
        .filter(|path| path.is_absolute())
        .collect()
}

fn sweep(dir: &Path, word: &str) -> io::Result<usize> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())?;
    let mut found = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        if is_temporary(entry.file_name().to_bytes(), word) {
            found.push(entry.file_name().to_owned());
        }
    }
    let is_ours = |name: &CStr| {
        let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| {
            matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink)
        })
    };
    let removed = found
        .iter()
        .filter(|name| is_ours(name) && rustix::fs::unlinkat(&fd, name.as_c_str(), AtFlags::empty()).is_ok());
    Ok(removed.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORD: &str = "0123456789ab";

    fn directory(path: &Path) -> Directory {
        Directory { fd: File::open(path).unwrap().into(), path: path.to_owned() }
    }

    #[test]
    fn what_a_killed_transfer_left_is_removed_and_nothing_that_looks_like_it() {
        let temp = tempfile::tempdir().unwrap();
        let (state, work, other) =
            (temp.path().join("state"), temp.path().join("work"), temp.path().join("other"));
        for dir in [&work, &other] {
            fs::create_dir(dir).unwrap();
        }
        let mut journal = Journal::create(&state, WORD).unwrap();
        journal.note(&directory(&work));
        journal.note(&directory(&work));
        let part = temporary(WORD, 7);
        let kept = [
            ".holdfast-ba9876543210-7.part",
            ".holdfast-0123456789ab-.part",
            ".holdfast-0123456789ab-x.part",
            "a.part",
        ];
        for name in kept.iter().copied().chain([part.as_str()]) {
            fs::write(work.join(name), name).unwrap();
        }
        // In a directory that was not noted: not looked at.
        fs::write(other.join(&part), "").unwrap();
        drop(journal);
        let left = Leftovers::find(&state);
        // A transfer that begins now is not among them.
        let _new = Journal::create(&state, "fedcba987654").unwrap();
        assert_eq!(left.remove(), 1);
        assert!(!work.join(&part).exists() && other.join(&part).exists());
        for name in kept {
            assert!(work.join(name).exists(), "{name}");
        }
        let left: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["fedcba987654"]);
    }

    #[test]
    fn a_directory_that_became_a_link_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let (state, work, elsewhere) =
            (temp.path().join("state"), temp.path().join("work"), temp.path().join("elsewhere"));
        for dir in [&work, &elsewhere] {
            fs::create_dir(dir).unwrap();
        }
        Journal::create(&state, WORD).unwrap().note(&directory(&work));
        fs::write(elsewhere.join(temporary(WORD, 1)), "").unwrap();
        fs::remove_dir(&work).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &work).unwrap();
        assert_eq!(Leftovers::find(&state).remove(), 0);
        assert!(elsewhere.join(temporary(WORD, 1)).exists());
    }

    #[test]
    fn a_journal_is_empty_when_all_have_their_names() {
        let temp = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(temp.path(), WORD).unwrap();
        let dir = directory(temp.path());
        journal.note(&dir);
        journal.clear();
        assert_eq!(fs::metadata(temp.path().join(WORD)).unwrap().len(), 0);
        journal.note(&dir);
        assert_eq!(noted(&temp.path().join(WORD)), [temp.path()]);
        assert!(!journal.is_full());
    }

    #[test]
    fn a_line_that_was_cut_short_is_no_path() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join(WORD);
        fs::write(&path, b"/work\0relative\0/wor").unwrap();
        assert_eq!(noted(&path), [Path::new("/work")]);
    }
}
