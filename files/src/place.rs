//! Where a transfer goes, by the rules of `docker cp`.
//!
//! | source | destination | goes to |
//! | --- | --- | --- |
//! | file | nothing there | that name; its directory must exist; a trailing slash is an error |
//! | file | a file | in its place, atomically; through a symbolic link, in place of what it names |
//! | file | a directory | into it, under the source's name |
//! | directory | nothing there | a new directory of that name, with the source's content |
//! | directory | a file | an error |
//! | directory | a directory | into it, under the source's name; with `SRC/.`, its content |
//! | `-` | a directory | into it; anything else is an error |

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use holdfast_wire::api::{FileFailureKind as Kind, FileKind, UploadPlacement};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::{
    batch::Directory,
    failure::{Attempt as _, Failure},
    read,
};

/// How often a symbolic link at the destination may name another.
const MAX_LINKS: usize = 40;

/// Where the caller wants it.
#[derive(Clone, Debug)]
pub struct Destination {
    /// As asked for, absolute; a trailing slash counts.
    pub path: PathBuf,
    /// The source's own name; empty: it has none.
    pub name: OsString,
    /// By which rule.
    pub placement: UploadPlacement,
}

/// Where it goes.
#[derive(Debug)]
pub(crate) enum Placed {
    /// One name in a directory.
    Name { dir: Directory, name: OsString },
    /// A directory, made now or there before.
    Tree { dir: Directory, created: bool, parent: Option<Directory> },
}

/// Decides, and makes the top directory where one is to be made.
pub(crate) fn place(to: &Destination, source: FileKind) -> Result<Placed, Failure> {
    let path = &to.path;
    let text = path.as_os_str().as_bytes();
    let slash = text.ends_with(b"/") || text.ends_with(b"/.");
    let wrong = |kind, why: &str| Failure::new(kind, path, format!("{}: {why}", path.display()));
    let directory = source == FileKind::Directory;
    match rustix::fs::statat(rustix::fs::CWD, path, AtFlags::empty()) {
        Ok(stat) if read::kind(&stat) == Some(FileKind::Directory) => match to.placement {
            UploadPlacement::Exact => Err(wrong(Kind::WrongKind, "is a directory")),
            UploadPlacement::Into => Ok(Placed::Tree { dir: open(path)?, created: false, parent: None }),
            UploadPlacement::Contents if directory => {
                Ok(Placed::Tree { dir: open(path)?, created: false, parent: None })
            }
            UploadPlacement::Contents | UploadPlacement::Copy => {
                if to.name.is_empty() {
                    return if directory {
                        Ok(Placed::Tree { dir: open(path)?, created: false, parent: None })
                    } else {
                        Err(wrong(Kind::Invalid, "the source has no name of its own"))
                    };
                }
                let parent = open(path)?;
                one_name(&to.name)?;
                if directory {
                    make(parent, &to.name)
                } else {
                    Ok(Placed::Name { dir: parent, name: to.name.clone() })
                }
            }
        },
        Ok(_) if to.placement == UploadPlacement::Into || slash => {
            Err(wrong(Kind::WrongKind, "is not a directory"))
        }
        Ok(_) if directory => Err(wrong(Kind::WrongKind, "is a file: a directory cannot be copied to it")),
        Ok(stat) if read::kind(&stat).is_none() => {
            Err(wrong(Kind::WrongKind, &format!("is a {}, which is not replaced", read::special(&stat))))
        }
        Ok(_) => name_at(&std::fs::canonicalize(path).attempt("resolving", path)?),
        Err(rustix::io::Errno::NOENT) => match to.placement {
            UploadPlacement::Into => Err(wrong(Kind::NotFound, "no such directory (ENOENT)")),
            _ if directory => {
                let (parent, name) = split(&trimmed(path))?;
                make(open(&parent)?, &name)
            }
            _ if slash => Err(wrong(Kind::NotFound, "the destination directory must exist (ENOENT)")),
            _ => name_at(&unfollowed(path)?),
        },
        Err(errno) => Err(Failure::io("looking at", path, &errno.into())),
    }
}

/// A name that is one, whatever a peer says.
fn one_name(name: &OsString) -> Result<(), Failure> {
    match crate::names::components(name.as_bytes())?.as_slice() {
        [_] => Ok(()),
        _ => Err(Failure::new(
            Kind::Escapes,
            PathBuf::from(name),
            format!("{}: is not one name", Path::new(name).display()),
        )),
    }
}

fn name_at(path: &Path) -> Result<Placed, Failure> {
    let (parent, name) = split(path)?;
    Ok(Placed::Name { dir: open(&parent)?, name })
}

/// Where a dangling link leads to, or the path itself.
fn unfollowed(path: &Path) -> Result<PathBuf, Failure> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match std::fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(Failure::new(Kind::WrongKind, &path, format!("{}: too many symbolic links", path.display())))
}

/// Without slashes and `/.` at its end.
fn trimmed(path: &Path) -> PathBuf {
    // Comparing by components does it.
    path.components().collect()
}

fn split(path: &Path) -> Result<(PathBuf, OsString), Failure> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.to_owned())),
        _ => Err(Failure::new(Kind::Invalid, path, format!("{}: does not name a file", path.display()))),
    }
}

/// Opens a directory by a path of the caller's own: links in it are the caller's wish.
fn open(path: &Path) -> Result<Directory, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())
        .attempt("opening the directory", path)?;
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    Ok(Directory { fd, path })
}

/// A directory `name` in `parent`: made, or there already.
fn make(parent: Directory, name: &OsString) -> Result<Placed, Failure> {
    let path = parent.path.join(name);
    let created = match rustix::fs::mkdirat(&parent.fd, name.as_os_str(), Mode::RWXU) {
        Ok(()) => true,
        Err(rustix::io::Errno::EXIST) => false,
        Err(errno) => return Err(Failure::io("making the directory", &path, &errno.into())),
    };
    let fd = enter(&parent, name.as_bytes(), &path)?;
    Ok(Placed::Tree { dir: Directory { fd, path }, created, parent: Some(parent) })
}

/// A directory below another one; a symbolic link is not one.
pub(crate) fn enter(parent: &Directory, name: &[u8], path: &Path) -> Result<std::os::fd::OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let name = OsString::from_vec(name.to_vec());
    rustix::fs::openat(&parent.fd, name.as_os_str(), flags, Mode::empty()).map_err(|errno| match errno {
        rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => Failure {
            errno: errno.raw_os_error(),
            ..Failure::new(
                Kind::WrongKind,
                path,
                format!(
                    "{}: is no directory (a symbolic link is not followed): it is not replaced by one",
                    path.display()
                ),
            )
        },
        errno => Failure::io("opening the directory", path, &errno.into()),
    })
}
