//! A cluster as its watches show it, and waiting for what should come about.

use std::time::Duration;

use anyhow::Context as _;
use client::transport::{Object, Scope};
use client::{Cache, Client, Patch, Select};
use daemon::Context;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster seen through watches.
pub struct Seen {
    /// Writes and single reads.
    pub client: Client,
    /// The objects.
    pub cache: Cache,
    ctx: Context,
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.ctx.shutdown.cancel();
    }
}

/// The name of an object.
#[must_use]
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The uid of an object.
#[must_use]
pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Whether a pod is ready.
#[must_use]
pub fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// The status of a container of a pod, init or not; null if there is none.
#[must_use]
pub fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let status = &pod["status"];
    let lists = [&status["containerStatuses"], &status["initContainerStatuses"]];
    let all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.into_iter().find(|c| c["name"] == name).unwrap_or(&Value::Null)
}

impl Seen {
    pub(crate) async fn start(client: Client) -> anyhow::Result<Self> {
        let ctx = Context::new(CancellationToken::new());
        let cache = Cache::builder(client.clone())
            .kind::<Pod>(Select::all())
            .kind::<Service>(Select::all())
            .kind::<ServiceAccount>(Select::all())
            .kind::<Node>(Select::all())
            .kind::<Deployment>(Select::all())
            .kind::<ReplicaSet>(Select::all())
            .kind::<Job>(Select::all())
            .kind::<CronJob>(Select::all())
            .kind::<HorizontalPodAutoscaler>(Select::all())
            .kind::<EndpointSlice>(Select::all())
            .kind::<PersistentVolume>(Select::all())
            .kind::<PersistentVolumeClaim>(Select::all())
            .kind::<StorageClass>(Select::all())
            .kind::<Lease>(Select::all())
            .start(&ctx);
        tokio::time::timeout(PATIENCE, cache.synced()).await.context("objects are not listed")?;
        let seen = Self { client, cache, ctx };
        seen.until("the default service account", |seen| {
            seen.one::<ServiceAccount>("default", "default")
        })
        .await?;
        Ok(seen)
    }

    /// All objects of a kind as values.
    #[must_use]
    pub fn all<T: Object>(&self) -> Vec<Value> {
        let objects = self.cache.list::<T>();
        objects.iter().filter_map(|object| serde_json::to_value(&**object).ok()).collect()
    }

    /// One object.
    #[must_use]
    pub fn one<T: Object>(&self, namespace: &str, name: &str) -> Option<Value> {
        serde_json::to_value(&*self.cache.get::<T>(namespace, name)?).ok()
    }

    /// The pods with a label `app` of this value that are not being deleted.
    #[must_use]
    pub fn pods(&self, app: &str) -> Vec<Value> {
        let mut pods = self.all::<Pod>();
        pods.retain(|p| p["metadata"]["labels"]["app"] == app);
        pods.retain(|p| p["metadata"]["deletionTimestamp"].is_null());
        pods
    }

    /// Waits until a pod of the default namespace has succeeded.
    ///
    /// # Errors
    /// When it fails, or does not end in time.
    pub async fn ended(&self, name: &str) -> anyhow::Result<Value> {
        let pod = self
            .until(&format!("pod {name} has ended"), |seen| {
                let pod = seen.one::<Pod>("default", name)?;
                matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
                    .then_some(pod)
            })
            .await?;
        anyhow::ensure!(pod["status"]["phase"] == "Succeeded", "{}", pod["status"]);
        Ok(pod)
    }

    /// Waits until `look` finds something.
    ///
    /// # Errors
    /// When it never does, with what was there instead.
    pub async fn until<T>(
        &self,
        what: &str,
        mut look: impl FnMut(&Self) -> Option<T>,
    ) -> anyhow::Result<T> {
        let mut changes = self.cache.changes();
        let waiting = async {
            loop {
                changes.mark_unchanged();
                if let Some(found) = look(self) {
                    return anyhow::Ok(found);
                }
                changes.changed().await.context("the watch ended")?;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => anyhow::bail!("never: {what}\n{}", self.describe().await),
        }
    }

    /// Waits until `count` pods of `app` are there and ready, and no other is.
    ///
    /// # Errors
    /// When that never comes about.
    pub async fn ready_pods(&self, app: &str, count: usize) -> anyhow::Result<Vec<Value>> {
        let what = format!("{count} ready pods of {app}");
        self.until(&what, |seen| {
            let pods = seen.pods(app);
            (pods.len() == count && pods.iter().all(ready)).then_some(pods)
        })
        .await
    }

    /// Waits until a Deployment has carried out what it was told last.
    ///
    /// # Errors
    /// When it never does.
    pub async fn rolled_out(&self, name: &str) -> anyhow::Result<Value> {
        // The watch may be a moment behind what the test itself has written.
        let newest = self.client.get::<Deployment>("default", name).await?.metadata.generation;
        self.until(&format!("{name} is rolled out"), |seen| {
            let deployment = seen.one::<Deployment>("default", name)?;
            let (spec, status) = (&deployment["spec"], &deployment["status"]);
            let told = status["observedGeneration"].as_i64() >= newest;
            let wanted = &spec["replicas"];
            let all = ["replicas", "updatedReplicas", "availableReplicas"];
            (told && all.iter().all(|count| status[count] == *wanted)).then_some(deployment)
        })
        .await
    }

    /// Creates an object written as a value.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create<T: Object>(&self, object: Value) -> anyhow::Result<()> {
        let object: T = serde_json::from_value(object).context("the test's own object")?;
        self.client.create(&object).await?;
        Ok(())
    }

    /// Merges into an object of namespace `default`.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn merge<T: Object>(&self, name: &str, patch: Value) -> anyhow::Result<()> {
        self.client.patch::<T>("default", name, "", Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Pods and events, for whoever reads why a test failed.
    async fn describe(&self) -> String {
        let pods = self.all::<Pod>();
        let pods = pods.iter().map(|p| format!("pod {} {}", name(p), p["status"]));
        let services = self.all::<EndpointSlice>();
        let slices = services.iter().map(|s| format!("slice {} {}", name(s), s["endpoints"]));
        let namespaces = self.client.list::<Namespace>(&Scope::default()).await;
        let events = self.client.list::<Event>(&Scope::default()).await.unwrap_or_default().0;
        let events = events.iter().map(|e| {
            let (reason, text) = (e.reason.as_deref(), e.message.as_deref());
            let about = e.involved_object.name.as_deref();
            let [about, reason, text] = [about, reason, text].map(Option::unwrap_or_default);
            format!("event {about} {reason} {text}")
        });
        let mut lines: Vec<String> = pods.chain(slices).chain(events).collect();
        if let Err(error) = namespaces {
            lines.push(format!("the API server does not answer: {error}"));
        }
        lines.join("\n")
    }
}
