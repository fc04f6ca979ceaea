//! `cp`: files between this machine and a sandbox, by the rules of `docker cp`.
//!
//! ```text
//!   SRC ─▶ reader (thread) ─▶ window ─▶ transfer ─▶ supervisor's writer ─▶ result ─┐
//!   DST ◀─ writer (thread) ◀─ window ◀─ transfer ◀─ supervisor's reader            ├▶ counts and digests agree
//!                  └─▶ result ─────────────────────────────────────────────────────┘
//! ```
//!
//! Success is what the receiver says: all of it on disk, counted, with the sender's digest.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_files::{
    Failure, Window, Writer, archive,
    emit::{Stopped, Summary},
    failure::path_of,
    place::Destination,
    read::{self, Source},
    write::{Options, Progress},
};
use holdfast_wire::{
    api::{DownloadSpec, FileProblem, FileProblemKind, TransferResult, UploadPlacement, UploadSpec},
    ids::TransferId,
    limits::TRANSFER_WINDOW,
    reason::{Reason, key},
};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Context, signals::Signals};
use crate::{
    args::CpArgs,
    client::{self, Client, Refusal, Transfer, TransferNotice},
    failure::Failed,
    output::{Output, Row},
};

/// A transfer that the sandbox has forgotten (its supervisor was restarted) is begun anew, so often.
const ANEW: u32 = 3;

/// How often progress is drawn.
const REDRAW: Duration = Duration::from_millis(200);

/// The exit code where everything came that could be read, and something could not.
const INCOMPLETE: u8 = 1;

/// One of the two sides.
#[derive(Clone, Debug, PartialEq)]
enum Side {
    Local(PathBuf),
    Sandbox {
        name: String,
        path: Vec<u8>,
    },
    /// An archive on stdin or stdout.
    Archive,
}

/// What came of it.
#[derive(Debug)]
struct Copied {
    result: TransferResult,
    problems: Vec<FileProblem>,
}

/// The copy as it is told.
#[derive(Debug, Serialize)]
struct Told {
    path: String,
    entries: u64,
    files: u64,
    bytes: u64,
    /// SHA-256 of the transfer's stream, as the receiver made it.
    digest: String,
    took_ms: u64,
    problems: Vec<ToldProblem>,
}

#[derive(Debug, Serialize)]
struct ToldProblem {
    path: String,
    reason: &'static str,
    errno: i32,
    message: String,
}

pub(crate) async fn cp(args: CpArgs, context: &Context) -> Result<u8, Failed> {
    let (from, to) = (Side::parse(&args.source)?, Side::parse(&args.destination)?);
    let client = context.client()?;
    let stop = CancellationToken::new();
    let mut signals = Signals::new().map_err(|error| Failed::local("listen for signals", error))?;
    let begun = Instant::now();
    let job = Job { args: &args, context, client: &client, stop: stop.clone() };
    let (shown, copied) = {
        let work = async {
            match (&from, &to) {
                (Side::Sandbox { .. }, Side::Sandbox { .. }) => Err(usage(
                    "copying between sandboxes is not supported: one of the two must be a local path or -",
                )),
                (from, Side::Sandbox { name, path }) => {
                    Ok((Some(name.clone()), job.upload(from, name, path).await?))
                }
                (Side::Sandbox { name, path }, to) => Ok((None, job.download(name, path, to).await?)),
                _ => Err(usage("one of SRC and DST must be SANDBOX:PATH")),
            }
        };
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => done?,
            caught = signals.leave() => {
                // What is not complete is removed, here and there; a second signal does not wait for it.
                stop.cancel();
                tokio::select! {
                    _ = &mut work => {}
                    _ = signals.leave() => {}
                }
                return Ok(caught.exit_code());
            }
        }
    };
    tell(context.output, &to, shown, &copied, begun.elapsed())
}

