//! An exec in the foreground: its output to stdout and stderr, stdin to it, signals to it, and its outcome.
//!
//! ```text
//!   session ──▶ pump: Output → stdout / stderr (blocking the stream while they block)
//!   stdin   ──▶ thread (stdin.rs)
//!   signals ──▶ 1st Ctrl-C: SIGINT to the command; 2nd within 2 s: cancel, 130
//!               SIGTERM, SIGHUP: cancel or detach, as the flags say
//! ```
//!
//! Whatever ends it, the terminal is put back first, and the result file written last.

use std::{cell::Cell, fs::File, io, os::fd::AsFd, sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_wire::{
    api::{CancelExecRequest, ExecEnded, OutputStream},
    ids::ExecId,
};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    result_file::ResultFile,
    signals::{Caught, Signals},
    stdin,
};
use crate::{
    client::{Client, Error, Event, ExecSession, Input, Patience, Target},
    exit,
    failure::Failed,
    output::{self, Output, PATIENCE, SCHEMA_VERSION, Spinner},
    show::{self, Outcome, Record},
    terminal::{self, Raw, detach::DetachKeys, modes::Modes},
};

/// A second Ctrl-C within this time means it.
const SECOND: Duration = Duration::from_secs(2);

/// Cancelling when leaving: the gateway is asked, and not waited for any longer.
const CANCEL: Duration = Duration::from_secs(3);

/// SIGINT and SIGQUIT, by Linux's numbers: they are the sandbox's.
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;

/// How an exec is followed.
#[derive(Debug)]
pub(crate) struct Foreground {
    pub(crate) client: Client,
    pub(crate) output: Output,
    pub(crate) target: Target,
    pub(crate) patience: Patience,
    /// The exec has a terminal, and this process's is its screen and keyboard.
    pub(crate) tty: bool,
    /// What it writes draws on a screen: this process's terminal, be the keyboard its own or not.
    pub(crate) screen: bool,
    /// Empty: leaving by keys is not offered.
    pub(crate) detach_keys: DetachKeys,
    pub(crate) kill_on_disconnect: bool,
    /// Ctrl-C and Ctrl-\ are for the command. False: they leave, and it runs on.
    pub(crate) sig_proxy: bool,
    /// Where the sandbox goes when this ends: nothing is left to attach to, so nothing is said about that.
    pub(crate) sandbox_goes: bool,
    pub(crate) result_file: Option<ResultFile>,
}

/// How following it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// What to exit with.
    pub(crate) code: u8,
    /// The exec runs on, because the user asked for that.
    pub(crate) detached: bool,
}

/// What became of it.
enum End {
    Ended(Box<ExecEnded>),
    Detached,
    /// The reader of stdout or stderr is gone.
    BrokenPipe,
    Caught(Caught),
    Failed(Failed),
}

/// Shared by the pump and the signals, on one task.
#[derive(Debug, Default)]
struct Progress {
    started: Cell<bool>,
    away: Cell<bool>,
    reattached: Cell<u32>,
    lost: Cell<u64>,
    received: Cell<(u64, u64)>,
    started_at: std::cell::RefCell<Option<String>>,
}

impl Foreground {
    /// Follows it to its end.
    ///
    /// # Errors
    /// It cannot be followed; or the result file cannot be written.
    pub(crate) async fn run(mut self, signals: &mut Signals) -> Result<Finished, Failed> {
        let exec_id = self.target.exec_id;
        let progress = Progress::default();
        let mut modes = Modes::default();
        let raw = if self.tty && self.target.stdin {
            Some(Raw::enter().map_err(|error| Failed::local("make the terminal raw", error))?)
        } else {
            None
        };
        let mut session = self.client.attach(self.target.clone(), self.patience);
        let input = session.input();
        // A start says how large the terminal is; who comes later has another.
        if self.tty
            && self.target.start.is_none()
            && let Some((cols, rows)) = terminal::size()
        {
            input.resize(cols, rows);
        }
        if self.target.stdin {
            let keys =
                (self.tty && self.detach_keys != DetachKeys::default()).then(|| self.detach_keys.clone());
            stdin::forward(input.clone(), keys)
                .map_err(|error| Failed::local("start reading stdin", error))?;
        }
        let end = tokio::select! {
            end = self.pump(&mut session, &progress, &mut modes) => end,
            caught = self.signals(signals, &input, &progress) => End::Caught(caught),
        };
        // A program that ended by itself has left the screen as it wants it.
        if self.screen && !matches!(&end, End::Ended(ended) if has_exited(ended)) {
            terminal::undo(&modes);
        }
        drop(raw);
        let (result, outcome) = self.finish(end, session, signals, &progress).await;
        if let Some(file) = self.result_file.take() {
            self.write_record(file, exec_id, &progress, outcome.as_deref(), &result)?;
        }
        result
    }

