//! The task of one connection: lets it in, serves the control stream, and sees it out.

use std::{pin::pin, time::SystemTime};

use futures::FutureExt as _;
use holdfast_wire::{
    close::CloseCode,
    control::{Down, Heartbeat, RefuseCode, RenewCertificate, Up, Welcome, down, up},
    limits, timing,
    transport::{Connection, MessageReader, SendStream},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Lost, Session, Sessions,
    greeting::{self, Peer, Refused},
    state::{Action, State},
};
use crate::{relays::cut, sandboxes::SandboxHandle};

/// Between two certificates for one session: a renewal is due once in hours, and each costs a signature.
const SIGN_EVERY: Duration = Duration::from_secs(1);

impl Sessions {
    /// Serves one connection from its handshake to its end. Cancelling `token` ends it with GOING_AWAY.
    pub async fn serve(&self, connection: Connection, token: CancellationToken) {
        let peer = match greeting::identify(&connection) {
            Ok(peer) => peer,
            Err(why) => {
                tracing::warn!(remote = %connection.remote_address(), why, "not let in");
                return connection.close(CloseCode::UNAUTHORIZED, &why);
            }
        };
        let span = tracing::info_span!(
            "session",
            sandbox = %peer.sandbox,
            session = tracing::field::Empty,
            epoch = tracing::field::Empty,
        );
        self.serve_peer(&connection, peer, token).instrument(span).await;
    }

    async fn serve_peer(&self, connection: &Connection, peer: Peer, token: CancellationToken) {
        let greeted = tokio::select! {
            biased;
            () = token.cancelled() => return connection.close(CloseCode::GOING_AWAY, "the gateway stops"),
            greeted = greeting::listen(connection) => greeted,
        };
        let (control, hello) = match greeted {
            Ok(greeted) => greeted,
            Err((code, why)) => {
                tracing::warn!(why, "no session");
                return connection.close(code, &why);
            }
        };
        let handle = self.sandboxes.by_id(peer.sandbox);
        let admitted = match handle {
            None => {
                let reason = format!("the sandbox {} is not known here", peer.sandbox);
                Err(Refused::new(RefuseCode::UnknownSandbox, reason))
            }
            Some(_) if peer.facts.expired_at(SystemTime::now()) => {
                return self.renew_only(connection, &peer, control).await;
            }
            Some(handle) => match greeting::check(&peer, hello) {
                Err(refused) => Err(refused),
                Ok(hello) => match timeout(timing::HELLO_TIMEOUT, handle.hello(hello.clone())).await {
                    Ok(Ok(admission)) => Ok((handle, hello, admission)),
                    Ok(Err(refusal)) => Err(Refused {
                        code: refusal.code,
                        reason: refusal.reason,
                        retry_after: refusal.retry_after,
                    }),
                    Err(_) => Err(Refused {
                        retry_after: Some(timing::REDIAL_FIRST),
                        ..Refused::new(RefuseCode::Busy, "the sandbox's task did not answer in time")
                    }),
                },
            },
        };
        let (handle, hello, admission) = match admitted {
            Ok(admitted) => admitted,
            Err(refused) => {
                tracing::warn!(code = refused.code.as_str_name(), reason = refused.reason, "refused");
                return greeting::refuse(connection, control, &refused).await;
            }
        };

        let (reason, away) = (hello.dial_reason.clone(), hello.away);
        metrics::counter!("holdfast_attaches_total", "reason" => greeting::reason_label(&reason))
            .increment(1);
        let (session, queue) = Session::new(
            peer.sandbox,
            admission.epoch,
            hello,
            connection.clone(),
            handle.activity().clone(),
            token.child_token(),
        );
        let span = tracing::Span::current();
        span.record("session", tracing::field::display(session.id()));
        span.record("epoch", tracing::field::display(session.epoch()));
        // Whatever happens to this task, everybody hears of the end.
        let _told = EndOnDrop(session.clone());
        let greeting::Control { mut send, mut recv } = control;
        let welcome = Down {
            body: Some(down::Body::Welcome(Welcome {
                session_id: session.id().to_bytes(),
                epoch: admission.epoch.0,
                settings: Some(admission.tuning.to_settings()),
                gateway_version: holdfast_wire::VERSION.to_owned(),
                gateway_name: self.name.clone(),
            })),
        };
        // A peer that opens no window for it must not keep a connection that way.
        let welcomed = timeout(timing::HELLO_TIMEOUT, send.send_message(&welcome, limits::MAX_MESSAGE)).await;
        let failed = match welcomed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it does not take it".to_owned()),
        };
        if let Some(error) = failed {
            tracing::warn!(%error, "the connection ended before Welcome");
            session.end(connection.lost().map_or_else(|| Lost::here(CloseCode::PROTOCOL, error), Lost::from));
            return connection.close(CloseCode::PROTOCOL, "no Welcome");
        }
        tracing::info!(remote = %connection.remote_address(), reason, ?away, version = session.version(), instance = %session.instance(), "attached");
        let _entry = self.registry.enter(&session);
        handle.attached(session.epoch(), session.clone()).await;
        session.probe_now();

