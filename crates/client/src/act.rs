//! What a decision wants done, and the one place that does it.
//!
//! A reconcile function returns a [`Plan`]; the loop in [`crate::controller`] hands it to the
//! [`Executor`]. Nothing else holds a client that writes.
//!
//! ```ignore
//! Plan::new()
//!     .each(0..missing, |_| Action::create(seen.pod()).announce(&owner, "SuccessfulCreate", "Created pod: {}"))
//!     .each(&extra, |pod| Action::delete(pod))
//!     .push(Action::merge(&rs, json!({"spec": {"replicas": 3}})))
//!     .status(&rs, json!({"replicas": 3}))
//!     .requeue_after(Duration::from_secs(30))
//! ```
//!
//! Patches and deletions hold for the uid they were decided for; statuses for its revision too.
//! The first failure ends the plan, since later actions may rest on earlier ones; the loop decides
//! again with what is then there.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use crate::cache::Expect;
use crate::events::Recorder;
use crate::transport::{Client, Delete, Error, Key, Kind, Object, Patch, status_patch};

/// How many creations or deletions of one plan are under way at a time.
const CALLS_MAX: usize = 8;

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// What is done.
    pub op: Op,
    announce: Option<Announce>,
}

/// The kinds of action.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Create an object.
    Create {
        /// Its kind.
        kind: Kind,
        /// Its namespace.
        namespace: String,
        /// Its name, or its `generateName` followed by `*`, for people.
        name: String,
        /// The object.
        body: Value,
    },
    /// Patch an object or a subresource.
    Patch {
        /// Its kind.
        kind: Kind,
        /// Which.
        key: Key,
        /// The subresource, or empty.
        subresource: String,
        /// The change, with the uid as precondition inside.
        patch: Patch,
    },
    /// Merge into the status of an object.
    Status {
        /// Its kind.
        kind: Kind,
        /// Which.
        key: Key,
        /// Only of this uid.
        uid: String,
        /// Only at this revision; empty for any.
        resource_version: String,
        /// `{"status": …}`
        patch: Value,
    },
    /// Delete an object.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Which.
        key: Key,
        /// Preconditions and manner.
        how: Delete,
    },
    /// Record an event.
    Event {
        /// What it is about.
        about: ObjectReference,
        /// `Normal` or `Warning`.
        severity: &'static str,
        /// The machine-readable reason.
        reason: String,
        /// The text.
        message: String,
    },
}

/// Events that tell how an action ended; `{}` stands for the object's name or the error.
#[derive(Clone, Debug, PartialEq)]
struct Announce {
    about: ObjectReference,
    done: (&'static str, &'static str),
    failed: Option<(&'static str, &'static str)>,
}

