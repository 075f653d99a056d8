//! `ironclad down --purge` leaves the machine as it was.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use integration_tests::{Cluster, Seen, container, machine, uid};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use serde_json::{Value, json};

fn main() -> ExitCode {
    machine::run(vec![
        ("root_node_purge_leaves_nothing", || machine::block_on(whole(false))),
        ("root_node_purge_after_a_kill_leaves_nothing", || machine::block_on(whole(true))),
    ])
}

async fn fill(seen: &Seen) -> anyhow::Result<Vec<Value>> {
    let meta = |name: &str| json!({"name": name, "namespace": "default"});
    seen.create::<ConfigMap>(json!({"metadata": meta("map"), "data": {"a": "b"}})).await?;
    seen.create::<Service>(json!({
        "metadata": meta("web"),
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }))
    .await?;
    seen.create::<Deployment>(json!({
        "metadata": meta("web"),
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "containers": [{
                    "name": "web", "image": "ironclad/demo:0.1.0", "imagePullPolicy": "IfNotPresent",
                    "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}},
                    "volumeMounts": [{"name": "map", "mountPath": "/map"}, {"name": "memory", "mountPath": "/memory"}],
                }],
                "volumes": [
                    {"name": "map", "configMap": {"name": "map"}},
                    {"name": "memory", "emptyDir": {"medium": "Memory"}},
                ],
            }},
        },
    }))
    .await?;
    seen.ready_pods("web", 2).await
}

/// The network namespaces of pods, as mounts name them.
fn networks(pods: &[Value]) -> anyhow::Result<BTreeSet<String>> {
    let mut networks = BTreeSet::new();
    for pod in pods {
        let id = container(pod, "web")["containerID"].as_str().context("no container")?;
        for pid in machine::container_processes(id)? {
            let link = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
            networks.insert(link.to_string_lossy().into_owned());
        }
    }
    Ok(networks)
}

async fn whole(killed: bool) -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    let before = machine::traces(cluster.dir())?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    let pods = fill(&seen).await?;
    let networks = networks(&pods)?;
    let uids: Vec<String> = pods.iter().map(|pod| uid(pod).to_owned()).collect();
    // What is not there while it runs cannot be missed afterwards.
    ensure!(networks.is_subset(&machine::mounted_networks()?), "{networks:?} are not mounted");
    ensure!(!machine::cgroups(&uids).is_empty(), "no cgroups of {uids:?}");
    let during = machine::traces(cluster.dir())?;
    for kind in ["mount", "process", "interface", "address", "route", "rule", "file"] {
        let grown = during.difference(&before).any(|trace| trace.starts_with(kind));
        ensure!(grown, "a running cluster shows no {kind}");
    }
    drop(seen);
    if killed {
        cluster.kill()?;
        let pid = std::fs::read_to_string(cluster.dir().join("node/containerd/containerd.pid"))?;
        machine::kill(&[pid.trim().parse()?])?;
    } else {
        cluster.check_log(&[])?;
    }
    cluster.purge()?;
    let after = machine::traces(cluster.dir())?;
    let left: Vec<&String> = after.difference(&before).collect();
    ensure!(left.is_empty(), "left behind: {left:#?}");
    let gone: Vec<&String> = before.difference(&after).collect();
    ensure!(gone.is_empty(), "taken away: {gone:#?}");
    ensure!(!cluster.dir().exists(), "files are left");
    let groups = machine::cgroups(&uids);
    ensure!(groups.is_empty(), "cgroups are left: {groups:?}");
    let mounted = machine::mounted_networks()?;
    ensure!(networks.is_disjoint(&mounted), "network namespaces of pods are left");
    Ok(())
}
