//! Connections: how one begins, moves and ends, and what its other end is told.

use bytes::Bytes;
use holdfast_wire::{
    close::CloseCode,
    transport::{DialError, Listener, Lost, OpenError, Profile, Role, ServerKeys, StreamError},
};

use crate::pair::{Authority, Pair, SERVER_NAME, SOON, accept, dial, loopback, soon};

fn listener(authority: &Authority) -> Listener {
    let keys = ServerKeys::derive(&[2; 32]);
    Listener::bind(loopback(0), authority.server_tls(), &keys, Profile::new(Role::Gateway)).unwrap()
}

#[tokio::test]
async fn a_close_tells_its_code_and_reason_to_everyone_who_waits() {
    let pair = Pair::new().await;
    let (mut send, mut recv) = pair.gateway.open_bi(SOON).await.unwrap();
    send.write(Bytes::from_static(b"!")).await.unwrap();
    let (_back, mut there) = soon("the stream", pair.supervisor.accept_bi()).await.unwrap();
    there.read(1).await.unwrap();

    pair.gateway.close(CloseCode::SUPERSEDED, "epoch 8 attached");
    let lost = Lost::Closed { code: CloseCode::SUPERSEDED, reason: "epoch 8 attached".to_owned() };
    assert_eq!(soon("the end", pair.supervisor.closed()).await, lost);
    assert_eq!(pair.supervisor.lost(), Some(lost.clone()));
    assert_eq!(soon("a read", there.read(1)).await, Err(StreamError::Lost(lost.clone())));
    let opened = pair.supervisor.open_bi(SOON).await.unwrap_err();
    assert_eq!(opened, OpenError::Lost(lost.clone()));
    assert_eq!(pair.supervisor.accept_bi().await.unwrap_err(), lost);
    assert_eq!((lost.label(), lost.code()), ("SUPERSEDED", Some(CloseCode::SUPERSEDED)));
    assert_eq!(lost.to_string(), "closed by the peer: SUPERSEDED (epoch 8 attached)");

    // And here: closed here.
    assert_eq!(soon("a read", recv.read(1)).await, Err(StreamError::Lost(Lost::ClosedHere)));
}

#[tokio::test]
async fn a_reason_without_end_is_cut() {
    let pair = Pair::new().await;
    pair.supervisor.close(CloseCode::SUPERVISOR_STOPPING, &"no ".repeat(300));
    let lost = soon("the end", pair.gateway.closed()).await;
    let Lost::Closed { code, reason } = lost else { panic!("{lost:?}") };
    assert_eq!((code, reason.len()), (CloseCode::SUPERVISOR_STOPPING, 256));
}

#[tokio::test]
async fn a_closing_endpoint_tells_all_its_connections() {
    let pair = Pair::new().await;
    let closing = pair.listener.endpoint().close(CloseCode::GOING_AWAY, "upgrade");
    let ((), lost) = tokio::join!(soon("the close", closing), soon("the end", pair.supervisor.closed()));
    assert_eq!(lost.code(), Some(CloseCode::GOING_AWAY));
    assert!(pair.listener.accept().await.is_none(), "a closed listener accepts nobody");
}

#[tokio::test]
async fn a_forgotten_connection_is_dropped_without_a_reason() {
    let pair = Pair::new().await;
    drop(pair.gateway);
    assert_eq!(soon("the end", pair.supervisor.closed()).await.code(), Some(CloseCode::DROPPED));
}

#[tokio::test]
async fn a_connection_survives_a_new_socket_and_shows_the_new_address() {
    let pair = Pair::new().await;
    let before = pair.gateway.remote_address();
    let (mut send, mut recv) = pair.gateway.open_bi(SOON).await.unwrap();
    send.write(Bytes::from_static(b"before")).await.unwrap();
    let (mut back, mut there) = soon("the stream", pair.supervisor.accept_bi()).await.unwrap();
    assert_eq!(there.read(6).await.unwrap().unwrap(), "before");

    pair.dialer.endpoint().rebind(loopback(0)).unwrap();
    back.write(Bytes::from_static(b"after")).await.unwrap();
    assert_eq!(soon("bytes by the new path", recv.read(5)).await.unwrap().unwrap(), "after");
    assert_ne!(pair.gateway.remote_address(), before);
    assert_eq!(pair.gateway.lost(), None);
}

