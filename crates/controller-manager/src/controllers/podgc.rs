//! Collects pods that nobody will finish: of nodes that are gone or out of service, without a node, and the oldest of too
//! many that have ended.
//!
//! A node is gone when it has been missing for a while: pods and nodes reach the cache by different watches, and a node that
//! is registered anew keeps its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::transport::Delete;
use client::{Action, Cache, Client, Executor, Plan};
use daemon::{Context, jitter};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio_util::sync::CancellationToken;

use super::nodes::ready_status;
use crate::pods::{disrupted, is_ended};

/// How often pods are looked through. Only the cache is: nothing is asked of the API server.
const PERIOD: Duration = Duration::from_secs(20);
/// How long a node has to be missing.
const MISSING: SignedDuration = SignedDuration::from_secs(40);
/// How many pods that have ended are kept.
const ENDED_MAX: usize = 12_500;
/// How many pods are collected at a time.
const PODS_MAX: usize = 8;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Collects until `leading` ends.
pub async fn run(
    client: Client,
    cache: Cache,
    executor: Executor,
    ctx: Context,
    leading: CancellationToken,
) {
    let mut missing = BTreeMap::new();
    loop {
        tokio::select! {
            () = leading.cancelled() => return,
            () = tokio::time::sleep(jitter(PERIOD)) => {}
        }
        if !cache.is_synced() {
            continue;
        }
        let now = ctx.clock.now();
        let (pods, nodes) = (cache.list::<Pod>(), cache.list::<Node>());
        let mut gone = BTreeSet::new();
        for name in missed(&mut missing, &pods, &nodes, now) {
            // Asked of the server as well: what follows cannot be taken back.
            if matches!(client.get::<Node>("", &name).await, Err(error) if error.is_not_found()) {
                gone.insert(name);
            }
        }
        let plans = futures::stream::iter(collect(&pods, &nodes, &gone, ENDED_MAX, now));
        let runs = plans.map(|plan| executor.run(plan)).buffer_unordered(PODS_MAX);
        runs.for_each(|done| async move {
            if let Some(error) = done.error {
                tracing::info!(%error, "a pod could not be collected, trying again");
            }
        })
        .await;
    }
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// Nodes that pods name and that have been missing for long enough; `missing` remembers since when.
fn missed(
    missing: &mut BTreeMap<String, Timestamp>,
    pods: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    now: Timestamp,
) -> Vec<String> {
    let there: BTreeSet<&str> =
        nodes.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
    let named: BTreeSet<&str> = pods
        .iter()
        .map(|pod| node_of(pod))
        .filter(|n| !n.is_empty() && !there.contains(n))
        .collect();
    missing.retain(|name, _| named.contains(name.as_str()));
    for name in named {
        if !missing.contains_key(name) {
            missing.insert(name.to_owned(), now);
        }
    }
    let long = missing.iter().filter(|(_, since)| now.duration_since(**since) >= MISSING);
    long.map(|(name, _)| name.clone()).collect()
}

/// A plan for each pod to collect.
fn collect(
    pods: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    gone: &BTreeSet<String>,
    ended_max: usize,
    now: Timestamp,
) -> Vec<Plan> {
    let dead = |node: &&Arc<Node>| {
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
        ready_status(node) != "True" && taints.iter().any(|t| t.key == OUT_OF_SERVICE)
    };
    let dead: BTreeSet<&str> =
        nodes.iter().filter(dead).filter_map(|n| n.metadata.name.as_deref()).collect();
    let mut plans = Vec::new();
    let mut ended: Vec<&Arc<Pod>> = Vec::new();
    for pod in pods {
        let node = node_of(pod);
        let terminating = pod.metadata.deletion_timestamp.is_some();
        if gone.contains(node) {
            let message = "PodGC: node no longer exists";
            plans.push(finish(
                pod,
                Some(disrupted(pod, "DeletionByPodGC", message, fails(pod), now)),
            ));
        } else if terminating && dead.contains(node) {
            let fail = fails(pod).map(|phase| {
                let message = "PodGC: node is out of service";
                disrupted(pod, "DeletionByPodGC", message, Some(phase), now)
            });
            plans.push(finish(pod, fail));
        } else if terminating && node.is_empty() {
            plans.push(finish(pod, None));
        } else if is_ended(pod) && !terminating {
            ended.push(pod);
        }
    }
    ended.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
    let too_many = ended.len().saturating_sub(ended_max);
    plans.extend(ended.into_iter().take(too_many).map(|pod| finish(pod, None)));
    plans
}

/// The phase of a pod that had not ended.
fn fails(pod: &Pod) -> Option<&'static str> {
    (!is_ended(pod)).then_some("Failed")
}

