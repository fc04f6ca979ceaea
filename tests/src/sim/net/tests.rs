//! The network in memory: that it does to datagrams what it says.

use std::{future::poll_fn, time::Duration};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn send(socket: &SimSocket, to: SocketAddr, contents: &[u8]) {
    let transmit = Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: None };
    socket.try_send(&transmit).unwrap();
}

async fn receive(socket: &SimSocket) -> (SocketAddr, Vec<u8>) {
    let mut buffer = [0; 2000];
    let mut meta = [RecvMeta::default()];
    let count =
        poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)).await.unwrap();
    assert_eq!(count, 1);
    (meta[0].addr, buffer[..meta[0].len].to_vec())
}

async fn nothing_within(socket: &SimSocket, time: Duration) {
    assert!(tokio::time::timeout(time, receive(socket)).await.is_err());
}

struct Pair {
    net: Net,
    client: HostId,
    inside: Arc<SimSocket>,
    server: Arc<SimSocket>,
    server_address: SocketAddr,
}

/// A client behind a NAT box and a server.
fn pair() -> Pair {
    let net = Net::new(1);
    let (client, server) = (net.host(ip("10.0.0.2")), net.host(ip("198.51.100.1")));
    net.nat(client, ip("203.0.113.1"), nat::IDLE);
    net.impair(client, Way::Both, Impairments::good());
    let (inside, server) = (net.bind(client, 0).unwrap(), net.bind(server, 7443).unwrap());
    let server_address = server.local_addr().unwrap();
    Pair { net, client, inside, server, server_address }
}

#[tokio::test(start_paused = true)]
async fn packets_go_there_and_back_in_the_time_of_their_lines() {
    let Pair { inside, server, server_address, .. } = pair();
    let start = Instant::now();
    send(&inside, server_address, b"hello");
    let (from, data) = receive(&server).await;
    assert_eq!((from.ip(), &data[..]), (ip("203.0.113.1"), &b"hello"[..]));
    assert_eq!(start.elapsed(), Duration::from_millis(5));
    send(&server, from, b"welcome");
    assert_eq!(receive(&inside).await, (server_address, b"welcome".to_vec()));
    assert_eq!(start.elapsed(), Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn a_strangers_packets_do_not_get_in() {
    let Pair { net, client, inside, server, server_address } = pair();
    send(&inside, server_address, b"hello");
    let (from, _) = receive(&server).await;
    let stranger = net.bind(net.host(ip("198.51.100.66")), 7443).unwrap();
    send(&stranger, from, b"let me in");
    nothing_within(&inside, Duration::from_secs(1)).await;
    assert_eq!(net.counts(client).nat.unsolicited, 1);
}

#[tokio::test(start_paused = true)]
async fn a_blackhole_swallows_one_way() {
    let Pair { net, client, inside, server, server_address } = pair();
    send(&inside, server_address, b"1");
    let (from, _) = receive(&server).await;
    net.blackhole(client, Way::Down, true);
    send(&server, from, b"2");
    nothing_within(&inside, Duration::from_secs(1)).await;
    send(&inside, server_address, b"3");
    assert_eq!(receive(&server).await.1, b"3");
    net.blackhole(client, Way::Down, false);
    send(&server, from, b"4");
    assert_eq!(receive(&inside).await.1, b"4");
}

#[tokio::test(start_paused = true)]
async fn a_dead_socket_is_silent_and_its_port_is_free() {
    let Pair { net, inside, server, server_address, .. } = pair();
    let host = server.host;
    net.kill_sockets(host);
    send(&inside, server_address, b"anybody?");
    nothing_within(&server, Duration::from_secs(1)).await;
    let successor = net.bind(host, 7443).unwrap();
    drop(server);
    send(&inside, server_address, b"anybody?");
    let (from, _) = receive(&successor).await;
    send(&successor, from, b"yes");
    assert_eq!(receive(&inside).await.1, b"yes");
}

#[tokio::test(start_paused = true)]
async fn sockets_follow_their_hosts_address() {
    let net = Net::new(1);
    let (a, b) = (net.host(ip("10.0.0.1")), net.host(ip("10.0.0.2")));
    let (socket, other) = (net.bind(a, 0).unwrap(), net.bind(b, 7).unwrap());
    net.readdress(a, ip("10.0.0.9"));
    send(&socket, "10.0.0.2:7".parse().unwrap(), b"x");
    assert_eq!(receive(&other).await.0, socket.local_addr().unwrap());
    assert_eq!(socket.local_addr().unwrap().ip(), ip("10.0.0.9"));
}

#[tokio::test(start_paused = true)]
async fn a_network_that_nobody_holds_ends_its_courier() {
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    let pair = pair();
    assert_eq!(metrics.num_alive_tasks(), before + 1);
    drop(pair);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(metrics.num_alive_tasks(), before);
}