#[tokio::test]
async fn both_ends_know_whom_they_talk_to() {
    let pair = Pair::new().await;
    assert!(pair.gateway.peer_certificate().is_some() && pair.supervisor.peer_certificate().is_some());
    assert_ne!(pair.gateway.peer_certificate(), pair.supervisor.peer_certificate());
    let path = pair.supervisor.path();
    assert!(path.received_datagrams > 0 && path.sent_bytes > 0 && path.mtu >= 1200, "{path:?}");
}

#[tokio::test]
async fn a_gateway_by_another_name_or_authority_is_not_talked_to() {
    let authority = Authority::new();
    let listener = listener(&authority);
    let (dialled, _) = tokio::join!(dial(authority.client_tls(), &listener, "gateway.elsewhere"), async {
        listener.accept().await.expect("a handshake").accept().await
    },);
    let error = dialled.unwrap_err();
    assert!(matches!(&error, DialError::Lost(Lost::Transport(_))), "{error:?}");

    let (dialled, accepted) =
        tokio::join!(dial(Authority::new().client_tls(), &listener, SERVER_NAME), async {
            listener.accept().await.expect("a handshake").accept().await
        },);
    assert!(matches!(dialled, Err(DialError::Lost(Lost::Transport(_)))));
    assert!(accepted.is_err());
}

#[tokio::test]
async fn a_peer_of_another_protocol_is_refused() {
    let authority = Authority::new();
    let listener = listener(&authority);
    let mut tls = authority.client_tls();
    tls.alpn_protocols = vec![b"holdfast/2".to_vec()];
    let (dialled, accepted) = tokio::join!(dial(tls, &listener, SERVER_NAME), async {
        listener.accept().await.expect("a handshake").accept().await
    });
    assert!(matches!(dialled, Err(DialError::Lost(Lost::Transport(_)))));
    assert!(accepted.is_err());
}

#[tokio::test]
async fn a_refused_handshake_ends_at_once() {
    let authority = Authority::new();
    let listener = listener(&authority);
    let (dialled, ()) = tokio::join!(dial(authority.client_tls(), &listener, SERVER_NAME), async {
        listener.accept().await.expect("a handshake").refuse();
    });
    assert!(matches!(dialled, Err(DialError::Lost(Lost::Transport(_)))));
}

#[tokio::test]
async fn a_peer_that_was_asked_to_prove_its_address_does_and_gets_in() {
    let authority = Authority::new();
    let listener = listener(&authority);
    let (dialled, _gateway) = tokio::join!(dial(authority.client_tls(), &listener, SERVER_NAME), async {
        let first = listener.accept().await.expect("a handshake");
        assert!(!first.address_validated());
        first.retry();
        let second = soon("the second try", listener.accept()).await.expect("a handshake");
        assert!(second.address_validated());
        second.accept().await.expect("the handshake")
    });
    dialled.expect("it gets in at the second try");
}

#[tokio::test]
async fn a_silent_peer_is_lost_at_the_idle_timeout() {
    let authority = Authority::new();
    let brief = std::time::Duration::from_millis(400);
    let keys = ServerKeys::derive(&[3; 32]);
    let profile = Profile { idle_timeout: brief, ..Profile::new(Role::Gateway) };
    let listener = Listener::bind(loopback(0), authority.server_tls(), &keys, profile).unwrap();
    // The supervisor's keepalive is slower than the idle timeout: to the gateway it is silent.
    let (supervisor, gateway) =
        tokio::join!(dial(authority.client_tls(), &listener, SERVER_NAME), accept(&listener));
    let supervisor = supervisor.unwrap();
    assert_eq!(soon("the timeout", gateway.closed()).await, Lost::TimedOut);
    drop(supervisor);
}
