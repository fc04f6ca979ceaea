//! A fake spawner, for the simulation and for unit tests: plays little scripts on tokio's clock, so that hours of
//! a command's life pass in milliseconds when the clock is paused. No process, no file, no thread.
//!
//! A command is a script: the shell line, or argv joined by blanks; steps are separated by `;`.
//!
//! | step | does |
//! | --- | --- |
//! | `emit N`, `err N` | writes the next N bytes of [`pattern`] to stdout, stderr |
//! | `echo WORDS` | writes the words and a newline to stdout |
//! | `sleep 5s` | sleeps (`300ms`, `2h`, ...) |
//! | `cat` | copies stdin to stdout until its end |
//! | `trap` | ignores every signal but SIGKILL from now on |
//! | `background 10s` | leaves a grandchild that holds the output open for so long after the exit |
//! | `close` | closes stdout and stderr, runs on |
//! | `exit N`, `die N` | ends with this code, by this signal |
//! | `oom` | ends by SIGKILL: memory ran out |
//! | `start 3s` | (first) starting takes so long |
//! | `fail KIND ERRNO` | (first) cannot be started: `not_found`, `cannot_invoke`, `bad_cwd`, `unknown_user`, `resources` |
//!
//! The end of the script is `exit 0`. An unknown step is a command that does not exist.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use holdfast_wire::api::StartFailure;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Control, Exit, MemoryUse, ProcessMark, SpawnError, SpawnRequest, Spawned, Spawner};

/// What a pipe holds, in bytes: the kernel's default.
const PIPE: usize = 64 * 1024;

/// Plays scripts instead of starting processes.
#[derive(Clone, Debug, Default)]
pub struct FakeSpawner {
    tracker: TaskTracker,
    next_pid: Arc<std::sync::atomic::AtomicU32>,
    memory: Arc<std::sync::Mutex<MemoryUse>>,
}

impl FakeSpawner {
    /// A spawner without any command yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many commands and grandchildren live now: a simulation's check that nothing is left.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.tracker.len()
    }

    /// What the kernel is said to have counted.
    pub fn set_memory(&self, memory: MemoryUse) {
        *self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = memory;
    }
}

/// The byte that `emit` and `err` write at `offset` of their stream.
#[must_use]
pub fn pattern(offset: u64) -> u8 {
    // 251 is a prime: no power of two of bytes can go missing unnoticed.
    (offset % 251) as u8
}

/// The bytes of [`pattern`] in `from..from + length`.
#[must_use]
pub fn pattern_bytes(from: u64, length: usize) -> Bytes {
    (from..).take(length).map(pattern).collect::<Vec<u8>>().into()
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Emit(u64),
    Err(u64),
    Echo(String),
    Sleep(Duration),
    Cat,
    Trap,
    Background(Duration),
    Close,
    End(Exit),
    Start(Duration),
    Fail(SpawnError),
}

fn parse(script: &str) -> Option<Vec<Step>> {
    script.split(';').map(str::trim).filter(|step| !step.is_empty()).map(parse_step).collect()
}

fn parse_step(step: &str) -> Option<Step> {
    let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
    let time = || humantime::parse_duration(rest).ok();
    Some(match verb {
        "emit" => Step::Emit(rest.parse().ok()?),
        "err" => Step::Err(rest.parse().ok()?),
        "echo" => Step::Echo(format!("{rest}\n")),
        "sleep" => Step::Sleep(time()?),
        "cat" => Step::Cat,
        "trap" => Step::Trap,
        "background" => Step::Background(time()?),
        "close" => Step::Close,
        "exit" => Step::End(Exit::Code(rest.parse().ok()?)),
        "die" => Step::End(Exit::Signal { signal: rest.parse().ok()?, core: false, oom: false }),
        "oom" => Step::End(Exit::Signal { signal: libc::SIGKILL, core: false, oom: true }),
        "start" => Step::Start(time()?),
        "fail" => {
            let (kind, errno) = rest.split_once(' ')?;
            let kind = match kind {
                "not_found" => StartFailure::NotFound,
                "cannot_invoke" => StartFailure::CannotInvoke,
                "bad_cwd" => StartFailure::BadCwd,
                "unknown_user" => StartFailure::UnknownUser,
                "resources" => StartFailure::Resources,
                _ => return None,
            };
            Step::Fail(SpawnError::new(kind, errno.parse().ok()?, format!("scripted: {rest}")))
        }
        _ => return None,
    })
}

