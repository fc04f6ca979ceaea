//! A caller of the simulated gateway: starts an exec or attaches to one, follows its output by offset, and comes
//! back after every loss, as the client library does (its pure part, [`Resume`], is the real one). Everything that
//! it sees is written down with the instant at which it saw it.
//!
//! ```text
//!   gateway there? ─▶ attach ─▶ events ─▶ outcome            done
//!        ▲                 │        │
//!        └── pause ◀───────┴────────┘ told of a loss, or the gateway is gone
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_cli::client::{Resume, Seen, Target};
use holdfast_gateway::{
    error::{CallError, Reason, key},
    execs::{AttachOutput, Attached, CallerInfo},
};
use holdfast_wire::{
    api::{AttachRequest, OnPause, OutputStream, attach_request, outcome::Kind},
    ids::ExecId,
    timing,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{gateway::Life, script::Script};

/// Between a loss and the next try, the first time; doubled up to [`AGAIN_MOST`]. The client library's numbers.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(5);

/// Output is acknowledged so long after the last of it.
const ACK_QUIET: Duration = Duration::from_millis(200);

/// The gateway, as callers reach it: `None` while nobody listens.
pub type Door = watch::Receiver<Option<Arc<Life>>>;

/// What a caller wants.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which sandbox, by id or name.
    pub sandbox: String,
    /// Which exec.
    pub exec: ExecId,
    /// The command, and the truth about it.
    pub script: Script,
    /// Asks for a start; otherwise it only attaches.
    pub start: bool,
    /// Reads at most so many bytes a second.
    pub reads: Option<u64>,
}

impl Plan {
    /// Starts `script` in `sandbox`.
    #[must_use]
    pub fn start(sandbox: impl ToString, script: Script) -> Self {
        Self { sandbox: sandbox.to_string(), exec: ExecId::random(), script, start: true, reads: None }
    }
}

/// One attach, from its acceptance to its end.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The call began.
    pub asked: Instant,
    /// It was attached; `None`: it never was.
    pub attached: Option<Instant>,
    /// It was over: an error, the outcome, or the gateway's death.
    pub ended: Instant,
    /// What it was told.
    pub end: StreamEnd,
}

/// How an attach ended.
#[derive(Clone, Debug)]
pub enum StreamEnd {
    /// With the outcome.
    Outcome,
    /// The gateway's process is gone.
    GatewayGone,
    /// The gateway said so.
    Told {
        /// From the table.
        reason: Reason,
        /// What ended the session, if that was it.
        cause: Option<String>,
        /// In words.
        message: String,
    },
}

/// All that a caller saw.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it wanted.
    pub plan: Plan,
    /// When it began.
    pub began: Instant,
    /// Its attaches, in order.
    pub streams: Vec<Stream>,
    /// All of stdout that came.
    pub stdout: Vec<u8>,
    /// Likewise stderr.
    pub stderr: Vec<u8>,
    /// Bytes that it was told are gone.
    pub gone: u64,
    /// The outcome.
    pub outcome: Option<Kind>,
    /// When it was told the outcome, or gave up.
    pub ended: Instant,
    /// Why it gave up.
    pub gave_up: Option<String>,
}

impl Record {
    /// How often it had to come back.
    #[must_use]
    pub fn losses(&self) -> usize {
        self.streams.iter().filter(|stream| !matches!(stream.end, StreamEnd::Outcome)).count()
    }

    /// The first loss at or after `from`.
    #[must_use]
    pub fn first_loss(&self, from: Instant) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.ended >= from && !matches!(stream.end, StreamEnd::Outcome))
    }
}

/// How a stream was left.
enum Left {
    Over,
    Again(StreamEnd),
    Broken(String),
}

/// One call, to its end: the outcome, or a refusal that no repetition would change.
pub async fn call(plan: Plan, mut door: Door) -> Record {
    let began = Instant::now();
    let mut caller = Caller {
        resume: Resume::new(Target {
            sandbox: plan.sandbox.clone(),
            exec_id: plan.exec,
            start: plan.start.then(|| plan.script.spec()),
            start_deadline: None,
            stdin: plan.script.stdin().is_some(),
            stdout_offset: 0,
            stderr_offset: 0,
            on_pause: OnPause::Notice,
        }),
        stdin: plan.script.stdin().cloned(),
        record: Record {
            plan,
            began,
            streams: Vec::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            gone: 0,
            outcome: None,
            ended: began,
            gave_up: None,
        },
    };
    let mut again = AGAIN_FIRST;
    loop {
        let life = match door.wait_for(Option::is_some).await {
            Ok(life) => life.clone(),
            Err(_) => break caller.record.gave_up = Some("the world ended first".to_owned()),
        };
        let Some(life) = life else { continue };
        let (asked, mut attached) = (Instant::now(), None);
        let left = caller.one_stream(&life, &mut attached).await;
        drop(life);
        let mut note =
            |end| caller.record.streams.push(Stream { asked, attached, ended: Instant::now(), end });
        match left {
            Left::Over => break note(StreamEnd::Outcome),
            Left::Broken(why) => break caller.record.gave_up = Some(why),
            Left::Again(end) => note(end),
        }
        if attached.is_some() {
            again = AGAIN_FIRST;
        }
        tokio::time::sleep(again).await;
        again = (2 * again).min(AGAIN_MOST);
    }
    caller.record.ended = Instant::now();
    caller.record
}

