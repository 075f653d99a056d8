//! A control plane in one process: a Deployment becomes pods, and a kill -9 loses nothing that was acknowledged.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test as a whole

use std::time::Duration;

use client::Client;
use client::transport::Scope;
use integration_tests::Cluster;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use serde_json::json;

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..400 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}");
}

async fn pods(client: &Client) -> Vec<Pod> {
    let scope = Scope { namespace: "default".into(), ..Scope::default() };
    client.list::<Pod>(&scope).await.map(|(pods, _)| pods).unwrap_or_default()
}

fn deployment(replicas: i32) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "web:1"}]}
            }
        }
    }))
    .unwrap()
}

#[tokio::test]
async fn a_deployment_becomes_pods_and_survives_a_kill() {
    let cluster = Cluster::new().unwrap();
    cluster.up().unwrap();
    let client = cluster.client().unwrap();
    until("the default service account", async || {
        client.get::<ServiceAccount>("default", "default").await.ok()
    })
    .await;
    client.create(&deployment(3)).await.unwrap();
    let first =
        until("three pods", async || Some(pods(&client).await).filter(|p| p.len() == 3)).await;

    // Writes go on while the process is killed: all that were acknowledged must be there afterwards.
    let writer = {
        let client = client.clone();
        tokio::task::spawn(async move {
            let mut acknowledged = 0;
            loop {
                let mut map = ConfigMap::default();
                map.metadata.name = Some(format!("write-{acknowledged}"));
                map.metadata.namespace = Some("default".into());
                if client.create(&map).await.is_err() {
                    return acknowledged;
                }
                acknowledged += 1;
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.kill().unwrap();
    let acknowledged = writer.await.unwrap();
    assert!(acknowledged > 0);

    cluster.up().unwrap();
    let client = cluster.client().unwrap();
    for index in 0..acknowledged {
        client.get::<ConfigMap>("default", &format!("write-{index}")).await.unwrap();
    }
    let names = |pods: &[Pod]| -> Vec<Option<String>> {
        pods.iter().map(|p| p.metadata.uid.clone()).collect()
    };
    assert_eq!(names(&pods(&client).await), names(&first));

    let patch = client::Patch::Merge(json!({"spec": {"replicas": 1}}));
    client.patch::<Deployment>("default", "web", "", patch).await.unwrap();
    until("one pod", async || (pods(&client).await.len() == 1).then_some(())).await;
    let how = client::transport::Delete::default();
    client.delete::<Deployment>("default", "web", how).await.unwrap();
    until("no pod", async || pods(&client).await.is_empty().then_some(())).await;
}
