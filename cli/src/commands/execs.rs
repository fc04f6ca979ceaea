//! `execs`, `kill` and `logs`, and finding an exec by the beginning of its id.

use holdfast_wire::{
    api::{
        CancelExecRequest, ExecInfo, GetExecRequest, GetSandboxRequest, ListExecsRequest, LogsRequest,
        OutputStream, ReadExecRequest, SignalExecRequest,
    },
    ids::ExecId,
    limits,
};

use super::Context;
use crate::{
    args::{ExecsArgs, KillArgs, LogsArgs},
    client::{CALL_TIMEOUT, Client, Error},
    exit,
    failure::Failed,
    show::Exec,
};

/// What the gateway gives of a console at most.
const MAX_CONSOLE: u64 = 1 << 20;

/// What names a sandbox's main command among its execs. No id begins so.
const MAIN: &str = "main";

pub(super) async fn list(args: &ExecsArgs, context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    let asked = async { tokio::try_join!(all(&client, &args.sandbox), main_of(&client, &args.sandbox)) };
    let (execs, main) = context.output.during("listing", asked).await?;
    let mut execs: Vec<_> = execs.into_iter().map(Exec::from).collect();
    for exec in &mut execs {
        exec.main = Some(exec.exec_id == main);
    }
    if args.running {
        execs.retain(|exec| exec.state != "ended");
    }
    context.output.list("execs", &execs)?;
    Ok(0)
}

pub(super) async fn kill(args: &KillArgs, context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    let mut worst = None;
    for text in &args.execs {
        let done = context.output.during(&format!("ending {text}"), kill_one(&client, args, text)).await;
        if let Err(error) = done {
            let failed = Failed::from(error);
            context.output.failure(&failed);
            worst = Some(failed.exit_code());
        }
    }
    worst.map_or(Ok(0), |code| Err(Failed::Told(code)))
}

async fn kill_one(client: &Client, args: &KillArgs, text: &str) -> Result<(), Error> {
    let exec_id = find(client, &args.sandbox, text).await?.exec_id;
    let sandbox = args.sandbox.clone();
    let mut execs = client.execs();
    match args.signal {
        Some(signal) => {
            let request = SignalExecRequest { sandbox, exec_id, signal };
            client.call(&format!("signal exec {text}"), CALL_TIMEOUT, execs.signal(request)).await.map(drop)
        }
        None => {
            let request = CancelExecRequest { sandbox, exec_id };
            client.call(&format!("end exec {text}"), CALL_TIMEOUT, execs.cancel(request)).await.map(drop)
        }
    }
}

pub(super) async fn logs(args: &LogsArgs, context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    let Some(exec) = &args.exec else {
        let mut sandboxes = client.sandboxes();
        let tail = args.tail.unwrap_or(0).min(MAX_CONSOLE);
        // At most MAX_CONSOLE.
        let request = LogsRequest { sandbox: args.sandbox.clone(), tail_bytes: tail as u32 };
        let asked = client.call("read the console", CALL_TIMEOUT, sandboxes.logs(request));
        let response = context.output.during("reading the console", asked).await?;
        context.output.data(&response.console)?;
        return Ok(0);
    };
    let exec = find(&client, &args.sandbox, exec).await?;
    for (stream, kept_from, written) in [
        (OutputStream::Stdout, exec.stdout_kept_from, exec.stdout_bytes),
        (OutputStream::Stderr, exec.stderr_kept_from, exec.stderr_bytes),
    ] {
        let from = args.tail.map_or(kept_from, |tail| written.saturating_sub(tail).max(kept_from));
        copy(&client, args, &exec, stream, from, written, context).await?;
    }
    Ok(0)
}

/// Kept output from `from` to what was written when asked: as a file is read, not followed.
async fn copy(
    client: &Client,
    args: &LogsArgs,
    exec: &ExecInfo,
    stream: OutputStream,
    from: u64,
    to: u64,
    context: &Context,
) -> Result<(), Failed> {
    let mut offset = from;
    while offset < to {
        let mut execs = client.execs();
        let request = ReadExecRequest {
            sandbox: args.sandbox.clone(),
            exec_id: exec.exec_id.clone(),
            stream: stream.into(),
            offset,
            // MAX_READ is 512 KiB; what remains is less where it fits.
            max_bytes: (to - offset).min(limits::MAX_READ as u64) as u32,
        };
        let response = client.call("read the exec's output", CALL_TIMEOUT, execs.read(request)).await?;
        if response.offset > offset {
            let gone = response.offset - offset;
            context.output.note(&format!("{gone} bytes are no longer kept"));
        }
        if stream == OutputStream::Stderr {
            // Stderr stays apart, as it was.
            use std::io::Write as _;
            std::io::stderr().write_all(&response.data).map_err(Failed::stdout)?;
        } else {
            context.output.data(&response.data)?;
        }
        let next = response.offset.saturating_add(response.data.len() as u64);
        if response.eof || response.data.is_empty() || next <= offset {
            break;
        }
        offset = next;
    }
    Ok(())
}

