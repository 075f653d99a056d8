//! `ironclad simulate nodes`: nodes that exist only in the API, for load and convergence tests.
//!
//! A test tool in the spirit of kubemark and KWOK: it registers nodes, renews their leases and plays the lives of the pods
//! bound to them ([`play`]). Nothing runs. Without any state of its own it can be killed and started again at any time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use api::quantity::Quantity;
use client::queue::Queue;
use client::transport::{Delete, Patch, Scope, status_patch};
use client::{Cache, Client, Error, Key, Kind, Select};
use daemon::Context;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::layout::Layout;
use crate::target::channel;

mod play;

use play::{Manner, Scene};

/// Nodes of one fleet carry this label with the fleet's prefix.
const FLEET: &str = "ironclad.io/fleet";
const LEASES: &str = "kube-node-lease";
const LEASE_S: i32 = 40;
/// How many connections the calls are spread over.
const CONNECTIONS: usize = 4;
/// How many calls of one sort are under way at a time.
const CALLS_MAX: usize = 128;
/// How many statuses travel in one call.
const BATCH_PODS: usize = 200;
/// How many batches are under way at a time.
const BATCHES_MAX: usize = 8;
const REPORT_PERIOD: Duration = Duration::from_secs(10);
/// Where the addresses of simulated pods begin: 10.128.0.0.
const ADDRESSES: u32 = 0x0a80_0000;
const ADDRESSES_COUNT: u64 = 1 << 23;

/// Things that only seem to be there, to try a cluster out with
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Simulate {
    /// Register nodes that run nothing, and play their pods' lives until interrupted
    Nodes(Nodes),
}

/// Arguments of `simulate nodes`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  ironclad simulate nodes --count 1000
  ironclad simulate nodes --count 50 --zones 3 --start 500ms --failing 5 --seed 7

The nodes and their pods are removed when it is interrupted, unless --keep is given.")]
pub(crate) struct Nodes {
    /// Where the cluster keeps everything [default: /var/lib/ironclad for root]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<std::path::PathBuf>,
    /// How many nodes
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// What their names begin with; the rest is a number
    #[arg(long, default_value = "sim-")]
    prefix: String,
    /// Processors of each
    #[arg(long, default_value = "32")]
    cpu: String,
    /// Memory of each
    #[arg(long, default_value = "128Gi")]
    memory: String,
    /// Pods that each takes
    #[arg(long, default_value_t = 110)]
    pods: u32,
    /// Zones they are spread over
    #[arg(long, default_value_t = 3)]
    zones: usize,
    /// About how long a pod takes to start
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = crate::duration)]
    start: Duration,
    /// About how long a deleted pod takes to end
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = crate::duration)]
    stop: Duration,
    /// About how long a pod of a Job runs
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = crate::duration)]
    run: Duration,
    /// How many of a hundred runs of a container fail
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    failing: u8,
    /// How often each lease is renewed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = crate::duration)]
    renew: Duration,
    /// What delays and failures are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave the nodes behind
    #[arg(long)]
    keep: bool,
}

/// What has been done so far.
#[derive(Default)]
struct Tally {
    renewed: AtomicU64,
    failed: AtomicU64,
    started: AtomicU64,
    ended: AtomicU64,
}

struct Fleet {
    args: Nodes,
    clients: Vec<Client>,
    ctx: Context,
    tally: Tally,
    addresses: AtomicU64,
}

/// Runs the command.
pub(crate) fn main(command: &Simulate) -> anyhow::Result<()> {
    let Simulate::Nodes(args) = command;
    for quantity in [&args.cpu, &args.memory] {
        let parsed = Quantity::parse(quantity);
        ensure!(parsed.is_ok(), "{quantity:?} is no quantity; write 32, 500m or 128Gi");
    }
    ensure!(args.zones > 0, "--zones must be at least 1");
    ensure!(!args.renew.is_zero(), "--renew must be longer than nothing");
    let layout = Layout::new(args.data_dir.as_deref());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let ctx = Context::new(CancellationToken::new());
        let clients =
            (0..CONNECTIONS).map(|_| Ok(Client::new(channel(&layout)?, "ironclad-fleet")));
        let fleet = Arc::new(Fleet {
            args: args.clone(),
            clients: clients.collect::<anyhow::Result<_>>()?,
            ctx: ctx.clone(),
            tally: Tally::default(),
            addresses: AtomicU64::new(0),
        });
        let done = tokio::select! {
            done = fleet.run() => done,
            () = daemon::signalled() => Ok(()),
        };
        ctx.shutdown.cancel();
        if !args.keep {
            fleet.leave().await?;
        }
        done
    });
    runtime.shutdown_background();
    result
}

