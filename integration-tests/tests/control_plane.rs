//! A control plane in one process: a Deployment becomes pods, and a kill -9 loses nothing that was acknowledged.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test as a whole

use std::time::Duration;

use client::Client;
use client::transport::{Delete, Scope};
use integration_tests::Cluster;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::ServiceCIDR;
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

fn token(id: &str, expiration: &str) -> Secret {
    serde_json::from_value(json!({
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": id, "token-secret": "0123456789abcdef", "expiration": expiration,
            "usage-bootstrap-signing": "true"
        }
    }))
    .unwrap()
}

/// As `kubeadm join` finds it: the cluster's description with a signature by each token that is still good.
#[tokio::test]
async fn bootstrap_tokens_sign_until_they_expire() {
    let cluster = Cluster::new().unwrap();
    cluster.up().unwrap();
    let client = cluster.client().unwrap();
    let info: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "cluster-info", "namespace": "kube-public"},
        "data": {"kubeconfig": "apiVersion: v1\n", "jws-kubeconfig-000000": "of a token that is gone"}
    }))
    .unwrap();
    let soon = jiff::Timestamp::now() + Duration::from_secs(4);
    client.create(&token("abcdef", "")).await.unwrap();
    client.create(&token("ghijkl", &soon.to_string())).await.unwrap();
    client.create(&info).await.unwrap();
    let signed_by = async || {
        let info = client.get::<ConfigMap>("kube-public", "cluster-info").await.ok()?;
        let names = info.data?.into_keys();
        Some(names.filter_map(|k| k.strip_prefix("jws-kubeconfig-").map(str::to_owned)).collect())
    };
    let by = async |wanted: &[&str]| {
        let found: Option<Vec<String>> = signed_by().await;
        found.filter(|ids| *ids == wanted).map(drop)
    };
    until("both sign", async || by(&["abcdef", "ghijkl"]).await).await;
    until("the one that expires is deleted", async || {
        let gone = client.get::<Secret>("kube-system", "bootstrap-token-ghijkl").await;
        gone.is_err_and(|error| error.is_not_found()).then_some(())
    })
    .await;
    until("its signature too", async || by(&["abcdef"]).await).await;
    let info = client.get::<ConfigMap>("kube-public", "cluster-info").await.unwrap();
    let jws = &info.data.unwrap()["jws-kubeconfig-abcdef"];
    let wanted =
        "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..K1chermAQEq0rdqy-ehj0VDfmA_ytv8Wzh9g26FldrE";
    assert_eq!(jws, wanted);
}

/// The words of a ServiceCIDR's condition, if it has one.
async fn readiness(client: &Client, name: &str) -> Option<(String, String)> {
    let cidr = client.get::<ServiceCIDR>("", name).await.ok()?;
    let ready = cidr.status?.conditions?.into_iter().find(|c| c.type_ == "Ready")?;
    Some((ready.status, ready.reason))
}

#[tokio::test]
async fn services_get_addresses_of_ranges_that_are_added() {
    let cluster = Cluster::new().unwrap();
    cluster.up().unwrap();
    let client = cluster.client().unwrap();
    let is = async |name: &str, status: &str, reason: &str| {
        let found = readiness(&client, name).await;
        (found == Some((status.to_owned(), reason.to_owned()))).then_some(())
    };
    until("the default range is ready", async || is("kubernetes", "True", "").await).await;
    let service = || -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.200.0.5", "ports": [{"port": 80}]}
        }))
        .unwrap()
    };
    let refused = client.create(&service()).await.unwrap_err();
    assert!(refused.to_string().contains("does not match the current range"), "{refused}");
    let range: ServiceCIDR = serde_json::from_value(
        json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/28"]}}),
    )
    .unwrap();
    client.create(&range).await.unwrap();
    until("the new range is ready", async || is("more", "True", "").await).await;
    client.create(&service()).await.unwrap();

    client.delete::<ServiceCIDR>("", "more", Delete::default()).await.unwrap();
    until("it stays as long as it is used", async || is("more", "False", "Terminating").await)
        .await;
    client.delete::<Service>("default", "web", Delete::default()).await.unwrap();
    until("it is gone", async || {
        let gone = client.get::<ServiceCIDR>("", "more").await;
        gone.is_err_and(|error| error.is_not_found()).then_some(())
    })
    .await;
    assert!(client.create(&service()).await.is_err());
}
