//! DaemonSets: one pod on each node that the template allows.
//!
//! Which node a pod belongs to is in its affinity, so that the scheduler places it (upstream's ScheduleDaemonSetPods).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::act::controlled_by;
use client::fit::{selected, tolerates};
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;

use crate::pods::{adopters, available_in, claim, is_ready, orphans, phase, picks, share};
use crate::revisions::{self, HASH, hash_of};

/// Pods created or deleted at once.
const BURST_PODS: usize = 250;
/// A failed pod is left for so long, so that one that always fails does not spin.
const FAILED_KEPT_S: i64 = 5;
/// What every daemon pod puts up with, as upstream adds it.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const GENERATION: &str = "deprecated.daemonset.template.generation";

/// A DaemonSet with the nodes, its pods and its history.
#[derive(Debug)]
pub struct Seen {
    set: Arc<DaemonSet>,
    nodes: Vec<Arc<Node>>,
    /// Controlled by the set, selected or not.
    own: Vec<Arc<Pod>>,
    /// Selected, and controlled by nobody.
    orphans: Vec<Arc<Pod>>,
    revisions: Vec<Arc<ControllerRevision>>,
    /// Names of revisions that belong to others.
    taken: BTreeSet<String>,
}

/// The controller.
#[derive(Debug)]
pub struct DaemonSets;

fn selector(set: &DaemonSet) -> Option<&LabelSelector> {
    set.spec.as_ref().map(|s| &s.selector)
}

impl Controller for DaemonSets {
    const NAME: &'static str = "daemonset";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("DaemonSet"),
        Wake::owner_of("Pod"),
        Wake::owner_of("ControllerRevision"),
        Wake::keys("Pod", |cache, changed| {
            adopters::<DaemonSet>(cache, changed, |set, pod| picks(selector(set), pod))
        }),
        Wake::keys("Node", |cache, changed| {
            let (old, new) = (changed.old_as::<Node>(), changed.new_as::<Node>());
            // Heartbeats change nothing that decides where pods are.
            let same = old.zip(new).is_some_and(|(old, new)| {
                old.spec == new.spec && old.metadata.labels == new.metadata.labels
            });
            if same { Vec::new() } else { cache.keys("DaemonSet") }
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let set = cache.at::<DaemonSet>(key)?;
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let revisions = cache.find::<ControllerRevision>("owner", uid);
        let own: BTreeSet<_> = revisions.iter().map(|r| r.metadata.uid.clone()).collect();
        let others = cache.find::<ControllerRevision>("namespace", &key.namespace);
        let others = others.iter().filter(|r| !own.contains(&r.metadata.uid));
        Some(Seen {
            nodes: cache.list::<Node>(),
            own: cache.find::<Pod>("owner", uid),
            orphans: orphans(cache, &key.namespace, selector(&set)),
            taken: others.filter_map(|r| r.metadata.name.clone()).collect(),
            revisions,
            set,
        })
    }

    fn reconcile(seen: &Seen, now: Timestamp) -> Plan {
        let set = &*seen.set;
        let Some(spec) = &set.spec else { return Plan::new() };
        let (mut plan, own) = claim(Plan::new(), set, selector(set), &seen.own, &seen.orphans);
        let by_node = by_node(&own);
        if set.metadata.deletion_timestamp.is_some() {
            return status(plan, seen, &by_node, "", now);
        }
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let taken = |name: &str| seen.taken.contains(name);
        let (next, newest) =
            revisions::sync(plan, set, &spec.template, &seen.revisions, collisions, taken);
        plan = next;
        let Some(newest) = newest else {
            let count = json!({"collisionCount": collisions.unwrap_or(0) + 1});
            return plan.status(set, count);
        };
        let turn = Turn { set, hash: &newest.hash, by_node: &by_node, nodes: &seen.nodes, now };
        let (mut create, mut delete, wait) = turn.missing_and_extra();
        let rolled = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref());
        if rolled != Some("OnDelete") {
            turn.roll(&mut create, &mut delete);
        }
        plan = plan.each(create.into_iter().take(BURST_PODS), |node| {
            Action::create(&turn.pod(node))
                .announce(set, "SuccessfulCreate", "Created pod: {}")
                .or_warn("FailedCreate", "Error creating: {}")
        });
        for pod in delete.into_iter().take(BURST_PODS) {
            let node = node_of(pod).unwrap_or_default();
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let ended = match phase(pod) {
                "Failed" => Some(("Warning", "FailedDaemonPod", "failed")),
                "Succeeded" => Some(("Normal", "SucceededDaemonPod", "succeeded")),
                _ => None,
            };
            plan = plan.maybe(ended.map(|(severity, reason, how)| {
                let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
                let end = if how == "failed" { "kill" } else { "delete" };
                let text = format!(
                    "Found {how} daemon pod {namespace}/{name} on node {node}, will try to {end} it"
                );
                Action::event(set, severity, reason, text)
            }));
            plan =
                plan.push(Action::delete(pod).announce(set, "SuccessfulDelete", "Deleted pod: {}"));
        }
        if let Some(wait) = wait {
            plan = plan.requeue_after(Duration::from_secs(wait.unsigned_abs()));
        }
        let live = own.iter().map(|pod| hash_of(pod)).chain([newest.hash.as_str()]).collect();
        plan = revisions::prune(plan, &seen.revisions, &live, spec.revision_history_limit);
        status(plan, seen, &by_node, &newest.hash, now)
    }
}

