//! Measures decisions alone: no API server, no network. `decide NODES PODS ASKED`: so many nodes in ten zones with so
//! many pods of 500 Deployments on them, then so many decisions of each kind; prints a line of a table for each kind.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a tool that measures time

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::place::{Placement, place};
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

const DEPLOYMENTS: usize = 500;

fn node(i: usize) -> Arc<Node> {
    let node = json!({
        "metadata": {"name": format!("node-{i}"), "labels": {
            "kubernetes.io/hostname": format!("node-{i}"), "topology.kubernetes.io/zone": format!("zone-{}", i % 10)
        }},
        "status": {"allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"}}
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(name: &str, app: usize, more: &Value) -> Pod {
    let app = format!("app-{app}");
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app}, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": app, "uid": app, "controller": true}
        ]},
        "spec": {"containers": [{"name": "c", "image": "a:1",
            "resources": {"requests": {"cpu": "100m", "memory": "200Mi"}}}]}
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

/// Places a pod and counts it; how long that took.
fn run(snapshot: &mut Snapshot, pod: &Pod, next: &mut usize) -> Duration {
    let begun = Instant::now();
    let ask = snapshot.ask(pod);
    let (placement, after) = place(&ask, snapshot, *next);
    *next = after;
    if let Placement::Node(node) = placement {
        snapshot.place(&ask, &node);
    }
    begun.elapsed()
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>().unwrap());
    let (nodes, pods, asked) =
        (args.next().unwrap_or(5000), args.next().unwrap_or(50_000), args.next().unwrap_or(2000));
    let mut snapshot = Snapshot::default();
    for i in 0..nodes {
        snapshot.put_node(node(i));
    }
    let mut next = 0;
    let app = json!({"matchLabels": {"app": "app-7"}});
    let anti = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": app, "topologyKey": "kubernetes.io/hostname"}]}});
    let near = json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10,
        "podAffinityTerm": {"labelSelector": app, "topologyKey": "topology.kubernetes.io/zone"}}]}});
    let even = json!([{"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": app}]);
    for i in 0..pods {
        let more = if i % DEPLOYMENTS < 50 { json!({"affinity": near}) } else { json!({}) };
        run(&mut snapshot, &pod(&format!("old-{i}"), i % DEPLOYMENTS, &more), &mut next);
    }
    println!("| {nodes} nodes, {pods} pods: a pod … | p50 | p99 | most |");
    println!("|---|---:|---:|---:|");
    let kinds = [
        ("that asks for CPU and memory", json!({})),
        ("with required anti-affinity by node", json!({"affinity": anti})),
        ("spread hard by zone", json!({"topologySpreadConstraints": even})),
        ("with both", json!({"affinity": anti, "topologySpreadConstraints": even})),
        ("with preferred affinity by zone", json!({"affinity": near})),
        ("that fits nowhere", json!({"nodeSelector": {"none": "such"}})),
    ];
    for (what, more) in kinds {
        let one = |i| pod(&format!("new-{what}-{i}"), 7, &more);
        let mut times: Vec<Duration> =
            (0..asked).map(|i| run(&mut snapshot, &one(i), &mut next)).collect();
        for i in 0..asked {
            snapshot.forget(&client::Key::new("default", format!("new-{what}-{i}")));
        }
        times.sort_unstable();
        let at =
            |hundredths: usize| times[(times.len() - 1) * hundredths / 100].as_secs_f64() * 1e3;
        println!("| {what} | {:.3} ms | {:.3} ms | {:.3} ms |", at(50), at(99), at(100));
    }
}
