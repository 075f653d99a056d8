//! The volumes that pods ask for by claims: on which nodes they are, or could be made. Pure.
//!
//! A claim whose class waits for its first consumer is decided here: the pod's node is written to the claim (or the claim to a
//! volume that is there already), and the pod waits until the claim is bound. All of that is read back from the objects, so
//! nothing has to be remembered.

use std::collections::{BTreeMap, HashMap};

use api::quantity::Quantity;
use api::selector::LabelSelector;
use client::Key;
use client::fit::selector_matches;
use k8s_openapi::api::core::v1::{Node, NodeSelector, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::ask::{Ask, selector, selects};

const BOUND: &str = "pv.kubernetes.io/bind-completed";
/// The annotation by which a claim learns of its consumer's node.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The access mode of a claim that is one pod's at a time.
const ONE_POD: &str = "ReadWriteOncePod";
const STATIC: &str = "kubernetes.io/no-provisioner";
/// Labels of volumes that say where they are, and the nodes' with the same meaning.
const ZONES: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

/// A claim.
#[derive(Debug, Clone)]
struct Claim {
    key: Key,
    uid: String,
    /// The volume it is bound to, empty before.
    volume: String,
    /// The node that was chosen for it, or empty.
    selected: String,
    class: String,
    bytes: i64,
    access: Vec<String>,
    mode: String,
    selector: Option<LabelSelector>,
    leaving: bool,
}

/// A volume.
#[derive(Debug, Clone)]
struct Volume {
    name: String,
    version: String,
    claim: Option<Key>,
    free: bool,
    class: String,
    bytes: i64,
    access: Vec<String>,
    mode: String,
    labels: BTreeMap<String, String>,
    nodes: Option<NodeSelector>,
}

#[derive(Debug, Clone)]
struct Class {
    provisions: bool,
    waits: bool,
    nodes: Option<NodeSelector>,
}

/// Claims, volumes and classes as last heard of.
#[derive(Debug, Default)]
pub struct Storage {
    claims: HashMap<Key, Claim>,
    volumes: BTreeMap<String, Volume>,
    classes: BTreeMap<String, Class>,
}

/// What a pod's claims demand of its node.
#[derive(Debug, Default)]
pub struct Demand<'a> {
    /// Why it can run nowhere.
    pub blocked: Option<String>,
    /// Claims that one pod alone may use.
    pub alone: Vec<&'a Key>,
    bound: Vec<&'a Volume>,
    open: Vec<&'a Claim>,
}

/// What is to be written before a pod can be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: others are at work.
    Wait,
    /// The claim is to have its volume on the node.
    Select(Key),
    /// The volume is for the claim; its version as precondition.
    Reserve {
        /// Which volume.
        volume: String,
        /// At which version.
        version: String,
        /// For which claim.
        claim: Key,
        /// With which uid.
        uid: String,
    },
}

fn bytes(
    map: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
) -> i64 {
    let storage = map.and_then(|map| map.get("storage"));
    storage.and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, Quantity::value)
}

fn filesystem(mode: Option<String>) -> String {
    mode.unwrap_or_else(|| "Filesystem".to_owned())
}

impl Storage {
    /// A claim is there, has changed, or is gone.
    pub fn claim_changed(&mut self, key: &Key, new: Option<&PersistentVolumeClaim>) {
        let Some(claim) = new else {
            self.claims.remove(key);
            return;
        };
        let spec = claim.spec.clone().unwrap_or_default();
        let noted =
            |name: &str| claim.metadata.annotations.as_ref().and_then(|a| a.get(name).cloned());
        let bound = noted(BOUND).is_some();
        let read = Claim {
            key: key.clone(),
            uid: claim.metadata.uid.clone().unwrap_or_default(),
            volume: spec.volume_name.filter(|_| bound).unwrap_or_default(),
            selected: noted(SELECTED_NODE).unwrap_or_default(),
            class: spec.storage_class_name.unwrap_or_default(),
            bytes: bytes(spec.resources.as_ref().and_then(|r| r.requests.as_ref())),
            access: spec.access_modes.unwrap_or_default(),
            mode: filesystem(spec.volume_mode),
            selector: spec.selector.as_ref().map(|s| selector(Some(s))),
            leaving: claim.metadata.deletion_timestamp.is_some(),
        };
        self.claims.insert(key.clone(), read);
    }