/// The pods by the node that they are for.
type ByNode<'a> = BTreeMap<&'a str, Vec<&'a Pod>>;

/// The node a pod is on, or waits for.
fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(name);
    }
    let terms = &client::fit::required(spec)?.node_selector_terms;
    let fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let names = fields.filter(|f| f.key == "metadata.name" && f.operator == "In");
    names.flat_map(|f| f.values.iter().flatten()).next().map(String::as_str)
}

fn by_node(own: &[Arc<Pod>]) -> ByNode<'_> {
    let mut by_node = ByNode::new();
    for pod in own {
        if let Some(node) = node_of(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    for pods in by_node.values_mut() {
        pods.sort_by_key(|p| {
            (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.metadata.name.as_deref())
        });
    }
    by_node
}

/// Whether a node should have a pod, and whether it may keep one that it has.
fn wanted(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let name = node.metadata.name.as_deref();
    let named = spec.node_name.as_deref().filter(|n| !n.is_empty());
    if named.is_some_and(|n| Some(n) != name) || !selected(spec, node) {
        return (false, false);
    }
    let tolerations = tolerations(spec);
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let repels = |effects: &[&str]| {
        let untolerated = |t: &Taint| !tolerates(&tolerations, t);
        taints.iter().any(|t| effects.contains(&t.effect.as_str()) && untolerated(t))
    };
    (!repels(&["NoSchedule", "NoExecute"]), !repels(&["NoExecute"]))
}

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let network = ("node.kubernetes.io/network-unavailable", "NoSchedule");
    let more = (spec.host_network == Some(true)).then_some(network);
    for (key, effect) in TOLERATED.into_iter().chain(more) {
        let known = |t: &Toleration| {
            t.key.as_deref() == Some(key)
                && t.effect.as_deref() == Some(effect)
                && t.operator.as_deref() == Some("Exists")
        };
        if !all.iter().any(known) {
            all.push(Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some(effect.to_owned()),
                ..Toleration::default()
            });
        }
    }
    all
}

/// One look at all nodes.
struct Turn<'a> {
    set: &'a DaemonSet,
    /// The hash of the template of now.
    hash: &'a str,
    by_node: &'a ByNode<'a>,
    nodes: &'a [Arc<Node>],
    now: Timestamp,
}

impl<'a> Turn<'a> {
    fn surge(&self) -> (i32, i32) {
        let spec = self.set.spec.as_ref();
        let template = spec.and_then(|s| s.template.spec.as_ref());
        let desired = self.nodes.iter().filter(|n| template.is_some_and(|t| wanted(t, n).0));
        let desired = i32::try_from(desired.count()).unwrap_or(i32::MAX);
        let rolling = spec.and_then(|s| s.update_strategy.as_ref());
        let rolling = rolling.and_then(|s| s.rolling_update.as_ref());
        let surge = share(rolling.and_then(|r| r.max_surge.as_ref()), desired, 0);
        let unavailable = share(rolling.and_then(|r| r.max_unavailable.as_ref()), desired, 1);
        // Both zero would never get anywhere.
        (surge, if surge == 0 { unavailable.max(1) } else { unavailable })
    }

