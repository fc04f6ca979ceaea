//! The link against a gateway that speaks the protocol, over real sockets on the loopback.

mod fakes;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use holdfast_wire::{
    close::CloseCode,
    control::{
        Certificate, ExecCall, ExecRelay, ExecReport, GoAway, Heartbeat, ProbeNow, RefuseCode, RefusedCode,
        RenewCertificate, Settings, Up, down, relay_header, relay_reply, up,
    },
    limits,
    transport::{MessageReader, StreamError},
};
use tokio::time::Instant;

use super::Phase;
use fakes::{FakeNat, FakeRoutes, PANIC, Stillborn, World, echoes, soon};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn report(body: up::Body) -> Option<ExecReport> {
    match body {
        up::Body::Execs(report) => Some(report),
        _ => None,
    }
}

#[tokio::test]
async fn after_welcome_come_all_execs_then_health() {
    let world = World::new();
    world.work.change("old");
    let gateway = world.gateway();
    let link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(4).await;
    assert_eq!(session.hello.sandbox_id, world.sandbox.to_bytes());
    assert_eq!((session.hello.dial, session.hello.away_ms, session.hello.execs), (1, 0, 1));
    assert_eq!((session.hello.dial_reason.as_str(), session.hello.workload_generation), ("start", 3));
    let first = session.until("the first message", Some).await;
    let complete = report(first).expect("the first message is the report");
    assert!(complete.complete);
    assert_eq!(complete.execs[0].exec_id, "old");
    assert!(session.health(0).await.exec.unwrap().ok);
    let mut status = link.status();
    let attached = |status: &super::Status| matches!(status.phase, Phase::Attached { epoch } if epoch.0 == 4);
    soon("the phase", status.wait_for(attached)).await.unwrap();
    // A change is told by itself, and alone.
    world.work.change("new");
    let changes = session.until("a change", report).await;
    assert!(!changes.complete);
    assert_eq!(changes.execs.iter().map(|exec| exec.exec_id.as_str()).collect::<Vec<_>>(), ["new"]);
}

#[tokio::test]
async fn a_probe_that_is_asked_for_is_answered_with_its_nonce_and_probes_go_on_by_themselves() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    session.down(down::Body::ProbeNow(ProbeNow { nonce: 77 })).await;
    session.health(77).await;
    session.health(0).await;
    session.health(0).await;
}

#[tokio::test]
async fn a_doubt_is_probed_at_once_and_a_thousand_cost_no_more_than_one_a_second() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    session.health(0).await;
    let settings = Settings { probe_every_ms: 600_000, ..Settings::default() };
    session.down(down::Body::Settings(settings)).await;
    session.down(down::Body::ProbeNow(ProbeNow { nonce: 1 })).await;
    session.health(1).await;
    let before = world.work.probes.load(Ordering::SeqCst);
    let begun = tokio::time::Instant::now();
    world.work.doubts.send_modify(|doubts| *doubts += 1);
    session.health(0).await;
    assert!(begun.elapsed() < ms(900), "{:?}", begun.elapsed());
    for _ in 0..1000 {
        world.work.doubts.send_modify(|doubts| *doubts += 1);
        tokio::task::yield_now().await;
    }
    session.health(0).await;
    assert!(begun.elapsed() >= ms(900), "{:?}", begun.elapsed());
    assert_eq!(world.work.probes.load(Ordering::SeqCst) - before, 2);
}

#[tokio::test]
async fn settings_take_effect_at_once() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    session.health(0).await;
    let settings = Settings { probe_every_ms: 600_000, max_execs: 5, ..Settings::default() };
    session.down(down::Body::Settings(settings)).await;
    // The nonce proves that the settings before it have been read.
    session.down(down::Body::ProbeNow(ProbeNow { nonce: 1 })).await;
    session.health(1).await;
    assert_eq!(world.work.max_execs.load(Ordering::SeqCst), 5);
    let probes = world.work.probes.load(Ordering::SeqCst);
    tokio::time::sleep(ms(600)).await;
    assert_eq!(world.work.probes.load(Ordering::SeqCst), probes, "the next one is ten minutes away");
}

