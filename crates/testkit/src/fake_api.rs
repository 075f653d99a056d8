//! The object service in memory: enough of the API server to run controllers and agents against.
//!
//! ```ignore
//! let api = FakeApi::new();
//! api.put("", "pods", json!({"metadata": {"name": "a", "namespace": "d"}}));
//! let client = Client::new(api.channel(), "test");
//! ```
//!
//! It knows revisions, uids, generateName, merge patches (strategic and apply are treated as merge),
//! preconditions, finalizers and graceful pod deletion, watches with resumption, label and simple
//! field selectors. It validates, defaults and authorizes nothing. [`FakeApi::expire`] forgets the
//! history, so that resumed watches get 410; [`FakeApi::cut`] ends all watches.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use wire::apiserver as pb;
use wire::apiserver::objects_server::{Objects, ObjectsServer};
use wire::apiserver::watch_event::Type;

const STREAM_EVENTS_MAX: usize = 64;

type Id = (String, String, String); // "group/resource", namespace, name

#[derive(Clone)]
struct Past {
    revision: i64,
    kind: Type,
    id: Id,
    object: Value,
    before: Option<Value>,
}

#[derive(Default)]
struct State {
    revision: i64,
    made: u64,
    objects: BTreeMap<Id, Value>,
    history: Vec<Past>,
    oldest: i64,
    epoch: u64,
}

/// An API server in memory. Clones share it.
#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    moved: watch::Sender<u64>,
}