/// Says what came of it, and gives the exit code.
fn tell(
    output: Output,
    to: &Side,
    sandbox: Option<String>,
    copied: &Copied,
    took: Duration,
) -> Result<u8, Failed> {
    let Copied { result, problems } = copied;
    for problem in problems {
        let path = path_of(&problem.path);
        output.note(&format!(
            "left out: {}: {}",
            path.display(),
            holdfast_files::failure::clean(&problem.message)
        ));
    }
    let path = path_of(&result.path).display().to_string();
    let told = Told {
        path: match sandbox {
            Some(sandbox) => format!("{sandbox}:{path}"),
            None => path,
        },
        entries: result.entries,
        files: result.files,
        bytes: result.bytes,
        digest: result.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        problems: problems.iter().map(ToldProblem::new).collect(),
    };
    // stdout carries the archive.
    if *to != Side::Archive && !output.quiet {
        if output.format == crate::args::Format::Table {
            output.line(&told.path)?;
        } else {
            output.one("copies", &told)?;
        }
    }
    let verified = format!(
        "copied {} files, {}, in {:.1} s; verified, sha256 {}",
        told.files,
        indicatif::HumanBytes(told.bytes),
        took.as_secs_f64(),
        told.digest.get(..16).unwrap_or_default()
    );
    output.note(&verified);
    let incomplete = problems.iter().any(|problem| problem.kind() != FileProblemKind::Special);
    Ok(if incomplete { INCOMPLETE } else { 0 })
}

fn usage(text: &str) -> Failed {
    Failed::Usage(text.to_owned())
}

/// What every copy needs.
struct Job<'a> {
    args: &'a CpArgs,
    context: &'a Context,
    client: &'a Client,
    stop: CancellationToken,
}

impl Job<'_> {
    async fn upload(&self, from: &Side, sandbox: &str, path: &[u8]) -> Result<Copied, Failed> {
        let (name, placement) = match from {
            Side::Archive => (Vec::new(), UploadPlacement::Into),
            Side::Local(path) => local_name(path)?,
            Side::Sandbox { .. } => return Err(usage("two sandboxes")),
        };
        let spec = UploadSpec {
            path: or_here(path),
            name: name.into(),
            placement: placement.into(),
            archive: self.args.archive,
            user: self.args.user.clone().unwrap_or_default(),
        };
        for again in 0..=ANEW {
            let window = Arc::new(Window::new(TRANSFER_WINDOW));
            let progress = Shown::new(self.context.output, "sending");
            let counter = Arc::clone(&progress.bytes);
            let (source, thread_window) = (from.clone(), Arc::clone(&window));
            let follow = self.args.follow_link;
            let read = thread("reading", move || {
                let count = |bytes: u64, _: u64| counter.store(bytes, Ordering::Relaxed);
                match source {
                    Side::Local(path) => {
                        let source = Source { path, follow, ..Source::default() };
                        read::send(&source, &thread_window, &count)
                    }
                    _ => archive::send(io::stdin().lock(), &thread_window, &count),
                }
            })?;
            let transfer = self.transfer(sandbox);
            let sent = progress.beside(transfer.upload(&spec, &window, |notice| self.notice(&notice))).await;
            // A reader that waits for room hears it; one that waits for stdin is left to the process's end.
            window.close();
            match sent {
                Ok(result) => {
                    let summary = joined(read).await?.map_err(|stopped| of_stopped(&stopped))?;
                    return agreed(&summary, result);
                }
                Err(error)
                    if error.reason() == Some(Reason::TransferGone)
                        && again < ANEW
                        && *from != Side::Archive =>
                {
                    self.context.output.note("the sandbox has forgotten the transfer: starting over");
                }
                Err(client::Error::Interrupted) => return Err(client::Error::Interrupted.into()),
                Err(error) => {
                    // Our own reader's failure went to the sandbox and came back: the first word is the better one.
                    if error.refusal().is_some()
                        && let Ok(Ok(Err(Stopped::Failed(failure)))) =
                            tokio::time::timeout(REDRAW, joined(read)).await
                    {
                        return Err(of_failure(&failure));
                    }
                    return Err(error.into());
                }
            }
        }
        Err(Failed::local("copy", "the sandbox forgot the transfer again and again"))
    }

    async fn download(&self, sandbox: &str, path: &[u8], to: &Side) -> Result<Copied, Failed> {
        let spec = DownloadSpec {
            path: or_here(path),
            follow: self.args.follow_link,
            user: self.args.user.clone().unwrap_or_default(),
            ..DownloadSpec::default()
        };
        let (name, placement) = sandbox_name(path);
        for again in 0..=ANEW {
            let id = TransferId::random();
            let window = Arc::new(Window::new(TRANSFER_WINDOW));
            let progress = Shown::new(self.context.output, "receiving");
            let counter = Arc::clone(&progress.bytes);
            let (used, used_by) = watch::channel((0, false));
            let thread_window = Arc::clone(&window);
            let written = match to {
                Side::Local(path) => {
                    let to = Destination {
                        path: absolute(path)?,
                        name: OsStr::from_bytes(&name).to_owned(),
                        placement,
                    };
                    let word: String = id.to_string().chars().rev().take(12).collect();
                    let writer = Writer::new(Options { to, archive: self.args.archive, word });
                    thread("writing", move || write(writer, &thread_window, &used, &counter))?
                }
                _ => {
                    let root = if placement == UploadPlacement::Contents { Vec::new() } else { name.clone() };
                    thread("writing", move || pack(root, &thread_window, &used, &counter))?
                }
            };
            let transfer = Transfer { id, ..self.transfer(sandbox) };
            let got = progress
                .beside(transfer.download(&spec, &window, used_by, |notice| self.notice(&notice)))
                .await;
            match got {
                Ok(()) => {
                    return joined(written).await?.map_err(|failure| of_failure(&failure));
                }
                Err(error) => {
                    // The writer hears that no more comes, and removes what is not complete.
                    window.close();
                    // All was there already when the connection went.
                    if let Ok(copied) = joined(written).await? {
                        return Ok(copied);
                    }
                    if error.reason() == Some(Reason::TransferGone) && again < ANEW && *to != Side::Archive {
                        self.context.output.note("the sandbox has forgotten the transfer: starting over");
                        continue;
                    }
                    return Err(error.into());
                }
            }
        }
        Err(Failed::local("copy", "the sandbox forgot the transfer again and again"))
    }

    fn transfer(&self, sandbox: &str) -> Transfer<'_> {
        Transfer {
            client: self.client,
            sandbox: sandbox.to_owned(),
            id: TransferId::random(),
            start_deadline: self.args.start_deadline.or(self.context.config.start_deadline),
            patience: self.args.reattach_for.or(self.context.config.reattach_for),
            stop: self.stop.clone(),
        }
    }

    fn notice(&self, notice: &TransferNotice) {
        match notice {
            TransferNotice::Interrupted { cause } => tracing::info!(cause, "the transfer is interrupted"),
            TransferNotice::Resumed { after, cause, offset } => {
                let after = after.as_secs_f64();
                self.context.output.note(&format!("resumed after {after:.1} s ({cause}), at byte {offset}"));
            }
        }
    }
}