#[tokio::test]
async fn heartbeats_are_echoed_and_sent_only_while_a_relay_is_open() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    session.down(down::Body::Heartbeat(Heartbeat { seq: 9, echo: false })).await;
    let mut own = 0;
    session
        .until("an echo", |body| match body {
            up::Body::Heartbeat(Heartbeat { seq: 9, echo: true }) => Some(()),
            up::Body::Heartbeat(_) => {
                own += 1;
                None
            }
            _ => None,
        })
        .await;
    assert_eq!(own, 0, "no relay, no heartbeat");
    let (mut send, _recv) = session.echo_relay().await;
    let beat = |body| match body {
        up::Body::Heartbeat(beat) if !beat.echo => Some(beat.seq),
        _ => None,
    };
    let first = session.until("a heartbeat", beat).await;
    assert!(session.until("another", beat).await > first);
    send.reset(CloseCode::CALLER_GONE);
}

#[tokio::test]
async fn a_refusal_is_followed_by_a_dial_after_its_time_and_not_before() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut refused = gateway.accept().await;
    refused.refuse(RefuseCode::Busy, 700).await;
    let refused_at = Instant::now();
    let session = gateway.welcome(1).await;
    assert!(refused_at.elapsed() >= ms(690), "{:?}", refused_at.elapsed());
    assert_eq!(session.hello.dial, 2);
}

#[tokio::test]
async fn refused_for_good_is_not_dialled_again() {
    let world = World::new();
    let gateway = world.gateway();
    let link = world.link(&[gateway.address]);
    let mut refused = gateway.accept().await;
    refused.refuse(RefuseCode::StaleGeneration, 0).await;
    soon("rest", link.status().wait_for(|status| status.phase == Phase::Resting)).await.unwrap();
    gateway.hears_nothing(ms(1500)).await;
}

#[tokio::test]
async fn superseded_by_somebody_else_is_not_dialled_again() {
    let world = World::new();
    let gateway = world.gateway();
    let link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    session.health(0).await;
    session.connection.close(CloseCode::SUPERSEDED, "another instance");
    soon("rest", link.status().wait_for(|status| status.phase == Phase::Resting)).await.unwrap();
    gateway.hears_nothing(ms(1500)).await;
}

#[tokio::test]
async fn a_lost_session_is_dialled_again_with_its_reason() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    session.health(0).await;
    session.connection.close(CloseCode::RESET_ON_REQUEST, "a test");
    let again = gateway.welcome(2).await;
    assert_eq!(again.hello.dial, 2);
    assert_eq!(again.hello.instance, session.hello.instance);
    assert!(again.hello.dial_reason.contains("a test"), "{}", again.hello.dial_reason);
}

#[tokio::test]
async fn a_go_away_is_followed_within_its_window_after_the_close() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    let (mut send, mut recv) = session.echo_relay().await;
    let go = GoAway { reconnect_after_ms: 1500, to: String::new(), reason: "upgrade".to_owned() };
    session.down(down::Body::GoAway(go)).await;
    let told_at = Instant::now();
    echoes(&mut send, &mut recv, "still served").await;
    session.connection.close(CloseCode::GOING_AWAY, "upgrade");
    let again = gateway.welcome(2).await;
    assert!(told_at.elapsed() <= ms(1500) + ms(1000), "{:?}", told_at.elapsed());
    assert_eq!(again.hello.dial_reason, "lost: closed by the peer: GOING_AWAY (upgrade)");
}

#[tokio::test]
async fn a_go_away_to_another_gateway_is_followed_before_the_first_closes() {
    let world = World::new();
    let (first, second) = (world.gateway(), world.gateway());
    let _link = world.link(&[first.address]);
    let mut session = first.welcome(7).await;
    let go = GoAway { reconnect_after_ms: 100, to: second.address.to_string(), reason: String::new() };
    session.down(down::Body::GoAway(go)).await;
    let mut moved = second.accept().await;
    assert!(session.connection.lost().is_none(), "the first still serves");
    moved.welcome(8).await;
    moved.health(0).await;
    assert_eq!(session.close_code().await, CloseCode::UNRESPONSIVE);
}

#[tokio::test]
async fn all_addresses_are_tried_and_a_silent_one_does_not_hold_up_the_next() {
    let world = World::new();
    let gateway = world.gateway();
    // Bound and never answering; and a port where nobody is.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = "[::1]:9".parse().unwrap();
    let started = Instant::now();
    let _link = world.link(&[silent.local_addr().unwrap(), nobody, gateway.address]);
    gateway.welcome(1).await;
    assert!(started.elapsed() < ms(3000), "{:?}", started.elapsed());
}

