//! Custom resources: follows the definitions, keeps the catalog in step with them, grants them their names, and
//! deletes the objects of those that go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::catalog::Resource;
use api::crd::names;
use api::error::ApiError;
use api::object::Value;
use auth::User;
use daemon::Context;

use crate::registry::Api;
use crate::request::{Action, Body, DeleteOptions, FieldValidation, Format, Request, WriteOptions};

const SHELF: &str = "apiextensions.k8s.io/customresourcedefinitions";
const QUEUE: &str = "crdEstablishing";
const MANAGER: &str = "kube-apiserver";
/// When what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// When objects that were asked to go are looked at again, if nothing is heard of them.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Reads the definitions there are, and follows them as a part of the daemon.
pub(crate) fn start(api: &Arc<Api>, ctx: &Context) {
    refresh(api);
    let (api, ctx) = (api.clone(), ctx.clone());
    let tasks = ctx.tasks.clone();
    tasks.part("custom resources", async move {
        let mut changed = api.cache.shelf(SHELF).follow();
        let mut emptying: BTreeSet<String> = BTreeSet::new();
        loop {
            let definitions = refresh(&api);
            api.metrics.queued(QUEUE, 1);
            let settled = settle(&api, &definitions).await;
            api.metrics.queued(QUEUE, 0);
            emptying.retain(|uid| definitions.iter().any(|d| api::meta::uid(d) == uid));
            for definition in definitions.iter().filter(|d| goes(d)) {
                // Each is emptied by a task of its own, which ends when the definition is gone.
                if emptying.insert(api::meta::uid(definition).to_owned()) {
                    empty(&api, &ctx, definition.clone());
                }
            }
            tokio::select! {
                () = ctx.shutdown.cancelled() => return Ok(()),
                more = changed.changed() => if more.is_err() { return Ok(()) },
                () = tokio::time::sleep(RETRY), if !settled => {}
            }
        }
    });
}

/// Whether a definition waits for its objects to be gone.
fn goes(definition: &Value) -> bool {
    api::meta::deletion_timestamp(definition).is_some()
        && api::meta::finalizers(definition).any(|f| f == names::CLEANUP)
}

fn refresh(api: &Api) -> Vec<Value> {
    let resource = resource(api);
    let entries = api.cache.shelf(SHELF).list("", "");
    let definitions: Vec<Value> =
        entries.iter().map(|(_, entry)| crate::registry::list::parsed(&resource, entry)).collect();
    let rows: Vec<_> = definitions.iter().flat_map(api::crd::resources).collect();
    let catalog = api.catalog.load().with_custom(rows);
    api.catalog.store(Arc::new(catalog));
    definitions
}

fn resource(api: &Api) -> Arc<Resource> {
    api.resource("apiextensions.k8s.io", "v1", "customresourcedefinitions")
}

/// Grants names, the oldest definition first. Whether that worked; another writer's change comes back as a change.
async fn settle(api: &Api, definitions: &[Value]) -> bool {
    let mut all: Vec<Value> = definitions.to_vec();
    all.sort_by_cached_key(|d| d["metadata"]["creationTimestamp"].text().to_owned());
    let mut worked = true;
    for i in 0..all.len() {
        let Some(new) = names::settled(&all[i], &all, api.clock.now()) else { continue };
        match write(api, &new, "status").await {
            Ok(()) => all[i] = new,
            Err(ApiError::Conflict { .. } | ApiError::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(definition = api::meta::name(&new), %error, "cannot settle names");
                worked = false;
            }
        }
    }
    worked
}

/// Deletes all objects of a definition, waits until they are gone, and lets the definition go.
fn empty(api: &Arc<Api>, ctx: &Context, definition: Value) {
    let (api, shutdown) = (api.clone(), ctx.shutdown.clone());
    ctx.tasks.job(async move {
        let name = api::meta::name(&definition).to_owned();
        let work = async {
            while let Err(error) = empty_now(&api, &definition).await {
                tracing::warn!(definition = name, %error, "cannot delete its objects; trying again");
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => tracing::info!(definition = name, "all its objects are gone"),
        }
    });
}

async fn empty_now(api: &Api, definition: &Value) -> Result<(), ApiError> {
    let key = api::meta::name(definition).to_owned();
    let doing = ("InstanceDeletionInProgress", "CustomResource deletion is in progress");
    change(api, &key, "status", |new| names::terminating(new, true, doing, api.clock.now()))
        .await?;
    if let Some(row) = api::crd::resources(definition).pop().map(Arc::new) {
        let shelf = api.shelf(&row);
        let mut changed = shelf.follow();
        loop {
            let left = shelf.list("", "");
            if left.is_empty() {
                break;
            }
            for (_, entry) in &left {
                delete(api, &row, &entry.parse()).await?;
            }
            // Those with finalizers stay until somebody else is done with them.
            if !shelf.list("", "").is_empty() {
                drop(tokio::time::timeout(LOOK_AGAIN, changed.changed()).await);
            }
        }
    }
    let done = ("InstanceDeletionCompleted", "removed all instances");
    change(api, &key, "status", |new| names::terminating(new, false, done, api.clock.now()))
        .await?;
    change(api, &key, "", |new| {
        let left = api::meta::finalizers(new).filter(|f| *f != names::CLEANUP).map(Value::from);
        let left: Vec<Value> = left.collect();
        api::meta::set(new, "finalizers", left);
    })
    .await
}

async fn delete(api: &Api, row: &Arc<Resource>, object: &Value) -> Result<(), ApiError> {
    if api::meta::deletion_timestamp(object).is_some() {
        return Ok(());
    }
    let action = Action::Delete(DeleteOptions::default());
    let (namespace, name) = (api::meta::namespace(object), api::meta::name(object));
    match api.run(request(row, (namespace, name), "", action)).await {
        Ok(_) | Err(ApiError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Changes a definition as it is now, again if somebody else changes it meanwhile; one that is gone is left so.
async fn change(
    api: &Api,
    name: &str,
    subresource: &str,
    how: impl Fn(&mut Value),
) -> Result<(), ApiError> {
    let resource = resource(api);
    loop {
        let Some(entry) = api.stored(&resource, "", name).await? else { return Ok(()) };
        let mut new = crate::registry::list::parsed(&resource, &entry);
        how(&mut new);
        match write(api, &new, subresource).await {
            Err(ApiError::Conflict { .. }) => {}
            Err(ApiError::NotFound { .. }) => return Ok(()),
            done => return done,
        }
    }
}

async fn write(api: &Api, definition: &Value, subresource: &str) -> Result<(), ApiError> {
    let options = WriteOptions {
        dry_run: false,
        manager: MANAGER.into(),
        manager_given: true,
        validation: FieldValidation::Ignore,
    };
    let body = Body { bytes: definition.to_bytes().into(), format: Format::Json };
    let action = Action::Update { body, options };
    let name = api::meta::name(definition);
    api.run(request(&resource(api), ("", name), subresource, action)).await.map(drop)
}

fn request(
    resource: &Arc<Resource>,
    (namespace, name): (&str, &str),
    subresource: &str,
    action: Action,
) -> Request {
    Request {
        user: Arc::new(User::authenticated("system:apiserver", &["system:masters"])),
        resource: resource.clone(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        action,
    }
}
