//! The spawner that forks.
//!
//! Forking, exec and the looks through `/proc` block for a moment (and for long on a hung mount), so they run on
//! the runtime's blocking threads. What was started belongs to a [`Leader`]: as long as its exec has not let it go,
//! dropping it kills the whole family.

use std::{
    collections::HashSet,
    ffi::{CString, OsString},
    io::{self, Read as _},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::BoxFuture;
use holdfast_wire::{api::StartFailure, ids::ExecId};
use rustix::{
    io::Errno,
    process::{Gid, Pid, Signal, Uid},
};
use tokio::sync::Semaphore;

use super::{
    Control, EXEC_ID_VARIABLE, Exit, Input, KILL_ROUND, MemoryUse, Output, ProcessMark, SpawnError,
    SpawnRequest, Spawned, Spawner,
    cgroup::Cgroup,
    child::{self, Identity, Plan, Stage},
    lookup,
    oom::{self, Kills},
    processes::{Family, Held, Stat, boot_id},
    pty,
    users::{self, Account},
};
use crate::init::{Children, OwnChild};

/// Rounds of killing where the kernel does it one by one: a fork bomb may need several, a D state is not cured by
/// more.
const KILL_ROUNDS: usize = 50;

/// Starts at once: a quarter of the supervisor's threads for what blocks, so that spools are written and processes
/// killed whatever becomes of starts.
const STARTS: usize = 16;

/// Starts real processes.
#[derive(Clone, Debug)]
pub struct RealSpawner {
    machine: Arc<Machine>,
}

#[derive(Debug)]
struct Machine {
    /// Where cgroups for execs can be made.
    cgroups: Option<PathBuf>,
    boot_id: String,
    /// What a command's oom_score_adj becomes, if it must not be the supervisor's.
    oom_score: Option<Vec<u8>>,
    /// What the kernel has killed for memory.
    oom_kills: Kills,
    /// Where passwd and group are.
    etc: PathBuf,
    /// Cgroups in which something still lived when their execs ended: removed once it is gone.
    stale: Mutex<Vec<Cgroup>>,
    /// Keeps the collector of orphans away from our own processes.
    children: Children,
    /// Starts at once. A start on a mount that hangs holds its thread for as long as it hangs, whoever has given it up.
    places: Arc<Semaphore>,
}

impl Default for RealSpawner {
    fn default() -> Self {
        Self::new()
    }
}

impl RealSpawner {
    /// Looks at what this machine offers.
    #[must_use]
    pub fn new() -> Self {
        let machine = Machine::look();
        tracing::debug!(?machine, "processes can be started");
        Self { machine: Arc::new(machine) }
    }

    /// Looks at what this machine offers, as the first process of a PID namespace: what is started is noted in
    /// `children`, so that it is not collected as an orphan.
    #[must_use]
    pub fn among(children: Children) -> Self {
        let mut machine = Machine::look();
        machine.children = children;
        machine.oom_score = oom::score_of_commands(true);
        Self { machine: Arc::new(machine) }
    }

    /// Without cgroups, whatever the machine offers: processes are then found by session and marker.
    #[must_use]
    pub fn without_cgroups() -> Self {
        let mut machine = Machine::look();
        machine.cgroups = None;
        Self { machine: Arc::new(machine) }
    }

    /// In a microVM, whose whole memory is this supervisor's and its commands'.
    #[must_use]
    pub fn of_a_machine(mut self) -> Self {
        // Just made: nobody else holds it.
        if let Some(machine) = Arc::get_mut(&mut self.machine) {
            machine.oom_kills = Kills::of_the_machine();
        }
        self
    }

    /// Whether every exec gets a cgroup of its own.
    #[must_use]
    pub fn has_cgroups(&self) -> bool {
        self.machine.cgroups.is_some()
    }
}

impl Spawner for RealSpawner {
    fn spawn(&self, request: SpawnRequest) -> BoxFuture<'static, Result<Spawned, SpawnError>> {
        let machine = Arc::clone(&self.machine);
        Box::pin(async move {
            // Waits, within the time that a start may take, while too many hang.
            let place = Arc::clone(&machine.places).acquire_owned().await;
            let start = move || {
                let started = machine.start(&request);
                drop(place);
                started
            };
            // Should this future be dropped, the blocking thread drops what it made, which kills it.
            match tokio::task::spawn_blocking(start).await {
                Ok(result) => result,
                Err(error) => Err(SpawnError::new(
                    StartFailure::Resources,
                    0,
                    format!("the spawning thread failed: {error}"),
                )),
            }
        })
    }

    fn kill_leftovers(&self, exec: ExecId, mark: &ProcessMark) -> usize {
        if mark.boot_id.is_empty() || mark.boot_id != self.machine.boot_id {
            return 0;
        }
        let cgroup = mark.cgroup.as_deref().and_then(|dir| Cgroup::reopen(dir, exec));
        let family = Family { exec, pid: mark.pid, start_ticks: mark.start_ticks, cgroup }.of_the_past();
        let killed = family.kill_all_there_are();
        if let Some(cgroup) = &family.cgroup {
            cgroup.remove();
        }
        killed
    }

    fn memory(&self) -> MemoryUse {
        self.machine.oom_kills.memory()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.sweep(None);
    }
}

