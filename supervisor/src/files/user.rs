//! Being somebody else, for the file system, on one thread.
//!
//! The kernel keeps credentials for each thread, and checks paths by the *file system* ids (setfsuid(2)). Only those
//! are changed, with the groups, and every capability is put down: so the kernel itself refuses what the user may
//! not, and yet the thread cannot be signalled or traced by that user, as it could with its real ids changed. The
//! thread ends with its work and never becomes anybody else again.

use std::path::{Path, PathBuf};

use holdfast_files::Failure;
use holdfast_wire::api::FileFailureKind as Kind;
use rustix::{process::Gid, thread::CapabilitySet};

use crate::execs::spawn::{Account, resolve_user};

/// Becomes `user` on this thread; empty: stays who the supervisor is.
pub(crate) fn become_user(user: &str, etc: &Path) -> Result<(), Failure> {
    if user.is_empty() {
        return Ok(());
    }
    let account = resolve_user(user, etc)
        .map_err(|error| Failure::new(Kind::Invalid, PathBuf::new(), format!("user {user:?}: {error}")))?;
    let own = rustix::process::geteuid().as_raw();
    if account.uid == own {
        return Ok(());
    }
    if own != 0 {
        let message =
            format!("user {user:?}: the supervisor runs as uid {own} and cannot act for uid {}", account.uid);
        return Err(Failure::new(Kind::Denied, PathBuf::new(), message));
    }
    change(&account).map_err(|error| Failure::io("acting for the user of", Path::new(user), &error))
}

fn change(account: &Account) -> std::io::Result<()> {
    let groups: Vec<Gid> = account.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    // The system call, so this thread alone: the C library's function would change all of them.
    rustix::thread::set_thread_groups(&groups)?;
    nix::unistd::setfsgid(account.gid.into());
    nix::unistd::setfsuid(account.uid.into());
    // They tell of no error: asking again (with an id that nobody has) says what holds now.
    let holds = nix::unistd::setfsuid(u32::MAX.into()).as_raw() == account.uid
        && nix::unistd::setfsgid(u32::MAX.into()).as_raw() == account.gid;
    if !holds {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = CapabilitySet::empty();
    sets.permitted = CapabilitySet::empty();
    sets.inheritable = CapabilitySet::empty();
    Ok(rustix::thread::set_capabilities(None, sets)?)
}
