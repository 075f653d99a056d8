//! The whole cluster is killed in the middle of a rollout and started again: it goes on where it was.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use integration_tests::{Cluster, Seen, container, machine, ready, uid};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

fn main() -> ExitCode {
    machine::run(vec![("root_node_killed_during_a_rollout_goes_on", || machine::block_on(whole()))])
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 2, "containers": [{
                    "name": "web", "image": "ironclad/demo:0.1.0", "imagePullPolicy": "IfNotPresent",
                    "env": [{"name": "GREETING", "value": "one"}, {"name": "DRAIN_SECONDS", "value": "1"}],
                    "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1},
                }]},
            },
        },
    })
}

/// The running containers by the pod's uid.
fn running(seen: &Seen) -> BTreeMap<String, String> {
    let pods = seen.all::<Pod>();
    let ready = pods.iter().filter(|p| ready(p));
    ready
        .filter_map(|p| {
            Some((uid(p).to_owned(), container(p, "web")["containerID"].as_str()?.to_owned()))
        })
        .collect()
}

async fn whole() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    seen.create::<Deployment>(deployment("still", 2)).await?;
    seen.create::<Deployment>(deployment("web", 4)).await?;
    seen.ready_pods("still", 2).await?;
    seen.ready_pods("web", 4).await?;
    let env = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/env/0/value", "value": "two"}]);
    seen.client.patch::<Deployment>("default", "web", "", client::Patch::Json(env)).await?;
    seen.until("the first new pod is ready, and not all are", |seen| {
        let updated =
            seen.one::<Deployment>("default", "web")?["status"]["updatedReplicas"].as_u64();
        (1..4).contains(&updated?).then_some(())
    })
    .await?;
    let before = running(&seen);
    let still: Vec<Value> = seen.pods("still");
    let processes = |pods: &[Value]| -> anyhow::Result<Vec<Vec<i32>>> {
        let id = |p: &Value| container(p, "web")["containerID"].as_str().map(str::to_owned);
        pods.iter().map(|p| machine::container_processes(&id(p).context("no id")?)).collect()
    };
    let pids = processes(&still)?;
    drop(seen);
    cluster.kill()?;
    ensure!(processes(&still)? == pids, "containers ended with the cluster's process");

    cluster.up()?;
    let seen = cluster.seen().await?;
    seen.rolled_out("web").await?;
    seen.until("the old pods are gone", |seen| {
        let pods = seen.all::<Pod>();
        (pods.len() == 6 && pods.iter().all(ready)).then_some(())
    })
    .await?;
    let sets = seen.all::<ReplicaSet>();
    ensure!(sets.len() == 3, "a rollout that goes on makes no new ReplicaSet: {sets:#?}");
    for pod in seen.all::<Pod>() {
        let status = container(&pod, "web");
        ensure!(status["restartCount"] == 0, "restarted: {pod:#}");
        if let Some(id) = before.get(uid(&pod)) {
            ensure!(status["containerID"] == *id.as_str(), "not the same container: {pod:#}");
        }
    }
    let kept = |p: &Value| before.contains_key(uid(p));
    ensure!(seen.pods("still").iter().all(kept), "pods nobody touched were replaced");
    ensure!(processes(&still)? == pids, "containers nobody touched were restarted");
    cluster.check_log(&[])
}