/// The child's ends of its standard streams, and ours.
struct Streams {
    child: [Stdio; 3],
    stdin: Option<Input>,
    stdout: Output,
    stderr: Option<Output>,
    master: Option<pty::Master>,
}

impl Machine {
    fn look() -> Self {
        Self {
            cgroups: Cgroup::base(),
            boot_id: boot_id(),
            oom_score: oom::score_of_commands(false),
            oom_kills: Kills::look(),
            etc: "/etc".into(),
            stale: Mutex::default(),
            children: Children::default(),
            places: Arc::new(Semaphore::new(STARTS)),
        }
    }

    fn start(self: &Arc<Self>, request: &SpawnRequest) -> Result<Spawned, SpawnError> {
        self.sweep(None);
        let Some((program, args)) = request.argv.split_first() else {
            return Err(SpawnError::new(StartFailure::Invalid, 0, "an empty argv"));
        };
        let resources = |what: &'static str| {
            move |error: io::Error| SpawnError::io(StartFailure::Resources, &error, what)
        };
        let (account, identity) = self.account(request)?;
        let owner = identity.as_ref().map(|identity| identity.uid);
        let streams = open_streams(request, owner)?;
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK)
                .map_err(|errno| resources("opening a pipe for the child's report")(errno.into()))?;
        let cgroup = self.cgroups.as_ref().and_then(|base| Cgroup::create(base, request.exec));
        let (cgroup, door) = cgroup.unzip();
        let cwd = CString::new(request.cwd.as_os_str().as_bytes())
            .map_err(|_| SpawnError::new(StartFailure::BadCwd, 0, "the working directory has a NUL byte"))?;
        let env = environment(request, &account);

        let mut command = std::process::Command::new(program);
        command.arg0(program).args(args).env_clear().envs(env.iter().map(|(name, value)| (name, value)));
        let [stdin, stdout, stderr] = streams.child;
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let plan = Plan {
            stage: writer,
            tty: request.tty.is_some(),
            cgroup: door,
            identity,
            cwd,
            enter_first: request.in_workspace,
            nofile: crate::descriptors::inherited(),
            oom_score: self.oom_score.clone(),
        };
        child::prepare(&mut command, plan);
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        let memory = Memory { kills: self.oom_kills.clone(), before: self.oom_kills.count() };
        let child = self.children.spawn(|| {
            let child = command.spawn()?;
            let pid = child.id();
            Ok((child, pid))
        });
        // With it go our copies of the child's ends, and of the report pipe's.
        drop(command);
        let (child, mark) = child.map_err(|error: io::Error| {
            if let Some(cgroup) = &cgroup {
                cgroup.remove();
            }
            explain(&error, reader, request, &env)
        })?;
        // Not reaped yet, so it has a pid.
        let pid = child.id().unwrap_or(0);
        let start_ticks = Stat::of(pid).map_or(0, |stat| stat.start_ticks);
        let family = Family { exec: request.exec, pid, start_ticks, cgroup };
        let leader = Leader {
            family,
            machine: Arc::clone(self),
            master: streams.master,
            reaped: false,
            released: false,
        };
        Ok(Spawned {
            pid,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            wait: Box::pin(wait(child, mark, leader.family.cgroup.clone(), memory)),
            control: Box::new(leader),
        })
    }

    /// Removes the cgroups that have become empty, `also` among them.
    fn sweep(&self, also: Option<Cgroup>) {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        stale.extend(also);
        stale.retain(|cgroup| !cgroup.remove());
    }

    /// Whose environment it is, and who the child must become, if not who it is already.
    fn account(&self, request: &SpawnRequest) -> Result<(Account, Option<Identity>), SpawnError> {
        let own = (rustix::process::geteuid(), rustix::process::getegid());
        let Some(user) = &request.user else {
            return Ok((users::by_uid(own.0.as_raw(), &self.etc), None));
        };
        let account = users::resolve(user, &self.etc)?;
        let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
        if !own.0.is_root() {
            if (uid, gid) == own {
                return Ok((account, None));
            }
            return Err(SpawnError::new(
                StartFailure::UnknownUser,
                Errno::PERM.raw_os_error(),
                format!(
                    "cannot become {user:?}: the supervisor does not run as root, but as uid {}",
                    own.0.as_raw()
                ),
            ));
        }
        let groups = account.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        Ok((account, Some(Identity { uid, gid, groups })))
    }
}

