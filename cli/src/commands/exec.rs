//! `exec` and `attach`.

use std::{
    cell::Cell,
    ffi::OsString,
    io::{self, IsTerminal as _},
    os::unix::ffi::OsStringExt as _,
    time::Duration,
};

use bytes::Bytes;
use holdfast_wire::{
    api::{Argv, ExecSpec, OnPause, StartExecRequest, TerminalSize, WhenFull, exec_spec},
    ids::ExecId,
    reason::Reason,
    spec, timing,
};

use super::{Context, execs, foreground::Foreground, result_file::ResultFile, signals::Signals};
use crate::{
    args::{self, AttachArgs, ExecArgs, Following, Running},
    client::{Client, Error, Patience, Target},
    failure::Failed,
    show::{self, Exec},
    terminal::{self, detach::DetachKeys},
    values,
};

/// Between tries of a start whose fate is unknown.
const RETRY: Duration = Duration::from_millis(500);

pub(super) async fn exec(args: ExecArgs, context: &Context) -> Result<u8, Failed> {
    let spec = spec_of(&args.running, args.detach)?;
    let client = context.client()?;
    if args.detach {
        return start(&client, &args, spec, context).await;
    }
    let mut signals = Signals::new().map_err(|error| Failed::local("listen for signals", error))?;
    let deadline = args.running.start_deadline.or(context.config.start_deadline);
    let result_file = ResultFile::open(args.running.following.result_file.as_deref())?;
    let foreground = foreground(client, &args.running, spec, args.sandbox, deadline, result_file, context);
    let finished = foreground.run(&mut signals).await?;
    Ok(finished.code)
}

/// Starts without attaching. A start whose answer is lost is repeated with the same id: the command runs once.
async fn start(client: &Client, args: &ExecArgs, spec: ExecSpec, context: &Context) -> Result<u8, Failed> {
    let exec_id = args.running.exec_id.unwrap_or_else(ExecId::random);
    let deadline =
        args.running.start_deadline.or(context.config.start_deadline).unwrap_or(timing::START_DEADLINE);
    let request = StartExecRequest {
        sandbox: args.sandbox.clone(),
        exec_id: exec_id.to_string(),
        spec: Some(spec),
        start_deadline: duration(Some(deadline), "--start-deadline")?,
    };
    let began = tokio::time::Instant::now();
    // A gateway was there; and a try may have started it.
    let (reached, unknown) = (Cell::new(false), Cell::new(false));
    let all = async {
        loop {
            let mut execs = client.execs();
            let at_most = deadline + timing::START_DEADLINE;
            let answer = client.call("start the command", at_most, execs.start(request.clone())).await;
            match answer {
                Err(error) if worth_repeating(&error, reached.get()) && began.elapsed() < deadline => {
                    reached.set(reached.get() || !matches!(error, Error::Connect { .. }));
                    unknown.set(unknown.get() || may_have_started(&error));
                    tracing::debug!(%error, "starting again with the same id");
                    tokio::time::sleep(RETRY).await;
                }
                other => return other,
            }
        }
    };
    let what = format!("waiting for {}", args.sandbox);
    let say_unknown = || {
        context.output.note(&format!(
            "whether it runs is not known; with --exec-id {exec_id} it can be started again without running twice"
        ));
    };
    let mut signals = Signals::new().map_err(|error| Failed::local("listen for signals", error))?;
    let answered = tokio::select! {
        answered = context.output.during(&what, all) => answered,
        caught = signals.leave() => {
            say_unknown();
            return Ok(caught.exit_code());
        }
    };
    let answer = match answered {
        Ok(answer) => answer,
        Err(error) => {
            if unknown.get() || may_have_started(&error) {
                say_unknown();
            }
            return Err(error.into());
        }
    };
    let exec = Exec::from(answer.exec.unwrap_or_default());
    // A command that could not be started is told here: nobody may ever attach to it.
    if let Some(code) = exec.exit_code
        && let Some(show::Outcome::StartFailed { .. }) = &exec.outcome
    {
        if let Some(remark) = exec.outcome.as_ref().and_then(show::Outcome::remark) {
            context.output.note(&remark);
        }
        return Ok(code);
    }
    if context.output.format.is_json() || context.output.format == args::Format::Yaml {
        context.output.one("execs", &exec)?;
    } else {
        context.output.line(&exec_id.to_string())?;
    }
    Ok(0)
}