    /// Carries output until there is no more.
    async fn pump(&self, session: &mut ExecSession, progress: &Progress, modes: &mut Modes) -> End {
        let (stdout, stderr) = match (duplicate(io::stdout()), duplicate(io::stderr())) {
            (Ok(stdout), Ok(stderr)) => (stdout, stderr),
            (Err(error), _) | (_, Err(error)) => {
                return End::Failed(Failed::local("open stdout and stderr", error));
            }
        };
        // What to say if it takes long: first the start, later each loss of the stream.
        let mut waiting = Some((Instant::now() + PATIENCE, format!("waiting for {}", self.target.sandbox)));
        let mut spinner: Option<Spinner> = None;
        loop {
            let late = waiting.as_ref().map(|(at, _)| *at);
            let event = tokio::select! {
                event = session.next() => event,
                () = sleep_until(late.unwrap_or_else(Instant::now)), if late.is_some() => {
                    if let Some((_, text)) = waiting.take() {
                        spinner = self.say_waiting(&text, progress);
                    }
                    continue;
                }
            };
            let event = match event {
                Some(Ok(event)) => event,
                Some(Err(error)) => return End::Failed(error.into()),
                None => return End::Failed(Error::Internal(session.exec_id()).into()),
            };
            if !matches!(event, Event::Reattaching { .. } | Event::Notice(_)) {
                (waiting, spinner) = (None, None);
            }
            match event {
                Event::Started(exec) => {
                    progress.started.set(true);
                    *progress.started_at.borrow_mut() = show::time(exec.started_at.as_ref());
                }
                Event::Output { stream, data } => {
                    let (mut out, mut err) = progress.received.get();
                    let written = if stream == OutputStream::Stderr {
                        err += data.len() as u64;
                        write(&stderr, data).await
                    } else {
                        out += data.len() as u64;
                        if self.screen {
                            modes.feed(&data);
                        }
                        write(&stdout, data).await
                    };
                    progress.received.set((out, err));
                    match written {
                        Ok(()) => {}
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return End::BrokenPipe,
                        Err(error) => return End::Failed(Failed::local("write the command's output", error)),
                    }
                }
                Event::Lost { stream, bytes } => {
                    progress.lost.set(progress.lost.get().saturating_add(bytes));
                    let name = if stream == OutputStream::Stderr { "stderr" } else { "stdout" };
                    self.output
                        .note(&format!("{bytes} bytes of {name} are no longer kept and are missing here"));
                }
                Event::Notice(text) => self.output.note(&text),
                Event::Reattaching { cause } => {
                    progress.away.set(true);
                    waiting = Some((Instant::now() + PATIENCE, format!("{cause}; attaching again")));
                }
                Event::Reattached(back) => {
                    progress.away.set(false);
                    progress.reattached.set(progress.reattached.get() + 1);
                    progress.lost.set(progress.lost.get().saturating_add(back.lost));
                    self.output.note(&back.to_string());
                }
                Event::Ended { ended, missing } => {
                    drop(spinner);
                    if missing > 0 {
                        progress.lost.set(progress.lost.get().saturating_add(missing));
                        self.output.note(&format!("the last {missing} bytes of output are missing"));
                    }
                    return End::Ended(ended);
                }
                Event::Detached => return End::Detached,
            }
        }
    }