impl Default for FakeApi {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeApi {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Arc::default(), moved: watch::Sender::new(0) }
    }

    /// A channel to it.
    #[must_use]
    pub fn channel(&self) -> daemon::Channel {
        let routes = tonic::service::Routes::new(ObjectsServer::new(self.clone()));
        daemon::channel::in_memory(routes, ())
    }

    /// Creates or replaces an object, as if some other client had.
    pub fn put(&self, group: &str, resource: &str, object: Value) {
        let id = id_of(group, resource, &object);
        let mut state = self.lock();
        let uid = state.objects.get(&id).map(|o| o["metadata"]["uid"].clone());
        let mut object = object;
        if let Some(uid) = uid {
            object["metadata"]["uid"] = uid;
        }
        state.store(id, object);
        drop(state);
        self.moved.send_modify(|n| *n += 1);
    }

    /// Removes an object, as if some other client had.
    pub fn remove(&self, group: &str, resource: &str, namespace: &str, name: &str) {
        let id = (format!("{group}/{resource}"), namespace.to_owned(), name.to_owned());
        self.lock().remove(&id);
        self.moved.send_modify(|n| *n += 1);
    }

    /// An object as it is.
    #[must_use]
    pub fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let id = (format!("{group}/{resource}"), namespace.to_owned(), name.to_owned());
        self.lock().objects.get(&id).cloned()
    }

    /// All objects of a resource, in key order.
    #[must_use]
    pub fn all(&self, group: &str, resource: &str) -> Vec<Value> {
        let prefix = format!("{group}/{resource}");
        let state = self.lock();
        state.objects.iter().filter(|(id, _)| id.0 == prefix).map(|(_, o)| o.clone()).collect()
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.lock().revision
    }

    /// Waits until `done` holds of the state, looking again after each write.
    pub async fn until(&self, done: impl Fn(&Self) -> bool) {
        let mut moved = self.moved.subscribe();
        while !done(self) {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }

    /// Forgets the history: watches resumed from before now get 410.
    pub fn expire(&self) {
        let mut state = self.lock();
        state.revision += 1;
        state.oldest = state.revision;
        state.history.clear();
    }

    /// Ends all watches, as a restarted server does.
    pub fn cut(&self) {
        self.lock().epoch += 1;
        self.moved.send_modify(|n| *n += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<T>(&self, f: impl FnOnce(&mut State) -> Result<T, Status>) -> Result<T, Status> {
        let result = f(&mut self.lock());
        self.moved.send_modify(|n| *n += 1);
        result
    }
}

impl State {
    fn store(&mut self, id: Id, mut object: Value) -> Value {
        self.revision += 1;
        let meta = &mut object["metadata"];
        if meta["uid"].is_null() {
            self.made += 1;
            meta["uid"] = json!(format!("uid-{}", self.made));
        }
        meta["resourceVersion"] = json!(self.revision.to_string());
        let before = self.objects.insert(id.clone(), object.clone());
        let kind = if before.is_some() { Type::Modified } else { Type::Added };
        let revision = self.revision;
        self.history.push(Past { revision, kind, id, object: object.clone(), before });
        object
    }

    fn remove(&mut self, id: &Id) -> Option<Value> {
        let mut object = self.objects.remove(id)?;
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let (revision, before) = (self.revision, Some(object.clone()));
        let (kind, id) = (Type::Deleted, id.clone());
        self.history.push(Past { revision, kind, id, object: object.clone(), before });
        Some(object)
    }

    fn present(&self, id: &Id) -> Result<Value, Status> {
        let gone = || refusal(404, "NotFound", &format!("{} {:?} not found", id.0, id.2));
        self.objects.get(id).cloned().ok_or_else(gone)
    }

    fn patch(&mut self, id: Id, patch: &Value) -> Result<Value, Status> {
        let mut object = self.present(&id)?;
        for field in ["uid", "resourceVersion"] {
            let want = &patch["metadata"][field];
            if !want.is_null() && want != &json!("") && *want != object["metadata"][field] {
                return Err(refusal(409, "Conflict", "the object has been modified"));
            }
        }
        let before = object.clone();
        merge(&mut object, patch);
        if object == before {
            return Ok(object);
        }
        let finalized = object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        let pod_grace = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0;
        if !object["metadata"]["deletionTimestamp"].is_null() && finalized && !pod_grace {
            self.store(id.clone(), object.clone());
            return Ok(self.remove(&id).unwrap_or(object));
        }
        Ok(self.store(id, object))
    }

    fn delete(&mut self, id: &Id, request: &pb::DeleteRequest) -> Result<Value, Status> {
        let mut object = self.present(id)?;
        let meta = &object["metadata"];
        let differs = |want: &str, have: &Value| !want.is_empty() && have != want;
        if differs(&request.uid, &meta["uid"])
            || differs(&request.resource_version, &meta["resourceVersion"])
        {
            return Err(refusal(409, "Conflict", "precondition failed"));
        }
        let on_a_node = id.0 == "/pods" && object["spec"]["nodeName"].is_string();
        let default_grace = if on_a_node { 30 } else { 0 };
        let grace = request.grace_period_seconds.unwrap_or(default_grace);
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if held || (on_a_node && grace > 0) {
            object["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
            object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            return Ok(self.store(id.clone(), object));
        }
        Ok(self.remove(id).unwrap_or(object))
    }
}

/// A refusal as the API server attaches it to gRPC errors.
fn refusal(code: u16, reason: &str, message: &str) -> Status {
    let grpc = match code {
        404 => tonic::Code::NotFound,
        409 => tonic::Code::Aborted,
        410 => tonic::Code::OutOfRange,
        _ => tonic::Code::InvalidArgument,
    };
    let mut status = Status::new(grpc, message);
    let body = status_json(code, reason, message);
    let value = tonic::metadata::MetadataValue::from_bytes(body.as_bytes());
    status.metadata_mut().insert_bin("ironclad-status-bin", value);
    status
}

fn status_json(code: u16, reason: &str, message: &str) -> String {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": reason, "message": message})
    .to_string()
}

fn id_of(group: &str, resource: &str, object: &Value) -> Id {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (format!("{group}/{resource}"), text("namespace"), text("name"))
}

fn id(key: Option<&pb::Key>) -> Result<Id, Status> {
    let key = key.ok_or_else(|| refusal(400, "BadRequest", "no key"))?;
    let resource = key.resource.clone().unwrap_or_default();
    let name = format!("{}/{}", resource.group, resource.resource);
    Ok((name, key.namespace.clone(), key.name.clone()))
}

fn json_of(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes).map_err(|e| refusal(400, "BadRequest", &e.to_string()))
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            if let Some(members) = into.as_object_mut() {
                members.remove(name);
            }
        } else {
            merge(&mut into[name.as_str()], value);
        }
    }
}

