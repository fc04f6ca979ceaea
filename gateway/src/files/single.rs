//! One file's bytes, for callers that want no frames: a transfer each, whose frames are made and read here.

use std::collections::VecDeque;

use bytes::Bytes;
use holdfast_files::{emit::plain_entry, tally::Tally};
use holdfast_wire::{
    api::{
        DownloadOpen, DownloadSpec, FileEntry, FileInfo, FileKind, KeepAlive, ReadFileDone, ReadFileRequest,
        ReadFileResponse, TransferResult, UploadOpen, UploadPlacement, UploadSpec, WriteFileOpen,
        read_file_response::Kind, upload_event,
    },
    files::{self, Decoder, Frame, kind},
    ids::TransferId,
    limits::MAX_FRAME_PAYLOAD,
};
use prost::Message as _;

use super::{Download, Files, Upload, check, failed};
use crate::error::{CallError, Reason};

impl Files {
    /// Reads a file, or a part of it.
    ///
    /// # Errors
    /// There is no session, or no such file; later ones come with the events.
    pub async fn read(&self, request: ReadFileRequest, traceparent: &str) -> Result<ReadFile, CallError> {
        check("path", &request.path, &request.user)?;
        let start = DownloadSpec {
            path: request.path.clone(),
            follow: true,
            user: request.user,
            file_only: true,
            range_offset: request.offset,
            range_length: request.length,
        };
        let open = DownloadOpen {
            sandbox: request.sandbox,
            transfer_id: TransferId::random().to_string(),
            start: Some(start),
            ..DownloadOpen::default()
        };
        let relay = self.download(open, None, traceparent).await?;
        let (decoder, tally) = (Decoder::new(), Tally::default());
        Ok(ReadFile {
            relay,
            decoder,
            tally,
            path: request.path,
            told: VecDeque::new(),
            offset: 0,
            acked: 0,
            over: false,
        })
    }

    /// Begins to write a file.
    ///
    /// # Errors
    /// There is no session.
    pub async fn write(&self, open: WriteFileOpen, traceparent: &str) -> Result<WriteFile, CallError> {
        check("path", &open.path, &open.user)?;
        let start = UploadSpec {
            path: open.path,
            name: Bytes::new(),
            placement: UploadPlacement::Exact.into(),
            archive: false,
            user: open.user,
        };
        let upload = UploadOpen {
            sandbox: open.sandbox,
            transfer_id: TransferId::random().to_string(),
            start: Some(start),
            ..UploadOpen::default()
        };
        let relay = self.upload(upload, None, traceparent).await?;
        let mode = if open.mode == 0 { 0o644 } else { open.mode & 0o777 };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let entry = FileEntry {
            mtime_seconds: i64::try_from(now.as_secs()).unwrap_or(0),
            mtime_nanos: now.subsec_nanos(),
            ..plain_entry(Bytes::new(), FileKind::File, mode)
        };
        let mut write = WriteFile { relay, tally: Tally::default() };
        let payload = entry.encode_to_vec();
        write.tally.on_entry(&payload, FileKind::File);
        write.frame(&Frame::Entry(payload.into())).await?;
        Ok(write)
    }
}

/// A file that is being read.
#[derive(Debug)]
pub struct ReadFile {
    relay: Download,
    decoder: Decoder,
    tally: Tally,
    path: Bytes,
    told: VecDeque<Kind>,
    offset: u64,
    acked: u64,
    over: bool,
}

impl ReadFile {
    /// The next event; `None` after `done` or an error.
    pub async fn next_event(&mut self) -> Option<Result<ReadFileResponse, CallError>> {
        loop {
            if let Some(kind) = self.told.pop_front() {
                return Some(Ok(ReadFileResponse { kind: Some(kind) }));
            }
            if self.over {
                return None;
            }
            if let Err(error) = self.more().await {
                self.over = true;
                self.relay.input.abort();
                return Some(Err(error));
            }
        }
    }

