//! Topology spread: how many pods of a kind each domain has, and how much more than the least it may have. Pure.
//!
//! Specified by "Pod Topology Spread Constraints" of the documentation (KEP-895, KEP-3022, KEP-3094, KEP-3243).

use crate::ask::{Ask, Constraint, Counted, HOSTNAME, Shape};
use crate::filters::{selected, untolerated};
use crate::near::ByDomain;
use crate::snapshot::Snapshot;

/// One constraint, counted.
#[derive(Debug)]
pub struct Counts {
    constraint: Constraint,
    /// How many pods by domain.
    pods: ByDomain,
    /// By node: whether its pods count.
    counts: Vec<bool>,
    /// The fewest pods of a domain that counts.
    least: i64,
    /// Whether the pod itself would count.
    own: i64,
}

/// The hard constraints of a pod, or its soft ones.
#[derive(Debug)]
pub struct Spread {
    constraints: Vec<Counts>,
}

impl Spread {
    /// Counts for a pod's `hard` constraints, or for its soft ones.
    #[must_use]
    pub fn count(ask: &Ask, snapshot: &Snapshot, hard: bool) -> Self {
        let own: Vec<&Constraint> = ask.spread.iter().filter(|c| c.hard == hard).collect();
        if own.is_empty() {
            return Self { constraints: Vec::new() };
        }
        // Without asking for it, nodes without a zone are spread by name nevertheless.
        let by_default = own.iter().all(|c| matches!(c.counts, Counted::Siblings));
        let has = |c: &Constraint, id: usize| {
            snapshot.topology(c.topology).of.get(id).is_some_and(Option::is_some)
        };
        let mut counts = vec![vec![false; snapshot.node_numbers()]; own.len()];
        for (id, node) in snapshot.nodes() {
            if !by_default && !own.iter().all(|c| has(c, id)) {
                continue;
            }
            for (constraint, counts) in own.iter().zip(&mut counts) {
                counts[id] = has(constraint, id)
                    && (!constraint.honor_affinity || selected(ask, node))
                    && (!constraint.honor_taints || untolerated(ask, node).is_none());
            }
        }
        let constraints = own.into_iter().zip(counts).map(|(constraint, counts)| {
            let mut pods = ByDomain::new(constraint.topology, snapshot);
            for class in snapshot.classes() {
                if constraint.counts(&ask.shape, &class.shape) {
                    for (node, count) in class.on.iter().filter(|(node, _)| counts[**node]) {
                        pods.add(snapshot, *node, i64::from(*count));
                    }
                }
            }
            let own = i64::from(constraint.counts(&ask.shape, &ask.shape));
            let constraint = constraint.clone();
            let mut counts = Counts { constraint, pods, counts, least: 0, own };
            counts.find_least(snapshot);
            counts
        });
        Self { constraints: constraints.collect() }
    }

    /// A pod of shape `other` comes to (1) or leaves (-1) a node.
    pub fn shift(
        &mut self,
        snapshot: &Snapshot,
        own: &Shape,
        other: &Shape,
        node: usize,
        sign: i64,
    ) {
        for counts in &mut self.constraints {
            if counts.counts[node] && counts.constraint.counts(own, other) {
                counts.pods.add(snapshot, node, sign);
                counts.find_least(snapshot);
            }
        }
    }

    /// Why the node is refused, and whether it would help if pods went.
    #[must_use]
    pub fn refusal(&self, snapshot: &Snapshot, node: usize) -> Option<(&'static str, bool)> {
        self.constraints.iter().find_map(|counts| {
            let Some(pods) = counts.pods.at(snapshot, node) else {
                let why =
                    "node(s) didn't match pod topology spread constraints (missing required label)";
                return Some((why, false));
            };
            let skew = pods + counts.own - counts.least;
            (skew > counts.constraint.max_skew)
                .then_some(("node(s) didn't match pod topology spread constraints", true))
        })
    }

    /// How many pods the domains of each of `nodes` have, weighed; `None` for a node that lacks a label, and
    /// altogether when the pod has no such constraint.
    #[must_use]
    pub fn weigh(&self, snapshot: &Snapshot, nodes: &[usize]) -> Option<Vec<Option<i64>>> {
        let constraints = &self.constraints;
        if constraints.is_empty() {
            return None;
        }
        let by_default =
            constraints.iter().all(|c| matches!(c.constraint.counts, Counted::Siblings));
        let complete =
            |id: usize| by_default || constraints.iter().all(|c| c.pods.at(snapshot, id).is_some());
        let scored = nodes.iter().filter(|id| complete(**id)).count();
        let weights: Vec<f64> = constraints
            .iter()
            .map(|counts| {
                let topology = snapshot.topology(counts.constraint.topology);
                let size = if topology.key == HOSTNAME {
                    scored
                } else {
                    let values = nodes.iter().filter(|id| complete(**id));
                    let mut values: Vec<_> =
                        values.filter_map(|id| topology.of.get(*id).copied()).collect();
                    values.sort_unstable();
                    values.dedup();
                    values.len()
                };
                #[allow(clippy::cast_precision_loss)] // a number of nodes
                ((size + 2) as f64).ln()
            })
            .collect();
        let score = |id: &usize| {
            complete(*id).then(|| {
                let each = constraints.iter().zip(&weights).filter_map(|(counts, weight)| {
                    let pods = counts.pods.at(snapshot, *id)?;
                    #[allow(clippy::cast_precision_loss)] // numbers of pods
                    let weighed = pods as f64 * weight + (counts.constraint.max_skew - 1) as f64;
                    Some(weighed)
                });
                #[allow(clippy::cast_possible_truncation)] // far below
                let sum = each.sum::<f64>().round() as i64;
                sum
            })
        };
        Some(nodes.iter().map(score).collect())
    }
}

impl Counts {
    fn find_least(&mut self, snapshot: &Snapshot) {
        let topology = snapshot.topology(self.constraint.topology);
        let mut seen = vec![false; topology.domains()];
        let (mut least, mut domains) = (i64::MAX, 0);
        for (id, domain) in topology.of.iter().enumerate() {
            let Some(domain) = domain.filter(|_| self.counts.get(id) == Some(&true)) else {
                continue;
            };
            let domain = domain as usize;
            if !seen[domain] {
                seen[domain] = true;
                domains += 1;
                least = least.min(self.pods.at(snapshot, id).unwrap_or(0));
            }
        }
        self.least = if domains < self.constraint.min_domains || domains == 0 { 0 } else { least };
    }
}
