//! The console: what a supervisor and its machine say, bounded.
//!
//! The supervisor writes to the file itself, with O_APPEND, because a pipe through the gateway would die with the
//! gateway. So the bound is kept from outside: once the file has grown past it, its newest half is copied to
//! `console.log.1`, and the file is cut to nothing, where the supervisor goes on appending. Lines that it writes
//! between the copy and the cut are lost. On disk there are at most one and a half times the bound, and what a
//! supervisor writes between two looks. Commands do not write here; theirs goes to the supervisor's spool.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use bytes::{BufMut, Bytes, BytesMut};
use rustix::fs::OFlags;

use super::files::Dir;

const FILE: &str = "console.log";
const OLDER: &str = "console.log.1";

/// Opens the console for a new supervisor to append to.
pub(super) fn open(dir: &Dir) -> io::Result<File> {
    dir.open_file(FILE, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE, 0o600)
}

/// Cuts the console if it has grown past `bound` bytes; true when it was cut.
pub(super) fn keep_bounded(dir: &Dir, bound: u64) -> io::Result<bool> {
    let file = match dir.open_file(FILE, OFlags::RDWR, 0) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if file.metadata()?.len() <= bound {
        return Ok(false);
    }
    let newest = last(&file, bound / 2)?;
    dir.write(OLDER, 0o600, &newest)?;
    file.set_len(0)?;
    Ok(true)
}

/// The last bytes, at most `tail`, of both files together.
pub(super) fn tail(dir: &Dir, tail: usize, bound: u64) -> io::Result<Bytes> {
    // However much is asked for, this is all there can be.
    let most = u64::try_from(tail).unwrap_or(u64::MAX).min(2 * bound);
    let newer = part(dir, FILE, most)?;
    let older = part(dir, OLDER, most - newer.len() as u64)?;
    let mut joined = BytesMut::with_capacity(older.len() + newer.len());
    joined.put_slice(&older);
    joined.put_slice(&newer);
    Ok(joined.freeze())
}

fn part(dir: &Dir, name: &str, most: u64) -> io::Result<Vec<u8>> {
    match dir.open_file(name, OFlags::RDONLY, 0) {
        Ok(file) => last(&file, most),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn last(mut file: &File, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    // `take`: the writer may go on meanwhile.
    file.take(most).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_console_past_its_bound_keeps_the_newest_half_and_its_writer() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let mut writer = open(&dir).unwrap();
        writer.write_all(&[b'a'; 600]).unwrap();
        assert!(!keep_bounded(&dir, 1000).unwrap());
        writer.write_all(&[b'b'; 600]).unwrap();
        assert!(keep_bounded(&dir, 1000).unwrap());
        writer.write_all(b"after").unwrap();
        let all = tail(&dir, usize::MAX, 1000).unwrap();
        assert_eq!(all.len(), 505, "half of the bound, and what came after");
        assert!(all.ends_with(b"bbbafter"));
        assert_eq!(&tail(&dir, 7, 1000).unwrap()[..], b"bbafter");
        assert!(tail(&dir, 0, 1000).unwrap().is_empty());
    }

    #[test]
    fn a_console_that_is_a_link_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().join("target");
        std::fs::write(&target, vec![b'x'; 2000]).unwrap();
        std::os::unix::fs::symlink(&target, temp.path().join(FILE)).unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        assert!(tail(&dir, 10, 1000).is_err());
        assert!(keep_bounded(&dir, 1000).is_err());
        assert!(open(&dir).is_err());
        assert_eq!(std::fs::metadata(&target).unwrap().len(), 2000);
    }
}
