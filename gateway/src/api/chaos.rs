//! `Chaos` and `Probe`: a fault on purpose, and the proof that a sandbox works, over its session.
//!
//! ```text
//!   caller ── admin? ── kind, time ── session attached? ── supervisor knows how? ──▶ event, metric, order
//! ```
//!
//! A reset returns once the session is lost for everybody here, so that a caller that then waits for Ready waits for
//! the next session.

use std::time::Duration;

use holdfast_wire::{
    api::{ChaosKind, ChaosRequest, ChaosResponse, Phase, ProbeRequest, ProbeResponse, Proof},
    close::CloseCode,
    control, timing,
};
use tokio::time::{Instant, timeout, timeout_at};

use super::{auth::Caller, duration, gateway::GatewayService};
use crate::{
    error::{CallError, Reason, key},
    events::reason,
};

/// How long a fault lasts if the caller does not say: longer than the path may be silent before a supervisor dials
/// anew, as long as callers are kept waiting.
const TIME: Duration = Duration::from_secs(10);

/// For a proof, if the caller does not say, and the most. A fault's longest time and a recovery fit.
const PROBE: Duration = Duration::from_secs(15);
const PROBE_MAX: Duration = Duration::from_secs(120);

/// From a session's end to the sandbox's view of it: both in this process.
const NOTICED: Duration = Duration::from_secs(1);

impl GatewayService {
    pub(super) async fn do_chaos(
        &self,
        caller: &Caller,
        request: ChaosRequest,
    ) -> Result<ChaosResponse, CallError> {
        self.admit(caller)?;
        let (kind, time) = checked(&request)?;
        let handle = self.sandboxes.resolve(&request.sandbox)?;
        let mut view = handle.view();
        let now = view.borrow_and_update().clone();
        let Some(session) = now.live_session().cloned() else {
            return Err(now.refusal(Reason::NoSession, "a fault needs a session to happen to"));
        };
        if kind != ChaosKind::ResetSession && !session.can_do_chaos() {
            let message = format!("{} is not supported by supervisor {}", word(kind), session.version());
            return Err(CallError::new(Reason::UnsupportedBySupervisor, message)
                .with(key::SANDBOX_ID, handle.id())
                .with(key::VERB, word(kind)));
        }
        let lasting = if time.is_zero() { String::new() } else { format!(" for {} s", time.as_secs_f64()) };
        let told = format!("{}{lasting}, ordered by {}", word(kind), caller.name);
        self.events.record(handle.id(), handle.name(), reason::CHAOS, told, Phase::Unspecified);
        metrics::counter!("holdfast_chaos_total", "kind" => word(kind)).increment(1);

        let ordered = match kind {
            ChaosKind::ResetSession => {
                session.close(CloseCode::RESET_ON_REQUEST, "reset on request");
                let epoch = session.epoch();
                // Late or not, the session has ended.
                let _ = timeout(
                    NOTICED,
                    view.wait_for(|view| {
                        view.session.as_ref().is_none_or(|session| session.epoch() != epoch)
                    }),
                )
                .await;
                true
            }
            ChaosKind::DropPath => session.chaos(control::ChaosKind::DropPath, time),
            ChaosKind::Stall => session.chaos(control::ChaosKind::Stall, time),
            ChaosKind::Rebind => session.chaos(control::ChaosKind::Rebind, time),
            ChaosKind::Unspecified => false,
        };
        if !ordered {
            return Err(handle.now().refusal(Reason::NoSession, "the order did not reach the session"));
        }
        Ok(ChaosResponse {
            session_id: session.id().to_string(),
            epoch: session.epoch().0,
            supervisor_version: session.version().to_owned(),
            duration: (!time.is_zero()).then(|| time.try_into().ok()).flatten(),
        })
    }

    /// Waits for a session and for its proof; a session that is lost meanwhile is followed by the next.
    pub(super) async fn do_probe(&self, request: ProbeRequest) -> Result<ProbeResponse, CallError> {
        let within = duration("at_most", request.at_most, PROBE, PROBE_MAX)?;
        let handle = self.sandboxes.resolve(&request.sandbox)?;
        let deadline = Instant::now() + within;
        loop {
            let session = handle.wait_for_session(deadline).await?;
            let asked = Instant::now();
            match timeout_at(deadline, session.prove()).await {
                Ok(Ok(health)) => {
                    return Ok(ProbeResponse {
                        exec: health.exec.map(proof),
                        filesystem: health.filesystem.map(proof),
                        took: asked.elapsed().try_into().ok(),
                        epoch: session.epoch().0,
                    });
                }
                Ok(Err(_lost)) => {}
                Err(_) => {
                    return Err(handle
                        .now()
                        .refusal(Reason::WaitTimeout, "the probe was not answered in time"));
                }
            }
        }
    }

    fn admit(&self, caller: &Caller) -> Result<(), CallError> {
        let admins = &self.facts.admins;
        if admins.iter().any(|admin| **admin == *caller.name) {
            return Ok(());
        }
        Err(CallError::new(
            Reason::Forbidden,
            format!(
                "{:?} may not order faults: the gateway's `admins` are [{}]",
                caller.name,
                admins.join(", ")
            ),
        ))
    }
}

