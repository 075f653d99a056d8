//! Real rules between real network namespaces: a node, pods behind veth pairs, a client outside. Needs root and nftables
//! in the kernel. The namespaces have no names and end with their threads.
#![allow(clippy::unwrap_used)] // a test as a whole

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Sender, TryRecvError, channel};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use proxy::model::{Backend, Front, Masquerade, Model, PodNetwork, Protocol, Target};
use proxy::nft;
use serde_json::json;
use testkit::fake_api::FakeApi;
use tokio_util::sync::CancellationToken;

const PODS: PodNetwork = PodNetwork { base: Ipv4Addr::new(10, 244, 0, 0), prefix: 16 };
const CLUSTER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
const TIMEOUT: Duration = Duration::from_secs(2);

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace that lives as long as its thread.
struct Space {
    jobs: Sender<Job>,
    address: Ipv4Addr,
}

impl Space {
    /// Makes one with `address`, connected to the caller's.
    fn new(address: Ipv4Addr) -> Self {
        let (jobs, todo) = channel::<Job>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(nix::unistd::gettid()).unwrap();
            for job in todo {
                job();
            }
        });
        let thread = told.recv().unwrap();
        let link = format!("to-{}", address.octets()[3]);
        ip(&format!("link add {link} type veth peer name eth0 netns {thread}"));
        ip(&format!("addr add 169.254.1.1/32 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("route add {address}/32 dev {link}"));
        let space = Self { jobs, address };
        space.run(move || {
            ip("link set lo up");
            ip(&format!("addr add {address}/32 dev eth0"));
            ip("link set eth0 up");
            ip("route add 169.254.1.1 dev eth0");
            ip("route add default via 169.254.1.1 dev eth0");
        });
        space
    }

    /// Does something in there.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.jobs.send(Box::new(move || tell.send(job()).unwrap())).unwrap();
        told.recv().unwrap()
    }

    /// Serves TCP and UDP; each answer says which pod it is and who asked.
    fn serve(&self) -> Target {
        let address = self.address;
        let own = address.octets()[3];
        self.run(move || {
            let listener = TcpListener::bind((address, 8080)).unwrap();
            let socket = UdpSocket::bind((address, 8080)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let Ok(SocketAddr::V4(peer)) = stream.peer_addr() else { continue };
                    let [a, b, c, d] = peer.ip().octets();
                    // A client that goes early is none of the server's business.
                    let _ = stream.write_all(&[own, a, b, c, d]);
                }
            });
            std::thread::spawn(move || {
                let mut question = [0; 9];
                while let Ok((_, client)) = socket.recv_from(&mut question) {
                    socket.send_to(&[own], client).unwrap();
                }
            });
        });
        Target { address, port: 8080 }
    }
}

/// Which pod answers, and whom it sees.
fn ask(address: Ipv4Addr, port: u16) -> std::io::Result<(u8, Ipv4Addr)> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    let [pod, a, b, c, d] = answer;
    Ok((pod, Ipv4Addr::new(a, b, c, d)))
}

fn ask_often(address: Ipv4Addr, port: u16) -> Vec<(u8, Ipv4Addr)> {
    (0..30).map(|_| ask(address, port).unwrap()).collect()
}

fn model(targets: &[&Target], affinity_s: Option<u32>, node_port: Masquerade) -> Model {
    let targets: Vec<Target> = targets.iter().copied().cloned().collect();
    let backend = Backend { targets, affinity_s, masquerade: Masquerade::Outsiders };
    let fronts = [
        (Front::Address(CLUSTER, Protocol::Tcp, 80), backend.clone()),
        (Front::Address(CLUSTER, Protocol::Udp, 53), backend.clone()),
        (Front::NodePort(Protocol::Tcp, 30080), Backend { masquerade: node_port, ..backend }),
    ];
    Model { fronts: fronts.into() }
}