async fn all(client: &Client, sandbox: &str) -> Result<Vec<ExecInfo>, Error> {
    let mut execs = client.execs();
    let request = ListExecsRequest { sandbox: sandbox.to_owned() };
    Ok(client.call(&format!("list the execs of {sandbox}"), CALL_TIMEOUT, execs.list(request)).await?.execs)
}

/// The exec with this id, or the only one whose id begins so, or the sandbox's main command. That one is found by what
/// it is now: whoever goes on with the id stays with this workload's.
pub(super) async fn find(client: &Client, sandbox: &str, text: &str) -> Result<ExecInfo, Error> {
    let main = if text == MAIN { Some(parse_main(&main_of(client, sandbox).await?, sandbox)?) } else { None };
    if let Some(exec_id) = main.or_else(|| text.parse::<ExecId>().ok()) {
        let mut execs = client.execs();
        let request = GetExecRequest { sandbox: sandbox.to_owned(), exec_id: exec_id.to_string() };
        let response = client.call(&format!("find exec {text}"), CALL_TIMEOUT, execs.get(request)).await?;
        return response.exec.ok_or_else(|| {
            Error::NoSuchExec(format!("the gateway knows exec {text} and says nothing of it"))
        });
    }
    choose(all(client, sandbox).await?, sandbox, text)
}

/// The id of the sandbox's main command; empty where it has none.
async fn main_of(client: &Client, sandbox: &str) -> Result<String, Error> {
    let mut sandboxes = client.sandboxes();
    let request = GetSandboxRequest { sandbox: sandbox.to_owned() };
    let what = format!("find the main command of {sandbox}");
    let found = client.call(&what, CALL_TIMEOUT, sandboxes.get(request)).await?.sandbox.unwrap_or_default();
    Ok(found.status.unwrap_or_default().main_exec_id)
}

fn parse_main(exec_id: &str, sandbox: &str) -> Result<ExecId, Error> {
    if exec_id.is_empty() {
        return Err(Error::NoSuchExec(format!("{sandbox} has no main command: it was not made with --main")));
    }
    exec_id.parse().map_err(|error| Error::NoSuchExec(format!("the gateway's answer: {error}")))
}

fn choose(execs: Vec<ExecInfo>, sandbox: &str, text: &str) -> Result<ExecInfo, Error> {
    let begins = text.to_ascii_lowercase();
    let mut fitting: Vec<_> = execs.into_iter().filter(|exec| exec.exec_id.starts_with(&begins)).collect();
    match (fitting.pop(), fitting.len()) {
        (Some(exec), 0) if !begins.is_empty() => Ok(exec),
        (None, _) => Err(Error::NoSuchExec(format!(
            "no exec of {sandbox} has an id that begins with {text:?}; `holdfast execs {sandbox}` lists them"
        ))),
        (Some(_), more) => Err(Error::NoSuchExec(format!(
            "{} execs of {sandbox} have ids that begin with {text:?}: give more of it",
            more + 1
        ))),
    }
}

/// The id as an id.
pub(super) fn id_of(exec: &ExecInfo) -> Result<ExecId, Error> {
    exec.exec_id.parse().map_err(|error| Error::NoSuchExec(format!("the gateway's answer: {error}")))
}

/// The exit code of an exec that has ended.
pub(super) fn code_of(exec: &ExecInfo) -> u8 {
    exec.outcome.as_ref().map_or(exit::OURS, exit::code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(id: &str) -> ExecInfo {
        ExecInfo { exec_id: id.into(), ..ExecInfo::default() }
    }

    #[test]
    fn a_beginning_must_be_the_only_one() {
        let execs = vec![exec("0199aaaa"), exec("0199aabb"), exec("0200")];
        assert_eq!(choose(execs.clone(), "box", "0199AAB").unwrap().exec_id, "0199aabb");
        assert!(choose(execs.clone(), "box", "0199").unwrap_err().to_string().starts_with("2 execs"));
        assert!(choose(execs.clone(), "box", "ff").unwrap_err().to_string().contains("holdfast execs box"));
        assert!(choose(execs, "box", "").is_err(), "nothing is the beginning of everything");
    }
}
