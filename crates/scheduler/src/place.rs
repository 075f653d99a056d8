//! `place(&pod, &snapshot) -> Placement`: the decision, a pure function.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::filters::FILTERS;
use crate::scores::Wish;
use crate::snapshot::{NodeState, Snapshot};

/// Where a pod goes, or why it goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// On this node.
    Node(String),
    /// Nowhere, for the reason that its event gives.
    Nowhere(String),
}

/// Decides where `pod` runs. Among equals the node with fewest pods wins, then the first by name.
#[must_use]
pub fn place(pod: &Pod, snapshot: &Snapshot) -> Placement {
    let total = snapshot.nodes().len();
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting: Vec<(&String, &NodeState)> = Vec::new();
    for (name, state) in snapshot.nodes() {
        let reasons =
            FILTERS.iter().map(|filter| filter(pod, state)).find(|reasons| !reasons.is_empty());
        match reasons {
            None => fitting.push((name, state)),
            Some(reasons) => {
                for reason in reasons {
                    *refused.entry(reason).or_default() += 1;
                }
            }
        }
    }
    let states: Vec<&NodeState> = fitting.iter().map(|(_, state)| *state).collect();
    let wish = Wish::new(pod, &states);
    let best = fitting.iter().max_by(|(a_name, a), (b_name, b)| {
        wish.score(a)
            .total_cmp(&wish.score(b))
            .then_with(|| b.pods.cmp(&a.pods))
            .then_with(|| b_name.cmp(a_name))
    });
    match best {
        Some((name, _)) => Placement::Node((*name).clone()),
        None if total == 0 => Placement::Nowhere("no nodes available to schedule pods".into()),
        None => Placement::Nowhere(explain(total, &refused)),
    }
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
fn explain(total: usize, refused: &BTreeMap<String, usize>) -> String {
    let mut reasons: Vec<String> =
        refused.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    format!("0/{total} nodes are available: {}.", reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, spec: Value) -> Value {
        json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": spec,
            "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}}
        })
    }

    fn snapshot(nodes: &[Value]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for node in nodes {
            snapshot.put_node(Arc::new(serde_json::from_value(node.clone()).unwrap()));
        }
        snapshot
    }

    fn pod(name: &str, cpu: &str, more: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "ns", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}
            ]},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn pods_of_one_owner_are_spread() {
        let mut snapshot = snapshot(&[node("a", json!({})), node("b", json!({}))]);
        let mut seen = Vec::new();
        for i in 0..4 {
            let pod = pod(&format!("p{i}"), "100m", json!({}));
            let Placement::Node(name) = place(&pod, &snapshot) else { panic!("nowhere") };
            snapshot.place(&pod, &name);
            seen.push(name);
        }
        assert_eq!(seen, ["a", "b", "a", "b"]);
    }

    #[test]
    fn the_reason_counts_the_nodes() {
        let taint = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
        let snapshot = snapshot(&[
            node("a", json!({})),
            node("b", json!({"unschedulable": true})),
            node("c", taint),
        ]);
        assert_eq!(
            place(&pod("p", "3", json!({})), &snapshot),
            Placement::Nowhere(
                "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, \
                 1 node(s) were unschedulable."
                    .into()
            )
        );
    }

    #[test]
    fn a_selector_decides() {
        let snapshot = snapshot(&[node("a", json!({})), node("b", json!({}))]);
        let wanted = json!({"nodeSelector": {"kubernetes.io/hostname": "b"}});
        assert_eq!(place(&pod("p", "1", wanted), &snapshot), Placement::Node("b".into()));
    }

    #[test]
    fn without_nodes_it_says_so() {
        let nowhere = place(&pod("p", "1", json!({})), &Snapshot::default());
        assert_eq!(nowhere, Placement::Nowhere("no nodes available to schedule pods".into()));
    }
}
