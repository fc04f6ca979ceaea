//! Users and groups, read from `/etc/passwd` and `/etc/group` by this file alone: a static binary that asks glibc's
//! name services in a foreign root file system can crash there.

use std::{ffi::OsString, fs::File, io::Read as _, os::unix::ffi::OsStringExt as _, path::Path};

use holdfast_wire::api::StartFailure;

use super::SpawnError;

/// The most that is read of each file, in bytes: 100,000 users.
const MOST: u64 = 8 << 20;

/// Somebody that a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, `gid` included.
    pub(crate) groups: Vec<u32>,
    /// The uid in digits where the file does not know it.
    pub(super) name: OsString,
    pub(super) home: OsString,
    pub(super) shell: OsString,
}

/// Finds who `user` is: a name, a uid, `uid:gid`, or either with the other's name after the colon.
pub(crate) fn resolve(user: &str, etc: &Path) -> Result<Account, SpawnError> {
    let (who, group) = match user.split_once(':') {
        Some((who, group)) => (who, Some(group)),
        None => (user, None),
    };
    let unknown = |what: &str, name: &str, file: &str| {
        SpawnError::new(
            StartFailure::UnknownUser,
            0,
            format!("no {what} {name:?} in {}", etc.join(file).display()),
        )
    };
    let passwd = read(&etc.join("passwd"))?;
    let groups = read(&etc.join("group"))?;
    let mut account = match (find(&passwd, who), who.parse::<u32>()) {
        (Some(account), _) => account,
        // An unknown uid is nobody's: group 0 as with docker, no home.
        (None, Ok(uid)) if uid != u32::MAX => Account::nameless(uid),
        _ => return Err(unknown("user", who, "passwd")),
    };
    match group {
        None => account.groups = memberships(&groups, &account),
        // An explicit group is the only one, as with docker.
        Some(group) => {
            account.gid = match (gid_of(&groups, group), group.parse::<u32>()) {
                (Some(gid), _) => gid,
                (None, Ok(gid)) if gid != u32::MAX => gid,
                _ => return Err(unknown("group", group, "group")),
            };
            account.groups = vec![account.gid];
        }
    }
    Ok(account)
}

/// Who a uid is; a nameless account where the file does not know it.
pub(super) fn by_uid(uid: u32, etc: &Path) -> Account {
    // A file that cannot be read names nobody.
    let passwd = read(&etc.join("passwd")).unwrap_or_default();
    find(&passwd, &uid.to_string()).unwrap_or_else(|| Account::nameless(uid))
}

/// Gives a workspace that is nobody's yet to the user whose commands run in it: a fresh volume belongs to root, who
/// is the supervisor. One that belongs to somebody else is left as it is, and so is everything in it.
pub(crate) fn give_workspace(workspace: &Path, user: &str) -> Result<(), SpawnError> {
    let failed = |error: std::io::Error| {
        let attempted = format!("giving {} to {user}", workspace.display());
        SpawnError::io(StartFailure::BadCwd, &error, attempted)
    };
    let account = resolve(user, Path::new("/etc"))?;
    let own = rustix::process::geteuid();
    let facts = rustix::fs::stat(workspace).map_err(|errno| failed(errno.into()))?;
    if !own.is_root() || facts.st_uid != own.as_raw() || account.uid == own.as_raw() {
        return Ok(());
    }
    let (uid, gid) =
        (rustix::process::Uid::from_raw(account.uid), rustix::process::Gid::from_raw(account.gid));
    rustix::fs::chown(workspace, Some(uid), Some(gid)).map_err(|errno| failed(errno.into()))
}