#[tokio::test]
async fn garbage_on_the_control_stream_ends_the_session_with_protocol_and_unknown_messages_do_not() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    // Field 999, varint 1: of a gateway from the future. And an empty message.
    session.send.write(Bytes::from_static(&[0, 0, 0, 3, 0xb8, 0x3e, 1, 0, 0, 0, 0])).await.unwrap();
    session.down(down::Body::ProbeNow(ProbeNow { nonce: 5 })).await;
    session.health(5).await;
    session.send.write(Bytes::from_static(&[0, 0, 0, 2, 0xff, 0xff])).await.unwrap();
    assert_eq!(session.close_code().await, CloseCode::PROTOCOL);
    let mut again = gateway.welcome(2).await;
    // An announced length beyond the bound is refused before a byte of it is kept.
    again.send.write(Bytes::from_static(&[0xff, 0xff, 0xff, 0xff])).await.unwrap();
    assert_eq!(again.close_code().await, CloseCode::PROTOCOL);
    gateway.welcome(3).await.health(0).await;
}

#[tokio::test]
async fn a_header_that_is_too_long_or_garbage_resets_that_stream_alone() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let session = gateway.welcome(1).await;
    let too_long = u32::try_from(limits::MAX_RELAY_HEADER + 1).unwrap().to_be_bytes();
    for bytes in [Bytes::copy_from_slice(&too_long), Bytes::from_static(&[0, 0, 0, 2, 0xff, 0xff])] {
        let (mut send, recv) = session.connection.open_bi(fakes::PATIENCE).await.unwrap();
        send.write(bytes).await.unwrap();
        let error = soon("a reset", MessageReader::new(recv).bytes(1)).await.unwrap_err();
        assert_eq!(error, StreamError::Ended(CloseCode::PROTOCOL));
    }
    let (mut send, mut recv) = session.echo_relay().await;
    echoes(&mut send, &mut recv, "alive").await;
}

#[tokio::test]
async fn an_unknown_kind_of_relay_is_refused_by_name() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let session = gateway.welcome(1).await;
    let (_send, mut recv, reply) = session.relay(None).await;
    let relay_reply::Kind::Refused(refused) = reply else { panic!("{reply:?}") };
    assert_eq!(refused.code(), RefusedCode::UnknownKind);
    assert_eq!(soon("the end", recv.bytes(1)).await.unwrap(), None);
    let call = relay_header::Kind::ExecCall(ExecCall::default());
    assert!(matches!(session.relay(Some(call)).await.2, relay_reply::Kind::Accepted(_)));
}

#[tokio::test]
async fn a_relay_that_panics_ends_alone() {
    let world = World::new();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    let (mut send, mut recv) = session.echo_relay().await;
    let (mut doomed, answer) = session.connection.open_bi(fakes::PATIENCE).await.unwrap();
    let header = holdfast_wire::control::RelayHeader {
        relay_id: holdfast_wire::ids::RelayId::random().to_bytes(),
        kind: Some(relay_header::Kind::Exec(ExecRelay { exec_id: PANIC.into(), ..ExecRelay::default() })),
        ..Default::default()
    };
    doomed.send_message(&header, limits::MAX_RELAY_HEADER).await.unwrap();
    let error = soon("a reset", MessageReader::new(answer).bytes(1)).await.unwrap_err();
    assert_eq!(error, StreamError::Ended(CloseCode::ABANDONED));
    echoes(&mut send, &mut recv, "alive").await;
    session.health(0).await;
}

#[tokio::test]
async fn a_stale_mapping_is_cured_by_a_new_socket_and_the_session_goes_on() {
    let world = World::new();
    let gateway = world.gateway();
    let nat = FakeNat::towards(gateway.address).await;
    let _link = world.link(&[nat.address]);
    let mut session = gateway.welcome(1).await;
    let (mut send, mut recv) = session.echo_relay().await;
    echoes(&mut send, &mut recv, "before").await;
    let before = session.connection.remote_address();
    nat.forget(Stillborn::None);
    let forgotten_at = Instant::now();
    // What is sent now is lost, and comes again once the path does.
    send.write(Bytes::from_static(b"after")).await.unwrap();
    let answering = session.until("heartbeats, for ever", |_| None::<()>);
    tokio::select! {
        () = answering => {}
        bytes = soon("the echo", recv.bytes(64)) => assert_eq!(&bytes.unwrap().unwrap()[..], b"after"),
    }
    assert!(forgotten_at.elapsed() < ms(5000), "{:?}", forgotten_at.elapsed());
    assert_ne!(session.connection.remote_address(), before, "it came from a new socket");
    gateway.hears_nothing(ms(300)).await;
}

