//! Namespaces that are being deleted: their content goes first, then their finalizer, and with it they.

use std::time::Duration;

use client::transport::Scope;
use client::{Cache, Client, Key, Kind};
use daemon::{Backoff, Context};
use k8s_openapi::api::core::v1::Namespace;
use serde_json::json;
use tokio_util::sync::CancellationToken;

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// The finalizer that is ours to take off.
const FINALIZER: &str = "kubernetes";

/// Empties namespaces until `leading` ends.
pub async fn run(client: Client, cache: Cache, ctx: Context, leading: CancellationToken) {
    let mut changes = cache.changes();
    let mut working = std::collections::BTreeSet::new();
    let (done, mut ended) = tokio::sync::mpsc::channel::<Key>(64);
    loop {
        for namespace in cache.list::<Namespace>() {
            let key = Key::of(&namespace.metadata);
            if namespace.metadata.deletion_timestamp.is_none() || !working.insert(key.clone()) {
                continue;
            }
            let (client, leading, done) = (client.clone(), leading.clone(), done.clone());
            ctx.tasks.job(async move {
                tokio::select! {
                    () = leading.cancelled() => {}
                    () = empty(&client, &key.name) => {}
                }
                // Nobody listens any more once leadership is lost.
                let _ = done.send(key).await;
            });
        }
        tokio::select! {
            () = leading.cancelled() => return,
            key = ended.recv() => { key.map(|key| working.remove(&key)); }
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Deletes all there is in a namespace, again and again until nothing is left.
async fn empty(client: &Client, name: &str) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
    loop {
        match sweep(client, name).await {
            Ok(0) => match finalize(client, name).await {
                Ok(()) => return,
                Err(error) if error.is_not_found() => return,
                Err(error) => tracing::info!(name, %error, "could not finalize, trying again"),
            },
            Ok(left) => tracing::debug!(name, left, "namespace is not empty yet"),
            Err(error) => tracing::info!(name, %error, "could not empty, trying again"),
        }
        tokio::time::sleep(backoff.delay()).await;
    }
}

/// Deletes every object of every kind; how many are still there.
async fn sweep(client: &Client, name: &str) -> Result<usize, client::Error> {
    let kinds = client.resources().await?;
    let scope = Scope {
        namespace: name.to_owned(),
        projection: vec!["metadata.name".into()],
        ..Scope::default()
    };
    let mut left = 0;
    for row in kinds.into_iter().filter(|row| row.namespaced) {
        let has = |verb: &str| row.verbs.iter().any(|v| v == verb);
        let Some(resource) = row.resource.clone().filter(|_| has("list") && has("delete")) else {
            continue;
        };
        let kind =
            Kind { group: resource.group, version: resource.version, resource: resource.resource };
        let (found, _) = client.list_raw(&kind, &scope).await?;
        if found.is_empty() {
            continue;
        }
        client.delete_all_raw(&kind, &scope).await?;
        left += client.list_raw(&kind, &scope).await?.0.len();
    }
    Ok(left)
}

async fn finalize(client: &Client, name: &str) -> Result<(), client::Error> {
    let mut namespace: Namespace = client.get("", name).await?;
    let finalizers = namespace.spec.get_or_insert_default().finalizers.get_or_insert_default();
    finalizers.retain(|f| f != FINALIZER);
    tracing::debug!(name, left = json!(finalizers).to_string(), "namespace is empty");
    client.update(&namespace, "finalize").await?;
    Ok(())
}