impl Action {
    /// Creates `object`.
    #[must_use]
    pub fn create<T: Object>(object: &T) -> Self {
        let meta = object.metadata();
        let generated = || meta.generate_name.as_ref().map(|prefix| format!("{prefix}*"));
        let op = Op::Create {
            kind: Kind::of::<T>(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().or_else(generated).unwrap_or_default(),
            body: serde_json::to_value(object).expect("an API type is always JSON"),
        };
        Self::from(op)
    }

    /// Deletes exactly this object, with the kind's own grace and propagation.
    #[must_use]
    pub fn delete<T: Object>(object: &T) -> Self {
        Self::delete_with(object, Delete::default())
    }

    /// Deletes exactly this object; the uid is filled in.
    #[must_use]
    pub fn delete_with<T: Object>(object: &T, mut how: Delete) -> Self {
        let meta = object.metadata();
        how.uid = meta.uid.clone().unwrap_or_default();
        Self::from(Op::Delete { kind: Kind::of::<T>(), key: Key::of(meta), how })
    }

    /// Merge-patches exactly this object.
    #[must_use]
    pub fn merge<T: Object>(object: &T, change: Value) -> Self {
        Self::patch(object, "", Patch::Merge(change))
    }

    /// Strategic-merge-patches exactly this object.
    #[must_use]
    pub fn strategic<T: Object>(object: &T, change: Value) -> Self {
        Self::patch(object, "", Patch::Strategic(change))
    }

    /// Patches exactly this object or a subresource of it; the uid is put into the patch (JSON
    /// patches test for what they need themselves).
    #[must_use]
    pub fn patch<T: Object>(object: &T, subresource: &str, mut patch: Patch) -> Self {
        let meta = object.metadata();
        let precondition = json!({"metadata": {"uid": meta.uid}});
        match &mut patch {
            Patch::Merge(body) | Patch::Strategic(body) => overlay(body, precondition),
            Patch::Apply { .. } | Patch::Json(_) => {}
        }
        let (kind, key) = (Kind::of::<T>(), Key::of(meta));
        Self::from(Op::Patch { kind, key, subresource: subresource.to_owned(), patch })
    }

    /// Replaces fields only if the object is still at the revision it was read at.
    #[must_use]
    pub fn merge_if_unchanged<T: Object>(object: &T, mut change: Value) -> Self {
        let version = &object.metadata().resource_version;
        overlay(&mut change, json!({"metadata": {"resourceVersion": version}}));
        Self::merge(object, change)
    }

    /// Server-side applies `object` as the component, forcing conflicts.
    #[must_use]
    pub fn apply<T: Object>(object: &T) -> Self {
        let key = Key::of(object.metadata());
        let body = serde_json::to_value(object).expect("an API type is always JSON");
        let patch = Patch::Apply { body, force: true };
        Self::from(Op::Patch { kind: Kind::of::<T>(), key, subresource: String::new(), patch })
    }

    /// Merges `status` into the status of exactly this object at exactly its revision.
    #[must_use]
    pub fn status<T: Object>(object: &T, status: Value) -> Self {
        let meta = object.metadata();
        Self::from(Op::Status {
            kind: Kind::of::<T>(),
            key: Key::of(meta),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            patch: json!({ "status": status }),
        })
    }

    /// Sets the replicas of an object of any kind that has a scale.
    #[must_use]
    pub fn scale(kind: Kind, key: Key, replicas: i64) -> Self {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        Self::from(Op::Patch { kind, key, subresource: "scale".to_owned(), patch })
    }

    /// Records an event about `about`; `severity` is `Normal` or `Warning`.
    #[must_use]
    pub fn event<T: Object>(
        about: &T,
        severity: &'static str,
        reason: &str,
        message: impl Into<String>,
    ) -> Self {
        let (about, reason) = (reference(about), reason.to_owned());
        Self::from(Op::Event { about, severity, reason, message: message.into() })
    }

    /// Once done, records an event about `about`; `{}` in the message is the object's name.
    #[must_use]
    pub fn announce<T: Object>(
        mut self,
        about: &T,
        reason: &'static str,
        message: &'static str,
    ) -> Self {
        let done = (reason, message);
        self.announce = Some(Announce { about: reference(about), done, failed: None });
        self
    }

    /// If it fails, records a warning where [`Action::announce`] would; `{}` is the error.
    #[must_use]
    pub fn or_warn(mut self, reason: &'static str, message: &'static str) -> Self {
        if let Some(announce) = &mut self.announce {
            announce.failed = Some((reason, message));
        }
        self
    }
}

impl From<Op> for Action {
    fn from(op: Op) -> Self {
        Self { op, announce: None }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.op {
            Op::Create { kind, namespace, name, .. } => {
                write!(f, "create {kind} {}", Key::new(namespace, name))
            }
            Op::Patch { kind, key, subresource, .. } if subresource.is_empty() => {
                write!(f, "patch {kind} {key}")
            }
            Op::Patch { kind, key, subresource, .. } => {
                write!(f, "patch {kind}/{subresource} {key}")
            }
            Op::Status { kind, key, .. } => write!(f, "status {kind} {key}"),
            Op::Delete { kind, key, .. } => write!(f, "delete {kind} {key}"),
            Op::Event { about, reason, .. } => {
                let name = about.name.as_deref().unwrap_or_default();
                write!(f, "event {name} {reason}")
            }
        }
    }
}

/// What a decision wants done, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The actions.
    pub actions: Vec<Action>,
    /// Decide again after this long even if nothing changes.
    pub requeue_after: Option<Duration>,
}

impl Plan {
    /// Nothing to do.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one action.
    #[must_use]
    pub fn push(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }

    /// Adds an action for each item.
    #[must_use]
    pub fn each<I: IntoIterator>(mut self, items: I, f: impl FnMut(I::Item) -> Action) -> Self {
        self.actions.extend(items.into_iter().map(f));
        self
    }

