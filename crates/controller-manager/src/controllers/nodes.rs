//! The state of nodes: what happens when one is not heard of any more, and the taints that follow from conditions.
//!
//! Whether a node was heard of is judged by our own clock ([`Pulses`]), since a node's may be wrong. Taints that evict are
//! added one node after the other in each zone, and not at all while no node of the cluster is ready: then it is
//! more likely we who are cut off.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Action, Cache, Controller, Key, Plan, Wake};
use daemon::Clock;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};

/// Silence after which a node's state is unknown.
const GRACE: Duration = Duration::from_secs(50);
/// Between two nodes of a zone from which pods are evicted; more while most of a large zone is lost.
const EVICTION_S: i64 = 10;
const SLOW_EVICTION_S: i64 = 100;
/// A zone is lost for the most part when more than two nodes and this many of a hundred are not ready.
const LOST_NODES: usize = 2;
const LOST_PERCENT: usize = 55;
/// In a zone of fewer nodes that is lost for the most part nothing is evicted.
const LARGE_ZONE_NODES: usize = 50;
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Taints that follow from conditions.
const FOLLOWING: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// When each node was last heard of, by our clock.
#[derive(Debug)]
pub struct Pulses {
    clock: Clock,
    began: Duration,
    heard: Mutex<HashMap<String, Duration>>,
}

static PULSES: RwLock<Option<Arc<Pulses>>> = RwLock::new(None);

impl Pulses {
    /// Listens to leases and to what nodes say of themselves; [`NodeLifecycle`] goes by it from now on.
    pub fn listen(cache: &Cache, clock: &Clock) {
        let began = clock.monotonic();
        let pulses = Arc::new(Self { clock: clock.clone(), began, heard: Mutex::default() });
        let leases = pulses.clone();
        cache.on_change::<Lease>(move |change| leases.note(change.key, change.new.is_some()));
        let nodes = pulses.clone();
        cache.on_change::<Node>(move |change| {
            let beat = |node: Option<&Node>| node.and_then(last_beat);
            let (old, new) = (beat(change.old_as()), beat(change.new_as()));
            if change.new.is_none() || old != new {
                nodes.note(change.key, change.new.is_some());
            }
        });
        *PULSES.write() = Some(pulses);
    }

    fn note(&self, key: &Key, there: bool) {
        let mut heard = self.heard.lock();
        if there {
            heard.insert(key.name.clone(), self.clock.monotonic());
        } else {
            heard.remove(&key.name);
        }
    }

    /// For how long nothing was heard of a node.
    fn silence(&self, name: &str) -> Duration {
        let last = self.heard.lock().get(name).copied().unwrap_or(self.began);
        self.clock.monotonic().saturating_sub(last)
    }
}

fn last_beat(node: &Node) -> Option<Timestamp> {
    conditions(node).iter().filter_map(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0).max()
}

/// A node, and how the others are.
#[derive(Debug)]
pub struct SeenNode {
    node: Arc<Node>,
    silence: Duration,
    around: Around,
}

/// The state of a node's zone and of the cluster.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Around {
    ready: usize,
    lost: usize,
    /// Whether a node of any zone is ready.
    any_ready: bool,
    /// When a node of the zone last began to lose its pods.
    evicted: Option<Timestamp>,
}

impl Around {
    fn of(node: &Node, nodes: &[Arc<Node>]) -> Self {
        let mut around = Self::default();
        for other in nodes {
            let ready = ready_status(other) == "True";
            around.any_ready |= ready;
            if zone(other) != zone(node) {
                continue;
            }
            *(if ready { &mut around.ready } else { &mut around.lost }) += 1;
            let evicting = evicting(other).filter_map(|t| t.time_added.as_ref()).map(|t| t.0);
            around.evicted = around.evicted.max(evicting.max());
        }
        around
    }

    /// In how many seconds the next node of the zone may lose its pods; none for not at all.
    fn wait_s(&self, now: Timestamp) -> Option<i64> {
        if !self.any_ready {
            return None;
        }
        let all = self.ready + self.lost;
        let mostly_lost =
            self.ready > 0 && self.lost > LOST_NODES && self.lost * 100 >= all * LOST_PERCENT;
        let pace = match mostly_lost {
            false => EVICTION_S,
            true if all > LARGE_ZONE_NODES => SLOW_EVICTION_S,
            true => return None,
        };
        let since = self.evicted.map_or(pace, |last| now.as_second() - last.as_second());
        Some((pace - since).max(0))
    }
}

fn zone(node: &Node) -> [&str; 2] {
    let label = |name: &str| node.metadata.labels.as_ref().and_then(|l| l.get(name));
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"]
        .map(|name| label(name).map_or("", String::as_str))
}

/// The taints of a node that evict pods because it is not ready.
fn evicting(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let ours = |t: &&Taint| [NOT_READY, UNREACHABLE].contains(&t.key.as_str());
    taints.iter().filter(ours).filter(|t| t.effect == "NoExecute")
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
        let pulses = PULSES.read().clone()?;
        let silence = pulses.silence(&key.name);
        let fine = silence <= GRACE && ready_status(&node) == "True";
        let around =
            if fine { Around::default() } else { Around::of(&node, &cache.list::<Node>()) };
        Some(SeenNode { node, silence, around })
    }

    fn reconcile(seen: &SeenNode, now: Timestamp) -> Plan {
        let node = &*seen.node;
        let mut plan = Plan::new();
        let mut ready = ready_status(node).to_owned();
        if seen.silence > GRACE && ready != "Unknown" {
            plan = plan.push(Action::status(node, unknown(node, now)));
            plan = plan.push(Action::event(
                node,
                "Normal",
                "NodeNotReady",
                format!("Node {} status is now: NodeNotReady", Key::of(&node.metadata).name),
            ));
            ready = "Unknown".into();
        }
        let wait_s = seen.around.wait_s(now);
        // A node that is losing its pods goes on doing so, unless no node is ready any more.
        let evict = wait_s == Some(0) || seen.around.any_ready && evicting(node).next().is_some();
        plan = plan.maybe(taints(node, &ready, evict, now));
        if let (false, false, Some(wait_s)) = (ready == "True", evict, wait_s) {
            plan = plan.requeue_after(Duration::from_secs(wait_s.unsigned_abs().max(1)));
        }
        let grace_left = GRACE.saturating_sub(seen.silence) + Duration::from_secs(1);
        plan.requeue_after(if seen.silence > GRACE { GRACE } else { grace_left })
    }
}

