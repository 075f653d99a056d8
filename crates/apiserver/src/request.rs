//! What both doors ask of the registry, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use api::catalog::Resource;
use api::object::Value;
use auth::User;
use bytes::Bytes;

use crate::registry::watch::Watcher;

/// The encoding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
    Protobuf,
}

/// An object or patch as it came.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    pub(crate) format: Format,
}

/// What to do about unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Options of every write.
#[derive(Debug, Clone, Default)]
pub(crate) struct WriteOptions {
    /// Do everything but store.
    pub(crate) dry_run: bool,
    /// `fieldManager`, or what the client's user agent begins with.
    pub(crate) manager: String,
    /// Whether the manager was named by the client.
    pub(crate) manager_given: bool,
    pub(crate) validation: FieldValidation,
}

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

/// Which objects of a resource, and from which time.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListOptions {
    pub(crate) labels: String,
    pub(crate) fields: String,
    pub(crate) limit: usize,
    pub(crate) continue_token: String,
    pub(crate) version: String,
    pub(crate) version_match: String,
}

/// How a watch goes on.
#[derive(Debug, Clone, Default)]
pub(crate) struct WatchOptions {
    pub(crate) list: ListOptions,
    pub(crate) bookmarks: bool,
    pub(crate) initial_events: bool,
    pub(crate) timeout: Option<Duration>,
}

/// Options of a deletion.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) uid: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) grace_s: Option<i64>,
    pub(crate) propagation: Option<String>,
    /// The older form of the policy.
    pub(crate) orphan: Option<bool>,
    pub(crate) dry_run: bool,
    /// `dryRun` as it was written.
    pub(crate) dry_run_given: Vec<String>,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    Get { version: String },
    List(ListOptions),
    Watch(WatchOptions),
    Create { body: Body, options: WriteOptions },
    Update { body: Body, options: WriteOptions },
    Patch { kind: PatchType, body: Body, force: bool, options: WriteOptions },
    Delete(DeleteOptions),
    DeleteCollection { list: ListOptions, options: DeleteOptions },
}

impl Action {
    /// The verb that policies name.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Get { .. } => "get",
            Self::List(_) => "list",
            Self::Watch(_) => "watch",
            Self::Create { .. } => "create",
            Self::Update { .. } => "update",
            Self::Patch { .. } => "patch",
            Self::Delete(_) => "delete",
            Self::DeleteCollection { .. } => "deletecollection",
        }
    }
}

/// A request for a resource, whichever door it came through.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) user: Arc<User>,
    pub(crate) resource: Arc<Resource>,
    /// Empty for the object itself.
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) action: Action,
}

/// One object in an answer.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    /// JSON with its resourceVersion.
    pub(crate) json: Bytes,
    /// Its kind's row, where that is not the request's (scale, status answers, reviews).
    pub(crate) kind: Option<(String, String)>,
}

/// A list, all of one revision.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) revision: i64,
    pub(crate) items: Vec<Bytes>,
    pub(crate) continue_token: String,
    pub(crate) remaining: Option<i64>,
}

/// What came of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// An object; whether it is new.
    Object { object: Object, created: bool, warnings: Vec<String> },
    /// A list.
    List(List),
    /// A watch.
    Watch(Box<Watcher>),
    /// A `Status` of success, with its code.
    Status { status: Value, code: u16, warnings: Vec<String> },
}
