//! Typed calls to the API server's object service.
//!
//! [`Client`] is cheap to clone. Every call has a deadline; a watch has none, but ends when the
//! connection does. Namespaces are `""` for cluster-scoped kinds.
//!
//! ```ignore
//! let client = Client::new(channel, "scheduler");
//! let pod: Pod = client.get("default", "web").await?;
//! client.patch::<Pod>("default", "web", "", Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}))).await?;
//! ```
//!
//! Errors carry the server's Status: ask [`Error::is_not_found`], [`Error::is_conflict`] and so on.

use std::time::Duration;

use bytes::Bytes;
use daemon::Channel;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status};
use k8s_openapi::{Metadata, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::apiserver as pb;
use wire::apiserver::objects_client::ObjectsClient;

/// The metadata key under which a gRPC error carries the Kubernetes Status as JSON.
pub const STATUS_KEY: &str = "ironclad-status-bin";
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest reply that is read, in bytes.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// How many objects one chunk of a list asks for.
const LIST_CHUNK_OBJECTS: i64 = 500;

/// What the daemons keep of a kind: a k8s-openapi type with metadata.
pub trait Object:
    Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}

impl<T> Object for T where
    T: Resource
        + Metadata<Ty = ObjectMeta>
        + Serialize
        + DeserializeOwned
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Namespace and name of an object; the namespace is empty for cluster-scoped kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace, or empty.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    #[must_use]
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A kind as paths name it, for callers that learn their kinds at run time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// API group, empty for core.
    pub group: String,
    /// Version, such as `v1`.
    pub version: String,
    /// Plural resource name, such as `pods`.
    pub resource: String,
}

impl Kind {
    /// The kind of a typed object.
    #[must_use]
    pub fn of<T: Resource>() -> Self {
        Self {
            group: T::GROUP.to_owned(),
            version: T::VERSION.to_owned(),
            resource: T::URL_PATH_SEGMENT.to_owned(),
        }
    }

    fn key(&self, namespace: &str, name: &str) -> Option<pb::Key> {
        Some(pb::Key {
            resource: Some(pb::Resource {
                group: self.group.clone(),
                version: self.version.clone(),
                resource: self.resource.clone(),
            }),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.resource)
        } else {
            write!(f, "{}.{}", self.resource, self.group)
        }
    }
}

/// Calls a method of the service. Boxed, since the transport's own future does not prove `Send`
/// for every lifetime its callers could have.
macro_rules! call {
    ($client:expr, $method:ident, $request:expr) => {{
        let mut objects = $client.objects.clone();
        let request = $request;
        unary(async move { objects.$method(request).await }).await
    }};
}

/// Why a call did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The server answered with a Status.
    #[error("{message}")]
    Api {
        /// The HTTP code.
        code: u16,
        /// The machine-readable reason, such as `NotFound`.
        reason: String,
        /// The text a person reads.
        message: String,
        /// How long to wait before trying again, where the server said so.
        retry_after: Option<Duration>,
    },
    /// The server could not be reached, or the connection broke.
    #[error("API server: {0}")]
    Transport(String),
    /// The server's object is not of the expected type, or ours cannot be written.
    #[error("object: {0}")]
    Codec(String),
}

