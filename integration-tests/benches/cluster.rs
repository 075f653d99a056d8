//! How quick and how small a one-node cluster is: `just bench-cluster`.
//!
//! Runs in a network namespace of its own, so it needs root, and leaves nothing behind. A pod's start is measured in turns
//! with the same sandbox and container made by hand through CRI: what lies between the two is ours.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a benchmark as a whole

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use client::transport::Delete;
use client::{Cache, Client, Select};
use daemon::Context;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use wire::cri::image_service_client::ImageServiceClient;
use wire::cri::runtime_service_client::RuntimeServiceClient;
use wire::cri::{self, ListImagesRequest};

const STARTS: usize = 5;
const PODS: usize = 15;
const IDLE: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_secs(10);
const DEMO: &str = "ironclad/demo:0.1.0";

fn main() {
    // Before there are threads: the namespace is the whole process's, and its children's.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("a network namespace needs root");
    run("ip", &["link", "set", "lo", "up"]);
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench { dir: dir.path().join("cluster"), program: built("ironclad") };
    println!("figure                                  median       min       max    goal");
    let cold = repeat(STARTS, || {
        bench.down(true);
        bench.up()
    });
    row("ironclad up -> node Ready, first start", &cold, "");
    let warm = repeat(STARTS, || {
        bench.down(false);
        bench.up()
    });
    row("ironclad up -> node Ready, again", &warm, "1500 ms");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(bench.pods());
    bench.idle();
    bench.sizes();
    bench.down(true);
}

struct Bench {
    dir: PathBuf,
    program: PathBuf,
}

impl Bench {
    fn up(&self) -> Duration {
        let began = Instant::now();
        self.ironclad(&["up", "--detach"]);
        began.elapsed()
    }

    fn down(&self, purge: bool) {
        if self.dir.exists() {
            self.ironclad(if purge { &["down", "--purge"] } else { &["down"] });
        }
    }

    fn ironclad(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--data-dir").arg(&self.dir);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn client(&self) -> Client {
        daemon::tls::install_provider();
        let read = |name: &str| std::fs::read_to_string(self.dir.join("pki").join(name)).unwrap();
        let tls = daemon::tls::ClientTls {
            ca: read("ca.crt"),
            identity: Some((read("admin.crt"), read("admin.key"))),
            server_name: None,
        };
        let channel = daemon::channel::connect("https://127.0.0.1:6443", Some(&tls)).unwrap();
        Client::new(channel, "bench")
    }

    /// One pod after another, through the API and by hand in turns.
    async fn pods(&self) {
        let ctx = Context::new(CancellationToken::new());
        let client = self.client();
        let cache = Cache::builder(client.clone())
            .kind::<Pod>(Select::all().namespace("default"))
            .start(&ctx);
        cache.synced().await;
        let mut by_hand = ByHand::connect(&self.dir).await;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for turn in 0..PODS {
            theirs.push(by_hand.start(turn).await);
            ours.push(start(&client, &cache, turn).await);
        }
        row("pod create -> Running", &ours, "");
        row("  the same by hand through CRI", &theirs, "");
        let more: Vec<_> = ours.iter().zip(&theirs).map(|(a, b)| a.saturating_sub(*b)).collect();
        row("  what we add", &more, "100 ms");
        ctx.shutdown.cancel();
    }

    /// Memory and processor time while nothing happens.
    fn idle(&self) {
        std::thread::sleep(SETTLE);
        let processes = self.processes();
        let before: Vec<u64> = processes.iter().map(|(_, pid)| ticks(*pid)).collect();
        std::thread::sleep(IDLE);
        for ((name, pid), before) in processes.iter().zip(before) {
            let second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
            let used = (ticks(*pid) - before) as f64 / second as f64 / IDLE.as_secs_f64() * 100.0;
            let ours = name == "ironclad";
            let (memory_goal, processor_goal) = if ours { ("60 MiB", "0.50 %") } else { ("", "") };
            println!(
                "{:<36} {:>6.1} MiB {memory_goal:>27}",
                format!("idle memory (PSS), {name}"),
                pss_mib(*pid)
            );
            println!(
                "{:<36} {used:>6.2} % {processor_goal:>29}",
                format!("idle processor, {name}")
            );
        }
    }

