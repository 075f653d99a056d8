//! Deployments: a ReplicaSet for each version of the template, and the way from the old ones to the new.

use std::sync::Arc;
use std::time::Duration;

use client::act::controlled_by;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::pods::{TEMPLATE_HASH, is_ended, template_hash};

mod status;

/// The number of a version, on the Deployment and its ReplicaSets.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations that say something about the Deployment itself and are not copied.
const OWN_ANNOTATIONS: [&str; 5] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    "deployment.kubernetes.io/revision-history",
    DESIRED,
    MAXIMUM,
];

/// A Deployment with its ReplicaSets.
#[derive(Debug)]
pub struct Seen {
    deployment: Arc<Deployment>,
    /// Its own, oldest first.
    sets: Vec<Arc<ReplicaSet>>,
    /// Whether pods of old versions still run, for the strategy that waits for them.
    old_pods: bool,
    /// A set of the name the new one would have belongs to something else.
    collision: bool,
}

/// The controller.
#[derive(Debug)]
pub struct Deployments;

impl Controller for Deployments {
    const NAME: &'static str = "deployment";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("Deployment"),
        Wake::owner_of("ReplicaSet"),
        Wake::keys("Pod", |cache, changed| {
            // Only deletions matter, to those who wait for old pods to go.
            let Some(pod) = changed.old_as::<Pod>().filter(|_| changed.new.is_none()) else {
                return Vec::new();
            };
            let owners = pod.metadata.owner_references.iter().flatten();
            let sets = owners.filter(|o| o.kind == "ReplicaSet");
            let sets =
                sets.filter_map(|o| cache.get::<ReplicaSet>(&changed.key.namespace, &o.name));
            sets.filter_map(|set| {
                let owner = set.metadata.owner_references.iter().flatten().next()?;
                Some(Key::new(changed.key.namespace.clone(), owner.name.clone()))
            })
            .collect()
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let deployment = cache.at::<Deployment>(key)?;
        let uid = deployment.metadata.uid.clone().unwrap_or_default();
        let mut sets = cache.find::<ReplicaSet>("owner", &uid);
        sets.sort_by_key(|set| {
            (set.metadata.creation_timestamp.as_ref().map(|t| t.0), set.metadata.name.clone())
        });
        let new = newest(&deployment, &sets).map(|set| set.metadata.uid.clone());
        let old_pods =
            sets.iter().filter(|set| Some(&set.metadata.uid) != new.as_ref()).any(|set| {
                let pods =
                    cache.find::<Pod>("owner", set.metadata.uid.as_deref().unwrap_or_default());
                pods.iter().any(|pod| !is_ended(pod))
            });
        let name = set_name(&deployment);
        let collision = new.is_none() && cache.get::<ReplicaSet>(&key.namespace, &name).is_some();
        Some(Seen { deployment, sets, old_pods, collision })
    }

    fn reconcile(seen: &Seen, now: Timestamp) -> Plan {
        let deployment = &*seen.deployment;
        let Some(spec) = &deployment.spec else { return Plan::new() };
        if deployment.metadata.deletion_timestamp.is_some() {
            return status::plan(Plan::new(), seen, now);
        }
        if seen.collision {
            let count = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
            return Plan::new().status(deployment, json!({ "collisionCount": count + 1 }));
        }
        let mut plan = Plan::new();
        let scaled = seen
            .sets
            .iter()
            .any(|set| replicas(set) > 0 && annotation(set, DESIRED) != spec.replicas.unwrap_or(1));
        plan = if spec.paused == Some(true) || scaled && newest(deployment, &seen.sets).is_some() {
            scale(plan, seen)
        } else {
            roll(plan, seen, spec)
        };
        status::plan(plan, seen, now)
    }
}

pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

fn annotation(set: &ReplicaSet, key: &str) -> i32 {
    let annotations = set.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(key)).and_then(|t| t.parse().ok()).unwrap_or(0)
}

fn revision(set: &ReplicaSet) -> i64 {
    let annotations = set.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(REVISION)).and_then(|t| t.parse().ok()).unwrap_or(0)
}

