//! A transfer as its caller holds it: the stream's bytes from or to a [`Window`], over any number of calls.
//!
//! ```text
//!   upload:    reader (thread) ─▶ window ─ from the last acknowledgement ─▶ call 1 ✂ call 2 … ─▶ done
//!   download:  call 1 ✂ call 2 … ─ from what has come ─▶ window ─▶ writer (thread) ─ used up to here ─▶ acks
//! ```
//!
//! A call that is lost is made again by itself, as long as the sandbox keeps the transfer.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::Bytes;
use holdfast_files::{Piece, Window};
use holdfast_wire::{
    api::{
        AbortTransfer, DownloadEvent, DownloadOpen, DownloadRequest, DownloadSpec, TransferResult,
        UploadOpen, UploadRequest, UploadSpec, download_event, download_request, upload_event,
        upload_request,
    },
    ids::TransferId,
    limits::{ACK_EVERY, MAX_TRANSFER_CHUNK},
    reason::{Reason, key},
    timing,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Client, Error, error::Failure};

/// Messages that wait for the gateway's stream.
const OUTGOING: usize = 4;

/// As for an exec: three missing keepalives are a dead stream.
const SILENCE: Duration = Duration::from_secs(3 * timing::API_KEEP_ALIVE.as_secs());

/// What the gateway may take to answer beyond the caller's deadline for starting.
const ANSWER_SLACK: Duration = Duration::from_secs(15);

/// Between tries: 0.1 s doubled up to 5 s, with jitter.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(5);

/// For the gateway to hear that a transfer is given up.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a person is told meanwhile.
#[derive(Clone, Debug)]
pub enum TransferNotice {
    /// The call was lost; it is made again.
    Interrupted {
        /// Why.
        cause: String,
    },
    /// It goes on.
    Resumed {
        /// So long after.
        after: Duration,
        /// What had happened.
        cause: String,
        /// From this byte of the stream.
        offset: u64,
    },
}

/// Which transfer, and how patiently.
#[derive(Debug)]
pub struct Transfer<'a> {
    /// Through whom.
    pub client: &'a Client,
    /// The sandbox's name or id.
    pub sandbox: String,
    /// The transfer.
    pub id: TransferId,
    /// How long to wait for the sandbox's session.
    pub start_deadline: Option<Duration>,
    /// Give up so long after a loss; `None`: as long as the sandbox keeps a transfer.
    pub patience: Option<Duration>,
    /// Ends it.
    pub stop: CancellationToken,
}

/// How one call ended.
enum Left<T> {
    Over(T),
    Stopped,
    Failed(Failure),
}

