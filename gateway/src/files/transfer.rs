//! A transfer's relay as its caller holds it: two halves, for two tasks.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use holdfast_wire::{
    api::{DownloadEvent, DownloadOpen, KeepAlive, UploadEvent, UploadOpen, download_event, upload_event},
    close::CloseCode,
    control::{FilesDownload, FilesUpload, files_relay},
    files::{Decoder, Frame},
    ids::TransferId,
    limits::{MAX_PATH, MAX_TRANSFER_CHUNK},
    timing,
    transport::{MessageReader, SendStream, StreamError},
};
use tokio::time::Instant;

use super::{Files, check, explain, failed, lost_session};
use crate::{
    error::{CallError, Reason, key},
    relays::{Relay, RelayError, RelayGuard},
    sessions::Session,
};

/// Bytes for one message to a caller: datagrams are small, and each message costs a caller as much as 10 KiB do.
const GATHER: usize = 64 << 10;

impl Files {
    /// Opens or continues a transfer into a sandbox.
    ///
    /// # Errors
    /// `NO_SESSION` and the like; `TRANSFER_GONE` where a continued one is not known.
    pub async fn upload(
        &self,
        open: UploadOpen,
        within: Option<Duration>,
        traceparent: &str,
    ) -> Result<Upload, CallError> {
        let id = transfer_id(&open.transfer_id)?;
        if let Some(start) = &open.start {
            check("start.path", &start.path, &start.user)?;
            if start.name.len() >= MAX_PATH {
                return Err(CallError::invalid("start.name", "too long"));
            }
        }
        let kind = files_relay::Kind::Upload(FilesUpload {
            transfer_id: id.to_bytes(),
            start: open.start,
            offset: open.offset,
        });
        let Relay { session, send, recv, guard, .. } =
            self.open(&open.sandbox, kind, within, traceparent).await?;
        let input = UploadInput { send, session: session.clone() };
        let output = UploadOutput {
            recv,
            decoder: Decoder::new(),
            session,
            guard,
            acknowledged: 0,
            last: Instant::now(),
            over: false,
        };
        Ok(Upload { input, output })
    }

    /// Opens or continues a transfer out of a sandbox.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub async fn download(
        &self,
        open: DownloadOpen,
        within: Option<Duration>,
        traceparent: &str,
    ) -> Result<Download, CallError> {
        let id = transfer_id(&open.transfer_id)?;
        if let Some(start) = &open.start {
            check("start.path", &start.path, &start.user)?;
        }
        let kind = files_relay::Kind::Download(FilesDownload {
            transfer_id: id.to_bytes(),
            start: open.start,
            offset: open.offset,
        });
        let Relay { session, send, recv, guard, .. } =
            self.open(&open.sandbox, kind, within, traceparent).await?;
        let input = DownloadInput { send };
        let output =
            DownloadOutput { recv, session, guard, offset: open.offset, last: Instant::now(), over: false };
        Ok(Download { input, output })
    }
}

fn transfer_id(text: &str) -> Result<TransferId, CallError> {
    text.parse().map_err(|error| CallError::invalid("transfer_id", error))
}

/// A transfer into a sandbox.
#[derive(Debug)]
pub struct Upload {
    /// What the caller sends.
    pub input: UploadInput,
    /// What the caller hears.
    pub output: UploadOutput,
}

/// The stream's way in. Dropped before [`finish`](Self::finish), the caller is gone.
#[derive(Debug)]
pub struct UploadInput {
    send: SendStream,
    session: Session,
}

impl UploadInput {
    /// The next bytes; waits while the sandbox does not take them. False: the relay has ended, which the other half
    /// tells.
    ///
    /// # Errors
    /// More than a chunk at once.
    pub async fn data(&mut self, chunk: Bytes) -> Result<bool, CallError> {
        if chunk.len() > MAX_TRANSFER_CHUNK {
            let message = format!("{} bytes at once: at most {MAX_TRANSFER_CHUNK}", chunk.len());
            return Err(CallError::invalid("data", message));
        }
        tokio::select! {
            biased;
            _ = self.session.closed() => Ok(false),
            written = self.send.write(chunk) => Ok(written.is_ok()),
        }
    }

    /// Nothing follows.
    pub fn finish(&mut self) {
        // An error is a stream that has ended already.
        let _ = self.send.finish();
    }

    /// The caller gives it up.
    pub fn abort(&mut self) {
        self.send.reset(CloseCode::ABORTED);
    }
}

/// What the sandbox says.
#[derive(Debug)]
pub struct UploadOutput {
    recv: MessageReader,
    decoder: Decoder,
    session: Session,
    guard: RelayGuard,
    acknowledged: u64,
    last: Instant,
    over: bool,
}

impl UploadOutput {
    /// The next event; `None` after the last one, which is `done` or an error.
    pub async fn next_event(&mut self) -> Option<Result<UploadEvent, CallError>> {
        if self.over {
            return None;
        }
        let event = self.event().await;
        self.last = Instant::now();
        self.over = match &event {
            Ok(event) => matches!(event.kind, Some(upload_event::Kind::Done(_))),
            Err(_) => true,
        };
        Some(event.map_err(|error| error.with(key::OFFSET, self.acknowledged)))
    }

