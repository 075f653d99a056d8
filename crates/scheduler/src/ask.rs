//! A pod as the decision sees it: read once from the object, compared many times. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::quantity::Quantity;
use api::selector::{LabelSelector, Op, Requirement};
use client::Key;
use k8s_openapi::api::core::v1::{
    Container, NodeSelector, Pod, PodAffinityTerm, PreferredSchedulingTerm, Toleration,
    TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

/// The topology that is one node.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// The topology that is one zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Names the group of pods that is placed as a whole or not at all.
pub const GROUP: &str = "pod-group.scheduling.sigs.k8s.io/name";
/// How many of a group's pods have to find a place before one is bound.
pub const GROUP_MIN: &str = "pod-group.scheduling.sigs.k8s.io/min-available";

/// What a container without a request counts as where nodes are compared, not where they are filtered: 0.1 CPU.
const UNASKED_CPU_MILLI: i64 = 100;
/// The same of memory: 200 MB.
const UNASKED_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts by resource: CPU in thousandths, everything else in units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Whatever else is asked for, by name.
    pub more: BTreeMap<String, i64>,
}

impl Amounts {
    /// Reads a map of quantities; what cannot be read counts as nothing, since the API server checks them.
    #[must_use]
    pub fn read(
        map: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
    ) -> Self {
        let mut amounts = Self::default();
        for (name, text) in map.into_iter().flatten() {
            let Ok(quantity) = Quantity::parse(&text.0) else { continue };
            match name.as_str() {
                "cpu" => amounts.cpu = quantity.milli_value(),
                "memory" => amounts.memory = quantity.value(),
                _ => drop(amounts.more.insert(name.clone(), quantity.value())),
            }
        }
        amounts
    }

    /// The amount of one resource.
    #[must_use]
    pub fn of(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            _ => self.more.get(name).copied().unwrap_or(0),
        }
    }

    /// All of them that are not nothing.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        let more = self.more.iter().map(|(name, amount)| (name.as_str(), *amount));
        let all = [("cpu", self.cpu), ("memory", self.memory)].into_iter().chain(more);
        all.filter(|(_, amount)| *amount != 0)
    }

    /// Adds `other`, `sign` times.
    pub fn add(&mut self, other: &Self, sign: i64) {
        self.cpu = self.cpu.saturating_add(other.cpu * sign);
        self.memory = self.memory.saturating_add(other.memory * sign);
        for (name, amount) in &other.more {
            match self.more.get_mut(name) {
                Some(own) => *own = own.saturating_add(amount * sign),
                None => drop(self.more.insert(name.clone(), amount * sign)),
            }
        }
    }

    fn max(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        for (name, amount) in &other.more {
            let own = self.more.entry(name.clone()).or_default();
            *own = (*own).max(*amount);
        }
    }
}

/// What a pod asks for, each container by `of`: the sum of its containers and sidecars, or the most that an init
/// container needs beside the sidecars started before it, and its overhead (KEP-753).
fn sum(pod: &Pod, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
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
    // Requests of the whole pod go before those of its containers (KEP-2837).
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    for (name, amount) in Amounts::read(whole).iter() {
        match name {
            "cpu" => running.cpu = amount,
            "memory" => running.memory = amount,
            _ => drop(running.more.insert(name.to_owned(), amount)),
        }
    }
    running.add(&Amounts::read(spec.overhead.as_ref()), 1);
    running
}

fn asked(container: &Container) -> Amounts {
    Amounts::read(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

/// What a pod asks for.
#[must_use]
pub fn requests(pod: &Pod) -> Amounts {
    sum(pod, asked)
}

/// Host ports as address (empty: all), protocol and number.
pub type HostPort = (String, String, i32);

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let spec = pod.spec.iter();
    let sidecars = spec.clone().flat_map(|s| s.init_containers.iter().flatten());
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.flat_map(|s| &s.containers).chain(sidecars);
    let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
        let number = port.host_port.filter(|n| *n > 0)?;
        let address = port.host_ip.clone().filter(|ip| !ip.is_empty() && ip != "0.0.0.0");
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        Some((address.unwrap_or_default(), protocol, number))
    });
    ports.collect()
}

