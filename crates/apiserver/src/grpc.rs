//! The gRPC front: the same requests and outcomes as REST, for our daemons and for automation.

use std::pin::Pin;
use std::sync::Arc;

use api::catalog::Resource;
use api::error::{ApiError, ResourceName};
use api::object::{Map, Value};
use auth::User;
use bytes::Bytes;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request as Call, Response as Reply, Status};
use wire::apiserver as pb;
use wire::apiserver::objects_server::Objects;

use crate::registry::Api;
use crate::registry::watch::{Event, EventKind, Watcher};
use crate::request::{
    Action, Body, DeleteOptions, FieldValidation, Format, ListOptions, Outcome, PatchType, Request,
    WatchOptions, WriteOptions,
};

mod streams;

/// Items of a batch that are carried out at the same time.
const BATCH_PARALLEL: usize = 32;
/// Items of one batch.
const BATCH_ITEMS_MAX: usize = 10_000;
/// Objects of one list chunk.
const CHUNK_ITEMS: usize = 500;
/// Events on their way to one watcher.
const EVENTS_QUEUED: usize = 256;

/// The object service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) api: Arc<Api>,
    pub(crate) ctx: daemon::Context,
}

/// An API error as a gRPC status, the Kubernetes `Status` in its metadata.
fn status(error: &ApiError) -> Status {
    use tonic::Code;
    let code = match error.status().0 {
        400 | 405 | 406 | 413 | 415 | 422 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        409 if matches!(error, ApiError::AlreadyExists { .. }) => Code::AlreadyExists,
        409 => Code::Aborted,
        410 => Code::OutOfRange,
        429 => Code::ResourceExhausted,
        503 => Code::Unavailable,
        504 => Code::DeadlineExceeded,
        _ => Code::Internal,
    };
    let mut status = Status::new(code, error.message());
    let body = error.to_status().to_bytes();
    let value = tonic::metadata::MetadataValue::from_bytes(&body);
    status.metadata_mut().insert_bin("ironclad-status-bin", value);
    status
}

fn user<T>(call: &Call<T>) -> Result<Arc<User>, Status> {
    let user = call.extensions().get::<Arc<User>>().cloned();
    user.ok_or_else(|| status(&ApiError::Unauthorized))
}

/// Which parts of an object travel.
#[derive(Debug, Clone, Default)]
struct Projection {
    managed_fields: bool,
    fields: Vec<Vec<String>>,
    /// The kind whose table's cells go with it, and the clock for ages.
    cells: Option<(Arc<Resource>, daemon::Clock)>,
}

impl Projection {
    fn whole() -> Self {
        Self { managed_fields: true, ..Self::default() }
    }

    fn object(&self, json: Bytes, warnings: Vec<String>) -> Result<pb::Object, ApiError> {
        let value = api::codec::json::parse(&json)?;
        let cells = self.cells.as_ref().map(|(row, clock)| {
            let cells = api::columns::cells(row, &value, clock.now());
            cells.iter().map(cell_text).collect()
        });
        let object = self.cut(value, json, warnings)?;
        Ok(pb::Object { cells: cells.unwrap_or_default(), ..object })
    }

    fn cut(
        &self,
        mut value: Value,
        json: Bytes,
        warnings: Vec<String>,
    ) -> Result<pb::Object, ApiError> {
        if self.managed_fields && self.fields.is_empty() {
            return object(&value, json, warnings);
        }
        if !self.managed_fields {
            value.remove_at(&["metadata", "managedFields"]);
        }
        if !self.fields.is_empty() {
            value = self.select(&value);
        }
        let bytes = value.to_bytes().into();
        object(&value, bytes, warnings)
    }

    fn select(&self, value: &Value) -> Value {
        let mut out = Value::Object(Map::default());
        for field in ["apiVersion", "kind"] {
            if let Some(found) = value.get(field) {
                out.set(field, found.clone());
            }
        }
        for field in ["name", "namespace", "uid", "resourceVersion"] {
            if let Some(found) = value.at(&["metadata", field]) {
                out.set_at(&["metadata", field], found.clone());
            }
        }
        for field in &self.fields {
            let path: Vec<&str> = field.iter().map(String::as_str).collect();
            if let Some(found) = value.at(&path) {
                out.set_at(&path, found.clone());
            }
        }
        out
    }
}

