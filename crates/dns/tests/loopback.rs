//! The running server, fed by an API server in memory and asked over loopback.
#![allow(clippy::unwrap_used)] // a test as a whole

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use daemon::Context;
use dns::Config;
use serde_json::{Value, json};
use testkit::fake_api::FakeApi;
use tokio_util::sync::CancellationToken;

const A: u16 = 1;
const TIMEOUT: Duration = Duration::from_secs(5);
const TRIES: usize = 4;

/// What the header of an answer says, and the IPv4 addresses found in it.
#[derive(Debug, PartialEq)]
struct Said {
    code: u8,
    authoritative: bool,
    truncated: bool,
    answers: u16,
    addresses: Vec<[u8; 4]>,
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet
}

fn read(answer: &[u8], asked: &[u8]) -> Said {
    assert_eq!(answer[..2], asked[..2], "the id comes back");
    let answers = u16::from_be_bytes([answer[6], answer[7]]);
    let mut addresses = Vec::new();
    let mut at = asked.len();
    for _ in 0..answers {
        while answer[at] != 0 && answer[at] & 0xc0 == 0 {
            at += usize::from(answer[at]) + 1;
        }
        at += if answer[at] == 0 { 1 } else { 2 };
        let kind = u16::from_be_bytes([answer[at], answer[at + 1]]);
        let length = usize::from(u16::from_be_bytes([answer[at + 8], answer[at + 9]]));
        at += 10;
        if kind == A {
            addresses.push(answer[at..at + 4].try_into().unwrap());
        }
        at += length;
    }
    addresses.sort_unstable();
    Said {
        code: answer[3] & 15,
        authoritative: answer[2] & 4 != 0,
        truncated: answer[2] & 2 != 0,
        answers,
        addresses,
    }
}

fn by_udp(server: SocketAddr, name: &str, kind: u16) -> Said {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let asked = question(name, kind);
    let mut buffer = [0; 2000];
    // Packets may be lost on a busy machine, and a resolver asks again.
    for _ in 0..TRIES {
        socket.send_to(&asked, server).unwrap();
        if let Ok(length) = socket.recv(&mut buffer) {
            return read(&buffer[..length], &asked);
        }
    }
    panic!("{name}: no answer");
}

fn by_tcp(server: SocketAddr, name: &str, kind: u16) -> Said {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let asked = question(name, kind);
    stream.write_all(&u16::try_from(asked.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&asked).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut buffer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut buffer).unwrap();
    read(&buffer, &asked)
}

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Another DNS server, which knows every name to be 192.0.2.7.
fn other_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            // The question without its additional section, which begins after name, type and class.
            let end = 12 + buffer[12..length].iter().position(|b| *b == 0).unwrap() + 5;
            let mut answer = buffer[..end].to_vec();
            answer[2] |= 0x80;
            answer[7] = 1;
            answer[11] = 0;
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
            socket.send_to(&answer, client).unwrap();
        }
    });
    address
}

fn web(spec: Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec})
}

fn pods(count: u8) -> Value {
    let endpoints: Vec<Value> =
        (1..=count).map(|n| json!({"addresses": [format!("10.244.0.{n}")]})).collect();
    json!({
        "metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 80}], "endpoints": endpoints
    })
}

struct Running {
    api: FakeApi,
    server: SocketAddr,
    ctx: Context,
}

/// Starts a server that asks `upstream` about other names, and waits until it answers.
async fn run(upstream: Option<SocketAddr>) -> Running {
    let api = FakeApi::new();
    api.put("", "namespaces", json!({"metadata": {"name": "ns"}}));
    api.put("", "services", web(json!({"clusterIP": "10.96.0.9"})));
    let server = free();
    let config = Config {
        listen: server.to_string(),
        publish: false,
        upstream: upstream.iter().map(ToString::to_string).collect(),
        resolv_conf: String::new(),
        ..Config::default()
    };
    let ctx = Context::new(CancellationToken::new());
    let (channel, inner) = (api.channel(), ctx.clone());
    ctx.tasks.part("dns", async move { dns::start(&config, channel, inner).await });
    for _ in 0..100 {
        if tokio::net::TcpStream::connect(server).await.is_ok() {
            return Running { api, server, ctx };
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the server does not come up");
}

/// Asks off the async threads until the answer is as wanted.
async fn until(server: SocketAddr, name: &'static str, wanted: impl Fn(&Said) -> bool) -> Said {
    let mut last = None;
    for _ in 0..100 {
        let said = tokio::task::spawn_blocking(move || by_udp(server, name, A)).await.unwrap();
        if wanted(&said) {
            return said;
        }
        last = Some(said);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{name}: {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_follow_the_objects() {
    let Running { api, server, ctx } = run(None).await;
    let name = "web.ns.svc.cluster.local";
    let said = until(server, "WEB.ns.svc.Cluster.local", |said| said.answers == 1).await;
    assert_eq!((said.code, said.authoritative), (0, true));
    assert_eq!(said.addresses, [[10, 96, 0, 9]]);
    let missing = until(server, "no.ns.svc.cluster.local", |_| true).await;
    assert_eq!((missing.code, missing.authoritative), (3, true), "NXDOMAIN");
    let other = until(server, "example.org", |_| true).await;
    assert_eq!(other.code, 5, "REFUSED without other servers");

    api.put("", "services", web(json!({"clusterIP": "None"})));
    api.put("discovery.k8s.io", "endpointslices", pods(2));
    let said = until(server, name, |said| said.answers == 2).await;
    assert_eq!(said.addresses, [[10, 244, 0, 1], [10, 244, 0, 2]]);

    api.put("discovery.k8s.io", "endpointslices", pods(60));
    until(server, name, |said| said.truncated).await;
    let whole = tokio::task::spawn_blocking(move || by_tcp(server, name, A)).await.unwrap();
    assert_eq!(whole.addresses.len(), 60);

    ctx.shutdown.cancel();
    ctx.tasks.join().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_names_are_asked_of_other_servers() {
    let Running { api, server, ctx } = run(Some(other_server())).await;
    let said = until(server, "example.org", |_| true).await;
    assert_eq!((said.code, said.authoritative), (0, false));
    assert_eq!(said.addresses, [[192, 0, 2, 7]]);

    let alias = json!({"type": "ExternalName", "externalName": "example.org"});
    api.put("", "services", web(alias));
    let said = until(server, "web.ns.svc.cluster.local", |said| said.answers == 2).await;
    assert_eq!(said.addresses, [[192, 0, 2, 7]], "the alias is followed");

    ctx.shutdown.cancel();
    ctx.tasks.join().await.unwrap();
}
