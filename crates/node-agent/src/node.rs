//! This machine as a Node: registration, addresses, capacity, conditions, and the Lease that says it
//! is alive.
//!
//! What is reported is pure over [`Machine`] and the runtime's health; `run` is the loop. Pods are
//! not its business.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::quantity::Quantity;
use client::transport::Patch;
use client::{Cache, Client, Error};
use daemon::{Backoff, Context, jitter};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeSpec, NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use crate::cni;
use crate::pod::spec::{Dns, NodeFacts};
use crate::runtime::{Health, Image, Runtime};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const LEASE_PERIOD: Duration = Duration::from_secs(10);
/// How often the machine is looked at.
const STATUS_PERIOD: Duration = Duration::from_secs(10);
/// How often it is looked at while it is not ready, so that it is ready as soon as it can be.
const EAGER_PERIOD: Duration = Duration::from_millis(100);
/// How old the heartbeats of a status that has not changed may grow.
const REPORT_EVERY: SignedDuration = SignedDuration::from_secs(300);
/// How many images the status names, the largest first.
const IMAGES_MAX: usize = 50;
/// How many names of an image.
const IMAGE_NAMES_MAX: usize = 5;
/// The part of memory and disk below which pods must not go.
const EVICTION_MEMORY_BYTES: i64 = 100 << 20;
/// Upstream keeps a tenth of the disk free; of a large disk that is far more than a machine needs.
const EVICTION_DISK_BYTES_MAX: i64 = 5 << 30;
const KUBELET_VERSION: &str = "v1.36.0";
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// What this node is to the cluster.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Its addresses; the first counts.
    pub ips: Vec<String>,
    /// Labels beside the usual ones.
    pub labels: BTreeMap<String, String>,
    /// Taints it is registered with.
    pub taints: Vec<Taint>,
    /// Port of the node service.
    pub port: u16,
    /// How many pods it takes.
    pub pods_max: i64,
    /// Address of the cluster's DNS, or empty.
    pub cluster_dns: String,
    /// `cluster.local`
    pub cluster_domain: String,
    /// Cgroup of all pods.
    pub cgroup_root: String,
    /// Where logs of pods go.
    pub log_dir: String,
    /// The directory whose file system pods share.
    pub data_dir: PathBuf,
}

/// What the machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Processors.
    pub cpus: i64,
    /// Memory.
    pub memory_bytes: i64,
    /// Memory that is still to be had.
    pub available_bytes: i64,
    /// The disk's size.
    pub disk_bytes: i64,
    /// What of it is free.
    pub disk_free_bytes: i64,
    /// `/etc/machine-id`
    pub machine_id: String,
    /// This boot.
    pub boot_id: String,
    /// The mainboard's id.
    pub system_uuid: String,
    /// `6.1.0-18-amd64`
    pub kernel: String,
    /// `Debian GNU/Linux 12 (bookworm)`
    pub os: String,
    /// Resolver settings of the machine.
    pub resolver: Dns,
}

impl Machine {
    /// Looks at the machine; what cannot be read is left empty. Blocks for a moment.
    #[must_use]
    pub fn read(data_dir: &Path) -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let line = |path: &str| text(path).trim().to_owned();
        let meminfo = text("/proc/meminfo");
        // Before the directory is made, its nearest ancestor is on the same file system.
        let there = data_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        let disk = nix::sys::statvfs::statvfs(there).ok();
        let bytes = |blocks: u64, size: u64| i64::try_from(blocks * size).unwrap_or(i64::MAX);
        let uuid = line("/sys/class/dmi/id/product_uuid");
        let machine_id = line("/etc/machine-id");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as i64),
            memory_bytes: kib(&meminfo, "MemTotal:"),
            available_bytes: kib(&meminfo, "MemAvailable:"),
            disk_bytes: disk.map_or(0, |d| bytes(d.blocks(), d.fragment_size())),
            disk_free_bytes: disk.map_or(0, |d| bytes(d.blocks_available(), d.fragment_size())),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            os: os_name(&text("/etc/os-release")),
            resolver: resolver(&text("/etc/resolv.conf")),
        }
    }

    /// An architecture as images name it.
    #[must_use]
    pub fn architecture() -> &'static str {
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    }
}

fn kib(meminfo: &str, name: &str) -> i64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok());
    number.unwrap_or(0) * 1024
}

