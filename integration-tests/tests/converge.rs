//! Two hundred Deployments roll on simulated nodes while each daemon of the control plane is killed in turn: in the end the
//! state is right, and nothing is left over.
#![allow(clippy::disallowed_methods)] // a test as a whole, which measures itself

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use client::{Client, Patch};
use futures::StreamExt as _;
use integration_tests::apart::Apart;
use integration_tests::{Fleet, Seen, machine, name, ready};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

const DEPLOYMENTS: usize = 200;
const REPLICAS: usize = 2;
const NODES: usize = 20;
/// In the order in which they are killed; the store last, on which all others live.
const CONTROL_PLANE: [&str; 4] = ["store", "apiserver", "scheduler", "controller-manager"];
/// Between two kills.
const BETWEEN: Duration = Duration::from_secs(2);
/// How many writes of the test are under way at a time.
const WRITES_MAX: usize = 16;
const ATTEMPTS: usize = 600;

fn main() -> ExitCode {
    machine::run(vec![(
        "root_node_rollouts_outlive_every_daemon",
        || machine::block_on(converge()),
    )])
}

fn deployment(nth: usize) -> Value {
    let app = format!("d{nth}");
    json!({
        "metadata": {"name": app, "namespace": "default"},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"app": app}},
            "template": {
                "metadata": {"labels": {"app": app}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "one"}]},
            },
        },
    })
}

/// Writes as clients do that meet a server which is just being started again.
async fn again<T, F: Future<Output = Result<T, client::Error>>>(
    mut write: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match write().await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_already_exists() => return Ok(()),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(last.context("never tried")?.into())
}

async fn create(client: &Client) -> anyhow::Result<()> {
    let made = futures::stream::iter(0..DEPLOYMENTS).map(|nth| async move {
        let deployment: Deployment = serde_json::from_value(deployment(nth))?;
        again(|| client.create(&deployment)).await
    });
    let made: Vec<_> = made.buffer_unordered(WRITES_MAX).collect().await;
    made.into_iter().collect()
}

async fn roll(client: &Client) -> anyhow::Result<()> {
    let image = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "two"}]);
    let rolled = futures::stream::iter(0..DEPLOYMENTS).map(|nth| {
        let image = image.clone();
        async move {
            let name = format!("d{nth}");
            let patch = || Patch::Json(image.clone());
            again(|| client.patch::<Deployment>("default", &name, "", patch())).await
        }
    });
    let rolled: Vec<_> = rolled.buffer_unordered(WRITES_MAX).collect().await;
    rolled.into_iter().collect()
}

fn complete(seen: &Seen, image: &str) -> Option<()> {
    let deployments = seen.all::<Deployment>();
    let done = |d: &Value| {
        let status = &d["status"];
        status["observedGeneration"] == d["metadata"]["generation"]
            && ["replicas", "updatedReplicas", "availableReplicas"]
                .iter()
                .all(|field| status[*field] == REPLICAS)
            && d["spec"]["template"]["spec"]["containers"][0]["image"] == image
    };
    (deployments.len() == DEPLOYMENTS && deployments.iter().all(done)).then_some(())
}

async fn converge() -> anyhow::Result<()> {
    let mut apart = Apart::prepare()?;
    for daemon in CONTROL_PLANE {
        apart.start(daemon)?;
    }
    let seen = apart.seen().await?;
    let dir = apart.kubeconfig()?;
    let _fleet = Fleet::start(&dir, &["--count", &NODES.to_string()])?;
    seen.until("the nodes are there", |s| (s.all::<Node>().len() == NODES).then_some(())).await?;
    let writer = apart.client()?;
    let (created, killed) = tokio::join!(create(&writer), kill_each(&mut apart));
    created.context("create")?;
    killed?;
    seen.until("all are rolled out", |s| complete(s, "one")).await?;
    let (rolled, killed) = tokio::join!(roll(&writer), kill_each(&mut apart));
    rolled.context("roll")?;
    killed?;
    seen.until("all are rolled again", |s| complete(s, "two")).await?;
    seen.until("nothing is left over", |s| check(s).is_ok().then_some(())).await?;
    check(&seen)
}

async fn kill_each(apart: &mut Apart) -> anyhow::Result<()> {
    for daemon in CONTROL_PLANE.into_iter().rev() {
        tokio::time::sleep(BETWEEN).await;
        apart.kill(daemon)?;
        apart.start(daemon)?;
    }
    Ok(())
}

/// As many pods as were asked for, each ready, of the newest version, on a node that is there, and of an owner that is there.
fn check(seen: &Seen) -> anyhow::Result<()> {
    let sets: BTreeMap<String, Value> = seen
        .all::<ReplicaSet>()
        .into_iter()
        .map(|set| (set["metadata"]["uid"].as_str().unwrap_or_default().to_owned(), set))
        .collect();
    let pods = seen.all::<Pod>();
    let mut of_app: BTreeMap<String, usize> = BTreeMap::new();
    for pod in &pods {
        let owner = pod["metadata"]["ownerReferences"][0]["uid"].as_str().unwrap_or_default();
        let set = sets.get(owner).with_context(|| format!("{} has no owner", name(pod)))?;
        ensure!(pod["spec"]["containers"][0]["image"] == "two", "{} is old", name(pod));
        ensure!(ready(pod), "{} is not ready", name(pod));
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        ensure!(seen.one::<Node>("", node).is_some(), "{} is on {node:?}", name(pod));
        *of_app
            .entry(set["metadata"]["labels"]["app"].as_str().unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    ensure!(of_app.len() == DEPLOYMENTS, "pods of {} Deployments", of_app.len());
    let wrong = of_app.iter().find(|(_, count)| **count != REPLICAS);
    ensure!(wrong.is_none(), "{wrong:?}");
    ensure!(sets.len() == 2 * DEPLOYMENTS, "{} ReplicaSets", sets.len());
    let idle = sets.values().filter(|set| set["spec"]["replicas"] == 0).count();
    ensure!(idle == DEPLOYMENTS, "{idle} ReplicaSets are scaled down");
    Ok(())
}
