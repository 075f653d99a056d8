//! How fast the scheduler and the controllers are: `just bench-scheduler`, `just bench-controllers`.
//!
//! Store, API server, scheduler and controllers are processes of their own over TLS, the store on a real disk; nodes are
//! simulated (`ironclad simulate nodes`). Runs in a network namespace of its own, so it needs root. The figures of
//! Kubernetes 1.36 are quoted: it cannot be had here.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a benchmark as a whole

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use client::transport::{Delete, Scope};
use client::{Cache, Client, Kind, Patch, Select};
use daemon::Context;
use futures::StreamExt as _;
use integration_tests::apart::Apart;
use integration_tests::program;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const CREATORS: usize = 64;
const CONTROL_PLANE: [&str; 4] = ["store", "apiserver", "scheduler", "controller-manager"];
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(600);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|w| !w.starts_with("--")).collect();
    // Before there are threads: the namespace is the whole process's, and its children's.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("a network namespace needs root");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    daemon::tls::install_provider();
    let number = |at: usize, or: usize| words.get(at).map_or(or, |word| word.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("| load | Kubernetes 1.36 (quoted) | ours | goal |\n|---|---|---|---|");
    match words.first().map(String::as_str) {
        Some("controllers") => runtime.block_on(controllers()),
        Some("fleet") => {
            runtime.block_on(fleet(number(1, 130_000), number(2, 1000), number(3, 60)))
        }
        _ => {
            let pods = number(2, 5000);
            let sizes = words.get(1).map_or(vec![1000, 5000], |nodes| vec![nodes.parse().unwrap()]);
            for nodes in sizes {
                runtime.block_on(bind(nodes, pods));
            }
        }
    }
}

fn row(load: &str, quoted: &str, ours: &str, goal: &str) {
    println!("| {load} | {quoted} | {ours} | {goal} |");
}

struct Bench {
    apart: Apart,
    pids: Vec<(&'static str, u32)>,
    fleet: Option<Child>,
    clients: Vec<Client>,
    cache: Cache,
    pods: Counts,
    ctx: Context,
}

/// Pods as the watch has shown them.
#[derive(Clone, Default)]
struct Counts {
    there: Arc<AtomicUsize>,
    bound: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
}

impl Bench {
    /// A control plane with `nodes` simulated nodes.
    async fn start(nodes: usize) -> Self {
        let mut apart = Apart::prepare().unwrap();
        let mut pids = Vec::new();
        for name in CONTROL_PLANE {
            let more: &[&str] =
                if name == "controller-manager" { &["pod_cidr=10.0.0.0/8"] } else { &[] };
            pids.push((name, apart.start_as(name, name, more).unwrap()));
        }
        let clients: Vec<Client> = (0..4).map(|_| apart.client().unwrap()).collect();
        let ctx = Context::new(CancellationToken::new());
        let cache = Cache::builder(clients[0].clone())
            .kind::<Pod>(Select::all().project(&["spec.nodeName", "status.phase"]))
            .kind::<Node>(Select::all().project(&["spec.podCIDR"]))
            .start(&ctx);
        let pods = Counts::default();
        let counts = pods.clone();
        cache.on_change::<Pod>(move |change| {
            let node = |pod: &Pod| pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
            let runs = |pod: &Pod| {
                pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running"))
            };
            let (old, new) = (change.old_as::<Pod>(), change.new_as::<Pod>());
            let counted = [
                (&counts.there, old.is_some(), new.is_some()),
                (&counts.bound, old.is_some_and(node), new.is_some_and(node)),
                (&counts.running, old.is_some_and(runs), new.is_some_and(runs)),
            ];
            for (counter, before, after) in counted {
                match (before, after) {
                    (false, true) => drop(counter.fetch_add(1, Ordering::SeqCst)),
                    (true, false) => drop(counter.fetch_sub(1, Ordering::SeqCst)),
                    _ => {}
                }
            }
        });
        cache.synced().await;
        let mut bench = Self { apart, pids, fleet: None, clients, cache, pods, ctx };
        if nodes > 0 {
            bench.simulate(nodes).await;
        }
        bench
    }

