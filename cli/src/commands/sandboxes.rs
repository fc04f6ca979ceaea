//! `create`, `list`, `get`, `wait`, `delete`, `stop`, `start`, `pause`, `resume`, `update`.

use std::{collections::HashMap, time::Duration};

use holdfast_wire::{
    api::{
        self, CreateSandboxRequest, DeleteSandboxRequest, ExecState, GetSandboxRequest, ListSandboxesRequest,
        PauseSandboxRequest, Resources, ResumeSandboxRequest, SandboxSpec, StartSandboxRequest,
        StopSandboxRequest, UpdateSandboxRequest, WaitExecRequest, WaitSandboxRequest,
    },
    reason::Reason,
    timing,
};
use tokio::time::Instant;

use super::{Context, POLL, execs};
use crate::{
    args::{CreateArgs, DeleteArgs, ListArgs, Making, NamesArgs, StopArgs, UpdateArgs, WaitArgs},
    client::{CALL_TIMEOUT, Client, Error},
    failure::Failed,
    show::{self, Exec, Sandbox},
    values,
};

/// How long `wait` waits if nobody says: longer than any driver takes to make a workload.
const WAIT: Duration = Duration::from_secs(300);

/// Deleting: the grace, the driver's work, and a margin.
const DELETE: Duration = Duration::from_secs(60);

/// Between tries while the gateway is away.
const RETRY: Duration = Duration::from_millis(500);

/// As much of a stage as fits beside the rest, in characters.
const STAGE: usize = 160;

/// More pages than sandboxes are likely to be; a server that pages for ever is broken.
const MAX_PAGES: usize = 1000;

pub(super) async fn create(args: CreateArgs, context: &Context) -> Result<u8, Failed> {
    let env = values::environment(&args.env_file, &args.env).map_err(Failed::Usage)?;
    let mut spec = spec_of(args.making, env, args.user)?;
    spec.main = args.main.then_some(api::MainCommand { args: args.main_args });
    let client = context.client()?;
    let made = make(&client, args.name.unwrap_or_default(), spec);
    let mut sandbox = context.output.during("creating the sandbox", made).await?;
    if args.wait {
        let name = sandbox.name.clone();
        let what = format!("waiting until {name} is ready");
        let ready = until(&client, &name, "ready", args.timeout);
        let stage = async || Box::pin(stage(&client, &name)).await;
        if let Some(ready) = Box::pin(context.output.following(&what, ready, stage)).await? {
            sandbox = ready;
        }
    }
    // The name alone, for `box=$(holdfast create)`, unless a document is asked for.
    let shown = Sandbox::from(sandbox);
    match context.output.format {
        crate::args::Format::Table => context.output.line(&shown.name)?,
        _ => context.output.one("sandboxes", &shown)?,
    }
    Ok(0)
}

/// Stores a sandbox at the gateway.
pub(super) async fn make(client: &Client, name: String, spec: SandboxSpec) -> Result<api::Sandbox, Error> {
    let mut sandboxes = client.sandboxes();
    let request = CreateSandboxRequest { name, spec: Some(spec) };
    let response = client.call("create a sandbox", CALL_TIMEOUT, sandboxes.create(request)).await?;
    Ok(response.sandbox.unwrap_or_default())
}

pub(super) fn spec_of(
    making: Making,
    env: Vec<api::EnvVar>,
    user: Option<String>,
) -> Result<SandboxSpec, Failed> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
    let mut variables = HashMap::new();
    for variable in env {
        let name = String::from_utf8_lossy(&variable.name).into_owned();
        let (Ok(key), Ok(value)) = (text(&variable.name), text(&variable.value)) else {
            return Err(Failed::Usage(format!(
                "the variable {name} of a sandbox must be UTF-8; give it to exec instead"
            )));
        };
        variables.insert(key, value);
    }
    Ok(SandboxSpec {
        image: making.image.unwrap_or_default(),
        labels: making.labels.into_iter().collect(),
        env: variables,
        user: user.unwrap_or_default(),
        resources: Some(Resources {
            cpu_millis: making.cpus.unwrap_or(0),
            memory_bytes: making.memory.unwrap_or(0),
            pids: making.pids.unwrap_or(0),
            disk_bytes: making.disk.unwrap_or(0),
        }),
        mounts: making.mounts,
        network: making.network.unwrap_or_default(),
        read_only_root: making.read_only,
        rootfs: making.rootfs.unwrap_or_default(),
        egress: making.egress.unwrap_or_default(),
        workspace: making.workspace.unwrap_or_default(),
        ttl: span(making.ttl, "--ttl")?,
        idle_stop: span(making.idle_stop, "--idle-stop")?,
        ..SandboxSpec::default()
    })
}