impl Fleet {
    async fn run(&self) -> anyhow::Result<()> {
        let began = self.ctx.clock.monotonic();
        let indexes = futures::stream::iter(0..self.args.count);
        let mut registering = indexes.map(|index| self.register(index)).buffer_unordered(CALLS_MAX);
        while let Some(result) = registering.next().await {
            result.context("register a node")?;
        }
        let took = self.ctx.clock.monotonic().saturating_sub(began);
        crate::say!("{} nodes registered in {took:.1?}", self.args.count);
        tokio::join!(self.renew(), self.play(), self.report());
        Ok(())
    }

    fn client(&self, index: usize) -> &Client {
        &self.clients[index % self.clients.len()]
    }

    fn name(&self, index: usize) -> String {
        format!("{}{index}", self.args.prefix)
    }

    /// The prefix as labels allow it.
    fn label(&self) -> &str {
        self.args.prefix.trim_matches(|c: char| !c.is_ascii_alphanumeric())
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
        let number = node.strip_prefix(self.args.prefix.as_str());
        number.and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| n < self.args.count)
    }

    async fn register(&self, index: usize) -> Result<(), Error> {
        let (client, now) = (self.client(index), self.ctx.clock.now());
        let node = match client.create::<Node>(&self.node(index, now)).await {
            Err(error) if error.is_already_exists() => {
                client.get::<Node>("", &self.name(index)).await?
            }
            other => other?,
        };
        match client.create::<Lease>(&self.lease(index, &node, now)).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    fn node(&self, index: usize, now: Timestamp) -> Node {
        let name = self.name(index);
        let resources = json!({"cpu": self.args.cpu, "memory": self.args.memory, "pods": self.args.pods.to_string()});
        let condition = |kind: &str, holds: bool, reason: &str| {
            json!({"type": kind, "status": if holds { "True" } else { "False" }, "reason": reason,
                "lastHeartbeatTime": Time(now), "lastTransitionTime": Time(now)})
        };
        let node = json!({
            "metadata": {"name": name, "labels": {
                FLEET: self.label(),
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": format!("zone-{}", index % self.args.zones),
            }},
            "status": {
                "capacity": resources,
                "allocatable": resources,
                "addresses": [{"type": "Hostname", "address": name}],
                "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "bootID": "", "machineID": "",
                    "systemUUID": "", "kernelVersion": "simulated", "osImage": "simulated",
                    "containerRuntimeVersion": "simulated://1", "kubeletVersion": "v1.36.0", "kubeProxyVersion": ""},
                "conditions": [
                    condition("MemoryPressure", false, "KubeletHasSufficientMemory"),
                    condition("DiskPressure", false, "KubeletHasNoDiskPressure"),
                    condition("PIDPressure", false, "KubeletHasSufficientPID"),
                    condition("Ready", true, "KubeletReady"),
                ],
            },
        });
        serde_json::from_value(node).expect("a node as written above")
    }

    fn lease(&self, index: usize, node: &Node, now: Timestamp) -> Lease {
        let name = self.name(index);
        let lease = json!({
            "metadata": {"name": name, "namespace": LEASES, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid.clone().unwrap_or_default()}
            ]},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_S, "renewTime": MicroTime(now)},
        });
        serde_json::from_value(lease).expect("a lease as written above")
    }

    /// Renews every lease once a period, evenly spread over it.
    async fn renew(&self) {
        let period = self.args.renew;
        let began = self.ctx.clock.monotonic();
        let due = futures::stream::iter(0_u64..).map(|nth| async move {
            let at = began + period.mul_f64(nth as f64 / self.args.count.max(1) as f64);
            tokio::time::sleep(at.saturating_sub(self.ctx.clock.monotonic())).await;
            (nth % self.args.count.max(1) as u64) as usize
        });
        // One after the other they come due; as many as CALLS_MAX are being renewed.
        let renewals = due.buffered(1).map(|index| async move {
            let now = MicroTime(self.ctx.clock.now());
            let patch = Patch::Merge(json!({"spec": {"renewTime": now}}));
            let name = self.name(index);
            let result = self.client(index).patch::<Lease>(LEASES, &name, "", patch).await;
            self.count(&self.tally.renewed, 1, result.map(drop));
        });
        renewals.buffer_unordered(CALLS_MAX).for_each(|()| async {}).await;
    }

    fn count(&self, counter: &AtomicU64, by: u64, result: Result<(), Error>) {
        match result {
            Ok(()) => counter.fetch_add(by, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(%error, "a simulated node's call failed");
                self.tally.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }

    /// Plays the pods that are bound to our nodes.
    async fn play(&self) {
        let parts = [
            "metadata.deletionTimestamp",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.containers",
            "status",
        ];
        let bound = Select::<Pod>::all().fields("spec.nodeName!=").project(&parts);
        let cache = Cache::builder(self.clients[0].clone()).kind::<Pod>(bound).start(&self.ctx);
        let queue = Queue::<Key>::new(self.ctx.clock.clone());
        let manner = Manner {
            seed: self.args.seed,
            start: self.args.start,
            stop: self.args.stop,
            run: self.args.run,
            failing_percent: self.args.failing,
        };
        let heard = queue.clone();
        cache.on_change::<Pod>(move |change| {
            let scene = |pod: &Pod| next_scene(pod, manner);
            let new = change.new_as::<Pod>().and_then(scene);
            if let Some((scene_now, due)) = new
                && change.old_as::<Pod>().and_then(scene).map(|(s, _)| s) != Some(scene_now)
            {
                heard.add_after(change.key.clone(), due);
            }
        });
        cache.synced().await;
        for key in cache.keys("Pod") {
            queue.add(key);
        }
        let batches = futures::stream::unfold(&queue, |queue| async move {
            let mut batch = vec![queue.next().await];
            while batch.len() < BATCH_PODS
                && let Some(key) = queue.next().now_or_never()
            {
                batch.push(key);
            }
            Some((batch, queue))
        });
        let played = batches.map(|batch| self.play_batch(&cache, &queue, manner, batch));
        played.buffer_unordered(BATCHES_MAX).for_each(|()| async {}).await;
    }

    async fn play_batch(&self, cache: &Cache, queue: &Queue<Key>, manner: Manner, batch: Vec<Key>) {
        let now = self.ctx.clock.now();
        let mut patches = Vec::new();
        let mut going: Vec<(Key, String)> = Vec::new();
        for key in &batch {
            let Some(pod) = cache.at::<Pod>(key).filter(|pod| self.is_ours(pod)) else { continue };
            let Some((scene, _)) = next_scene(&pod, manner) else { continue };
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            match play::status(&pod, scene, &self.address(), now) {
                Some(patch) => {
                    let patch = status_patch(&Kind::of::<Pod>(), key, &uid, "", &patch);
                    patches.push((key.clone(), patch));
                }
                None => going.push((key.clone(), uid)),
            }
        }
        let again = |key: &Key, error: &Error| {
            if !error.is_not_found() && !error.is_conflict() {
                queue.retry(key);
            }
        };
        let (keys, patches): (Vec<Key>, Vec<_>) = patches.into_iter().unzip();
        let updates = async {
            if patches.is_empty() {
                return;
            }
            let results = match self.client(keys.len()).update_status(patches).await {
                Ok(results) => results,
                Err(error) => {
                    keys.iter().for_each(|key| again(key, &error));
                    return self.count(&self.tally.started, 0, Err(error));
                }
            };
            for (key, result) in keys.iter().zip(results) {
                if let Err(error) = &result {
                    again(key, error);
                }
                self.count(&self.tally.started, 1, result.map(drop));
            }
        };
        let deletions = futures::stream::iter(going.into_iter().enumerate());
        let deletions = deletions.map(|(index, (key, uid))| async move {
            let how = Delete { uid, grace_period_s: Some(0), ..Delete::default() };
            let result = self.client(index).delete::<Pod>(&key.namespace, &key.name, how).await;
            if let Err(error) = &result {
                again(&key, error);
            }
            self.count(&self.tally.ended, 1, result);
        });
        let deletions = deletions.buffer_unordered(CALLS_MAX / BATCHES_MAX).for_each(|()| async {});
        tokio::join!(updates, deletions);
        batch.iter().for_each(|key| queue.done(key));
    }

    fn address(&self) -> String {
        let nth = self.addresses.fetch_add(1, Ordering::Relaxed) % ADDRESSES_COUNT;
        let nth = u32::try_from(nth).expect("less than the count of addresses");
        std::net::Ipv4Addr::from(ADDRESSES + nth).to_string()
    }

    /// Says now and then how it goes.
    async fn report(&self) {
        let mut before = BTreeMap::new();
        loop {
            tokio::time::sleep(REPORT_PERIOD).await;
            let rows = [
                ("leases renewed", &self.tally.renewed),
                ("statuses written", &self.tally.started),
                ("pods ended", &self.tally.ended),
                ("calls failed", &self.tally.failed),
            ];
            let rates = rows.map(|(name, counter)| {
                let total = counter.load(Ordering::Relaxed);
                let new = total - before.insert(name, total).unwrap_or(0);
                format!("{name} {:.0}/s", new as f64 / REPORT_PERIOD.as_secs_f64())
            });
            crate::say!("{}", rates.join("  "));
        }
    }

    /// Removes the nodes; the pods on them are collected by the cluster.
    async fn leave(&self) -> anyhow::Result<()> {
        let scope = Scope { labels: format!("{FLEET}={}", self.label()), ..Scope::default() };
        let gone = self.clients[0].delete_all_raw(&Kind::of::<Node>(), &scope).await;
        crate::say!("{} nodes removed", gone.context("remove the nodes")?);
        Ok(())
    }
}

/// As [`play::next`]; a pod without a node has no next scene.
fn next_scene(pod: &Pod, manner: Manner) -> Option<(Scene, Duration)> {
    pod.spec.as_ref()?.node_name.as_ref()?;
    play::next(pod, manner)
}
