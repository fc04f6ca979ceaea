//! One layer: a tar stream over what the layers below it left.
//!
//! An entry is put where its name says, below the root and nowhere else: names with `..` are refused, and no link that
//! an earlier entry made is followed out of the root. A name of `.wh.NAME` removes NAME, `.wh..wh..opq` empties its
//! directory. Device files are left out: a machine makes its own.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use tar::{Entry, EntryType};

use super::{
    Budget, RootfsError,
    entries::{self, Metered},
};

const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Puts a layer over `root`.
pub(super) fn apply(stream: impl Read, root: &Path, budget: &mut Budget) -> Result<(), RootfsError> {
    // Directories get their modes last: one that may not be written to still has to be filled.
    let mut directories = Vec::new();
    let put_one = |entry: &mut Entry<'_, Metered<_>>| {
        budget.spend(entry.size())?;
        let name = entry.path().map_err(RootfsError::NotTar)?.into_owned();
        let failed = |source| RootfsError::Entry { entry: name.display().to_string(), source };
        if name.components().any(|part| part == Component::ParentDir) {
            return Err(failed(leads_out()));
        }
        if whiteout(root, &name).map_err(failed)? {
            return Ok(None);
        }
        match entry.header().entry_type() {
            EntryType::Directory => directories.push((name.clone(), entry.header().mode().unwrap_or(0o755))),
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Symlink
            | EntryType::Link => {}
            _ => return Ok(None),
        }
        put(entry, root, &name).map_err(failed)?;
        Ok(None)
    };
    entries::each::<_, ()>(stream, put_one)?;
    for (name, mode) in directories.into_iter().rev() {
        use std::os::unix::fs::PermissionsExt;
        let path = below(root, &name);
        // Only what still is a directory itself, and no link to one; a later entry may have put a link in its way.
        if is_inside(root, &path) && path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777));
        }
    }
    Ok(())
}

fn put(entry: &mut Entry<'_, impl Read>, root: &Path, name: &Path) -> io::Result<()> {
    let path = below(root, name);
    // Before anything is removed: a link that an earlier entry made must not lead there.
    if path.parent().is_some_and(|dir| dir.exists() && path != root && !is_inside(root, dir)) {
        return Err(leads_out());
    }
    // A later layer may have a file where an earlier has a directory, and the other way round.
    match path.symlink_metadata() {
        Ok(there) if there.is_dir() && entry.header().entry_type() != EntryType::Directory => {
            fs::remove_dir_all(&path)?;
        }
        Ok(there) if !there.is_dir() && entry.header().entry_type() == EntryType::Directory => {
            fs::remove_file(&path)?;
        }
        _ => {}
    }
    if entry.header().entry_type() == EntryType::Directory && path != root {
        // Ours to write to until the end, see above.
        if !entry.unpack_in(root)? {
            return Err(leads_out());
        }
        use std::os::unix::fs::PermissionsExt;
        return fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
    }
    match entry.unpack_in(root)? {
        true => Ok(()),
        // Of the root itself there is nothing to make.
        false if path == root => Ok(()),
        false => Err(leads_out()),
    }
}

/// Whether the entry is a mark of something removed, and then removes it.
fn whiteout(root: &Path, name: &Path) -> io::Result<bool> {
    let Some(last) = name.file_name().map(OsStr::as_bytes) else { return Ok(false) };
    let Some(removed) = last.strip_prefix(WHITEOUT.as_bytes()) else { return Ok(false) };
    // `.wh...` would remove the parent of its directory.
    if matches!(removed, b"." | b"..") {
        return Err(leads_out());
    }
    let dir = below(root, name.parent().unwrap_or(Path::new("")));
    // A link to a directory elsewhere must not be followed; what is real is inside.
    if !is_inside(root, &dir) {
        return Ok(true);
    }
    if last == OPAQUE.as_bytes() {
        for entry in fs::read_dir(&dir)? {
            remove(&entry?.path())?;
        }
    } else if !removed.is_empty() {
        remove(&dir.join(OsStr::from_bytes(removed)))?;
    }
    Ok(true)
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether a path is really below the root, links on its way followed. What is not there is not.
fn is_inside(root: &Path, path: &Path) -> bool {
    path.canonicalize().is_ok_and(|real| root.canonicalize().is_ok_and(|root| real.starts_with(root)))
}

fn leads_out() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "leads out of the root")
}

