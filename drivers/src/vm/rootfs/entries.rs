//! An archive's entries, one after another, from a stream that nobody trusts.
//!
//! A tar has entries that are only about the next one: a long name, extended headers. The library keeps them in memory
//! whole, and their sizes are the archive's own word: so what is read between two entries is bounded here.

use std::{
    cell::Cell,
    io::{self, Read},
    rc::Rc,
};

use tar::{Archive, Entry};

use super::RootfsError;

/// The most that may stand between two entries: names and attributes of one file. Linux allows 4 KiB for a path and
/// 64 KiB for an attribute.
const MAX_BETWEEN: u64 = 1 << 20;

/// A stream of which no more than is allowed can be read.
pub(super) struct Metered<R> {
    stream: R,
    allowed: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowed.get();
        if allowed == 0 {
            let message = format!("an entry's header has more than {MAX_BETWEEN} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let most = usize::try_from(allowed).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.stream.read(&mut buffer[..most])?;
        self.allowed.set(allowed - length as u64);
        Ok(length)
    }
}

/// Gives each entry to `each`, until that has found something, or to the end.
pub(super) fn each<R: Read, T>(
    stream: R,
    mut each: impl FnMut(&mut Entry<'_, Metered<R>>) -> Result<Option<T>, RootfsError>,
) -> Result<Option<T>, RootfsError> {
    let allowed = Rc::new(Cell::new(MAX_BETWEEN));
    let mut archive = Archive::new(Metered { stream, allowed: allowed.clone() });
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    // Owners are kept where they may be given: by root. Elsewhere everything is the gateway's user's.
    archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
    archive.set_overwrite(true);
    for entry in archive.entries().map_err(RootfsError::NotTar)? {
        let mut entry = entry.map_err(RootfsError::NotTar)?;
        // Its content is bounded by whoever takes it.
        allowed.set(u64::MAX);
        if let Some(found) = each(&mut entry)? {
            return Ok(Some(found));
        }
        // What was not taken is skipped here, so that it does not count for the next one.
        io::copy(&mut entry, &mut io::sink()).map_err(RootfsError::NotTar)?;
        allowed.set(MAX_BETWEEN);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::tar_of, *};

    #[test]
    fn a_header_that_claims_memory_is_refused_and_large_content_is_not() {
        let count = |bytes: &[u8]| {
            let mut count = 0;
            each::<_, ()>(bytes, |_| {
                count += 1;
                Ok(None)
            })
            .map(|_| count)
        };
        let large = vec![1; 3 << 20];
        assert_eq!(count(&tar_of(&[("large", &large), ("small", b"x")])).unwrap(), 2);
        let mut builder = tar::Builder::new(Vec::new());
        for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(large.len() as u64);
            header.set_cksum();
            builder.append(&header, &large[..]).unwrap();
        }
        let error = count(&builder.into_inner().unwrap()).unwrap_err().to_string();
        assert!(error.contains("header has more than"), "{error}");
    }
}