    async fn more(&mut self) -> Result<(), CallError> {
        let broken = |why: &str| CallError::new(Reason::Internal, format!("reading a file: {why}"));
        match self.relay.output.next_bytes().await? {
            None => return Err(broken("the supervisor's stream ended before its end")),
            Some(None) => self.told.push_back(Kind::KeepAlive(KeepAlive {})),
            Some(Some(bytes)) => {
                self.offset += bytes.len() as u64;
                self.decoder.push(bytes);
            }
        }
        while let Some(frame) = self.decoder.next_frame().map_err(|error| broken(&error.to_string()))? {
            match frame {
                Frame::Entry(payload) => {
                    self.tally.on_entry(&payload, FileKind::File);
                    let entry = FileEntry::decode(payload).map_err(|error| broken(&error.to_string()))?;
                    self.told.push_back(Kind::Info(FileInfo {
                        path: self.path.clone(),
                        kind: entry.kind,
                        mode: entry.mode,
                        uid: entry.uid,
                        gid: entry.gid,
                        size: entry.size,
                        mtime_seconds: entry.mtime_seconds,
                        mtime_nanos: entry.mtime_nanos,
                        target: Bytes::new(),
                    }));
                }
                Frame::Data(data) => {
                    self.tally.on_data(&data);
                    self.told.push_back(Kind::Data(data));
                }
                Frame::Close => self.tally.on_close(),
                Frame::End(end) => {
                    if self.tally.end(end.problems) != end {
                        return Err(CallError::new(Reason::DigestMismatch, "what came is not what was read"));
                    }
                    self.told.push_back(Kind::Done(ReadFileDone { bytes: end.bytes }));
                    self.over = true;
                }
                Frame::Failed(failure) => return Err(failed(&failure)),
                // A part of a file is read as it is: holes come as zeros.
                Frame::Hole(_) | Frame::Drop | Frame::Problem(_) | Frame::Ack(_) | Frame::Done(_) => {
                    return Err(broken("a frame that does not belong to one file"));
                }
            }
        }
        if self.over || self.offset - self.acked >= holdfast_wire::limits::ACK_EVERY {
            self.acked = self.offset;
            self.relay.input.ack(self.offset).await;
            if self.over {
                self.relay.input.finish();
            }
        }
        Ok(())
    }
}

/// A file that is being written.
#[derive(Debug)]
pub struct WriteFile {
    relay: Upload,
    tally: Tally,
}

impl WriteFile {
    /// The next bytes.
    ///
    /// # Errors
    /// The sandbox cannot write it: the file is as it was.
    pub async fn data(&mut self, mut data: Bytes) -> Result<(), CallError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_FRAME_PAYLOAD));
            self.tally.on_data(&piece);
            self.send(Bytes::copy_from_slice(&files::header(kind::DATA, piece.len()))).await?;
            self.send(piece).await?;
        }
        Ok(())
    }

    /// Complete: waits until it is on disk, under its name.
    ///
    /// # Errors
    /// As [`data`](Self::data), or the session was lost and nobody knows.
    pub async fn finish(mut self) -> Result<TransferResult, CallError> {
        self.tally.on_close();
        self.frame(&Frame::Close).await?;
        let end = self.tally.end(0);
        self.frame(&Frame::End(end)).await?;
        self.relay.input.finish();
        self.answer().await
    }

    /// The caller gives it up.
    pub fn abort(mut self) {
        self.relay.input.abort();
    }

    async fn frame(&mut self, frame: &Frame) -> Result<(), CallError> {
        self.send(frame.to_bytes()).await
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), CallError> {
        if self.relay.input.data(bytes).await? {
            return Ok(());
        }
        // It has ended before its time, and says why.
        match self.answer().await {
            Err(error) => Err(error),
            Ok(_) => Err(CallError::new(Reason::Internal, "the supervisor said done before the end")),
        }
    }

    async fn answer(&mut self) -> Result<TransferResult, CallError> {
        while let Some(event) = self.relay.output.next_event().await {
            if let Some(upload_event::Kind::Done(result)) = event?.kind {
                return Ok(result);
            }
        }
        Err(CallError::new(Reason::Internal, "the supervisor's stream ended without a result"))
    }
}
