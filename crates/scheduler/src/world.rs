//! What the scheduler has heard so far, and which waiting pods each piece of news concerns. Pure but for the lock that
//! its users put around it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::Key;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;

use crate::ask::{self, Ask, GROUP};
use crate::filters::{Plugin, Plugins};
use crate::place::{Nowhere, Placement, place};
use crate::queue::{Group, Queue};
use crate::snapshot::{Budget, Snapshot};
use crate::volumes::Step;

/// Whom it concerns that a pod leaves a node.
const LEFT: Plugins = Plugins::of(&[
    Plugin::NodeResourcesFit,
    Plugin::NodePorts,
    Plugin::PodTopologySpread,
    Plugin::InterPodAffinity,
    Plugin::VolumeRestrictions,
]);
/// Whom it concerns that a pod comes to a node, or changes its labels.
const CAME: Plugins = Plugins::of(&[Plugin::PodTopologySpread, Plugin::InterPodAffinity]);
const FIT: Plugins = Plugins::of(&[Plugin::NodeResourcesFit]);
/// Whom a node's labels concern.
const LABELS: Plugins =
    Plugins::of(&[Plugin::NodeAffinity, Plugin::PodTopologySpread, Plugin::InterPodAffinity]);
/// Whom its taints do.
const TAINTS: Plugins =
    Plugins::of(&[Plugin::TaintToleration, Plugin::NodeUnschedulable, Plugin::PodTopologySpread]);

/// Whom claims, volumes and their classes concern.
const VOLUMES: Plugins = Plugins::of(&[Plugin::VolumeBinding, Plugin::VolumeRestrictions]);

/// The cluster and the pods that wait.
#[derive(Debug)]
pub struct World {
    /// Nodes and placed pods.
    pub snapshot: Snapshot,
    /// Waiting pods.
    pub queue: Queue,
    /// Pods that name this scheduler are ours.
    name: String,
    /// The number of the node that is looked at first.
    next: usize,
}

/// What becomes of a pod.
pub type Decided = (Ask, Arc<Pod>, Placement);

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn nominated(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref()).unwrap_or_default()
}

fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn group(pod: &Pod) -> Option<Group> {
    let name = pod.metadata.labels.as_ref()?.get(GROUP)?;
    Some((pod.metadata.namespace.clone().unwrap_or_default(), name.clone()))
}

/// Whether anything that the snapshot holds of a placed pod differs.
fn seen_otherwise(old: &Pod, new: &Pod) -> bool {
    node_of(old) != node_of(new)
        || old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.metadata.owner_references != new.metadata.owner_references
        || old.metadata.deletion_timestamp.is_some() != new.metadata.deletion_timestamp.is_some()
}