impl Spawner for FakeSpawner {
    fn spawn(&self, request: SpawnRequest) -> BoxFuture<'static, Result<Spawned, SpawnError>> {
        let this = self.clone();
        Box::pin(async move {
            let words: Vec<_> = match request.argv.as_slice() {
                [sh, c, line] if sh == "/bin/sh" && c == "-c" => vec![line.to_string_lossy()],
                argv => argv.iter().map(|arg| arg.to_string_lossy()).collect(),
            };
            let script = words.join(" ");
            let Some(mut steps) = parse(&script) else {
                let message = format!("{script:?}: no such script");
                return Err(SpawnError::new(StartFailure::NotFound, libc::ENOENT, message));
            };
            while let Some(step) = steps.first().cloned() {
                match step {
                    Step::Start(time) => tokio::time::sleep(time).await,
                    Step::Fail(error) => return Err(error),
                    _ => break,
                }
                steps.remove(0);
            }
            Ok(this.play(steps, &request))
        })
    }

    fn memory(&self) -> MemoryUse {
        *self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl FakeSpawner {
    fn play(&self, steps: Vec<Step>, request: &SpawnRequest) -> Spawned {
        let pid = 1000 + self.next_pid.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (stdin, command_stdin) = tokio::io::duplex(PIPE);
        let (command_stdout, stdout) = tokio::io::duplex(PIPE);
        let (command_stderr, stderr) = tokio::io::duplex(PIPE);
        let (signals, caught) = mpsc::channel(16);
        let (exit, exited) = oneshot::channel();
        let family = CancellationToken::new();
        let (alive, left) = watch::channel(0_usize);
        let command = Command {
            stdin: request.stdin.then_some(command_stdin),
            outputs: Some((command_stdout, command_stderr)),
            sent: (0, 0),
            trap: watch::Sender::new(false),
            background: None,
        };
        let grandchildren = Grandchildren { family: family.clone(), alive, tracker: self.tracker.clone() };
        self.tracker.spawn(live(command, steps, caught, exit, grandchildren));
        let tty = request.tty.is_some();
        Spawned {
            pid,
            stdin: request.stdin.then(|| Box::new(stdin) as super::Input),
            stdout: Box::new(stdout),
            stderr: (!tty).then(|| Box::new(stderr) as super::Output),
            wait: Box::pin(
                async move { exited.await.map_err(|_| io::Error::other("the fake's task is gone")) },
            ),
            control: Box::new(FakeControl { pid, tty, signals, family, left, released: false }),
        }
    }
}

struct Command {
    stdin: Option<DuplexStream>,
    /// stdout and stderr.
    outputs: Option<(DuplexStream, DuplexStream)>,
    sent: (u64, u64),
    trap: watch::Sender<bool>,
    background: Option<Duration>,
}

#[derive(Clone)]
struct Grandchildren {
    family: CancellationToken,
    alive: watch::Sender<usize>,
    tracker: TaskTracker,
}

async fn live(
    mut command: Command,
    steps: Vec<Step>,
    mut caught: mpsc::Receiver<i32>,
    exit: oneshot::Sender<Exit>,
    grandchildren: Grandchildren,
) {
    let trapped = command.trap.subscribe();
    let killed = async {
        loop {
            tokio::select! {
                biased;
                () = grandchildren.family.cancelled() => return libc::SIGKILL,
                signal = caught.recv() => match signal {
                    Some(signal) if signal == libc::SIGKILL || !*trapped.borrow() => return signal,
                    Some(_) => {}
                    // The exec is gone without releasing us.
                    None => return libc::SIGKILL,
                },
            }
        }
    };
    let end = tokio::select! {
        biased;
        signal = killed => Exit::Signal { signal, core: false, oom: false },
        end = command.run(steps) => end,
    };
    if let (Some(time), Some(outputs)) = (command.background, command.outputs.take()) {
        let Grandchildren { family, alive, tracker } = grandchildren;
        alive.send_modify(|n| *n += 1);
        tracker.spawn(async move {
            tokio::select! {
                () = family.cancelled() => {}
                () = tokio::time::sleep(time) => {}
            }
            drop(outputs);
            alive.send_modify(|n| *n -= 1);
        });
    }
    // The output ends before the exit is told, as a process's descriptors close before it can be reaped.
    drop(command);
    // Nobody waits for it any more: fine.
    let _ = exit.send(end);
}

impl Command {
    async fn run(&mut self, steps: Vec<Step>) -> Exit {
        for step in steps {
            let result = match step {
                Step::Emit(n) => self.emit(n, true).await,
                Step::Err(n) => self.emit(n, false).await,
                Step::Echo(text) => match &mut self.outputs {
                    Some((stdout, _)) => stdout.write_all(text.as_bytes()).await,
                    None => Ok(()),
                },
                Step::Sleep(time) => {
                    tokio::time::sleep(time).await;
                    Ok(())
                }
                Step::Cat => self.cat().await,
                Step::Trap => {
                    self.trap.send_replace(true);
                    Ok(())
                }
                Step::Background(time) => {
                    self.background = Some(time);
                    Ok(())
                }
                Step::Close => {
                    self.outputs = None;
                    Ok(())
                }
                Step::End(exit) => return exit,
                // Only at the front, where spawn takes them.
                Step::Start(_) | Step::Fail(_) => Ok(()),
            };
            if result.is_err() {
                return Exit::Signal { signal: libc::SIGPIPE, core: false, oom: false };
            }
        }
        Exit::Code(0)
    }

    async fn emit(&mut self, n: u64, to_stdout: bool) -> io::Result<()> {
        let Some((stdout, stderr)) = &mut self.outputs else { return Ok(()) };
        let (pipe, sent) = if to_stdout { (stdout, &mut self.sent.0) } else { (stderr, &mut self.sent.1) };
        let end = *sent + n;
        while *sent < end {
            let piece = pattern_bytes(*sent, (end - *sent).min(16 * 1024) as usize);
            pipe.write_all(&piece).await?;
            *sent += piece.len() as u64;
        }
        Ok(())
    }

    async fn cat(&mut self) -> io::Result<()> {
        let (Some(stdin), Some((stdout, _))) = (&mut self.stdin, &mut self.outputs) else { return Ok(()) };
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match stdin.read(&mut buffer).await? {
                0 => return Ok(()),
                n => stdout.write_all(&buffer[..n]).await?,
            }
        }
    }
}