        let (frozen_in, frozen) = watch::channel(false);
        let mut writer = pin!(write(&mut send, queue, frozen_in).fuse());
        let lost = tokio::select! {
            biased;
            lost = connection.closed() => Lost::Connection(lost),
            lost = session.closed() => lost,
            lost = self.read(&session, &handle, &mut recv) => lost,
            lost = &mut writer => lost,
            lost = watch_over(&session, admission.tuning.heartbeat, frozen) => lost,
            lost = remind(&session, &peer) => lost,
        };
        // First the callers, by the token; then the sandbox; then the wire.
        session.end(lost);
        let lost = session.closed().await;
        metrics::counter!("holdfast_session_losses_total", "reason" => lost.label()).increment(1);
        tracing::info!(%lost, lived = ?session.lived(), "session lost");
        let leaving = async {
            // What is queued (GoAway) still goes out, the relays reset themselves, and their resets need a
            // moment: a close under a full congestion window is never sent.
            if let Lost::Here { code, reason } = &lost {
                let rest = async {
                    writer.await;
                    std::future::pending::<()>().await;
                };
                let _ = timeout(timing::CLOSE_LINGER, rest).await;
                connection.close(*code, reason);
            }
        };
        tokio::join!(handle.session_lost(session.epoch(), lost.clone()), leaving);
    }

    /// Hears the supervisor until the session has to end.
    async fn read(&self, session: &Session, handle: &SandboxHandle, recv: &mut MessageReader) -> Lost {
        let mut signed: Option<Instant> = None;
        // Who has said goodbye ends the stream in good order.
        let mut leaving: Option<String> = None;
        loop {
            let message = match recv.message::<Up>(limits::MAX_MESSAGE).await {
                Ok(Some(message)) => message,
                Ok(None) => {
                    let Some(reason) = leaving else {
                        return Lost::here(CloseCode::PROTOCOL, "the control stream ended");
                    };
                    // Its own close is on its way, and says it better.
                    tokio::time::sleep(timing::WAIT_IDLE).await;
                    return Lost::here(CloseCode::SUPERVISOR_STOPPING, reason);
                }
                Err(holdfast_wire::transport::StreamError::Lost(lost)) => return Lost::Connection(lost),
                Err(error) => return Lost::here(CloseCode::PROTOCOL, format!("the control stream: {error}")),
            };
            session.observe();
            match message.body {
                Some(up::Body::Heartbeat(Heartbeat { seq, echo: false })) => {
                    // A full queue means that the peer does not read; it learns nothing from an echo then.
                    session.send(down::Body::Heartbeat(Heartbeat { seq, echo: true }));
                }
                Some(up::Body::Heartbeat(_)) => session.note_echo(),
                Some(up::Body::Health(health)) => {
                    session.note_spool(health.spool_bytes, health.spool_limit_bytes);
                    // The sandbox first: whoever asked for the proof then finds it counted.
                    let proof = health.clone();
                    handle.health(session.epoch(), health).await;
                    session.note_proof(&proof);
                }
                Some(up::Body::Execs(report)) => {
                    if let Err(error) = self.execs.on_report(session, report).await {
                        tracing::error!(%error, "a report of execs could not be taken");
                        let reason = format!("the report of execs could not be taken: {error}");
                        return Lost::here(CloseCode::INTERNAL, reason);
                    }
                }
                Some(up::Body::CertificateRequest(request)) => {
                    let certificate = if signed.is_some_and(|at| at.elapsed() < SIGN_EVERY) {
                        let error = format!("asked again within {SIGN_EVERY:?}");
                        holdfast_wire::control::Certificate { chain: String::new(), error }
                    } else {
                        signed = Some(Instant::now());
                        self.sign(session.sandbox(), &request.csr)
                    };
                    session.send(down::Body::Certificate(certificate));
                }
                Some(up::Body::Suspending(suspending)) => {
                    tracing::info!(grace_ms = suspending.grace_ms, "the supervisor expects to be suspended");
                }
                Some(up::Body::Resumed(resumed)) => {
                    tracing::info!(away_ms = resumed.away_ms, "the supervisor was away and is back");
                    handle.resumed(session.epoch(), Duration::from_millis(resumed.away_ms)).await;
                }
                Some(up::Body::Rebound(rebound)) => {
                    session.note_rebound(rebound.rebinds, &cut(&rebound.reason))
                }
                Some(up::Body::Leaving(message)) => {
                    let reason = cut(&message.reason);
                    tracing::info!(reason, "the supervisor is leaving");
                    leaving = Some(reason);
                }
                Some(up::Body::Hello(_)) => {
                    return Lost::here(CloseCode::PROTOCOL, "a second Hello");
                }
                // A newer supervisor may say more than this gateway knows.
                None => {}
            }
        }
    }
}