    fn available(&self, pod: &Pod) -> bool {
        let min_ready_s = self.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        available_in(pod, min_ready_s, self.now) == Some(0)
    }

    fn leaving(pod: &Pod) -> bool {
        pod.metadata.deletion_timestamp.is_some()
    }

    /// Nodes that lack a pod, pods that are too many, and in how many seconds to look again.
    fn missing_and_extra(&self) -> (Vec<&'a str>, Vec<&'a Pod>, Option<i64>) {
        let (mut create, mut delete, mut wait) = (Vec::new(), Vec::new(), None::<i64>);
        let template = self.set.spec.as_ref().and_then(|s| s.template.spec.clone());
        let template = template.unwrap_or_default();
        let surging = self.surge().0 > 0;
        let mut known = BTreeSet::new();
        for node in self.nodes {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            known.insert(name);
            let pods = self.by_node.get(name).map(Vec::as_slice).unwrap_or_default();
            let (should, may) = wanted(&template, node);
            if !may {
                delete.extend(pods.iter().copied().filter(|p| !Self::leaving(p)));
                continue;
            }
            if should && pods.is_empty() {
                create.push(name);
            }
            let mut running: Vec<&Pod> = Vec::new();
            for pod in pods.iter().copied().filter(|p| !Self::leaving(p)) {
                if !matches!(phase(pod), "Failed" | "Succeeded") {
                    running.push(pod);
                    continue;
                }
                let created = pod.metadata.creation_timestamp.as_ref().map_or(self.now, |t| t.0);
                let age = self.now.as_second() - created.as_second();
                if age >= FAILED_KEPT_S {
                    delete.push(pod);
                } else {
                    wait = Some(wait.map_or(FAILED_KEPT_S - age, |w| w.min(FAILED_KEPT_S - age)));
                }
            }
            if surging {
                let (new, old): (Vec<&Pod>, Vec<&Pod>) =
                    running.iter().copied().partition(|p| hash_of(p) == self.hash);
                delete.extend(new.into_iter().skip(1));
                delete.extend(old.into_iter().skip(1));
            } else {
                delete.extend(running.into_iter().skip(1));
            }
        }
        // Pods of nodes that are gone are the pod garbage collector's, unless no node has them yet.
        let lost = self.by_node.iter().filter(|(name, _)| !known.contains(**name));
        let unplaced = |p: &&Pod| {
            !Self::leaving(p)
                && p.spec.as_ref().is_none_or(|s| s.node_name.as_deref().unwrap_or("").is_empty())
        };
        delete.extend(lost.flat_map(|(_, pods)| pods.iter().copied()).filter(unplaced));
        for pod in self.by_node.values().flatten().filter(|p| is_ready(p)) {
            let min_ready_s = self.set.spec.as_ref().and_then(|s| s.min_ready_seconds);
            let left = available_in(pod, min_ready_s.unwrap_or(0), self.now).unwrap_or(0);
            if left > 0 {
                wait = Some(wait.map_or(left, |w| w.min(left)));
            }
        }
        (create, delete, wait)
    }

    /// Adds what brings the template of now to nodes that have an older one.
    fn roll(&self, create: &mut Vec<&'a str>, delete: &mut Vec<&'a Pod>) {
        let template = self.set.spec.as_ref().and_then(|s| s.template.spec.clone());
        let template = template.unwrap_or_default();
        let (max_surge, max_unavailable) = self.surge();
        let (mut surged, mut unavailable) = (0, 0);
        let (mut at_once, mut in_turn) = (Vec::new(), Vec::new());
        for node in self.nodes.iter().filter(|n| wanted(&template, n).0) {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let pods = self.by_node.get(name).map(Vec::as_slice).unwrap_or_default();
            let of = |new: bool| {
                pods.iter().copied().rev().find(|p| {
                    !Self::leaving(p)
                        && !matches!(phase(p), "Failed" | "Succeeded")
                        && (hash_of(p) == self.hash) == new
                })
            };
            match (of(false), of(true)) {
                (Some(old), None) if !self.available(old) => {
                    unavailable += 1;
                    at_once.push((name, old));
                }
                (Some(old), None) => in_turn.push((name, old)),
                (None, new) if max_surge == 0 => {
                    unavailable += i32::from(!new.is_some_and(|pod| self.available(pod)));
                }
                (Some(old), Some(new)) if max_surge > 0 => {
                    if !self.available(old) || self.available(new) {
                        delete.push(old);
                    } else {
                        surged += 1;
                    }
                }
                (Some(_), Some(_)) => unavailable += 1,
                (None, _) => {}
            }
        }
        let (left, surging) = if max_surge > 0 {
            (max_surge - surged, true)
        } else {
            (max_unavailable - unavailable, false)
        };
        let turns = in_turn.into_iter().take(usize::try_from(left).unwrap_or(0));
        for (name, old) in at_once.into_iter().chain(turns) {
            if surging {
                create.push(name);
            } else if !delete.iter().any(|p| p.metadata.uid == old.metadata.uid) {
                delete.push(old);
            }
        }
    }

