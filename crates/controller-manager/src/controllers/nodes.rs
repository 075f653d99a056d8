//! Nodes: a range of pod addresses for each, and what happens when one is not heard of any more.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use serde_json::{Value, json};

use crate::pods::condition;

/// How long a node without a range waits until it is looked whether one has become free.
const FULL_WAIT: Duration = Duration::from_secs(60);
/// Where nodes renew their leases.
const LEASES: &str = "kube-node-lease";
/// Silence after which a node's state is unknown.
const GRACE_S: i64 = 50;
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Taints that follow from conditions, by condition and the status that brings them.
const FOLLOWING: [(&str, &str, &str); 3] = [
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// The cluster's pod range and the size of a node's part of it.
#[derive(Debug, Clone, Copy)]
pub struct PodRange {
    base: u32,
    prefix: u8,
    node_prefix: u8,
}

static RANGE: OnceLock<PodRange> = OnceLock::new();

impl PodRange {
    /// Reads `a.b.c.d/n`; each node gets a /24, or a sixteenth of a smaller range.
    ///
    /// # Errors
    /// Says what the text should be.
    pub fn parse(cidr: &str) -> anyhow::Result<Self> {
        let bad = || anyhow::anyhow!("{cidr:?} is no IPv4 range like 10.244.0.0/16");
        let (address, prefix) = cidr.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        anyhow::ensure!((8..=24).contains(&prefix), "{cidr:?}: the prefix must be /8 to /24");
        let base = u32::from(address) & (u32::MAX << (32 - prefix));
        Ok(Self { base, prefix, node_prefix: if prefix <= 20 { 24 } else { prefix + 4 } })
    }

    /// Makes this the range that [`NodeRanges`] deals out.
    pub fn publish(self) {
        // A second call in one process is the restart of a daemon inside `up`, with the same range.
        let _ = RANGE.set(self);
    }

    fn count(self) -> usize {
        1 << (self.node_prefix - self.prefix)
    }

    fn parts(self) -> impl Iterator<Item = String> {
        let size = 1_u32 << (32 - self.node_prefix);
        (0..self.count() as u32).map(move |part| {
            format!("{}/{}", Ipv4Addr::from(self.base + part * size), self.node_prefix)
        })
    }
}

/// How many nodes get their ranges by one decision.
const DEALT_MAX: usize = 256;

/// Index function: the range of a node's pods, or empty while it has none.
pub fn range_of(node: &Node) -> Vec<String> {
    vec![node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).unwrap_or_default()]
}

/// Nodes without a range, and the ranges that others have.
#[derive(Debug)]
pub struct SeenRanges {
    range: PodRange,
    waiting: Vec<Arc<Node>>,
    taken: BTreeSet<String>,
}

/// Deals out pod ranges, to all nodes that wait at once.
#[derive(Debug)]
pub struct NodeRanges;

impl Controller for NodeRanges {
    const NAME: &'static str = "node-ipam";
    type Seen = SeenRanges;
    const WAKES: &'static [Wake] = &[Wake::own("Node")];
    // No range is dealt out twice.
    const KEYS_MAX: usize = 1;

    fn observe(cache: &Cache, key: &Key) -> Option<SeenRanges> {
        let node = cache.at::<Node>(key)?;
        let range = *RANGE.get()?;
        if range_of(&node) != [""] {
            return None;
        }
        let mut waiting = cache.find::<Node>("range", "");
        if cache.count::<Node>() - waiting.len() >= range.count() {
            return Some(SeenRanges { range, waiting: vec![node], taken: range.parts().collect() });
        }
        waiting.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        waiting.truncate(DEALT_MAX);
        if !waiting.iter().any(|other| other.metadata.name == node.metadata.name) {
            waiting.push(node);
        }
        let taken = cache.list::<Node>().iter().flat_map(|node| range_of(node)).collect();
        Some(SeenRanges { range, waiting, taken })
    }

    fn reconcile(seen: &SeenRanges, _: Timestamp) -> Plan {
        let mut free = seen.range.parts().filter(|part| !seen.taken.contains(part));
        let mut plan = Plan::new();
        for node in &seen.waiting {
            let Some(part) = free.next() else {
                let message = "No pod range is left for this node";
                return plan
                    .push(Action::event(&**node, "Warning", "CIDRNotAvailable", message))
                    .requeue_after(FULL_WAIT);
            };
            let change = json!({"spec": {"podCIDR": part, "podCIDRs": [part]}});
            plan = plan.push(Action::merge_if_unchanged(&**node, change));
        }
        plan
    }
}

/// A node with its lease.
#[derive(Debug)]
pub struct SeenNode {
    node: Arc<Node>,
    lease: Option<Arc<Lease>>,
}

/// Marks nodes that are not heard of, and keeps the taints that follow from conditions.
#[derive(Debug)]
pub struct NodeLifecycle;

