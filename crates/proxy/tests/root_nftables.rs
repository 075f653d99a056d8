//! Real rules in a network namespace of the test's own. Needs root and nftables in the kernel.
#![allow(clippy::unwrap_used)] // a test as a whole

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use proxy::model::{Backend, Front, Model, Protocol, Target};
use proxy::nft::{self, PodNetwork};

const PODS: PodNetwork = PodNetwork { base: Ipv4Addr::new(10, 244, 0, 0), prefix: 16 };
const CLUSTER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A server at a pod's address that answers with its own name.
fn pod(last: u8) -> Target {
    let address = Ipv4Addr::new(10, 244, 0, last);
    ip(&format!("addr add {address}/32 dev lo"));
    let listener = TcpListener::bind((address, 8080)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that goes early is none of the server's business.
            let _ = stream.and_then(|mut s| s.write_all(&[last]));
        }
    });
    Target { address, port: 8080 }
}

fn ask(address: Ipv4Addr, port: u16) -> std::io::Result<u8> {
    let address = SocketAddr::from((address, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

fn model(targets: Vec<Target>, affinity: bool) -> Model {
    let backend = Backend { targets, affinity, masquerade: false };
    let fronts = [
        (Front::Address(CLUSTER, Protocol::Tcp, 80), backend.clone()),
        (Front::NodePort(Protocol::Tcp, 30080), Backend { masquerade: true, ..backend }),
    ];
    Model { fronts: fronts.into() }
}

fn rules() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn services_reach_their_pods_and_refuse_without() {
    // Only this thread, and what it starts, moves into the new namespace.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
    ip("link set lo up");
    ip("addr add 192.168.77.1/32 dev lo");
    ip("route add 10.96.0.0/16 dev lo src 192.168.77.1");
    let (one, two) = (pod(5), pod(6));
    let node = Ipv4Addr::new(192, 168, 77, 1);

    nft::apply(&model(vec![one.clone(), two.clone()], false), PODS).unwrap();
    let answers: Vec<u8> = (0..40).map(|_| ask(CLUSTER, 80).unwrap()).collect();
    assert!(answers.contains(&5) && answers.contains(&6), "{answers:?}\n{}", rules());
    assert!(ask(node, 30080).is_ok(), "{}", rules());

    nft::apply(&model(vec![one.clone(), two], true), PODS).unwrap();
    let answers: Vec<u8> = (0..10).map(|_| ask(CLUSTER, 80).unwrap()).collect();
    assert!(answers.iter().all(|a| *a == answers[0]), "a client keeps its pod: {answers:?}");

    nft::apply(&model(vec![one], false), PODS).unwrap();
    assert!((0..10).all(|_| ask(CLUSTER, 80).unwrap() == 5));

    nft::apply(&model(Vec::new(), false), PODS).unwrap();
    let error = ask(CLUSTER, 80).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{}", rules());

    nft::cleanup().unwrap();
    assert_eq!(rules().trim(), "");
}