fn conditions(node: &Node) -> &[NodeCondition] {
    node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

pub(super) fn ready_status(node: &Node) -> &str {
    conditions(node).iter().find(|c| c.type_ == "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// Every condition of a node that says nothing any more.
fn unknown(node: &Node, now: Timestamp) -> Value {
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut list: Vec<Value> = Vec::new();
    for kind in ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"] {
        let old = conditions(node).iter().find(|c| c.type_ == kind);
        let beat = old.and_then(|c| c.last_heartbeat_time.as_ref()).map(|t| json!(t));
        let (reason, message) = match old {
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        list.push(json!({
            "type": kind,
            "status": "Unknown",
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": beat.unwrap_or_else(|| json!(at)),
            "lastTransitionTime": at,
        }));
    }
    json!({ "conditions": list })
}

/// The taints that the node's conditions bring, if they are not what it has.
fn taints(node: &Node, ready: &str, evict: bool, now: Timestamp) -> Option<Action> {
    let present = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let not_ready = match ready {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    wanted.extend(not_ready.map(|key| (key, "NoSchedule")));
    wanted.extend(not_ready.filter(|_| evict).map(|key| (key, "NoExecute")));
    for (kind, taint) in FOLLOWING {
        if conditions(node).iter().any(|c| c.type_ == kind && c.status == "True") {
            wanted.push((taint, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |key: &str| {
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key)
            || FOLLOWING.iter().any(|(_, taint)| *taint == key)
    };
    let mut next: Vec<Taint> = present
        .iter()
        .filter(|t| !ours(&t.key) || wanted.contains(&(t.key.as_str(), t.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !next.iter().any(|t| t.key == key && t.effect == effect) {
            next.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: (effect == "NoExecute").then_some(Time(now)),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn node(name: &str, zone: &str, ready: &str, taints: Value) -> Arc<Node> {
        let node = json!({
            "metadata": {"name": name, "uid": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    /// What is planned for the first of these nodes after `silent_s`.
    fn plan(nodes: &[Arc<Node>], silent_s: u64, now: i64) -> (Vec<String>, String) {
        let node = nodes[0].clone();
        let around = Around::of(&node, nodes);
        let seen = SeenNode { node, silence: Duration::from_secs(silent_s), around };
        let plan = NodeLifecycle::reconcile(&seen, at(now));
        let taints = format!("{:?}", plan.actions.last().map(|a| &a.op));
        (plan.actions.iter().map(ToString::to_string).collect(), taints)
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_is_tainted() {
        let nodes = [node("a", "z", "True", Value::Null), node("b", "z", "True", Value::Null)];
        assert!(plan(&nodes, 10, 10).0.is_empty());
        let (lines, taints) = plan(&nodes, 51, 100);
        assert_eq!(lines, ["status nodes a", "event a NodeNotReady", "patch nodes a"]);
        assert!(taints.contains("NoExecute"), "{taints}");
    }

    #[test]
    fn pods_of_one_node_of_a_zone_are_evicted_at_a_time() {
        let evicting = json!([{"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:40Z"}]);
        let nodes = |zone: &str| {
            let lost = node("a", "z", "Unknown", Value::Null);
            let other = node("b", zone, "Unknown", evicting.clone());
            [lost, other, node("c", "z", "True", Value::Null)]
        };
        assert!(!plan(&nodes("z"), 60, 105).1.contains("NoExecute"));
        assert!(plan(&nodes("z"), 60, 110).1.contains("NoExecute"));
        assert!(plan(&nodes("other"), 60, 105).1.contains("NoExecute"));
    }

    #[test]
    fn nothing_is_evicted_when_no_node_is_ready_or_most_of_a_small_zone_is_lost() {
        let evicting = json!([{"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "1970-01-01T00:00:00Z"}]);
        let lost = |name: &str| node(name, "z", "Unknown", Value::Null);
        let ready = |name: &str| node(name, "z", "True", Value::Null);
        let alone = [node("a", "z", "Unknown", evicting)];
        let (lines, taints) = plan(&alone, 60, 1000);
        assert_eq!(lines, ["patch nodes a"], "it gets its pods back");
        assert!(!taints.contains("NoExecute"), "{taints}");
        let mostly = [lost("a"), lost("b"), lost("c"), ready("d"), ready("e")];
        assert!(!plan(&mostly, 60, 1000).1.contains("NoExecute"));
        let partly = [lost("a"), lost("b"), ready("c"), ready("d")];
        assert!(plan(&partly, 60, 1000).1.contains("NoExecute"));
    }

    #[test]
    fn a_ready_node_loses_the_taint_it_began_with() {
        let begun = json!([{"key": NOT_READY, "effect": "NoSchedule"}]);
        assert!(taints(&node("a", "z", "True", begun), "True", true, at(0)).is_some());
    }
}
