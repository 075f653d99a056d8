//! What the scheduler knows: the nodes, what the pods on them take, and which pods are where. Pure.
//!
//! Changed object by object as events come in; never rebuilt. Pods that others cannot tell apart are one [`Class`], so
//! that a rule about other pods is asked once a class and not once a pod; nodes have numbers, and so have the values
//! of a topology, so that counting by topology is adding to a vector.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use api::selector::LabelSelector;
use client::Key;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};

use crate::ask::{Amounts, Ask, HostPort, Namespaces, Shape, Takes};
use crate::volumes::Storage;

/// A node and what is taken of it.
#[derive(Debug, Clone)]
pub struct NodeState {
    /// The object.
    pub node: Arc<Node>,
    /// What pods may take.
    pub allocatable: Amounts,
    /// How many pods it may have.
    pub pods_max: usize,
    /// What pods have taken.
    pub requested: Amounts,
    /// CPU and memory taken, as nodes are compared by.
    pub weighed: (i64, i64),
    /// Host ports in use, and by how many pods.
    pub ports: BTreeMap<HostPort, usize>,
    /// The pods on it.
    pub pods: Vec<Arc<Placed>>,
}

impl NodeState {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// One of its labels.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// Its taints.
    #[must_use]
    pub fn taints(&self) -> &[Taint] {
        self.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
    }

    fn read(&mut self, node: Arc<Node>) {
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        self.allocatable = Amounts::read(allocatable);
        self.pods_max = usize::try_from(self.allocatable.of("pods")).unwrap_or(0);
        self.node = node;
    }

    /// A pod is on it from now on.
    pub fn add(&mut self, pod: Arc<Placed>) {
        self.count(&pod.takes, 1);
        for port in &pod.takes.ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
        self.pods.push(pod);
    }

    /// A pod is no longer on it.
    pub fn remove(&mut self, key: &Key) {
        let Some(at) = self.pods.iter().position(|p| p.key == *key) else { return };
        let pod = self.pods.swap_remove(at);
        self.count(&pod.takes, -1);
        for port in &pod.takes.ports {
            if let Some(users) = self.ports.get_mut(port) {
                *users -= 1;
                if *users == 0 {
                    self.ports.remove(port);
                }
            }
        }
    }

    fn count(&mut self, takes: &Takes, sign: i64) {
        self.requested.add(&takes.amounts, sign);
        self.weighed.0 += takes.weighed.0 * sign;
        self.weighed.1 += takes.weighed.1 * sign;
    }
}

/// A pod on a node, bound or about to be.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Which pod.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// The node's name.
    pub node: String,
    /// What it takes.
    pub takes: Takes,
    /// Its class.
    pub class: usize,
    /// Its priority.
    pub priority: i32,
    /// Since when, in seconds since 1970.
    pub since_s: i64,
}

/// Pods of one shape.
#[derive(Debug)]
pub struct Class {
    /// What others see of them.
    pub shape: Arc<Shape>,
    /// How many of them are on which node.
    pub on: HashMap<usize, u32>,
    /// How many of them are placed, also on nodes that are not known yet.
    total: usize,
}

/// The values of one label among the nodes.
#[derive(Debug, Default)]
pub struct Topology {
    /// The label's key.
    pub key: String,
    /// By node: the number of its value.
    pub of: Vec<Option<u32>>,
    numbers: HashMap<String, u32>,
}

impl Topology {
    /// How many values there have been.
    #[must_use]
    pub fn domains(&self) -> usize {
        self.numbers.len()
    }

    fn read(&mut self, id: usize, value: Option<&str>) {
        if self.of.len() <= id {
            self.of.resize(id + 1, None);
        }
        self.of[id] = value.map(|value| match self.numbers.get(value) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
                self.numbers.insert(value.to_owned(), number);
                number
            }
        });
    }
}

/// An image that nodes have.
#[derive(Debug, Default)]
pub struct Image {
    /// Its size.
    pub bytes: i64,
    /// The nodes that have it.
    pub nodes: HashSet<usize>,
}

/// A PodDisruptionBudget, as far as it says who may go.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// Its pods.
    pub selector: LabelSelector,
    /// How many may go now.
    pub allowed: i32,
    /// Those that are going already, by name.
    pub disrupted: BTreeSet<String>,
}

/// All nodes and the pods on them, bound or about to be.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: Vec<Option<NodeState>>,
    names: BTreeMap<String, usize>,
    free: Vec<usize>,
    placed: HashMap<Key, Arc<Placed>>,
    /// The nodes whose pods use a claim, one for each pod.
    users: HashMap<Key, Vec<String>>,
    classes: Vec<Option<Class>>,
    class_of: HashMap<Arc<Shape>, usize>,
    topologies: Vec<Topology>,
    images: HashMap<String, Image>,
    /// Pods that wait for others to leave a node, by the node's name.
    pub nominated: BTreeMap<String, BTreeMap<Key, Arc<Placed>>>,
    /// Labels of the namespaces.
    pub namespaces: Namespaces,
    /// Disruption budgets.
    pub budgets: BTreeMap<Key, Budget>,
    /// Claims and volumes.
    pub storage: Storage,
}

