//! The task behind an [`ExecSession`](super::ExecSession): it keeps a stream to the gateway until the outcome.
//!
//! ```text
//!   ┌─▶ open ─▶ carry ─ ended ─────────────▶ last word
//!   │             │ lost: outage.rs decides
//!   └── delay ◀───┴──── final, gave up ────▶ last word
//! ```
//!
//! Wherever it waits, it takes controls and stdin meanwhile, and notices a reader that is gone.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use holdfast_wire::{
    api::{AttachEvent, AttachRequest},
    timing,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{
    super::{
        Client, Violation,
        error::{Error, Failure, Refusal},
        outage::{Outages, Verdict},
        resume::{Resume, Seen},
    },
    Control, Event, LEAVE, Offsets, Reattached, Stdin, Tagged,
};

/// Messages that wait for the gateway's stream.
const OUTGOING: usize = 8;

/// Nothing was used for so long: what was used before is confirmed. Frequent enough for a spool to stay empty
/// behind a quiet command, seldom enough to cost nothing.
const ACK_QUIET: Duration = Duration::from_millis(200);

/// The gateway sends a keepalive after [`timing::API_KEEP_ALIVE`] of silence; three missing ones are a dead stream
/// (HTTP/2's own pings only prove the next hop, which may be a proxy).
const SILENCE: Duration = Duration::from_secs(3 * timing::API_KEEP_ALIVE.as_secs());

/// What the gateway may take to answer beyond the caller's deadline for starting.
const ANSWER_SLACK: Duration = Duration::from_secs(15);

/// Between tries: 0.1 s doubled up to 5 s, each with as much again at random, so that the callers of a restarted
/// gateway do not come back together.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(5);

/// Why a stream was left.
enum Left {
    /// The last event went out.
    Over,
    /// The caller asked to leave.
    Detach,
    /// The reader is gone.
    Unread,
    Failed(Failure),
    Violated(Violation),
}

pub(super) struct Task {
    pub(super) client: Client,
    pub(super) resume: Resume,
    pub(super) outages: Outages,
    pub(super) events: mpsc::Sender<Result<Tagged, Error>>,
    pub(super) controls: mpsc::Receiver<Control>,
    /// `None` once the caller has closed it.
    pub(super) stdin: Option<mpsc::Receiver<Stdin>>,
    pub(super) consumed: watch::Receiver<Offsets>,
}

impl Task {
    pub(super) async fn run(mut self) {
        let mut delays = delays();
        loop {
            let left = self.one_stream(&mut delays).await;
            let failure = match left {
                Left::Over | Left::Unread => return,
                Left::Detach => return self.say_last(Ok(Event::Detached)).await,
                Left::Violated(violation) => {
                    let exec_id = self.resume.target().exec_id;
                    return self.say_last(Err(Error::Violation { exec_id, violation })).await;
                }
                Left::Failed(failure) => failure,
            };
            let now = Instant::now();
            let fresh = self.outages.current().is_none();
            tracing::debug!(%failure, "stream lost");
            match self.outages.on_failure(&failure, &self.resume, now) {
                Verdict::Final => {
                    let what =
                        if self.resume.would_start() { "start the command" } else { "attach to the exec" };
                    let error = failure.into_error(what, self.client.address());
                    return self.say_last(Err(error)).await;
                }
                Verdict::GiveUp => {
                    let after = self.outages.current().map_or(Duration::ZERO, |outage| now - outage.since);
                    let exec_id = self.resume.target().exec_id;
                    let error = Error::GaveUp { exec_id, after, cause: failure.to_string() };
                    return self.say_last(Err(error)).await;
                }
                Verdict::Retry => {}
            }
            if fresh && let Some(outage) = self.outages.current() {
                let event = Event::Reattaching { cause: outage.cause.clone() };
                let events = self.events.clone();
                match self.meanwhile(events.send(Ok(event.into()))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(Left::Unread) => return,
                    Err(_) => return self.say_last(Ok(Event::Detached)).await,
                }
            }
            let delay = delays.next().unwrap_or(RETRY_CAP);
            let delay =
                self.outages.remaining(&self.resume, now).map_or(delay, |remaining| delay.min(remaining));
            match self.meanwhile(sleep(delay)).await {
                Ok(()) => {}
                Err(Left::Unread) => return,
                Err(_) => return self.say_last(Ok(Event::Detached)).await,
            }
        }
    }