/// What a pod takes of the node that it is on.
#[derive(Debug, Clone, Default)]
pub struct Takes {
    /// What it asks for.
    pub amounts: Amounts,
    /// CPU and memory as nodes are compared by: with something for containers that ask for nothing.
    pub weighed: (i64, i64),
    /// Its host ports.
    pub ports: Vec<HostPort>,
    /// Its claims, by name.
    pub claims: Box<[String]>,
}

/// One pod affinity term; topologies are numbers of the snapshot's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    /// Which topology.
    pub topology: usize,
    /// Which pods.
    pub selector: LabelSelector,
    /// In which namespaces, by name …
    pub namespaces: BTreeSet<String>,
    /// … and by their labels.
    pub namespace_selector: Option<LabelSelector>,
    /// How much a preferred one counts; negative: shunned.
    pub weight: i32,
}

/// The labels of the namespaces.
pub type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// Whether these labels fulfil a selector.
#[must_use]
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    selector.matches_with(|key| labels.get(key).map(String::as_str))
}

impl Term {
    /// Whether the term means pods of this shape.
    #[must_use]
    pub fn means(&self, shape: &Shape, namespaces: &Namespaces) -> bool {
        let there = self.namespaces.contains(&shape.namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.is_empty()
                    || namespaces.get(&shape.namespace).is_some_and(|l| selects(selector, l))
            });
        there && selects(&self.selector, &shape.labels)
    }
}

/// What other pods can see of a pod; pods of one template share one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The uid of its controller, empty if it has none.
    pub owner: String,
    /// Whether it is on its way out, so that it is not spread against.
    pub leaving: bool,
    /// Which pods have to be near.
    pub affinity: Vec<Term>,
    /// Which pods must not be near.
    pub anti: Vec<Term>,
    /// Which pods should be near, or not.
    pub preferred: Vec<Term>,
}

impl Shape {
    /// Whether it says anything of other pods.
    #[must_use]
    pub fn has_terms(&self) -> bool {
        !(self.affinity.is_empty() && self.anti.is_empty() && self.preferred.is_empty())
    }
}

/// A topology spread constraint.
#[derive(Debug, Clone)]
pub struct Constraint {
    /// Which topology.
    pub topology: usize,
    /// How much more a domain may have than the least.
    pub max_skew: i64,
    /// Whether it filters; if not, it scores.
    pub hard: bool,
    /// With fewer domains than this the least counts as none.
    pub min_domains: usize,
    /// Which pods are counted: those of the selector, or for default constraints those of the same owner.
    pub counts: Counted,
    /// Whether only nodes count that the pod's selector and affinity allow.
    pub honor_affinity: bool,
    /// Whether only nodes count whose taints the pod tolerates.
    pub honor_taints: bool,
}

/// Which pods a spread constraint counts.
#[derive(Debug, Clone)]
pub enum Counted {
    /// Those with such labels.
    Selected(LabelSelector),
    /// Those of the same controller.
    Siblings,
}

impl Constraint {
    /// Whether a pod of shape `other` counts for one of shape `own`.
    #[must_use]
    pub fn counts(&self, own: &Shape, other: &Shape) -> bool {
        own.namespace == other.namespace
            && !other.leaving
            && match &self.counts {
                Counted::Selected(selector) => selects(selector, &other.labels),
                Counted::Siblings => own.owner == other.owner,
            }
    }
}

/// A pod that looks for a node.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Which pod.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Its priority.
    pub priority: i32,
    /// Whether others may have to go for it.
    pub may_preempt: bool,
    /// When it started or was created, in seconds since 1970.
    pub since_s: i64,
    /// What it takes.
    pub takes: Takes,
    /// What others see of it.
    pub shape: Arc<Shape>,
    /// Its tolerations.
    pub tolerations: Vec<Toleration>,
    /// The node that it names.
    pub node_name: String,
    /// Labels that its node must have.
    pub node_selector: BTreeMap<String, String>,
    /// What its node must fulfil.
    pub node_required: Option<NodeSelector>,
    /// What its node should fulfil.
    pub node_preferred: Vec<PreferredSchedulingTerm>,
    /// How it is spread.
    pub spread: Vec<Constraint>,
    /// The images of its containers.
    pub images: Vec<String>,
    /// Its group and how many of it have to be placed at once.
    pub group: Option<(String, usize)>,
    /// Where it waits for others to go.
    pub nominated: String,
}