    /// A volume is there, has changed, or is gone.
    pub fn volume_changed(&mut self, name: &str, new: Option<&PersistentVolume>) {
        let Some(volume) = new else {
            self.volumes.remove(name);
            return;
        };
        let spec = volume.spec.clone().unwrap_or_default();
        let claim = spec.claim_ref.as_ref().map(|r| {
            Key::new(r.namespace.clone().unwrap_or_default(), r.name.clone().unwrap_or_default())
        });
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        let read = Volume {
            name: name.to_owned(),
            version: volume.metadata.resource_version.clone().unwrap_or_default(),
            free: claim.is_none()
                && phase == Some("Available")
                && volume.metadata.deletion_timestamp.is_none(),
            claim,
            class: spec.storage_class_name.unwrap_or_default(),
            bytes: bytes(spec.capacity.as_ref()),
            access: spec.access_modes.unwrap_or_default(),
            mode: filesystem(spec.volume_mode),
            labels: volume.metadata.labels.clone().unwrap_or_default(),
            nodes: spec.node_affinity.and_then(|a| a.required),
        };
        self.volumes.insert(name.to_owned(), read);
    }

    /// A class is there, has changed, or is gone.
    pub fn class_changed(&mut self, name: &str, new: Option<&StorageClass>) {
        let Some(class) = new else {
            self.classes.remove(name);
            return;
        };
        let read = Class {
            provisions: class.provisioner != STATIC,
            waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            nodes: topologies(class),
        };
        self.classes.insert(name.to_owned(), read);
    }