/// Writes what is queued. Notes when the workload is frozen: it is told so here, before it is.
async fn write(send: &mut SendStream, mut queue: mpsc::Receiver<Down>, frozen: watch::Sender<bool>) -> Lost {
    while let Some(message) = queue.recv().await {
        match &message.body {
            Some(down::Body::Suspending(_)) => drop(frozen.send_replace(true)),
            Some(down::Body::Resumed(_)) => drop(frozen.send_replace(false)),
            _ => {}
        }
        if let Err(error) = send.send_message(&message, limits::MAX_MESSAGE).await {
            return match error {
                holdfast_wire::transport::StreamError::Lost(lost) => Lost::Connection(lost),
                error => Lost::here(CloseCode::PROTOCOL, format!("the control stream: {error}")),
            };
        }
    }
    // Every handle is gone, so nobody can say anything any more.
    std::future::pending().await
}

/// Watches over the path while callers are attached; returns when it has been silent for the bound.
async fn watch_over(session: &Session, every: Duration, mut frozen: watch::Receiver<bool>) -> Lost {
    let mut state = State::new(every, timing::CALLER_BOUND, session.observe());
    let mut relays = session.inner.relays.subscribe();
    loop {
        state.on_relays(*relays.borrow_and_update(), Instant::now());
        let wake = state.wake_at();
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The sender lives in the session, which is borrowed here.
            _ = relays.changed() => continue,
            Ok(()) = frozen.changed() => state.on_frozen(*frozen.borrow_and_update(), Instant::now()),
            () = sleep => {}
        }
        let now = Instant::now();
        state.on_datagrams(session.observe(), now);
        state.on_echoes(session.echoes());
        match state.on_tick(now) {
            Some(Action::Beat(seq)) => {
                // A full queue is silence of its own kind: no echo will come.
                session.send(down::Body::Heartbeat(Heartbeat { seq, echo: false }));
            }
            Some(Action::GiveUp(silence)) => {
                let reason = format!("nothing was heard for {} s", silence.as_secs());
                return Lost::here(CloseCode::UNRESPONSIVE, reason);
            }
            Some(Action::Unanswered(unheard)) => {
                let reason = format!("nothing reached the supervisor for {} s", unheard.as_secs());
                return Lost::here(CloseCode::UNRESPONSIVE, reason);
            }
            None => {}
        }
    }
}

/// A supervisor renews its certificate by itself, at two thirds of its life. At five sixths the gateway reminds it,
/// once; a session outlives its certificate, but the next dial would not.
async fn remind(session: &Session, peer: &Peer) -> Lost {
    let (from, to) = (peer.facts.not_before, peer.facts.not_after);
    let life = to.duration_since(from).unwrap_or_default();
    if let Ok(wait) = (from + life / 6 * 5).duration_since(SystemTime::now()) {
        tokio::time::sleep(wait).await;
        session.send(down::Body::RenewCertificate(RenewCertificate {}));
    }
    std::future::pending().await
}

/// Ends the session when its task ends without having said how.
struct EndOnDrop(Session);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(Lost::here(CloseCode::INTERNAL, "the session's task ended"));
    }
}