fn object(value: &Value) -> pb::Object {
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
    pb::Object {
        namespace: text("namespace"),
        name: text("name"),
        uid: text("uid"),
        revision: text("resourceVersion").parse().unwrap_or(0),
        json: value.to_string().into(),
        warnings: Vec::new(),
        cells: Vec::new(),
    }
}

/// Selectors of the forms `a=b`, `a!=b` and `a`, joined by commas.
fn selected(value: &Value, labels: &str, fields: &str) -> bool {
    let holds = |term: &str, of: &dyn Fn(&str) -> Option<String>| match term.split_once("!=") {
        Some((name, want)) => of(name).as_deref() != Some(want),
        None => match term.split_once('=') {
            Some((name, want)) => of(name).unwrap_or_default() == want.trim_start_matches('='),
            None => of(term).is_some(),
        },
    };
    let label = |name: &str| value["metadata"]["labels"][name].as_str().map(str::to_owned);
    let field = |path: &str| {
        let found = path.split('.').fold(value, |at, part| &at[part]);
        found.as_str().map(str::to_owned)
    };
    labels.split(',').filter(|t| !t.is_empty()).all(|t| holds(t, &label))
        && fields.split(',').filter(|t| !t.is_empty()).all(|t| holds(t, &field))
}

#[tonic::async_trait]
impl Objects for FakeApi {
    type ListStream = Pin<Box<dyn Stream<Item = Result<pb::ListChunk, Status>> + Send>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchEvent, Status>> + Send>>;

    async fn get(&self, r: Request<pb::GetRequest>) -> Result<Response<pb::Object>, Status> {
        let found = self.lock().present(&id(r.get_ref().key.as_ref())?)?;
        Ok(Response::new(object(&found)))
    }

