//! Which paths an entry of a transfer may have: relative, downwards, and nothing else. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use bytes::Bytes;
use holdfast_wire::{
    api::FileFailureKind,
    limits::{MAX_PATH, MAX_TREE_DEPTH},
};

use crate::failure::{Failure, path_of};

/// One component, in bytes: NAME_MAX of every file system of Linux.
const MAX_NAME: usize = 255;

/// The components of an entry's path; none for the root.
///
/// # Errors
/// The path is absolute, goes up, or is too long or deep.
pub fn components(path: &[u8]) -> Result<Vec<OsString>, Failure> {
    let refused =
        |kind, why: &str| Failure::new(kind, path_of(path), format!("{}: {why}", path_of(path).display()));
    if path.is_empty() {
        return Ok(Vec::new());
    }
    if path.len() >= MAX_PATH {
        return Err(refused(FileFailureKind::Invalid, "the path is too long"));
    }
    if path[0] == b'/' {
        return Err(refused(FileFailureKind::Escapes, "an absolute path in a transfer"));
    }
    let mut components = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => return Err(refused(FileFailureKind::Invalid, "an empty component in the path")),
            b".." => return Err(refused(FileFailureKind::Escapes, "the path leads out of what is copied")),
            name if name.contains(&0) => {
                return Err(refused(FileFailureKind::Invalid, "a NUL byte in the path"));
            }
            name if name.len() > MAX_NAME => {
                return Err(refused(FileFailureKind::Invalid, "a name longer than 255 bytes"));
            }
            name => components.push(OsStr::from_bytes(name).to_owned()),
        }
    }
    if components.len() > MAX_TREE_DEPTH {
        return Err(refused(FileFailureKind::Limit, "more than 256 directories inside each other"));
    }
    Ok(components)
}

/// `name` below `parent`, as entries write it.
#[must_use]
pub fn below(parent: &[u8], name: &[u8]) -> Bytes {
    if parent.is_empty() {
        return Bytes::copy_from_slice(name);
    }
    [parent, b"/", name].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_leads_out_is_refused() {
        for path in ["/etc/passwd", "..", "a/../../b", "a/..", "../a"] {
            assert_eq!(components(path.as_bytes()).unwrap_err().kind, FileFailureKind::Escapes, "{path}");
        }
        for path in ["a//b", "./a", "a/.", "a/", "a\0b"] {
            assert_eq!(components(path.as_bytes()).unwrap_err().kind, FileFailureKind::Invalid, "{path}");
        }
        assert!(components(&[b'x'; 256]).is_err());
        assert!(components("d/".repeat(300).trim_end_matches('/').as_bytes()).is_err());
    }

    #[test]
    fn names_need_not_be_text() {
        assert_eq!(components(b"\xff\xfe/b").unwrap(), [OsStr::from_bytes(b"\xff\xfe"), OsStr::new("b")]);
        assert!(components(b"").unwrap().is_empty());
        assert_eq!(components(b"...").unwrap(), ["..."]);
    }

    proptest! {
        #[test]
        fn whatever_is_taken_stays_below(path in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(components) = components(&path) {
                for name in components {
                    prop_assert!(!name.is_empty() && name != "." && name != ".." );
                    prop_assert!(!name.as_bytes().contains(&b'/') && !name.as_bytes().contains(&0));
                }
            }
        }
    }
}
