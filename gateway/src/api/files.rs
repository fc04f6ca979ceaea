//! `holdfast.v1.Files`: requests to the file room and back. A transfer's stream is carried by two pumps, as an exec's.

use std::pin::Pin;

use futures::Stream;
use holdfast_wire::{
    api::{
        DownloadEvent, DownloadRequest, ListFilesRequest, ListFilesResponse, MakeDirectoryRequest,
        MakeDirectoryResponse, MoveFileRequest, MoveFileResponse, ReadFileRequest, ReadFileResponse,
        RemoveFileRequest, RemoveFileResponse, StatFileRequest, StatFileResponse, UploadEvent, UploadRequest,
        WriteFileRequest, WriteFileResponse, download_request, files_server, upload_request,
        write_file_request,
    },
    control::{FileList, FileMkdir, FileMove, FileRemove, FileStat},
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::execs::{caller_info, start_deadline};
use crate::{
    error::{CallError, Reason},
    files::{DownloadInput, Files, UploadInput},
};

#[derive(Debug)]
pub(super) struct FileService {
    files: Files,
    tasks: TaskTracker,
}

impl FileService {
    pub(super) fn new(files: Files, tasks: TaskTracker) -> Self {
        Self { files, tasks }
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl files_server::Files for FileService {
    type UploadStream = Events<UploadEvent>;
    type DownloadStream = Events<DownloadEvent>;
    type ReadStream = Events<ReadFileResponse>;

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<Self::UploadStream>, Status> {
        let trace = caller_info(&request)?.traceparent;
        let mut incoming = request.into_inner();
        let Some(upload_request::Kind::Open(open)) = incoming.message().await?.and_then(|first| first.kind)
        else {
            return Err(protocol("upload: the first message must be `open`").into());
        };
        let within = start_deadline(open.start_deadline)?;
        let upload = self.files.upload(open, within, &trace).await?;
        let (broken, broke) = oneshot::channel();
        self.tasks.spawn(carry_up(incoming, upload.input, broken));
        let state = Some((upload.output, Some(broke)));
        let events = futures::stream::unfold(state, |state| async move {
            let (mut output, mut broke) = state?;
            let event = tokio::select! {
                biased;
                error = told(&mut broke) => Err(error),
                event = output.next_event() => event?,
            };
            match event {
                Ok(event) => Some((Ok(event), Some((output, broke)))),
                Err(error) => Some((Err(Status::from(error)), None)),
            }
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn download(
        &self,
        request: Request<Streaming<DownloadRequest>>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let trace = caller_info(&request)?.traceparent;
        let mut incoming = request.into_inner();
        let Some(download_request::Kind::Open(open)) = incoming.message().await?.and_then(|first| first.kind)
        else {
            return Err(protocol("download: the first message must be `open`").into());
        };
        let within = start_deadline(open.start_deadline)?;
        let download = self.files.download(open, within, &trace).await?;
        self.tasks.spawn(carry_acks(incoming, download.input));
        let events = futures::stream::unfold(Some(download.output), |output| async move {
            let mut output = output?;
            match output.next_event().await? {
                Ok(event) => Some((Ok(event), Some(output))),
                Err(error) => Some((Err(Status::from(error)), None)),
            }
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn read(&self, request: Request<ReadFileRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let trace = caller_info(&request)?.traceparent;
        let read = self.files.read(request.into_inner(), &trace).await?;
        let events = futures::stream::unfold(read, |mut read| async move {
            let event = read.next_event().await?;
            Some((event.map_err(Status::from), read))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteFileRequest>>,
    ) -> Result<Response<WriteFileResponse>, Status> {
        use write_file_request::Kind;
        let trace = caller_info(&request)?.traceparent;
        let mut incoming = request.into_inner();
        let Some(Kind::Open(open)) = incoming.message().await?.and_then(|first| first.kind) else {
            return Err(protocol("write: the first message must be `open`").into());
        };
        let mut write = self.files.write(open, &trace).await?;
        loop {
            match incoming.message().await {
                Ok(Some(WriteFileRequest { kind: Some(Kind::Data(data)) })) => write.data(data).await?,
                Ok(Some(WriteFileRequest { kind: Some(Kind::End(_)) })) => {
                    let result = write.finish().await?;
                    return Ok(Response::new(WriteFileResponse { result: Some(result) }));
                }
                // A newer client may say more than this gateway knows.
                Ok(Some(WriteFileRequest { kind: None })) => {}
                Ok(Some(WriteFileRequest { kind: Some(Kind::Open(_)) })) | Ok(None) => {
                    write.abort();
                    return Err(
                        protocol("write: its messages ended without `end`: nothing was written").into()
                    );
                }
                Err(status) => {
                    write.abort();
                    return Err(status);
                }
            }
        }
    }

    async fn stat(&self, request: Request<StatFileRequest>) -> Result<Response<StatFileResponse>, Status> {
        let StatFileRequest { sandbox, path, follow, user } = request.into_inner();
        let file = self.files.stat(&sandbox, &user, FileStat { path, follow }).await?;
        Ok(Response::new(StatFileResponse { file: Some(file) }))
    }

    async fn list(&self, request: Request<ListFilesRequest>) -> Result<Response<ListFilesResponse>, Status> {
        let ListFilesRequest { sandbox, path, after, limit, user } = request.into_inner();
        let (files, more) = self.files.list(&sandbox, &user, FileList { path, after, limit }).await?;
        Ok(Response::new(ListFilesResponse { files, more }))
    }

    async fn mkdir(
        &self,
        request: Request<MakeDirectoryRequest>,
    ) -> Result<Response<MakeDirectoryResponse>, Status> {
        let MakeDirectoryRequest { sandbox, path, mode, parents, user } = request.into_inner();
        let directory = self.files.mkdir(&sandbox, &user, FileMkdir { path, mode, parents }).await?;
        Ok(Response::new(MakeDirectoryResponse { directory: Some(directory) }))
    }

    async fn remove(
        &self,
        request: Request<RemoveFileRequest>,
    ) -> Result<Response<RemoveFileResponse>, Status> {
        let RemoveFileRequest { sandbox, path, recursive, force, user } = request.into_inner();
        self.files.remove(&sandbox, &user, FileRemove { path, recursive, force }).await?;
        Ok(Response::new(RemoveFileResponse {}))
    }

    async fn r#move(&self, request: Request<MoveFileRequest>) -> Result<Response<MoveFileResponse>, Status> {
        let MoveFileRequest { sandbox, from, to, no_replace, user } = request.into_inner();
        let file = self.files.rename(&sandbox, &user, FileMove { from, to, no_replace }).await?;
        Ok(Response::new(MoveFileResponse { file: Some(file) }))
    }
}

/// What the caller did wrong, once it has; never, where nothing is wrong.
async fn told(broke: &mut Option<oneshot::Receiver<CallError>>) -> CallError {
    if let Some(receiver) = broke
        && let Ok(error) = receiver.await
    {
        return error;
    }
    // The other pump has ended without a complaint.
    *broke = None;
    std::future::pending().await
}

/// Carries an upload's bytes in. Their clean end only means that all has been said; a broken stream means that the
/// caller is gone, and the relay with it: the supervisor keeps the transfer for a while.
async fn carry_up(
    mut incoming: Streaming<UploadRequest>,
    mut input: UploadInput,
    broken: oneshot::Sender<CallError>,
) {
    use upload_request::Kind;
    loop {
        match incoming.message().await {
            Ok(Some(UploadRequest { kind: Some(Kind::Data(data)) })) => match input.data(data).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    // The events' stream tells it; it may have ended.
                    let _ = broken.send(error);
                    return;
                }
            },
            Ok(Some(UploadRequest { kind: Some(Kind::Abort(_)) })) => return input.abort(),
            Ok(Some(UploadRequest { kind: Some(Kind::Open(_)) })) => {
                let _ = broken.send(protocol("upload: a second `open`: one stream is one relay"));
                return;
            }
            Ok(Some(UploadRequest { kind: None })) => {}
            Ok(None) => {
                input.finish();
                return;
            }
            Err(_) => return,
        }
    }
}

/// Carries a download's acknowledgements in.
async fn carry_acks(mut incoming: Streaming<DownloadRequest>, mut input: DownloadInput) {
    use download_request::Kind;
    loop {
        match incoming.message().await {
            Ok(Some(DownloadRequest { kind: Some(Kind::Ack(offset)) })) => {
                if !input.ack(offset).await {
                    return;
                }
            }
            Ok(Some(DownloadRequest { kind: Some(Kind::Abort(_)) })) => return input.abort(),
            // Of no use here, and no harm.
            Ok(Some(DownloadRequest { kind: Some(Kind::Open(_)) | None })) => {}
            Ok(None) => {
                input.finish();
                return;
            }
            Err(_) => return,
        }
    }
}

fn protocol(message: &str) -> CallError {
    CallError::new(Reason::StreamProtocol, message)
}
