//! Counts what namespaces with a ResourceQuota use, for its status.
//!
//! The API server adds to the status what a write uses; this takes off what is gone. It counts again when a quota
//! changes or something counted goes, and all of them now and then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::object::Value;
use api::quota::{Usage, counted, covers, usage};
use client::cache::Changed;
use client::transport::Scope;
use client::{Cache, Client, Kind};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often everything is counted again, for kinds whose objects go unnoticed.
const RESYNC: Duration = Duration::from_secs(60);
/// Changes of this long are counted together.
const GATHER: Duration = Duration::from_millis(300);

/// Namespaces to count again.
#[derive(Debug, Default)]
struct Dirty {
    namespaces: Mutex<BTreeSet<String>>,
    more: Notify,
}

impl Dirty {
    fn mark(&self, namespace: &str) {
        self.namespaces.lock().insert(namespace.to_owned());
        self.more.notify_one();
    }
}

/// Counts until `leading` ends.
pub async fn run(client: Client, cache: Cache, leading: CancellationToken) {
    let dirty = Arc::new(Dirty::default());
    listen(&cache, &dirty);
    loop {
        for namespace in
            cache.list::<ResourceQuota>().iter().filter_map(|q| q.metadata.namespace.clone())
        {
            dirty.mark(&namespace);
        }
        let resync = tokio::time::sleep(RESYNC);
        tokio::pin!(resync);
        loop {
            tokio::select! {
                () = leading.cancelled() => return,
                () = &mut resync => break,
                () = dirty.more.notified() => {}
            }
            tokio::time::sleep(GATHER).await;
            let namespaces = std::mem::take(&mut *dirty.namespaces.lock());
            for quota in cache.list::<ResourceQuota>() {
                let namespace = quota.metadata.namespace.as_deref().unwrap_or_default();
                if !namespaces.contains(namespace) {
                    continue;
                }
                if let Err(error) = count(&client, &quota).await
                    && !error.is_not_found()
                {
                    tracing::debug!(namespace, %error, "could not count, trying again");
                    dirty.mark(namespace);
                }
            }
        }
    }
}

fn listen(cache: &Cache, dirty: &Arc<Dirty>) {
    let gone = |dirty: Arc<Dirty>| {
        move |changed: &Changed<'_>| {
            let pod = changed.new_as::<Pod>().and_then(|p| p.status.as_ref()?.phase.as_deref());
            if changed.new.is_none() || matches!(pod, Some("Succeeded" | "Failed")) {
                dirty.mark(&changed.key.namespace);
            }
        }
    };
    cache.on_change::<Pod>(gone(dirty.clone()));
    cache.on_change::<Service>(gone(dirty.clone()));
    cache.on_change::<PersistentVolumeClaim>(gone(dirty.clone()));
    let quotas = dirty.clone();
    cache.on_change::<ResourceQuota>(move |changed| quotas.mark(&changed.key.namespace));
}

/// Counts what a quota limits and writes it down if that is not what it says.
async fn count(client: &Client, quota: &ResourceQuota) -> Result<(), client::Error> {
    let namespace = quota.metadata.namespace.as_deref().unwrap_or_default();
    let name = quota.metadata.name.as_deref().unwrap_or_default();
    let mut fresh: ResourceQuota = client.get(namespace, name).await?;
    let Some(hard) = fresh.spec.as_ref().and_then(|s| s.hard.clone()) else { return Ok(()) };
    let tree = tree(&fresh);
    let mut sum: Usage =
        hard.keys().map(|name| (name.clone(), api::quantity::Quantity::ZERO)).collect();
    let kinds: BTreeSet<(&str, &str)> = hard.keys().map(|name| counted(name)).collect();
    let rows = client.resources().await?;
    for (group, plural) in kinds {
        let row = rows.iter().filter_map(|row| row.resource.clone());
        let Some(row) = row.into_iter().find(|r| r.group == group && r.resource == plural) else {
            continue;
        };
        let kind = Kind { group: row.group, version: row.version, resource: row.resource };
        let scope = Scope { namespace: namespace.to_owned(), ..Scope::default() };
        for object in client.list_raw(&kind, &scope).await?.0 {
            let Ok(object) = api::codec::json::parse(&object.json) else { continue };
            if covers(&tree, plural, &object) {
                add(&mut sum, &usage(group, plural, &object));
            }
        }
    }
    let used = sum.into_iter().map(|(name, q)| (name, Quantity(q.to_string()))).collect();
    let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
    if fresh.status.as_ref() == Some(&status) {
        return Ok(());
    }
    fresh.status = Some(status);
    client.update(&fresh, "status").await?;
    Ok(())
}

fn tree(quota: &ResourceQuota) -> Value {
    let text = serde_json::to_vec(quota).unwrap_or_default();
    api::codec::json::parse(&text).unwrap_or_default()
}

/// Adds what is limited.
fn add(sum: &mut Usage, more: &Usage) {
    for (name, total) in sum.iter_mut() {
        if let Some(amount) = more.get(name) {
            *total = total.plus(*amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_limited_is_summed() {
        let one = api::quantity::Quantity::of(1);
        let mut sum = Usage::from([("pods".to_owned(), api::quantity::Quantity::ZERO)]);
        add(&mut sum, &Usage::from([("pods".to_owned(), one), ("cpu".to_owned(), one)]));
        add(&mut sum, &Usage::from([("pods".to_owned(), one)]));
        assert_eq!(sum.len(), 1);
        assert_eq!(sum["pods"].to_string(), "2");
    }
}