    async fn list(
        &self,
        r: Request<pb::ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let r = r.into_inner();
        let (resource, namespace, _) = id(r.key.as_ref())?;
        let state = self.lock();
        let items = state.objects.iter().filter(|(id, o)| {
            id.0 == resource
                && (namespace.is_empty() || id.1 == namespace)
                && selected(o, &r.label_selector, &r.field_selector)
        });
        let chunk = pb::ListChunk {
            revision: state.revision,
            items: items.map(|(_, o)| object(o)).collect(),
            continue_token: String::new(),
        };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(chunk)))))
    }

    async fn watch(
        &self,
        r: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = Watcher::new(self, r.into_inner())?;
        let (send, receive) = tokio::sync::mpsc::channel(STREAM_EVENTS_MAX);
        let (api, moved) = (self.clone(), self.moved.subscribe());
        #[allow(clippy::disallowed_methods)] // ends with its stream
        tokio::spawn(watcher.run(api, moved, send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive).map(Ok))))
    }

    async fn create(&self, r: Request<pb::CreateRequest>) -> Result<Response<pb::Object>, Status> {
        let r = r.into_inner();
        let mut body = json_of(&r.json)?;
        let (resource, namespace, _) = id(r.key.as_ref())?;
        if r.subresource == "token" {
            body["status"] =
                json!({"token": "a-token", "expirationTimestamp": "2100-01-01T00:00:00Z"});
            return Ok(Response::new(object(&body)));
        }
        let made = self.write(|state| {
            if body["metadata"]["name"].is_null() {
                state.made += 1;
                let prefix = body["metadata"]["generateName"].as_str().unwrap_or_default();
                body["metadata"]["name"] = json!(format!("{prefix}{}", state.made));
            }
            if !namespace.is_empty() {
                body["metadata"]["namespace"] = json!(namespace);
            }
            let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let id = (resource, namespace, name);
            if state.objects.contains_key(&id) {
                let text = format!("{} {:?} already exists", id.0, id.2);
                return Err(refusal(409, "AlreadyExists", &text));
            }
            Ok(state.store(id, body))
        })?;
        Ok(Response::new(object(&made)))
    }

    async fn update(&self, r: Request<pb::UpdateRequest>) -> Result<Response<pb::Object>, Status> {
        let r = r.into_inner();
        let (id, body) = (id(r.key.as_ref())?, json_of(&r.json)?);
        let new = self.write(|state| {
            let held = state.present(&id)?;
            let want = &body["metadata"]["resourceVersion"];
            if !want.is_null() && *want != held["metadata"]["resourceVersion"] {
                return Err(refusal(409, "Conflict", "the object has been modified"));
            }
            let mut body = body;
            body["metadata"]["uid"] = held["metadata"]["uid"].clone();
            Ok(state.store(id, body))
        })?;
        Ok(Response::new(object(&new)))
    }

    async fn patch(&self, r: Request<pb::PatchRequest>) -> Result<Response<pb::Object>, Status> {
        let r = r.into_inner();
        let (id, body) = (id(r.key.as_ref())?, json_of(&r.body)?);
        let new = self.write(|state| {
            if r.r#type() == pb::patch_request::Type::Apply && !state.objects.contains_key(&id) {
                return Ok(state.store(id, body));
            }
            state.patch(id, &body)
        })?;
        Ok(Response::new(object(&new)))
    }

    async fn delete(&self, r: Request<pb::DeleteRequest>) -> Result<Response<pb::Object>, Status> {
        let r = r.into_inner();
        let id = id(r.key.as_ref())?;
        Ok(Response::new(object(&self.write(|state| state.delete(&id, &r))?)))
    }

    async fn delete_collection(
        &self,
        r: Request<pb::DeleteCollectionRequest>,
    ) -> Result<Response<pb::DeleteCollectionReply>, Status> {
        let r = r.into_inner();
        let (resource, namespace, _) = id(r.key.as_ref())?;
        let deleted = self.write(|state| {
            let ids: Vec<Id> = state
                .objects
                .iter()
                .filter(|(id, o)| {
                    id.0 == resource
                        && (namespace.is_empty() || id.1 == namespace)
                        && selected(o, &r.label_selector, &r.field_selector)
                })
                .map(|(id, _)| id.clone())
                .collect();
            let how = pb::DeleteRequest {
                grace_period_seconds: r.grace_period_seconds,
                ..Default::default()
            };
            for id in &ids {
                state.delete(id, &how)?;
            }
            Ok(ids.len())
        })?;
        let deleted = i64::try_from(deleted).unwrap_or(i64::MAX);
        Ok(Response::new(pb::DeleteCollectionReply { deleted }))
    }

    async fn bind(&self, r: Request<pb::BindRequest>) -> Result<Response<pb::BatchReply>, Status> {
        let items = r.into_inner().items.into_iter().map(|item| {
            let id = ("/pods".to_owned(), item.namespace, item.name);
            self.write(|state| {
                let bound = state.present(&id)?["spec"]["nodeName"].is_string();
                if bound {
                    return Err(refusal(409, "Conflict", "pod is already assigned to a node"));
                }
                let node = json!({"metadata": {"uid": item.uid}, "spec": {"nodeName": item.node}});
                state.patch(id, &node)
            })
        });
        Ok(Response::new(pb::BatchReply { items: items.map(item_reply).collect() }))
    }

    async fn update_status(
        &self,
        r: Request<pb::UpdateStatusRequest>,
    ) -> Result<Response<pb::BatchReply>, Status> {
        let items = r.into_inner().items.into_iter().map(|item| {
            let (id, mut patch) = (id(item.key.as_ref())?, json_of(&item.merge_patch)?);
            if !item.uid.is_empty() {
                patch["metadata"]["uid"] = json!(item.uid);
            }
            if !item.resource_version.is_empty() {
                patch["metadata"]["resourceVersion"] = json!(item.resource_version);
            }
            self.write(|state| state.patch(id, &patch))
        });
        Ok(Response::new(pb::BatchReply { items: items.map(item_reply).collect() }))
    }

    async fn resources(
        &self,
        _: Request<pb::ResourcesRequest>,
    ) -> Result<Response<pb::ResourcesReply>, Status> {
        Ok(Response::new(pb::ResourcesReply::default()))
    }
}