    /// Adds an action if there is one.
    #[must_use]
    pub fn maybe(mut self, action: Option<Action>) -> Self {
        self.actions.extend(action);
        self
    }

    /// Merges `status` into the status of `object`, unless it already is what it would become.
    #[must_use]
    pub fn status<T: Object>(self, object: &T, status: Value) -> Self {
        let present = serde_json::to_value(object).expect("an API type is always JSON");
        if merged_is_same(present.get("status").unwrap_or(&Value::Null), &status) {
            return self;
        }
        self.push(Action::status(object, status))
    }

    /// Decides again after `delay` at the latest.
    #[must_use]
    pub fn requeue_after(mut self, delay: Duration) -> Self {
        self.requeue_after = Some(self.requeue_after.map_or(delay, |d| d.min(delay)));
        self
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }
}

/// A reference to an object, for events.
#[must_use]
pub fn reference<T: Object>(object: &T) -> ObjectReference {
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(T::API_VERSION.to_owned()),
        kind: Some(T::KIND.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// An owner reference to `owner` as its controller.
#[must_use]
pub fn controlled_by<T: Object>(owner: &T) -> OwnerReference {
    let meta = owner.metadata();
    OwnerReference {
        api_version: T::API_VERSION.to_owned(),
        kind: T::KIND.to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether merging `patch` into `present` changes nothing.
#[must_use]
pub fn merged_is_same(present: &Value, patch: &Value) -> bool {
    match (present, patch) {
        (Value::Null, Value::Object(patch)) => patch.values().all(Value::is_null),
        (Value::Object(present), Value::Object(patch)) => patch.iter().all(|(name, value)| {
            let held = present.get(name).unwrap_or(&Value::Null);
            // No field, an empty list and null are one to the API.
            let empty = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
            merged_is_same(held, value) || (empty(held) && empty(value))
        }),
        (present, patch) => present == patch,
    }
}

/// Puts the members of `extra` into `body`, objects within objects.
fn overlay(body: &mut Value, extra: Value) {
    match (body, extra) {
        (Value::Object(body), Value::Object(extra)) => {
            for (name, value) in extra {
                overlay(body.entry(name).or_insert(Value::Null), value);
            }
        }
        (body, extra) => *body = extra,
    }
}

/// Whether `next` may be done together with `group`, in any order.
fn side_by_side(group: &[Action], next: &Action) -> bool {
    let made_or_gone = |a: &Action| matches!(a.op, Op::Create { .. } | Op::Delete { .. });
    let Op::Patch { kind, key, .. } = &next.op else {
        return made_or_gone(next) && group.iter().all(made_or_gone);
    };
    group.iter().all(|before| match &before.op {
        Op::Patch { kind: other, key: patched, .. } => other == kind && patched != key,
        _ => false,
    })
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Done {
    /// What the cache has to see before the same key is decided again.
    pub expect: Vec<Expect>,
    /// The first failure.
    pub error: Option<Error>,
}

/// Runs plans.
#[derive(Clone, Debug)]
pub struct Executor {
    client: Client,
    events: Recorder,
}

impl Executor {
    /// An executor that writes through `client` and records through `events`.
    #[must_use]
    pub fn new(client: Client, events: Recorder) -> Self {
        Self { client, events }
    }

    /// Does what `plan` says. Neighbouring creations and deletions run side by side, and so do patches of several
    /// objects of one kind, at most eight at a time; everything else in order.
    pub async fn run(&self, plan: Plan) -> Done {
        let mut done = Done::default();
        let mut rest = plan.actions.into_iter().peekable();
        while let Some(first) = rest.next() {
            let mut group = vec![first];
            while let Some(next) = rest.next_if(|next| side_by_side(&group, next)) {
                group.push(next);
            }
            let calls = futures::stream::iter(group).map(|action| self.act(action));
            let results: Vec<_> = calls.buffered(CALLS_MAX).collect().await;
            for result in results {
                match result {
                    Ok(expect) => done.expect.extend(expect),
                    Err(error) => drop(done.error.get_or_insert(error)),
                }
            }
            if done.error.is_some() {
                break;
            }
        }
        done
    }

    async fn act(&self, action: Action) -> Result<Option<Expect>, Error> {
        tracing::debug!(action = %action, "acting");
        let result = self.call(action.op).await;
        if let Some(announce) = action.announce {
            self.tell(announce, &result);
        }
        match result {
            // Already gone is what a deletion wants; a status of what is gone has no reader.
            Err(Failed { error, gone_is_fine: true }) if error.is_not_found() => Ok(None),
            Err(failed) => Err(failed.error),
            Ok(expect) => Ok(expect),
        }
    }

    async fn call(&self, op: Op) -> Result<Option<Expect>, Failed> {
        let client = &self.client;
        let expect = match op {
            Op::Create { kind, namespace, body, .. } => {
                let body = Bytes::from(body.to_string());
                let made = client.create_raw(&kind, &namespace, "", "", body).await?;
                let key = Key::new(made.namespace, made.name);
                Expect { kind, key, uid: made.uid, revision: made.revision, deleted: false }
            }
            Op::Patch { kind, key, subresource, patch } => {
                let new = client.patch_raw(&kind, &key, &subresource, patch).await?;
                Expect { kind, key, uid: new.uid, revision: new.revision, deleted: false }
            }
            Op::Status { kind, key, uid, resource_version, patch } => {
                let item = status_patch(&kind, &key, &uid, &resource_version, &patch);
                let reply = client.update_status(vec![item]).await.map_err(Failed::gone_is_fine)?;
                let no_reply = || Error::Codec("reply without an item".to_owned());
                let revision =
                    reply.into_iter().next().ok_or_else(no_reply).map_err(Failed::from)?;
                let revision = revision.map_err(Failed::gone_is_fine)?;
                Expect { kind, key, uid, revision, deleted: false }
            }
            Op::Delete { kind, key, how } => {
                let uid = how.uid.clone();
                let reply = client.delete_raw(&kind, &key, how).await;
                let last = reply.map_err(Failed::gone_is_fine)?;
                Expect { kind, key, uid, revision: last.revision, deleted: true }
            }
            Op::Event { about, severity, reason, message } => {
                self.events.record(about, severity, &reason, message);
                return Ok(None);
            }
        };
        Ok(Some(expect))
    }

    fn tell(&self, announce: Announce, result: &Result<Option<Expect>, Failed>) {
        match result {
            Ok(expect) => {
                let name = expect.as_ref().map_or("", |e| e.key.name.as_str());
                let (reason, message) = announce.done;
                self.events.record(announce.about, "Normal", reason, message.replace("{}", name));
            }
            Err(Failed { error, .. }) => {
                let Some((reason, message)) = announce.failed else { return };
                let message = message.replace("{}", &error.to_string());
                self.events.record(announce.about, "Warning", reason, message);
            }
        }
    }
}

struct Failed {
    error: Error,
    gone_is_fine: bool,
}

impl Failed {
    fn gone_is_fine(error: Error) -> Self {
        Self { error, gone_is_fine: true }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, gone_is_fine: false }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "d", "uid": "u1", "resourceVersion": "7"},
            "spec": {"containers": []},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        }))
        .unwrap()
    }

    #[test]
    fn a_status_that_is_there_already_is_no_action() {
        let same = json!({"phase": "Running", "message": null, "conditions": []});
        assert!(Plan::new().status(&pod(), same).is_empty());
        let plan = Plan::new().status(&pod(), json!({"phase": "Failed"}));
        assert_eq!(plan.actions[0].to_string(), "status pods d/a");
    }

    #[test]
    fn patches_carry_the_uid_they_were_decided_for() {
        let action =
            Action::merge_if_unchanged(&pod(), json!({"metadata": {"labels": {"x": "y"}}}));
        let Op::Patch { patch: Patch::Merge(body), .. } = action.op else { panic!("a merge") };
        let want = json!({"metadata": {"labels": {"x": "y"}, "uid": "u1", "resourceVersion": "7"}});
        assert_eq!(body, want);
    }

    #[test]
    fn the_shortest_delay_counts() {
        let plan = Plan::new()
            .requeue_after(Duration::from_secs(9))
            .requeue_after(Duration::from_secs(3))
            .requeue_after(Duration::from_secs(5));
        assert_eq!(plan.requeue_after, Some(Duration::from_secs(3)));
    }
}