fn os_name(release: &str) -> String {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// Reads a `resolv.conf`.
#[must_use]
pub fn resolver(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            Some("search" | "domain") => dns.searches = words.collect(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

/// What pods are told and given of the node.
#[must_use]
pub fn facts(settings: &Settings, machine: &Machine) -> NodeFacts {
    NodeFacts {
        name: settings.name.clone(),
        ips: settings.ips.clone(),
        memory_bytes: machine.memory_bytes,
        cpu_milli: machine.cpus * 1000,
        cluster_dns: settings.cluster_dns.clone(),
        cluster_domain: settings.cluster_domain.clone(),
        resolver: machine.resolver.clone(),
        cgroup_root: settings.cgroup_root.clone(),
        log_dir: settings.log_dir.clone(),
    }
}

/// The labels every node has.
fn labels(settings: &Settings) -> BTreeMap<String, String> {
    let arch = Machine::architecture();
    let usual = [
        ("kubernetes.io/hostname", settings.name.as_str()),
        ("kubernetes.io/arch", arch),
        ("kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
    ];
    let usual = usual.map(|(name, value)| (name.to_owned(), value.to_owned()));
    usual.into_iter().chain(settings.labels.clone()).collect()
}

/// What the runtime is like, and what it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its health; the trouble is the reason for which it does not answer, if it does not.
    pub health: Health,
    /// Its images.
    pub images: Vec<Image>,
}

/// The Node as it is registered.
#[must_use]
pub fn node(settings: &Settings, machine: &Machine, seen: &Seen, now: Timestamp) -> Node {
    let taints = (!settings.taints.is_empty()).then(|| settings.taints.clone());
    Node {
        metadata: ObjectMeta {
            name: Some(settings.name.clone()),
            labels: Some(labels(settings)),
            ..Default::default()
        },
        spec: Some(NodeSpec { taints, ..Default::default() }),
        status: Some(status(None, settings, machine, seen, now)),
    }
}

/// The status of the Node; conditions keep the time of their last transition from `old`.
#[must_use]
pub fn status(
    old: Option<&NodeStatus>,
    settings: &Settings,
    machine: &Machine,
    seen: &Seen,
    now: Timestamp,
) -> NodeStatus {
    let mut addresses: Vec<NodeAddress> = Vec::new();
    for ip in &settings.ips {
        addresses.push(NodeAddress { type_: "InternalIP".to_owned(), address: ip.clone() });
    }
    let name = settings.name.clone();
    addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: name });
    let (capacity, allocatable) = resources(settings, machine);
    let old_conditions = old.and_then(|o| o.conditions.clone()).unwrap_or_default();
    let endpoint = Some(DaemonEndpoint { port: settings.port.into() });
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(&old_conditions, machine, seen, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: endpoint }),
        images: Some(images(&seen.images)),
        node_info: Some(NodeSystemInfo {
            architecture: Machine::architecture().to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: seen.health.version.clone(),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os.clone(),
            swap: None,
            system_uuid: machine.system_uuid.clone(),
        }),
        ..old.cloned().unwrap_or_default()
    }
}

type Resources = BTreeMap<String, Text>;

fn resources(settings: &Settings, machine: &Machine) -> (Resources, Resources) {
    let kib = |bytes: i64| format!("{}Ki", bytes / 1024);
    let list = |memory: i64, disk: String| -> Resources {
        [
            ("cpu", Quantity::of(machine.cpus).to_string()),
            ("memory", kib(memory)),
            ("ephemeral-storage", disk),
            ("hugepages-1Gi", "0".to_owned()),
            ("hugepages-2Mi", "0".to_owned()),
            ("pods", settings.pods_max.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Text(value)))
        .collect()
    };
    let disk = (machine.disk_bytes - disk_kept(machine)).to_string();
    let memory = machine.memory_bytes.saturating_sub(EVICTION_MEMORY_BYTES).max(0);
    (list(machine.memory_bytes, kib(machine.disk_bytes)), list(memory, disk))
}

/// What of the disk is kept for the machine: with less than that free, there is disk pressure.
fn disk_kept(machine: &Machine) -> i64 {
    (machine.disk_bytes / 10).min(EVICTION_DISK_BYTES_MAX)
}