#[tokio::test]
async fn a_silent_session_is_replaced_and_its_relays_end_before_the_new_one_reports() {
    let world = World::new();
    let gateway = world.gateway();
    let nat = FakeNat::towards(gateway.address).await;
    let _link = world.link(&[nat.address]);
    let mut first = gateway.welcome(1).await;
    let (mut send, mut recv) = first.echo_relay().await;
    echoes(&mut send, &mut recv, "before").await;
    first.health(0).await;
    assert_eq!(world.work.serving.load(Ordering::SeqCst), 1);
    // The mapping, and the one of the rebind: only a new connection gets through.
    nat.forget(Stillborn::Moved);
    let forgotten_at = Instant::now();
    let mut second = gateway.accept().await;
    assert!(forgotten_at.elapsed() >= ms(2500), "{:?}", forgotten_at.elapsed());
    assert!(forgotten_at.elapsed() < ms(6000), "{:?}", forgotten_at.elapsed());
    assert_eq!((second.hello.dial, second.hello.away_ms), (2, 0), "beside the first");
    assert!(second.hello.dial_reason.starts_with("suspect"), "{}", second.hello.dial_reason);
    assert_eq!(world.work.serving.load(Ordering::SeqCst), 1, "the first is kept until the second is welcome");
    second.welcome(2).await;
    let complete = second.until("the report", report).await;
    assert!(complete.complete);
    assert_eq!(world.work.serving.load(Ordering::SeqCst), 0, "no relay of the first is served any more");
    let (mut send, mut recv) = second.echo_relay().await;
    echoes(&mut send, &mut recv, "after").await;
}

#[tokio::test]
async fn a_dial_that_is_not_wanted_any_more_ends_before_its_hello() {
    let world = World::new();
    let gateway = world.gateway();
    let nat = FakeNat::towards(gateway.address).await;
    let _link = world.link(&[nat.address]);
    let mut session = gateway.welcome(1).await;
    let (mut send, mut recv) = session.echo_relay().await;
    // Neither the rebound socket nor the second connection gets through; then all mappings come back.
    nat.forget(Stillborn::All);
    let answering = session.until("heartbeats, for ever", |_| None::<()>);
    let healing = async {
        tokio::time::sleep(ms(3700)).await;
        nat.heal();
        echoes(&mut send, &mut recv, "the same relay").await;
    };
    tokio::select! {
        () = answering => {}
        () = healing => {}
    }
    // Whatever the second connection came to, it did not say Hello.
    let second = tokio::time::timeout(ms(1500), async {
        let connection = gateway.listener.accept().await.unwrap().accept().await.ok()?;
        connection.accept_bi().await.ok()
    });
    assert!(!matches!(second.await, Ok(Some(_))), "it was abandoned");
    echoes(&mut send, &mut recv, "still the same").await;
}

#[tokio::test]
async fn a_certificate_that_lives_for_seconds_is_renewed_in_time_and_shown_at_the_next_dial() {
    let world = World::bare();
    world.certify(SystemTime::now(), Duration::from_secs(6));
    let old = world.files().load().unwrap().facts().clone();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    let started = Instant::now();
    session.certify(&world, Duration::from_secs(3600)).await;
    assert!(started.elapsed() < ms(4500), "asked at two thirds of its life: {:?}", started.elapsed());
    // The file is what a restart would show.
    let renewed = soon("the file", async {
        loop {
            let facts = world.files().load().unwrap().facts().clone();
            if facts.serial != old.serial {
                return facts;
            }
            session.health(0).await;
        }
    })
    .await;
    session.connection.close(CloseCode::RESET_ON_REQUEST, "");
    let again = gateway.welcome(2).await;
    let shown = again.connection.peer_certificate().unwrap();
    let shown = holdfast_certs::CertificateFacts::from_certificate(&shown).unwrap();
    assert_eq!(shown.serial, renewed.serial);
}

#[tokio::test]
async fn a_renewal_that_is_asked_for_comes_with_a_new_key_and_a_bad_answer_changes_nothing() {
    let world = World::new();
    let before = world.files().load().unwrap();
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    let request = |body| match body {
        up::Body::CertificateRequest(request) => Some(request.csr),
        _ => None,
    };
    session.down(down::Body::RenewCertificate(RenewCertificate {})).await;
    let csr = session.until("a request", request).await;
    // A certificate for somebody else, whatever its signature.
    let other = holdfast_certs::Identity::sandbox(holdfast_wire::ids::SandboxId::random().0);
    let signed = world.authority.sign_csr(&csr, &other, Duration::from_secs(3600)).unwrap();
    session
        .down(down::Body::Certificate(Certificate { chain: signed.cert_chain_pem, error: String::new() }))
        .await;
    session.health(0).await;
    session.down(down::Body::RenewCertificate(RenewCertificate {})).await;
    let again = session.until("another request", request).await;
    assert_ne!(csr, again, "a new key each time");
    assert_eq!(world.files().load().unwrap().facts(), before.facts());
}