impl Error {
    /// The reason of the Status, empty for other errors.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Api { reason, .. } => reason,
            _ => "",
        }
    }

    /// The HTTP code of the Status, 0 for other errors.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::Api { code, .. } => *code,
            _ => 0,
        }
    }

    /// No such object.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.reason() == "NotFound"
    }

    /// The object has changed since it was read, or a precondition failed.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.reason() == "Conflict"
    }

    /// An object of this name exists.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }

    /// The revision to watch from is gone: list again.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.code() == 410
    }

    /// We may not do this.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.reason() == "Forbidden"
    }

    /// The object is refused as it is; trying again without a change is of no use.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self.code(), 400 | 422)
    }

    /// The namespace is going away: nothing can be created in it.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.is_forbidden() && self.to_string().contains("because it is being terminated")
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        let attached = status.metadata().get_bin(STATUS_KEY).and_then(|v| v.to_bytes().ok());
        if let Some(error) = attached.and_then(|json| from_status_json(&json)) {
            return error;
        }
        let (code, reason) = match status.code() {
            tonic::Code::NotFound => (404, "NotFound"),
            tonic::Code::AlreadyExists => (409, "AlreadyExists"),
            tonic::Code::Aborted => (409, "Conflict"),
            tonic::Code::PermissionDenied => (403, "Forbidden"),
            tonic::Code::Unauthenticated => (401, "Unauthorized"),
            tonic::Code::InvalidArgument => (400, "BadRequest"),
            tonic::Code::ResourceExhausted => (429, "TooManyRequests"),
            tonic::Code::OutOfRange => (410, "Expired"),
            code => return Self::Transport(format!("{code:?}: {}", status.message())),
        };
        let message = status.message().to_owned();
        Self::Api { code, reason: reason.to_owned(), message, retry_after: None }
    }
}

fn from_status_json(json: &[u8]) -> Option<Error> {
    let status: Status = serde_json::from_slice(json).ok()?;
    let seconds = status.details.as_ref().and_then(|d| d.retry_after_seconds);
    Some(Error::Api {
        code: u16::try_from(status.code.unwrap_or(500)).unwrap_or(500),
        reason: status.reason.unwrap_or_default(),
        message: status.message.unwrap_or_default(),
        retry_after: seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs),
    })
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// One of the four patches.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// JSON merge patch.
    Merge(serde_json::Value),
    /// Strategic merge patch.
    Strategic(serde_json::Value),
    /// JSON patch: a list of operations.
    Json(serde_json::Value),
    /// Server-side apply of the fields we own; `force` takes them from others.
    Apply {
        /// The object with the fields we own.
        body: serde_json::Value,
        /// Take fields that others own.
        force: bool,
    },
}

/// Which objects a list or watch returns. The default is all of them, without managed fields.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// One namespace, or all when empty.
    pub namespace: String,
    /// Label selector in its text form.
    pub labels: String,
    /// Field selector in its text form.
    pub fields: String,
    /// Dotted paths of the fields wanted; empty for all.
    pub projection: Vec<String>,
    /// The cells of a table as well.
    pub cells: bool,
}

impl Scope {
    fn projection(&self) -> Option<pb::Projection> {
        Some(pb::Projection {
            managed_fields: false,
            fields: self.projection.clone(),
            cells: self.cells,
        })
    }
}

/// Preconditions and manner of a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delete {
    /// Only the object with this uid; empty for any.
    pub uid: String,
    /// Only at this revision; empty for any.
    pub resource_version: String,
    /// Grace in seconds; none for the object's own.
    pub grace_period_s: Option<i64>,
    /// `Orphan`, `Background`, `Foreground`, or empty for the kind's own.
    pub propagation: &'static str,
}

/// The API server, as one component sees it.
#[derive(Clone)]
pub struct Client {
    objects: ObjectsClient<Channel>,
    field_manager: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("field_manager", &self.field_manager).finish()
    }
}

impl Client {
    /// A client over `channel`, writing as `field_manager` (the component's name).
    #[must_use]
    pub fn new(channel: Channel, field_manager: &str) -> Self {
        let objects = ObjectsClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
        Self { objects, field_manager: field_manager.to_owned() }
    }

    /// The component's name.
    #[must_use]
    pub fn field_manager(&self) -> &str {
        &self.field_manager
    }

    /// Reads one object, newest state.
    ///
    /// # Errors
    /// `NotFound`, and whatever else the server says.
    pub async fn get<T: Object>(&self, namespace: &str, name: &str) -> Result<T> {
        parse(&self.get_raw(&Kind::of::<T>(), namespace, name).await?)
    }