/// Writes the transfer's stream to files.
fn write(
    mut writer: Writer,
    window: &Window,
    used: &watch::Sender<(u64, bool)>,
    counter: &AtomicU64,
) -> Result<Copied, Failure> {
    let _close = CloseOnDrop(window);
    let mut at = 0;
    while let Some(chunk) = window.take_blocking() {
        at += chunk.len() as u64;
        match writer.take(chunk)? {
            Progress::More => used.send_replace((at, false)),
            Progress::Done(result) => {
                used.send_replace((at, true));
                let problems = writer.problems().to_vec();
                // Until the stream's end, so that the sandbox hears that all is here.
                while window.take_blocking().is_some() {}
                return Ok(Copied { result, problems });
            }
        };
        counter.store(writer.progress().0, Ordering::Relaxed);
    }
    Err(Failure::abandoned("the stream ended before the transfer did"))
}

/// Writes it to stdout as an archive.
fn pack(
    root: Vec<u8>,
    window: &Window,
    used: &watch::Sender<(u64, bool)>,
    counter: &AtomicU64,
) -> Result<Copied, Failure> {
    let _close = CloseOnDrop(window);
    let out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let mut packer = archive::Packer::new(out, root);
    let mut at = 0;
    while let Some(chunk) = window.take_blocking() {
        at += chunk.len() as u64;
        let over = packer.take(chunk)?;
        used.send_replace((at, over));
        counter.store(packer.progress().0, Ordering::Relaxed);
        if let Some(end) = packer.end() {
            let problems = packer.problems().to_vec();
            let result = TransferResult {
                entries: end.entries,
                files: end.files,
                bytes: end.bytes,
                digest: end.digest.clone(),
                path: Bytes::from_static(b"-"),
            };
            while window.take_blocking().is_some() {}
            return Ok(Copied { result, problems });
        }
    }
    Err(Failure::abandoned("the stream ended before the transfer did"))
}

/// A writer that fails wants nothing more, and who fills its window must hear it.
struct CloseOnDrop<'a>(&'a Window);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What was sent against what the sandbox says that it has.
fn agreed(summary: &Summary, result: TransferResult) -> Result<Copied, Failed> {
    let sent = &summary.end;
    let same = (sent.entries, sent.files, sent.bytes) == (result.entries, result.files, result.bytes)
        && sent.digest == result.digest;
    if !same {
        return Err(Failed::local(
            "copy",
            "the sandbox does not have what was sent: counts or digests differ",
        ));
    }
    Ok(Copied { result, problems: summary.problems.clone() })
}