/// A duration for the wire.
fn span(span: Option<Duration>, flag: &str) -> Result<Option<prost_types::Duration>, Failed> {
    let convert =
        |span: Duration| span.try_into().map_err(|_| Failed::Usage(format!("{flag}: {span:?} is too long")));
    span.map(convert).transpose()
}

pub(super) async fn list(args: ListArgs, context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    let labels: HashMap<_, _> = args.labels.into_iter().collect();
    let all = async {
        let (mut found, mut page_token) = (Vec::new(), String::new());
        for _ in 0..MAX_PAGES {
            let mut sandboxes = client.sandboxes();
            let request = ListSandboxesRequest { labels: labels.clone(), page_size: 0, page_token };
            let page = client.call("list sandboxes", CALL_TIMEOUT, sandboxes.list(request)).await?;
            found.extend(page.sandboxes.into_iter().map(Sandbox::from));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        Ok::<_, Error>(found)
    };
    let found = context.output.during("listing sandboxes", all).await?;
    context.output.list("sandboxes", &found)?;
    Ok(0)
}

pub(super) async fn get(args: &NamesArgs, context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    let (mut found, mut worst) = (Vec::new(), None);
    for name in &args.sandboxes {
        let mut sandboxes = client.sandboxes();
        let request = GetSandboxRequest { sandbox: name.clone() };
        match client.call(&format!("get {name}"), CALL_TIMEOUT, sandboxes.get(request)).await {
            Ok(response) => found.push(Sandbox::from(response.sandbox.unwrap_or_default())),
            Err(error) => worst = Some(tell(error, context)),
        }
    }
    if matches!(context.output.format, crate::args::Format::Table | crate::args::Format::Wide) {
        // What a table has no room for.
        found.iter().flat_map(Sandbox::remarks).for_each(|remark| context.output.note(&remark));
    }
    match &found[..] {
        [one] if args.sandboxes.len() == 1 => context.output.one("sandboxes", one)?,
        [] => {}
        several => context.output.list("sandboxes", several)?,
    }
    worst.map_or(Ok(0), |code| Err(Failed::Told(code)))
}

pub(super) async fn wait(args: &WaitArgs, context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    let name = &args.sandbox;
    if let Some(exec) = &args.exec {
        return wait_exec(&client, name, exec, args.timeout, context).await;
    }
    let what = format!("waiting for {name} to be {}", args.until);
    let waited = until(&client, name, &args.until, args.timeout.unwrap_or(WAIT));
    let stage = async || Box::pin(stage(&client, name)).await;
    if let Some(sandbox) = Box::pin(context.output.following(&what, waited, stage)).await?
        && context.output.format != crate::args::Format::Table
    {
        context.output.one("sandboxes", &Sandbox::from(sandbox))?;
    }
    Ok(0)
}

/// Waits for a sandbox's state by long polls; a gateway that is away meanwhile is waited for too, once it has
/// answered. `None`: it is gone, as was waited for.
pub(super) async fn until(
    client: &Client,
    name: &str,
    state: &str,
    at_most: Duration,
) -> Result<Option<api::Sandbox>, Failed> {
    let deadline = Instant::now() + at_most;
    let what = format!("wait for {name} to be {state}");
    let mut reached = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let round = left.min(POLL);
        let mut sandboxes = client.sandboxes();
        let request = WaitSandboxRequest {
            sandbox: name.to_owned(),
            until: state.to_owned(),
            // At most POLL.
            at_most: Some(round.try_into().unwrap_or_default()),
        };
        match client.call(&what, round + CALL_TIMEOUT, sandboxes.wait(request)).await {
            Ok(response) => return Ok(response.sandbox),
            Err(error) if error.reason() == Some(Reason::WaitTimeout) => {
                reached = true;
                if Instant::now() >= deadline {
                    let state = now(client, name).await;
                    let within = humantime::format_duration(at_most);
                    return Err(Failed::Timeout(format!("{what}: not within {within}{state}")));
                }
            }
            Err(error) if state == "deleted" && error.reason() == Some(Reason::SandboxNotFound) => {
                return Ok(None);
            }
            Err(error) if error.is_transient() && (reached || !matches!(error, Error::Connect { .. })) => {
                reached = true;
                if Instant::now() + RETRY >= deadline {
                    return Err(error.into());
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a sandbox waits for, in its own words.
async fn stage(client: &Client, name: &str) -> Option<String> {
    let mut sandboxes = client.sandboxes();
    let request = GetSandboxRequest { sandbox: name.to_owned() };
    let response = client.call("look", CALL_TIMEOUT, sandboxes.get(request)).await.ok()?;
    let status = response.sandbox?.status?;
    let text = if status.message.is_empty() { status.reason } else { status.message };
    // A console's lines have no place on a line that is written over.
    text.lines().next().map(|line| line.chars().take(STAGE).collect())
}

/// What a sandbox is instead, for the message of a wait that was in vain.
async fn now(client: &Client, name: &str) -> String {
    let mut sandboxes = client.sandboxes();
    let request = GetSandboxRequest { sandbox: name.to_owned() };
    let Ok(response) = client.call("look", CALL_TIMEOUT, sandboxes.get(request)).await else {
        return String::new();
    };
    let status = response.sandbox.and_then(|sandbox| sandbox.status).unwrap_or_default();
    let mut text = format!("; it is {}", show::phase(status.phase));
    for part in [status.reason, status.message].iter().filter(|part| !part.is_empty()) {
        text.push_str(": ");
        text.push_str(part);
    }
    text
}

/// Waits for an exec's end, and ends with its exit code.
async fn wait_exec(
    client: &Client,
    sandbox: &str,
    exec: &str,
    at_most: Option<Duration>,
    context: &Context,
) -> Result<u8, Failed> {
    let exec_id = execs::find(client, sandbox, exec).await?.exec_id;
    let deadline = at_most.map(|at_most| Instant::now() + at_most);
    let what = format!("wait for exec {exec}");
    let waited = async {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let round = left.unwrap_or(POLL).min(POLL);
            let mut execs = client.execs();
            let request = WaitExecRequest {
                sandbox: sandbox.to_owned(),
                exec_id: exec_id.clone(),
                at_most: Some(round.try_into().unwrap_or_default()),
            };
            let over = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
            match client.call(&what, round + CALL_TIMEOUT, execs.wait(request)).await {
                Ok(response) => {
                    let exec = response.exec.unwrap_or_default();
                    if exec.state() == ExecState::Ended {
                        return Ok(exec);
                    }
                    if over() {
                        return Err(Failed::Timeout(format!("{what}: it has not ended in time")));
                    }
                }
                // The exec lives on without the gateway, and this wait with it.
                Err(error) if error.is_transient() && !over() => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(error.into()),
            }
        }
    };
    let ended = context.output.during(&format!("waiting for {exec}"), waited).await?;
    let code = execs::code_of(&ended);
    let shown = Exec::from(ended);
    if let Some(remark) = shown.outcome.as_ref().and_then(show::Outcome::remark) {
        context.output.note(&remark);
    }
    if context.output.format != crate::args::Format::Table {
        context.output.one("execs", &shown)?;
    }
    Ok(code)
}

pub(super) async fn delete(args: &DeleteArgs, context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    let mut worst = None;
    for name in &args.names.sandboxes {
        let gone = remove(&client, name, args.grace, !args.no_wait);
        match context.output.during(&format!("deleting {name}"), gone).await {
            Ok(()) if args.no_wait => context.output.note(&format!("{name} is being deleted")),
            Ok(()) => context.output.note(&format!("{name} deleted")),
            Err(error) if args.ignore_not_found && error.reason() == Some(Reason::SandboxNotFound) => {}
            Err(error) => worst = Some(tell(error, context)),
        }
    }
    worst.map_or(Ok(0), |code| Err(Failed::Told(code)))
}

/// Deletes a sandbox; with `wait`, returns when it is gone.
pub(super) async fn remove(
    client: &Client,
    name: &str,
    grace: Option<Duration>,
    wait: bool,
) -> Result<(), Error> {
    let mut sandboxes = client.sandboxes();
    let at_most = DELETE + grace.unwrap_or(timing::KILL_GRACE);
    let grace = grace.map(|grace| grace.try_into().unwrap_or_default());
    let request = DeleteSandboxRequest { sandbox: name.to_owned(), grace, wait };
    client.call(&format!("delete {name}"), at_most, sandboxes.delete(request)).await.map(drop)
}

pub(super) async fn stop(args: &StopArgs, context: &Context) -> Result<u8, Failed> {
    change(&args.names, Change::Stop(args.grace), context).await
}

pub(super) async fn update(args: &UpdateArgs, context: &Context) -> Result<u8, Failed> {
    let (ttl, idle_stop) = (span(args.ttl, "--ttl")?, span(args.idle_stop, "--idle-stop")?);
    change(&args.names, Change::Update { ttl, idle_stop }, context).await
}

/// A change of what is wanted of a sandbox.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Stop(Option<Duration>),
    Start,
    Pause,
    Resume,
    Update { ttl: Option<prost_types::Duration>, idle_stop: Option<prost_types::Duration> },
}

pub(super) async fn change(args: &NamesArgs, change: Change, context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    let (mut changed, mut worst) = (Vec::new(), None);
    for name in &args.sandboxes {
        let verb = match change {
            Change::Stop(_) => "stop",
            Change::Start => "start",
            Change::Pause => "pause",
            Change::Resume => "resume",
            Change::Update { .. } => "update",
        };
        let one = change_one(&client, name, change, verb);
        match context.output.during(&format!("asking to {verb} {name}"), one).await {
            Ok(sandbox) => {
                let sandbox = Sandbox::from(sandbox.unwrap_or_default());
                context.output.note(&match change {
                    Change::Update { .. } => format!("{name}: {}", sandbox.lifetime()),
                    Change::Stop(_) if sandbox.is_ephemeral() => {
                        format!(
                            "{name}: {}; its files were in its memory, and go with this stop",
                            sandbox.phase
                        )
                    }
                    _ => format!("{name}: {}", sandbox.phase),
                });
                changed.push(sandbox);
            }
            Err(error) => worst = Some(tell(error, context)),
        }
    }
    if context.output.format != crate::args::Format::Table && !changed.is_empty() {
        context.output.list("sandboxes", &changed)?;
    }
    worst.map_or(Ok(0), |code| Err(Failed::Told(code)))
}

async fn change_one(
    client: &Client,
    name: &str,
    change: Change,
    verb: &str,
) -> Result<Option<api::Sandbox>, Error> {
    let mut sandboxes = client.sandboxes();
    let (what, sandbox) = (format!("{verb} {name}"), name.to_owned());
    Ok(match change {
        Change::Stop(grace) => {
            let at_most = CALL_TIMEOUT + grace.unwrap_or(timing::KILL_GRACE);
            let grace = grace.map(|grace| grace.try_into().unwrap_or_default());
            client.call(&what, at_most, sandboxes.stop(StopSandboxRequest { sandbox, grace })).await?.sandbox
        }
        Change::Start => {
            client.call(&what, CALL_TIMEOUT, sandboxes.start(StartSandboxRequest { sandbox })).await?.sandbox
        }
        Change::Pause => {
            client.call(&what, CALL_TIMEOUT, sandboxes.pause(PauseSandboxRequest { sandbox })).await?.sandbox
        }
        Change::Resume => {
            client
                .call(&what, CALL_TIMEOUT, sandboxes.resume(ResumeSandboxRequest { sandbox }))
                .await?
                .sandbox
        }
        Change::Update { ttl, idle_stop } => {
            let request = UpdateSandboxRequest { sandbox, ttl, idle_stop };
            client.call(&what, CALL_TIMEOUT, sandboxes.update(request)).await?.sandbox
        }
    })
}

/// One of several failed: it is told now, and the others go on.
fn tell(error: Error, context: &Context) -> u8 {
    let failed = Failed::from(error);
    context.output.failure(&failed);
    failed.exit_code()
}