impl Controller for NodeLifecycle {
    const NAME: &'static str = "node-lifecycle";
    type Seen = SeenNode;
    const WAKES: &'static [Wake] = &[Wake::own("Node")];

    fn observe(cache: &Cache, key: &Key) -> Option<SeenNode> {
        let node = cache.at::<Node>(key)?;
        Some(SeenNode { lease: cache.get::<Lease>(LEASES, &key.name), node })
    }

    fn reconcile(seen: &SeenNode, now: Timestamp) -> Plan {
        let node = &*seen.node;
        let silent_s = now.as_second() - last_heard(seen).as_second();
        let mut plan = Plan::new();
        let mut status = ready_status(node).to_owned();
        if silent_s > GRACE_S && status != "Unknown" {
            plan = plan.push(Action::status(node, unknown(node, now)));
            plan = plan.push(Action::event(
                node,
                "Normal",
                "NodeNotReady",
                format!("Node {} status is now: NodeNotReady", key(node).name),
            ));
            status = "Unknown".into();
        }
        plan = plan.maybe(taints(node, &status, now));
        let wait = (GRACE_S - silent_s + 1).clamp(1, GRACE_S);
        plan.requeue_after(Duration::from_secs(wait.unsigned_abs()))
    }
}

fn key(node: &Node) -> Key {
    Key::of(&node.metadata)
}