    /// Opens a stream and carries it until it is left.
    async fn one_stream(&mut self, delays: &mut ExponentialBackoff) -> Left {
        let (requests, outgoing) = mpsc::channel(OUTGOING);
        // An empty queue of OUTGOING has room.
        if requests.try_send(self.resume.open()).is_err() {
            return Left::Failed(Failure::Broken("the request queue is closed".to_owned()));
        }
        let mut execs = self.client.execs();
        let patience = self.resume.target().start_deadline.unwrap_or(timing::START_DEADLINE) + ANSWER_SLACK;
        let attach = timeout(patience, execs.attach(ReceiverStream::new(outgoing)));
        let stream = match self.meanwhile(attach).await {
            Ok(Ok(Ok(response))) => response.into_inner(),
            Ok(Ok(Err(status))) => return Left::Failed(Failure::of(&status)),
            Ok(Err(_)) => return Left::Failed(Failure::Broken(format!("no answer within {patience:?}"))),
            Err(left) => return left,
        };
        self.carry(stream, requests, patience, delays).await
    }

    async fn carry(
        &mut self,
        mut stream: Streaming<AttachEvent>,
        requests: mpsc::Sender<AttachRequest>,
        patience: Duration,
        delays: &mut ExponentialBackoff,
    ) -> Left {
        // Headers prove nothing: the first event has the answer's deadline, later ones the keepalive's.
        let mut deadline = Instant::now() + patience;
        let mut quiet = Instant::now() + ACK_QUIET;
        let events = self.events.clone();
        loop {
            if events.capacity() == 0 {
                // The reader is slow, and nothing is read from the stream: that is no silence of the peer's.
                deadline = deadline.max(Instant::now() + SILENCE);
            }
            let stdin_open = self.resume.stdin_room() > 0 && self.stdin.is_some();
            tokio::select! {
                control = self.controls.recv() => match control {
                    Some(Control::Detach) => break,
                    Some(control) => self.on_control(control),
                    None => return Left::Unread,
                },
                permit = requests.reserve(), if self.resume.has_outgoing() => {
                    let Ok(permit) = permit else {
                        // The transport dropped the request half; the answer half says why.
                        return Left::Failed(failure_of(stream.message().await));
                    };
                    if let Some(request) = self.resume.next_outgoing() {
                        permit.send(request);
                    }
                }
                Ok(()) = self.consumed.changed() => {
                    let offsets = *self.consumed.borrow_and_update();
                    self.resume.on_consumed(offsets.stdout, offsets.stderr);
                    quiet = Instant::now() + ACK_QUIET;
                }
                () = sleep_until(quiet), if self.resume.unacknowledged() > 0 => {
                    self.resume.flush_acks();
                    quiet = Instant::now() + ACK_QUIET;
                }
                stdin = recv(&mut self.stdin), if stdin_open => self.on_stdin(stdin),
                read = read(&mut stream, &events, deadline) => {
                    let (permit, event) = match read {
                        Ok(arrival) => arrival,
                        Err(left) => return left,
                    };
                    deadline = Instant::now() + SILENCE;
                    let seen = match self.resume.on_event(event) {
                        Ok(Some(seen)) => seen,
                        Ok(None) => continue,
                        Err(violation) => return Left::Violated(violation),
                    };
                    if matches!(seen, Seen::Started { .. }) {
                        *delays = self::delays();
                    }
                    let over = matches!(seen, Seen::Ended { .. });
                    match self.told(seen) {
                        (Some(event), None) => permit.send(Ok(event)),
                        (Some(event), Some(more)) => {
                            permit.send(Ok(event));
                            match self.meanwhile(events.send(Ok(more))).await {
                                Ok(Ok(())) => {}
                                Ok(Err(_)) | Err(Left::Unread) => return Left::Unread,
                                Err(_) => break,
                            }
                        }
                        (None, _) => {}
                    }
                    if over {
                        return Left::Over;
                    }
                }
            }
        }
        leave(stream, requests).await;
        Left::Detach
    }

    /// What the reader is told of what was seen: one event, or two.
    fn told(&mut self, seen: Seen) -> (Option<Tagged>, Option<Tagged>) {
        match seen {
            Seen::Started { exec, first, lost } => {
                let outage = self.outages.on_attached();
                let started = first.then(|| Event::Started(exec).into());
                let reattached = outage.map(|outage| {
                    let after = outage.since.elapsed();
                    Event::Reattached(Reattached { after, cause: outage.story(), lost }).into()
                });
                // A first attach to an exec whose oldest output is gone already.
                let gone = (reattached.is_none() && lost > 0).then(|| {
                    Event::Notice(format!("the oldest {lost} bytes of output are no longer kept")).into()
                });
                let told = reattached.or(gone);
                if started.is_some() { (started, told) } else { (told, None) }
            }
            Seen::Output { stream, end, data } => {
                (Some(Tagged { event: Event::Output { stream, data }, end: Some((stream, end)) }), None)
            }
            Seen::Lost { stream, bytes } => (Some(Event::Lost { stream, bytes }.into()), None),
            Seen::Notice(text) => (Some(Event::Notice(text).into()), None),
            Seen::Ended { ended, missing } => {
                let ended = Event::Ended { ended, missing }.into();
                // The gateway may answer an attach to an ended exec with its outcome alone.
                match self.outages.on_attached() {
                    None => (Some(ended), None),
                    Some(outage) => {
                        let after = outage.since.elapsed();
                        let back = Reattached { after, cause: outage.story(), lost: missing };
                        (Some(Event::Reattached(back).into()), Some(ended))
                    }
                }
            }
        }
    }