/// Whether a try that failed so may have started the command all the same.
fn may_have_started(error: &Error) -> bool {
    match error {
        Error::Connect { .. } | Error::Distrust { .. } => false,
        Error::Refused { .. } => {
            matches!(error.reason(), Some(Reason::StartUnknown | Reason::SessionLost | Reason::RelayDeadline))
        }
        _ => true,
    }
}

/// The answer is not known, or was not about this start. No gateway at all is worth telling at once, unless one was there
/// before.
fn worth_repeating(error: &Error, reached: bool) -> bool {
    error.is_transient() && (reached || !matches!(error, Error::Connect { .. }))
}

pub(super) async fn attach(args: AttachArgs, context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    let exec = execs::find(&client, &args.sandbox, &args.exec).await?;
    let exec_id = execs::id_of(&exec)?;
    let tty = exec.tty && args.interactive;
    if tty && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(Failed::Usage(
            "-i on an exec with a terminal needs a terminal here: leave -i away to watch it".to_owned(),
        ));
    }
    let from = |written| if args.no_replay { written } else { 0 };
    let target = Target {
        sandbox: args.sandbox,
        exec_id,
        start: None,
        start_deadline: context.config.start_deadline,
        stdin: args.interactive,
        stdout_offset: from(exec.stdout_bytes),
        stderr_offset: from(exec.stderr_bytes),
        on_pause: on_pause(&args.following),
    };
    let mut signals = Signals::new().map_err(|error| Failed::local("listen for signals", error))?;
    let following = args.following;
    let foreground = Foreground {
        client,
        output: context.output,
        target,
        patience: Patience { reattach_for: following.reattach_for.or(context.config.reattach_for) },
        tty,
        screen: exec.tty && io::stdout().is_terminal(),
        detach_keys: following.detach_keys.unwrap_or_else(|| context.config.detach_keys.clone()),
        kill_on_disconnect: following.kill_on_disconnect,
        sig_proxy: args.sig_proxy,
        sandbox_goes: false,
        result_file: ResultFile::open(following.result_file.as_deref())?,
    };
    Ok(foreground.run(&mut signals).await?.code)
}

fn on_pause(following: &Following) -> OnPause {
    match following.on_pause {
        args::OnPause::Wait => OnPause::Notice,
        args::OnPause::Fail => OnPause::Error,
    }
}

/// How `run` and `exec` follow what they start.
pub(super) fn foreground(
    client: Client,
    running: &Running,
    spec: ExecSpec,
    sandbox: String,
    start_deadline: Option<Duration>,
    result_file: Option<ResultFile>,
    context: &Context,
) -> Foreground {
    let following = &running.following;
    Foreground {
        client,
        output: context.output,
        tty: spec.tty.is_some(),
        screen: spec.tty.is_some(),
        target: Target {
            sandbox,
            exec_id: running.exec_id.unwrap_or_else(ExecId::random),
            stdin: spec.stdin,
            start: Some(spec),
            start_deadline,
            stdout_offset: 0,
            stderr_offset: 0,
            on_pause: on_pause(following),
        },
        patience: Patience { reattach_for: following.reattach_for.or(context.config.reattach_for) },
        detach_keys: following.detach_keys.clone().unwrap_or_else(|| context.config.detach_keys.clone()),
        kill_on_disconnect: following.kill_on_disconnect,
        sig_proxy: true,
        sandbox_goes: false,
        result_file,
    }
}

