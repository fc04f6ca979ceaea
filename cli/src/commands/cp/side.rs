//! The two sides of a copy, as `docker cp` tells them apart.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use holdfast_files::{failure::path_of, read};
use holdfast_wire::api::UploadPlacement;

use super::usage;
use crate::failure::Failed;

/// One of the two sides.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Side {
    Local(PathBuf),
    Sandbox {
        name: String,
        path: Vec<u8>,
    },
    /// An archive on stdin or stdout.
    Archive,
}

impl Side {
    /// As `docker cp` tells them apart: what begins with `/` or `.` is local, whatever colons it has.
    pub(super) fn parse(text: &OsStr) -> Result<Self, Failed> {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Ok(Self::Archive);
        }
        if bytes.is_empty() {
            return Err(usage("an empty path"));
        }
        let colon = bytes.iter().position(|byte| *byte == b':');
        match colon {
            Some(0) => Err(usage("a sandbox's name belongs in front of the colon")),
            Some(at) if bytes[0] != b'/' && bytes[0] != b'.' => {
                let name = std::str::from_utf8(&bytes[..at]).map_err(|_| {
                    usage("a sandbox's name is text; a local path with a colon is written ./like:this")
                })?;
                Ok(Self::Sandbox { name: name.to_owned(), path: bytes[at + 1..].to_vec() })
            }
            _ => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

/// `SANDBOX:` alone is the workspace.
pub(super) fn or_here(path: &[u8]) -> Bytes {
    if path.is_empty() { Bytes::from_static(b".") } else { Bytes::copy_from_slice(path) }
}

/// Absolute, its trailing slash kept: it counts.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failed> {
    let here =
        std::env::current_dir().map_err(|error| Failed::local("look at the current directory", error))?;
    Ok(here.join(path))
}

/// What a local source is called inside a directory, and whether its content alone is meant.
pub(super) fn local_name(path: &Path) -> Result<(Vec<u8>, UploadPlacement), Failed> {
    if means_content(path.as_os_str().as_bytes()) {
        return Ok((Vec::new(), UploadPlacement::Contents));
    }
    let name = match read::own_name(path) {
        Some(name) => name,
        // `..` and `/`: as the system calls it.
        None => std::fs::canonicalize(path).ok().and_then(|path| read::own_name(&path)).unwrap_or_default(),
    };
    Ok((name, UploadPlacement::Copy))
}

/// The same for a path in a sandbox.
pub(super) fn sandbox_name(path: &[u8]) -> (Vec<u8>, UploadPlacement) {
    if path.is_empty() || means_content(path) {
        return (Vec::new(), UploadPlacement::Contents);
    }
    match read::own_name(&path_of(path)) {
        Some(name) => (name, UploadPlacement::Copy),
        None => (Vec::new(), UploadPlacement::Contents),
    }
}

fn means_content(path: &[u8]) -> bool {
    path == b"." || path.ends_with(b"/.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(text: &str) -> Side {
        Side::parse(text.as_ref()).unwrap()
    }

    #[test]
    fn sides_are_told_apart_as_docker_does() {
        assert_eq!(side("box:/a:b"), Side::Sandbox { name: "box".into(), path: b"/a:b".to_vec() });
        assert_eq!(side("box:"), Side::Sandbox { name: "box".into(), path: Vec::new() });
        assert_eq!(side("./a:b"), Side::Local("./a:b".into()));
        assert_eq!(side("/a:b"), Side::Local("/a:b".into()));
        assert_eq!(side("plain"), Side::Local("plain".into()));
        assert_eq!(side("-"), Side::Archive);
        assert!(Side::parse(":/x".as_ref()).is_err());
    }

    #[test]
    fn a_dot_at_the_end_means_the_content() {
        assert_eq!(sandbox_name(b"/srv/x"), (b"x".to_vec(), UploadPlacement::Copy));
        assert_eq!(sandbox_name(b"/srv/x/"), (b"x".to_vec(), UploadPlacement::Copy));
        assert_eq!(sandbox_name(b"/srv/x/.").1, UploadPlacement::Contents);
        assert_eq!(sandbox_name(b"/").1, UploadPlacement::Contents);
        assert_eq!(local_name(Path::new(".")).unwrap().1, UploadPlacement::Contents);
        assert!(!local_name(Path::new("..")).unwrap().0.is_empty());
    }
}