fn images(images: &[Image]) -> Vec<ContainerImage> {
    let mut images: Vec<&Image> = images.iter().filter(|i| !i.names.is_empty()).collect();
    images.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.names.cmp(&b.names)));
    images.truncate(IMAGES_MAX);
    let shown = images.into_iter().map(|image| ContainerImage {
        names: Some(image.names.iter().take(IMAGE_NAMES_MAX).cloned().collect()),
        size_bytes: i64::try_from(image.bytes).ok(),
    });
    shown.collect()
}

fn conditions(
    old: &[NodeCondition],
    machine: &Machine,
    seen: &Seen,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let low_memory = machine.available_bytes < EVICTION_MEMORY_BYTES && machine.memory_bytes > 0;
    let low_disk = machine.disk_free_bytes < disk_kept(machine);
    let trouble = &seen.health.trouble;
    let pick = |bad: bool, yes: [&str; 2], no: [&str; 2]| -> (bool, String, String) {
        let [reason, message] = if bad { yes } else { no };
        (bad, reason.to_owned(), message.to_owned())
    };
    let rows = [
        (
            "MemoryPressure",
            pick(
                low_memory,
                ["KubeletHasInsufficientMemory", "kubelet has insufficient memory available"],
                ["KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
            ),
        ),
        (
            "DiskPressure",
            pick(
                low_disk,
                ["KubeletHasDiskPressure", "kubelet has disk pressure"],
                ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
            ),
        ),
        (
            "PIDPressure",
            pick(
                false,
                ["KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
                ["KubeletHasSufficientPID", "kubelet has sufficient PID available"],
            ),
        ),
        (
            "Ready",
            if trouble.is_empty() {
                (true, "KubeletReady".to_owned(), "kubelet is posting ready status".to_owned())
            } else {
                let message = format!("container runtime network not ready: {trouble}");
                (false, "KubeletNotReady".to_owned(), message)
            },
        ),
    ];
    let own: Vec<NodeCondition> = rows
        .into_iter()
        .map(|(kind, (holds, reason, message))| {
            let status = if holds { "True" } else { "False" }.to_owned();
            let same = old.iter().find(|c| c.type_ == kind && c.status == status);
            NodeCondition {
                type_: kind.to_owned(),
                status,
                reason: Some(reason),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: same
                    .and_then(|c| c.last_transition_time.clone())
                    .or(Some(Time(now))),
            }
        })
        .collect();
    let others = old.iter().filter(|c| own.iter().all(|o| o.type_ != c.type_)).cloned();
    others.collect::<Vec<_>>().into_iter().chain(own).collect()
}

/// The merge patch that brings the stored status to `wanted`; none when only heartbeats differ and
/// those are fresh enough.
#[must_use]
pub fn change(stored: &NodeStatus, wanted: &NodeStatus, now: Timestamp) -> Option<Value> {
    let without_beats = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    let beat = stored.conditions.iter().flatten().filter_map(|c| c.last_heartbeat_time.as_ref());
    let oldest = beat.map(|time| time.0).min();
    let fresh = oldest.is_some_and(|oldest| now.duration_since(oldest) < REPORT_EVERY);
    if fresh && without_beats(stored) == without_beats(wanted) {
        return None;
    }
    let as_map = |status: &NodeStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(), // a status is plain data and always an object
    };
    let (old, new) = (as_map(stored), as_map(wanted));
    let changed: Map<String, Value> =
        new.into_iter().filter(|(field, value)| old.get(field) != Some(value)).collect();
    (!changed.is_empty()).then(|| json!({ "status": changed }))
}

/// Registers the node and keeps its status, its Lease and the network of its pods. `cache` has the
/// Node of our name.
///
/// # Errors
/// Never before shutdown; the form is that of a part.
pub async fn run(
    settings: Settings,
    runtime: Runtime,
    client: Client,
    cache: Cache,
    cni_dir: PathBuf,
    cni_state_dir: PathBuf,
    ctx: Context,
) -> anyhow::Result<()> {
    let keeper = Keeper { settings, runtime, client, cache, cni_dir, cni_state_dir, ctx };
    let shutdown = keeper.ctx.shutdown.clone();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = async { tokio::join!(keeper.keep_status(), keeper.keep_lease()); } => {}
    }
    Ok(())
}

struct Keeper {
    settings: Settings,
    runtime: Runtime,
    client: Client,
    cache: Cache,
    cni_dir: PathBuf,
    cni_state_dir: PathBuf,
    ctx: Context,
}