    async fn simulate(&mut self, nodes: usize) {
        let dir = self.apart.kubeconfig().unwrap();
        let fleet = Command::new(program("ironclad").unwrap())
            .args(["simulate", "nodes", "--keep", "--start", "0s", "--stop", "0s"])
            .args(["--count", &nodes.to_string(), "--data-dir", &dir.display().to_string()])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.pids.push(("fleet", fleet.id()));
        self.fleet = Some(fleet);
        let ranged = |node: &Node| node.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some());
        let wanted = nodes.min(65_536);
        // Looked at now and then only: so many nodes are not counted quickly.
        let began = Instant::now();
        loop {
            let there = self.cache.list::<Node>();
            if there.len() >= nodes && there.iter().filter(|n| ranged(n)).count() >= wanted {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{} nodes registered", there.len());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }

    /// Waits for what the watch shows; how long it took.
    async fn until(&self, what: &str, holds: impl Fn() -> bool) -> Duration {
        let began = Instant::now();
        let mut changes = self.cache.changes();
        while !holds() {
            assert!(began.elapsed() < PATIENCE, "not in time: {what}");
            for (name, pid) in &self.pids {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                let ended = stat.is_empty() || stat.contains(") Z");
                assert!(!ended, "{name} has ended:\n{}", self.apart.log(name));
            }
            // Nothing may change any more; then look again.
            let changed = tokio::time::timeout(LOOK_AGAIN, changes.changed()).await;
            changed.is_ok_and(|changed| changed.is_err()).then(|| panic!("the watch has ended"));
        }
        began.elapsed()
    }

    async fn until_pods(&self, what: &str, count: &AtomicUsize, wanted: usize) -> Duration {
        self.until(what, || count.load(Ordering::SeqCst) == wanted).await
    }

    /// Processor seconds of each process so far.
    fn cpu(&self) -> Vec<(&'static str, f64)> {
        self.pids.iter().map(|(name, pid)| (*name, cpu_s(*pid))).collect()
    }

    /// Creates pods named by number, as `clients` do side by side.
    async fn create_pods(&self, prefix: &str, count: usize) {
        let created = futures::stream::iter(0..count).map(|nth| async move {
            let pod = pod(&format!("{prefix}-{nth}"));
            self.clients[nth % self.clients.len()].create(&pod).await.unwrap();
        });
        created.buffer_unordered(CREATORS).for_each(|()| async {}).await;
    }

    async fn create(&self, deployment: &Deployment) {
        self.clients[1].create(deployment).await.unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.ctx.shutdown.cancel();
        if let Some(fleet) = &mut self.fleet {
            let _gone = fleet.kill().and_then(|()| fleet.wait());
        }
        // The next one makes it anew.
        let _gone = Command::new("ip").args(["link", "del", "uplink"]).status();
    }
}

fn cpu_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().unwrap()).sum();
    let second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    ticks as f64 / second as f64
}

fn rss_mib(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
}

/// What each process used between two readings, for each of `count`, in microseconds.
fn each(before: &[(&str, f64)], after: &[(&str, f64)], count: usize) -> String {
    let used = before
        .iter()
        .zip(after)
        .map(|((name, from), (_, to))| format!("{name} {:.0}", (to - from) * 1e6 / count as f64));
    used.collect::<Vec<_>>().join(", ")
}

fn template(app: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "containers": [
            {"name": "c", "image": "nothing", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}
        ]},
    })
}

fn pod(name: &str) -> Pod {
    let mut pod = template("bench");
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["namespace"] = json!("default");
    serde_json::from_value(pod).unwrap()
}

fn deployment(name: &str, replicas: usize) -> Deployment {
    let deployment = json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name)},
    });
    serde_json::from_value(deployment).unwrap()
}