impl Account {
    fn nameless(uid: u32) -> Self {
        Self {
            uid,
            gid: 0,
            groups: vec![0],
            name: uid.to_string().into(),
            home: "/".into(),
            shell: "/bin/sh".into(),
        }
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let [name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
        let or = |field: &[u8], default: &str| match field {
            [] => default.into(),
            field => OsString::from_vec(field.to_vec()),
        };
        let gid = number(gid)?;
        Some(Self {
            uid: number(uid)?,
            gid,
            groups: vec![gid],
            name: or(name, ""),
            home: or(home, "/"),
            shell: or(shell, "/bin/sh"),
        })
    }
}

/// By name first: a user named "1000" is that user.
fn find(passwd: &[u8], who: &str) -> Option<Account> {
    let accounts = || lines(passwd).filter_map(Account::parse);
    accounts().find(|account| account.name.as_encoded_bytes() == who.as_bytes()).or_else(|| {
        let uid = who.parse::<u32>().ok()?;
        accounts().find(|account| account.uid == uid)
    })
}

fn gid_of(groups: &[u8], name: &str) -> Option<u32> {
    lines(groups).find_map(|line| {
        let (found, gid, _) = group(line)?;
        (found == name.as_bytes()).then_some(gid)
    })
}

fn memberships(groups: &[u8], account: &Account) -> Vec<u32> {
    let mut all = vec![account.gid];
    for (_, gid, members) in lines(groups).filter_map(group) {
        let member = members.split(|byte| *byte == b',').any(|m| m == account.name.as_encoded_bytes());
        if member && !all.contains(&gid) {
            all.push(gid);
        }
    }
    // What the kernel takes with one call.
    all.truncate(65_536);
    all
}

/// Name, gid, members.
fn group(line: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let mut fields = line.split(|byte| *byte == b':');
    let (name, _, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    Some((name, number(gid)?, members))
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.starts_with(b"#"))
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// A missing file is an empty one: an image need not have users.
fn read(path: &Path) -> Result<Vec<u8>, SpawnError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut bytes)) {
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => {
            Err(SpawnError::io(StartFailure::UnknownUser, &error, format_args!("reading {}", path.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("passwd"),
            "root:x:0:0:root:/root:/bin/bash\n# a remark\nada:x:1000:1000:Ada:/home/ada:\n1234:x:77:77::/odd:/bin/odd\nbroken:x:no\n",
        )
        .unwrap();
        std::fs::write(
            dir.path().join("group"),
            "root:x:0:\nada:x:1000:\nwheel:x:10:root,ada\nada2:x:11:adaa\n",
        )
        .unwrap();
        dir
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let etc = etc();
        let ada = resolve("ada", etc.path()).unwrap();
        assert_eq!((ada.uid, ada.gid, ada.groups.as_slice()), (1000, 1000, &[1000, 10][..]));
        assert_eq!((ada.home, ada.shell), ("/home/ada".into(), "/bin/sh".into()));
    }

    #[test]
    fn a_number_is_a_uid_unless_it_is_a_name() {
        let etc = etc();
        assert_eq!(resolve("1000", etc.path()).unwrap().name, "ada");
        assert_eq!(resolve("1234", etc.path()).unwrap().uid, 77);
        let nobody = resolve("4711", etc.path()).unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.home), (4711, 0, "/".into()));
    }

    #[test]
    fn an_explicit_group_is_the_only_one() {
        let etc = etc();
        assert_eq!(resolve("1000:10", etc.path()).unwrap().groups, [10]);
        assert_eq!(resolve("ada:wheel", etc.path()).unwrap().gid, 10);
    }

    #[test]
    fn whoever_is_unknown_is_named() {
        let etc = etc();
        let error = resolve("eve", etc.path()).unwrap_err();
        assert_eq!(error.kind, StartFailure::UnknownUser);
        assert!(error.message.contains("\"eve\""), "{error}");
        assert!(resolve("ada:nogroup", etc.path()).unwrap_err().message.contains("\"nogroup\""));
        assert!(resolve("", etc.path()).is_err());
        assert!(resolve("broken", etc.path()).is_err(), "a broken line names nobody");
    }
}