fn open_streams(request: &SpawnRequest, owner: Option<Uid>) -> Result<Streams, SpawnError> {
    let failed =
        |what: &'static str| move |error: io::Error| SpawnError::io(StartFailure::Resources, &error, what);
    if let Some((cols, rows)) = request.tty {
        let failed = failed("opening a pseudo-terminal");
        let (master, slave) = pty::open(cols, rows, owner).map_err(failed)?;
        let copies = (slave.try_clone().map_err(failed)?, slave.try_clone().map_err(failed)?);
        return Ok(Streams {
            child: [slave.into(), copies.0.into(), copies.1.into()],
            stdin: request.stdin.then(|| Box::new(master.clone()) as Input),
            stdout: Box::new(master.clone()),
            stderr: None,
            master: Some(master),
        });
    }
    let failed = failed("opening pipes");
    let (stdin, child_stdin) = if request.stdin {
        let (reader, writer) = io::pipe().map_err(failed)?;
        let writer = tokio::net::unix::pipe::Sender::from_owned_fd(OwnedFd::from(writer)).map_err(failed)?;
        (Some(Box::new(writer) as Input), Stdio::from(reader))
    } else {
        (None, Stdio::null())
    };
    let output = || {
        let (reader, writer) = io::pipe()?;
        let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
        Ok((Box::new(reader) as Output, Stdio::from(writer)))
    };
    let (stdout, child_stdout) = output().map_err(failed)?;
    let (stderr, child_stderr) = output().map_err(failed)?;
    Ok(Streams {
        child: [child_stdin, child_stdout, child_stderr],
        stdin,
        stdout,
        stderr: Some(stderr),
        master: None,
    })
}

/// What the command finds in its environment: the marker first, the user's variables, then what was asked for. Of
/// two with one name the later one counts.
fn environment(request: &SpawnRequest, account: &Account) -> Vec<(OsString, OsString)> {
    let user = [
        ("HOME", &account.home),
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("SHELL", &account.shell),
    ];
    let marker = (OsString::from(EXEC_ID_VARIABLE), OsString::from(request.exec.to_string()));
    let mut all = vec![marker];
    all.extend(user.map(|(name, value)| (OsString::from(name), value.clone())));
    all.extend(request.env.iter().filter(|(name, _)| name != EXEC_ID_VARIABLE).cloned());
    all
}

/// Why the child never became the command.
fn explain(
    error: &io::Error,
    report: OwnedFd,
    request: &SpawnRequest,
    env: &[(OsString, OsString)],
) -> SpawnError {
    let mut byte = [0; 1];
    // The child is gone; what it wrote is in the pipe, which does not block.
    let stage = match std::fs::File::from(report).read(&mut byte) {
        Ok(1) => Stage::from_byte(byte[0]),
        _ => None,
    };
    let cwd = request.cwd.display();
    let user = request.user.as_deref().unwrap_or_default();
    match stage {
        Some(Stage::Cwd) => {
            SpawnError::io(StartFailure::BadCwd, error, format_args!("working directory {cwd}"))
        }
        Some(Stage::User) => {
            SpawnError::io(StartFailure::UnknownUser, error, format_args!("becoming user {user:?}"))
        }
        Some(Stage::Session) => SpawnError::io(StartFailure::Resources, error, "making a session"),
        Some(Stage::Terminal) => SpawnError::io(StartFailure::Resources, error, "taking the terminal"),
        Some(Stage::Privileges) => SpawnError::io(StartFailure::Resources, error, "giving up privileges"),
        None => lookup::explain(error, &request.argv[0], env, &request.cwd),
    }
}

/// What had been killed for memory when a command was started.
struct Memory {
    kills: Kills,
    before: Option<u64>,
}