fn rules() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the kernel calls our table, a new name for each one.
fn table_handle() -> String {
    let listing = ["-j", "list", "tables"];
    let output = Command::new("nft").args(listing).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The rules in the kernel, changed step by step as the daemon does.
struct Kernel(Option<Model>);

impl Kernel {
    fn set(&mut self, model: Model) {
        proxy::write(self.0.as_ref(), &model, PODS).unwrap();
        self.0 = Some(model);
    }
}

/// Moves the calling thread, and what it starts, into a node of its own.
fn node() {
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
    ip("link set lo up");
    ip(&format!("addr add {NODE}/32 dev lo"));
    ip(&format!("route add 10.96.0.0/16 dev lo src {NODE}"));
    proxy::routes::forward().unwrap();
}

fn both_answer(answers: &[(u8, Ipv4Addr)]) -> bool {
    answers.iter().any(|a| a.0 == 5) && answers.iter().any(|a| a.0 == 6)
}

#[test]
fn needs_root_and_nftables_services_reach_their_pods_and_refuse_without() {
    node();
    let (five, six) = (Space::new([10, 244, 0, 5].into()), Space::new([10, 244, 0, 6].into()));
    let client = Space::new(CLIENT);
    let (one, two) = (five.serve(), six.serve());
    let mut kernel = Kernel(None);

    kernel.set(model(&[&one, &two], None, Masquerade::Always));
    assert!(both_answer(&ask_often(CLUSTER, 80)), "{}", rules());
    assert!(both_answer(&ask_often(NODE, 30080)), "{}", rules());

    // From a pod, which may reach itself; the other pod sees who asks.
    let answers = five.run(|| ask_often(CLUSTER, 80));
    assert!(both_answer(&answers), "{answers:?}");
    assert!(answers.iter().all(|(pod, seen)| *pod == 5 || *seen == five.address), "{answers:?}");

    // From outside, with the node's address or with the client's own.
    let answers = client.run(|| ask_often(NODE, 30080));
    assert!(both_answer(&answers) && answers.iter().all(|a| a.1 != CLIENT), "{answers:?}");
    kernel.set(model(&[&one, &two], None, Masquerade::Never));
    let answers = client.run(|| ask_often(NODE, 30080));
    assert!(both_answer(&answers) && answers.iter().all(|a| a.1 == CLIENT), "{answers:?}");

    kernel.set(model(&[&one], None, Masquerade::Always));
    assert!(ask_often(CLUSTER, 80).iter().all(|a| a.0 == 5));
    kernel.set(model(&[], None, Masquerade::Always));
    for (address, port) in [(CLUSTER, 80), (NODE, 30080)] {
        for error in [ask(address, port), client.run(move || ask(address, port))] {
            let kind = error.unwrap_err().kind();
            assert_eq!(kind, std::io::ErrorKind::ConnectionRefused, "{}", rules());
        }
    }
    kernel.set(model(&[&two], None, Masquerade::Always));
    assert!(ask_often(CLUSTER, 80).iter().all(|a| a.0 == 6));
    // A restart replaces everything at once.
    let mut kernel = Kernel(None);
    kernel.set(model(&[&one], None, Masquerade::Always));
    assert!(ask_often(CLUSTER, 80).iter().all(|a| a.0 == 5));

    nft::cleanup().unwrap();
    assert_eq!(rules().trim(), "");
}

#[test]
fn needs_root_and_nftables_a_client_keeps_its_pod() {
    node();
    let spaces = [5, 6, 7].map(|last| Space::new([10, 244, 0, last].into()));
    let [one, two, three] = spaces.each_ref().map(Space::serve);
    let client = Space::new(CLIENT);
    let mut kernel = Kernel(None);
    kernel.set(model(&[&one, &two], Some(600), Masquerade::Always));
    let first = ask(CLUSTER, 80).unwrap().0;
    assert!(ask_often(CLUSTER, 80).iter().all(|a| a.0 == first), "{}", rules());
    let outside = client.run(|| ask(NODE, 30080)).unwrap().0;
    assert!(client.run(|| ask_often(NODE, 30080)).iter().all(|a| a.0 == outside));

    // A third pod does not disturb them.
    kernel.set(model(&[&one, &two, &three], Some(600), Masquerade::Always));
    assert!(ask_often(CLUSTER, 80).iter().all(|a| a.0 == first), "{}", rules());

    // Without its pod a client gets another, and keeps that.
    kernel.set(model(&[&three], Some(600), Masquerade::Always));
    assert!(ask_often(CLUSTER, 80).iter().all(|a| a.0 == 7), "{}", rules());
    kernel.set(model(&[&one, &two, &three], Some(600), Masquerade::Always));
    assert!(ask_often(CLUSTER, 80).iter().all(|a| a.0 == 7), "{}", rules());
    nft::cleanup().unwrap();
}

#[test]
fn needs_root_and_nftables_a_udp_client_follows_its_service() {
    node();
    let (five, six) = (Space::new([10, 244, 0, 5].into()), Space::new([10, 244, 0, 6].into()));
    let (one, two) = (five.serve(), six.serve());
    let mut kernel = Kernel(None);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let ask = || {
        socket.send_to(b"?", (CLUSTER, 53)).unwrap();
        let mut answer = [0];
        socket.recv(&mut answer).unwrap_or_else(|error| panic!("{error}\n{}", rules()));
        answer[0]
    };
    kernel.set(model(&[&one], None, Masquerade::Always));
    assert_eq!((ask(), ask()), (5, 5));
    kernel.set(model(&[&two], None, Masquerade::Always));
    assert_eq!((ask(), ask()), (6, 6), "the flow to the pod that is gone is forgotten");
    nft::cleanup().unwrap();
}

/// Runs the daemon against `api` until the future is through, then stops it as `kill -9` would: without any goodbye.
fn with_daemon<T>(api: &FakeApi, until: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = proxy::Config { node_name: "n1".into(), ..proxy::Config::default() };
    let ctx = daemon::Context::new(CancellationToken::new());
    runtime.block_on(async {
        let (channel, inner) = (api.channel(), ctx.clone());
        ctx.tasks.part("proxy", async move { proxy::start(&config, channel, inner).await });
        until.await
    })
}

/// Waits until the Service answers, or no longer does.
async fn answers(wanted: bool) {
    for _ in 0..200 {
        // Off the thread on which the daemon runs.
        let answer = tokio::task::spawn_blocking(|| ask(CLUSTER, 80)).await.unwrap();
        if answer.is_ok() == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}", rules());
}

#[test]
fn needs_root_and_nftables_the_daemon_follows_the_objects_and_restarts_without_a_gap() {
    node();
    let five = Space::new([10, 244, 0, 5].into());
    five.serve();
    let api = FakeApi::new();
    let spec = json!({"clusterIP": CLUSTER, "ports": [{"port": 80}]});
    let service = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec});
    let slice = |ready: bool| {
        let labels = json!({"kubernetes.io/service-name": "web"});
        json!({
            "metadata": {"name": "web-1", "namespace": "ns", "labels": labels},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
            "endpoints": [{"addresses": [five.address], "conditions": {"ready": ready}}]
        })
    };
    api.put("", "services", service);
    api.put("discovery.k8s.io", "endpointslices", slice(false));
    with_daemon(&api, async {
        answers(false).await;
        api.put("discovery.k8s.io", "endpointslices", slice(true));
        answers(true).await;
    });

    // The rules outlive the daemon, and its successor replaces them in one step.
    let (stop, stopped) = channel::<()>();
    let client = std::thread::spawn(move || {
        let mut asked = 0;
        while let Err(TryRecvError::Empty) = stopped.try_recv() {
            ask(CLUSTER, 80).unwrap();
            asked += 1;
        }
        asked
    });
    for _ in 0..10 {
        let before = table_handle();
        with_daemon(&api, async {
            while table_handle() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    drop(stop);
    assert!(client.join().expect("no request fails") > 0);
    nft::cleanup().unwrap();
}

#[test]
fn needs_root_and_nftables_many_services_and_many_pods_fit() {
    const SERVICES: u16 = 2000;
    node();
    let five = Space::new([10, 244, 0, 5].into());
    let pod = five.serve();
    let target = |n: u16| {
        let [high, low] = n.to_be_bytes();
        Target { address: [10, 244, high + 1, low].into(), port: 8080 }
    };
    let mut many = model(&[&pod], None, Masquerade::Always);
    for n in 0..SERVICES {
        let [high, low] = n.to_be_bytes();
        let front = Front::Address([10, 96, high + 1, low].into(), Protocol::Tcp, 80);
        let targets = vec![target(n), pod.clone()];
        many.fronts.insert(front, Backend { targets, ..Backend::default() });
    }
    let wide = Front::Address(CLUSTER, Protocol::Tcp, 81);
    let targets = (0..500).map(target).collect();
    many.fronts.insert(wide, Backend { targets, ..Backend::default() });
    let mut kernel = Kernel(None);
    kernel.set(many.clone());
    assert_eq!(ask(CLUSTER, 80).unwrap().0, 5);
    let listed = rules();
    assert!(listed.contains("10.244.2.243 . 8080"), "the last of 500 targets is there");

    // One change among many, then all gone at once.
    many.fronts.insert(wide, Backend { targets: vec![pod.clone()], ..Backend::default() });
    kernel.set(many);
    assert_eq!(ask(CLUSTER, 81).unwrap().0, 5);
    kernel.set(Model::default());
    assert!(!rules().contains("svc-"));
    nft::cleanup().unwrap();
}