/// Pods created and bound, among so many nodes.
async fn bind(nodes: usize, pods: usize) {
    let bench = Bench::start(nodes).await;
    let (before, began) = (bench.cpu(), Instant::now());
    tokio::join!(
        bench.create_pods("p", pods),
        bench.until_pods("pods are bound", &bench.pods.bound, pods)
    );
    let took = began.elapsed();
    let after = bench.cpu();
    let quoted = match nodes {
        1000 => "169/s",
        5000 => "119/s, scheduler 4700 us a pod",
        _ => "",
    };
    let goal = match nodes {
        1000 => "2000/s",
        5000 => "1800/s, scheduler 150 us",
        _ => "",
    };
    let rate = pods as f64 / took.as_secs_f64();
    let load = format!("{nodes} nodes, {pods} pods created and bound");
    row(&load, quoted, &format!("{rate:.0}/s; us a pod: {}", each(&before, &after, pods)), goal);
    bench.until_pods("pods run", &bench.pods.running, pods).await;
}

async fn controllers() {
    thousand().await;
    let bench = Bench::start(1000).await;
    rolled(&bench).await;
    fair(&bench).await;
    drop(bench);
    idle().await;
}

/// One Deployment of a thousand; nothing binds its pods.
async fn thousand() {
    let bench = Bench::start(0).await;
    let began = Instant::now();
    bench.create(&deployment("big", 1000)).await;
    bench.until_pods("pods exist", &bench.pods.there, 1000).await;
    let up = began.elapsed();
    let began = Instant::now();
    let how = Delete { propagation: "Background", ..Delete::default() };
    bench.clients[1].delete::<Deployment>("default", "big", how).await.unwrap();
    bench.until_pods("pods are gone", &bench.pods.there, 0).await;
    let ours = format!("{:.2} s / {:.2} s", up.as_secs_f64(), began.elapsed().as_secs_f64());
    row(
        "Deployment of 1,000 until the pods exist / are gone",
        "3.1 s / 5.0 s",
        &ours,
        "0.3 s / 0.5 s",
    );
}

/// A hundred Deployments of ten, rolled at once.
async fn rolled(bench: &Bench) {
    let all = 0..100;
    for nth in all.clone() {
        bench.create(&deployment(&format!("d{nth}"), 10)).await;
    }
    bench.until_pods("pods run", &bench.pods.running, 1000).await;
    let ctx = bench.ctx.child();
    let seen = Cache::builder(bench.clients[2].clone())
        .kind::<Deployment>(Select::all().project(&[
            "metadata.generation",
            "spec.replicas",
            "status",
        ]))
        .start(&ctx);
    seen.synced().await;
    let (before, began) = (bench.cpu(), Instant::now());
    let patches = futures::stream::iter(all).map(|nth| async move {
        let change =
            json!({"spec": {"template": {"metadata": {"annotations": {"rolled": "yes"}}}}});
        let name = format!("d{nth}");
        let client = &bench.clients[nth % 4];
        client.patch::<Deployment>("default", &name, "", Patch::Merge(change)).await.unwrap();
    });
    patches.buffer_unordered(CREATORS).for_each(|()| async {}).await;
    let rolled = |deployment: &Arc<Deployment>| {
        let Some(status) = &deployment.status else { return false };
        status.observed_generation == deployment.metadata.generation
            && deployment.metadata.generation > Some(1)
            && status.updated_replicas == Some(10)
            && status.replicas == Some(10)
            && status.available_replicas == Some(10)
    };
    let mut changes = seen.changes();
    while !seen.list::<Deployment>().iter().all(rolled) {
        tokio::time::timeout(PATIENCE, changes.changed()).await.expect("rolled").unwrap();
    }
    let took = began.elapsed();
    let used = each(&before, &bench.cpu(), 1000);
    let ours = format!("{:.2} s; us a pod: {used}", took.as_secs_f64());
    row("100 Deployments x 10 rolled at once", "not measured", &ours, "report");
    ctx.shutdown.cancel();
}

