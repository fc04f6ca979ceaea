//! `cp`: files between this machine and a sandbox, by the rules of `docker cp`.
//!
//! ```text
//!   SRC ─▶ reader (thread) ─▶ window ─▶ transfer ─▶ supervisor's writer ─▶ result ─┐
//!   DST ◀─ writer (thread) ◀─ window ◀─ transfer ◀─ supervisor's reader            ├▶ counts and digests agree
//!                  └─▶ result ─────────────────────────────────────────────────────┘
//! ```
//!
//! Success is what the receiver says: all of it on disk, counted, with the sender's digest.

mod ends;
mod failures;
mod shown;
mod side;
mod told;

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt as _,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use holdfast_files::{
    Window, Writer, archive,
    emit::{Stopped, Summary},
    place::Destination,
    read::{self, Source},
    write::Options,
};
use holdfast_wire::{
    api::{DownloadSpec, FileProblem, TransferResult, UploadPlacement, UploadSpec},
    ids::TransferId,
    limits::TRANSFER_WINDOW,
    reason::Reason,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    ends::{joined, pack, thread, write},
    failures::{of_failure, of_stopped},
    shown::{REDRAW, Shown},
    side::{Side, absolute, local_name, or_here, sandbox_name},
    told::tell,
};
use super::{Context, signals::Signals};
use crate::{
    args::CpArgs,
    client::{self, Client, Transfer, TransferNotice},
    failure::Failed,
};

/// A transfer that the sandbox has forgotten (its supervisor was restarted) is begun anew, so often.
const ANEW: u32 = 3;

/// What came of it.
#[derive(Debug)]
struct Copied {
    result: TransferResult,
    problems: Vec<FileProblem>,
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