/// The uid of the pod's controller.
fn owner(pod: &Pod) -> String {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners.find(|o| o.controller == Some(true)).map(|o| o.uid.clone()).unwrap_or_default()
}

/// A selector of the API as ours; an absent one selects nothing.
#[must_use]
pub fn selector(object: Option<&meta::LabelSelector>) -> LabelSelector {
    let Some(object) = object else {
        return LabelSelector { requirements: Vec::new(), nothing: true };
    };
    let plain = object.match_labels.iter().flatten();
    let mut requirements: Vec<Requirement> =
        plain.map(|(k, v)| Requirement { key: k.clone(), op: Op::In(vec![v.clone()]) }).collect();
    for expression in object.match_expressions.iter().flatten() {
        let values = expression.values.clone().unwrap_or_default();
        let op = match expression.operator.as_str() {
            "In" => Op::In(values),
            "NotIn" => Op::NotIn(values),
            "Exists" => Op::Exists,
            _ => Op::DoesNotExist,
        };
        requirements.push(Requirement { key: expression.key.clone(), op });
    }
    LabelSelector { requirements, nothing: false }
}

/// Adds that the pod's own values of these labels are asked for, or (`not`) refused.
fn with_own(
    selector: &mut LabelSelector,
    keys: Option<&Vec<String>>,
    labels: &BTreeMap<String, String>,
    not: bool,
) {
    for key in keys.into_iter().flatten() {
        let Some(value) = labels.get(key) else { continue };
        let op = if not { Op::NotIn(vec![value.clone()]) } else { Op::In(vec![value.clone()]) };
        let requirement = Requirement { key: key.clone(), op };
        // The API server may have merged it already.
        if !selector.requirements.contains(&requirement) {
            selector.requirements.push(requirement);
        }
    }
}

impl Ask {
    /// Reads a pod; `topology` gives the number of a topology key.
    pub fn read(pod: &Pod, topology: &mut impl FnMut(&str) -> usize) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let shape = shape(pod, topology);
        let spread = spread(&spec.topology_spread_constraints, &shape, topology);
        let node_affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let status = pod.status.as_ref();
        let since = status.and_then(|s| s.start_time.as_ref());
        let since = since.or(pod.metadata.creation_timestamp.as_ref());
        let group = labels.get(GROUP).zip(labels.get(GROUP_MIN));
        let images = spec.init_containers.iter().flatten().chain(&spec.containers);
        let claims = spec.volumes.iter().flatten().filter_map(|v| {
            let named = v.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone());
            let own = pod.metadata.name.as_deref().unwrap_or_default();
            named.or_else(|| v.ephemeral.as_ref().map(|_| format!("{own}-{}", v.name)))
        });
        let weighed = sum(pod, |container| {
            let own = asked(container);
            let or = |amount: i64, unasked| if amount == 0 { unasked } else { amount };
            Amounts {
                cpu: or(own.cpu, UNASKED_CPU_MILLI),
                memory: or(own.memory, UNASKED_MEMORY_BYTES),
                more: BTreeMap::new(),
            }
        });
        Self {
            key: Key::of(&pod.metadata),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            since_s: since.map_or(0, |t| t.0.as_second()),
            takes: Takes {
                amounts: requests(pod),
                weighed: (weighed.cpu, weighed.memory),
                ports: host_ports(pod),
                claims: claims.collect(),
            },
            images: images.filter_map(|c| c.image.as_deref().map(tagged)).collect(),
            shape: Arc::new(shape),
            spread,
            node_required: node_affinity
                .and_then(|a| a.required_during_scheduling_ignored_during_execution.clone()),
            node_preferred: node_affinity
                .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.clone())
                .unwrap_or_default(),
            tolerations: spec.tolerations.unwrap_or_default(),
            node_name: spec.node_name.unwrap_or_default(),
            node_selector: spec.node_selector.unwrap_or_default(),
            group: group
                .and_then(|(name, least)| least.parse().ok().map(|least| (name.clone(), least))),
            nominated: status.and_then(|s| s.nominated_node_name.clone()).unwrap_or_default(),
        }
    }
}

