//! Where a pod can run: each filter refuses a node with the words upstream uses, or lets it pass. Pure.

use std::borrow::Cow;
use std::sync::Arc;

use client::fit::{selector_matches, tolerates};
use k8s_openapi::api::core::v1::Taint;

use crate::ask::Ask;
use crate::near::Near;
use crate::snapshot::{NodeState, Placed, Snapshot};
use crate::spread::Spread;
use crate::volumes::Demand;

/// Who refuses, by upstream's names; a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Plugin {
    /// A cordoned node.
    NodeUnschedulable,
    /// Not the node that the pod names.
    NodeName,
    /// A taint.
    TaintToleration,
    /// The pod's node selector or affinity.
    NodeAffinity,
    /// A host port in use.
    NodePorts,
    /// Too little of something.
    NodeResourcesFit,
    /// Skew.
    PodTopologySpread,
    /// Other pods.
    InterPodAffinity,
    /// The rest of its group.
    Group,
    /// Its volumes.
    VolumeBinding,
    /// A claim that is one pod's alone.
    VolumeRestrictions,
}

impl Plugin {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NodeUnschedulable => "NodeUnschedulable",
            Self::NodeName => "NodeName",
            Self::TaintToleration => "TaintToleration",
            Self::NodeAffinity => "NodeAffinity",
            Self::NodePorts => "NodePorts",
            Self::NodeResourcesFit => "NodeResourcesFit",
            Self::PodTopologySpread => "PodTopologySpread",
            Self::InterPodAffinity => "InterPodAffinity",
            Self::Group => "Group",
            Self::VolumeBinding => "VolumeBinding",
            Self::VolumeRestrictions => "VolumeRestrictions",
        }
    }
}

/// A set of plugins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Plugins(u16);

impl Plugins {
    /// All of them.
    pub const ALL: Self = Self(u16::MAX);

    /// Those of a list.
    #[must_use]
    pub const fn of(list: &[Plugin]) -> Self {
        let (mut bits, mut i) = (0, 0);
        while i < list.len() {
            bits |= 1 << list[i] as u16;
            i += 1;
        }
        Self(bits)
    }

    /// One more.
    pub fn insert(&mut self, plugin: Plugin) {
        self.0 |= 1 << plugin as u16;
    }

    /// These and those.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether they have one in common.
    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Why a node is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// By whom.
    pub plugin: Plugin,
    /// In upstream's words.
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether it would help if other pods went.
    pub resolvable: bool,
}

/// What is worked out once for a pod, before nodes are looked at.
#[derive(Debug)]
pub struct Cycle<'a> {
    /// The pod.
    pub ask: &'a Ask,
    /// The cluster.
    pub snapshot: &'a Snapshot,
    /// Who has to be near, and who must not.
    pub near: Near,
    /// How many are where.
    pub spread: Spread,
    /// What its claims demand.
    pub volumes: Demand<'a>,
}

impl<'a> Cycle<'a> {
    /// Begins.
    #[must_use]
    pub fn new(ask: &'a Ask, snapshot: &'a Snapshot) -> Self {
        let spread = Spread::count(ask, snapshot, true);
        let volumes = snapshot.storage.demand(ask);
        Self { ask, snapshot, near: Near::count(ask, snapshot), spread, volumes }
    }

    /// Why the node with this number is refused; `None`: the pod can run there.
    #[must_use]
    pub fn refusal(&self, id: usize, node: &NodeState) -> Option<Refusal> {
        self.refusals(id, node).next()
    }

    /// All that speaks against the node with this number.
    pub fn refusals<'b>(
        &'b self,
        id: usize,
        node: &'b NodeState,
    ) -> impl Iterator<Item = Refusal> + 'b {
        FILTERS.iter().filter_map(move |filter| filter(self, id, node))
    }
}

/// A filter: why the node is refused.
type Filter = fn(&Cycle<'_>, usize, &NodeState) -> Option<Refusal>;

/// All filters, in upstream's order.
const FILTERS: &[Filter] =
    &[unschedulable, name, taints, affinity, ports, resources, restrictions, volumes, spread, near];

fn refuse(plugin: Plugin, why: impl Into<Cow<'static, str>>, resolvable: bool) -> Option<Refusal> {
    Some(Refusal { plugin, reasons: vec![why.into()], resolvable })
}

/// The first taint that keeps the pod away.
#[must_use]
pub fn untolerated<'a>(ask: &Ask, node: &'a NodeState) -> Option<&'a Taint> {
    let hard = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
    node.taints().iter().filter(hard).find(|t| !tolerates(&ask.tolerations, t))
}

fn restrictions(cycle: &Cycle<'_>, _: usize, node: &NodeState) -> Option<Refusal> {
    const WHY: &str = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    for claim in &cycle.volumes.alone {
        // Who uses it on another node would not go from there for a pod that comes here.
        if cycle.snapshot.users(claim).iter().any(|user| *user != node.name()) {
            return refuse(Plugin::VolumeRestrictions, WHY, false);
        }
        let uses = |pod: &Arc<Placed>| {
            pod.key.namespace == claim.namespace && pod.takes.claims.contains(&claim.name)
        };
        if node.pods.iter().any(uses) {
            return refuse(Plugin::VolumeRestrictions, WHY, true);
        }
    }
    None
}

fn volumes(cycle: &Cycle<'_>, _: usize, node: &NodeState) -> Option<Refusal> {
    if let Some(why) = &cycle.volumes.blocked {
        return refuse(Plugin::VolumeBinding, why.clone(), false);
    }
    let why = cycle.snapshot.storage.refusal(&cycle.volumes, &node.node)?;
    refuse(Plugin::VolumeBinding, why, false)
}