    /// Our process and the containerd it has started.
    fn processes(&self) -> Vec<(String, u32)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let program =
                line.split(' ').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
            if line.contains(&self.dir.display().to_string())
                && ["ironclad", "containerd"].contains(&program)
            {
                found.push((program.to_owned(), pid));
            }
        }
        found.sort();
        found.reverse();
        found
    }

    fn sizes(&self) {
        let size = std::fs::metadata(&self.program).unwrap().len();
        println!(
            "{:<36} {:>6.1} MiB",
            "size of the binary, ironclad",
            size as f64 / f64::from(1 << 20)
        );
    }
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": DEMO, "imagePullPolicy": "Never"}]},
    }))
    .unwrap()
}

/// From the call that creates a pod to the watch that shows it running.
async fn start(client: &Client, cache: &Cache, turn: usize) -> Duration {
    let mut changes = cache.changes();
    let name = format!("bench-{turn}");
    let began = Instant::now();
    let made = client.create(&pod(&name)).await.unwrap();
    let phase = || {
        let pod = cache.get::<Pod>("default", &name)?;
        pod.status.as_ref()?.phase.clone()
    };
    while phase().as_deref() != Some("Running") {
        changes.changed().await.unwrap();
    }
    let took = began.elapsed();
    let uid = made.metadata.uid.unwrap_or_default();
    let how = Delete { uid, grace_period_s: Some(0), ..Delete::default() };
    client.delete::<Pod>("default", &name, how).await.unwrap();
    while cache.get::<Pod>("default", &name).is_some() {
        changes.changed().await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await; // let the node finish cleaning up
    took
}

/// The runtime without us.
struct ByHand {
    runtime: RuntimeServiceClient<tonic::transport::Channel>,
    image: String,
}

impl ByHand {
    async fn connect(dir: &Path) -> Self {
        let channel = node_agent::runtime::channel(&dir.join("node/containerd/containerd.sock"));
        let mut images = ImageServiceClient::new(channel.clone());
        let listed = images.list_images(ListImagesRequest::default()).await.unwrap().into_inner();
        let demo =
            listed.images.into_iter().find(|i| i.repo_tags.iter().any(|tag| tag.ends_with(DEMO)));
        Self {
            runtime: RuntimeServiceClient::new(channel),
            image: demo.expect("the demo image").id,
        }
    }

    async fn start(&mut self, turn: usize) -> Duration {
        let metadata = cri::PodSandboxMetadata {
            name: format!("by-hand-{turn}"),
            uid: format!("by-hand-{turn}"),
            namespace: "by-hand".into(),
            attempt: 0,
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(metadata),
            linux: Some(cri::LinuxPodSandboxConfig::default()),
            ..Default::default()
        };
        let container = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: self.image.clone(), ..Default::default() }),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        };
        let began = Instant::now();
        let request =
            cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let sandbox =
            self.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let id = self.runtime.create_container(request).await.unwrap().into_inner().container_id;
        self.runtime
            .start_container(cri::StartContainerRequest { container_id: id })
            .await
            .unwrap();
        let took = began.elapsed();
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
        self.runtime.stop_pod_sandbox(request).await.unwrap();
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox };
        self.runtime.remove_pod_sandbox(request).await.unwrap();
        took
    }
}

fn repeat(times: usize, mut once: impl FnMut() -> Duration) -> Vec<Duration> {
    (0..times).map(|_| once()).collect()
}

fn row(name: &str, took: &[Duration], goal: &str) {
    let mut ms: Vec<f64> = took.iter().map(|d| d.as_secs_f64() * 1000.0).collect();
    ms.sort_by(f64::total_cmp);
    let (first, last) = (ms.first().unwrap(), ms.last().unwrap());
    println!("{name:<38} {:>5.0} ms {first:>6.0} ms {last:>6.0} ms {goal:>9}", ms[ms.len() / 2]);
}

/// Processor time a process has used, in the kernel's ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    [11, 12].iter().map(|at| fields[*at].parse::<u64>().unwrap()).sum()
}

fn pss_mib(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// The program as built beside this one.
fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join(name);
    assert!(path.exists(), "{} is not built: run `just bench-cluster`", path.display());
    path
}