impl Keeper {
    async fn keep_status(&self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        // Only changes of our Node: the cache may hold the pods as well.
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        self.cache.on_change::<Node>(move |_| notify.notify_one());
        self.cache.synced().await;
        loop {
            let stored = self.cache.get::<Node>("", &self.settings.name);
            let ranges = stored.as_ref().and_then(|node| pod_ranges(node));
            if let Some(ranges) = &ranges {
                self.write_network(ranges);
            }
            let seen = self.look(ranges.is_some()).await;
            let wait = match self.report(stored.as_deref(), &seen).await {
                Ok(()) => {
                    backoff.reset();
                    if seen.health.trouble.is_empty() {
                        jitter(STATUS_PERIOD)
                    } else {
                        EAGER_PERIOD
                    }
                }
                Err(error) => {
                    tracing::info!(%error, "cannot report the node's status");
                    backoff.delay()
                }
            };
            let due = tokio::time::sleep(wait);
            tokio::pin!(due);
            tokio::select! {
                () = &mut due => {}
                // A change of our Node (its range, a foreign write) is looked at once, soon.
                () = changed.notified() => tokio::time::sleep(EAGER_PERIOD).await,
            }
        }
    }

    fn write_network(&self, ranges: &[String]) {
        let text = cni::config(ranges, &self.cni_state_dir, true);
        if let Err(error) = cni::write(&self.cni_dir, &text) {
            tracing::warn!(%error, dir = %self.cni_dir.display(), "cannot write the network config");
        }
    }

    async fn look(&self, has_range: bool) -> Seen {
        let health = match self.runtime.health().await {
            Ok(mut health) => {
                if !has_range && health.trouble.is_empty() {
                    "no range of pod addresses has been given to this node yet"
                        .clone_into(&mut health.trouble);
                }
                health
            }
            Err(error) => Health { trouble: error.message, ..Health::default() },
        };
        let images = match self.runtime.images().await {
            Ok(images) => images,
            Err(error) => {
                tracing::debug!(%error, "cannot list images");
                Vec::new()
            }
        };
        Seen { health, images }
    }

    async fn report(&self, stored: Option<&Node>, seen: &Seen) -> Result<(), Error> {
        let dir = self.settings.data_dir.clone();
        let read = self.ctx.tasks.blocking(move || Machine::read(&dir)).await;
        let machine = read.map_err(|error| Error::Transport(error.to_string()))?;
        let now = self.ctx.clock.now();
        let Some(stored) = stored else {
            let node = node(&self.settings, &machine, seen, now);
            return match self.client.create::<Node>(&node).await {
                Ok(_) => {
                    tracing::info!(node = self.settings.name, "registered");
                    Ok(())
                }
                // The cache will show it in a moment.
                Err(error) if error.is_already_exists() => Ok(()),
                Err(error) => Err(error),
            };
        };
        self.keep_labels(stored).await?;
        let old = stored.status.clone().unwrap_or_default();
        let mut wanted = status(Some(&old), &self.settings, &machine, seen, now);
        if wanted.node_info.as_ref().is_some_and(|i| i.container_runtime_version.is_empty()) {
            wanted.node_info.clone_from(&old.node_info); // the runtime does not answer just now
        }
        let Some(patch) = change(&old, &wanted, now) else { return Ok(()) };
        let (name, patch) = (&self.settings.name, Patch::Merge(patch));
        self.client.patch::<Node>("", name, "status", patch).await.map(drop)
    }

    async fn keep_labels(&self, stored: &Node) -> Result<(), Error> {
        let held = stored.metadata.labels.clone().unwrap_or_default();
        let missing: BTreeMap<String, String> = labels(&self.settings)
            .into_iter()
            .filter(|(name, value)| held.get(name) != Some(value))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"metadata": {"labels": missing}}));
        self.client.patch::<Node>("", &self.settings.name, "", patch).await.map(drop)
    }

    async fn keep_lease(&self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        loop {
            let wait = match self.renew().await {
                Ok(()) => {
                    backoff.reset();
                    jitter(LEASE_PERIOD)
                }
                Err(error) => {
                    tracing::info!(%error, "cannot renew the node's lease");
                    backoff.delay()
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn renew(&self) -> Result<(), Error> {
        let (name, now) = (&self.settings.name, self.ctx.clock.now());
        let patch = json!({"spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": MicroTime(now),
        }});
        let patched =
            self.client.patch::<Lease>(LEASE_NAMESPACE, name, "", Patch::Merge(patch)).await;
        match patched {
            Err(error) if error.is_not_found() => {}
            other => return other.map(drop),
        }
        let owner = self.cache.get::<Node>("", name).map(|node| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            ..Default::default()
        });
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(LEASE_NAMESPACE.to_owned()),
                owner_references: owner.map(|owner| vec![owner]),
                ..Default::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(MicroTime(now)),
                ..Default::default()
            }),
        };
        self.client.create::<Lease>(&lease).await.map(drop)
    }
}