impl Snapshot {
    /// Reads a pod that looks for a node, or has one.
    pub fn ask(&mut self, pod: &Pod) -> Ask {
        Ask::read(pod, &mut |key| self.topology_number(key))
    }

    fn topology_number(&mut self, key: &str) -> usize {
        if let Some(number) = self.topologies.iter().position(|t| t.key == key) {
            return number;
        }
        let mut topology = Topology { key: key.to_owned(), ..Topology::default() };
        for (id, state) in self.nodes() {
            topology.read(id, state.label(key));
        }
        self.topologies.push(topology);
        self.topologies.len() - 1
    }

    /// A node is there, or has changed.
    pub fn put_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let known = self.names.get(&name).copied();
        let id = known.unwrap_or_else(|| {
            let id = self.free.pop().unwrap_or(self.nodes.len());
            if id == self.nodes.len() {
                self.nodes.push(None);
            }
            self.names.insert(name.clone(), id);
            id
        });
        self.renumber();
        for topology in &mut self.topologies {
            let labels = node.metadata.labels.as_ref();
            topology.read(id, labels.and_then(|l| l.get(&topology.key)).map(String::as_str));
        }
        self.read_images(id, Some(&node));
        let state = self.nodes[id].get_or_insert_with(|| NodeState {
            node: node.clone(),
            allocatable: Amounts::default(),
            pods_max: 0,
            requested: Amounts::default(),
            weighed: (0, 0),
            ports: BTreeMap::new(),
            pods: Vec::new(),
        });
        state.read(node);
        if known.is_none() {
            // Pods may have been heard of before their node.
            let waiting: Vec<_> =
                self.placed.values().filter(|p| p.node == name).cloned().collect();
            for placed in waiting {
                self.count(&placed, true);
            }
        }
    }

    /// A node is gone.
    pub fn remove_node(&mut self, name: &str) {
        let Some(id) = self.names.remove(name) else { return };
        self.read_images(id, None);
        for topology in &mut self.topologies {
            topology.read(id, None);
        }
        for class in self.classes.iter_mut().flatten() {
            class.on.remove(&id);
        }
        self.nodes[id] = None;
        self.free.push(id);
    }

    /// Forgets the values that nodes no longer have, once they are the most.
    fn renumber(&mut self) {
        let most = 2 * self.nodes.len() + 64;
        let mut topologies = std::mem::take(&mut self.topologies);
        for topology in topologies.iter_mut().filter(|t| t.domains() > most) {
            topology.numbers.clear();
            for (id, state) in self.nodes() {
                topology.read(id, state.label(&topology.key.clone()));
            }
        }
        self.topologies = topologies;
    }

    fn read_images(&mut self, id: usize, node: Option<&Node>) {
        let status = node.and_then(|n| n.status.as_ref());
        let mut has: HashMap<&str, i64> = HashMap::new();
        for image in status.and_then(|s| s.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                has.insert(name, image.size_bytes.unwrap_or(0));
            }
        }
        self.images.retain(|name, image| {
            if !has.contains_key(name.as_str()) {
                image.nodes.remove(&id);
            }
            !image.nodes.is_empty()
        });
        for (name, bytes) in has {
            let image = self.images.entry(name.to_owned()).or_default();
            image.bytes = bytes;
            image.nodes.insert(id);
        }
    }

    /// A pod is on `node`, or will be: what it takes counts from now on.
    pub fn place(&mut self, ask: &Ask, node: &str) {
        self.forget(&ask.key);
        let class = self.class(&ask.shape);
        let placed = Arc::new(ask.placed(node, class));
        self.count(&placed, true);
        if let Some(class) = &mut self.classes[class] {
            class.total += 1;
        }
        for claim in &ask.takes.claims {
            let claim = Key::new(ask.key.namespace.clone(), claim.clone());
            self.users.entry(claim).or_default().push(node.to_owned());
        }
        self.placed.insert(ask.key.clone(), placed);
    }

    /// The nodes whose pods use a claim, one for each pod.
    #[must_use]
    pub fn users(&self, claim: &Key) -> &[String] {
        self.users.get(claim).map(Vec::as_slice).unwrap_or_default()
    }

    /// A pod takes nothing any more.
    pub fn forget(&mut self, key: &Key) {
        let Some(placed) = self.placed.remove(key) else { return };
        self.count(&placed, false);
        for claim in &placed.takes.claims {
            let claim = Key::new(key.namespace.clone(), claim.clone());
            let Some(users) = self.users.get_mut(&claim) else { continue };
            if let Some(at) = users.iter().position(|node| *node == placed.node) {
                users.swap_remove(at);
            }
            if users.is_empty() {
                self.users.remove(&claim);
            }
        }
        if let Some(class) = &mut self.classes[placed.class] {
            class.total -= 1;
            if class.total == 0 {
                self.class_of.remove(&class.shape);
                self.classes[placed.class] = None;
            }
        }
    }

    fn class(&mut self, shape: &Arc<Shape>) -> usize {
        if let Some(id) = self.class_of.get(shape) {
            return *id;
        }
        let class = Class { shape: shape.clone(), on: HashMap::new(), total: 0 };
        let id = match self.classes.iter().position(Option::is_none) {
            Some(id) => {
                self.classes[id] = Some(class);
                id
            }
            None => {
                self.classes.push(Some(class));
                self.classes.len() - 1
            }
        };
        self.class_of.insert(shape.clone(), id);
        id
    }

    fn count(&mut self, placed: &Arc<Placed>, add: bool) {
        let Some(id) = self.names.get(&placed.node).copied() else { return };
        let (Some(state), Some(class)) = (&mut self.nodes[id], &mut self.classes[placed.class])
        else {
            return;
        };
        if add {
            state.add(placed.clone());
            *class.on.entry(id).or_default() += 1;
        } else {
            state.remove(&placed.key);
            if let Some(count) = class.on.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    class.on.remove(&id);
                }
            }
        }
    }

    /// A pod waits for others to leave `node`; empty: it does no longer.
    pub fn nominate(&mut self, ask: &Ask, node: &str) {
        for waiting in self.nominated.values_mut() {
            waiting.remove(&ask.key);
        }
        self.nominated.retain(|_, waiting| !waiting.is_empty());
        if !node.is_empty() {
            // The class is of no use for a pod that is not there.
            let placed = Arc::new(ask.placed(node, usize::MAX));
            self.nominated.entry(node.to_owned()).or_default().insert(ask.key.clone(), placed);
        }
    }

    /// The nodes, with their numbers.
    pub fn nodes(&self) -> impl Iterator<Item = (usize, &NodeState)> {
        self.nodes.iter().enumerate().filter_map(|(id, node)| Some((id, node.as_ref()?)))
    }

    /// How many nodes there are.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.names.len()
    }

    /// One more than the highest number of a node.
    #[must_use]
    pub fn node_numbers(&self) -> usize {
        self.nodes.len()
    }

    /// The node with this number.
    #[must_use]
    pub fn node(&self, id: usize) -> Option<&NodeState> {
        self.nodes.get(id)?.as_ref()
    }

    /// The number of the node with this name.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// The classes of pods that are placed.
    pub fn classes(&self) -> impl Iterator<Item = &Class> {
        self.classes.iter().flatten()
    }

    /// What is seen of a placed pod.
    #[must_use]
    pub fn shape(&self, placed: &Placed) -> Option<&Arc<Shape>> {
        self.classes.get(placed.class)?.as_ref().map(|class| &class.shape)
    }

    /// The topology with this number, as [`Snapshot::ask`] gave it.
    #[must_use]
    pub fn topology(&self, number: usize) -> &Topology {
        &self.topologies[number]
    }

    /// An image, if any node has it.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&Image> {
        self.images.get(name)
    }

    /// Where a pod is placed.
    #[must_use]
    pub fn placed(&self, key: &Key) -> Option<&Arc<Placed>> {
        self.placed.get(key)
    }
}

