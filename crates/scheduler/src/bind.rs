//! The shell around the decision: hears of pods and nodes, places what waits, binds in batches.

use std::sync::Arc;
use std::time::Duration;

use client::act::reference;
use client::{Cache, Client, Key, Kind, Recorder};
use daemon::Context;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wire::apiserver as pb;

use crate::place::{Placement, place};
use crate::queue::Queue;
use crate::snapshot::Snapshot;

/// Pods placed and bound in one go.
const BATCH_PODS: usize = 500;
/// How long the loop sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct World {
    snapshot: Snapshot,
    queue: Queue,
}

/// What the listeners and the loop share.
struct Shared {
    world: Mutex<World>,
    woken: Notify,
    name: String,
    ctx: Context,
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

impl Shared {
    /// Whether the pod waits for us.
    fn waits(&self, pod: &Pod) -> bool {
        let spec = pod.spec.as_ref();
        node_of(pod).is_empty()
            && !ended(pod)
            && pod.metadata.deletion_timestamp.is_none()
            && spec.and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler")
                == self.name
            && spec.and_then(|s| s.scheduling_gates.as_ref()).is_none_or(Vec::is_empty)
    }

    fn pod_changed(&self, key: &Key, old: Option<&Pod>, new: Option<&Pod>) {
        let now = self.ctx.clock.monotonic();
        let mut world = self.world.lock();
        match new {
            Some(pod) if self.waits(pod) => {
                // A change of status alone, our own FailedScheduling for one, is no reason to try again.
                if old.is_none_or(|old| {
                    old.spec != pod.spec || old.metadata.labels != pod.metadata.labels
                }) {
                    let created = pod.metadata.creation_timestamp.as_ref();
                    let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
                    world.queue.add(key, priority, created.map_or(0, |t| t.0.as_second()));
                }
            }
            Some(pod) if !node_of(pod).is_empty() && !ended(pod) => {
                world.queue.remove(key);
                if old.is_none_or(|old| node_of(old).is_empty() || old.spec != pod.spec) {
                    world.snapshot.place(pod, node_of(pod));
                }
            }
            _ => {
                world.queue.remove(key);
                world.snapshot.forget(key);
                world.queue.something_changed(now);
            }
        }
        drop(world);
        self.woken.notify_one();
    }