struct Caller {
    resume: Resume,
    stdin: Option<Bytes>,
    record: Record,
}

impl Caller {
    async fn one_stream(&mut self, life: &Life, attached_at: &mut Option<Instant>) -> Left {
        let Some(attach_request::Kind::Open(open)) = self.resume.open().kind else {
            return Left::Broken("the first message is no `open`".to_owned());
        };
        let info = CallerInfo { name: "sim".to_owned(), traceparent: String::new() };
        let attached = tokio::select! {
            biased;
            () = life.dead.cancelled() => return Left::Again(StreamEnd::GatewayGone),
            attached = life.core.execs.attach(open, info) => attached,
        };
        match attached {
            Ok(attached) => {
                *attached_at = Some(Instant::now());
                tokio::select! {
                    biased;
                    () = life.dead.cancelled() => Left::Again(StreamEnd::GatewayGone),
                    left = self.carry(attached) => left,
                }
            }
            Err(error) => told(error),
        }
    }

    async fn carry(&mut self, attached: Attached) -> Left {
        let (input, mut output) = attached.split();
        // As much as a gRPC stream holds on its way.
        let (requests, mut outgoing) = mpsc::channel::<AttachRequest>(8);
        let sending = async {
            while let Some(request) = outgoing.recv().await {
                if let Err(error) = input.send(request).await {
                    return Left::Broken(format!("a request was refused: {error}"));
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            left = self.follow(&mut output, requests) => left,
            left = sending => left,
        }
    }

    async fn follow(&mut self, output: &mut AttachOutput, requests: mpsc::Sender<AttachRequest>) -> Left {
        let mut quiet = Instant::now() + ACK_QUIET;
        loop {
            self.feed();
            tokio::select! {
                biased;
                event = output.next_event() => {
                    let event = match event {
                        Some(Ok(event)) => event,
                        Some(Err(error)) => return told(error),
                        None => return Left::Broken("the stream ended without an outcome or an error".to_owned()),
                    };
                    match self.resume.on_event(event) {
                        Ok(Some(seen)) => if let Some(left) = self.see(seen).await { return left },
                        Ok(None) => {}
                        Err(violation) => return Left::Broken(format!("the contract was broken: {violation}")),
                    }
                    quiet = Instant::now() + ACK_QUIET;
                }
                permit = requests.reserve(), if self.resume.has_outgoing() => {
                    let Ok(permit) = permit else { return Left::Broken("the request half is gone".to_owned()) };
                    if let Some(request) = self.resume.next_outgoing() {
                        permit.send(request);
                    }
                }
                () = tokio::time::sleep_until(quiet), if self.resume.unacknowledged() > 0 => {
                    self.resume.flush_acks();
                    quiet = Instant::now() + ACK_QUIET;
                }
            }
        }
    }

    /// Gives as much stdin as there is room for.
    fn feed(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        let room = usize::try_from(self.resume.stdin_room()).unwrap_or(usize::MAX);
        let piece = stdin.split_to(stdin.len().min(room));
        if !piece.is_empty() {
            self.resume.push_stdin(piece);
        }
        if self.stdin.as_ref().is_some_and(Bytes::is_empty) {
            self.resume.end_stdin();
            self.stdin = None;
        }
    }

    async fn see(&mut self, seen: Seen) -> Option<Left> {
        match seen {
            Seen::Started { lost, .. } => self.record.gone += lost,
            Seen::Output { stream, data, .. } => {
                if let Some(rate) = self.record.plan.reads {
                    tokio::time::sleep(Duration::from_secs_f64(data.len() as f64 / rate as f64)).await;
                }
                let record = if stream == OutputStream::Stderr {
                    &mut self.record.stderr
                } else {
                    &mut self.record.stdout
                };
                record.extend_from_slice(&data);
                let (stdout, stderr) = self.resume.received();
                self.resume.on_consumed(stdout, stderr);
            }
            Seen::Lost { bytes, .. } => self.record.gone += bytes,
            Seen::Notice(_) => {}
            Seen::Ended { ended, missing } => {
                self.record.gone += missing;
                if self.record.outcome.is_some() {
                    return Some(Left::Broken("a second outcome".to_owned()));
                }
                self.record.outcome = ended.outcome.and_then(|outcome| outcome.kind);
                return Some(Left::Over);
            }
        }
        None
    }
}

/// What an error means to a caller that does not give up while the exec may live.
fn told(error: CallError) -> Left {
    let again = matches!(
        error.reason,
        Reason::SessionLost
            | Reason::NoSession
            | Reason::GatewayStopping
            | Reason::RelayDeadline
            | Reason::StartUnknown
            | Reason::Conflict
    );
    if !again {
        return Left::Broken(format!("{}: {error}", error.reason));
    }
    let cause = error.metadata.get(key::CAUSE).cloned();
    Left::Again(StreamEnd::Told { reason: error.reason, cause, message: error.message })
}

/// The longest that an attach may take before it is answered: the deadline for starting, and the time in which a
/// session's loss is told.
pub const ANSWERED_WITHIN: Duration = timing::START_DEADLINE.saturating_add(Duration::from_secs(1));
