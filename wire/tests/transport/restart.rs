//! A gateway that is killed and started again: with its old keys it tells its supervisors at once that it does not
//! know them any more; with other keys it cannot.

use std::{net::SocketAddr, time::Duration};

use holdfast_wire::transport::{Dialer, Listener, Lost, Profile, Role, ServerKeys};
use tokio::{
    runtime::{Builder, Runtime},
    time::Instant,
};

use crate::pair::{Authority, SERVER_NAME, loopback, soon};

/// The supervisor speaks so often: it learns of the restart with its next packet.
const KEEP_ALIVE: Duration = Duration::from_millis(200);
/// Without a reset it notices by silence alone, after this and a keepalive.
const IDLE: Duration = Duration::from_secs(6);

/// A gateway in a runtime of its own, which can be killed: its tasks stop where they are, and not a packet goes
/// out any more.
struct Gateway {
    runtime: Runtime,
    address: SocketAddr,
}

impl Gateway {
    /// Starts it. It accepts connections and keeps them, for as long as it lives.
    fn start(authority: &Authority, secret: u8, port: u16) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let guard = runtime.enter();
        let profile = Profile { idle_timeout: IDLE, ..Profile::new(Role::Gateway) };
        let keys = ServerKeys::derive(&[secret; 32]);
        let listener = Listener::bind(loopback(port), authority.server_tls(), &keys, profile).unwrap();
        let address = listener.endpoint().local_address().unwrap();
        drop(guard);
        // In its runtime: a connection's driver lives where the handshake is accepted.
        runtime.spawn(async move {
            let mut kept = Vec::new();
            while let Some(incoming) = listener.accept().await {
                kept.push(incoming.accept().await);
            }
        });
        Self { runtime, address }
    }

    /// Ends as by SIGKILL: all tasks are dropped unpolled, so nobody is left to send a goodbye.
    async fn kill(self) {
        tokio::task::spawn_blocking(move || self.runtime.shutdown_timeout(Duration::from_secs(10)))
            .await
            .unwrap();
    }
}

/// How a supervisor's connection ends, and after how long, when its gateway is killed and started with a secret.
async fn after_a_restart_with(secret: u8) -> (Lost, Duration) {
    let authority = Authority::new();
    let first = Gateway::start(&authority, 1, 0);
    let address = first.address;
    let profile = Profile { keep_alive: KEEP_ALIVE, idle_timeout: IDLE, ..Profile::new(Role::Supervisor) };
    let dialer = Dialer::bind(loopback(0), authority.client_tls(), profile).unwrap();
    let supervisor = soon("the dial", dialer.dial(address, SERVER_NAME)).await.unwrap();

    first.kill().await;
    assert_eq!(supervisor.lost(), None, "a killed gateway says nothing");
    let second = Gateway::start(&authority, secret, address.port());
    let restarted = Instant::now();
    let lost = soon("the end", supervisor.closed()).await;
    let took = restarted.elapsed();
    second.kill().await;
    (lost, took)
}

#[tokio::test]
async fn a_gateway_restarted_with_its_keys_is_noticed_with_the_next_packet() {
    let (lost, took) = after_a_restart_with(1).await;
    assert_eq!(lost, Lost::Reset);
    // A keepalive, and what a busy machine may add (it sends again after twice the time that it found nobody); far
    // from the idle timeout.
    assert!(took < IDLE / 2, "it took {took:?}");
}

#[tokio::test]
async fn a_gateway_restarted_with_other_keys_is_noticed_by_silence_alone() {
    let (lost, took) = after_a_restart_with(2).await;
    assert_eq!(lost, Lost::TimedOut);
    assert!(took > Duration::from_secs(1), "it took {took:?}");
}