/// One Deployment scaled while a thousand others are being created.
async fn fair(bench: &Bench) {
    let alone = scaled(bench, 11).await;
    let burst = async {
        let created = futures::stream::iter(0..1000).map(|nth| async move {
            let deployment = deployment(&format!("burst{nth}"), 1);
            bench.clients[nth % 4].create(&deployment).await.unwrap();
        });
        created.buffer_unordered(CREATORS).for_each(|()| async {}).await;
    };
    let within = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        scaled(bench, 12).await
    };
    let (_, within) = tokio::join!(burst, within);
    let ours =
        format!("{:.0} ms (alone {:.0} ms)", within.as_secs_f64() * 1e3, alone.as_secs_f64() * 1e3);
    row(
        "one Deployment scaled by one in a burst of 1,000 new ones: its pod exists",
        "not measured",
        &ours,
        "report",
    );
}

async fn scaled(bench: &Bench, replicas: usize) -> Duration {
    let scope = Scope { namespace: "default".into(), labels: "app=d0".into(), ..Scope::default() };
    let began = Instant::now();
    let change = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    bench.clients[3].patch::<Deployment>("default", "d0", "", change).await.unwrap();
    while bench.clients[3].list_raw(&Kind::of::<Pod>(), &scope).await.unwrap().0.len() < replicas {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    began.elapsed()
}

/// Memory and processor time with 5,000 nodes and 10,000 pods that nobody touches.
async fn idle() {
    let bench = Bench::start(5000).await;
    bench.create_pods("p", 10_000).await;
    bench.until_pods("pods run", &bench.pods.running, 10_000).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (before, began) = (bench.cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let elapsed = began.elapsed().as_secs_f64();
    let parts = bench.pids.iter().zip(before).map(|((name, pid), (_, from))| {
        let percent = (cpu_s(*pid) - from) / elapsed * 100.0;
        format!("{name} {:.0} MiB {percent:.1} %", rss_mib(*pid))
    });
    let ours = parts.collect::<Vec<_>>().join(", ");
    let load = "10,000 pods on 5,000 nodes that renew their leases, otherwise idle";
    row(load, "controllers and scheduler 680 MiB", &ours, "controllers and scheduler 100 MiB");
}

/// Many nodes, and pods at a fixed rate: how far it gets.
async fn fleet(nodes: usize, rate: usize, seconds: usize) {
    let began = Instant::now();
    let bench = Bench::start(nodes).await;
    let load = format!("{nodes} nodes registered");
    row(&load, "", &format!("{:.0} s", began.elapsed().as_secs_f64()), "");
    let (before, began) = (bench.cpu(), Instant::now());
    let tick = Duration::from_secs(1) / u32::try_from(rate).unwrap();
    let created = futures::stream::iter(0..rate * seconds).map(|nth| {
        let bench = &bench;
        async move {
            let due = began + tick * u32::try_from(nth).unwrap();
            tokio::time::sleep_until(due.into()).await;
            bench.clients[nth % 4].create(&pod(&format!("f-{nth}"))).await.unwrap();
        }
    });
    created.buffer_unordered(1024).for_each(|()| async {}).await;
    let all = rate * seconds;
    bench.until_pods("pods run", &bench.pods.running, all).await;
    let took = began.elapsed().as_secs_f64();
    let parts = bench.pids.iter().zip(before).map(|((name, pid), (_, from))| {
        format!("{name} {:.0} MiB {:.0} %", rss_mib(*pid), (cpu_s(*pid) - from) / took * 100.0)
    });
    let ours =
        format!("{:.0}/s to Running; {}", all as f64 / took, parts.collect::<Vec<_>>().join(", "));
    row(&format!("{rate} pods a second for {seconds} s"), "", &ours, "");
}
