//! The shell around the decision: hears of pods and nodes, places what waits, binds in batches, and makes room.

use std::sync::Arc;
use std::time::Duration;

use client::act::reference;
use client::transport::{Delete, Patch, status_patch};
use client::{Cache, Client, Key, Kind, Recorder};
use daemon::Context;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wire::apiserver as pb;

use crate::ask::Ask;
use crate::filters::{Plugin, Plugins};
use crate::place::{Nowhere, Placement};
use crate::preempt::Preemption;
use crate::volumes::{SELECTED_NODE, Step};
use crate::world::World;

/// Pods placed and bound in one go.
const BATCH_PODS: usize = 500;
/// How long the loop sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(60);

/// What the listeners and the loop share.
struct Shared {
    world: Mutex<World>,
    woken: Notify,
    name: String,
    ctx: Context,
}

impl Shared {
    /// Tells the world of something, and wakes the loop.
    fn hear(&self, news: impl FnOnce(&mut World, Duration)) {
        let now = self.ctx.clock.monotonic();
        news(&mut self.world.lock(), now);
        self.woken.notify_one();
    }
}

fn listen(cache: &Cache, shared: &Arc<Shared>) {
    let listener = shared.clone();
    cache.on_change::<Pod>(move |change| {
        let (old, new) = (change.old_as::<Pod>(), change.new_as::<Pod>());
        listener.hear(|world, now| world.pod_changed(change.key, old, new, now));
    });
    let (listener, nodes) = (shared.clone(), cache.clone());
    cache.on_change::<Node>(move |change| {
        let new = change.new_as::<Node>().map(|_| nodes.at::<Node>(change.key));
        let new = new.flatten().or_else(|| change.new_as::<Node>().cloned().map(Arc::new));
        let old = change.old_as::<Node>();
        listener.hear(|world, now| world.node_changed(change.key, old, new.as_ref(), now));
    });
    let listener = shared.clone();
    cache.on_change::<Namespace>(move |change| {
        let new = change.new_as::<Namespace>();
        listener.hear(|world, now| world.namespace_changed(change.key, new, now));
    });
    let listener = shared.clone();
    cache.on_change::<PersistentVolumeClaim>(move |change| {
        listener.hear(|world, now| world.claim_changed(change.key, change.new_as(), now));
    });
    let listener = shared.clone();
    cache.on_change::<PersistentVolume>(move |change| {
        listener.hear(|world, now| world.volume_changed(change.key, change.new_as(), now));
    });
    let listener = shared.clone();
    cache.on_change::<StorageClass>(move |change| {
        listener.hear(|world, now| world.class_changed(change.key, change.new_as(), now));
    });
    let listener = shared.clone();
    cache.on_change::<PodDisruptionBudget>(move |change| {
        let new = change.new_as::<PodDisruptionBudget>();
        listener.hear(|world, _| world.budget_changed(change.key, new));
    });
}