fn conditions(node: &Node) -> &[NodeCondition] {
    node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

fn ready_status(node: &Node) -> &str {
    conditions(node).iter().find(|c| c.type_ == "Ready").map_or("Unknown", |c| c.status.as_str())
}

fn last_heard(seen: &SeenNode) -> Timestamp {
    let renewed =
        seen.lease.as_ref().and_then(|l| l.spec.as_ref()?.renew_time.as_ref()).map(|t| t.0);
    let beats = conditions(&seen.node).iter().filter_map(|c| c.last_heartbeat_time.as_ref());
    let created = seen.node.metadata.creation_timestamp.as_ref().map(|t| t.0);
    renewed
        .into_iter()
        .chain(beats.map(|t| t.0))
        .chain(created)
        .max()
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Every condition of a node that says nothing any more.
fn unknown(node: &Node, now: Timestamp) -> Value {
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut list: Vec<Value> = Vec::new();
    for kind in ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"] {
        let old = conditions(node).iter().find(|c| c.type_ == kind);
        let beat = old.and_then(|c| c.last_heartbeat_time.as_ref()).map(|t| json!(t));
        list.push(json!({
            "type": kind,
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.",
            "lastHeartbeatTime": beat.unwrap_or_else(|| json!(at)),
            "lastTransitionTime": at,
        }));
    }
    json!({ "conditions": list })
}

/// The taints that the node's conditions bring, if they are not what it has.
fn taints(node: &Node, ready: &str, now: Timestamp) -> Option<Action> {
    let present = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match ready {
        "True" => {}
        "False" => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        _ => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
    }
    for (kind, status, taint) in FOLLOWING {
        if conditions(node).iter().any(|c| c.type_ == kind && c.status == status) {
            wanted.push((taint, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |key: &str| {
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key)
            || FOLLOWING.iter().any(|(_, _, taint)| *taint == key)
    };
    let mut next: Vec<Taint> = present
        .iter()
        .filter(|t| !ours(&t.key) || wanted.contains(&(t.key.as_str(), t.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !next.iter().any(|t| t.key == key && t.effect == effect) {
            let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now);
            next.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: (effect == "NoExecute").then_some(at),
                value: None,
            });
        }
    }
    if next == present {
        return None;
    }
    let taints = if next.is_empty() { Value::Null } else { json!(next) };
    Some(Action::merge_if_unchanged(node, json!({"spec": {"taints": taints}})))
}

/// A pod on a node with taints that it does not tolerate for ever.
#[derive(Debug)]
pub struct SeenPod {
    pod: Arc<Pod>,
    node: Option<Arc<Node>>,
}

/// Evicts pods from nodes whose NoExecute taints they do not tolerate, removes pods of nodes that are gone, and
/// marks pods of lost nodes as not ready.
#[derive(Debug)]
pub struct PodEviction;

impl Controller for PodEviction {
    const NAME: &'static str = "taint-eviction";
    type Seen = SeenPod;
    const WAKES: &'static [Wake] = &[
        Wake::own("Pod"),
        Wake::keys("Node", |cache, changed| {
            let taints = |node: Option<&Node>| {
                node.map(|n| {
                    (n.spec.as_ref().and_then(|s| s.taints.clone()), ready_status(n).to_owned())
                })
            };
            if taints(changed.old_as::<Node>()) == taints(changed.new_as::<Node>()) {
                return Vec::new();
            }
            let pods = cache.find::<Pod>("node", &changed.key.name);
            pods.iter().map(|pod| Key::of(&pod.metadata)).collect()
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<SeenPod> {
        let pod = cache.at::<Pod>(key)?;
        let name = pod.spec.as_ref()?.node_name.clone().filter(|n| !n.is_empty())?;
        Some(SeenPod { node: cache.get::<Node>("", &name), pod })
    }

    fn reconcile(seen: &SeenPod, now: Timestamp) -> Plan {
        let pod = &*seen.pod;
        let Some(node) = &seen.node else {
            // No agent will ever finish this pod.
            let how = client::transport::Delete { grace_period_s: Some(0), ..Default::default() };
            return Plan::new().push(Action::delete_with(pod, how));
        };
        let mut plan = Plan::new();
        if ready_status(node) == "Unknown"
            && condition(pod, "Ready").is_some_and(|c| c.status == "True")
        {
            let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let change = json!({"status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": at}
            ]}});
            let patch = client::Patch::Strategic(change);
            plan = plan.push(Action::patch(pod, "status", patch));
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return plan;
        }
        match stay_s(pod, node, now) {
            None => plan,
            Some(left) if left > 0 => plan.requeue_after(Duration::from_secs(left.unsigned_abs())),
            Some(_) => plan
                .push(Action::event(
                    pod,
                    "Normal",
                    "TaintManagerEviction",
                    format!("Marking for deletion Pod {}", Key::of(&pod.metadata)),
                ))
                .push(Action::delete(pod)),
        }
    }
}

/// Seconds for which the pod may stay; `None` for ever.
fn stay_s(pod: &Pod, node: &Node, now: Timestamp) -> Option<i64> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .filter_map(|taint| {
            let tolerated: Vec<Option<i64>> = tolerations
                .iter()
                .filter(|t| {
                    let key = t.key.as_deref().unwrap_or_default();
                    let effect = t.effect.as_deref().unwrap_or_default();
                    let value = t.operator.as_deref() == Some("Exists")
                        || t.value.as_deref().unwrap_or_default()
                            == taint.value.as_deref().unwrap_or_default();
                    (effect.is_empty() || effect == taint.effect)
                        && (key.is_empty() || key == taint.key)
                        && value
                })
                .map(|t| t.toleration_seconds)
                .collect();
            if tolerated.is_empty() {
                return Some(0);
            }
            let shortest = tolerated.into_iter().flatten().min()?;
            let since = taint.time_added.as_ref().map_or(now, |t| t.0);
            Some((shortest - (now.as_second() - since.as_second())).max(0))
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn node(ready: &str, taints: Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n", "uid": "n", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}
        }))
        .unwrap()
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_is_tainted() {
        let seen = SeenNode { node: Arc::new(node("True", Value::Null)), lease: None };
        assert!(NodeLifecycle::reconcile(&seen, at(10)).is_empty());
        let plan = NodeLifecycle::reconcile(&seen, at(100));
        let lines: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["status nodes n", "event n NodeNotReady", "patch nodes n"]);
    }

    #[test]
    fn a_ready_node_loses_the_taint_it_began_with() {
        let tainted = node("True", json!([{"key": NOT_READY, "effect": "NoSchedule"}]));
        assert!(taints(&tainted, "True", at(0)).is_some());
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let node = node(
            "False",
            json!([
                {"key": NOT_READY, "effect": "NoExecute", "timeAdded": "1970-01-01T00:00:00Z"}
            ]),
        );
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "tolerations": [
            {"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        ]}})).unwrap();
        assert_eq!(stay_s(&pod, &node, at(100)), Some(200));
        assert_eq!(stay_s(&Pod::default(), &node, at(100)), Some(0));
    }

    #[test]
    fn all_that_wait_get_ranges_until_none_is_left() {
        let range = PodRange::parse("10.244.0.0/22").unwrap();
        let waiting: Vec<Arc<Node>> =
            (0..17).map(|_| Arc::new(node("True", Value::Null))).collect();
        let taken = BTreeSet::from(["10.244.0.0/26".to_owned()]);
        let plan = NodeRanges::reconcile(&SeenRanges { range, waiting, taken }, at(0));
        let lines: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
        assert_eq!(lines.iter().filter(|l| l.starts_with("patch")).count(), 15);
        assert_eq!(lines[15..], ["event n CIDRNotAvailable"]);
    }

    #[test]
    fn ranges_are_dealt_out_in_order() {
        let range = PodRange::parse("10.244.0.0/16").unwrap();
        let parts: Vec<String> = range.parts().take(2).collect();
        assert_eq!(parts, ["10.244.0.0/24", "10.244.1.0/24"]);
        assert!(PodRange::parse("10.244.0.0/30").is_err());
    }
}