/// The kind, and how long: zero for what is done in an instant.
fn checked(request: &ChaosRequest) -> Result<(ChaosKind, Duration), CallError> {
    let kind = match ChaosKind::try_from(request.kind) {
        Ok(kind) if kind != ChaosKind::Unspecified => kind,
        _ => {
            let kinds = "drop-path, rebind, reset-session or stall";
            return Err(CallError::invalid("kind", format!("{} is none of {kinds}", request.kind)));
        }
    };
    let lasts = matches!(kind, ChaosKind::DropPath | ChaosKind::Stall);
    if !lasts {
        if request.duration.is_some() {
            let message = format!("{} is done in an instant: leave the duration out", word(kind));
            return Err(CallError::invalid("duration", message));
        }
        return Ok((kind, Duration::ZERO));
    }
    let time = duration("duration", request.duration, TIME, timing::CHAOS_MAX)?;
    if time < Duration::from_millis(1) {
        return Err(CallError::invalid("duration", "at least a millisecond"));
    }
    Ok((kind, time))
}

fn word(kind: ChaosKind) -> &'static str {
    match kind {
        ChaosKind::Unspecified => "unspecified",
        ChaosKind::DropPath => "drop-path",
        ChaosKind::Rebind => "rebind",
        ChaosKind::ResetSession => "reset-session",
        ChaosKind::Stall => "stall",
    }
}

fn proof(result: control::ProbeResult) -> Proof {
    Proof {
        ok: result.ok,
        message: result.message,
        took: Duration::from_millis(result.took_ms).try_into().ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicBool};

    use super::*;
    use crate::{api::Facts, events::Events, sessions::fake::FakeWorld};

    fn service(world: &FakeWorld) -> GatewayService {
        let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let facts = Facts {
            name: "gw".to_owned(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            driver: "fake".to_owned(),
            driver_notes: String::new(),
            listen: nowhere,
            http_listen: nowhere,
            data_dir: "/nonexistent".into(),
            admins: vec!["admin".to_owned()],
            draining: AtomicBool::new(false),
        };
        GatewayService::new(Arc::new(facts), world.sandboxes.clone(), Events::new())
    }

    fn caller(name: &str) -> Caller {
        Caller { name: Arc::from(name) }
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_supervisor_is_named_with_its_version_and_can_still_be_reset() {
        let world = FakeWorld::new().await;
        let _link = world.sandbox("box").await.attach().await;
        let session = world.session("box", 1).await;
        let (service, admin) = (service(&world), caller("admin"));
        for kind in [ChaosKind::DropPath, ChaosKind::Rebind, ChaosKind::Stall] {
            let error = service.do_chaos(&admin, request(kind.into(), None)).await.unwrap_err();
            assert_eq!(error.reason, Reason::UnsupportedBySupervisor);
            assert!(error.message.ends_with("is not supported by supervisor 1"), "{}", error.message);
        }
        assert!(session.lost().is_none());
        let done = service.do_chaos(&admin, request(ChaosKind::ResetSession.into(), None)).await.unwrap();
        assert_eq!(done.epoch, 1);
        assert_eq!(session.closed().await.code(), Some(CloseCode::RESET_ON_REQUEST));
        // Whoever waits for Ready from here on waits for the next session.
        let view = world.sandboxes.resolve("box").unwrap().now();
        assert!(view.session.is_none() && view.phase != Phase::Ready, "{view:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_admins_order_faults_and_only_where_there_is_a_session() {
        let world = FakeWorld::new().await;
        let supervisor = world.sandbox("box").await;
        let service = service(&world);
        let reset = || request(ChaosKind::ResetSession.into(), None);
        let error = service.do_chaos(&caller("admin"), reset()).await.unwrap_err();
        assert_eq!(error.reason, Reason::NoSession);
        let _link = supervisor.attach().await;
        let session = world.session("box", 1).await;
        let error = service.do_chaos(&caller("ci"), reset()).await.unwrap_err();
        assert_eq!(error.reason, Reason::Forbidden);
        assert!(session.lost().is_none());
    }

    fn request(kind: i32, seconds: Option<i64>) -> ChaosRequest {
        let duration = seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
        ChaosRequest { sandbox: "box".to_owned(), kind, duration }
    }

    #[test]
    fn a_fault_has_a_kind_and_an_end() {
        let drop = ChaosKind::DropPath.into();
        assert_eq!(checked(&request(drop, None)).unwrap(), (ChaosKind::DropPath, TIME));
        assert_eq!(checked(&request(drop, Some(60))).unwrap().1, timing::CHAOS_MAX);
        for wrong in [Some(61), Some(0), Some(-1)] {
            assert_eq!(checked(&request(drop, wrong)).unwrap_err().reason, Reason::InvalidArgument);
        }
        for unknown in [0, 99, -1] {
            let error = checked(&request(unknown, None)).unwrap_err();
            assert!(error.message.contains("reset-session"), "{}", error.message);
        }
    }

    #[test]
    fn what_is_done_in_an_instant_takes_no_time() {
        for kind in [ChaosKind::Rebind, ChaosKind::ResetSession] {
            assert_eq!(checked(&request(kind.into(), None)).unwrap(), (kind, Duration::ZERO));
            let error = checked(&request(kind.into(), Some(5))).unwrap_err();
            assert!(error.message.contains("instant"), "{}", error.message);
        }
    }
}