impl Transfer<'_> {
    /// Sends what a reader puts into `window`.
    ///
    /// # Errors
    /// The sandbox could not write it, or cannot be reached any more.
    pub async fn upload(
        &self,
        spec: &UploadSpec,
        window: &Window,
        tell: impl Fn(TransferNotice),
    ) -> Result<TransferResult, Error> {
        let what = format!("copy to {}", self.sandbox);
        self.over_calls(&what, tell, async |resumed: &mut dyn FnMut(u64)| {
            self.one_upload(spec, window, resumed).await
        })
        .await
    }

    /// Receives into `window`, which a writer empties; `used` says how far it has come, and whether that is all.
    ///
    /// # Errors
    /// The sandbox could not read it, or cannot be reached any more.
    pub async fn download(
        &self,
        spec: &DownloadSpec,
        window: &Window,
        used: watch::Receiver<(u64, bool)>,
        tell: impl Fn(TransferNotice),
    ) -> Result<(), Error> {
        let what = format!("copy from {}", self.sandbox);
        self.over_calls(&what, tell, async |resumed: &mut dyn FnMut(u64)| {
            self.one_download(spec, window, used.clone(), resumed).await
        })
        .await
    }

    /// Makes call after call until one says how it ended.
    async fn over_calls<T>(
        &self,
        what: &str,
        tell: impl Fn(TransferNotice),
        mut call: impl AsyncFnMut(&mut dyn FnMut(u64)) -> Left<T>,
    ) -> Result<T, Error> {
        let mut outage: Option<(Instant, String)> = None;
        let (mut contacted, mut delays) = (false, delays());
        loop {
            let mut connected = false;
            let left = call(&mut |offset| {
                connected = true;
                if let Some((since, cause)) = outage.take() {
                    tell(TransferNotice::Resumed { after: since.elapsed(), cause, offset });
                }
            })
            .await;
            let failure = match left {
                Left::Over(done) => return Ok(done),
                Left::Stopped => return Err(Error::Interrupted),
                Left::Failed(failure) => failure,
            };
            if connected {
                delays = self::delays();
            }
            contacted |= connected;
            if !is_transient(&failure, contacted) {
                return Err(failure.into_error(what, self.client.address()));
            }
            contacted |= !matches!(failure, Failure::Connect { .. });
            if outage.is_none() {
                let cause = cause_of(&failure);
                tell(TransferNotice::Interrupted { cause: cause.clone() });
                outage = Some((Instant::now(), cause));
            }
            let since = outage.as_ref().map_or_else(Instant::now, |(since, _)| *since);
            let limit = self.patience.unwrap_or(timing::TRANSFER_KEPT).min(timing::TRANSFER_KEPT);
            if since.elapsed() >= limit {
                return Err(Error::TransferLost { after: since.elapsed(), cause: failure.to_string() });
            }
            tokio::select! {
                () = sleep(delays.next().unwrap_or(RETRY_CAP)) => {}
                () = self.stop.cancelled() => return Err(Error::Interrupted),
            }
        }
    }

    async fn one_upload(
        &self,
        spec: &UploadSpec,
        window: &Window,
        resumed: &mut dyn FnMut(u64),
    ) -> Left<TransferResult> {
        use upload_request::Kind;
        let (mut offset, _) = window.span();
        let open = UploadOpen {
            sandbox: self.sandbox.clone(),
            transfer_id: self.id.to_string(),
            start: (offset == 0).then(|| spec.clone()),
            offset,
            start_deadline: self.deadline(),
        };
        let request = |kind| UploadRequest { kind: Some(kind) };
        let (requests, outgoing) = mpsc::channel(OUTGOING);
        // An empty queue has room.
        let _ = requests.try_send(request(Kind::Open(open)));
        let mut files = self.client.files();
        let opened = tokio::select! {
            opened = timeout(self.patience_for_answer(), files.upload(ReceiverStream::new(outgoing))) => opened,
            () = self.stop.cancelled() => return Left::Stopped,
        };
        let mut stream = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Left::Failed(Failure::of(&status)),
            Err(_) => return Left::Failed(Failure::Broken("the gateway did not answer in time".to_owned())),
        };
        resumed(offset);
        let mut requests = Some(requests);
        // May be ahead of this call's bytes, which begin where the last acknowledgement was heard: what this call has
        // not sent again yet must stay.
        let mut acknowledged = offset;
        let mut deadline = Instant::now() + SILENCE;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    if let Some(requests) = requests.take() {
                        let goodbye = async {
                            let _ = requests.send(request(Kind::Abort(AbortTransfer {}))).await;
                            while let Ok(Some(_)) = stream.message().await {}
                        };
                        let _ = timeout(GOODBYE, goodbye).await;
                    }
                    return Left::Stopped;
                }
                event = stream.message() => {
                    deadline = Instant::now() + SILENCE;
                    match event {
                        Ok(Some(event)) => match event.kind {
                            Some(upload_event::Kind::Ack(ack)) => {
                                acknowledged = ack;
                                window.release(ack.min(offset));
                            }
                            Some(upload_event::Kind::Done(result)) => return Left::Over(result),
                            Some(upload_event::Kind::KeepAlive(_)) | None => {}
                        },
                        other => return Left::Failed(failure_of(other.err())),
                    }
                }
                (permit, piece) = next_piece(requests.as_ref(), window, offset) => match piece {
                    Piece::Data(mut data) => {
                        data.truncate(MAX_TRANSFER_CHUNK);
                        offset += data.len() as u64;
                        if let Some(permit) = permit {
                            permit.send(request(Kind::Data(data)));
                        }
                        window.release(acknowledged.min(offset));
                    }
                    // Half-closed: now the result is awaited. A window that was closed has a reader that failed.
                    Piece::End | Piece::Gone | Piece::Nothing => requests = None,
                },
                () = sleep_until(deadline) => {
                    return Left::Failed(Failure::Broken("the stream fell silent".to_owned()));
                }
            }
        }
    }

    async fn one_download(
        &self,
        spec: &DownloadSpec,
        window: &Window,
        mut used: watch::Receiver<(u64, bool)>,
        resumed: &mut dyn FnMut(u64),
    ) -> Left<()> {
        use download_request::Kind;
        let (_, mut offset) = window.span();
        let open = DownloadOpen {
            sandbox: self.sandbox.clone(),
            transfer_id: self.id.to_string(),
            start: (offset == 0).then(|| spec.clone()),
            offset,
            start_deadline: self.deadline(),
        };
        let request = |kind| DownloadRequest { kind: Some(kind) };
        let (requests, outgoing) = mpsc::channel(OUTGOING);
        // An empty queue has room.
        let _ = requests.try_send(request(Kind::Open(open)));
        let mut files = self.client.files();
        let opened = tokio::select! {
            opened = timeout(self.patience_for_answer(), files.download(ReceiverStream::new(outgoing))) => opened,
            () = self.stop.cancelled() => return Left::Stopped,
        };
        let mut stream = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Left::Failed(Failure::of(&status)),
            Err(_) => return Left::Failed(Failure::Broken("the gateway did not answer in time".to_owned())),
        };
        resumed(offset);
        let mut acknowledged = offset;
        let mut waiting: Option<Bytes> = None;
        let mut deadline = Instant::now() + SILENCE;
        loop {
            let (now, all) = *used.borrow_and_update();
            if now >= acknowledged + ACK_EVERY || (all && now > acknowledged) {
                match requests.try_send(request(Kind::Ack(now))) {
                    Ok(()) => acknowledged = now,
                    // The next one says more.
                    Err(mpsc::error::TrySendError::Full(_)) => {}
                    Err(mpsc::error::TrySendError::Closed(_)) => {}
                }
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    let _: Left<()> = self.unwanted(&requests, &mut stream).await;
                    return Left::Stopped;
                }
                taken = put(window, offset, waiting.as_ref()) => {
                    offset += waiting.take().map_or(0, |chunk| chunk.len() as u64);
                    deadline = Instant::now() + SILENCE;
                    if !taken {
                        return self.unwanted(&requests, &mut stream).await;
                    }
                }
                event = stream.message(), if waiting.is_none() => {
                    deadline = Instant::now() + SILENCE;
                    match event {
                        Ok(Some(event)) => if let Some(download_event::Kind::Data(data)) = event.kind {
                            waiting = Some(data);
                        },
                        Ok(None) => {
                            window.finish();
                            return Left::Over(());
                        }
                        Err(status) => return Left::Failed(failure_of(Some(status))),
                    }
                }
                changed = used.changed() => if changed.is_err() {
                    return self.unwanted(&requests, &mut stream).await;
                },
                () = sleep_until(deadline), if waiting.is_none() => {
                    return Left::Failed(Failure::Broken("the stream fell silent".to_owned()));
                }
            }
        }
    }

    /// The writer has ended before the stream, and its own result says why: nothing need be kept for it.
    async fn unwanted(
        &self,
        requests: &mpsc::Sender<DownloadRequest>,
        stream: &mut tonic::Streaming<DownloadEvent>,
    ) -> Left<()> {
        let goodbye = async {
            let kind = Some(download_request::Kind::Abort(AbortTransfer {}));
            let _ = requests.send(DownloadRequest { kind }).await;
            while let Ok(Some(_)) = stream.message().await {}
        };
        let _ = timeout(GOODBYE, goodbye).await;
        Left::Over(())
    }

    fn deadline(&self) -> Option<prost_types::Duration> {
        self.start_deadline.map(|deadline| deadline.try_into().unwrap_or_default())
    }

    fn patience_for_answer(&self) -> Duration {
        self.start_deadline.unwrap_or(timing::START_DEADLINE) + ANSWER_SLACK
    }
}