fn finish(pod: &Pod, first: Option<Action>) -> Plan {
    let how = Delete { grace_period_s: Some(0), ..Delete::default() };
    Plan::new().maybe(first).push(Action::delete_with(pod, how))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pods(of: Value) -> Vec<Arc<Pod>> {
        let pod = |row: &Value| {
            json!({
                "metadata": {"name": row[0], "namespace": "ns", "uid": row[0],
                    "creationTimestamp": row[3], "deletionTimestamp": row[4]},
                "spec": {"nodeName": row[1], "containers": []},
                "status": {"phase": row[2]},
            })
        };
        of.as_array().unwrap().iter().map(|row| serde_json::from_value(pod(row)).unwrap()).collect()
    }

    fn lines(plans: &[Plan]) -> Vec<String> {
        plans.iter().flat_map(|p| &p.actions).map(ToString::to_string).collect()
    }

    const T: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn a_node_is_gone_after_a_while() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let pods =
            pods(json!([["a", "lost", "Running", T, null], ["b", null, "Pending", T, null]]));
        let mut missing = BTreeMap::new();
        assert!(missed(&mut missing, &pods, &[], at(0)).is_empty());
        assert!(missed(&mut missing, &pods, &[], at(39)).is_empty());
        assert_eq!(missed(&mut missing, &pods, &[], at(40)), ["lost"]);
        let mut back = Node::default();
        back.metadata.name = Some("lost".into());
        assert!(missed(&mut missing, &pods, &[Arc::new(back)], at(50)).is_empty());
        assert!(missed(&mut missing, &pods, &[], at(60)).is_empty(), "it counts anew");
    }

    #[test]
    fn pods_of_lost_nodes_fail_and_go() {
        let node = json!({"metadata": {"name": "out"},
            "spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        let nodes: Vec<Arc<Node>> = vec![serde_json::from_value(node).unwrap()];
        let pods = pods(json!([
            ["a", "lost", "Running", T, null],
            ["b", "out", "Running", T, T],
            ["c", "out", "Running", T, null],
            ["d", null, "Pending", T, T],
        ]));
        let gone = BTreeSet::from(["lost".to_owned()]);
        assert_eq!(
            lines(&collect(&pods, &nodes, &gone, 10, Timestamp::UNIX_EPOCH)),
            [
                "patch pods/status ns/a",
                "delete pods ns/a",
                "patch pods/status ns/b",
                "delete pods ns/b",
                "delete pods ns/d"
            ]
        );
    }

    #[test]
    fn the_oldest_of_too_many_ended_pods_go() {
        let pods = pods(json!([
            ["new", "n", "Succeeded", "2026-01-03T00:00:00Z", null],
            ["old", "n", "Failed", "2026-01-01T00:00:00Z", null],
            ["mid", "n", "Failed", "2026-01-02T00:00:00Z", null],
        ]));
        let plans = collect(&pods, &[], &BTreeSet::new(), 2, Timestamp::UNIX_EPOCH);
        assert_eq!(lines(&plans), ["delete pods ns/old"]);
    }
}