    /// Reads one object of any kind.
    ///
    /// # Errors
    /// `NotFound`, and whatever else the server says.
    pub async fn get_raw(&self, kind: &Kind, namespace: &str, name: &str) -> Result<pb::Object> {
        let key = kind.key(namespace, name);
        let request = pb::GetRequest { key, ..Default::default() };
        call!(self, get, timed(request))
    }

    /// Reads the scale of an object of any kind that has one.
    ///
    /// # Errors
    /// `NotFound`, and whatever else the server says.
    pub async fn get_scale(&self, kind: &Kind, key: &Key) -> Result<pb::Object> {
        let key = kind.key(&key.namespace, &key.name);
        let request = pb::GetRequest { key, subresource: "scale".into(), ..Default::default() };
        call!(self, get, timed(request))
    }

    /// Reads those parts of one object that `scope` names; its selectors are not looked at.
    ///
    /// # Errors
    /// `NotFound`, and whatever else the server says.
    pub async fn get_part(&self, kind: &Kind, name: &str, scope: &Scope) -> Result<pb::Object> {
        let key = kind.key(&scope.namespace, name);
        let request = pb::GetRequest { key, projection: scope.projection(), ..Default::default() };
        call!(self, get, timed(request))
    }

    /// Reads all objects in `scope`, and the revision they are at.
    ///
    /// # Errors
    /// Whatever the server says.
    pub async fn list<T: Object>(&self, scope: &Scope) -> Result<(Vec<T>, i64)> {
        let (objects, revision) = self.list_raw(&Kind::of::<T>(), scope).await?;
        Ok((objects.iter().map(parse).collect::<Result<_>>()?, revision))
    }

    /// Reads all objects of any kind in `scope`, and the revision they are at.
    ///
    /// # Errors
    /// Whatever the server says.
    pub async fn list_raw(&self, kind: &Kind, scope: &Scope) -> Result<(Vec<pb::Object>, i64)> {
        let (mut objects, mut revision, mut token) = (Vec::new(), 0, String::new());
        loop {
            let request = pb::ListRequest {
                key: kind.key(&scope.namespace, ""),
                label_selector: scope.labels.clone(),
                field_selector: scope.fields.clone(),
                limit: LIST_CHUNK_OBJECTS,
                continue_token: std::mem::take(&mut token),
                projection: scope.projection(),
                ..Default::default()
            };
            let mut stream = call!(self, list, timed(request))?;
            while let Some(chunk) = stream.message().await? {
                revision = chunk.revision;
                objects.extend(chunk.items);
                token = chunk.continue_token;
            }
            if token.is_empty() {
                return Ok((objects, revision));
            }
        }
    }

    /// Watches a kind from after `revision`; 0 sends the present state first. Prefer a
    /// [`crate::Cache`], which resumes.
    ///
    /// # Errors
    /// When the watch cannot be started.
    pub async fn watch_raw(
        &self,
        kind: &Kind,
        scope: &Scope,
        revision: i64,
    ) -> Result<tonic::Streaming<pb::WatchEvent>> {
        let request = pb::WatchRequest {
            key: kind.key(&scope.namespace, ""),
            label_selector: scope.labels.clone(),
            field_selector: scope.fields.clone(),
            revision,
            projection: scope.projection(),
        };
        // No deadline on the request itself: it would end the stream.
        call!(self, watch, tonic::Request::new(request))
    }

    /// Creates an object; the name may be left to `generateName`.
    ///
    /// # Errors
    /// `AlreadyExists`, `Invalid`, and whatever else the server says.
    pub async fn create<T: Object>(&self, object: &T) -> Result<T> {
        let key = Key::of(object.metadata());
        parse(&self.create_raw(&Kind::of::<T>(), &key.namespace, "", "", json(object)?).await?)
    }

    /// Creates an object of any kind, or posts `body` to a subresource of object `name`.
    ///
    /// # Errors
    /// `AlreadyExists`, `Invalid`, and whatever else the server says.
    pub async fn create_raw(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
        body: Bytes,
    ) -> Result<pb::Object> {
        let request = pb::CreateRequest {
            key: kind.key(namespace, name),
            subresource: subresource.to_owned(),
            json: body,
            options: self.options(),
        };
        call!(self, create, timed(request))
    }