/// Runs `work` on a thread of its own; it ends with the process at the latest.
fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, Failed> {
    let (tell, told) = oneshot::channel();
    let run = move || drop(tell.send(work()));
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| Failed::local("start a thread", error))?;
    Ok(told)
}

async fn joined<T>(thread: oneshot::Receiver<T>) -> Result<T, Failed> {
    thread.await.map_err(|_| Failed::local("copy", "a thread of this program has panicked"))
}

/// As the gateway would have told it: the failure came in the stream, or is this machine's own.
fn of_failure(failure: &Failure) -> Failed {
    let reason = Reason::of_file(failure.kind);
    let code = match reason {
        Reason::FileNotFound | Reason::TransferGone => tonic::Code::NotFound,
        Reason::FileDenied => tonic::Code::PermissionDenied,
        Reason::NoSpace | Reason::LimitReached => tonic::Code::ResourceExhausted,
        Reason::FileExists => tonic::Code::AlreadyExists,
        Reason::DigestMismatch => tonic::Code::DataLoss,
        Reason::InvalidArgument | Reason::PathEscapes => tonic::Code::InvalidArgument,
        _ => tonic::Code::FailedPrecondition,
    };
    let mut metadata = std::collections::BTreeMap::new();
    if !failure.path.as_os_str().is_empty() {
        metadata.insert(key::PATH.to_owned(), failure.path.display().to_string());
    }
    if failure.errno != 0 {
        metadata.insert(key::ERRNO.to_owned(), failure.errno.to_string());
    }
    let refusal = Refusal {
        code,
        reason: Some(reason.as_str().to_owned()),
        message: failure.message.clone(),
        metadata,
    };
    client::Error::Refused { what: "copy".to_owned(), refusal: Box::new(refusal) }.into()
}

fn of_stopped(stopped: &Stopped) -> Failed {
    match stopped {
        Stopped::Failed(failure) => of_failure(failure),
        Stopped::Closed(_) => Failed::local("copy", stopped),
    }
}

/// The bar, and the count that it shows.
struct Shown {
    bar: Option<ProgressBar>,
    bytes: Arc<AtomicU64>,
}

impl Shown {
    fn new(output: Output, what: &str) -> Self {
        Self { bar: output.bytes_bar(what), bytes: Arc::default() }
    }

    async fn beside<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => {
                    if let Some(bar) = &self.bar {
                        bar.finish_and_clear();
                    }
                    return done;
                }
                () = tokio::time::sleep(REDRAW), if self.bar.is_some() => {
                    if let Some(bar) = &self.bar {
                        bar.set_position(self.bytes.load(Ordering::Relaxed));
                    }
                }
            }
        }
    }
}

impl Side {
    /// As `docker cp` tells them apart: what begins with `/` or `.` is local, whatever colons it has.
    fn parse(text: &OsStr) -> Result<Self, Failed> {
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
fn or_here(path: &[u8]) -> Bytes {
    if path.is_empty() { Bytes::from_static(b".") } else { Bytes::copy_from_slice(path) }
}

/// Absolute, its trailing slash kept: it counts.
fn absolute(path: &Path) -> Result<PathBuf, Failed> {
    let here =
        std::env::current_dir().map_err(|error| Failed::local("look at the current directory", error))?;
    Ok(here.join(path))
}

/// What a local source is called inside a directory, and whether its content alone is meant.
fn local_name(path: &Path) -> Result<(Vec<u8>, UploadPlacement), Failed> {
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
fn sandbox_name(path: &[u8]) -> (Vec<u8>, UploadPlacement) {
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

impl ToldProblem {
    fn new(problem: &FileProblem) -> Self {
        let reason = match problem.kind() {
            FileProblemKind::Special => "special",
            FileProblemKind::Vanished => "vanished",
            FileProblemKind::Denied => "denied",
            FileProblemKind::Changed => "changed",
            FileProblemKind::Unreadable | FileProblemKind::Unspecified => "unreadable",
        };
        Self {
            path: path_of(&problem.path).display().to_string(),
            reason,
            errno: problem.errno,
            message: problem.message.clone(),
        }
    }
}

impl Row for Told {
    fn header(_: bool) -> Vec<&'static str> {
        vec!["path", "files", "bytes", "digest"]
    }

    fn cells(&self, _: bool) -> Vec<String> {
        vec![self.path.clone(), self.files.to_string(), self.bytes.to_string(), self.digest.clone()]
    }

    fn name(&self) -> String {
        self.path.clone()
    }
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
