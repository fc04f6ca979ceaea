//! Sessions over the real wire: who is let in, and what becomes of whoever breaks the rules.

use std::time::Duration;

use bytes::Bytes;
use holdfast_certs::KeyAndCsr;
use holdfast_wire::{
    close::CloseCode,
    control::{
        CertificateRequest, Down, Heartbeat, Hello, Rebound, Refuse, RefuseCode, Suspending, Up, down, up,
    },
    ids::SandboxId,
    limits, timing,
    transport::MessageReader,
};
use tokio::time::Instant;

use super::fake::{FakeSupervisor, FakeWorld, Heard, open_control};

const BOX: &str = "box";

/// Says `hello`; what is answered, and how the connection ends.
async fn refused(supervisor: &FakeSupervisor, hello: Hello) -> (Refuse, CloseCode) {
    let (connection, _, _dialer) = supervisor.dial().await;
    let (_send, recv) = open_control(&connection, up::Body::Hello(hello)).await;
    let answer: Down = MessageReader::new(recv).message(limits::MAX_MESSAGE).await.unwrap().unwrap();
    let Some(down::Body::Refuse(refuse)) = answer.body else { panic!("no Refuse but {answer:?}") };
    (refuse, connection.closed().await.code().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_certificate_speaks_for_its_own_sandbox_only() {
    let world = FakeWorld::new().await;
    let (mine, other) = (world.sandbox("mine").await, world.sandbox("other").await);
    let hello = Hello { sandbox_id: other.sandbox.to_bytes(), ..mine.hello() };
    let (refuse, code) = refused(&mine, hello).await;
    assert_eq!((refuse.code(), refuse.retry_after_ms), (RefuseCode::WrongSandbox, 0));
    assert_eq!(code, CloseCode::UNAUTHORIZED);
    assert!(world.registry.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_is_not_known_is_refused_for_good() {
    let world = FakeWorld::new().await;
    let nobody = SandboxId::random();
    let stranger = FakeSupervisor::new(&world.wire, world.gateway, nobody, world.office.sandbox(nobody));
    let (refuse, code) = refused(&stranger, stranger.hello()).await;
    assert_eq!((refuse.code(), refuse.retry_after_ms), (RefuseCode::UnknownSandbox, 0));
    assert_eq!(code, CloseCode::SANDBOX_DELETED);
}

#[tokio::test(start_paused = true)]
async fn hello_is_bounded() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let plain = supervisor.hello();
    for hello in [
        Hello { instance: Bytes::from_static(b"short"), ..plain.clone() },
        Hello { boot_id: "x".repeat(129), ..plain.clone() },
        Hello { version: "1\n2".to_owned(), ..plain.clone() },
        Hello { capabilities: vec![String::new(); 65], ..plain.clone() },
    ] {
        let (refuse, code) = refused(&supervisor, hello).await;
        assert_eq!((refuse.code(), code), (RefuseCode::Protocol, CloseCode::PROTOCOL), "{}", refuse.reason);
    }
}

#[tokio::test(start_paused = true)]
async fn an_oversized_control_message_ends_the_session() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let (connection, _, _dialer) = supervisor.dial().await;
    let (mut send, recv) = open_control(&connection, up::Body::Hello(supervisor.hello())).await;
    let welcome: Down = MessageReader::new(recv).message(limits::MAX_MESSAGE).await.unwrap().unwrap();
    assert!(matches!(welcome.body, Some(down::Body::Welcome(_))));
    let session = world.session(BOX, 1).await;
    send.write(Bytes::from_static(&[0xff; 4])).await.unwrap();
    assert_eq!(connection.closed().await.code(), Some(CloseCode::PROTOCOL));
    assert!(session.closed().await.to_string().contains("at most"), "{:?}", session.lost());
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_stops_listening_is_closed() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let (connection, _, _dialer) = supervisor.dial().await;
    let (_send, recv) = open_control(&connection, up::Body::Hello(supervisor.hello())).await;
    let mut recv = MessageReader::new(recv);
    let _welcome: Down = recv.message(limits::MAX_MESSAGE).await.unwrap().unwrap();
    let session = world.session(BOX, 1).await;
    recv.stop(CloseCode::INTERNAL);
    // Whatever is written next finds out.
    session.probe_now();
    assert_eq!(connection.closed().await.code(), Some(CloseCode::PROTOCOL));
    assert_eq!(session.closed().await.label(), "PROTOCOL");
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_closed_after_the_hello_timeout() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let at = Instant::now();
    let (silent, _, _dialer) = supervisor.dial().await;
    assert_eq!(silent.closed().await.code(), Some(CloseCode::PROTOCOL));
    assert_eq!(at.elapsed().as_secs(), timing::HELLO_TIMEOUT.as_secs());
    let (wrong, _, _dialer) = supervisor.dial().await;
    let (_send, _recv) = open_control(&wrong, up::Body::Suspending(Suspending { grace_ms: 0 })).await;
    assert_eq!(wrong.closed().await.code(), Some(CloseCode::PROTOCOL));
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_may_only_be_renewed() {
    let world = FakeWorld::new().await;
    let sandbox = world.sandbox(BOX).await.sandbox;
    let late = FakeSupervisor::new(&world.wire, world.gateway, sandbox, world.office.expired(sandbox));
    let (connection, _, _dialer) = late.dial().await;
    let (mut send, recv) = open_control(&connection, up::Body::Hello(late.hello())).await;
    let mut recv = MessageReader::new(recv);
    let answer: Down = recv.message(limits::MAX_MESSAGE).await.unwrap().unwrap();
    let Some(down::Body::Refuse(refuse)) = answer.body else { panic!("{answer:?}") };
    assert_eq!(refuse.code(), RefuseCode::CertificateExpired);

    let request = KeyAndCsr::generate().unwrap();
    let body = up::Body::CertificateRequest(CertificateRequest { csr: request.csr_der.into() });
    send.send_message(&Up { body: Some(body) }, limits::MAX_MESSAGE).await.unwrap();
    let answer: Down = recv.message(limits::MAX_MESSAGE).await.unwrap().unwrap();
    let Some(down::Body::Certificate(certificate)) = answer.body else { panic!("{answer:?}") };
    assert_eq!(connection.closed().await.code(), Some(CloseCode::RENEWED));
    assert!(world.registry.is_empty(), "no session came of it");

    let renewed = world.office.expired(sandbox).renewed(&certificate.chain, request.private_key_pem).unwrap();
    let back = FakeSupervisor::new(&world.wire, world.gateway, sandbox, renewed);
    assert_eq!(back.attach().await.welcome.epoch, 1);
}

#[tokio::test(start_paused = true)]
async fn a_live_session_renews_without_an_end_and_not_without_bound() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let link = supervisor.attach().await;
    let request = || {
        let csr = KeyAndCsr::generate().unwrap().csr_der.into();
        up::Body::CertificateRequest(CertificateRequest { csr })
    };
    link.say(request()).await;
    link.say(request()).await;
    let good =
        |heard: &Heard| matches!(heard, Heard::Control(down::Body::Certificate(c)) if c.error.is_empty());
    let bad =
        |heard: &Heard| matches!(heard, Heard::Control(down::Body::Certificate(c)) if !c.error.is_empty());
    supervisor.hears(good).await;
    supervisor.hears(bad).await;
    assert_eq!(link.connection.lost(), None);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_probed_at_attach_and_echoes_heartbeats() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let link = supervisor.attach().await;
    supervisor
        .hears(|heard| matches!(heard, Heard::Control(down::Body::ProbeNow(probe)) if probe.nonce > 0))
        .await;
    link.say(up::Body::Heartbeat(Heartbeat { seq: 77, echo: false })).await;
    let echo = Heard::Control(down::Body::Heartbeat(Heartbeat { seq: 77, echo: true }));
    supervisor.hears(|heard| *heard == echo).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let beat = |heard: &Heard| matches!(heard, Heard::Control(down::Body::Heartbeat(beat)) if !beat.echo);
    assert!(!supervisor.heard_so_far().iter().any(beat), "no beats while nobody is attached");
}

#[tokio::test(start_paused = true)]
async fn a_new_socket_is_counted_and_is_the_last_that_happened_to_the_path() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox(BOX).await;
    let link = supervisor.attach().await;
    let session = world.session(BOX, 1).await;
    let told = session.to_api();
    assert_eq!((told.rebinds, told.last_path_change.as_str()), (0, "dialled: start"));
    let reason = "network changed:\u{1b}[2J interface 2".to_owned();
    link.say(up::Body::Rebound(Rebound { rebinds: 3, reason })).await;
    // Whatever is said later is read later.
    link.say(up::Body::Heartbeat(Heartbeat { seq: 1, echo: false })).await;
    let echo = Heard::Control(down::Body::Heartbeat(Heartbeat { seq: 1, echo: true }));
    supervisor.hears(|heard| *heard == echo).await;
    let told = session.to_api();
    assert_eq!(told.rebinds, 3);
    assert!(told.last_path_change.starts_with("rebound: network changed"), "{}", told.last_path_change);
    assert!(!told.last_path_change.contains(char::is_control), "{:?}", told.last_path_change);
    assert!(told.last_path_change_at.is_some());
}

#[tokio::test(start_paused = true)]
async fn closing_a_session_is_heard_at_once_here_and_with_its_code_there() {
    let world = FakeWorld::new().await;
    let link = world.sandbox(BOX).await.attach().await;
    let session = world.session(BOX, 1).await;
    session.close(CloseCode::RESET_ON_REQUEST, "a test");
    session.close(CloseCode::INTERNAL, "the first reason stays");
    assert!(session.token().is_cancelled());
    assert_eq!(session.lost().unwrap().code(), Some(CloseCode::RESET_ON_REQUEST));
    assert_eq!(link.connection.closed().await.code(), Some(CloseCode::RESET_ON_REQUEST));
}

#[tokio::test(start_paused = true)]
async fn a_dead_connection_is_lost_after_the_idle_timeout() {
    let world = FakeWorld::new().await;
    let link = world.sandbox(BOX).await.attach().await;
    let session = world.session(BOX, 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.wire.cut(link.address);
    let at = Instant::now();
    assert_eq!(session.closed().await.label(), "TIMED_OUT");
    let took = at.elapsed();
    assert!(took <= Duration::from_secs(25) && took >= Duration::from_secs(14), "{took:?}");
}
