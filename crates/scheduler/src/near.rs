//! Affinity between pods: who has to be in the same domain of a topology, and who must not. Pure.
//!
//! Specified by "Inter-pod affinity and anti-affinity" of the API reference. Terms are asked once for each class of
//! pods, and what they mean is counted by domain.

use crate::ask::{Ask, Shape, Term};
use crate::snapshot::{Class, Snapshot};

/// Numbers by domain of a topology.
#[derive(Debug, Clone)]
pub struct ByDomain {
    topology: usize,
    of: Vec<i64>,
}

impl ByDomain {
    /// Nothing anywhere.
    #[must_use]
    pub fn new(topology: usize, snapshot: &Snapshot) -> Self {
        Self { topology, of: vec![0; snapshot.topology(topology).domains()] }
    }

    fn domain(&self, snapshot: &Snapshot, node: usize) -> Option<usize> {
        let number = (*snapshot.topology(self.topology).of.get(node)?)?;
        usize::try_from(number).ok()
    }

    /// The number of the node's domain; `None` if it has no such label.
    #[must_use]
    pub fn at(&self, snapshot: &Snapshot, node: usize) -> Option<i64> {
        self.of.get(self.domain(snapshot, node)?).copied()
    }

    /// Adds to the domain of the node, if it has one.
    pub fn add(&mut self, snapshot: &Snapshot, node: usize, amount: i64) {
        if let Some(of) = self.domain(snapshot, node).and_then(|d| self.of.get_mut(d)) {
            *of += amount;
        }
    }

    fn add_class(&mut self, snapshot: &Snapshot, class: &Class, each: i64) {
        for (node, count) in &class.on {
            self.add(snapshot, *node, i64::from(*count) * each);
        }
    }
}

/// What the rules of a pod and of those that are there mean for it.
#[derive(Debug)]
pub struct Near {
    /// By required term of the pod: how many pods there are that all its required terms mean.
    must: Vec<ByDomain>,
    /// By anti-affinity term of the pod: how many pods it means.
    not: Vec<ByDomain>,
    /// Pods whose own anti-affinity means the pod, by the topology that they name.
    shunned: Vec<ByDomain>,
    /// Whether the pod is one that its own terms mean: the first of its kind may go anywhere.
    own: bool,
}

fn all_mean(terms: &[Term], shape: &Shape, snapshot: &Snapshot) -> bool {
    !terms.is_empty() && terms.iter().all(|term| term.means(shape, &snapshot.namespaces))
}

/// The numbers of a topology in a list that grows by it.
fn of_topology<'a>(
    list: &'a mut Vec<ByDomain>,
    topology: usize,
    snapshot: &Snapshot,
) -> &'a mut ByDomain {
    let at = list.iter().position(|b| b.topology == topology).unwrap_or_else(|| {
        list.push(ByDomain::new(topology, snapshot));
        list.len() - 1
    });
    &mut list[at]
}

impl Near {
    /// Counts for a pod.
    #[must_use]
    pub fn count(ask: &Ask, snapshot: &Snapshot) -> Self {
        let shape = &ask.shape;
        let empty =
            |terms: &[Term]| terms.iter().map(|t| ByDomain::new(t.topology, snapshot)).collect();
        let mut near = Self {
            must: empty(&shape.affinity),
            not: empty(&shape.anti),
            shunned: Vec::new(),
            own: all_mean(&shape.affinity, shape, snapshot),
        };
        for class in snapshot.classes() {
            if all_mean(&shape.affinity, &class.shape, snapshot) {
                near.must.iter_mut().for_each(|m| m.add_class(snapshot, class, 1));
            }
            for (term, not) in shape.anti.iter().zip(&mut near.not) {
                if term.means(&class.shape, &snapshot.namespaces) {
                    not.add_class(snapshot, class, 1);
                }
            }
            for term in &class.shape.anti {
                if term.means(shape, &snapshot.namespaces) {
                    let shunned = of_topology(&mut near.shunned, term.topology, snapshot);
                    shunned.add_class(snapshot, class, 1);
                }
            }
        }
        near
    }

    /// A pod of shape `other` comes to (1) or leaves (-1) a node, as far as the pod of shape `own` is concerned.
    pub fn shift(
        &mut self,
        snapshot: &Snapshot,
        own: &Shape,
        other: &Shape,
        node: usize,
        sign: i64,
    ) {
        if all_mean(&own.affinity, other, snapshot) {
            self.must.iter_mut().for_each(|m| m.add(snapshot, node, sign));
        }
        for (term, not) in own.anti.iter().zip(&mut self.not) {
            if term.means(other, &snapshot.namespaces) {
                not.add(snapshot, node, sign);
            }
        }
        for term in &other.anti {
            if term.means(own, &snapshot.namespaces) {
                of_topology(&mut self.shunned, term.topology, snapshot).add(snapshot, node, sign);
            }
        }
    }

    /// Why the node is refused, and whether it would help if pods went.
    #[must_use]
    pub fn refusal(
        &self,
        snapshot: &Snapshot,
        shape: &Shape,
        node: usize,
    ) -> Option<(&'static str, bool)> {
        if !shape.affinity.is_empty() {
            let here: Option<Vec<i64>> = self.must.iter().map(|m| m.at(snapshot, node)).collect();
            let nobody = || self.must.iter().all(|m| m.of.iter().all(|n| *n == 0));
            let fits =
                here.is_some_and(|here| here.iter().all(|n| *n > 0) || (self.own && nobody()));
            if !fits {
                return Some(("node(s) didn't match pod affinity rules", false));
            }
        }
        let some = |b: &ByDomain| b.at(snapshot, node).is_some_and(|n| n > 0);
        if self.not.iter().any(some) {
            return Some(("node(s) didn't match pod anti-affinity rules", true));
        }
        if self.shunned.iter().any(some) {
            return Some(("node(s) didn't satisfy existing pods anti-affinity rules", true));
        }
        None
    }
}

/// How much the pods of a domain are wanted near, or not: the pod's preferences, and those that others have of it.
/// `None` when nobody prefers anything.
#[must_use]
pub fn preferences(ask: &Ask, snapshot: &Snapshot) -> Option<Vec<ByDomain>> {
    let own = &ask.shape;
    let mut sums: Vec<ByDomain> = Vec::new();
    for class in snapshot.classes() {
        let other = &class.shape;
        for term in &own.preferred {
            if term.means(other, &snapshot.namespaces) {
                let sum = of_topology(&mut sums, term.topology, snapshot);
                sum.add_class(snapshot, class, i64::from(term.weight));
            }
        }
        // Who has to be near the pod is glad of it: upstream's hardPodAffinityWeight of 1.
        for term in other.affinity.iter().chain(&other.preferred) {
            if term.means(own, &snapshot.namespaces) {
                let sum = of_topology(&mut sums, term.topology, snapshot);
                sum.add_class(snapshot, class, i64::from(term.weight));
            }
        }
    }
    (!sums.is_empty()).then_some(sums)
}