/// Tells of all that came before the listeners were there; what comes twice counts once.
fn catch_up(cache: &Cache, shared: &Shared) {
    shared.hear(|world, now| {
        for namespace in cache.list::<Namespace>() {
            let key = Key::of(&namespace.metadata);
            world.namespace_changed(&key, Some(&namespace), now);
        }
        for budget in cache.list::<PodDisruptionBudget>() {
            world.budget_changed(&Key::of(&budget.metadata), Some(&budget));
        }
        for class in cache.list::<StorageClass>() {
            world.class_changed(&Key::of(&class.metadata), Some(&class), now);
        }
        for volume in cache.list::<PersistentVolume>() {
            world.volume_changed(&Key::of(&volume.metadata), Some(&volume), now);
        }
        for claim in cache.list::<PersistentVolumeClaim>() {
            world.claim_changed(&Key::of(&claim.metadata), Some(&claim), now);
        }
        for node in cache.list::<Node>() {
            world.node_changed(&Key::of(&node.metadata), None, Some(&node), now);
        }
        for pod in cache.list::<Pod>() {
            world.pod_changed(&Key::of(&pod.metadata), None, Some(&pod), now);
        }
    });
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
    let world = Mutex::new(World::new(&name));
    let shared = Arc::new(Shared { world, woken: Notify::new(), name, ctx: ctx.clone() });
    listen(&cache, &shared);
    tokio::select! {
        () = leading.cancelled() => return,
        () = cache.synced() => {}
    }
    catch_up(&cache, &shared);
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
        let decided = {
            let mut world = shared.world.lock();
            let pods = keys.iter().filter_map(|key| cache.at::<Pod>(key));
            let pods = pods.filter(|pod| world.waits(pod)).collect();
            world.decide(pods)
        };
        let (mut placed, mut refused, mut early) = (Vec::new(), Vec::new(), Vec::new());
        for (ask, pod, placement) in decided {
            match placement {
                Placement::Node(node) => {
                    let steps = shared.world.lock().steps(&ask, &node);
                    match steps.is_empty() {
                        true => placed.push((ask, pod, node)),
                        false => early.push((ask, node, steps)),
                    }
                }
                Placement::Nowhere(why) => refused.push((ask, pod, why)),
            }
        }
        tokio::join!(
            bind(&client, &events, &shared, &placed),
            refuse(&client, &cache, &events, &shared, &refused),
            ask_for_volumes(&client, &shared, &early)
        );
    }
}

/// Has the volumes made or reserved that pods need before they can be bound, and lets the pods wait for that.
async fn ask_for_volumes(client: &Client, shared: &Shared, early: &[(Ask, String, Vec<Step>)]) {
    for (ask, node, steps) in early {
        {
            let mut world = shared.world.lock();
            world.snapshot.forget(&ask.key);
            world.snapshot.nominate(ask, node);
            let now = shared.ctx.clock.monotonic();
            world.queue.refuse(&ask.key, now, Plugins::of(&[Plugin::VolumeBinding]));
        }
        for step in steps {
            let written = match step {
                Step::Wait => continue,
                Step::Select(claim) => {
                    let change = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
                    let patch = Patch::Merge(change);
                    let (namespace, name) = (&claim.namespace, &claim.name);
                    client
                        .patch::<PersistentVolumeClaim>(namespace, name, "", patch)
                        .await
                        .map(drop)
                }
                Step::Reserve { volume, version, claim, uid } => {
                    let change = json!({
                        "metadata": {
                            "resourceVersion": version,
                            "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"},
                        },
                        "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                            "namespace": claim.namespace, "name": claim.name, "uid": uid}},
                    });
                    client
                        .patch::<PersistentVolume>("", volume, "", Patch::Merge(change))
                        .await
                        .map(drop)
                }
            };
            if let Err(error) = written {
                tracing::info!(key = %ask.key, node, %error, "volumes were not asked for, trying again");
                shared.world.lock().queue.fail(&ask.key, shared.ctx.clock.monotonic());
                break;
            }
        }
    }
}

async fn bind(
    client: &Client,
    events: &Recorder,
    shared: &Shared,
    placed: &[(Ask, Arc<Pod>, String)],
) {
    if placed.is_empty() {
        return;
    }
    let item = |(ask, _, node): &(Ask, Arc<Pod>, String)| pb::Binding {
        namespace: ask.key.namespace.clone(),
        name: ask.key.name.clone(),
        uid: ask.uid.clone(),
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
            for (ask, _, _) in placed {
                world.snapshot.forget(&ask.key);
                world.queue.fail(&ask.key, now);
            }
            return;
        }
    }
    for ((ask, pod, node), error) in placed.iter().zip(each) {
        let key = &ask.key;
        match error {
            None => {
                let message = format!("Successfully assigned {key} to {node}");
                events.record(reference(&**pod), "Normal", "Scheduled", message);
            }
            Some(error) => {
                tracing::info!(%key, node, %error, "pod was not bound");
                let mut world = shared.world.lock();
                world.snapshot.forget(key);
                if !error.is_not_found() {
                    world.queue.fail(key, now);
                }
            }
        }
    }
}