fn item_reply(result: Result<Value, Status>) -> pb::ItemReply {
    match result {
        Ok(value) => pb::ItemReply { revision: object(&value).revision, ..Default::default() },
        Err(status) => {
            let attached = status.metadata().get_bin("ironclad-status-bin");
            let bytes = attached.and_then(|v| v.to_bytes().ok()).unwrap_or_default();
            pb::ItemReply { revision: 0, status: bytes }
        }
    }
}

/// One watch: where it is, and what it wants.
struct Watcher {
    resource: String,
    request: pb::WatchRequest,
    namespace: String,
    at: i64,
    epoch: u64,
    initial: bool,
}

impl Watcher {
    fn new(api: &FakeApi, request: pb::WatchRequest) -> Result<Self, Status> {
        let (resource, namespace, _) = id(request.key.as_ref())?;
        let state = api.lock();
        if request.revision != 0 && request.revision < state.oldest {
            return Err(refusal(410, "Expired", "too old resource version"));
        }
        let (at, epoch, initial) = (request.revision, state.epoch, request.revision == 0);
        Ok(Self { resource, request, namespace, at, epoch, initial })
    }

    async fn run(
        mut self,
        api: FakeApi,
        mut moved: watch::Receiver<u64>,
        send: tokio::sync::mpsc::Sender<pb::WatchEvent>,
    ) {
        loop {
            let Some(events) = self.next(&api.lock()) else { return };
            for event in events {
                if send.send(event).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = send.closed() => return,
                changed = moved.changed() => if changed.is_err() { return },
            }
        }
    }

    fn next(&mut self, state: &State) -> Option<Vec<pb::WatchEvent>> {
        if state.epoch != self.epoch || (self.at < state.oldest && !self.initial) {
            return None;
        }
        let mut events = Vec::new();
        if std::mem::take(&mut self.initial) {
            let wanted = state.objects.iter().filter(|(id, o)| self.wants(id, o));
            events.extend(wanted.map(|(_, o)| event(Type::Added, o, state.revision)));
            let bookmark = pb::Object { revision: state.revision, ..Default::default() };
            let object = Some(bookmark);
            let done = pb::WatchEvent { r#type: 0, object, initial_done: true };
            events.push(done);
        } else {
            for past in state.history.iter().filter(|p| p.revision > self.at) {
                let was = past.before.as_ref().is_some_and(|b| self.wants(&past.id, b));
                let is = past.kind != Type::Deleted && self.wants(&past.id, &past.object);
                let kind = match (was, is) {
                    (false, true) => Type::Added,
                    (true, true) => Type::Modified,
                    (true, false) => Type::Deleted,
                    (false, false) => Type::Bookmark,
                };
                let mut event = event(kind, &past.object, past.revision);
                if kind == Type::Bookmark {
                    let revision = past.revision;
                    event.object = Some(pb::Object { revision, ..Default::default() });
                }
                events.push(event);
            }
        }
        self.at = state.revision;
        Some(events)
    }

    fn wants(&self, id: &Id, value: &Value) -> bool {
        id.0 == self.resource
            && (self.namespace.is_empty() || id.1 == self.namespace)
            && selected(value, &self.request.label_selector, &self.request.field_selector)
    }
}

fn event(kind: Type, value: &Value, revision: i64) -> pb::WatchEvent {
    let mut object = object(value);
    if kind == Type::Deleted {
        object.revision = revision;
    }
    pb::WatchEvent { r#type: kind.into(), object: Some(object), initial_done: false }
}