/// The place of an entry: its plain parts, below the root.
fn below(root: &Path, name: &Path) -> PathBuf {
    name.components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .fold(root.to_owned(), |path, part| path.join(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Item<'a> {
        File(&'a str, &'a [u8]),
        Dir(&'a str, u32),
        Symlink(&'a str, &'a str),
        Hardlink(&'a str, &'a str),
        Device(&'a str),
    }
    use Item::*;

    fn tar_of(items: &[Item<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind: EntryType, mode: u32, content: &[u8], link: Option<&str>| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(content.len() as u64);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            // As it is, past the library's own checks: hostile archives are made by others.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            if let Some(link) = link {
                header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, content).unwrap();
        };
        for item in items {
            match item {
                File(name, content) => add(name, EntryType::Regular, 0o644, content, None),
                Dir(name, mode) => add(name, EntryType::Directory, *mode, &[], None),
                Symlink(name, to) => add(name, EntryType::Symlink, 0o777, &[], Some(to)),
                Hardlink(name, to) => add(name, EntryType::Link, 0o644, &[], Some(to)),
                Device(name) => add(name, EntryType::Char, 0o666, &[], None),
            }
        }
        builder.into_inner().unwrap()
    }

    fn layers(layers: &[&[Item<'_>]]) -> Result<tempfile::TempDir, RootfsError> {
        let root = tempfile::tempdir().unwrap();
        let mut budget = Budget { bytes: 1 << 20, entries: 1000 };
        for layer in layers {
            apply(&tar_of(layer)[..], root.path(), &mut budget)?;
        }
        Ok(root)
    }

    #[test]
    fn later_layers_replace_and_remove() {
        let root = layers(&[
            &[
                Dir("a", 0o755),
                File("a/kept", b"1"),
                File("a/gone", b"1"),
                Dir("b", 0o755),
                File("b/old", b"1"),
                File("c", b"1"),
            ],
            &[
                File("a/.wh.gone", b""),
                File("b/.wh..wh..opq", b""),
                File("b/new", b"2"),
                Dir("c", 0o755),
                File("c/in", b"2"),
            ],
        ])
        .unwrap();
        let there = |name: &str| root.path().join(name).exists();
        assert!(there("a/kept") && !there("a/gone"));
        assert!(!there("b/old") && there("b/new"));
        assert!(there("c/in"));
        assert!(!there("a/.wh.gone"));
    }

    #[test]
    fn links_are_kept_and_devices_left_out() {
        let root = layers(&[&[
            File("bin/busybox", b"b"),
            Symlink("bin/sh", "busybox"),
            Hardlink("bin/ls", "bin/busybox"),
            Symlink("etc", "/somewhere/absolute"),
            Device("dev/null"),
        ]])
        .unwrap();
        assert_eq!(fs::read_link(root.path().join("bin/sh")).unwrap(), Path::new("busybox"));
        assert_eq!(fs::read(root.path().join("bin/ls")).unwrap(), b"b");
        assert_eq!(fs::read_link(root.path().join("etc")).unwrap(), Path::new("/somewhere/absolute"));
        assert!(!root.path().join("dev/null").exists());
    }

    #[test]
    fn nothing_is_written_outside_of_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_str().unwrap();
        assert!(layers(&[&[File("../escaped", b"x")]]).is_err());
        assert!(layers(&[&[Symlink("link", target), File("link/escaped", b"x")]]).is_err());
        assert!(layers(&[&[Hardlink("copy", "/etc/passwd")]]).is_err());
        // An absolute name is one below the root.
        let root = layers(&[&[File("/tmp-of-the-root", b"x")]]).unwrap();
        assert!(root.path().join("tmp-of-the-root").exists());
        // A whiteout through a link removes nothing outside.
        fs::write(outside.path().join("precious"), "").unwrap();
        let _ = layers(&[&[Symlink("link", target), File("link/.wh.precious", b"")]]);
        let _ = layers(&[&[Symlink("link", target), File("link/.wh..wh..opq", b"")]]);
        assert!(outside.path().join("precious").exists());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_removed_or_changed_outside_of_the_root() {
        use std::os::unix::fs::PermissionsExt;
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_str().unwrap();
        fs::create_dir(outside.path().join("dir")).unwrap();
        fs::write(outside.path().join("dir/precious"), "").unwrap();
        fs::write(outside.path().join("file"), "").unwrap();
        fs::set_permissions(outside.path().join("dir"), fs::Permissions::from_mode(0o700)).unwrap();
        let hostile: &[&[Item<'_>]] = &[
            // A file in the place of a directory, and the other way round, behind a link.
            &[Symlink("link", target), File("link/dir", b"x")],
            &[Symlink("link", target), Dir("link/file", 0o755)],
            // A directory whose mode is set at the end, when it is another one.
            &[Dir("a", 0o755), Dir("a/dir", 0o777), Symlink("a", target)],
            // The parent, as something that was removed.
            &[File(".wh...", b"")],
            &[Dir("a", 0o755), File("a/.wh...", b""), File("a/.wh..", b"")],
        ];
        for entries in hostile {
            // Whether it is refused or does no harm; a root of its own, so that its parent is watched, too.
            let beside = outside.path().join("roots");
            let root = beside.join("root");
            fs::create_dir_all(&root).unwrap();
            fs::write(beside.join("neighbour"), "").unwrap();
            let mut budget = Budget { bytes: 1 << 20, entries: 1000 };
            let applied = apply(&tar_of(entries)[..], &root, &mut budget);
            assert!(beside.join("neighbour").exists() && root.exists(), "{applied:?}");
            assert!(outside.path().join("dir/precious").exists(), "{applied:?}");
            assert!(outside.path().join("file").is_file(), "{applied:?}");
            let mode = fs::metadata(outside.path().join("dir")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{applied:?}");
            fs::remove_dir_all(beside).unwrap();
        }
        let error = layers(&[&[Symlink("link", target), File("link/dir", b"x")]]).unwrap_err().to_string();
        assert_eq!(error, "link/dir: leads out of the root");
    }

    #[test]
    fn a_directory_that_may_not_be_written_to_is_filled_first() {
        use std::os::unix::fs::PermissionsExt;
        let root = layers(&[&[Dir("closed", 0o555), File("closed/file", b"x")]]).unwrap();
        let closed = root.path().join("closed");
        assert_eq!(closed.metadata().unwrap().permissions().mode() & 0o777, 0o555);
        assert!(closed.join("file").exists());
        fs::set_permissions(closed, fs::Permissions::from_mode(0o755)).unwrap();
    }
}