/// The template without the label that ReplicaSets add.
fn bare(template: Option<&PodTemplateSpec>) -> PodTemplateSpec {
    let mut template = template.cloned().unwrap_or_default();
    if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(TEMPLATE_HASH);
    }
    template
}

/// The set whose template is the Deployment's: the oldest, if there are several.
pub(crate) fn newest<'a>(
    deployment: &Deployment,
    sets: &'a [Arc<ReplicaSet>],
) -> Option<&'a Arc<ReplicaSet>> {
    let wanted = bare(deployment.spec.as_ref().map(|s| &s.template));
    sets.iter().find(|set| bare(set.spec.as_ref().and_then(|s| s.template.as_ref())) == wanted)
}

fn set_name(deployment: &Deployment) -> String {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{}", hash(deployment))
}

fn hash(deployment: &Deployment) -> String {
    let template = bare(deployment.spec.as_ref().map(|s| &s.template));
    template_hash(&template, deployment.status.as_ref().and_then(|s| s.collision_count))
}

/// How many pods may be added above, and missing below, the number wanted.
pub(crate) fn margins(spec: &DeploymentSpec) -> (i32, i32) {
    let wanted = spec.replicas.unwrap_or(1);
    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return (0, wanted);
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let share = |value: Option<&IntOrString>, up: bool| match value {
        Some(IntOrString::Int(count)) => *count,
        Some(IntOrString::String(text)) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap_or(0);
            let exact = i64::from(percent) * i64::from(wanted);
            let rounded = if up { (exact + 99) / 100 } else { exact / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
        None => 1,
    };
    let surge = share(rolling.and_then(|r| r.max_surge.as_ref()), true);
    let mut unavailable = share(rolling.and_then(|r| r.max_unavailable.as_ref()), false);
    if surge == 0 && unavailable == 0 {
        // Else nothing could ever move.
        unavailable = 1;
    }
    (surge, unavailable.min(wanted))
}

/// Brings a set to `count` pods, and says so.
fn resize(seen: &Seen, set: &ReplicaSet, count: i32) -> Option<[Action; 2]> {
    let spec = seen.deployment.spec.as_ref()?;
    let wanted = spec.replicas.unwrap_or(1);
    let maximum = wanted + margins(spec).0;
    let now = replicas(set);
    let marked = annotation(set, DESIRED) == wanted && annotation(set, MAXIMUM) == maximum;
    if now == count && marked {
        return None;
    }
    let change = json!({
        "metadata": {"annotations": {DESIRED: wanted.to_string(), MAXIMUM: maximum.to_string()}},
        "spec": {"replicas": count}
    });
    let direction = if count >= now { "up" } else { "down" };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let message = format!("Scaled {direction} replica set {name} from {now} to {count}");
    let event = Action::event(&*seen.deployment, "Normal", "ScalingReplicaSet", message);
    Some([Action::merge_if_unchanged(set, change), event])
}

fn resized(plan: Plan, seen: &Seen, set: &ReplicaSet, count: i32) -> Plan {
    let now = replicas(set);
    match resize(seen, set, count) {
        None => plan,
        Some([change, event]) if now != count => plan.push(change).push(event),
        Some([change, _]) => plan.push(change),
    }
}

/// The next step from the old versions to the new one.
fn roll(plan: Plan, seen: &Seen, spec: &DeploymentSpec) -> Plan {
    let deployment = &*seen.deployment;
    let wanted = spec.replicas.unwrap_or(1);
    let (surge, unavailable) = margins(spec);
    let total: i32 = seen.sets.iter().map(|set| replicas(set)).sum();
    let recreate = spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate");
    let Some(new) = newest(deployment, &seen.sets) else {
        let old = seen.sets.iter();
        let plan =
            if recreate { old.fold(plan, |plan, set| resized(plan, seen, set, 0)) } else { plan };
        if recreate && (total > 0 || seen.old_pods) {
            return plan;
        }
        let first = (wanted + surge - total).clamp(0, wanted);
        return create(plan, seen, spec, first);
    };
    let plan = number(plan, seen, new);
    let old: Vec<&Arc<ReplicaSet>> =
        seen.sets.iter().filter(|set| set.metadata.uid != new.metadata.uid).collect();
    if recreate {
        let plan = old.iter().fold(plan, |plan, set| resized(plan, seen, set, 0));
        let waiting = old.iter().any(|set| replicas(set) > 0) || seen.old_pods;
        return if waiting { plan } else { resized(plan, seen, new, wanted) };
    }
    let room = wanted + surge - total;
    let count = (replicas(new) + room.max(0)).min(wanted);
    if count != replicas(new) || replicas(new) > wanted {
        return resized(plan, seen, new, count.min(wanted));
    }
    let plan = resized(plan, seen, new, replicas(new));
    let plan = shrink(plan, seen, &old, new, wanted - unavailable, total);
    if status::is_complete(deployment, new, &seen.sets) { tidy(plan, &old, spec) } else { plan }
}

/// Takes pods from the old versions: first those that are not available, then as many as can be spared.
fn shrink(
    mut plan: Plan,
    seen: &Seen,
    old: &[&Arc<ReplicaSet>],
    new: &ReplicaSet,
    minimum: i32,
    total: i32,
) -> Plan {
    let missing_new = (replicas(new) - available(new)).max(0);
    let mut spare = (total - minimum - missing_new).max(0);
    let mut counts: Vec<i32> = old.iter().map(|set| replicas(set)).collect();
    for (set, count) in old.iter().zip(&mut counts) {
        let broken = (*count - available(set)).clamp(0, spare);
        *count -= broken;
        spare -= broken;
    }
    let up: i32 = seen.sets.iter().map(|set| available(set)).sum();
    let mut spare = (up - minimum).clamp(0, spare);
    for (set, count) in old.iter().zip(&mut counts) {
        let take = (*count).min(available(set)).min(spare);
        *count -= take;
        spare -= take;
    }
    for (set, count) in old.iter().zip(counts) {
        if count != replicas(set) {
            plan = resized(plan, seen, set, count);
        }
    }
    plan
}

/// The number wanted has changed, perhaps in the middle of a roll: each version gets its share.
fn scale(plan: Plan, seen: &Seen) -> Plan {
    let Some(spec) = &seen.deployment.spec else { return plan };
    let wanted = spec.replicas.unwrap_or(1);
    let running: Vec<&Arc<ReplicaSet>> = seen.sets.iter().filter(|set| replicas(set) > 0).collect();
    let new = newest(&seen.deployment, &seen.sets);
    if let [] | [_] = running.as_slice() {
        let only = running.first().copied().or(new);
        return only.map_or(plan.clone(), |set| resized(plan, seen, set, wanted));
    }
    let allowed = if wanted > 0 { wanted + margins(spec).0 } else { 0 };
    let total: i32 = running.iter().map(|set| replicas(set)).sum();
    let mut counts: Vec<i32> = Vec::with_capacity(running.len());
    let mut given = 0;
    for set in &running {
        let maximum = annotation(set, MAXIMUM).max(1);
        let exact = i64::from(replicas(set)) * i64::from(allowed);
        let share = (2 * exact + i64::from(maximum)) / (2 * i64::from(maximum));
        let share = i32::try_from(share).unwrap_or(i32::MAX);
        // Never against the direction of the whole.
        let left = allowed - total - given;
        let delta = (share - replicas(set)).clamp(left.min(0), left.max(0));
        given += delta;
        counts.push(replicas(set) + delta);
    }
    // What rounding left over goes to the newest.
    let left = allowed - total - given;
    let newest =
        running.iter().position(|set| new.is_some_and(|n| n.metadata.uid == set.metadata.uid));
    if let Some(count) = counts.get_mut(newest.unwrap_or(running.len() - 1)) {
        *count = (*count + left).max(0);
    }
    running.iter().zip(counts).fold(plan, |plan, (set, count)| resized(plan, seen, set, count))
}

fn next_revision(seen: &Seen, except: Option<&ReplicaSet>) -> i64 {
    let others =
        seen.sets.iter().filter(|set| except.is_none_or(|e| e.metadata.uid != set.metadata.uid));
    others.map(|set| revision(set)).max().unwrap_or(0) + 1
}

/// A ReplicaSet for the present template.
fn create(plan: Plan, seen: &Seen, spec: &DeploymentSpec, count: i32) -> Plan {
    let deployment = &*seen.deployment;
    let hash = hash(deployment);
    let number = next_revision(seen, None).to_string();
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(TEMPLATE_HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector: LabelSelector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.into(), hash);
    let mut annotations = copied(deployment);
    let wanted = spec.replicas.unwrap_or(1);
    annotations.insert(REVISION.into(), number.clone());
    annotations.insert(DESIRED.into(), wanted.to_string());
    annotations.insert(MAXIMUM.into(), (wanted + margins(spec).0).to_string());
    let mut set = ReplicaSet::default();
    let name = set_name(deployment);
    set.metadata.name = Some(name.clone());
    set.metadata.namespace.clone_from(&deployment.metadata.namespace);
    set.metadata.labels = Some(labels);
    set.metadata.annotations = Some(annotations);
    set.metadata.owner_references = Some(vec![controlled_by(deployment)]);
    let inner = set.spec.get_or_insert_default();
    inner.replicas = Some(count);
    inner.min_ready_seconds = spec.min_ready_seconds;
    inner.selector = selector;
    inner.template = Some(template);
    let message = format!("Scaled up replica set {name} from 0 to {count}");
    let plan = plan.push(Action::create(&set));
    let plan = if count > 0 {
        plan.push(Action::event(deployment, "Normal", "ScalingReplicaSet", message))
    } else {
        plan
    };
    mark(plan, deployment, &number)
}

fn copied(deployment: &Deployment) -> std::collections::BTreeMap<String, String> {
    let mut annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    annotations
}

/// Writes the number of the present version on the Deployment.
fn mark(plan: Plan, deployment: &Deployment, number: &str) -> Plan {
    let annotations = deployment.metadata.annotations.as_ref();
    if annotations.and_then(|a| a.get(REVISION)).is_some_and(|n| n == number) {
        return plan;
    }
    let change = json!({"metadata": {"annotations": {REVISION: number}}});
    plan.push(Action::merge(deployment, change))
}

/// Gives the present version the highest number, also when it is an old one that has come back.
fn number(plan: Plan, seen: &Seen, new: &ReplicaSet) -> Plan {
    let next = next_revision(seen, Some(new));
    let own = revision(new);
    let number = own.max(next).to_string();
    let mut change = serde_json::Map::new();
    let mut annotations: Value = json!(copied(&seen.deployment));
    let present = new.metadata.annotations.clone().unwrap_or_default();
    if own < next {
        annotations[REVISION] = json!(number);
    }
    let differs = annotations.as_object().is_some_and(|wanted| {
        wanted.iter().any(|(k, v)| present.get(k).map(String::as_str) != v.as_str())
    });
    if differs {
        change.insert("metadata".into(), json!({ "annotations": annotations }));
    }
    let wanted = seen.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
    if new.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0) != wanted.unwrap_or(0) {
        change.insert("spec".into(), json!({ "minReadySeconds": wanted.unwrap_or(0) }));
    }
    let plan = if change.is_empty() { plan } else { plan.push(Action::merge(new, change.into())) };
    mark(plan, &seen.deployment, &number)
}

/// Removes old versions beyond those kept for a way back.
fn tidy(plan: Plan, old: &[&Arc<ReplicaSet>], spec: &DeploymentSpec) -> Plan {
    let keep = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let mut empty: Vec<&ReplicaSet> = old
        .iter()
        .map(|set| &***set)
        .filter(|set| {
            let left = set.status.as_ref().map_or(0, |s| s.replicas);
            replicas(set) == 0 && left == 0 && set.metadata.deletion_timestamp.is_none()
        })
        .collect();
    empty.sort_by_key(|set| revision(set));
    let extra = empty.len().saturating_sub(keep);
    plan.each(empty.into_iter().take(extra), Action::delete)
}

/// When the controller has to look again without being woken.
pub(crate) fn look_again(plan: Plan, seconds: i64) -> Plan {
    plan.requeue_after(Duration::from_secs(seconds.max(1).unsigned_abs()))
}

#[cfg(test)]
mod tests;