/// Says why pods have no place, and makes room for those that others have to yield to.
async fn refuse(
    client: &Client,
    cache: &Cache,
    events: &Recorder,
    shared: &Shared,
    refused: &[(Ask, Arc<Pod>, Nowhere)],
) {
    let now = shared.ctx.clock.monotonic();
    let at = shared.ctx.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut patches = Vec::new();
    for (ask, pod, why) in refused {
        shared.world.lock().queue.refuse(&ask.key, now, why.by);
        events.record(reference(&**pod), "Warning", "FailedScheduling", why.message.clone());
        let node = why.preemption.as_ref().map(|p| p.node.as_str());
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": why.message,
        });
        patches.extend(status(pod, condition, node, &at));
    }
    if !patches.is_empty()
        && let Err(error) = client.update_status(patches).await
    {
        tracing::info!(%error, "conditions were not written");
    }
    for (ask, _, why) in refused {
        if let Some(preemption) = &why.preemption {
            evict(client, cache, events, shared, (ask, preemption), &at).await;
        }
    }
}

/// The victims of a pod go.
async fn evict(
    client: &Client,
    cache: &Cache,
    events: &Recorder,
    shared: &Shared,
    (ask, preemption): (&Ask, &Preemption),
    at: &str,
) {
    let victims: Vec<Arc<Pod>> = preemption
        .victims
        .iter()
        .filter_map(|(key, _)| cache.at::<Pod>(key))
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect();
    let message = format!("{}: preempting to accommodate a higher priority pod", shared.name);
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": message,
    });
    let patches: Vec<_> =
        victims.iter().filter_map(|pod| status(pod, condition.clone(), None, at)).collect();
    if let Err(error) = client.update_status(patches).await {
        tracing::info!(%error, "victims were not told why they go");
    }
    for (key, uid) in &preemption.victims {
        let how = Delete { uid: uid.clone(), ..Delete::default() };
        match client.delete::<Pod>(&key.namespace, &key.name, how).await {
            Ok(()) => {
                tracing::info!(%key, node = preemption.node, for_pod = %ask.key, "pod preempted");
                if let Some(pod) = victims.iter().find(|p| Key::of(&p.metadata) == *key) {
                    let message =
                        format!("Preempted by pod {} on node {}", ask.uid, preemption.node);
                    events.record(reference(&**pod), "Normal", "Preempted", message);
                }
            }
            Err(error) if error.is_not_found() => {}
            // The pod is tried again, and finds its victims again.
            Err(error) => tracing::info!(%key, %error, "pod was not preempted"),
        }
    }
}

/// The patch that sets a condition, and the nominated node if one is given; `None` if both are so already.
fn status(
    pod: &Pod,
    mut condition: Value,
    nominated: Option<&str>,
    at: &str,
) -> Option<pb::StatusPatch> {
    let conditions = || pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let kind = condition["type"].as_str().unwrap_or_default().to_owned();
    let old = conditions().find(|c| c.type_ == kind);
    let same = old.is_some_and(|c| {
        condition["status"] == c.status && condition["message"].as_str() == c.message.as_deref()
    });
    let known = pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
    if same && (nominated.is_none() || nominated == known) {
        return None;
    }
    let since = old.filter(|c| condition["status"] == c.status);
    let since = since.and_then(|c| c.last_transition_time.clone());
    condition["lastTransitionTime"] = since.map_or_else(|| json!(at), |t| json!(t));
    let mut all: Vec<Value> = conditions().filter(|c| c.type_ != kind).map(|c| json!(c)).collect();
    all.push(condition);
    let mut status = json!({"conditions": all});
    if let Some(node) = nominated {
        status["nominatedNodeName"] = json!(node);
    }
    let key = Key::of(&pod.metadata);
    let version = pod.metadata.resource_version.as_deref().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    Some(status_patch(&Kind::of::<Pod>(), &key, uid, version, &json!({"status": status})))
}