/// The ranges pods get their addresses from, once the cluster has given some.
fn pod_ranges(node: &Node) -> Option<Vec<String>> {
    let spec = node.spec.as_ref()?;
    let ranges = spec.pod_cidrs.clone().filter(|list| !list.is_empty());
    ranges.or_else(|| spec.pod_cidr.clone().filter(|r| !r.is_empty()).map(|range| vec![range]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn settings() -> Settings {
        let (name, ips) = ("n1".to_owned(), vec!["192.0.2.1".to_owned()]);
        Settings { name, ips, pods_max: 110, port: 10250, ..Settings::default() }
    }

    fn machine() -> Machine {
        Machine {
            cpus: 4,
            memory_bytes: 8 << 30,
            available_bytes: 4 << 30,
            disk_bytes: 100 << 30,
            disk_free_bytes: 50 << 30,
            ..Machine::default()
        }
    }

    fn seen(trouble: &str) -> Seen {
        let health = Health { version: "containerd://1.6.20".into(), trouble: trouble.into() };
        Seen { health, images: Vec::new() }
    }

    fn ready(status: &NodeStatus) -> (String, String) {
        let held = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
        (held.status.clone(), held.reason.clone().unwrap_or_default())
    }

    #[test]
    fn a_node_is_ready_when_its_runtime_is() {
        let node = node(&settings(), &machine(), &seen(""), at(0));
        let status = node.status.unwrap();
        assert_eq!(ready(&status), ("True".to_owned(), "KubeletReady".to_owned()));
        assert_eq!(status.capacity.as_ref().unwrap()["memory"].0, "8388608Ki");
        assert_eq!(status.allocatable.as_ref().unwrap()["memory"].0, "8286208Ki");
        assert_eq!(node.metadata.labels.unwrap()["kubernetes.io/hostname"], "n1");
        let later = super::status(Some(&status), &settings(), &machine(), &seen("no CNI"), at(9));
        assert_eq!(ready(&later), ("False".to_owned(), "KubeletNotReady".to_owned()));
    }

    #[test]
    fn only_changes_and_old_heartbeats_are_reported() {
        let old = status(None, &settings(), &machine(), &seen(""), at(0));
        let same = status(Some(&old), &settings(), &machine(), &seen(""), at(60));
        assert_eq!(change(&old, &same, at(60)), None);
        let beat = status(Some(&old), &settings(), &machine(), &seen(""), at(301));
        let patch = change(&old, &beat, at(301)).unwrap();
        assert_eq!(patch["status"].as_object().unwrap().len(), 1, "conditions alone: {patch}");
        let first = &beat.conditions.as_ref().unwrap()[0];
        assert_eq!(first.last_transition_time, Some(Time(at(0))));
    }

    #[test]
    fn conditions_of_others_stay() {
        let mut old = status(None, &settings(), &machine(), &seen(""), at(0));
        let theirs = NodeCondition {
            type_: "NetworkUnavailable".into(),
            status: "False".into(),
            ..Default::default()
        };
        old.conditions.as_mut().unwrap().push(theirs);
        let new = status(Some(&old), &settings(), &machine(), &seen(""), at(5));
        assert_eq!(new.conditions.unwrap().len(), 5);
    }

    #[test]
    fn resolvers_are_read() {
        let dns =
            resolver("# x\nsearch a.example b.example\nnameserver 192.0.2.53\noptions edns0\n");
        assert_eq!(dns.servers, ["192.0.2.53"]);
        assert_eq!(dns.searches, ["a.example", "b.example"]);
        assert_eq!(dns.options, ["edns0"]);
    }

    #[test]
    fn the_largest_images_are_named() {
        let image = |name: &str, bytes: u64| Image {
            id: String::new(),
            names: vec![name.to_owned()],
            bytes,
            user: Err(String::new()),
        };
        let shown = images(&[image("small", 1), image("large", 9)]);
        assert_eq!(shown[0].names.as_ref().unwrap(), &["large"]);
    }
}