    /// Posts `body` to a subresource of `name`, such as `token` of a service account.
    ///
    /// # Errors
    /// Whatever the server says.
    pub async fn post<T, B, R>(&self, key: &Key, subresource: &str, body: &B) -> Result<R>
    where
        T: Object,
        B: Serialize,
        R: DeserializeOwned,
    {
        let (kind, body) = (Kind::of::<T>(), json(body)?);
        let reply = self.create_raw(&kind, &key.namespace, &key.name, subresource, body).await?;
        serde_json::from_slice(&reply.json).map_err(|e| Error::Codec(e.to_string()))
    }

    /// Replaces an object. Prefer patches: a typed object lacks the fields its type lacks.
    ///
    /// # Errors
    /// `Conflict` when it has changed since it was read, and whatever else the server says.
    pub async fn update<T: Object>(&self, object: &T, subresource: &str) -> Result<T> {
        let key = Key::of(object.metadata());
        let request = pb::UpdateRequest {
            key: Kind::of::<T>().key(&key.namespace, &key.name),
            subresource: subresource.to_owned(),
            json: json(object)?,
            options: self.options(),
        };
        parse(&call!(self, update, timed(request))?)
    }

    /// Patches an object, or the named subresource of it.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` and whatever else the server says.
    pub async fn patch<T: Object>(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Patch,
    ) -> Result<T> {
        let key = Key::new(namespace, name);
        parse(&self.patch_raw(&Kind::of::<T>(), &key, subresource, patch).await?)
    }

