//! `holdfast.v1.Execs`: requests to the exec room and back. The one stream, `Attach`, is carried by two pumps:
//! the caller's messages in, the exec's events out; either side's end ends the other.

use std::{pin::Pin, time::Duration};

use futures::Stream;
use holdfast_wire::{
    api::{
        AttachEvent, AttachRequest, CancelExecRequest, CancelExecResponse, GetExecRequest, GetExecResponse,
        ListExecsRequest, ListExecsResponse, ReadExecRequest, ReadExecResponse, ResizeExecRequest,
        ResizeExecResponse, SignalExecRequest, SignalExecResponse, StartExecRequest, StartExecResponse,
        WaitExecRequest, WaitExecResponse, attach_request::Kind, execs_server,
    },
    ids::ExecId,
    timing,
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::{auth, duration};
use crate::{
    error::{CallError, Reason},
    execs::{AttachInput, AttachOutput, CallerInfo, Execs},
};

/// `Wait`'s time if the caller does not say, and the longest that is taken.
const WAIT: Duration = Duration::from_secs(60);
const WAIT_MAX: Duration = Duration::from_secs(600);

/// The longest start_deadline that is taken.
const START_DEADLINE_MAX: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct ExecService {
    execs: Execs,
    tasks: TaskTracker,
}

impl ExecService {
    pub(super) fn new(execs: Execs, tasks: TaskTracker) -> Self {
        Self { execs, tasks }
    }
}

type EventStream = Pin<Box<dyn Stream<Item = Result<AttachEvent, Status>> + Send>>;

#[tonic::async_trait]
impl execs_server::Execs for ExecService {
    type AttachStream = EventStream;

    async fn start(&self, request: Request<StartExecRequest>) -> Result<Response<StartExecResponse>, Status> {
        let caller = caller_info(&request)?;
        let request = request.into_inner();
        let exec = exec_id(&request.exec_id)?;
        let deadline = start_deadline(request.start_deadline)?;
        let spec = request.spec.ok_or_else(|| CallError::invalid("spec", "missing"))?;
        let info = self.execs.start(&request.sandbox, exec, spec, deadline, &caller).await?;
        Ok(Response::new(StartExecResponse { exec: Some(info) }))
    }

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = caller_info(&request)?;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(timing::HELLO_TIMEOUT, incoming.message());
        let Ok(first) = first.await else {
            return Err(protocol("no `open` within 5 s").into());
        };
        let Some(AttachRequest { kind: Some(Kind::Open(open)) }) = first? else {
            return Err(protocol("the first message must be `open`").into());
        };
        let (input, output) = self.execs.attach(open, caller).await?.split();
        let (broken, broke) = oneshot::channel();
        self.tasks.spawn(carry_input(incoming, input, broken));
        let attached = Some(Events { output, broke: Some(broke) });
        let events = futures::stream::unfold(attached, |attached| async move {
            let mut attached = attached?;
            match attached.next().await? {
                Ok(event) => Some((Ok(event), Some(attached))),
                Err(error) => Some((Err(Status::from(error)), None)),
            }
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn wait(&self, request: Request<WaitExecRequest>) -> Result<Response<WaitExecResponse>, Status> {
        let request = request.into_inner();
        let at_most = duration("at_most", request.at_most, WAIT, WAIT_MAX)?;
        let info = self.execs.wait(&request.sandbox, exec_id(&request.exec_id)?, Some(at_most)).await?;
        Ok(Response::new(WaitExecResponse { exec: Some(info) }))
    }

    async fn get(&self, request: Request<GetExecRequest>) -> Result<Response<GetExecResponse>, Status> {
        let request = request.into_inner();
        let info = self.execs.get(&request.sandbox, exec_id(&request.exec_id)?).await?;
        Ok(Response::new(GetExecResponse { exec: Some(info) }))
    }

    async fn list(&self, request: Request<ListExecsRequest>) -> Result<Response<ListExecsResponse>, Status> {
        let execs = self.execs.list(&request.into_inner().sandbox).await?;
        Ok(Response::new(ListExecsResponse { execs }))
    }

    async fn read(&self, request: Request<ReadExecRequest>) -> Result<Response<ReadExecResponse>, Status> {
        let request = request.into_inner();
        let exec = exec_id(&request.exec_id)?;
        let stream = request.stream();
        let read = self.execs.read(&request.sandbox, exec, stream, request.offset, request.max_bytes).await?;
        Ok(Response::new(read))
    }

    async fn signal(
        &self,
        request: Request<SignalExecRequest>,
    ) -> Result<Response<SignalExecResponse>, Status> {
        let request = request.into_inner();
        self.execs.signal(&request.sandbox, exec_id(&request.exec_id)?, request.signal).await?;
        Ok(Response::new(SignalExecResponse {}))
    }

    async fn resize(
        &self,
        request: Request<ResizeExecRequest>,
    ) -> Result<Response<ResizeExecResponse>, Status> {
        let request = request.into_inner();
        let size = request.size.ok_or_else(|| CallError::invalid("size", "missing"))?;
        self.execs.resize(&request.sandbox, exec_id(&request.exec_id)?, size).await?;
        Ok(Response::new(ResizeExecResponse {}))
    }

    async fn cancel(
        &self,
        request: Request<CancelExecRequest>,
    ) -> Result<Response<CancelExecResponse>, Status> {
        let caller = caller_info(&request)?;
        let request = request.into_inner();
        let info = self.execs.cancel(&request.sandbox, exec_id(&request.exec_id)?, &caller).await?;
        Ok(Response::new(CancelExecResponse { exec: Some(info) }))
    }
}

/// The exec's events, and the end that a caller who breaks a rule gets.
struct Events {
    output: AttachOutput,
    broke: Option<oneshot::Receiver<CallError>>,
}

impl Events {
    async fn next(&mut self) -> Option<Result<AttachEvent, CallError>> {
        loop {
            let Some(broke) = self.broke.as_mut() else { return self.output.next_event().await };
            tokio::select! {
                event = self.output.next_event() => return event,
                told = broke => match told {
                    Ok(error) => return Some(Err(error)),
                    // The caller has nothing more to say.
                    Err(_) => self.broke = None,
                },
            }
        }
    }
}

/// Carries the caller's messages in, until they end or the exec does. A clean end of the caller's messages only
/// means that it has nothing more to say: the events go on.
async fn carry_input(
    mut incoming: Streaming<AttachRequest>,
    input: AttachInput,
    broken: oneshot::Sender<CallError>,
) {
    // An error of the stream means that the caller is gone: the server drops the events' stream, and that ends the
    // relay.
    while let Ok(Some(request)) = incoming.message().await {
        if let Err(error) = input.send(request).await {
            // The events' stream tells it; it may have ended.
            let _ = broken.send(error);
            return;
        }
    }
}

/// Who calls, and under which trace.
pub(super) fn caller_info<T>(request: &Request<T>) -> Result<CallerInfo, CallError> {
    let name = auth::caller(request)?.name.to_string();
    let traceparent = request.metadata().get("traceparent").and_then(|value| value.to_str().ok());
    Ok(CallerInfo { name, traceparent: traceparent.unwrap_or_default().to_owned() })
}

fn exec_id(text: &str) -> Result<ExecId, CallError> {
    text.parse().map_err(|error| CallError::invalid("exec_id", error))
}

pub(super) fn start_deadline(given: Option<prost_types::Duration>) -> Result<Option<Duration>, CallError> {
    duration("start_deadline", given, timing::START_DEADLINE, START_DEADLINE_MAX).map(Some)
}

fn protocol(message: &str) -> CallError {
    CallError::new(Reason::StreamProtocol, format!("attach: {message}"))
}