    /// Waits for `what`, and takes controls and stdin meanwhile.
    async fn meanwhile<T>(&mut self, what: impl Future<Output = T>) -> Result<T, Left> {
        tokio::pin!(what);
        loop {
            let stdin_open = self.resume.stdin_room() > 0 && self.stdin.is_some();
            tokio::select! {
                done = &mut what => return Ok(done),
                control = self.controls.recv() => match control {
                    Some(Control::Detach) => return Err(Left::Detach),
                    Some(control) => self.on_control(control),
                    None => return Err(Left::Unread),
                },
                stdin = recv(&mut self.stdin), if stdin_open => self.on_stdin(stdin),
                () = self.events.closed() => return Err(Left::Unread),
            }
        }
    }

    fn on_control(&mut self, control: Control) {
        match control {
            Control::Resize(size) => self.resume.resize(size),
            Control::Signal(signal) => {
                if !self.resume.signal(signal) {
                    tracing::warn!(signal, "too many signals wait for a stream: dropped");
                }
            }
            Control::Detach => {}
        }
    }

    fn on_stdin(&mut self, stdin: Option<Stdin>) {
        match stdin {
            Some(Stdin::Data(data)) => self.resume.push_stdin(data),
            Some(Stdin::Eof) => {
                self.resume.end_stdin();
                self.stdin = None;
            }
            None => self.stdin = None,
        }
    }

    async fn say_last(self, last: Result<Event, Error>) {
        // A reader that is gone needs no last word.
        let _ = self.events.send(last.map(Tagged::from)).await;
    }
}

/// Room at the reader, and the event to fill it.
type Arrival<'a> = (mpsc::Permit<'a, Result<Tagged, Error>>, AttachEvent);

/// The stream's next event, once the reader has room for it. Cancel safe: a permit that is dropped goes back, and
/// `Streaming` keeps what it has.
async fn read<'a>(
    stream: &mut Streaming<AttachEvent>,
    events: &'a mpsc::Sender<Result<Tagged, Error>>,
    deadline: Instant,
) -> Result<Arrival<'a>, Left> {
    let permit = events.reserve().await.map_err(|_| Left::Unread)?;
    tokio::select! {
        biased;
        message = stream.message() => match message {
            Ok(Some(event)) => Ok((permit, event)),
            other => Err(Left::Failed(failure_of(other))),
        },
        () = events.closed() => Err(Left::Unread),
        () = sleep_until(deadline) => {
            Err(Left::Failed(Failure::Broken("the stream fell silent".to_owned())))
        }
    }
}

/// What a stream's end means when it is not the outcome.
fn failure_of(message: Result<Option<AttachEvent>, tonic::Status>) -> Failure {
    match message {
        Err(status) => Failure::of(&status),
        Ok(None) => Failure::Broken("the stream ended without an outcome".to_owned()),
        Ok(Some(_)) => Failure::Refused(Box::new(Refusal {
            code: Code::Unavailable,
            reason: None,
            message: "the gateway takes no more input on this stream".to_owned(),
            metadata: std::collections::BTreeMap::new(),
        })),
    }
}

/// Says goodbye, so that `on_disconnect` does not strike, and waits a little for the gateway to have heard it.
async fn leave(mut stream: Streaming<AttachEvent>, requests: mpsc::Sender<AttachRequest>) {
    let goodbye = async {
        if requests.send(Resume::detach()).await.is_ok() {
            drop(requests);
            // The gateway ends the stream when it has taken the message; what still comes is not wanted.
            while let Ok(Some(_)) = stream.message().await {}
        }
    };
    // A gateway that does not answer must not hold a caller that leaves.
    let _ = timeout(LEAVE, goodbye).await;
}

async fn recv(stdin: &mut Option<mpsc::Receiver<Stdin>>) -> Option<Stdin> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

fn delays() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(RETRY_FIRST)
        .with_max_delay(RETRY_CAP)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}