#[tokio::test]
async fn an_expired_certificate_is_renewed_on_the_connection_that_refuses_it() {
    let world = World::bare();
    world.certify(SystemTime::now() - Duration::from_secs(7200), Duration::from_secs(3600));
    let gateway = world.gateway();
    let _link = world.link(&[gateway.address]);
    let mut refused = gateway.accept().await;
    refused.refuse(RefuseCode::CertificateExpired, 1000).await;
    refused.certify(&world, Duration::from_secs(3600)).await;
    let renewed_at = Instant::now();
    let session = gateway.welcome(1).await;
    assert!(renewed_at.elapsed() < ms(1500), "at once: {:?}", renewed_at.elapsed());
    assert_eq!(refused.close_code().await, CloseCode::RENEWED);
    let shown =
        holdfast_certs::CertificateFacts::from_certificate(&session.connection.peer_certificate().unwrap());
    assert!(!shown.unwrap().expired_at(SystemTime::now()));
}

#[tokio::test]
async fn leaving_is_said_last_and_closes_with_stopping() {
    let world = World::new();
    let gateway = world.gateway();
    let link = world.link(&[gateway.address]);
    let mut session = gateway.welcome(1).await;
    session.health(0).await;
    world.work.change("ended while stopping");
    let leaving = async { soon("the goodbye", link.leave("a test")).await };
    let hearing = async {
        let mut seen = Vec::new();
        while let Some(message) = session.recv.message::<Up>(limits::MAX_MESSAGE).await.unwrap() {
            seen.push(message.body.unwrap());
        }
        seen
    };
    let ((), seen) = tokio::join!(leaving, soon("the end of the stream", hearing));
    assert!(
        matches!(seen.last(), Some(up::Body::Leaving(leaving)) if leaving.reason == "a test"),
        "{seen:?}"
    );
    assert!(seen.iter().any(|body| matches!(body, up::Body::Execs(report) if !report.complete)));
    assert_eq!(session.close_code().await, CloseCode::SUPERVISOR_STOPPING);
}

#[tokio::test]
async fn a_gateway_that_comes_up_late_is_found_and_leaving_without_one_is_quick() {
    let world = World::new();
    let gateway = world.gateway();
    let address = gateway.address;
    drop(gateway);
    let link = world.link(&[address]);
    let mut status = link.status();
    soon("a failed dial", status.wait_for(|status| matches!(status.phase, Phase::Waiting { .. })))
        .await
        .unwrap();
    let started = Instant::now();
    link.leave("a test").await;
    assert!(started.elapsed() < ms(1000), "{:?}", started.elapsed());
}

#[tokio::test]
async fn another_way_to_the_gateway_moves_the_connection_without_any_relay() {
    let world = World::new();
    let gateway = world.gateway();
    let routes = Arc::new(FakeRoutes::by(1));
    let _link = world.link_with(&[gateway.address], |seams| seams.routes = Some(Arc::clone(&routes) as _));
    let mut session = gateway.welcome(1).await;
    session.health(0).await;
    assert_eq!(session.hello.rebinds, 0);
    let before = session.connection.remote_address();
    // A change that is none for this path, and no way at all, move nothing; a way that is there again does.
    routes.lead_by(Some(1));
    tokio::time::sleep(ms(1200)).await;
    routes.lead_by(None);
    tokio::time::sleep(ms(1200)).await;
    assert_eq!(session.connection.remote_address(), before);
    routes.lead_by(Some(1));
    let rebound = |body| match body {
        up::Body::Rebound(rebound) => Some((rebound.rebinds, rebound.reason)),
        _ => None,
    };
    let (rebinds, reason) = session.until("word of the new socket", rebound).await;
    assert_eq!(rebinds, 1);
    assert!(reason.starts_with("network changed"), "{reason}");
    soon("the new address", async {
        while session.connection.remote_address() == before {
            tokio::time::sleep(ms(10)).await;
        }
    })
    .await;
}
