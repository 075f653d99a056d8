//! The verbs, once for all kinds.
//!
//! [`Api::call`] is what both doors come to: it authorizes the request and runs its verb. A verb reads from the
//! cache, decides with the pure functions of `api`, and commits one conditional transaction.

use std::sync::Arc;

use api::catalog::{Catalog, Resource};
use api::error::ApiError;
use arc_swap::ArcSwap;
use bytes::Bytes;
use daemon::Clock;
use parking_lot::Mutex;

use crate::hooks;
use crate::layers::authenticate::Authenticator;
use crate::layers::authorize::Authorizer;
use crate::layers::rbac::Attributes;
use crate::nodes::Nodes;
use crate::request::{Action, Outcome, Request};
use crate::storage::cache::{Cache, Shelf};
use crate::storage::entry::Entry;
use crate::storage::etcd::{Etcd, StoreError};
use crate::storage::feed::Newest;
use crate::storage::keys;

pub(crate) mod commit;
pub(crate) mod create;
pub(crate) mod decode;
pub(crate) mod delete;
pub(crate) mod list;
pub(crate) mod subresource;
pub(crate) mod update;
pub(crate) mod usage;
pub(crate) mod watch;

/// The registry and all it stands on.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) catalog: ArcSwap<Catalog>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) etcd: Etcd,
    pub(crate) newest: Newest,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) authenticator: Authenticator,
    pub(crate) network: hooks::service::Network,
    pub(crate) nodes: Nodes,
    pub(crate) clock: Clock,
    pub(crate) leases: commit::Leases,
    pub(crate) metrics: crate::metrics::Metrics,
    pub(crate) bodies: crate::http::Bodies,
    pub(crate) swagger: Swagger,
    pub(crate) readings: usage::Readings,
}

/// What was served last as OpenAPI v2, and the catalog that it describes: it is large, and changes with that only.
pub(crate) type Swagger = Mutex<Option<(Arc<Catalog>, Bytes)>>;

/// The store's failure as the client hears of it.
pub(crate) fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted => ApiError::Expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new \
             list without the continue parameter."
                .into(),
        ),
        StoreError::TooLarge => ApiError::TooLarge("etcdserver: request is too large".into()),
        StoreError::Future => ApiError::Internal("revision in the future".into()),
        StoreError::Unavailable(detail) => {
            tracing::warn!(%detail, "store did not answer");
            ApiError::Unavailable("the store is not available at the moment; try again".into())
        }
    }
}

impl Request {
    /// What the request is, to whom it may concern.
    pub(crate) fn attributes(&self) -> Attributes<'_> {
        Attributes {
            verb: self.action.verb(),
            group: &self.resource.group,
            resource: &self.resource.plural,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            path: "",
        }
    }

    /// The object's key within its shelf.
    pub(crate) fn key(&self) -> String {
        shelf_key(&self.resource, &self.namespace, &self.name)
    }

    /// 404 for the object the request names.
    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::NotFound { resource: self.resource.resource_name(), name: self.name.clone() }
    }
}

/// `namespace/name`, or `name`.
pub(crate) fn shelf_key(resource: &Resource, namespace: &str, name: &str) -> String {
    if resource.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
}

impl Api {
    /// The catalog as one document of OpenAPI v2.
    pub(crate) fn swagger(&self) -> Bytes {
        let catalog = self.catalog.load_full();
        let mut kept = self.swagger.lock();
        match &*kept {
            Some((of, bytes)) if Arc::ptr_eq(of, &catalog) => bytes.clone(),
            _ => {
                let bytes = Bytes::from(api::openapi::swagger(&catalog).to_bytes());
                *kept = Some((catalog, bytes.clone()));
                bytes
            }
        }
    }

    /// Authorizes a request and runs it.
    ///
    /// # Errors
    /// What Kubernetes answers.
    pub(crate) async fn call(&self, request: Request) -> Result<Outcome, ApiError> {
        self.authorizer.check(&request.user, &request.attributes())?;
        self.run(request).await
    }

    /// Runs a request that was authorized.
    pub(crate) async fn run(&self, request: Request) -> Result<Outcome, ApiError> {
        if !request.subresource.is_empty() {
            return self.subresource(request).await;
        }
        if !request.resource.has_verb(request.action.verb()) {
            return Err(ApiError::MethodNotAllowed);
        }
        if !request.resource.stored && request.resource.group == usage::GROUP {
            return self.used(&request).await;
        }
        if !request.resource.stored {
            return hooks::review::answer(self, request).await;
        }
        match request.action.clone() {
            Action::Get { version } => self.read(&request, &version).await,
            Action::List(options) => self.list(&request, &options).await.map(Outcome::List),
            Action::Watch(options) => self.watch(&request, &options).await,
            Action::Create { body, options } => self.create(&request, &body, &options).await,
            Action::Update { body, options } => self.update(&request, &body, &options).await,
            Action::Patch { kind, body, force, options } => {
                self.patch(&request, kind, &body, force, &options).await
            }
            Action::Delete(options) => self.delete(&request, &options).await,
            Action::DeleteCollection { list, options } => {
                self.delete_collection(&request, &list, &options).await
            }
        }
    }

    /// The shelf of a resource.
    pub(crate) fn shelf(&self, resource: &Resource) -> Arc<Shelf> {
        self.cache.shelf(&resource.storage_prefix)
    }

    /// A built-in resource of the present catalog.
    pub(crate) fn resource(&self, group: &str, version: &str, plural: &str) -> Arc<Resource> {
        let catalog = self.catalog.load();
        catalog.find(group, version, plural).cloned().unwrap_or_else(|| {
            // Only asked for rows that the catalog is built with.
            panic!("no built-in resource {plural}.{version}.{group}")
        })
    }

    /// Waits until the cache shows everything acknowledged before this call.
    pub(crate) async fn catch_up(&self) -> Result<i64, ApiError> {
        let newest = self.newest.revision().await.map_err(store_error)?;
        if self.cache.wait(newest).await {
            return Ok(newest);
        }
        Err(ApiError::Timeout {
            message: "the watch cache is behind the store".into(),
            retry_after_s: Some(1),
        })
    }

    /// Waits until the cache has reached the resourceVersion a reader asks for; "" means the newest.
    pub(crate) async fn reach(&self, version: &str) -> Result<i64, ApiError> {
        if version.is_empty() {
            return self.catch_up().await;
        }
        let asked = list::parse_version(version)?;
        if asked > 0 && !self.cache.wait(asked).await {
            let (asked, current) = (asked.unsigned_abs(), self.cache.revision().unsigned_abs());
            return Err(ApiError::VersionTooLarge { asked, current });
        }
        Ok(self.cache.revision())
    }

    /// An object as everyone would read it now, if it is there.
    pub(crate) async fn find(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Entry>>, ApiError> {
        self.catch_up().await?;
        Ok(self.shelf(resource).get(&shelf_key(resource, namespace, name)))
    }

    /// An object straight from the store.
    pub(crate) async fn stored(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Entry>>, ApiError> {
        let key = keys::object(resource, namespace, name);
        let (found, _) = self.etcd.get(&key).await.map_err(store_error)?;
        Ok(found.as_ref().map(Entry::of))
    }
}