/// An image's name as nodes list it.
fn tagged(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    if last.contains(':') || last.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

fn shape(pod: &Pod, topology: &mut impl FnMut(&str) -> usize) -> Shape {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let mut term = |term: &PodAffinityTerm, weight: i32| {
        let mut selector = selector(term.label_selector.as_ref());
        with_own(&mut selector, term.match_label_keys.as_ref(), &labels, false);
        with_own(&mut selector, term.mismatch_label_keys.as_ref(), &labels, true);
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.clone());
        }
        let by_labels = term.namespace_selector.as_ref().map(|s| self::selector(Some(s)));
        let topology = topology(&term.topology_key);
        Term { topology, selector, namespaces, namespace_selector: by_labels, weight }
    };
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let must = near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let not = far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let like = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let shun = far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let required = must.into_iter().flatten().map(|t| term(t, 1)).collect();
    let anti = not.into_iter().flatten().map(|t| term(t, 1)).collect();
    let liked = like.into_iter().flatten().map(|w| (w, 1));
    let shunned = shun.into_iter().flatten().map(|w| (w, -1));
    let preferred =
        liked.chain(shunned).map(|(w, sign)| term(&w.pod_affinity_term, w.weight * sign)).collect();
    Shape {
        owner: owner(pod),
        leaving: pod.metadata.deletion_timestamp.is_some(),
        affinity: required,
        anti,
        preferred,
        namespace,
        labels,
    }
}

fn spread(
    constraints: &Option<Vec<TopologySpreadConstraint>>,
    shape: &Shape,
    topology: &mut impl FnMut(&str) -> usize,
) -> Vec<Constraint> {
    let constraints = constraints.as_deref().unwrap_or_default();
    if constraints.is_empty() {
        if shape.owner.is_empty() {
            return Vec::new();
        }
        // What upstream does with pods that say nothing (its system default constraints).
        return [(HOSTNAME, 3), (ZONE, 5)]
            .map(|(key, max_skew)| Constraint {
                topology: topology(key),
                max_skew,
                hard: false,
                min_domains: 1,
                counts: Counted::Siblings,
                honor_affinity: true,
                honor_taints: false,
            })
            .into();
    }
    let read = |c: &TopologySpreadConstraint| {
        let mut selector = selector(c.label_selector.as_ref());
        with_own(&mut selector, c.match_label_keys.as_ref(), &shape.labels, false);
        Constraint {
            topology: topology(&c.topology_key),
            max_skew: i64::from(c.max_skew),
            hard: c.when_unsatisfiable != "ScheduleAnyway",
            min_domains: c.min_domains.and_then(|n| usize::try_from(n).ok()).unwrap_or(1),
            counts: Counted::Selected(selector),
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
        }
    };
    constraints.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask(pod: serde_json::Value) -> Ask {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        Ask::read(&pod, &mut |_| 0)
    }

    #[test]
    fn an_init_container_counts_only_where_it_needs_more() {
        let ask = ask(json!({"spec": {
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}}}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "200m"}}}
            ]
        }}));
        assert_eq!((ask.takes.amounts.cpu, ask.takes.amounts.memory), (250, 1 << 20));
        assert_eq!(ask.takes.weighed.0, 250);
    }

    #[test]
    fn the_pod_s_own_request_goes_before_its_containers() {
        let ask = ask(json!({"spec": {
            "resources": {"requests": {"cpu": "2"}},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}}}],
        }}));
        assert_eq!((ask.takes.amounts.cpu, ask.takes.amounts.memory), (2000, 1 << 20));
    }

    #[test]
    fn an_image_without_a_tag_is_the_latest() {
        assert_eq!(tagged("reg:5000/a"), "reg:5000/a:latest");
        assert_eq!(tagged("a@sha256:1"), "a@sha256:1");
        assert_eq!(tagged("a:1"), "a:1");
    }

    #[test]
    fn match_label_keys_ask_for_the_pod_s_own_value() {
        let ask = ask(json!({
            "metadata": {"labels": {"v": "1"}},
            "spec": {"containers": [], "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {}, "matchLabelKeys": ["v", "absent"]
            }]}
        }));
        let Counted::Selected(selector) = &ask.spread[0].counts else { panic!("a selector") };
        let shape = |v: &str| BTreeMap::from([("v".to_owned(), v.to_owned())]);
        assert!(selects(selector, &shape("1")) && !selects(selector, &shape("2")));
    }
}
