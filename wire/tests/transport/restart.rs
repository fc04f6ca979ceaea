//! A gateway that is killed and started again: with its old keys it tells its supervisors at once that it does not
//! know them any more; with other keys it cannot.

use std::{net::SocketAddr, time::Duration};

use holdfast_wire::transport::{Connection, Dialer, Listener, Lost, Profile, Role, ServerKeys};
use tokio::{runtime::Runtime, time::Instant};

use crate::pair::{Authority, SERVER_NAME, accept, loopback, soon};

/// The supervisor speaks so often: it learns of the restart with its next packet.
const KEEP_ALIVE: Duration = Duration::from_millis(200);
/// Without a reset it notices by silence alone, after this and a keepalive.
const IDLE: Duration = Duration::from_secs(3);

/// A gateway in a runtime of its own, which can be killed: its tasks stop where they are, and not a packet goes
/// out any more.
struct Gateway {
    runtime: Runtime,
    listener: Listener,
    address: SocketAddr,
}

impl Gateway {
    fn start(authority: &Authority, secret: u8, port: u16) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let guard = runtime.enter();
        let profile = Profile { idle_timeout: IDLE, ..Profile::new(Role::Gateway) };
        let keys = ServerKeys::derive(&[secret; 32]);
        let listener = Listener::bind(loopback(port), authority.server_tls(), &keys, profile).unwrap();
        let address = listener.endpoint().local_address().unwrap();
        drop(guard);
        Self { runtime, listener, address }
    }

    /// Ends as by SIGKILL.
    async fn kill(self, connection: Connection) {
        let Self { runtime, listener, .. } = self;
        // Its drivers are gone first, so that dropping the handles has nobody to send a goodbye.
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(10))).await.unwrap();
        drop((connection, listener));
    }
}

/// How a supervisor's connection ends, and after how long, when its gateway is killed and started with a secret.
async fn after_a_restart_with(secret: u8) -> (Lost, Duration) {
    let authority = Authority::new();
    let first = Gateway::start(&authority, 1, 0);
    let address = first.address;
    let profile = Profile { keep_alive: KEEP_ALIVE, idle_timeout: IDLE, ..Profile::new(Role::Supervisor) };
    let dialer = Dialer::bind(loopback(0), authority.client_tls(), profile).unwrap();
    let (supervisor, gateway) =
        tokio::join!(soon("the dial", dialer.dial(address, SERVER_NAME)), accept(&first.listener));
    let supervisor = supervisor.unwrap();

    first.kill(gateway).await;
    assert_eq!(supervisor.lost(), None, "a killed gateway says nothing");
    let second = Gateway::start(&authority, secret, address.port());
    let restarted = Instant::now();
    let lost = soon("the end", supervisor.closed()).await;
    let took = restarted.elapsed();
    tokio::task::spawn_blocking(move || drop(second)).await.unwrap();
    (lost, took)
}

#[tokio::test]
async fn a_gateway_restarted_with_its_keys_is_noticed_with_the_next_packet() {
    let (lost, took) = after_a_restart_with(1).await;
    assert_eq!(lost, Lost::Reset);
    // A keepalive, and what a busy machine may add; far from the idle timeout.
    assert!(took < KEEP_ALIVE + Duration::from_secs(1), "it took {took:?}");
}

#[tokio::test]
async fn a_gateway_restarted_with_other_keys_is_noticed_by_silence_alone() {
    let (lost, took) = after_a_restart_with(2).await;
    assert_eq!(lost, Lost::TimedOut);
    assert!(took > Duration::from_secs(1), "it took {took:?}");
}