fn cell_text(cell: &Value) -> String {
    match cell {
        Value::Null => String::new(),
        cell => cell.as_str().map_or_else(|| cell.to_string(), str::to_owned),
    }
}

fn object(value: &Value, json: Bytes, warnings: Vec<String>) -> Result<pb::Object, ApiError> {
    Ok(pb::Object {
        namespace: api::meta::namespace(value).to_owned(),
        name: api::meta::name(value).to_owned(),
        uid: api::meta::uid(value).to_owned(),
        revision: api::meta::resource_version(value).parse().unwrap_or(0),
        json,
        warnings,
        cells: Vec::new(),
    })
}

fn options(given: Option<pb::Options>) -> Result<WriteOptions, ApiError> {
    let given = given.unwrap_or_default();
    let validation = match given.field_validation.as_str() {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => {
            let mut errors = api::error::FieldErrors::new();
            errors.not_supported("fieldValidation", other, &["Ignore", "Strict", "Warn"]);
            return Err(ApiError::invalid("meta.k8s.io", "Options", "", errors));
        }
    };
    let manager_given = !given.field_manager.is_empty();
    let manager = if manager_given { given.field_manager } else { "unknown".into() };
    Ok(WriteOptions { dry_run: given.dry_run, manager, manager_given, validation })
}

fn json_body(bytes: Bytes) -> Body {
    Body { bytes, format: Format::Json }
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|t| !t.is_empty())
}

impl Service {
    fn row(&self, key: &pb::Key) -> Result<Arc<Resource>, ApiError> {
        let name = key.resource.clone().unwrap_or_default();
        let catalog = self.api.catalog.load();
        catalog.find(&name.group, &name.version, &name.resource).cloned().ok_or(
            ApiError::NotFound {
                resource: ResourceName::new(name.group, "resources"),
                name: name.resource,
            },
        )
    }

    fn request(
        &self,
        user: Arc<User>,
        key: Option<pb::Key>,
        subresource: String,
        action: Action,
    ) -> Result<Request, ApiError> {
        let key = key.ok_or_else(|| ApiError::bad_request("key is required"))?;
        let resource = self.row(&key)?;
        let namespaces = resource.group.is_empty() && resource.plural == "namespaces";
        let namespace = if namespaces { key.name.clone() } else { key.namespace };
        Ok(Request { user, resource, subresource, namespace, name: key.name, action })
    }

    fn projection(&self, wanted: Option<pb::Projection>, key: Option<&pb::Key>) -> Projection {
        let wanted = wanted.unwrap_or_default();
        let row = key.filter(|_| wanted.cells).and_then(|key| self.row(key).ok());
        let fields = wanted.fields.iter();
        Projection {
            managed_fields: wanted.managed_fields,
            fields: fields.map(|f| f.split('.').map(str::to_owned).collect()).collect(),
            cells: row.map(|row| (row, self.ctx.clock.clone())),
        }
    }

    /// Runs a request whose outcome is one object.
    async fn one(&self, request: Result<Request, ApiError>) -> Result<Reply<pb::Object>, Status> {
        self.one_of(request, &Projection::whole()).await
    }

    async fn one_of(
        &self,
        request: Result<Request, ApiError>,
        projection: &Projection,
    ) -> Result<Reply<pb::Object>, Status> {
        let run = async {
            match self.api.call(request?).await? {
                Outcome::Object { object, warnings, .. } => {
                    projection.object(object.json, warnings)
                }
                Outcome::Status { status, warnings, .. } => {
                    let json = status.to_bytes().into();
                    Ok(pb::Object { json, warnings, ..pb::Object::default() })
                }
                Outcome::List(_) | Outcome::Watch(_) => {
                    Err(ApiError::Internal("not a single object".into()))
                }
            }
        };
        run.await.map(Reply::new).map_err(|error| status(&error))
    }