    fn say_waiting(&self, text: &str, progress: &Progress) -> Option<Spinner> {
        if progress.away.get() {
            self.output.note(text);
        }
        // A spinner would draw over the program's own screen.
        (!self.screen).then(|| self.output.spinner(text))
    }

    /// Handles signals until one of them means to leave.
    async fn signals(&self, signals: &mut Signals, input: &Input, progress: &Progress) -> Caught {
        let mut last: Option<Instant> = None;
        loop {
            match signals.next().await {
                Caught::Resized => {
                    if self.tty
                        && let Some((cols, rows)) = terminal::size()
                    {
                        input.resize(cols, rows);
                    }
                }
                caught @ (Caught::Interrupt | Caught::Quit) => {
                    let now = Instant::now();
                    let again = last.is_some_and(|last| now.duration_since(last) < SECOND);
                    // Before the start there is no command to pass it to, or it is not this caller's to end.
                    if again || !progress.started.get() || !self.sig_proxy {
                        return caught;
                    }
                    last = Some(now);
                    let signal = if caught == Caught::Quit { SIGQUIT } else { SIGINT };
                    if !input.signal(signal) {
                        return caught;
                    }
                    if progress.away.get() {
                        self.output.note(
                            "the signal is sent when attached again; once more to end the command and leave",
                        );
                    }
                }
                caught @ (Caught::Terminate | Caught::Hangup) => return caught,
            }
        }
    }

    /// Leaves in order: what to exit with, and the outcome where there is one.
    async fn finish(
        &self,
        end: End,
        session: ExecSession,
        signals: &mut Signals,
        progress: &Progress,
    ) -> (Result<Finished, Failed>, Option<Box<ExecEnded>>) {
        let left = |code| Ok(Finished { code, detached: false });
        match end {
            End::Ended(ended) => {
                let outcome = ended.outcome.clone().unwrap_or_default();
                if let Some(remark) = Outcome::of(&outcome).and_then(|outcome| outcome.remark()) {
                    self.output.note(&remark);
                }
                (left(exit::code(&outcome)), Some(ended))
            }
            End::Detached => {
                self.say_how_to_attach("detached");
                (Ok(Finished { code: 0, detached: true }), None)
            }
            // As quiet as any program whose reader left.
            End::BrokenPipe => {
                self.part(session, signals, self.kill_on_disconnect).await;
                (left(exit::BROKEN_PIPE), None)
            }
            End::Caught(caught) => {
                // Of a command that somebody else started, and that this caller has not reached, it ends nothing.
                let ours = self.sig_proxy && (self.target.start.is_some() || progress.started.get());
                let cancel =
                    self.kill_on_disconnect || (ours && matches!(caught, Caught::Interrupt | Caught::Quit));
                self.part(session, signals, cancel).await;
                if !cancel && !self.sandbox_goes {
                    self.say_how_to_attach("the command runs on");
                }
                (left(caught.exit_code()), None)
            }
            End::Failed(failed) => (Err(failed), None),
        }
    }

    /// Ends the command or leaves it running, as asked.
    async fn part(&self, session: ExecSession, signals: &mut Signals, cancel: bool) {
        if !cancel {
            return session.leave().await;
        }
        let exec_id = session.exec_id();
        let cancelled = tokio::select! {
            cancelled = timeout(CANCEL, self.cancel(exec_id)) => cancelled.unwrap_or_else(|_| {
                Err(Error::NoAnswer { what: "cancel the command".to_owned(), after: CANCEL })
            }),
            // Whoever presses a third time wants out now.
            _ = signals.leave() => return,
        };
        if let Err(error) = cancelled
            && !self.sandbox_goes
        {
            self.output.note(&format!("{error}"));
            self.say_how_to_attach("the command may run on");
        }
    }