    async fn event(&mut self) -> Result<UploadEvent, CallError> {
        use upload_event::Kind;
        let event = |kind| Ok(UploadEvent { kind: Some(kind) });
        loop {
            let frame = self.decoder.next_frame().map_err(|error| {
                self.guard.ended("protocol");
                CallError::new(Reason::Internal, format!("the supervisor broke the protocol: {error}"))
            })?;
            match frame {
                Some(Frame::Ack(offset)) => {
                    self.acknowledged = offset;
                    return event(Kind::Ack(offset));
                }
                Some(Frame::Done(result)) => {
                    self.guard.ended("done");
                    return event(Kind::Done(result));
                }
                Some(Frame::Failed(failure)) => {
                    self.guard.ended("failed");
                    return Err(failed(&failure));
                }
                Some(_) => {
                    self.guard.ended("protocol");
                    return Err(CallError::new(Reason::Internal, "the supervisor sent a sender's frame"));
                }
                None => {}
            }
            let keep_alive = self.last + timing::API_KEEP_ALIVE;
            tokio::select! {
                biased;
                lost = self.session.closed() => {
                    self.guard.ended("lost");
                    return Err(lost_session(&lost));
                }
                bytes = self.recv.bytes(GATHER) => match bytes {
                    Ok(Some(bytes)) => self.decoder.push(bytes),
                    other => return Err(ended(other.err(), &self.session, &mut self.guard)),
                },
                () = tokio::time::sleep_until(keep_alive) => return event(Kind::KeepAlive(KeepAlive {})),
            }
        }
    }
}

/// A transfer out of a sandbox.
#[derive(Debug)]
pub struct Download {
    /// What the caller says.
    pub input: DownloadInput,
    /// What the caller gets.
    pub output: DownloadOutput,
}

/// The caller's acknowledgements. Dropped before [`finish`](Self::finish), the caller is gone.
#[derive(Debug)]
pub struct DownloadInput {
    send: SendStream,
}

impl DownloadInput {
    /// The stream before this offset has been used. False: the relay has ended.
    pub async fn ack(&mut self, offset: u64) -> bool {
        self.send.write(Frame::Ack(offset).to_bytes()).await.is_ok()
    }

    /// Nothing follows.
    pub fn finish(&mut self) {
        // An error is a stream that has ended already.
        let _ = self.send.finish();
    }

    /// The caller gives it up.
    pub fn abort(&mut self) {
        self.send.reset(CloseCode::ABORTED);
    }
}

/// The stream's way out.
#[derive(Debug)]
pub struct DownloadOutput {
    recv: MessageReader,
    session: Session,
    guard: RelayGuard,
    offset: u64,
    last: Instant,
    over: bool,
}

impl DownloadOutput {
    /// The next event; `None` at the stream's end, or after an error.
    pub async fn next_event(&mut self) -> Option<Result<DownloadEvent, CallError>> {
        use download_event::Kind;
        let event = |kind| Some(Ok(DownloadEvent { kind: Some(kind) }));
        match self.next_bytes().await {
            Ok(Some(Some(data))) => event(Kind::Data(data)),
            Ok(Some(None)) => event(Kind::KeepAlive(KeepAlive {})),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// The next bytes; `Some(None)`: nothing came for a while; `None`: the end.
    pub(super) async fn next_bytes(&mut self) -> Result<Option<Option<Bytes>>, CallError> {
        if self.over {
            return Ok(None);
        }
        let keep_alive = self.last + timing::API_KEEP_ALIVE;
        let result = tokio::select! {
            biased;
            lost = self.session.closed() => {
                self.guard.ended("lost");
                Err(lost_session(&lost))
            }
            bytes = gather(&mut self.recv) => match bytes {
                Ok(Some(bytes)) => {
                    self.offset += bytes.len() as u64;
                    Ok(Some(Some(bytes)))
                }
                Ok(None) => {
                    self.guard.ended("done");
                    Ok(None)
                }
                Err(error) => Err(ended(Some(error), &self.session, &mut self.guard)),
            },
            () = tokio::time::sleep_until(keep_alive) => Ok(Some(None)),
        };
        self.last = Instant::now();
        self.over = !matches!(result, Ok(Some(_)));
        result.map_err(|error| error.with(key::OFFSET, self.offset))
    }
}

/// What has come, at most a message full. Cancel-safe up to its first read, and never waits after that.
async fn gather(recv: &mut MessageReader) -> Result<Option<Bytes>, StreamError> {
    let Some(first) = recv.bytes(GATHER).await? else { return Ok(None) };
    let mut joined = BytesMut::new();
    let mut held = Some(first);
    loop {
        let have = held.as_ref().map_or(joined.len(), Bytes::len);
        if have >= GATHER {
            break;
        }
        // An end or an error is met again by the next read.
        let Some(Ok(Some(more))) = recv.bytes(GATHER - have).now_or_never() else { break };
        if let Some(first) = held.take() {
            joined.reserve(GATHER);
            joined.extend_from_slice(&first);
        }
        joined.extend_from_slice(&more);
    }
    Ok(Some(held.unwrap_or_else(|| joined.freeze())))
}

/// A stream that ended before its time.
fn ended(error: Option<StreamError>, session: &Session, guard: &mut RelayGuard) -> CallError {
    let error = match error {
        Some(error) => RelayError::of_stream(error, session),
        None => RelayError::Protocol("its stream ended without a result".to_owned()),
    };
    guard.ended(error.label());
    explain(error)
}
