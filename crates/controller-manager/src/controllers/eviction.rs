//! Evicts pods from nodes whose NoExecute taints they do not tolerate, and marks pods of lost nodes as not ready.

use std::sync::Arc;
use std::time::Duration;

use client::fit::tolerates;
use client::{Action, Cache, Controller, Key, Patch, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use super::nodes::ready_status;
use crate::pods::{condition, disrupted};

/// A pod and its node.
#[derive(Debug)]
pub struct SeenPod {
    pod: Arc<Pod>,
    node: Arc<Node>,
}

/// Evicts pods by taints.
#[derive(Debug)]
pub struct PodEviction;

impl Controller for PodEviction {
    const NAME: &'static str = "taint-eviction";
    type Seen = SeenPod;
    const WAKES: &'static [Wake] = &[
        Wake::own("Pod"),
        Wake::keys("Node", |cache, changed| {
            let taints = |node: Option<&Node>| {
                node.map(|n| {
                    (n.spec.as_ref().and_then(|s| s.taints.clone()), ready_status(n).to_owned())
                })
            };
            if taints(changed.old_as::<Node>()) == taints(changed.new_as::<Node>()) {
                return Vec::new();
            }
            let pods = cache.find::<Pod>("node", &changed.key.name);
            pods.iter().map(|pod| Key::of(&pod.metadata)).collect()
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<SeenPod> {
        let pod = cache.at::<Pod>(key)?;
        let node = cache.get::<Node>("", pod.spec.as_ref()?.node_name.as_deref()?)?;
        Some(SeenPod { pod, node })
    }

    fn reconcile(seen: &SeenPod, now: Timestamp) -> Plan {
        let (pod, node) = (&*seen.pod, &*seen.node);
        let mut plan = Plan::new();
        if ready_status(node) == "Unknown"
            && condition(pod, "Ready").is_some_and(|c| c.status == "True")
        {
            let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let change = json!({"status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": at}
            ]}});
            plan = plan.push(Action::patch(pod, "status", Patch::Strategic(change)));
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return plan;
        }
        match stay_s(pod, node, now) {
            None => plan,
            Some(left) if left > 0 => plan.requeue_after(Duration::from_secs(left.unsigned_abs())),
            Some(_) => {
                let message = "Taint manager: deleting due to NoExecute taint";
                let marking = format!("Marking for deletion Pod {}", Key::of(&pod.metadata));
                plan.push(Action::event(pod, "Normal", "TaintManagerEviction", marking))
                    .push(disrupted(pod, "DeletionByTaintManager", message, None, now))
                    .push(Action::delete(pod))
            }
        }
    }
}

/// Seconds for which the pod may stay; `None` for ever.
fn stay_s(pod: &Pod, node: &Node, now: Timestamp) -> Option<i64> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let stays = taints.iter().filter(|taint| taint.effect == "NoExecute").filter_map(|taint| {
        let tolerated = tolerations.iter().filter(|t| tolerates(std::slice::from_ref(t), taint));
        let seconds: Vec<Option<i64>> = tolerated.map(|t| t.toleration_seconds).collect();
        if seconds.is_empty() {
            return Some(0);
        }
        let shortest = seconds.into_iter().flatten().min()?;
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        Some((shortest - (now.as_second() - since.as_second())).max(0))
    });
    stays.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> SeenPod {
        let taint =
            json!({"key": "gone", "effect": "NoExecute", "timeAdded": "1970-01-01T00:00:00Z"});
        let node = json!({"metadata": {"name": "n"}, "spec": {"taints": [taint]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let toleration = json!({"key": "gone", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"nodeName": "n", "containers": [], "tolerations": [toleration]}});
        SeenPod {
            pod: serde_json::from_value(pod).unwrap(),
            node: serde_json::from_value(node).unwrap(),
        }
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let seen = seen();
        assert_eq!(
            PodEviction::reconcile(&seen, at(100)).requeue_after,
            Some(Duration::from_secs(200))
        );
        let lines: Vec<String> = PodEviction::reconcile(&seen, at(301))
            .actions
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            lines,
            ["event p TaintManagerEviction", "patch pods/status ns/p", "delete pods ns/p"]
        );
        assert_eq!(stay_s(&Pod::default(), &seen.node, at(100)), Some(0));
    }
}