    /// A new pod for a node.
    fn pod(&self, node: &str) -> Pod {
        let template = self.set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let mut metadata = template.metadata.unwrap_or_default();
        let name = self.set.metadata.name.as_deref().unwrap_or_default();
        metadata.name = None;
        metadata.generate_name = Some(format!("{name}-"));
        metadata.namespace.clone_from(&self.set.metadata.namespace);
        metadata.owner_references = Some(vec![controlled_by(self.set)]);
        let labels = metadata.labels.get_or_insert_default();
        labels.insert(HASH.to_owned(), self.hash.to_owned());
        let annotations = self.set.metadata.annotations.as_ref();
        if let Some(generation) = annotations.and_then(|a| a.get(GENERATION)) {
            labels.insert("pod-template-generation".to_owned(), generation.clone());
        }
        let mut spec = template.spec.unwrap_or_default();
        spec.tolerations = Some(tolerations(&spec));
        let field = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
        let mut affinity = json!(spec.affinity.unwrap_or_default());
        let required =
            &mut affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        match required["nodeSelectorTerms"].as_array_mut() {
            Some(terms) if !terms.is_empty() => {
                terms.iter_mut().for_each(|term| term["matchFields"] = field.clone());
            }
            _ => required["nodeSelectorTerms"] = json!([{"matchFields": field}]),
        }
        spec.affinity = serde_json::from_value(affinity).ok();
        Pod { metadata, spec: Some(spec), status: None }
    }
}

fn status(plan: Plan, seen: &Seen, by_node: &ByNode<'_>, hash: &str, now: Timestamp) -> Plan {
    let set = &*seen.set;
    let Some(spec) = &set.spec else { return plan };
    let template = spec.template.spec.clone().unwrap_or_default();
    let (mut desired, mut current, mut stray) = (0, 0, 0);
    let (mut ready, mut available, mut updated) = (0, 0, 0);
    for node in &seen.nodes {
        let pods = by_node.get(node.metadata.name.as_deref().unwrap_or_default());
        if !wanted(&template, node).0 {
            stray += i32::from(pods.is_some());
            continue;
        }
        desired += 1;
        let Some(first) = pods.and_then(|pods| pods.first()) else { continue };
        current += 1;
        let min_ready_s = spec.min_ready_seconds.unwrap_or(0);
        let pods = pods.into_iter().flatten();
        let best = pods.clone().find(|p| is_ready(p)).unwrap_or(first);
        ready += i32::from(is_ready(best));
        available += i32::from(available_in(best, min_ready_s, now) == Some(0));
        let of_now = if hash.is_empty() { false } else { pods.clone().any(|p| hash_of(p) == hash) };
        updated += i32::from(of_now);
    }
    let some = |n: i32| if n == 0 { serde_json::Value::Null } else { json!(n) };
    plan.status(
        set,
        json!({
            "desiredNumberScheduled": desired,
            "currentNumberScheduled": current,
            "numberMisscheduled": stray,
            "numberReady": ready,
            "numberAvailable": some(available),
            "numberUnavailable": some(desired - available),
            "updatedNumberScheduled": some(updated),
            "observedGeneration": set.metadata.generation,
        }),
    )
}

#[cfg(test)]
mod tests;
