//! `run`: a sandbox for one command.
//!
//! ```text
//!   gateway (a configured one, or one in this process) ─▶ create ─▶ exec in the foreground ─▶ delete ─▶ stop
//! ```
//!
//! The sandbox is marked with a label of this run's own, so that it is found and removed even if the answer to its
//! creation is lost, and so that another's of the same name never is. From its creation on, every way out that a
//! process has goes through the removal.

use std::time::Duration;

use holdfast_wire::{api::ListSandboxesRequest, reason::Reason};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Context, exec, foreground::Finished, result_file::ResultFile, sandboxes, signals::Signals};
use crate::{
    args::RunArgs,
    client::{CALL_TIMEOUT, Client, Error},
    failure::Failed,
    values,
};

/// The label that tells this run's sandbox from all others.
const RUN: &str = "holdfast-run";

/// A creation whose answer was lost, or not waited for, may still be under way at the gateway: how long it is looked
/// for, and how often.
const LATE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A removal is tried so long while the gateway is away: a restart takes a few seconds.
const REMOVAL: Duration = Duration::from_secs(30);

/// How long the command may take to start, its sandbox's making included, if nobody says.
const START: Duration = Duration::from_secs(60);

pub(super) async fn run(args: RunArgs, context: &Context) -> Result<u8, Failed> {
    // What cannot run is told before anything is made.
    exec::spec_of(&args.running, false)?;
    values::environment(&args.sandbox_env_file, &args.sandbox_env).map_err(Failed::Usage)?;
    let result_file = ResultFile::open(args.running.following.result_file.as_deref())?;
    let mut signals = Signals::new().map_err(|error| Failed::local("listen for signals", error))?;
    if !args.embedded
        && let Some(client) = context.client_if_configured()?
    {
        return Box::pin(with_client(client, args, result_file, false, &mut signals, context)).await;
    }
    Box::pin(embedded(args, result_file, &mut signals, context)).await
}

#[cfg(feature = "embedded")]
async fn embedded(
    args: RunArgs,
    result_file: Option<ResultFile>,
    signals: &mut Signals,
    context: &Context,
) -> Result<u8, Failed> {
    if args.keep {
        return Err(Failed::Usage(
            "--keep needs a gateway that stays: start one with `holdfast gateway`, and name its profile by --profile"
                .to_owned(),
        ));
    }
    let gateway = tokio::select! {
        gateway = context.output.during("starting a gateway in this process", crate::embedded::Gateway::start()) => gateway?,
        caught = signals.leave() => return Ok(caught.exit_code()),
    };
    let done = match gateway.client() {
        Ok(client) => Box::pin(with_client(client, args, result_file, true, signals, context)).await,
        Err(failed) => Err(failed),
    };
    let stopped = context.output.during("stopping the gateway", gateway.stop()).await;
    // The command's own result comes first; a failure to tidy up is worth a word.
    if let Err(failed) = &stopped
        && done.is_ok()
    {
        context.output.failure(failed);
    }
    done
}

#[cfg(not(feature = "embedded"))]
async fn embedded(
    _: RunArgs,
    _: Option<ResultFile>,
    _: &mut Signals,
    context: &Context,
) -> Result<u8, Failed> {
    // This build has no gateway in it, so it needs a profile, and says where it looked.
    let missing = crate::profile::ProfileError::Missing(context.config.profile.clone());
    Err(crate::client::Error::from(missing).into())
}

async fn with_client(
    client: Client,
    args: RunArgs,
    result_file: Option<ResultFile>,
    own_gateway: bool,
    signals: &mut Signals,
    context: &Context,
) -> Result<u8, Failed> {
    let name = args.name.clone().unwrap_or_else(made_up_name);
    let env = values::environment(&args.sandbox_env_file, &args.sandbox_env).map_err(Failed::Usage)?;
    let mut spec = sandboxes::spec_of(args.making.clone(), env, args.sandbox_user.clone())?;
    let mark = uuid::Uuid::new_v4().simple().to_string();
    spec.labels.insert(RUN.to_owned(), mark.clone());
    let made = tokio::select! {
        made = context.output.during("creating the sandbox", sandboxes::make(&client, name.clone(), spec)) => match made {
            Ok(sandbox) => Ok(sandbox.id),
            // The name is somebody else's, for one: nothing was made.
            Err(error) if never_made(&error) => return Err(error.into()),
            Err(error) => Err(Err(error.into())),
        },
        caught = signals.leave() => Err(Ok(Finished { code: caught.exit_code(), detached: false })),
    };
    let (id, done) = match made {
        Ok(id) => {
            let done = in_foreground(&client, &args, result_file, &name, own_gateway, signals, context).await;
            (Some(id), done)
        }
        Err(done) => (None, done),
    };
    let stays = args.keep || matches!(&done, Ok(finished) if finished.detached);
    if stays {
        context.output.note(&format!("the sandbox {name} stays; remove it with: holdfast delete {name}"));
    } else {
        let sandbox = Ours { client: &client, name: &name, id, mark };
        tidy_up(sandbox, signals, context).await;
    }
    done.map(|finished| finished.code)
}

