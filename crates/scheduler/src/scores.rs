//! Where a pod should run: each score is 0 to 100, the higher the better. Pure.

use k8s_openapi::api::core::v1::Pod;

use crate::filters::{node_taints, term_matches, tolerates, tolerations};
use crate::snapshot::{Amounts, NodeState, owner, requests};

const MOST: f64 = 100.0;

/// What scores look at beside the node.
#[derive(Debug)]
pub struct Wish<'a> {
    pod: &'a Pod,
    requests: Amounts,
    owner: String,
    /// Most pods of the same owner on one of the nodes.
    siblings_max: usize,
    /// Highest sum of preferred terms that a node fulfils.
    preferred_max: i64,
    /// Most untolerated soft taints on one of the nodes.
    taints_max: usize,
}

impl<'a> Wish<'a> {
    /// What `pod` wishes, seen against the nodes that can run it.
    pub fn new(pod: &'a Pod, nodes: &[&NodeState]) -> Self {
        let owner = owner(pod);
        let siblings = |n: &&&NodeState| n.owners.get(&owner).copied().unwrap_or(0);
        Self {
            requests: requests(pod),
            siblings_max: nodes.iter().map(|n| siblings(&n)).max().unwrap_or(0),
            preferred_max: nodes.iter().map(|n| preferred(pod, n)).max().unwrap_or(0),
            taints_max: nodes.iter().map(|n| soft_taints(pod, n)).max().unwrap_or(0),
            owner,
            pod,
        }
    }

    /// How well a node fits; comparable among the nodes given to `new` only.
    #[must_use]
    pub fn score(&self, node: &NodeState) -> f64 {
        // Weights are upstream's.
        least_allocated(&self.requests, node)
            + balanced(&self.requests, node)
            + 2.0 * self.spread(node)
            + 2.0 * self.preference(node)
            + 3.0 * self.tolerance(node)
    }

    fn spread(&self, node: &NodeState) -> f64 {
        let own = node.owners.get(&self.owner).copied().unwrap_or(0);
        share(self.siblings_max - own.min(self.siblings_max), self.siblings_max)
    }

    fn preference(&self, node: &NodeState) -> f64 {
        let (own, most) = (preferred(self.pod, node), self.preferred_max);
        #[allow(clippy::cast_precision_loss)] // small sums of weights up to 100
        if most > 0 { own as f64 / most as f64 * MOST } else { 0.0 }
    }

    fn tolerance(&self, node: &NodeState) -> f64 {
        let own = soft_taints(self.pod, node).min(self.taints_max);
        share(self.taints_max - own, self.taints_max)
    }
}

#[allow(clippy::cast_precision_loss)] // counts of pods and taints
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { MOST } else { part as f64 / whole as f64 * MOST }
}

/// The part of a resource that is taken once the pod is there.
#[allow(clippy::cast_precision_loss)] // a ratio
fn taken(resource: &str, wanted: &Amounts, node: &NodeState) -> f64 {
    let most = node.allocatable.of(resource);
    if most <= 0 {
        return 1.0;
    }
    let used = node.requested.of(resource) + wanted.of(resource);
    (used as f64 / most as f64).clamp(0.0, 1.0)
}

fn least_allocated(wanted: &Amounts, node: &NodeState) -> f64 {
    let (cpu, memory) = (taken("cpu", wanted, node), taken("memory", wanted, node));
    ((1.0 - cpu) + (1.0 - memory)) / 2.0 * MOST
}

fn balanced(wanted: &Amounts, node: &NodeState) -> f64 {
    let (cpu, memory) = (taken("cpu", wanted, node), taken("memory", wanted, node));
    (1.0 - (cpu - memory).abs() / 2.0) * MOST
}

fn preferred(pod: &Pod, node: &NodeState) -> i64 {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let terms = affinity
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let fulfilled =
        terms.unwrap_or_default().iter().filter(|t| term_matches(&t.preference, &node.node));
    fulfilled.map(|t| i64::from(t.weight)).sum()
}

fn soft_taints(pod: &Pod, node: &NodeState) -> usize {
    let soft = node_taints(&node.node).iter().filter(|t| t.effect == "PreferNoSchedule");
    soft.filter(|t| !tolerates(tolerations(pod), t)).count()
}
