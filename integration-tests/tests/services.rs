//! Services as clients meet them: load sharing, affinity, node ports, and the refusal where nobody serves.
#![allow(clippy::disallowed_methods)] // a test as a whole, which measures itself

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration_tests::load::fetch;
use integration_tests::{Cluster, Seen, machine};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde_json::{Value, json};

const PODS: usize = 3;
/// How many requests show how a Service chooses: that one of three pods gets none of them has a chance of 3 in 10^7.
const REQUESTS: usize = 40;
/// How long the kernel's rules may lag behind a Service.
const RULES_MAX: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    machine::run(vec![("root_node_serves_services", || machine::block_on(services()))])
}

async fn create(seen: &Seen, name: &str, spec: Value) -> anyhow::Result<Value> {
    let metadata = json!({"name": name, "namespace": "default"});
    seen.create::<Service>(json!({"metadata": metadata, "spec": spec})).await?;
    seen.until("the Service", |seen| seen.one::<Service>("default", name)).await
}

fn address(service: &Value) -> anyhow::Result<String> {
    Ok(format!("{}:80", service["spec"]["clusterIP"].as_str().context("no cluster IP")?))
}

/// Which pods answer.
async fn who(address: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut pods = BTreeSet::new();
    for _ in 0..REQUESTS {
        let page = fetch(address, "/").await?;
        let line = page.lines().find(|line| line.starts_with("pod: "));
        pods.insert(line.context("a page that names no pod")?.to_owned());
    }
    Ok(pods)
}

/// Asks until the answer is as wanted, but not for long.
async fn soon<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + RULES_MAX;
    loop {
        let found = look().await;
        if let Ok(Some(found)) = found {
            return Ok(found);
        }
        if Instant::now() > deadline {
            found.context(what.to_owned())?;
            anyhow::bail!("never: {what}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn services() -> anyhow::Result<()> {
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    seen.create::<Deployment>(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": PODS,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "web", "image": "ironclad/demo:0.1.0", "imagePullPolicy": "IfNotPresent",
                    "env": [{"name": "DRAIN_SECONDS", "value": "0"}],
                    "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1},
                }]},
            },
        },
    }))
    .await?;
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    let selector = json!({"app": "web"});
    let plain = create(&seen, "plain", json!({"selector": selector, "ports": ports})).await?;
    let sticky = json!({"selector": selector, "ports": ports, "sessionAffinity": "ClientIP"});
    let sticky = create(&seen, "sticky", sticky).await?;
    let outside = json!({"type": "NodePort", "selector": selector, "ports": ports});
    let outside = create(&seen, "outside", outside).await?;
    let empty = json!({"selector": {"app": "nobody"}, "ports": ports});
    let empty = create(&seen, "empty", empty).await?;
    seen.ready_pods("web", PODS).await?;

    let plain = address(&plain)?;
    soon(
        "all pods are in the rules",
        async || Ok((who(&plain).await?.len() == PODS).then_some(())),
    )
    .await?;
    let sticky = address(&sticky)?;
    soon("the Service answers", async || Ok(Some(fetch(&sticky, "/").await?))).await?;
    let chosen = who(&sticky).await?;
    ensure!(chosen.len() == 1, "one client, but {chosen:?}");

    let node = seen.one::<Node>("", "n1").context("no node")?;
    let ip = node["status"]["addresses"][0]["address"].as_str().context("no address")?;
    let port = &outside["spec"]["ports"][0]["nodePort"];
    soon("the node port answers", async || Ok(Some(fetch(&format!("{ip}:{port}"), "/").await?)))
        .await?;

    refused(&address(&empty)?).await?;
    // The same once the last pod is gone.
    seen.merge::<Deployment>("web", json!({"spec": {"replicas": 0}})).await?;
    // Pods that are ending still serve where there are no others.
    seen.until("no pod", |seen| seen.all::<Pod>().is_empty().then_some(())).await?;
    refused(&plain).await?;
    cluster.check_log(&[])
}

/// A Service without endpoints refuses at once; nobody waits for an answer that cannot come.
async fn refused(address: &str) -> anyhow::Result<()> {
    soon("the connection is refused", async || {
        let connecting = tokio::net::TcpStream::connect(address);
        let Ok(result) = tokio::time::timeout(Duration::from_millis(500), connecting).await else {
            anyhow::bail!("{address}: a timeout in place of a refusal");
        };
        Ok(result.err().filter(|e| e.kind() == std::io::ErrorKind::ConnectionRefused))
    })
    .await
    .map(drop)
}