impl Memory {
    /// Whether the kernel has killed for memory since.
    fn ran_out(&self) -> bool {
        self.before.is_some_and(|before| self.kills.count().is_some_and(|now| now > before))
    }
}

async fn wait(
    mut child: tokio::process::Child,
    mark: OwnChild,
    cgroup: Option<Cgroup>,
    memory: Memory,
) -> io::Result<Exit> {
    let status: ExitStatus = child.wait().await?;
    drop(mark);
    let Some(signal) = status.signal() else {
        return Ok(Exit::Code(status.code().unwrap_or(-1)));
    };
    // Its own cgroup knows for certain; where it has none, or one that does not count memory, the one of all says
    // that somebody was killed for memory while this command lived.
    let oom =
        signal == libc::SIGKILL && (cgroup.is_some_and(|cgroup| cgroup.oom_killed()) || memory.ran_out());
    Ok(Exit::Signal { signal, core: status.core_dumped(), oom })
}

/// The hold on a leader and its family.
#[derive(Debug)]
struct Leader {
    family: Family,
    machine: Arc<Machine>,
    master: Option<pty::Master>,
    reaped: bool,
    released: bool,
}

impl Control for Leader {
    fn signal(&mut self, signal: i32) -> io::Result<()> {
        let Some(signal) = Signal::from_named_raw(signal) else {
            return Err(Errno::INVAL.into());
        };
        if !self.reaped
            && let Some(group) = i32::try_from(self.family.pid).ok().and_then(Pid::from_raw)
        {
            return Ok(rustix::process::kill_process_group(group, signal)?);
        }
        // The group's number may be another's by now: one by one, each held.
        let members = self.family.members(false);
        members.iter().for_each(|held| held.signal(signal));
        if members.is_empty() { Err(Errno::SRCH.into()) } else { Ok(()) }
    }

    fn resize(&mut self, cols: u16, rows: u16) -> io::Result<()> {
        match &self.master {
            Some(master) => master.resize(cols, rows),
            None => Err(Errno::NOTTY.into()),
        }
    }

    fn kill_all(&mut self) -> BoxFuture<'static, bool> {
        let family = self.family.clone();
        Box::pin(async move {
            let (mut others, mut seen) = (false, HashSet::new());
            for _ in 0..KILL_ROUNDS {
                let family = family.clone();
                let look = move || {
                    let killed = family.kill_once(&mut seen);
                    (killed, seen)
                };
                let Ok((killed, known)) = tokio::task::spawn_blocking(look).await else { break };
                seen = known;
                others |= killed.others > 0;
                match (killed.others, killed.new) {
                    // Nobody lives whom an earlier look has not signalled, and who is signalled starts nobody.
                    (0, 0) => break,
                    // The leader alone: it may have started somebody while it was looked for.
                    (0, _) => {}
                    _ => tokio::time::sleep(KILL_ROUND).await,
                }
            }
            others
        })
    }

    fn gone(&mut self) -> BoxFuture<'static, ()> {
        let family = self.family.clone();
        Box::pin(async move {
            loop {
                let look = family.clone();
                let members =
                    tokio::task::spawn_blocking(move || look.members(false)).await.unwrap_or_default();
                if members.is_empty() {
                    return;
                }
                for held in members {
                    ended(held).await;
                }
            }
        })
    }

    fn reaped(&mut self) {
        self.reaped = true;
    }

    fn release(&mut self) {
        self.released = true;
    }

    fn mark(&self) -> ProcessMark {
        ProcessMark {
            pid: self.family.pid,
            start_ticks: self.family.start_ticks,
            boot_id: self.machine.boot_id.clone(),
            cgroup: self.family.cgroup.as_ref().map(Cgroup::path),
        }
    }
}

/// Waits for one process's end: a pidfd becomes readable then.
async fn ended(held: Held) {
    if let Some(fd) = held.into_fd()
        && let Ok(fd) = pty::watched(fd, tokio::io::Interest::READABLE)
        && fd.readable().await.is_ok()
    {
        return;
    }
    // A kernel before 5.3 tells nothing: look again.
    tokio::time::sleep(KILL_ROUND).await;
}

impl Drop for Leader {
    fn drop(&mut self) {
        if !self.released {
            self.family.kill_once(&mut HashSet::new());
        }
        if self.family.cgroup.is_some() {
            self.machine.sweep(self.family.cgroup.take());
        }
    }
}
