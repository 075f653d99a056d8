//! Ranges of pod addresses: each node gets a part of the cluster's.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

/// How long a node without a range waits until it is looked whether one has become free.
const FULL_WAIT: Duration = Duration::from_secs(60);

/// The cluster's pod range and the size of a node's part of it.
#[derive(Debug, Clone, Copy)]
pub struct PodRange {
    base: u32,
    prefix: u8,
    node_prefix: u8,
}

static RANGE: OnceLock<PodRange> = OnceLock::new();

impl PodRange {
    /// Reads `a.b.c.d/n`; each node gets a /24, or a sixteenth of a smaller range.
    ///
    /// # Errors
    /// Says what the text should be.
    pub fn parse(cidr: &str) -> anyhow::Result<Self> {
        let bad = || anyhow::anyhow!("{cidr:?} is no IPv4 range like 10.244.0.0/16");
        let (address, prefix) = cidr.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        anyhow::ensure!((8..=24).contains(&prefix), "{cidr:?}: the prefix must be /8 to /24");
        let base = u32::from(address) & (u32::MAX << (32 - prefix));
        Ok(Self { base, prefix, node_prefix: if prefix <= 20 { 24 } else { prefix + 4 } })
    }

    /// Makes this the range that [`NodeRanges`] deals out.
    pub fn publish(self) {
        // A second call in one process is the restart of a daemon inside `up`, with the same range.
        let _ = RANGE.set(self);
    }

    fn count(self) -> usize {
        1 << (self.node_prefix - self.prefix)
    }

    fn parts(self) -> impl Iterator<Item = String> {
        let size = 1_u32 << (32 - self.node_prefix);
        (0..self.count() as u32).map(move |part| {
            format!("{}/{}", Ipv4Addr::from(self.base + part * size), self.node_prefix)
        })
    }
}

/// How many nodes get their ranges by one decision.
const DEALT_MAX: usize = 256;

/// Index function: the range of a node's pods, or empty while it has none.
pub fn range_of(node: &Node) -> Vec<String> {
    vec![node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).unwrap_or_default()]
}

/// Nodes without a range, and the ranges that others have.
#[derive(Debug)]
pub struct SeenRanges {
    range: PodRange,
    waiting: Vec<Arc<Node>>,
    taken: BTreeSet<String>,
}

/// Deals out pod ranges, to all nodes that wait at once.
#[derive(Debug)]
pub struct NodeRanges;

impl Controller for NodeRanges {
    const NAME: &'static str = "node-ipam";
    type Seen = SeenRanges;
    const WAKES: &'static [Wake] = &[Wake::own("Node")];
    // No range is dealt out twice.
    const KEYS_MAX: usize = 1;

    fn observe(cache: &Cache, key: &Key) -> Option<SeenRanges> {
        let node = cache.at::<Node>(key)?;
        let range = *RANGE.get()?;
        if range_of(&node) != [""] {
            return None;
        }
        let mut waiting = cache.find::<Node>("range", "");
        if cache.count::<Node>() - waiting.len() >= range.count() {
            return Some(SeenRanges { range, waiting: vec![node], taken: range.parts().collect() });
        }
        waiting.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        waiting.truncate(DEALT_MAX);
        if !waiting.iter().any(|other| other.metadata.name == node.metadata.name) {
            waiting.push(node);
        }
        let taken = cache.list::<Node>().iter().flat_map(|node| range_of(node)).collect();
        Some(SeenRanges { range, waiting, taken })
    }

    fn reconcile(seen: &SeenRanges, _: Timestamp) -> Plan {
        let mut free = seen.range.parts().filter(|part| !seen.taken.contains(part));
        let mut plan = Plan::new();
        for node in &seen.waiting {
            let Some(part) = free.next() else {
                let message = "No pod range is left for this node";
                return plan
                    .push(Action::event(&**node, "Warning", "CIDRNotAvailable", message))
                    .requeue_after(FULL_WAIT);
            };
            let change = json!({"spec": {"podCIDR": part, "podCIDRs": [part]}});
            plan = plan.push(Action::merge_if_unchanged(&**node, change));
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_wait_get_ranges_until_none_is_left() {
        let range = PodRange::parse("10.244.0.0/22").unwrap();
        let mut node = Node::default();
        node.metadata.name = Some("n".into());
        let waiting = std::iter::repeat_n(Arc::new(node), 17).collect();
        let taken = BTreeSet::from(["10.244.0.0/26".to_owned()]);
        let plan =
            NodeRanges::reconcile(&SeenRanges { range, waiting, taken }, Timestamp::UNIX_EPOCH);
        let lines: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
        assert_eq!(lines.iter().filter(|l| l.starts_with("patch")).count(), 15);
        assert_eq!(lines[15..], ["event n CIDRNotAvailable"]);
    }

    #[test]
    fn ranges_are_dealt_out_in_order() {
        let range = PodRange::parse("10.244.0.0/16").unwrap();
        let parts: Vec<String> = range.parts().take(2).collect();
        assert_eq!(parts, ["10.244.0.0/24", "10.244.1.0/24"]);
        assert!(PodRange::parse("10.244.0.0/30").is_err());
    }
}