    /// What this pod's claims demand.
    #[must_use]
    pub fn demand(&self, ask: &Ask) -> Demand<'_> {
        let mut demand = Demand::default();
        for name in &ask.takes.claims {
            let key = Key::new(ask.key.namespace.clone(), name.clone());
            let claim = self.claims.get(&key);
            let alone = claim.filter(|c| c.access.iter().any(|mode| mode == ONE_POD));
            demand.alone.extend(alone.map(|claim| &claim.key));
            match claim {
                None => demand.blocked = Some(format!("persistentvolumeclaim {name:?} not found")),
                Some(claim) if claim.leaving => {
                    demand.blocked =
                        Some(format!("persistentvolumeclaim {name:?} is being deleted"));
                }
                Some(claim) if !claim.volume.is_empty() => match self.volumes.get(&claim.volume) {
                    Some(volume) => demand.bound.push(volume),
                    None => {
                        let volume = &claim.volume;
                        demand.blocked = Some(format!("persistentvolume {volume:?} not found"));
                    }
                },
                Some(claim) if self.classes.get(&claim.class).is_some_and(|class| class.waits) => {
                    demand.open.push(claim);
                }
                Some(_) => {
                    let why = "pod has unbound immediate PersistentVolumeClaims";
                    demand.blocked = Some(why.to_owned());
                }
            }
        }
        demand
    }

    /// Why a pod with these demands cannot have its volumes on a node.
    #[must_use]
    pub fn refusal(&self, demand: &Demand<'_>, node: &Node) -> Option<&'static str> {
        for volume in &demand.bound {
            if !on(volume.nodes.as_ref(), node) {
                return Some("node(s) didn't match PersistentVolume's node affinity");
            }
            if !zoned(volume, node) {
                return Some("node(s) had no available volume zone");
            }
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut taken: Vec<&str> = Vec::new();
        for claim in &demand.open {
            if !claim.selected.is_empty() {
                if claim.selected != name {
                    return Some("node(s) didn't match PersistentVolume's node affinity");
                }
                continue;
            }
            if let Some(volume) = self.fitting(claim, node, &taken) {
                taken.push(&volume.name);
                continue;
            }
            let class = self.classes.get(&claim.class)?;
            if !class.provisions || !on(class.nodes.as_ref(), node) {
                return Some("node(s) didn't find available persistent volumes to bind");
            }
        }
        None
    }

    /// The smallest volume on a node that a claim could have, or the one that waits for it.
    fn fitting(&self, claim: &Claim, node: &Node, taken: &[&str]) -> Option<&Volume> {
        let fits = |volume: &&Volume| {
            (volume.free || volume.claim.as_ref() == Some(&claim.key))
                && !taken.contains(&volume.name.as_str())
                && volume.class == claim.class
                && volume.bytes >= claim.bytes
                && volume.mode == claim.mode
                && claim.access.iter().all(|mode| volume.access.contains(mode))
                && claim.selector.as_ref().is_none_or(|s| selects(s, &volume.labels))
                && on(volume.nodes.as_ref(), node)
        };
        let reserved = |volume: &&Volume| volume.claim.is_none();
        self.volumes.values().filter(fits).min_by_key(|v| (reserved(v), v.bytes, v.name.clone()))
    }

    /// What is to be written before a pod that was placed on this node can be bound to it; nothing if it can.
    #[must_use]
    pub fn steps(&self, ask: &Ask, node: &Node) -> Vec<Step> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut taken: Vec<&str> = Vec::new();
        let mut steps = Vec::new();
        for claim in self.demand(ask).open {
            steps.push(match self.fitting(claim, node, &taken) {
                Some(volume) if volume.claim.is_none() => {
                    taken.push(&volume.name);
                    Step::Reserve {
                        volume: volume.name.clone(),
                        version: volume.version.clone(),
                        claim: claim.key.clone(),
                        uid: claim.uid.clone(),
                    }
                }
                Some(_) => Step::Wait,
                None if claim.selected == name => Step::Wait,
                None => Step::Select(claim.key.clone()),
            });
        }
        steps
    }
}

/// The nodes on which a class makes volumes.
fn topologies(class: &StorageClass) -> Option<NodeSelector> {
    use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
    let terms = class.allowed_topologies.as_ref().filter(|terms| !terms.is_empty())?;
    let terms = terms.iter().map(|term| {
        let expressions = term.match_label_expressions.iter().flatten();
        let expressions = expressions.map(|e| NodeSelectorRequirement {
            key: e.key.clone(),
            operator: "In".into(),
            values: Some(e.values.clone()),
        });
        NodeSelectorTerm {
            match_expressions: Some(expressions.collect()),
            ..NodeSelectorTerm::default()
        }
    });
    Some(NodeSelector { node_selector_terms: terms.collect() })
}

fn on(nodes: Option<&NodeSelector>, node: &Node) -> bool {
    nodes.is_none_or(|nodes| selector_matches(nodes, node))
}

