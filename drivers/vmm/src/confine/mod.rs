//! What a process of a machine gives up before it does its work.
//!
//! ```text
//!                    machine (libkrun)                gvproxy                      holder
//!   files seen       image, disk, console, kvm        its socket, libraries        all
//!   user             one of its own                   one of its own               the gateway's
//!   capabilities     to read the image's files        none                         to end the two
//!   privileges       no new ones                      no new ones                  no new ones
//!   limits           no core, some descriptors        no core, some descriptors    no core
//!   system calls     none that lead out               all                          all
//! ```
//!
//! Each step is tried. What the machine that this runs on does not allow is told, and the rest is done all the same: a
//! host without user namespaces still has limits, and no new privileges. A user of its own needs root, as making one's
//! own mounts does, unless there are user namespaces: then the user is the gateway's, and sees no more than the others.

mod calls;
mod view;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::{
    process::{Resource, Rlimit, geteuid, getrlimit, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_keep_capabilities, set_no_new_privs,
    },
};

pub(crate) use self::view::View;

/// Descriptors of a machine: libkrun holds one for each file of the image that the guest's kernel has in its cache.
pub(crate) const FILES_OF_A_MACHINE: u64 = 1 << 18;
/// Of gvproxy: one for each connection that leaves the machine.
pub(crate) const FILES_OF_A_NETWORK: u64 = 1 << 13;
/// The last capability that a kernel of today has is number 40; asking for more is answered by EINVAL.
const CAPABILITIES: u32 = 64;

/// What a process needs; everything else is given up.
#[derive(Debug)]
pub(crate) struct Needs {
    /// The files that it sees. `None`: all.
    pub(crate) view: Option<View>,
    /// Whom it becomes, where it may choose.
    pub(crate) user: Option<u32>,
    pub(crate) capabilities: CapabilitySet,
    pub(crate) files: Option<u64>,
    /// It starts no program and opens no socket.
    pub(crate) calls: bool,
}

/// One step of giving up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Limits,
    View,
    User,
    Capabilities,
    Privileges,
    Calls,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limits => "limits",
            Self::View => "own mounts",
            Self::User => "own user",
            Self::Capabilities => "few capabilities",
            Self::Privileges => "no new privileges",
            Self::Calls => "few system calls",
        })
    }
}

/// What was given up, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Confined {
    pub(crate) done: Vec<Step>,
    pub(crate) refused: Vec<(Step, io::Error)>,
}

impl Confined {
    fn note(&mut self, step: Step, done: io::Result<()>) -> bool {
        match done {
            Ok(()) => self.done.push(step),
            Err(error) => self.refused.push((step, error)),
        }
        self.done.contains(&step)
    }

    pub(crate) fn has(&self, step: Step) -> bool {
        self.done.contains(&step)
    }

    /// Into this process's log.
    pub(crate) fn tell(&self) {
        tracing::info!("confined by {}", self.steps());
        for (step, error) in &self.refused {
            tracing::warn!(%step, %error, "not confined by this, which this machine does not allow");
        }
    }

    pub(crate) fn steps(&self) -> String {
        self.done.iter().map(Step::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// Gives up what is not needed. For a process with one thread. A parent-death signal has to be asked for again after it.
pub(crate) fn confine(needs: Needs) -> Confined {
    let mut confined = Confined::default();
    confined.note(Step::Limits, limit(needs.files));
    let is_root = geteuid().is_root();
    let entered = needs.view.as_ref().map(|view| view.enter(needs.user.filter(|_| is_root)));
    let may_change = match entered {
        // Without a view it keeps its paths, which another user cannot go.
        None => needs.user.is_some(),
        Some(entered) => {
            let devices = entered.as_ref().is_ok_and(|devices| *devices);
            confined.note(Step::View, entered.map(drop)) && devices
        }
    };
    // Before the user changes: the right to do it goes with root.
    bound_capabilities();
    let user = needs.user.filter(|_| is_root);
    match user {
        Some(user) if may_change => {
            let groups = needs.view.as_ref().map(View::groups).unwrap_or_default();
            confined.note(Step::User, become_user(user, &groups));
        }
        Some(_) => {
            let why = io::Error::other("it could not reach its files and devices as another user");
            confined.note(Step::User, Err(why));
        }
        None if needs.user.is_some() => {
            confined.note(Step::User, Err(io::Error::other("the gateway is not root")));
        }
        None => {}
    }
    let kept = if is_root { needs.capabilities } else { CapabilitySet::empty() };
    confined.note(Step::Capabilities, keep_capabilities(kept));
    confined.note(Step::Privileges, set_no_new_privs(true).map_err(io::Error::from));
    if needs.calls {
        confined.note(Step::Calls, calls::refuse());
    }
    confined
}

/// Whether this machine allows it all: says on stdout what holds, and what does not and why, a line each.
pub(crate) fn try_all(user: u32) -> Confined {
    // Anywhere: nobody else sees what is mounted there.
    let view = View::new(Path::new("/tmp")).device(Path::new("/dev/kvm"));
    confine(Needs {
        view: Some(view),
        user: Some(user),
        capabilities: CapabilitySet::DAC_READ_SEARCH,
        files: Some(FILES_OF_A_MACHINE),
        calls: true,
    })
}

/// No memory of a guest in a core file, and a bounded number of descriptors.
fn limit(files: Option<u64>) -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    if let Some(files) = files {
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).min(files);
        setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

fn become_user(user: u32, groups: &[u32]) -> io::Result<()> {
    // Or the capabilities that are kept would go with root.
    set_keep_capabilities(true)?;
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    let (gid, uid) = (Gid::from_raw(user), Uid::from_raw(user));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// No program that this process might start can have any. Whoever is not root may not say so, and has none.
fn bound_capabilities() {
    for number in 0..CAPABILITIES {
        let _ = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number));
    }
}

fn keep_capabilities(kept: CapabilitySet) -> io::Result<()> {
    clear_ambient_capability_set()?;
    let permitted = rustix::thread::capabilities(None)?.permitted & kept;
    set_capabilities(
        None,
        CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}

/// What a program sees that is linked dynamically: the system's libraries, and what a resolver reads.
pub(crate) fn libraries(view: View) -> View {
    const DIRS: [&str; 8] =
        ["/usr", "/lib", "/lib32", "/lib64", "/etc", "/nix/store", "/opt/homebrew", "/run/systemd/resolve"];
    DIRS.iter().map(PathBuf::from).fold(view, |view, dir| view.system(&dir))
}