impl World {
    /// Nothing heard yet; pods that name `name` are ours.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            name: name.to_owned(),
            next: 0,
        }
    }

    /// Whether the pod waits for us.
    #[must_use]
    pub fn waits(&self, pod: &Pod) -> bool {
        let spec = pod.spec.as_ref();
        node_of(pod).is_empty()
            && !ended(pod)
            && pod.metadata.deletion_timestamp.is_none()
            && spec.and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler")
                == self.name
            && spec.and_then(|s| s.scheduling_gates.as_ref()).is_none_or(Vec::is_empty)
    }

    /// A pod is new, other than it was, or gone.
    pub fn pod_changed(&mut self, key: &Key, old: Option<&Pod>, new: Option<&Pod>, now: Duration) {
        match new {
            Some(pod) if self.waits(pod) => {
                let ask = self.snapshot.ask(pod);
                self.snapshot.nominate(&ask, nominated(pod));
                // A change of status alone, our own FailedScheduling for one, is no reason to try again.
                if old.is_none_or(|old| {
                    old.spec != pod.spec || old.metadata.labels != pod.metadata.labels
                }) {
                    let created = pod.metadata.creation_timestamp.as_ref();
                    let created_s = created.map_or(0, |t| t.0.as_second());
                    self.queue.add(key, ask.priority, created_s, group(pod));
                }
            }
            Some(pod) if !node_of(pod).is_empty() && !ended(pod) => {
                self.queue.remove(key);
                if old.is_none_or(|old| seen_otherwise(old, pod)) {
                    let ask = self.snapshot.ask(pod);
                    self.snapshot.nominate(&ask, "");
                    self.snapshot.place(&ask, node_of(pod));
                    self.queue.changed(now, CAME);
                    // Less may be asked for than before.
                    if old.is_some_and(|old| old.spec != pod.spec) {
                        self.queue.changed(now, FIT);
                    }
                }
            }
            _ => {
                self.queue.remove(key);
                self.snapshot.nominate(&Ask { key: key.clone(), ..Ask::default() }, "");
                let held = self.snapshot.placed(key).is_some();
                self.snapshot.forget(key);
                if held {
                    self.queue.changed(now, LEFT);
                }
            }
        }
    }

    /// A node is new, other than it was, or gone.
    pub fn node_changed(
        &mut self,
        key: &Key,
        old: Option<&Node>,
        new: Option<&Arc<Node>>,
        now: Duration,
    ) {
        let Some(node) = new else {
            self.snapshot.remove_node(&key.name);
            self.queue.changed(now, CAME);
            return;
        };
        let status =
            |n: &Node| n.status.as_ref().map(|s| (s.allocatable.clone(), s.images.clone()));
        let Some(old) = old else {
            self.snapshot.put_node(node.clone());
            self.queue.changed(now, Plugins::ALL);
            return;
        };
        let labels = old.metadata.labels != node.metadata.labels;
        let (spec, status) = (old.spec != node.spec, status(old) != status(node));
        // Heartbeats change nothing that a pod could wait for.
        if labels || spec || status {
            self.snapshot.put_node(node.clone());
        }
        for (changed, whom) in [(labels, LABELS), (spec, TAINTS), (status, FIT)] {
            if changed {
                self.queue.changed(now, whom);
            }
        }
    }

    /// A namespace is there or gone; affinity terms may select it by its labels.
    pub fn namespace_changed(&mut self, key: &Key, new: Option<&Namespace>, now: Duration) {
        let labels = new.map(|n| n.metadata.labels.clone().unwrap_or_default());
        let old = self.snapshot.namespaces.remove(&key.name);
        if old != labels {
            self.queue.changed(now, Plugins::of(&[Plugin::InterPodAffinity]));
        }
        if let Some(labels) = labels {
            self.snapshot.namespaces.insert(key.name.clone(), labels);
        }
    }

    /// A disruption budget is there, has changed, or is gone.
    pub fn budget_changed(&mut self, key: &Key, new: Option<&PodDisruptionBudget>) {
        let Some(budget) = new else {
            self.snapshot.budgets.remove(key);
            return;
        };
        let status = budget.status.clone().unwrap_or_default();
        let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        let disrupted: BTreeSet<String> =
            status.disrupted_pods.unwrap_or_default().into_keys().collect();
        let budget = Budget {
            namespace: key.namespace.clone(),
            selector: ask::selector(selector),
            allowed: status.disruptions_allowed.unwrap_or(0),
            disrupted,
        };
        self.snapshot.budgets.insert(key.clone(), budget);
    }

    /// A claim is there, has changed, or is gone.
    pub fn claim_changed(&mut self, key: &Key, new: Option<&PersistentVolumeClaim>, now: Duration) {
        self.snapshot.storage.claim_changed(key, new);
        self.queue.changed(now, VOLUMES);
    }

    /// A volume is there, has changed, or is gone.
    pub fn volume_changed(&mut self, key: &Key, new: Option<&PersistentVolume>, now: Duration) {
        self.snapshot.storage.volume_changed(&key.name, new);
        self.queue.changed(now, VOLUMES);
    }

    /// A storage class is there, has changed, or is gone.
    pub fn class_changed(&mut self, key: &Key, new: Option<&StorageClass>, now: Duration) {
        self.snapshot.storage.class_changed(&key.name, new);
        self.queue.changed(now, VOLUMES);
    }

    /// What is to be written before this pod can be bound to the node it was placed on.
    #[must_use]
    pub fn steps(&self, ask: &Ask, node: &str) -> Vec<Step> {
        let state = self.snapshot.number(node).and_then(|id| self.snapshot.node(id));
        state.map(|state| self.snapshot.storage.steps(ask, &state.node)).unwrap_or_default()
    }

    /// Decides for these pods; what is placed counts from now on, and for the next of them.
    pub fn decide(&mut self, pods: Vec<Arc<Pod>>) -> Vec<Decided> {
        let mut decided = Vec::with_capacity(pods.len());
        let mut groups: Vec<(Group, Vec<Arc<Pod>>)> = Vec::new();
        for pod in pods {
            match group(&pod) {
                None => decided.push(self.decide_one(pod)),
                Some(group) => match groups.iter_mut().find(|(known, _)| *known == group) {
                    Some((_, members)) => members.push(pod),
                    None => groups.push((group, vec![pod])),
                },
            }
        }
        for (group, members) in groups {
            decided.extend(self.decide_group(&group, members));
        }
        decided
    }

    fn decide_one(&mut self, pod: Arc<Pod>) -> Decided {
        let ask = self.snapshot.ask(&pod);
        let (mut placement, next) = place(&ask, &self.snapshot, self.next);
        self.next = next;
        match &mut placement {
            Placement::Node(node) => {
                self.snapshot.nominate(&ask, "");
                self.snapshot.place(&ask, node);
            }
            Placement::Nowhere(nowhere) => {
                // Others of this round must not take what is made free for it.
                if let Some(preemption) = &nowhere.preemption {
                    self.snapshot.nominate(&ask, &preemption.node);
                }
            }
        }
        (ask, pod, placement)
    }

    /// A group finds places for as many as it needs, or for none.
    fn decide_group(&mut self, group: &Group, pods: Vec<Arc<Pod>>) -> Vec<Decided> {
        let member = |shape: &ask::Shape| {
            shape.namespace == group.0 && shape.labels.get(GROUP) == Some(&group.1)
        };
        let classes = self.snapshot.classes().filter(|class| member(&class.shape));
        let there: usize = classes.flat_map(|c| c.on.values()).map(|n| *n as usize).sum();
        let pods_there = there + pods.len();
        let mut decided: Vec<Decided> = pods.into_iter().map(|pod| self.decide_one(pod)).collect();
        let least =
            decided.iter().filter_map(|(ask, _, _)| ask.group.as_ref()).map(|(_, n)| *n).max();
        let least = least.unwrap_or(1);
        let placed = |d: &&Decided| matches!(d.2, Placement::Node(_));
        let found = there + decided.iter().filter(placed).count();
        if found >= least {
            return decided;
        }
        let name = &group.1;
        for (ask, _, placement) in &mut decided {
            let (mut by, message) = match placement {
                Placement::Nowhere(nowhere) => (nowhere.by, nowhere.message.clone()),
                Placement::Node(_) if pods_there < least => (
                    Plugins::default(),
                    format!("pod group {name:?} needs {least} pods and has {pods_there}."),
                ),
                Placement::Node(_) => (
                    Plugins::ALL,
                    format!("pod group {name:?} needs places for {least} pods and finds {found}."),
                ),
            };
            by.insert(Plugin::Group);
            self.snapshot.forget(&ask.key);
            self.snapshot.nominate(ask, "");
            *placement = Placement::Nowhere(Nowhere { message, by, preemption: None });
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn world(nodes: usize) -> World {
        let mut world = World::new("default-scheduler");
        for i in 0..nodes {
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": format!("n{i}")},
                "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}}
            }))
            .unwrap();
            world.node_changed(
                &Key::of(&node.metadata),
                None,
                Some(&Arc::new(node)),
                Duration::ZERO,
            );
        }
        world
    }

    fn member(name: &str, least: &str) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": name, "namespace": "ns", "labels": {GROUP: "g", ask::GROUP_MIN: least}},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn placed(decided: &[Decided]) -> usize {
        decided.iter().filter(|d| matches!(d.2, Placement::Node(_))).count()
    }

    #[test]
    fn a_group_is_placed_whole_or_not_at_all() {
        let mut two = world(2);
        let pods = || vec![member("a", "3"), member("b", "3"), member("c", "3")];
        assert_eq!(placed(&two.decide(pods())), 0);
        assert_eq!(two.snapshot.nodes().map(|(_, n)| n.pods.len()).sum::<usize>(), 0);
        assert_eq!(placed(&world(3).decide(pods())), 3);
    }

    #[test]
    fn a_group_waits_for_its_pods() {
        let mut world = world(3);
        let decided = world.decide(vec![member("a", "2")]);
        let Placement::Nowhere(nowhere) = &decided[0].2 else { panic!("placed") };
        assert_eq!(nowhere.message, "pod group \"g\" needs 2 pods and has 1.");
        assert_eq!(placed(&world.decide(vec![member("a", "2"), member("b", "2")])), 2);
        // One that comes later finds the others there.
        assert_eq!(placed(&world.decide(vec![member("c", "2")])), 1);
    }

    #[test]
    fn a_gated_pod_and_another_scheduler_s_do_not_wait() {
        let world = world(0);
        let pod = |spec| serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        assert!(world.waits(&pod(json!({"containers": []}))));
        let gates = json!({"containers": [], "schedulingGates": [{"name": "g"}]});
        assert!(!world.waits(&pod(gates)));
        assert!(!world.waits(&pod(json!({"containers": [], "schedulerName": "other"}))));
        assert!(!world.waits(&pod(json!({"containers": [], "nodeName": "n"}))));
    }
}
