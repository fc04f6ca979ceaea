//! `holdfast.v1.Sandboxes`: requests to the sandboxes' room and back.

use std::{pin::Pin, time::Duration};

use futures::Stream;
use holdfast_wire::api::{
    CreateSandboxRequest, CreateSandboxResponse, DeleteSandboxRequest, DeleteSandboxResponse, EventsRequest,
    GetSandboxRequest, GetSandboxResponse, ListSandboxesRequest, ListSandboxesResponse, LogsRequest,
    LogsResponse, PauseSandboxRequest, PauseSandboxResponse, ResumeSandboxRequest, ResumeSandboxResponse,
    SandboxEvent, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
    UpdateSandboxRequest, UpdateSandboxResponse, WaitSandboxRequest, WaitSandboxResponse, sandboxes_server,
};
use tonic::{Request, Response, Status};

use super::duration;
use crate::{error::CallError, events::Events, sandboxes::Sandboxes};

/// Before a workload is killed, if the caller does not say.
const GRACE: Duration = Duration::from_secs(5);
const GRACE_MAX: Duration = Duration::from_secs(600);

/// `Wait`'s time if the caller does not say, and the longest that is taken.
const WAIT: Duration = Duration::from_secs(60);
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Of a list.
const PAGE: u32 = 1000;

/// Of a console's tail, in bytes.
const LOGS: u32 = 64 << 10;
const LOGS_MAX: u32 = 1 << 20;

#[derive(Debug)]
pub(super) struct SandboxService {
    sandboxes: Sandboxes,
    events: Events,
}

impl SandboxService {
    pub(super) fn new(sandboxes: Sandboxes, events: Events) -> Self {
        Self { sandboxes, events }
    }
}

#[tonic::async_trait]
impl sandboxes_server::Sandboxes for SandboxService {
    type EventsStream = Pin<Box<dyn Stream<Item = Result<SandboxEvent, Status>> + Send>>;

    async fn create(
        &self,
        request: Request<CreateSandboxRequest>,
    ) -> Result<Response<CreateSandboxResponse>, Status> {
        let request = request.into_inner();
        let view = self.sandboxes.create(&request.name, request.spec.unwrap_or_default()).await?;
        Ok(Response::new(CreateSandboxResponse { sandbox: Some(view.to_api()) }))
    }

    async fn get(&self, request: Request<GetSandboxRequest>) -> Result<Response<GetSandboxResponse>, Status> {
        let view = self.sandboxes.get(&request.into_inner().sandbox)?;
        Ok(Response::new(GetSandboxResponse { sandbox: Some(view.to_api()) }))
    }

    async fn list(
        &self,
        request: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        let request = request.into_inner();
        let size = match request.page_size {
            0 => PAGE,
            n => n.min(PAGE),
        };
        let page = self.sandboxes.list(&request.labels, size as usize, &request.page_token)?;
        Ok(Response::new(ListSandboxesResponse {
            sandboxes: page.views.iter().map(|view| view.to_api()).collect(),
            next_page_token: page.next.unwrap_or_default(),
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteSandboxRequest>,
    ) -> Result<Response<DeleteSandboxResponse>, Status> {
        let request = request.into_inner();
        let grace = duration("grace", request.grace, GRACE, GRACE_MAX)?;
        self.sandboxes.delete(&request.sandbox, grace, request.wait).await?;
        Ok(Response::new(DeleteSandboxResponse {}))
    }

    async fn wait(
        &self,
        request: Request<WaitSandboxRequest>,
    ) -> Result<Response<WaitSandboxResponse>, Status> {
        let request = request.into_inner();
        let at_most = duration("at_most", request.at_most, WAIT, WAIT_MAX)?;
        let until = if request.until.is_empty() { "ready" } else { &request.until };
        let deadline = tokio::time::Instant::now() + at_most;
        let view = self.sandboxes.wait_until(&request.sandbox, until, deadline).await?;
        Ok(Response::new(WaitSandboxResponse { sandbox: view.map(|view| view.to_api()) }))
    }

    async fn stop(
        &self,
        request: Request<StopSandboxRequest>,
    ) -> Result<Response<StopSandboxResponse>, Status> {
        let request = request.into_inner();
        let grace = duration("grace", request.grace, GRACE, GRACE_MAX)?;
        let view = self.sandboxes.stop(&request.sandbox, grace).await?;
        Ok(Response::new(StopSandboxResponse { sandbox: Some(view.to_api()) }))
    }

    async fn start(
        &self,
        request: Request<StartSandboxRequest>,
    ) -> Result<Response<StartSandboxResponse>, Status> {
        let view = self.sandboxes.start_workload(&request.into_inner().sandbox).await?;
        Ok(Response::new(StartSandboxResponse { sandbox: Some(view.to_api()) }))
    }

    async fn pause(
        &self,
        request: Request<PauseSandboxRequest>,
    ) -> Result<Response<PauseSandboxResponse>, Status> {
        let view = self.sandboxes.pause(&request.into_inner().sandbox).await?;
        Ok(Response::new(PauseSandboxResponse { sandbox: Some(view.to_api()) }))
    }

    async fn resume(
        &self,
        request: Request<ResumeSandboxRequest>,
    ) -> Result<Response<ResumeSandboxResponse>, Status> {
        let view = self.sandboxes.resume(&request.into_inner().sandbox).await?;
        Ok(Response::new(ResumeSandboxResponse { sandbox: Some(view.to_api()) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSandboxRequest>,
    ) -> Result<Response<UpdateSandboxResponse>, Status> {
        let UpdateSandboxRequest { sandbox, ttl, idle_stop } = request.into_inner();
        let view = self.sandboxes.update(&sandbox, ttl, idle_stop).await?;
        Ok(Response::new(UpdateSandboxResponse { sandbox: Some(view.to_api()) }))
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let request = request.into_inner();
        let sandbox = match request.sandbox.as_str() {
            "" => None,
            name => Some(self.sandboxes.resolve(name)?.id()),
        };
        let events = self.events.stream(sandbox, request.tail as usize, request.follow);
        Ok(Response::new(Box::pin(futures::StreamExt::map(events, Ok))))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<LogsResponse>, Status> {
        let request = request.into_inner();
        let tail = match request.tail_bytes {
            0 => LOGS,
            n if n > LOGS_MAX => {
                return Err(CallError::invalid("tail_bytes", format!("more than {LOGS_MAX}")).into());
            }
            n => n,
        };
        let console = self.sandboxes.logs(&request.sandbox, tail as usize).await?;
        Ok(Response::new(LogsResponse { console }))
    }
}