    /// Patches an object of any kind.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` and whatever else the server says.
    pub async fn patch_raw(
        &self,
        kind: &Kind,
        key: &Key,
        subresource: &str,
        patch: Patch,
    ) -> Result<pb::Object> {
        use pb::patch_request::Type;
        let (form, body, force) = match patch {
            Patch::Merge(body) => (Type::Merge, body, false),
            Patch::Strategic(body) => (Type::Strategic, body, false),
            Patch::Json(body) => (Type::Json, body, false),
            Patch::Apply { body, force } => (Type::Apply, body, force),
        };
        let request = pb::PatchRequest {
            key: kind.key(&key.namespace, &key.name),
            subresource: subresource.to_owned(),
            r#type: form.into(),
            body: json(&body)?,
            force,
            options: self.options(),
        };
        call!(self, patch, timed(request))
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` when a precondition fails, and whatever else the server says.
    pub async fn delete<T: Object>(&self, namespace: &str, name: &str, how: Delete) -> Result<()> {
        self.delete_raw(&Kind::of::<T>(), &Key::new(namespace, name), how).await.map(drop)
    }

    /// Deletes an object of any kind; the reply is its last state.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` when a precondition fails, and whatever else the server says.
    pub async fn delete_raw(&self, kind: &Kind, key: &Key, how: Delete) -> Result<pb::Object> {
        let request = pb::DeleteRequest {
            key: kind.key(&key.namespace, &key.name),
            uid: how.uid,
            resource_version: how.resource_version,
            grace_period_seconds: how.grace_period_s,
            propagation_policy: how.propagation.to_owned(),
            dry_run: false,
        };
        call!(self, delete, timed(request))
    }

    /// Deletes all objects of a kind in `scope`; returns how many.
    ///
    /// # Errors
    /// Whatever the server says.
    pub async fn delete_all_raw(&self, kind: &Kind, scope: &Scope) -> Result<i64> {
        let request = pb::DeleteCollectionRequest {
            key: kind.key(&scope.namespace, ""),
            label_selector: scope.labels.clone(),
            field_selector: scope.fields.clone(),
            ..Default::default()
        };
        Ok(call!(self, delete_collection, timed(request))?.deleted)
    }

    /// Binds pods to nodes; one result per binding, in order: the revision it made.
    ///
    /// # Errors
    /// When the call as a whole fails.
    pub async fn bind(&self, items: Vec<pb::Binding>) -> Result<Vec<Result<i64>>> {
        let request = pb::BindRequest { items };
        let reply = call!(self, bind, timed(request))?;
        Ok(reply.items.into_iter().map(item).collect())
    }

    /// Merge-patches the status of many objects; one result per item, in order: the revision it
    /// made. See [`status_patch`].
    ///
    /// # Errors
    /// When the call as a whole fails.
    pub async fn update_status(&self, items: Vec<pb::StatusPatch>) -> Result<Vec<Result<i64>>> {
        let request = pb::UpdateStatusRequest { items };
        let reply = call!(self, update_status, timed(request))?;
        Ok(reply.items.into_iter().map(item).collect())
    }

    /// The kinds the server serves.
    ///
    /// # Errors
    /// Whatever the server says.
    pub async fn resources(&self) -> Result<Vec<pb::ResourceKind>> {
        let request = timed(pb::ResourcesRequest {});
        Ok(call!(self, resources, request)?.kinds)
    }

    fn options(&self) -> Option<pb::Options> {
        Some(pb::Options { field_manager: self.field_manager.clone(), ..Default::default() })
    }
}

/// One item of [`Client::update_status`]: `merge_patch` is the whole patch, as `{"status": …}`.
/// An empty `resource_version` makes it unconditional.
#[must_use]
pub fn status_patch(
    kind: &Kind,
    key: &Key,
    uid: &str,
    resource_version: &str,
    merge_patch: &serde_json::Value,
) -> pb::StatusPatch {
    pb::StatusPatch {
        key: kind.key(&key.namespace, &key.name),
        uid: uid.to_owned(),
        resource_version: resource_version.to_owned(),
        merge_patch: Bytes::from(merge_patch.to_string()),
    }
}

/// Reads an object that came over the wire, with its revision in the metadata.
///
/// # Errors
/// When the JSON is not of the type.
pub fn parse<T: Object>(object: &pb::Object) -> Result<T> {
    let mut typed: T = serde_json::from_slice(&object.json).map_err(|e| {
        Error::Codec(format!("{} {}/{}: {e}", T::KIND, object.namespace, object.name))
    })?;
    if object.revision != 0 {
        typed.metadata_mut().resource_version = Some(object.revision.to_string());
    }
    Ok(typed)
}

fn json(value: &impl Serialize) -> Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| Error::Codec(e.to_string()))
}

fn item(reply: pb::ItemReply) -> Result<i64> {
    if reply.status.is_empty() {
        return Ok(reply.revision);
    }
    let unreadable = || Error::Codec("status of a batch item".to_owned());
    Err(from_status_json(&reply.status).unwrap_or_else(unreadable))
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

type Reply<T> = std::result::Result<tonic::Response<T>, tonic::Status>;

/// Awaits a call with our own deadline, which also holds where the transport knows none.
fn unary<T: 'static>(
    call: impl Future<Output = Reply<T>> + Send + 'static,
) -> BoxFuture<'static, Result<T>> {
    async move {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(reply) => Ok(reply?.into_inner()),
            Err(_) => Err(Error::Transport("no answer in time".to_owned())),
        }
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attached_status_wins_over_the_grpc_code() {
        let mut status = tonic::Status::unknown("x");
        let json = br#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#;
        let value = tonic::metadata::MetadataValue::from_bytes(json);
        status.metadata_mut().insert_bin(STATUS_KEY, value);
        let error = Error::from(status);
        assert!(error.is_expired());
        assert_eq!(error.to_string(), "too old");
    }

    #[test]
    fn grpc_codes_stand_in_where_no_status_came() {
        assert!(Error::from(tonic::Status::not_found("x")).is_not_found());
        assert!(Error::from(tonic::Status::aborted("x")).is_conflict());
        assert!(matches!(Error::from(tonic::Status::unavailable("x")), Error::Transport(_)));
    }
}
