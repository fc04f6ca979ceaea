//! `run`: a sandbox for one command.
//!
//! ```text
//!   gateway (a configured one, or one in this process) ─▶ create ─▶ exec in the foreground ─▶ delete ─▶ stop
//! ```
//!
//! The sandbox's name is chosen here, so that it can be removed even if the answer to its creation is lost; and
//! from its creation on, every way out goes through the removal.

use std::time::Duration;

use holdfast_wire::{api::SandboxSpec, reason::Reason};

use super::{Context, exec, foreground::Finished, sandboxes, signals::Signals};
use crate::{
    args::RunArgs,
    client::{Client, Error},
    failure::Failed,
    values,
};

/// How long the command may take to start, its sandbox's making included, if nobody says.
const START: Duration = Duration::from_secs(60);

pub(super) async fn run(args: RunArgs, context: &Context) -> Result<u8, Failed> {
    // What cannot run is told before anything is made.
    exec::spec_of(&args.running, false)?;
    values::environment(&args.sandbox_env_file, &args.sandbox_env).map_err(Failed::Usage)?;
    let mut signals = Signals::new().map_err(|error| Failed::local("listen for signals", error))?;
    if !args.embedded
        && let Some(client) = context.client_if_configured()?
    {
        return Box::pin(with_client(client, args, false, &mut signals, context)).await;
    }
    Box::pin(embedded(args, &mut signals, context)).await
}

#[cfg(feature = "embedded")]
async fn embedded(args: RunArgs, signals: &mut Signals, context: &Context) -> Result<u8, Failed> {
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
        Ok(client) => Box::pin(with_client(client, args, true, signals, context)).await,
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
async fn embedded(_: RunArgs, _: &mut Signals, context: &Context) -> Result<u8, Failed> {
    // This build has no gateway in it, so it needs a profile, and says where it looked.
    let missing = crate::profile::ProfileError::Missing(context.config.profile.clone());
    Err(crate::client::Error::from(missing).into())
}

async fn with_client(
    client: Client,
    args: RunArgs,
    own_gateway: bool,
    signals: &mut Signals,
    context: &Context,
) -> Result<u8, Failed> {
    let name = args.name.clone().unwrap_or_else(made_up_name);
    let env = values::environment(&args.sandbox_env_file, &args.sandbox_env).map_err(Failed::Usage)?;
    let spec = sandboxes::spec_of(args.making.clone(), env, args.sandbox_user.clone())?;
    let done = tokio::select! {
        made = context.output.during("creating the sandbox", make(&client, &name, spec)) => match made {
            Ok(()) => None,
            // The name is somebody else's: nothing was made, and nothing of theirs is removed.
            Err(error) if never_made(&error) => return Err(error.into()),
            Err(error) => Some(Err(error.into())),
        },
        caught = signals.leave() => Some(Ok(Finished { code: caught.exit_code(), detached: false })),
    };
    let done = match done {
        Some(done) => done,
        None => in_foreground(&client, &args, &name, own_gateway, signals, context).await,
    };
    let stays = args.keep || matches!(&done, Ok(finished) if finished.detached);
    if stays {
        context.output.note(&format!("the sandbox {name} stays; remove it with: holdfast delete {name}"));
    } else {
        tidy_up(&client, &name, signals, context).await;
    }
    done.map(|finished| finished.code)
}

async fn make(client: &Client, name: &str, spec: SandboxSpec) -> Result<(), Error> {
    sandboxes::make(client, name.to_owned(), spec).await.map(drop)
}

/// Refused, or never asked: there is no sandbox of ours.
fn never_made(error: &Error) -> bool {
    match error {
        Error::Connect { .. } => true,
        Error::Refused { .. } => !error.is_transient(),
        _ => false,
    }
}

async fn in_foreground(
    client: &Client,
    args: &RunArgs,
    name: &str,
    own_gateway: bool,
    signals: &mut Signals,
    context: &Context,
) -> Result<Finished, Failed> {
    // Asked again: the terminal may have another size by now.
    let spec = exec::spec_of(&args.running, false)?;
    let deadline = args.running.start_deadline.or(context.config.start_deadline).unwrap_or(START);
    let mut foreground =
        exec::foreground(client.clone(), &args.running, spec, name.to_owned(), Some(deadline), context);
    foreground.sandbox_goes = !args.keep;
    if own_gateway {
        // Its gateway goes with this process: there would be nothing to attach to.
        foreground.detach_keys = exec::no_keys();
    }
    foreground.run(signals).await
}

/// Removes the sandbox. A signal meanwhile gives up, and says what is left.
async fn tidy_up(client: &Client, name: &str, signals: &mut Signals, context: &Context) {
    let left = format!("the sandbox {name} may be left; remove it with: holdfast delete {name}");
    let what = format!("removing {name}");
    let removed = tokio::select! {
        removed = context.output.during(&what, sandboxes::remove(client, name, None, true)) => removed,
        _ = signals.leave() => return context.output.note(&left),
    };
    match removed {
        Ok(()) => {}
        Err(error) if error.reason() == Some(Reason::SandboxNotFound) => {}
        Err(error) => {
            context.output.failure(&error.into());
            context.output.note(&left);
        }
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
