//! `place(&ask, &snapshot) -> Placement`: the decision, a pure function.

use std::collections::BTreeMap;

use crate::ask::Ask;
use crate::filters::{Cycle, Plugins, Refusal, named};
use crate::preempt::{Preemption, preempt};
use crate::scores::{Score, score};
use crate::snapshot::Snapshot;

/// With fewer nodes than this all are looked at.
const NODES_LOOKED_AT_MIN: usize = 100;

/// Where a pod goes, or why it goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// On this node.
    Node(String),
    /// Nowhere.
    Nowhere(Nowhere),
}

/// Why a pod goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nowhere {
    /// What its event says.
    pub message: String,
    /// Who refused: the pod waits for what could change their minds.
    pub by: Plugins,
    /// What would make room for it.
    pub preemption: Option<Preemption>,
}

/// The nodes that can run a pod, and why the others can't.
#[derive(Debug, Default)]
pub(crate) struct Sifted {
    pub(crate) fitting: Vec<usize>,
    pub(crate) refused: Vec<(usize, Refusal)>,
    /// How many nodes were never asked, since the pod names others.
    pub(crate) unnamed: usize,
    /// Where the next pod begins to look.
    pub(crate) next: usize,
}

/// Asks the nodes, from number `start` on, until enough can run the pod.
pub(crate) fn sift(cycle: &Cycle<'_>, start: usize, enough: usize) -> Sifted {
    let snapshot = cycle.snapshot;
    let mut sifted = Sifted { next: start, ..Sifted::default() };
    let ask = |id: usize, sifted: &mut Sifted| {
        let Some(node) = snapshot.node(id) else { return };
        match cycle.refusal(id, node) {
            None => sifted.fitting.push(id),
            Some(refusal) => sifted.refused.push((id, refusal)),
        }
    };
    if let Some(names) = named(cycle.ask) {
        let mut ids: Vec<usize> =
            names.into_iter().filter_map(|name| snapshot.number(name)).collect();
        ids.sort_unstable();
        ids.dedup();
        sifted.unnamed = snapshot.node_count() - ids.len();
        ids.into_iter().for_each(|id| ask(id, &mut sifted));
        return sifted;
    }
    let numbers = snapshot.node_numbers();
    for i in 0..numbers {
        if sifted.fitting.len() >= enough {
            break;
        }
        let id = (start + i) % numbers;
        ask(id, &mut sifted);
        sifted.next = (id + 1) % numbers;
    }
    sifted
}

/// How many nodes that can run a pod are enough to choose from: upstream's adaptive percentage.
fn enough(nodes: usize) -> usize {
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(NODES_LOOKED_AT_MIN)
}

/// Decides where a pod runs, beginning at node number `start`; also says where the next pod begins. Among equals the
/// node with the fewest pods wins, then the one that has been there longest.
#[must_use]
pub fn place(ask: &Ask, snapshot: &Snapshot, start: usize) -> (Placement, usize) {
    let cycle = Cycle::new(ask, snapshot);
    let sifted = sift(&cycle, start, enough(snapshot.node_count()));
    let best = match sifted.fitting.as_slice() {
        [] => None,
        [only] => Some(*only),
        several => best(&score(ask, snapshot, several), snapshot),
    };
    let placement = match best.and_then(|id| snapshot.node(id)) {
        Some(node) => Placement::Node(node.name().to_owned()),
        None => Placement::Nowhere(nowhere(&cycle, &sifted)),
    };
    (placement, sifted.next)
}

/// The node that wins.
pub(crate) fn best(scores: &[Score], snapshot: &Snapshot) -> Option<usize> {
    let pods = |id: usize| snapshot.node(id).map_or(0, |n| n.pods.len());
    let best = scores.iter().max_by(|a, b| {
        a.total
            .cmp(&b.total)
            .then_with(|| pods(b.node).cmp(&pods(a.node)))
            .then_with(|| b.node.cmp(&a.node))
    });
    best.map(|score| score.node)
}

fn nowhere(cycle: &Cycle<'_>, sifted: &Sifted) -> Nowhere {
    let total = cycle.snapshot.node_count();
    if total == 0 {
        let message = "no nodes available to schedule pods".to_owned();
        return Nowhere { message, by: Plugins::ALL, preemption: None };
    }
    let mut by = Plugins::default();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, refusal) in &sifted.refused {
        by.insert(refusal.plugin);
        for reason in &refusal.reasons {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    if sifted.unnamed > 0 {
        by.insert(crate::filters::Plugin::NodeAffinity);
        reasons.insert("node(s) didn't satisfy plugin(s) [NodeAffinity]", sifted.unnamed);
    }
    let (preemption, why_not) = preempt(cycle, sifted);
    // What keeps a pod from all nodes alike is said once.
    let head = match &cycle.volumes.blocked {
        Some(why) => format!("0/{total} nodes are available: {why}"),
        None => unavailable(total, &reasons),
    };
    let mut message = format!("{head}. no new claims to deallocate");
    if let Some(why_not) = why_not {
        message = format!("{message}, preemption: {why_not}");
    }
    message.push('.');
    Nowhere { message, by, preemption }
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable`
pub(crate) fn unavailable(total: usize, refused: &BTreeMap<&str, usize>) -> String {
    let mut reasons: Vec<String> =
        refused.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    format!("0/{total} nodes are available: {}", reasons.join(", "))
}

#[cfg(test)]
mod tests;