    async fn cancel(&self, exec_id: ExecId) -> Result<(), Error> {
        let request =
            CancelExecRequest { sandbox: self.target.sandbox.clone(), exec_id: exec_id.to_string() };
        let mut execs = self.client.execs();
        match self.client.call("cancel the command", CANCEL, execs.cancel(request)).await {
            // It ended meanwhile, or never came to be.
            Err(error)
                if matches!(
                    error.reason(),
                    Some(
                        holdfast_wire::reason::Reason::ExecEnded
                            | holdfast_wire::reason::Reason::ExecNotFound
                    )
                ) =>
            {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    fn say_how_to_attach(&self, what: &str) {
        let interactive = if self.target.stdin { "-i " } else { "" };
        let (sandbox, exec_id) = (&self.target.sandbox, self.target.exec_id);
        self.output
            .note(&format!("{what}; attach again with: holdfast attach {interactive}{sandbox} {exec_id}"));
    }

    fn write_record(
        &self,
        file: ResultFile,
        exec_id: ExecId,
        progress: &Progress,
        ended: Option<&ExecEnded>,
        result: &Result<Finished, Failed>,
    ) -> Result<(), Failed> {
        let outcome = ended.and_then(|ended| ended.outcome.as_ref()).and_then(Outcome::of);
        let exec = ended.and_then(|ended| ended.exec.as_ref());
        let (stdout, stderr) = progress.received.get();
        let record = Record {
            schema_version: SCHEMA_VERSION,
            exec_id: exec_id.to_string(),
            sandbox: self.target.sandbox.clone(),
            state: if outcome.is_some() { "ended" } else { "unknown" }.to_owned(),
            exit_code: result.as_ref().map_or_else(Failed::exit_code, |finished| finished.code),
            signal: match &outcome {
                Some(Outcome::Signaled { signal, .. }) => Some(*signal),
                _ => None,
            },
            timed_out: matches!(outcome, Some(Outcome::TimedOut { .. })),
            oom_killed: matches!(outcome, Some(Outcome::Signaled { oom: true, .. })),
            reason: match result {
                Err(failed) => Some(failed.to_string()),
                Ok(finished) if finished.detached => Some("detached".to_owned()),
                Ok(_) if outcome.is_none() => Some("this program was asked to leave".to_owned()),
                Ok(_) => None,
            },
            started_at: exec
                .and_then(|exec| show::time(exec.started_at.as_ref()))
                .or_else(|| progress.started_at.borrow().clone()),
            ended_at: exec.and_then(|exec| show::time(exec.ended_at.as_ref())),
            stdout_bytes: exec.map_or(stdout, |exec| exec.stdout_bytes),
            stderr_bytes: exec.map_or(stderr, |exec| exec.stderr_bytes),
            lost_bytes: progress.lost.get(),
            truncated: progress.lost.get() > 0,
            reattached: progress.reattached.get(),
            outcome,
        };
        let path = file.path().display().to_string();
        let failed = |error: &dyn std::fmt::Display| {
            // Nothing else tells how it ended.
            let ended = record.reason.as_deref().unwrap_or("the command ended by itself");
            Failed::local(
                format!("write the result file {path} (exit code {}: {ended})", record.exit_code),
                error,
            )
        };
        let mut json = serde_json::to_vec_pretty(&record).map_err(|error| failed(&error))?;
        json.push(b'\n');
        file.write(&json).map_err(|error| failed(&error))
    }
}

fn has_exited(ended: &ExecEnded) -> bool {
    matches!(ended.outcome.as_ref().and_then(Outcome::of), Some(Outcome::Exited { .. }))
}

/// A descriptor of its own for stdout or stderr: unbuffered.
fn duplicate(stream: impl AsFd) -> io::Result<Arc<File>> {
    Ok(Arc::new(File::from(stream.as_fd().try_clone_to_owned()?)))
}

/// Returns when the system has taken all of it; a thread does it that may block.
async fn write(file: &Arc<File>, data: Bytes) -> io::Result<()> {
    let file = Arc::clone(file);
    let written = tokio::task::spawn_blocking(move || output::write_all(&*file, &data)).await;
    written.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}