    /// Carries out the items of a batch and answers for each, in order.
    async fn batch<T, F, R>(&self, items: Vec<T>, each: F) -> Result<Reply<pb::BatchReply>, Status>
    where
        F: Fn(T) -> R,
        R: Future<Output = Result<Outcome, ApiError>>,
    {
        use futures::StreamExt as _;
        if items.len() > BATCH_ITEMS_MAX {
            let message = format!("a batch has at most {BATCH_ITEMS_MAX} items");
            return Err(status(&ApiError::bad_request(message)));
        }
        let answers = futures::stream::iter(items).map(each).buffered(BATCH_PARALLEL);
        let items = answers
            .map(|result| match result {
                Ok(Outcome::Object { object, .. }) => pb::ItemReply {
                    revision: api::codec::json::parse(&object.json)
                        .ok()
                        .and_then(|v| api::meta::resource_version(&v).parse().ok())
                        .unwrap_or(0),
                    status: Bytes::new(),
                },
                Ok(_) => pb::ItemReply::default(),
                Err(error) => {
                    pb::ItemReply { revision: 0, status: error.to_status().to_bytes().into() }
                }
            })
            .collect()
            .await;
        Ok(Reply::new(pb::BatchReply { items }))
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Objects for Service {
    type ListStream = Streamed<pb::ListChunk>;
    type WatchStream = Streamed<pb::WatchEvent>;

    async fn get(&self, call: Call<pb::GetRequest>) -> Result<Reply<pb::Object>, Status> {
        let user = user(&call)?;
        let ask = call.into_inner();
        let action = Action::Get { version: ask.resource_version };
        let projection = match ask.projection {
            None => Projection::whole(),
            given => self.projection(given, ask.key.as_ref()),
        };
        let request = self.request(user, ask.key, ask.subresource, action);
        self.one_of(request, &projection).await
    }

    async fn list(&self, call: Call<pb::ListRequest>) -> Result<Reply<Self::ListStream>, Status> {
        let user = user(&call)?;
        let ask = call.into_inner();
        let projection = self.projection(ask.projection, ask.key.as_ref());
        let action = Action::List(ListOptions {
            labels: ask.label_selector,
            fields: ask.field_selector,
            limit: usize::try_from(ask.limit).unwrap_or(0),
            continue_token: ask.continue_token,
            version: ask.resource_version,
            version_match: ask.resource_version_match,
        });
        let run = async {
            let request = self.request(user, ask.key, String::new(), action)?;
            match self.api.call(request).await? {
                Outcome::List(list) => Ok(list),
                _ => Err(ApiError::Internal("not a list".into())),
            }
        };
        let list = run.await.map_err(|error| status(&error))?;
        let (revision, mut items) = (list.revision, list.items.into_iter());
        let mut token = Some(list.continue_token);
        let chunks = std::iter::from_fn(move || {
            let chunk: Result<Vec<_>, _> = items
                .by_ref()
                .take(CHUNK_ITEMS)
                .map(|json| projection.object(json, Vec::new()))
                .collect();
            // The last chunk carries the token, and is sent even when it is empty.
            let last = items.len() == 0;
            let token = if last { Some(token.take()?) } else { None };
            Some(chunk.map_err(|error| status(&error)).map(|items| pb::ListChunk {
                revision,
                items,
                continue_token: token.unwrap_or_default(),
            }))
        });
        Ok(Reply::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn watch(
        &self,
        call: Call<pb::WatchRequest>,
    ) -> Result<Reply<Self::WatchStream>, Status> {
        let user = user(&call)?;
        let ask = call.into_inner();
        let projection = self.projection(ask.projection, ask.key.as_ref());
        let initial = ask.revision == 0;
        let version = if initial { String::new() } else { ask.revision.to_string() };
        let action = Action::Watch(WatchOptions {
            list: ListOptions {
                labels: ask.label_selector,
                fields: ask.field_selector,
                version,
                version_match: if initial { "NotOlderThan".into() } else { String::new() },
                ..ListOptions::default()
            },
            bookmarks: true,
            initial_events: initial,
            timeout: None,
        });
        let run = async {
            let request = self.request(user, ask.key, String::new(), action)?;
            match self.api.call(request).await? {
                Outcome::Watch(watcher) => Ok(watcher),
                _ => Err(ApiError::Internal("not a watch".into())),
            }
        };
        let watcher = run.await.map_err(|error| status(&error))?;
        let (events, stream) = mpsc::channel(EVENTS_QUEUED);
        let shutdown = self.ctx.shutdown.clone();
        self.ctx.tasks.job(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = pump(*watcher, projection, events) => {}
            }
        });
        Ok(Reply::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn create(&self, call: Call<pb::CreateRequest>) -> Result<Reply<pb::Object>, Status> {
        let user = user(&call)?;
        let ask = call.into_inner();
        let options = options(ask.options).map_err(|error| status(&error))?;
        let action = Action::Create { body: json_body(ask.json), options };
        self.one(self.request(user, ask.key, ask.subresource, action)).await
    }

    async fn update(&self, call: Call<pb::UpdateRequest>) -> Result<Reply<pb::Object>, Status> {
        let user = user(&call)?;
        let ask = call.into_inner();
        let options = options(ask.options).map_err(|error| status(&error))?;
        let action = Action::Update { body: json_body(ask.json), options };
        self.one(self.request(user, ask.key, ask.subresource, action)).await
    }

    async fn patch(&self, call: Call<pb::PatchRequest>) -> Result<Reply<pb::Object>, Status> {
        let user = user(&call)?;
        let ask = call.into_inner();
        let (kind, format) = match ask.r#type() {
            pb::patch_request::Type::Merge => (PatchType::Merge, Format::Json),
            pb::patch_request::Type::Json => (PatchType::Json, Format::Json),
            pb::patch_request::Type::Strategic => (PatchType::Strategic, Format::Json),
            pb::patch_request::Type::Apply => (PatchType::Apply, Format::Yaml),
        };
        let options = options(ask.options).map_err(|error| status(&error))?;
        let body = Body { bytes: ask.body, format };
        let action = Action::Patch { kind, body, force: ask.force, options };
        self.one(self.request(user, ask.key, ask.subresource, action)).await
    }

    async fn delete(&self, call: Call<pb::DeleteRequest>) -> Result<Reply<pb::Object>, Status> {
        let user = user(&call)?;
        let ask = call.into_inner();
        let action = Action::Delete(DeleteOptions {
            uid: non_empty(ask.uid),
            version: non_empty(ask.resource_version),
            grace_s: ask.grace_period_seconds,
            propagation: non_empty(ask.propagation_policy),
            dry_run: ask.dry_run,
            ..DeleteOptions::default()
        });
        self.one(self.request(user, ask.key, String::new(), action)).await
    }

    async fn delete_collection(
        &self,
        call: Call<pb::DeleteCollectionRequest>,
    ) -> Result<Reply<pb::DeleteCollectionReply>, Status> {
        let user = user(&call)?;
        let ask = call.into_inner();
        let action = Action::DeleteCollection {
            list: ListOptions {
                labels: ask.label_selector,
                fields: ask.field_selector,
                ..ListOptions::default()
            },
            options: DeleteOptions {
                grace_s: ask.grace_period_seconds,
                propagation: non_empty(ask.propagation_policy),
                ..DeleteOptions::default()
            },
        };
        let run = async {
            let request = self.request(user, ask.key, String::new(), action)?;
            self.api.call(request).await
        };
        match run.await.map_err(|error| status(&error))? {
            Outcome::List(list) => {
                let deleted = i64::try_from(list.items.len()).unwrap_or(i64::MAX);
                Ok(Reply::new(pb::DeleteCollectionReply { deleted }))
            }
            _ => Ok(Reply::new(pb::DeleteCollectionReply::default())),
        }
    }

    async fn bind(&self, call: Call<pb::BindRequest>) -> Result<Reply<pb::BatchReply>, Status> {
        let user = user(&call)?;
        let pods = self.api.resource("", "v1", "pods");
        let options = WriteOptions { manager: "scheduler".into(), ..WriteOptions::default() };
        self.batch(call.into_inner().items, |item| {
            let (user, pods, options) = (user.clone(), pods.clone(), options.clone());
            async move {
                let request = Request {
                    user,
                    resource: pods,
                    subresource: "binding".into(),
                    namespace: item.namespace,
                    name: item.name,
                    action: Action::Create {
                        body: json_body(Bytes::new()),
                        options: options.clone(),
                    },
                };
                self.api.authorizer.check(&request.user, &request.attributes())?;
                self.api.bind(&request, &item.uid, &item.node, &options).await
            }
        })
        .await
    }

    async fn update_status(
        &self,
        call: Call<pb::UpdateStatusRequest>,
    ) -> Result<Reply<pb::BatchReply>, Status> {
        let user = user(&call)?;
        self.batch(call.into_inner().items, |item| {
            let user = user.clone();
            async move {
                let mut patch = api::codec::json::parse(&item.merge_patch)?;
                for (field, value) in
                    [("uid", &item.uid), ("resourceVersion", &item.resource_version)]
                {
                    if !value.is_empty() {
                        patch.set_at(&["metadata", field], value.as_str());
                    }
                }
                let manager = user.name.rsplit(':').next().unwrap_or_default().to_owned();
                let options = WriteOptions { manager, ..WriteOptions::default() };
                let action = Action::Patch {
                    kind: PatchType::Merge,
                    body: json_body(patch.to_bytes().into()),
                    force: false,
                    options,
                };
                self.api.call(self.request(user, item.key, "status".into(), action)?).await
            }
        })
        .await
    }

    async fn resources(
        &self,
        call: Call<pb::ResourcesRequest>,
    ) -> Result<Reply<pb::ResourcesReply>, Status> {
        let user = user(&call)?;
        let path = crate::layers::rbac::Attributes {
            verb: "get",
            path: "/apis",
            ..crate::layers::rbac::Attributes::default()
        };
        self.api.authorizer.check(&user, &path).map_err(|error| status(&error))?;
        let texts = |list: &[std::borrow::Cow<'static, str>]| -> Vec<String> {
            list.iter().map(ToString::to_string).collect()
        };
        let catalog = self.api.catalog.load();
        let kinds = catalog.all().iter().map(|row| pb::ResourceKind {
            resource: Some(pb::Resource {
                group: row.group.to_string(),
                version: row.version.to_string(),
                resource: row.plural.to_string(),
            }),
            kind: row.kind.to_string(),
            singular: row.singular.to_string(),
            short_names: texts(&row.short_names),
            categories: texts(&row.categories),
            namespaced: row.namespaced,
            verbs: texts(&row.verbs),
            subresources: row.subresources.iter().map(|s| s.name.to_string()).collect(),
            columns: row.columns.iter().map(column).collect(),
        });
        Ok(Reply::new(pb::ResourcesReply { kinds: kinds.collect() }))
    }
}

fn column(column: &api::columns::Column) -> pb::Column {
    pb::Column { name: column.name.to_string(), wide: column.priority > 0 }
}

/// Moves events to a watcher until it goes or is too far behind.
async fn pump(
    mut watcher: Watcher,
    projection: Projection,
    events: mpsc::Sender<Result<pb::WatchEvent, Status>>,
) {
    loop {
        let next = tokio::select! {
            () = events.closed() => return,
            next = watcher.next() => next,
        };
        let (event, last) = match next {
            Ok(event) => (convert(event, &projection), false),
            Err(error) => (Err(status(&error)), true),
        };
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}

fn convert(event: Event, projection: &Projection) -> Result<pb::WatchEvent, Status> {
    use pb::watch_event::Type;
    let kind = match event.kind {
        EventKind::Added => Type::Added,
        EventKind::Modified => Type::Modified,
        EventKind::Deleted => Type::Deleted,
        EventKind::Bookmark => Type::Bookmark,
    };
    let object = if kind == Type::Bookmark {
        pb::Object { revision: event.revision, ..pb::Object::default() }
    } else {
        let object = projection.object(event.json, Vec::new()).map_err(|e| status(&e))?;
        pb::Object { revision: event.revision, ..object }
    };
    Ok(pb::WatchEvent {
        r#type: kind.into(),
        object: Some(object),
        initial_done: event.initial_end,
    })
}