/// Refused, or never asked: there is no sandbox of ours.
fn never_made(error: &Error) -> bool {
    match error {
        Error::Connect { .. } | Error::Distrust { .. } => true,
        Error::Refused { .. } => !error.is_transient(),
        _ => false,
    }
}

async fn in_foreground(
    client: &Client,
    args: &RunArgs,
    result_file: Option<ResultFile>,
    name: &str,
    own_gateway: bool,
    signals: &mut Signals,
    context: &Context,
) -> Result<Finished, Failed> {
    // Asked again: the terminal may have another size by now.
    let spec = exec::spec_of(&args.running, false)?;
    let deadline = args.running.start_deadline.or(context.config.start_deadline).unwrap_or(START);
    let (client, name) = (client.clone(), name.to_owned());
    let mut foreground =
        exec::foreground(client, &args.running, spec, name, Some(deadline), result_file, context);
    foreground.sandbox_goes = !args.keep;
    if own_gateway {
        // Its gateway goes with this process: there would be nothing to attach to.
        foreground.detach_keys = exec::no_keys();
    }
    foreground.run(signals).await
}

/// This run's sandbox, as far as it is known.
struct Ours<'a> {
    client: &'a Client,
    name: &'a str,
    /// `None`: whether it was made is not known.
    id: Option<String>,
    mark: String,
}

impl Ours<'_> {
    /// Removes it, and nothing else.
    async fn remove(self) -> Result<(), Error> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => match self.find().await? {
                Some(id) => id,
                None => return Ok(()),
            },
        };
        let until = Instant::now() + REMOVAL;
        loop {
            match sandboxes::remove(self.client, &id, None, true).await {
                Err(error) if error.reason() == Some(Reason::SandboxNotFound) => return Ok(()),
                Err(error) if error.is_transient() && Instant::now() < until => {
                    tracing::debug!(%error, "removing the sandbox; trying again");
                    sleep(LOOK_EVERY).await;
                }
                removed => return removed,
            }
        }
    }

    /// Its id, once there is one; `None`: it was not made, and is not going to be.
    async fn find(&self) -> Result<Option<String>, Error> {
        let until = Instant::now() + LATE;
        loop {
            let labels = [(RUN.to_owned(), self.mark.clone())].into();
            let request = ListSandboxesRequest { labels, page_size: 1, page_token: String::new() };
            let mut sandboxes = self.client.sandboxes();
            let listed =
                self.client.call("look for the sandbox", CALL_TIMEOUT, sandboxes.list(request)).await;
            let seen = match listed {
                Ok(listed) => match listed.sandboxes.into_iter().next() {
                    Some(sandbox) => return Ok(Some(sandbox.id)),
                    None => Ok(None),
                },
                Err(error) if error.is_transient() => Err(error),
                Err(error) => return Err(error),
            };
            // The last look counts: a gateway that is away has not said that there is none.
            if timeout_at(until, sleep(LOOK_EVERY)).await.is_err() {
                return seen;
            }
        }
    }
}

/// Removes the sandbox. A signal meanwhile gives up, and says what is left.
async fn tidy_up(sandbox: Ours<'_>, signals: &mut Signals, context: &Context) {
    let name = sandbox.name;
    let left = format!("the sandbox {name} may be left; remove it with: holdfast delete {name}");
    let what = format!("removing {name}");
    let removed = tokio::select! {
        removed = context.output.during(&what, sandbox.remove()) => removed,
        _ = signals.leave() => return context.output.note(&left),
    };
    if let Err(error) = removed {
        context.output.failure(&error.into());
        context.output.note(&left);
    }
}

/// `run-` and eight letters and digits: 2.8 x 10^12 names, so that two never meet.
fn made_up_name() -> String {
    use rand::RngExt as _;
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    let tail: String = (0..8).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect();
    format!("run-{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_names() {
        let name = made_up_name();
        assert!(
            name.len() == 12
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        );
        assert_ne!(name, made_up_name());
    }
}