/// Whether a node is in the zone that a volume's labels name; several are joined by `__`.
fn zoned(volume: &Volume, node: &Node) -> bool {
    let label = |name: &str| node.metadata.labels.as_ref().and_then(|l| l.get(name));
    ZONES.iter().all(|name| match (volume.labels.get(*name), label(name)) {
        (None, _) => true,
        (Some(zones), Some(own)) => zones.split("__").any(|zone| zone == own),
        (Some(_), None) => false,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::ask::Takes;

    fn node(name: &str) -> Node {
        let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("z-{name}")});
        serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
    }

    fn storage(mode: &str, claim: &Value, volumes: &[Value]) -> (Storage, Ask) {
        let mut storage = Storage::default();
        let class =
            json!({"metadata": {"name": "fast"}, "provisioner": "x/y", "volumeBindingMode": mode});
        storage.class_changed("fast", serde_json::from_value(class).ok().as_ref());
        let claim = json!({"metadata": claim["metadata"], "spec": {"storageClassName": "fast",
            "volumeName": claim["volume"], "resources": {"requests": {"storage": "1Gi"}}}});
        let key = Key::new("ns", "c");
        storage.claim_changed(&key, serde_json::from_value(claim).ok().as_ref());
        for volume in volumes {
            let volume: PersistentVolume = serde_json::from_value(volume.clone()).unwrap();
            storage.volume_changed(&volume.metadata.name.clone().unwrap(), Some(&volume));
        }
        let ask = Ask { key: Key::new("ns", "p"), ..Ask::default() };
        let takes = Takes { claims: ["c".into()].into(), ..Takes::default() };
        let ask = Ask { takes, ..ask };
        (storage, ask)
    }

    fn volume(name: &str, node: &str) -> Value {
        json!({"metadata": {"name": name, "resourceVersion": "7"}, "spec": {"storageClassName": "fast",
            "capacity": {"storage": "1Gi"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}},
            "status": {"phase": "Available"}})
    }

    const LATE: &str = "WaitForFirstConsumer";

    #[test]
    fn a_bound_claim_holds_its_pod_where_the_volume_is() {
        let claim = json!({"metadata": {"annotations": {BOUND: "yes"}}, "volume": "v"});
        let (storage, ask) = storage(LATE, &claim, &[volume("v", "a")]);
        let demand = storage.demand(&ask);
        assert_eq!(storage.refusal(&demand, &node("a")), None);
        assert!(storage.refusal(&demand, &node("b")).unwrap().contains("node affinity"));
        assert!(storage.steps(&ask, &node("a")).is_empty());
    }

    #[test]
    fn a_claim_that_waits_is_told_its_node_and_then_stays_there() {
        let (fresh, ask) = storage(LATE, &json!({}), &[]);
        assert_eq!(fresh.refusal(&fresh.demand(&ask), &node("a")), None);
        assert_eq!(fresh.steps(&ask, &node("a")), [Step::Select(Key::new("ns", "c"))]);
        let told = json!({"metadata": {"annotations": {SELECTED_NODE: "a"}}});
        let (told, ask) = storage(LATE, &told, &[]);
        assert_eq!(told.steps(&ask, &node("a")), [Step::Wait]);
        assert!(told.refusal(&told.demand(&ask), &node("b")).is_some());
    }

    #[test]
    fn a_volume_that_is_there_is_taken_first() {
        let (storage, ask) = storage(LATE, &json!({}), &[volume("v", "a")]);
        let steps = storage.steps(&ask, &node("a"));
        assert!(matches!(&steps[0], Step::Reserve { volume, .. } if volume == "v"), "{steps:?}");
        assert!(matches!(&storage.steps(&ask, &node("b"))[0], Step::Select(_)));
    }

    #[test]
    fn claims_that_are_missing_or_late_block_the_pod() {
        let (mut storage, ask) = storage("Immediate", &json!({}), &[]);
        let blocked = |storage: &Storage| storage.demand(&ask).blocked.unwrap();
        assert_eq!(blocked(&storage), "pod has unbound immediate PersistentVolumeClaims");
        storage.claim_changed(&Key::new("ns", "c"), None);
        assert_eq!(blocked(&storage), "persistentvolumeclaim \"c\" not found");
    }

    #[test]
    fn zones_of_volumes_bind_as_well() {
        let claim = json!({"metadata": {"annotations": {BOUND: "yes"}}, "volume": "v"});
        let mut zonal = volume("v", "a");
        zonal["spec"]["nodeAffinity"] = Value::Null;
        zonal["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": "z-a__z-c"});
        let (storage, ask) = storage(LATE, &claim, &[zonal]);
        let demand = storage.demand(&ask);
        assert_eq!(storage.refusal(&demand, &node("c")), None);
        assert_eq!(
            storage.refusal(&demand, &node("b")),
            Some("node(s) had no available volume zone")
        );
    }
}
