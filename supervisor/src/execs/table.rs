//! The table of execs: who is there, who may come in, who goes when time or room is up.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use bytes::Bytes;
use holdfast_wire::{
    api::{ExecInfo, ExecSpec, WhenFull, exec_spec::Command},
    control::{ExecRelay, RefusedCode},
    ids::ExecId,
    spec,
};
use tokio::time::{Instant, sleep_until};

use super::{
    Inner,
    exec::{Exec, Facts, Phase},
    relay::Refusal,
    spawn::{Output, SpawnRequest},
    spool::Spool,
    stdin::Stdin,
    task,
};

/// Where commands are looked up if the environment does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a terminal is if the environment does not say.
const TERM: &str = "xterm-256color";

/// The variable that tells a command which sandbox it is in.
const SANDBOX_ID_VARIABLE: &str = "HOLDFAST_SANDBOX_ID";

/// All execs.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    execs: HashMap<ExecId, Arc<Exec>>,
    serial: u64,
}

impl Table {
    /// The oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Exec>> {
        let mut all: Vec<_> = self.lock().execs.values().cloned().collect();
        all.sort_by_key(|exec| exec.serial);
        all
    }

    /// Takes an exec that `make` makes of its serial.
    pub(super) fn adopt(&self, make: impl FnOnce(u64) -> Exec) {
        let mut entries = self.lock();
        let exec = Arc::new(make(entries.next_serial()));
        entries.execs.insert(exec.id, exec);
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

impl Inner {
    pub(super) fn report(&self) -> Vec<ExecInfo> {
        self.table.all().iter().map(|exec| exec.info()).collect()
    }

    /// The exec of an id in its 16 bytes.
    pub(super) fn find(&self, id: &Bytes) -> Result<Arc<Exec>, Refusal> {
        let id = exec_id(id)?;
        let found = self.table.lock().execs.get(&id).cloned();
        found.ok_or_else(|| Refusal::new(RefusedCode::NotFound, format!("no exec {id} in this sandbox")))
    }

    /// The exec that a relay asks for: found, or started. The same id with the same spec is the same exec, however
    /// often it is asked for.
    pub(super) fn start_or_find(self: &Arc<Self>, request: &ExecRelay) -> Result<Arc<Exec>, Refusal> {
        let Some(start) = &request.start else { return self.find(&request.exec_id) };
        let id = exec_id(&request.exec_id)?;
        let times = spec::check(start)
            .map_err(|error| Refusal::new(RefusedCode::Invalid, format!("the exec's spec: {error}")))?;
        let mut entries = self.table.lock();
        if let Some(exec) = entries.execs.get(&id) {
            if exec.facts.digest == spec::digest(start) {
                return Ok(Arc::clone(exec));
            }
            let message = format!("exec {id} exists with another spec");
            return Err(Refusal::new(RefusedCode::Conflict, message));
        }
        if self.stopping.load(Ordering::SeqCst) || self.token.is_cancelled() {
            return Err(Refusal::new(RefusedCode::Stopping, "the sandbox is being stopped"));
        }
        self.make_room(&mut entries)?;
        let block = match WhenFull::try_from(start.when_full) {
            Ok(WhenFull::Block) => true,
            Ok(WhenFull::DropOldest) => false,
            _ => request.attach,
        };
        let spool = Spool::new(
            id,
            Arc::clone(&self.disk),
            self.config.spool.per_exec_bytes,
            block,
            &self.tracker,
            self.token.child_token(),
        );
        let facts = Facts::of(start, times, self.config.sandbox_id);
        let spawn = self.spawn_request(id, start);
        let (exec, inbox) = Exec::new(id, entries.next_serial(), facts, spool, Stdin::new(start.stdin));
        let exec = Arc::new(exec);
        entries.execs.insert(id, Arc::clone(&exec));
        self.running.send_modify(|running| *running += 1);
        self.commands.spawn(task::run(Arc::clone(self), Arc::clone(&exec), inbox, spawn));
        drop(entries);
        self.touch(&exec);
        tracing::info!(exec = %id, command = %exec.facts.command, "an exec is accepted");
        Ok(exec)
    }

    /// Room for one more: the one that ended first and that nobody reads goes.
    fn make_room(&self, entries: &mut Entries) -> Result<(), Refusal> {
        let most = self.max_execs.load(Ordering::Relaxed);
        while entries.execs.len() >= most {
            let oldest = entries
                .execs
                .values()
                .filter(|exec| exec.spool.readers() == 0)
                .filter_map(|exec| Some((exec.ended_at()?, exec.serial, exec.id)))
                .min();
            let Some((_, _, id)) = oldest else {
                let message = format!("{most} execs run or are being read: the most that this sandbox keeps");
                return Err(Refusal::new(RefusedCode::Exhausted, message));
            };
            if let Some(exec) = entries.execs.remove(&id) {
                self.forget(&exec);
            }
        }
        Ok(())
    }

    /// Removes what is kept of an exec that is no longer in the table.
    fn forget(&self, exec: &Arc<Exec>) {
        exec.spool.forget();
        let (disk, id) = (Arc::clone(&self.disk), exec.id);
        self.tracker.spawn_blocking(move || disk.remove(id));
    }

    /// Removes execs as their time is up. Ends by the token.
    pub(super) async fn sweep(self: Arc<Self>) {
        /// One that is being read when its time is up is looked at again after so long.
        const AGAIN: std::time::Duration = std::time::Duration::from_secs(10);
        let mut changed = self.swept.subscribe();
        loop {
            changed.borrow_and_update();
            let now = Instant::now();
            let mut next: Option<Instant> = None;
            let mut gone = Vec::new();
            self.table.lock().execs.retain(|_, exec| {
                let Some(expires) = exec.expires() else { return true };
                let keep = expires > now || exec.spool.readers() > 0;
                if keep {
                    let look = expires.max(if expires > now { expires } else { now + AGAIN });
                    next = Some(next.map_or(look, |next| next.min(look)));
                } else {
                    gone.push(Arc::clone(exec));
                }
                keep
            });
            for exec in &gone {
                tracing::debug!(exec = %exec.id, "an exec's retention is over");
                self.forget(exec);
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = async {
                    match next {
                        Some(next) => sleep_until(next).await,
                        None => std::future::pending().await,
                    }
                } => {}
                () = self.token.cancelled() => return,
            }
        }
    }

    /// Takes note of an exec's next phase and tells all who listen.
    pub(super) fn advance(&self, exec: &Exec, phase: Phase) {
        let ended = match &phase {
            Phase::Ended(end) => Some(end.outcome.clone()),
            _ => None,
        };
        let changed = exec.advance(phase);
        if let (Some(outcome), true) = (ended, changed) {
            tracing::info!(exec = %exec.id, ?outcome, "an exec has ended");
            self.signs.on_end(exec.id, &outcome);
            self.running.send_modify(|running| *running = running.saturating_sub(1));
            self.swept.send_replace(());
        }
        self.touch(exec);
    }

    /// The exec has changed: it gets the next revision, then all are told of that.
    fn touch(&self, exec: &Exec) {
        self.revision.send_modify(|revision| {
            *revision += 1;
            exec.set_changed_at(*revision);
        });
    }

    /// Reads a pipe that a background process holds to nowhere, until its end.
    pub(super) fn discard(&self, mut source: Output) {
        let Ok(permit) = Arc::clone(&self.held_pipes).try_acquire_owned() else {
            tracing::warn!("too many background processes hold pipes of ended execs: this one is closed");
            return;
        };
        let token = self.token.clone();
        self.tracker.spawn(async move {
            let _permit = permit;
            let mut nowhere = tokio::io::sink();
            tokio::select! {
                // An error is an end.
                _ = tokio::io::copy(&mut source, &mut nowhere) => {}
                () = token.cancelled() => {}
            }
        });
    }

    fn spawn_request(&self, id: ExecId, spec: &ExecSpec) -> SpawnRequest {
        let argv = match &spec.command {
            Some(Command::Argv(argv)) => argv.args.iter().map(|arg| os(arg)).collect(),
            Some(Command::Shell(line)) => vec!["/bin/sh".into(), "-c".into(), os(line)],
            // The spec has been checked.
            None => Vec::new(),
        };
        // A terminal's numbers have been checked to fit.
        let number = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let tty = spec.tty.as_ref().map(|size| (number(size.cols), number(size.rows)));
        let mut request = self.request(id, argv);
        if tty.is_some() {
            request.env.push(("TERM".into(), TERM.into()));
        }
        request.env.extend(spec.env.iter().map(|variable| (os(&variable.name), os(&variable.value))));
        // Absolute, or from the workspace.
        if !spec.cwd.is_empty() {
            request.cwd = self.config.workspace.join(PathBuf::from(os(&spec.cwd)));
            request.in_workspace = false;
        }
        if !spec.user.is_empty() {
            request.user = Some(spec.user.clone());
        }
        SpawnRequest { tty, stdin: spec.stdin, ..request }
    }

    /// A command without a spec, in the environment of all: the probe's.
    pub(super) fn request(&self, id: ExecId, argv: Vec<OsString>) -> SpawnRequest {
        let mut env = vec![("PATH".into(), PATH.into())];
        env.extend(self.config.base_env.iter().cloned());
        env.push((SANDBOX_ID_VARIABLE.into(), self.config.sandbox_id.to_string().into()));
        SpawnRequest {
            exec: id,
            argv,
            env,
            cwd: self.config.workspace.clone(),
            in_workspace: true,
            user: self.config.default_user.clone(),
            tty: None,
            stdin: false,
        }
    }
}

fn exec_id(bytes: &[u8]) -> Result<ExecId, Refusal> {
    ExecId::from_slice(bytes).map_err(|error| Refusal::new(RefusedCode::Invalid, format!("exec_id: {error}")))
}

fn os(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_owned()
}
