//! DaemonSets and StatefulSets with real containers, and room that is made for an important pod.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use client::Patch;
use integration_tests::{Cluster, Seen, machine, name, program, ready, uid};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};

const IMAGE: &str = "ironclad/demo:0.1.0";

fn main() -> ExitCode {
    machine::run(vec![
        ("root_node_runs_daemon_and_stateful_sets", || machine::block_on(sets())),
        ("root_node_makes_room_for_an_important_pod", || machine::block_on(room())),
    ])
}

fn set(name: &str, more: &Value) -> Value {
    let mut set = json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "c", "image": IMAGE, "env": [{"name": "GREETING", "value": "one"}]}],
                },
            },
        },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        set["spec"][key] = value.clone();
    }
    set
}

/// As `kubectl set env` does it.
fn greeting(value: &str) -> Patch {
    Patch::Json(json!([{
        "op": "replace", "path": "/spec/template/spec/containers/0/env/0/value", "value": value,
    }]))
}

/// Waits until `count` pods of `app` are ready, none of them is one of `old`, and no other is there.
async fn renewed(
    seen: &Seen,
    app: &str,
    count: usize,
    old: &[Value],
) -> anyhow::Result<Vec<Value>> {
    seen.until(&format!("{count} new pods of {app}"), |seen| {
        let pods = seen.pods(app);
        let fresh = |p: &Value| ready(p) && old.iter().all(|o| uid(o) != uid(p));
        (pods.len() == count && pods.iter().all(fresh)).then_some(pods)
    })
    .await
}

async fn sets() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    seen.create::<DaemonSet>(set("agent", &Value::Null)).await?;
    seen.create::<Service>(json!({
        "metadata": {"name": "db", "namespace": "default"},
        "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 80}]},
    }))
    .await?;
    seen.create::<StatefulSet>(set("db", &json!({"replicas": 3, "serviceName": "db"}))).await?;

    let agents = seen.ready_pods("agent", 1).await?;
    let mut pods = seen.ready_pods("db", 3).await?;
    pods.sort_by_key(|p| name(p).to_owned());
    let created = |p: &Value| p["metadata"]["creationTimestamp"].as_str().map(str::to_owned);
    ensure!(pods.iter().map(name).eq(["db-0", "db-1", "db-2"]), "{pods:#?}");
    ensure!(pods.is_sorted_by_key(created), "one after the other: {pods:#?}");
    ensure!(pods.iter().all(|p| p["spec"]["hostname"] == p["metadata"]["name"]));

    // Another template: every pod is made anew under its old name, and the history has two entries each.
    seen.client.patch::<DaemonSet>("default", "agent", "", greeting("two")).await?;
    seen.client.patch::<StatefulSet>("default", "db", "", greeting("two")).await?;
    renewed(&seen, "agent", 1, &agents).await?;
    let pods = renewed(&seen, "db", 3, &pods).await?;
    let everything = client::transport::Scope::default();
    let (revisions, _) = seen.client.list::<ControllerRevision>(&everything).await?;
    ensure!(revisions.len() == 4, "{revisions:#?}");

    // A template that never gets ready stops at its first pod; going back mends it with nobody's help.
    let broken = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "none/such:1"}]);
    seen.client.patch::<StatefulSet>("default", "db", "", Patch::Json(broken)).await?;
    seen.until("a broken pod", |seen| {
        let pods = seen.pods("db");
        pods.iter()
            .find(|p| p["spec"]["containers"][0]["image"] == "none/such:1" && !ready(p))
            .map(drop)
    })
    .await?;
    let left = seen.pods("db").iter().filter(|p| ready(p)).count();
    ensure!(left == 2, "{left} of 3 are left");
    let mended = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": IMAGE}]);
    seen.client.patch::<StatefulSet>("default", "db", "", Patch::Json(mended)).await?;
    let after = seen.ready_pods("db", 3).await?;
    let kept = after.iter().filter(|p| pods.iter().any(|o| uid(o) == uid(p))).count();
    ensure!(kept == 2, "{kept} pods were never touched");

    // Fewer: the highest numbers go.
    seen.merge::<StatefulSet>("db", json!({"spec": {"replicas": 1}})).await?;
    let last = seen.ready_pods("db", 1).await?;
    ensure!(name(&last[0]) == "db-0");
    cluster.check_log(&[])
}

async fn room() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    let node = seen.until("the node", |seen| seen.all::<Node>().pop()).await?;
    let cpus: i64 = node["status"]["allocatable"]["cpu"].as_str().context("no CPU")?.parse()?;
    let most = format!("{}m", cpus * 600);
    let pod = |name: &str, more: Value| {
        let mut spec = json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": IMAGE, "resources": {"requests": {"cpu": most}}}],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        json!({"metadata": {"name": name, "namespace": "default", "labels": {"app": name}}, "spec": spec})
    };
    seen.create::<PriorityClass>(json!({"metadata": {"name": "high"}, "value": 1000})).await?;
    seen.create::<Pod>(pod("low", Value::Null)).await?;
    seen.ready_pods("low", 1).await?;
    seen.create::<Pod>(pod("waits", Value::Null)).await?;
    let why = |pod: &str| -> anyhow::Result<String> {
        let mut command = std::process::Command::new(program("ironclad")?);
        let output = command.arg("why").arg("--data-dir").arg(cluster.dir()).arg(pod).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let text = why("pod/waits")?;
    ensure!(text.contains("none of 1 node can run it"), "{text}");
    ensure!(text.contains("not enough cpu left"), "{text}");

    seen.create::<Pod>(pod("important", json!({"priorityClassName": "high"}))).await?;
    let important = seen.ready_pods("important", 1).await?;
    ensure!(important[0]["status"]["nominatedNodeName"].is_null(), "{:#}", important[0]);
    ensure!(seen.pods("low").is_empty(), "the less important pod had to go");
    let text = why("important")?;
    ensure!(text.contains("default/important runs on"), "{text}");

    // Its end leaves room for the one that waited.
    seen.client.delete::<Pod>("default", "important", client::transport::Delete::default()).await?;
    seen.ready_pods("waits", 1).await?;
    cluster.check_log(&[])
}