/// Room for a message, and what to put in it; never, once all is sent. Cancel-safe.
async fn next_piece(
    requests: Option<&mpsc::Sender<UploadRequest>>,
    window: &Window,
    offset: u64,
) -> (Option<mpsc::OwnedPermit<UploadRequest>>, Piece) {
    let Some(requests) = requests else { return std::future::pending().await };
    let piece = window.next(offset).await;
    match requests.clone().reserve_owned().await {
        Ok(permit) => (Some(permit), piece),
        // The transport dropped the request half; the answer half says why.
        Err(_) => std::future::pending().await,
    }
}

/// Puts the chunk into the window; false: nobody wants it. Never, without one. Cancel-safe.
async fn put(window: &Window, offset: u64, chunk: Option<&Bytes>) -> bool {
    match chunk {
        Some(chunk) => matches!(window.offer(offset, chunk.clone()).await, Ok(true)),
        None => std::future::pending().await,
    }
}

fn failure_of(status: Option<Status>) -> Failure {
    match status {
        Some(status) => Failure::of(&status),
        None => Failure::Broken("the stream ended without a result".to_owned()),
    }
}

/// Whether another call may do better.
fn is_transient(failure: &Failure, contacted: bool) -> bool {
    match failure {
        // A first connection that fails is a wrong address or no gateway.
        Failure::Connect { .. } => contacted,
        Failure::Distrust(_) => false,
        Failure::Broken(_) => true,
        Failure::Refused(refusal) => match refusal.known_reason() {
            Some(Reason::SessionLost | Reason::RelayDeadline | Reason::GatewayStopping) => true,
            // The gateway has waited for it already; later it is an outage like any other.
            Some(Reason::NoSession | Reason::LimitReached) => contacted,
            Some(Reason::WrongPhase) => {
                let phase = refusal.metadata.get(key::PHASE).map(String::as_str);
                contacted && matches!(phase, Some("Paused" | "Pausing" | "Resuming"))
            }
            Some(_) => false,
            None => refusal.code == tonic::Code::Unavailable,
        },
    }
}

fn cause_of(failure: &Failure) -> String {
    match failure {
        Failure::Connect { .. } => "gateway not reachable".to_owned(),
        Failure::Distrust(_) => "certificate refused".to_owned(),
        Failure::Broken(_) => "connection to the gateway lost".to_owned(),
        Failure::Refused(refusal) => match (refusal.known_reason(), refusal.metadata.get(key::CAUSE)) {
            (Some(Reason::SessionLost), Some(cause)) => format!("session lost: {cause}"),
            (Some(Reason::SessionLost), None) => "session lost".to_owned(),
            (Some(Reason::GatewayStopping), _) => "gateway stopped".to_owned(),
            (Some(Reason::NoSession), _) => "sandbox not connected".to_owned(),
            _ => refusal.message.clone(),
        },
    }
}

fn delays() -> backon::ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(RETRY_FIRST)
        .with_max_delay(RETRY_CAP)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}