fn unschedulable(cycle: &Cycle<'_>, _: usize, node: &NodeState) -> Option<Refusal> {
    if node.node.spec.as_ref().and_then(|s| s.unschedulable) != Some(true) {
        return None;
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    if tolerates(&cycle.ask.tolerations, &taint) {
        return None;
    }
    refuse(Plugin::NodeUnschedulable, "node(s) were unschedulable", false)
}

fn name(cycle: &Cycle<'_>, _: usize, node: &NodeState) -> Option<Refusal> {
    let wanted = &cycle.ask.node_name;
    if wanted.is_empty() || wanted == node.name() {
        return None;
    }
    refuse(Plugin::NodeName, "node(s) didn't match the requested node name", false)
}

fn taints(cycle: &Cycle<'_>, _: usize, node: &NodeState) -> Option<Refusal> {
    let taint = untolerated(cycle.ask, node)?;
    let value = taint.value.as_deref().unwrap_or_default();
    let why = format!("node(s) had untolerated taint {{{}: {value}}}", taint.key);
    refuse(Plugin::TaintToleration, why, false)
}

/// Whether the node is one that the pod's selector and required affinity ask for.
#[must_use]
pub fn selected(ask: &Ask, node: &NodeState) -> bool {
    ask.node_selector.iter().all(|(key, value)| node.label(key) == Some(value))
        && ask.node_required.as_ref().is_none_or(|s| selector_matches(s, &node.node))
}

/// The names of the nodes that the pod's affinity names, if it names them: no other can be one.
#[must_use]
pub fn named(ask: &Ask) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    for term in &ask.node_required.as_ref()?.node_selector_terms {
        let fields = term.match_fields.iter().flatten();
        let by_name =
            fields.into_iter().find(|r| r.key == "metadata.name" && r.operator == "In")?;
        names.extend(by_name.values.iter().flatten().map(String::as_str));
    }
    Some(names)
}

fn affinity(cycle: &Cycle<'_>, _: usize, node: &NodeState) -> Option<Refusal> {
    if selected(cycle.ask, node) {
        return None;
    }
    refuse(Plugin::NodeAffinity, "node(s) didn't match Pod's node affinity/selector", false)
}

fn ports(cycle: &Cycle<'_>, _: usize, node: &NodeState) -> Option<Refusal> {
    let wanted = &cycle.ask.takes.ports;
    if wanted.is_empty() {
        return None;
    }
    let promised = promised(cycle, node).flat_map(|takes| &takes.ports);
    let used: Vec<_> = node.ports.keys().chain(promised).collect();
    let clash = wanted.iter().any(|(address, protocol, number)| {
        used.iter().any(|(a, p, n)| {
            n == number && p == protocol && (a.is_empty() || address.is_empty() || a == address)
        })
    });
    if !clash {
        return None;
    }
    let why = "node(s) didn't have free ports for the requested pod ports";
    refuse(Plugin::NodePorts, why, true)
}

/// What is kept on the node for pods at least as important, that wait for others to go.
fn promised<'a>(
    cycle: &'a Cycle<'_>,
    node: &NodeState,
) -> impl Iterator<Item = &'a crate::ask::Takes> {
    let waiting = cycle.snapshot.nominated.get(node.name()).into_iter().flatten();
    waiting
        .filter(|(key, pod)| pod.priority >= cycle.ask.priority && **key != cycle.ask.key)
        .map(|(_, pod)| &pod.takes)
}

fn resources(cycle: &Cycle<'_>, _: usize, node: &NodeState) -> Option<Refusal> {
    let mut requested = Cow::Borrowed(&node.requested);
    let mut pods = node.pods.len();
    for takes in promised(cycle, node) {
        requested.to_mut().add(&takes.amounts, 1);
        pods += 1;
    }
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    if pods >= node.pods_max {
        reasons.push("Too many pods".into());
    }
    let wanted = &cycle.ask.takes.amounts;
    if wanted.cpu > 0 && wanted.cpu > node.allocatable.cpu - requested.cpu {
        reasons.push("Insufficient cpu".into());
    }
    if wanted.memory > 0 && wanted.memory > node.allocatable.memory - requested.memory {
        reasons.push("Insufficient memory".into());
    }
    for (name, wanted) in wanted.more.iter().filter(|(_, wanted)| **wanted > 0) {
        if *wanted > node.allocatable.of(name) - requested.of(name) {
            reasons.push(format!("Insufficient {name}").into());
        }
    }
    if reasons.is_empty() {
        return None;
    }
    // What the node would not have if it were empty, it will not have by others going.
    let enough = wanted.iter().all(|(name, wanted)| wanted <= node.allocatable.of(name));
    Some(Refusal { plugin: Plugin::NodeResourcesFit, reasons, resolvable: enough })
}

fn spread(cycle: &Cycle<'_>, id: usize, _: &NodeState) -> Option<Refusal> {
    let (why, resolvable) = cycle.spread.refusal(cycle.snapshot, id)?;
    refuse(Plugin::PodTopologySpread, why, resolvable)
}

fn near(cycle: &Cycle<'_>, id: usize, _: &NodeState) -> Option<Refusal> {
    let (why, resolvable) = cycle.near.refusal(cycle.snapshot, &cycle.ask.shape, id)?;
    refuse(Plugin::InterPodAffinity, why, resolvable)
}