/// What to run, checked here already: a clear word before anything is made.
pub(super) fn spec_of(running: &Running, detached: bool) -> Result<ExecSpec, Failed> {
    if running.tty && running.interactive && !io::stdin().is_terminal() {
        return Err(Failed::Usage(
            "-it needs a terminal, and stdin is none: leave -t away to pass a file or a pipe".to_owned(),
        ));
    }
    let raw = |text: &OsString| Bytes::from(text.clone().into_vec());
    let command = match &running.shell {
        Some(line) => exec_spec::Command::Shell(raw(line)),
        None => exec_spec::Command::Argv(Argv { args: running.command.iter().map(raw).collect() }),
    };
    let tty = running.tty.then(|| {
        // 80 x 24 where there is no terminal here: what programs expect that ask for none.
        let (cols, rows) = terminal::size().unwrap_or((80, 24));
        TerminalSize { cols: cols.into(), rows: rows.into() }
    });
    let mut env = values::environment(&running.env_file, &running.env).map_err(Failed::Usage)?;
    if tty.is_some() && !env.iter().any(|variable| variable.name == "TERM") {
        // The program draws on this terminal.
        if let Some(term) = std::env::var_os("TERM") {
            env.push(holdfast_wire::api::EnvVar { name: "TERM".into(), value: term.into_vec().into() });
        }
    }
    let spec = ExecSpec {
        command: Some(command),
        cwd: running.workdir.as_ref().map(raw).unwrap_or_default(),
        env,
        user: running.user.clone().unwrap_or_default(),
        tty,
        stdin: running.interactive,
        timeout: duration(running.timeout, "--timeout")?,
        kill_grace: duration(running.kill_grace, "--kill-grace")?,
        on_disconnect: show::on_disconnect(running.following.kill_on_disconnect),
        retain_for: duration(running.retain_for, "--retain-for")?,
        when_full: match running.when_full {
            None if detached => WhenFull::DropOldest,
            None => WhenFull::Block,
            Some(args::WhenFull::Block) => WhenFull::Block,
            Some(args::WhenFull::DropOldest) => WhenFull::DropOldest,
        }
        .into(),
    };
    spec::check(&spec).map_err(|error| Failed::Usage(error.to_string()))?;
    Ok(spec)
}

fn duration(duration: Option<Duration>, flag: &str) -> Result<Option<prost_types::Duration>, Failed> {
    duration
        .map(|duration| {
            duration.try_into().map_err(|_| Failed::Usage(format!("{flag}: {duration:?} is too long")))
        })
        .transpose()
}

/// No keys: leaving by keys is not offered.
pub(super) fn no_keys() -> DetachKeys {
    DetachKeys::default()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn spec(line: &[&str]) -> Result<ExecSpec, Failed> {
        let Command::Exec(exec) = Cli::try_parse_from(line).unwrap().command else { panic!("not exec") };
        spec_of(&exec.running, exec.detach)
    }

    #[test]
    fn arguments_are_passed_as_they_are() {
        let spec = spec(&["holdfast", "exec", "box", "--", "echo", "a b", "$HOME", ""]).unwrap();
        let Some(exec_spec::Command::Argv(argv)) = spec.command else { panic!("not argv") };
        assert_eq!(argv.args, ["echo", "a b", "$HOME", ""]);
        assert!(!spec.stdin && spec.tty.is_none());
        assert_eq!(spec.when_full, i32::from(WhenFull::Block));
    }

    #[test]
    fn a_detached_command_never_waits_for_a_reader() {
        let spec = spec(&["holdfast", "exec", "-d", "box", "--", "true"]).unwrap();
        assert_eq!(spec.when_full, i32::from(WhenFull::DropOldest));
    }

    #[test]
    fn what_cannot_run_is_a_usage_error() {
        let error = spec(&["holdfast", "exec", "box", "--", ""]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("argv[0]"), "{error}");
        let error = spec(&["holdfast", "exec", "--kill-grace", "1h", "box", "--", "true"]).unwrap_err();
        assert!(error.to_string().contains("kill_grace"), "{error}");
    }

    #[test]
    fn flags_reach_the_spec() {
        let line = [
            "holdfast",
            "exec",
            "--kill-on-disconnect",
            "--timeout",
            "90s",
            "-e",
            "A=1",
            "-w",
            "/tmp",
            "--shell",
            "ls | wc",
            "box",
        ];
        let spec = spec(&line).unwrap();
        assert_eq!(spec.timeout, Some(prost_types::Duration { seconds: 90, nanos: 0 }));
        assert_eq!(spec.on_disconnect, show::on_disconnect(true));
        assert_eq!(spec.command, Some(exec_spec::Command::Shell("ls | wc".into())));
        assert_eq!((&spec.env[0].name[..], &spec.cwd[..]), (&b"A"[..], &b"/tmp"[..]));
    }
}