impl Ask {
    fn placed(&self, node: &str, class: usize) -> Placed {
        Placed {
            key: self.key.clone(),
            uid: self.uid.clone(),
            node: node.to_owned(),
            takes: self.takes.clone(),
            class,
            priority: self.priority,
            since_s: self.since_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(labels: serde_json::Value) -> Arc<Node> {
        let images = json!([{"names": ["a:1"], "sizeBytes": 7}]);
        let node =
            json!({"metadata": {"name": "n", "labels": labels}, "status": {"images": images}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn what_is_placed_and_forgotten_leaves_nothing() {
        let mut snapshot = Snapshot::default();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"containers": [{"name": "a", "ports": [{"hostPort": 80, "containerPort": 80}],
                "resources": {"requests": {"cpu": "1"}}}]}
        }))
        .unwrap();
        let ask = snapshot.ask(&pod);
        snapshot.place(&ask, "n");
        snapshot.put_node(node(json!({})));
        let used = |s: &Snapshot| s.nodes().map(|(_, n)| n.requested.cpu).sum::<i64>();
        assert_eq!((used(&snapshot), snapshot.classes().count()), (1000, 1));
        snapshot.forget(&Key::new("ns", "p"));
        let state = snapshot.node(0).unwrap();
        assert!(state.ports.is_empty() && state.pods.is_empty());
        assert_eq!((used(&snapshot), snapshot.classes().count()), (0, 0));
        snapshot.remove_node("n");
        assert!(snapshot.image("a:1").is_none());
    }

    #[test]
    fn a_topology_follows_the_labels() {
        let mut snapshot = Snapshot::default();
        snapshot.put_node(node(json!({"z": "1"})));
        let z = snapshot.topology_number("z");
        assert_eq!(snapshot.topology(z).of, [Some(0)]);
        snapshot.put_node(node(json!({"z": "2"})));
        assert_eq!(snapshot.topology(z).of, [Some(1)]);
        snapshot.remove_node("n");
        assert_eq!(snapshot.topology(z).of, [None]);
    }
}
