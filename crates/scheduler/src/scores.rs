//! Where a pod should run: each plugin gives a node 0 to 100, the higher the better, weighed and summed. Pure.
//!
//! Plugins, weights and formulas are those of upstream's default profile.

use client::fit::{term_matches, tolerates};

use crate::ask::Ask;
use crate::near::preferences;
use crate::snapshot::{NodeState, Snapshot};
use crate::spread::Spread;

const MOST: i64 = 100;
/// Below so much of images on a node nothing is won, for each container …
const IMAGE_BYTES_MIN: i64 = 23 << 20;
/// … and above this nothing more.
const IMAGE_BYTES_MAX: i64 = 1000 << 20;

/// The plugins that score, and their weights.
pub const PLUGINS: [(&str, i64); 7] = [
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("NodeResourcesFit", 1),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
];

/// What a node is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Score {
    /// The node's number.
    pub node: usize,
    /// Weighed and summed.
    pub total: i64,
    /// By plugin, before it is weighed.
    pub by: [i64; PLUGINS.len()],
}

/// Scores the nodes that can run the pod.
#[must_use]
pub fn score(ask: &Ask, snapshot: &Snapshot, nodes: &[usize]) -> Vec<Score> {
    let each = |of: &dyn Fn(&NodeState) -> i64| -> Vec<i64> {
        nodes.iter().map(|id| snapshot.node(*id).map_or(0, of)).collect()
    };
    let columns = [
        reversed(each(&|node| soft_taints(ask, node))),
        share_of_most(each(&|node| preferred(ask, node))),
        spread(ask, snapshot, nodes),
        near(ask, snapshot, nodes),
        each(&|node| least_allocated(ask, node)),
        each(&|node| balanced(ask, node)),
        images(ask, snapshot, nodes),
    ];
    let row = |(i, node): (usize, &usize)| {
        let by = std::array::from_fn(|plugin| columns[plugin][i]);
        let total = PLUGINS.iter().zip(by).map(|((_, weight), score)| weight * score).sum();
        Score { node: *node, total, by }
    };
    nodes.iter().enumerate().map(row).collect()
}

/// As parts of the greatest.
fn share_of_most(mut scores: Vec<i64>) -> Vec<i64> {
    let most = scores.iter().copied().max().unwrap_or(0);
    if most > 0 {
        scores.iter_mut().for_each(|s| *s = *s * MOST / most);
    }
    scores
}

/// The fewer the better.
fn reversed(scores: Vec<i64>) -> Vec<i64> {
    share_of_most(scores).into_iter().map(|s| MOST - s).collect()
}

fn soft_taints(ask: &Ask, node: &NodeState) -> i64 {
    let soft = node.taints().iter().filter(|t| t.effect == "PreferNoSchedule");
    i64::try_from(soft.filter(|t| !tolerates(&ask.tolerations, t)).count()).unwrap_or(MOST)
}

fn preferred(ask: &Ask, node: &NodeState) -> i64 {
    let fulfilled = ask.node_preferred.iter().filter(|t| term_matches(&t.preference, &node.node));
    fulfilled.map(|t| i64::from(t.weight)).sum()
}

fn spread(ask: &Ask, snapshot: &Snapshot, nodes: &[usize]) -> Vec<i64> {
    let Some(weighed) = Spread::count(ask, snapshot, false).weigh(snapshot, nodes) else {
        return vec![0; nodes.len()];
    };
    let known = || weighed.iter().flatten().copied();
    let (least, most) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
    let normal = |pods: Option<i64>| match pods {
        None => 0,
        Some(_) if most == 0 => MOST,
        Some(pods) => MOST * (most + least - pods) / most,
    };
    weighed.iter().map(|pods| normal(*pods)).collect()
}

fn near(ask: &Ask, snapshot: &Snapshot, nodes: &[usize]) -> Vec<i64> {
    let Some(sums) = preferences(ask, snapshot) else { return vec![0; nodes.len()] };
    let sum = |id: &usize| sums.iter().filter_map(|s| s.at(snapshot, *id)).sum::<i64>();
    let sums: Vec<i64> = nodes.iter().map(sum).collect();
    let least = sums.iter().copied().min().unwrap_or(0).min(0);
    let most = sums.iter().copied().max().unwrap_or(0).max(0);
    let normal = |sum: i64| if most > least { MOST * (sum - least) / (most - least) } else { 0 };
    sums.into_iter().map(normal).collect()
}

/// The free part of CPU and memory once the pod is there.
fn least_allocated(ask: &Ask, node: &NodeState) -> i64 {
    let (cpu, memory) = ask.takes.weighed;
    let rows = [
        (node.allocatable.cpu, node.weighed.0 + cpu),
        (node.allocatable.memory, node.weighed.1 + memory),
    ];
    let (mut sum, mut weights) = (0, 0);
    for (most, taken) in rows.into_iter().filter(|(most, _)| *most > 0) {
        weights += 1;
        sum += if taken > most { 0 } else { (most - taken).saturating_mul(MOST) / most };
    }
    if weights == 0 { 0 } else { sum / weights }
}

/// How alike the taken parts of CPU and memory are, once the pod is there.
fn balanced(ask: &Ask, node: &NodeState) -> i64 {
    let wanted = &ask.takes.amounts;
    if wanted.cpu == 0 && wanted.memory == 0 {
        return 0;
    }
    #[allow(clippy::cast_precision_loss)] // a ratio
    let part = |most: i64, taken: i64| {
        if most <= 0 { 1.0 } else { (taken as f64 / most as f64).clamp(0.0, 1.0) }
    };
    let cpu = part(node.allocatable.cpu, node.requested.cpu + wanted.cpu);
    let memory = part(node.allocatable.memory, node.requested.memory + wanted.memory);
    #[allow(clippy::cast_possible_truncation)] // 0 to 100
    let score = ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64;
    score
}

/// How much of the pod's images the node has; an image that few nodes have counts less, so that not all pods of it
/// gather there.
fn images(ask: &Ask, snapshot: &Snapshot, nodes: &[usize]) -> Vec<i64> {
    let known: Vec<_> = ask.images.iter().filter_map(|name| snapshot.image(name)).collect();
    let all = i64::try_from(snapshot.node_count()).unwrap_or(i64::MAX).max(1);
    let most = IMAGE_BYTES_MAX * i64::try_from(ask.images.len()).unwrap_or(1).max(1);
    let score = |id: &usize| {
        let there = known.iter().filter(|image| image.nodes.contains(id));
        let bytes: i64 = there
            .map(|i| i.bytes / all * i64::try_from(i.nodes.len()).unwrap_or(all).min(all))
            .sum();
        MOST * (bytes.clamp(IMAGE_BYTES_MIN, most) - IMAGE_BYTES_MIN) / (most - IMAGE_BYTES_MIN)
    };
    nodes.iter().map(score).collect()
}