#[derive(Debug)]
struct FakeControl {
    pid: u32,
    tty: bool,
    signals: mpsc::Sender<i32>,
    family: CancellationToken,
    left: watch::Receiver<usize>,
    released: bool,
}

impl Control for FakeControl {
    fn signal(&mut self, signal: i32) -> io::Result<()> {
        match self.signals.try_send(signal) {
            // Full: sixteen wait already; the kernel merges them too.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    fn resize(&mut self, _: u16, _: u16) -> io::Result<()> {
        if self.tty { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOTTY)) }
    }

    fn kill_all(&mut self) -> BoxFuture<'static, bool> {
        let others = *self.left.borrow() > 0;
        self.family.cancel();
        Box::pin(async move { others })
    }

    fn gone(&mut self) -> BoxFuture<'static, ()> {
        let mut left = self.left.clone();
        Box::pin(async move {
            // An error means that all of them, and their task, are gone.
            let _ = left.wait_for(|n| *n == 0).await;
        })
    }

    fn reaped(&mut self) {}

    fn release(&mut self) {
        self.released = true;
    }

    fn mark(&self) -> ProcessMark {
        ProcessMark { pid: self.pid, ..ProcessMark::default() }
    }
}

impl Drop for FakeControl {
    fn drop(&mut self) {
        if !self.released {
            self.family.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::ids::ExecId;

    fn request(script: &str) -> SpawnRequest {
        SpawnRequest {
            exec: ExecId::random(),
            argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
            env: Vec::new(),
            cwd: "/".into(),
            in_workspace: true,
            user: None,
            tty: None,
            stdin: true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_runs_on_the_paused_clock() {
        let mut spawned =
            FakeSpawner::new().spawn(request("emit 300; sleep 2h; err 5; exit 3")).await.unwrap();
        let mut out = Vec::new();
        spawned.stdout.read_to_end(&mut out).await.unwrap();
        assert_eq!(out, pattern_bytes(0, 300));
        assert_eq!(spawned.wait.await.unwrap(), Exit::Code(3));
    }

    #[tokio::test(start_paused = true)]
    async fn signals_end_it_unless_trapped() {
        let fake = FakeSpawner::new();
        let mut one = fake.spawn(request("sleep 1h")).await.unwrap();
        one.control.signal(libc::SIGTERM).unwrap();
        assert_eq!(one.wait.await.unwrap(), Exit::Signal { signal: libc::SIGTERM, core: false, oom: false });
        let mut two = fake.spawn(request("trap; echo ready; sleep 1h; exit 4")).await.unwrap();
        let mut line = [0; 6];
        two.stdout.read_exact(&mut line).await.unwrap();
        two.control.signal(libc::SIGTERM).unwrap();
        assert_eq!(two.wait.await.unwrap(), Exit::Code(4));
    }

    #[tokio::test]
    async fn what_is_no_script_does_not_exist() {
        let error = FakeSpawner::new().spawn(request("frobnicate")).await.unwrap_err();
        assert_eq!(error.kind, StartFailure::NotFound);
        let error = FakeSpawner::new().spawn(request("fail resources 11")).await.unwrap_err();
        assert_eq!((error.kind, error.errno), (StartFailure::Resources, 11));
    }
}