    fn node_changed(&self, key: &Key, old: Option<&Node>, new: Option<&Arc<Node>>) {
        let now = self.ctx.clock.monotonic();
        let mut world = self.world.lock();
        match new {
            None => world.snapshot.remove_node(&key.name),
            Some(node) => {
                // Heartbeats change nothing that a pod could wait for.
                let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
                let same = old.is_some_and(|old| {
                    old.spec == node.spec
                        && old.metadata.labels == node.metadata.labels
                        && allocatable(old) == allocatable(node)
                });
                if same {
                    return;
                }
                world.snapshot.put_node(node.clone());
                world.queue.something_changed(now);
            }
        }
        drop(world);
        self.woken.notify_one();
    }
}

/// Schedules until `leading` ends.
pub async fn run(
    client: Client,
    cache: Cache,
    events: Recorder,
    name: String,
    ctx: Context,
    leading: CancellationToken,
) {
    let shared =
        Arc::new(Shared { world: Mutex::default(), woken: Notify::new(), name, ctx: ctx.clone() });
    let listener = shared.clone();
    cache.on_change::<Pod>(move |change| {
        listener.pod_changed(change.key, change.old_as::<Pod>(), change.new_as::<Pod>());
    });
    let (listener, nodes) = (shared.clone(), cache.clone());
    cache.on_change::<Node>(move |change| {
        let new = change.new_as::<Node>().map(|_| nodes.at::<Node>(change.key));
        let new = new.flatten().or_else(|| change.new_as::<Node>().cloned().map(Arc::new));
        listener.node_changed(change.key, change.old_as::<Node>(), new.as_ref());
    });
    tokio::select! {
        () = leading.cancelled() => return,
        () = cache.synced() => {}
    }
    // What came before the listeners were there; what came twice counts once.
    for node in cache.list::<Node>() {
        shared.node_changed(&Key::of(&node.metadata), None, Some(&node));
    }
    for pod in cache.list::<Pod>() {
        shared.pod_changed(&Key::of(&pod.metadata), None, Some(&pod));
    }
    tracing::info!("scheduler started");
    while !leading.is_cancelled() {
        let now = ctx.clock.monotonic();
        let keys = shared.world.lock().queue.take(now, BATCH_PODS);
        if keys.is_empty() {
            let due = shared.world.lock().queue.next_due();
            let wait = due.map_or(IDLE, |at| at.saturating_sub(now)).min(IDLE);
            tokio::select! {
                () = leading.cancelled() => return,
                () = shared.woken.notified() => {}
                () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {}
            }
            continue;
        }
        let pods: Vec<Arc<Pod>> = keys
            .iter()
            .filter_map(|key| cache.at::<Pod>(key))
            .filter(|pod| shared.waits(pod))
            .collect();
        round(&client, &events, &shared, pods).await;
    }
}

/// Places a batch of pods and binds those that have a place.
async fn round(client: &Client, events: &Recorder, shared: &Shared, pods: Vec<Arc<Pod>>) {
    let (mut placed, mut refused) = (Vec::new(), Vec::new());
    {
        let mut world = shared.world.lock();
        for pod in pods {
            match place(&pod, &world.snapshot) {
                Placement::Node(node) => {
                    // Counts at once, so that the next pod of the batch sees it.
                    world.snapshot.place(&pod, &node);
                    placed.push((pod, node));
                }
                Placement::Nowhere(why) => refused.push((pod, why)),
            }
        }
    }
    tokio::join!(bind(client, events, shared, &placed), refuse(client, events, shared, &refused));
}

async fn bind(client: &Client, events: &Recorder, shared: &Shared, placed: &[(Arc<Pod>, String)]) {
    if placed.is_empty() {
        return;
    }
    let item = |(pod, node): &(Arc<Pod>, String)| pb::Binding {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        node: node.clone(),
    };
    let results = client.bind(placed.iter().map(item).collect()).await;
    let now = shared.ctx.clock.monotonic();
    let mut each: Vec<Option<client::Error>> = Vec::with_capacity(placed.len());
    match results {
        Ok(results) => each.extend(results.into_iter().map(Result::err)),
        Err(error) => {
            tracing::info!(%error, "batch was not bound, trying again");
            let mut world = shared.world.lock();
            for (pod, _) in placed {
                let key = Key::of(&pod.metadata);
                world.snapshot.forget(&key);
                world.queue.refuse(&key, now, true);
            }
            return;
        }
    }
    for ((pod, node), error) in placed.iter().zip(each) {
        let key = Key::of(&pod.metadata);
        match error {
            None => {
                let message = format!("Successfully assigned {key} to {node}");
                events.record(reference(&**pod), "Normal", "Scheduled", message);
            }
            Some(error) => {
                tracing::info!(%key, node, %error, "pod was not bound");
                let mut world = shared.world.lock();
                world.snapshot.forget(&key);
                if !error.is_not_found() {
                    world.queue.refuse(&key, now, true);
                }
            }
        }
    }
}

/// Says why pods have no place.
async fn refuse(
    client: &Client,
    events: &Recorder,
    shared: &Shared,
    refused: &[(Arc<Pod>, String)],
) {
    let now = shared.ctx.clock.monotonic();
    let at = shared.ctx.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut patches = Vec::new();
    for (pod, why) in refused {
        let key = Key::of(&pod.metadata);
        shared.world.lock().queue.refuse(&key, now, false);
        events.record(reference(&**pod), "Warning", "FailedScheduling", why.clone());
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let old = conditions.into_iter().find(|c| c.type_ == "PodScheduled");
        if old.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(why)) {
            continue;
        }
        let since =
            old.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let since = since.map_or_else(|| json!(at), |t| json!(t));
        let mut conditions: Vec<serde_json::Value> = pod
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .filter(|c| c.type_ != "PodScheduled")
            .map(|c| json!(c))
            .collect();
        conditions.push(json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": why,
            "lastTransitionTime": since,
        }));
        let patch = json!({"status": {"conditions": conditions}});
        let kind = Kind::of::<Pod>();
        let version = pod.metadata.resource_version.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        patches.push(client::transport::status_patch(&kind, &key, uid, version, &patch));
    }
    if !patches.is_empty()
        && let Err(error) = client.update_status(patches).await
    {
        tracing::info!(%error, "conditions were not written");
    }
}
