//! What the scheduler knows of the nodes: what each has, and what the pods on it take. Pure.
//!
//! Changed pod by pod as events come in; never rebuilt.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::quantity::Quantity;
use client::Key;
use k8s_openapi::api::core::v1::{Container, Node, Pod};

/// Amounts by resource name: CPU in thousandths, everything else in units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amounts(BTreeMap<String, i64>);

impl Amounts {
    /// Reads a map of quantities; what cannot be read counts as nothing, since the API server checks them.
    pub fn read(
        map: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
    ) -> Self {
        let amount = |name: &str, text: &str| {
            let quantity = Quantity::parse(text);
            quantity.map_or(0, |q| if name == "cpu" { q.milli_value() } else { q.value() })
        };
        let entries = map.into_iter().flatten();
        Self(entries.map(|(name, q)| (name.clone(), amount(name, &q.0))).collect())
    }

    /// The amount of one resource.
    #[must_use]
    pub fn of(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    fn add(&mut self, other: &Self, sign: i64) {
        for (name, amount) in &other.0 {
            let entry = self.0.entry(name.clone()).or_default();
            *entry = entry.saturating_add(amount * sign);
        }
    }

    fn max(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let entry = self.0.entry(name.clone()).or_default();
            *entry = (*entry).max(*amount);
        }
    }
}

/// What a pod asks for: the sum of its containers and sidecars, or the most that an init container needs beside the
/// sidecars started before it, and its overhead (KEP-753).
#[must_use]
pub fn requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let of = |c: &Container| Amounts::read(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let mut running = Amounts::default();
    for container in &spec.containers {
        running.add(&of(container), 1);
    }
    let (mut sidecars, mut starting) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own, 1);
            starting.max(&sidecars);
        } else {
            let mut needed = own;
            needed.add(&sidecars, 1);
            starting.max(&needed);
        }
    }
    running.add(&sidecars, 1);
    running.max(&starting);
    running.add(&Amounts::read(spec.overhead.as_ref()), 1);
    running
}

/// Host ports as address, protocol and number.
pub type HostPort = (String, String, i32);

/// The host ports a pod takes.
pub fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort> {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
        let number = port.host_port.filter(|n| *n > 0)?;
        let address = port.host_ip.clone().filter(|ip| !ip.is_empty() && ip != "0.0.0.0");
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        Some((address.unwrap_or_default(), protocol, number))
    })
}

/// A node and what is taken of it.
#[derive(Debug, Clone)]
pub struct NodeState {
    /// The object.
    pub node: Arc<Node>,
    /// What pods may take.
    pub allocatable: Amounts,
    /// What pods have taken.
    pub requested: Amounts,
    /// How many pods are on it.
    pub pods: usize,
    /// Host ports in use.
    pub ports: BTreeSet<HostPort>,
    /// Pods by the owner that made them.
    pub owners: HashMap<String, usize>,
}

#[derive(Debug, Clone)]
struct Placed {
    node: String,
    requests: Amounts,
    ports: Vec<HostPort>,
    owner: String,
}

/// All nodes and the pods on them, bound or about to be.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, NodeState>,
    placed: HashMap<Key, Placed>,
}

/// Who made the pod.
#[must_use]
pub fn owner(pod: &Pod) -> String {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners
        .into_iter()
        .find(|o| o.controller == Some(true))
        .map(|o| o.uid.clone())
        .unwrap_or_default()
}

impl Snapshot {
    /// A node is there, or has changed.
    pub fn put_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let status = node.status.as_ref();
        let allocatable = Amounts::read(status.and_then(|s| s.allocatable.as_ref()));
        if let Some(state) = self.nodes.get_mut(&name) {
            state.allocatable = allocatable;
            state.node = node;
            return;
        }
        let state = NodeState {
            node,
            allocatable,
            requested: Amounts::default(),
            pods: 0,
            ports: BTreeSet::new(),
            owners: HashMap::new(),
        };
        self.nodes.insert(name.clone(), state);
        // Pods may have been heard of before their node.
        let waiting: Vec<Placed> =
            self.placed.values().filter(|p| p.node == name).cloned().collect();
        for placed in &waiting {
            self.count(placed, true);
        }
    }

    /// A node is gone.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// A pod is on `node`, or will be: what it takes counts from now on.
    pub fn place(&mut self, pod: &Pod, node: &str) {
        let key = Key::of(&pod.metadata);
        self.forget(&key);
        let placed = Placed {
            node: node.to_owned(),
            requests: requests(pod),
            ports: host_ports(pod).collect(),
            owner: owner(pod),
        };
        self.count(&placed, true);
        self.placed.insert(key, placed);
    }

    /// A pod takes nothing any more.
    pub fn forget(&mut self, key: &Key) {
        if let Some(placed) = self.placed.remove(key) {
            self.count(&placed, false);
        }
    }

    fn count(&mut self, placed: &Placed, add: bool) {
        let Some(state) = self.nodes.get_mut(&placed.node) else { return };
        state.requested.add(&placed.requests, if add { 1 } else { -1 });
        let owned = state.owners.entry(placed.owner.clone()).or_default();
        if add {
            state.pods += 1;
            *owned += 1;
            state.ports.extend(placed.ports.iter().cloned());
        } else {
            state.pods = state.pods.saturating_sub(1);
            *owned = owned.saturating_sub(1);
            for port in &placed.ports {
                state.ports.remove(port);
            }
        }
    }

    /// The nodes by name.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (&String, &NodeState)> {
        self.nodes.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_init_container_counts_only_where_it_needs_more() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}}}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "200m"}}}
            ]
        }}))
        .unwrap();
        let amounts = requests(&pod);
        assert_eq!((amounts.of("cpu"), amounts.of("memory")), (250, 1 << 20));
    }

    #[test]
    fn what_is_placed_and_forgotten_leaves_nothing() {
        let mut snapshot = Snapshot::default();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}
        }))
        .unwrap();
        snapshot.place(&pod, "n");
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
        snapshot.put_node(Arc::new(node));
        let used = |s: &Snapshot| s.nodes().map(|(_, n)| n.requested.of("cpu")).sum::<i64>();
        assert_eq!(used(&snapshot), 1000);
        snapshot.forget(&Key::new("ns", "p"));
        assert_eq!(used(&snapshot), 0);
    }
}
