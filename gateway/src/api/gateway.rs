//! `holdfast.v1.Gateway`: the gateway about itself.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use holdfast_wire::{
    VERSION,
    api::{
        ChaosRequest, ChaosResponse, ProbeRequest, ProbeResponse, SessionOfSandbox, StatusRequest,
        StatusResponse, gateway_server,
    },
};
use tonic::{Request, Response, Status};

use super::auth::caller;
use crate::{events::Events, sandboxes::Sandboxes};

/// What a gateway knows of itself.
#[derive(Debug)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Since when.
    pub started_at: jiff::Timestamp,
    /// Its driver.
    pub driver: String,
    /// What the driver says of its isolation.
    pub driver_notes: String,
    /// UDP and TCP.
    pub listen: SocketAddr,
    /// Plain HTTP.
    pub http_listen: SocketAddr,
    /// Everything it keeps.
    pub data_dir: PathBuf,
    /// Clients that may order faults.
    pub admins: Vec<String>,
    /// It is stopping.
    pub draining: AtomicBool,
}

#[derive(Debug)]
pub(super) struct GatewayService {
    pub(super) facts: Arc<Facts>,
    pub(super) sandboxes: Sandboxes,
    pub(super) events: Events,
}

impl GatewayService {
    pub(super) fn new(facts: Arc<Facts>, sandboxes: Sandboxes, events: Events) -> Self {
        Self { facts, sandboxes, events }
    }
}

#[tonic::async_trait]
impl gateway_server::Gateway for GatewayService {
    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let views = self.sandboxes.views();
        let attached: Vec<SessionOfSandbox> = views
            .iter()
            .filter_map(|view| {
                let session = view.session.as_ref()?;
                Some(SessionOfSandbox {
                    sandbox_id: view.record.id.to_string(),
                    sandbox_name: view.record.name.clone(),
                    phase: view.phase.into(),
                    session: Some(session.to_api()),
                })
            })
            .collect();
        let facts = &self.facts;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Response::new(StatusResponse {
            version: VERSION.to_owned(),
            name: facts.name.clone(),
            started_at: Some(timestamp(facts.started_at)),
            driver: facts.driver.clone(),
            driver_notes: facts.driver_notes.clone(),
            listen: facts.listen.to_string(),
            http_listen: facts.http_listen.to_string(),
            data_dir: facts.data_dir.to_string_lossy().into_owned(),
            sandboxes: count(views.len()),
            sessions: count(attached.len()),
            open_relays: attached.iter().filter_map(|s| s.session.as_ref()).map(|s| s.open_relays).sum(),
            attached,
            draining: facts.draining.load(Ordering::Relaxed),
            server_time: Some(timestamp(jiff::Timestamp::now())),
        }))
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(self.do_probe(request.into_inner()).await?))
    }

    async fn chaos(&self, request: Request<ChaosRequest>) -> Result<Response<ChaosResponse>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(self.do_chaos(&caller, request.into_inner()).await?))
    }
}

fn timestamp(at: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}
