//! Who would have to go for a pod that fits nowhere. Pure.
//!
//! As upstream's DefaultPreemption: on each node where it could help, all pods of lower priority are thought away, and
//! as many of them as possible taken back, those that a disruption budget protects and the most important first.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ask::{Ask, selects};
use crate::filters::{Cycle, Refusal};
use crate::place::{Sifted, unavailable};
use crate::snapshot::{NodeState, Placed, Snapshot};

/// No more candidates than this share of the nodes are worked out, in hundredths, …
const CANDIDATES_PERCENT: usize = 10;
/// … and no fewer than this.
const CANDIDATES_MIN: usize = 100;

/// A node, and the pods that have to leave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preemption {
    /// The node's name.
    pub node: String,
    /// Who has to go: key and uid.
    pub victims: Vec<(client::Key, String)>,
}

/// A node, with what going there would cost.
struct Candidate {
    node: usize,
    victims: Vec<Arc<Placed>>,
    violations: usize,
}

/// Finds the node where making room costs least. If there is none, why, in upstream's words.
pub(crate) fn preempt(cycle: &Cycle<'_>, sifted: &Sifted) -> (Option<Preemption>, Option<String>) {
    let (ask, snapshot) = (cycle.ask, cycle.snapshot);
    if !ask.may_preempt {
        return (None, Some("not eligible due to preemptionPolicy=Never".into()));
    }
    if waits_for_victims(ask, snapshot) {
        let why = "not eligible due to a terminating pod on the nominated node";
        return (None, Some(why.into()));
    }
    let helpful = |refusal: &Refusal| refusal.resolvable;
    let hopeful: Vec<usize> =
        sifted.refused.iter().filter(|(_, r)| helpful(r)).map(|(id, _)| *id).collect();
    let total = snapshot.node_count();
    let most = (total * CANDIDATES_PERCENT / 100).max(CANDIDATES_MIN);
    // Worked out by thinking pods away in a copy of what was counted for the pod.
    let mut candidates = Vec::new();
    let mut thought = Cycle::new(ask, snapshot);
    for id in &hopeful {
        if candidates.len() >= most {
            break;
        }
        candidates.extend(candidate(&mut thought, *id));
    }
    let best = candidates.into_iter().min_by_key(cost);
    if let Some(best) = best {
        let node = snapshot.node(best.node).map(|n| n.name().to_owned()).unwrap_or_default();
        let victims = best.victims.iter().map(|v| (v.key.clone(), v.uid.clone())).collect();
        return (Some(Preemption { node, victims }), None);
    }
    let mut reasons = BTreeMap::new();
    let hopeless = total - hopeful.len();
    if hopeless > 0 {
        reasons.insert("Preemption is not helpful for scheduling", hopeless);
    }
    if !hopeful.is_empty() {
        reasons.insert("No preemption victims found for incoming pod", hopeful.len());
    }
    (None, Some(unavailable(total, &reasons)))
}

/// Whether the pod waits already for others to leave a node, and one of them is still leaving.
fn waits_for_victims(ask: &Ask, snapshot: &Snapshot) -> bool {
    let node = snapshot.number(&ask.nominated).and_then(|id| snapshot.node(id));
    node.is_some_and(|node| {
        node.pods.iter().any(|pod| {
            pod.priority < ask.priority && snapshot.shape(pod).is_some_and(|s| s.leaving)
        })
    })
}

/// Fewest violated budgets, then the least important victims, the least importance in all, the fewest of them, and
/// the one that began last.
fn cost(c: &Candidate) -> (usize, i32, i64, usize, std::cmp::Reverse<i64>, usize) {
    let highest = c.victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    let sum = c.victims.iter().map(|v| i64::from(v.priority) - i64::from(i32::MIN)).sum();
    let important = c.victims.iter().filter(|v| v.priority == highest);
    let earliest = important.map(|v| v.since_s).min().unwrap_or(0);
    (c.violations, highest, sum, c.victims.len(), std::cmp::Reverse(earliest), c.node)
}

/// Who would have to leave this node; `None` if that would not help.
fn candidate(cycle: &mut Cycle<'_>, id: usize) -> Option<Candidate> {
    let (ask, snapshot) = (cycle.ask, cycle.snapshot);
    let mut node = snapshot.node(id)?.clone();
    let mut lower: Vec<Arc<Placed>> =
        node.pods.iter().filter(|p| p.priority < ask.priority).cloned().collect();
    if lower.is_empty() {
        return None;
    }
    for pod in &lower {
        shift(cycle, &mut node, id, pod, false);
    }
    // The most important first, of equals the one that has been there longest.
    lower.sort_by_key(|p| (std::cmp::Reverse(p.priority), p.since_s));
    let mut victims = Vec::new();
    let mut violations = 0;
    let helps = cycle.refusal(id, &node).is_none();
    if helps {
        let (protected, free) = by_budget(snapshot, &lower);
        for (pods, violating) in [(protected, true), (free, false)] {
            for pod in pods {
                shift(cycle, &mut node, id, &pod, true);
                if cycle.refusal(id, &node).is_some() {
                    shift(cycle, &mut node, id, &pod, false);
                    violations += usize::from(violating);
                    victims.push(pod);
                }
            }
        }
    }
    // What was thought away comes back, for the next node.
    let gone = if helps { &victims } else { &lower };
    for pod in gone.clone() {
        shift(cycle, &mut node, id, &pod, true);
    }
    (helps && !victims.is_empty()).then_some(Candidate { node: id, victims, violations })
}

/// Thinks a pod away from a node, or back.
fn shift(cycle: &mut Cycle<'_>, node: &mut NodeState, id: usize, pod: &Arc<Placed>, back: bool) {
    let sign = if back { 1 } else { -1 };
    if back {
        node.add(pod.clone());
    } else {
        node.remove(&pod.key);
    }
    let own = &cycle.ask.shape;
    if let Some(shape) = cycle.snapshot.shape(pod) {
        cycle.near.shift(cycle.snapshot, own, shape, id, sign);
        cycle.spread.shift(cycle.snapshot, own, shape, id, sign);
    }
}

/// Which of the pods a budget protects, should all of them go in this order, and which not.
fn by_budget(snapshot: &Snapshot, pods: &[Arc<Placed>]) -> (Vec<Arc<Placed>>, Vec<Arc<Placed>>) {
    let mut allowed: BTreeMap<&client::Key, i32> =
        snapshot.budgets.iter().map(|(key, budget)| (key, budget.allowed)).collect();
    pods.iter().cloned().partition(|pod| {
        let Some(shape) = snapshot.shape(pod).filter(|s| !s.labels.is_empty()) else {
            return false;
        };
        let mut protected = false;
        for (key, budget) in &snapshot.budgets {
            let meant = budget.namespace == shape.namespace
                && !budget.selector.is_empty()
                && selects(&budget.selector, &shape.labels)
                && !budget.disrupted.contains(&pod.key.name);
            if let Some(left) = allowed.get_mut(key).filter(|_| meant) {
                *left -= 1;
                protected |= *left < 0;
            }
        }
        protected
    })
}
