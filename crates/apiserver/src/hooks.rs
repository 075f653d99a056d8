//! The few kinds that do more than be stored: what a write claims, what a deletion waits for, what is filled in.
//!
//! One table, [`HOOKS`], by group and resource. Everything else is data in the kind's row.

use api::catalog::Resource;
use api::error::ApiError;
use api::object::Value;

use crate::registry::Api;
use crate::registry::commit::Claims;
use crate::request::Request;

pub(crate) mod definition;
pub(crate) mod namespace;
pub(crate) mod pod;
pub(crate) mod review;
pub(crate) mod service;
pub(crate) mod token;

/// What is special about a kind. Every member has a default that does nothing.
struct Hook {
    group: &'static str,
    resource: &'static str,
    /// Fills in what depends on more than the object's schema.
    complete: fn(&Api, &mut Value, Option<&Value>),
    /// Whether something but finalizers keeps an object that is being deleted.
    holds: fn(&Value) -> bool,
    /// Seconds a deletion waits, from what the client asked for; `None` for kinds that know no grace.
    grace_s: fn(&Value, Option<i64>) -> Option<i64>,
    /// Changes an object that is asked to go, before anything is decided.
    on_ask: fn(&mut Value, jiff::Timestamp),
    /// Changes an object whose deletion begins.
    on_mark: fn(&mut Value),
    /// A deletion answers with the object and not with a Status.
    returns_deleted: bool,
    /// Dependents are orphaned unless the client says otherwise (an old promise of these kinds).
    orphans: bool,
    /// What a client is told that leaves it at that.
    orphan_warning: &'static str,
}

const PLAIN: Hook = Hook {
    group: "",
    resource: "",
    complete: |_, _, _| {},
    holds: |_| false,
    grace_s: |_, _| None,
    on_ask: |_, _| {},
    on_mark: |_| {},
    returns_deleted: false,
    orphans: false,
    orphan_warning: "",
};

const fn returning(group: &'static str, resource: &'static str) -> Hook {
    Hook { group, resource, returns_deleted: true, ..PLAIN }
}

static HOOKS: &[Hook] = &[
    Hook { complete: pod::complete, grace_s: pod::grace_s, ..returning("", "pods") },
    Hook {
        resource: "namespaces",
        holds: namespace::holds,
        complete: namespace::complete,
        on_mark: namespace::on_mark,
        returns_deleted: true,
        ..PLAIN
    },
    Hook {
        group: "apiextensions.k8s.io",
        resource: "customresourcedefinitions",
        on_ask: definition::on_ask,
        on_mark: definition::on_mark,
        ..PLAIN
    },
    Hook { resource: "replicationcontrollers", orphans: true, ..PLAIN },
    Hook {
        group: "batch",
        resource: "jobs",
        orphans: true,
        orphan_warning: "child pods are preserved by default when jobs are deleted; set \
                         propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this \
                         warning",
        ..PLAIN
    },
    returning("", "podtemplates"),
    returning("", "services"),
    returning("", "serviceaccounts"),
    Hook { complete: volume_phase, ..returning("", "persistentvolumes") },
    returning("", "persistentvolumeclaims"),
    returning("", "resourcequotas"),
    returning("resource.k8s.io", "resourceclaims"),
    returning("resource.k8s.io", "resourceclaimtemplates"),
    returning("resource.k8s.io", "deviceclasses"),
    returning("resource.k8s.io", "resourceslices"),
    returning("storage.k8s.io", "storageclasses"),
    returning("storage.k8s.io", "csinodes"),
    returning("storage.k8s.io", "csidrivers"),
    returning("storage.k8s.io", "volumeattachments"),
];

/// Notes when a volume's phase changed.
fn volume_phase(api: &Api, volume: &mut Value, old: Option<&Value>) {
    let phase = |v: &Value| v["status"]["phase"].clone();
    let at = ["status", "lastPhaseTransitionTime"];
    let noted = old.is_some_and(|old| volume.at(&at) != old.at(&at));
    if !noted && old.is_none_or(|old| phase(old) != phase(volume)) {
        volume.set_at(&at, api::time::format(api.clock.now()));
    }
}

fn hook(resource: &Resource) -> &'static Hook {
    HOOKS
        .iter()
        .find(|h| h.group == resource.group && h.resource == resource.plural)
        .unwrap_or(&PLAIN)
}

/// Fills in what depends on more than the object's schema.
pub(crate) fn complete(api: &Api, resource: &Resource, object: &mut Value, old: Option<&Value>) {
    (hook(resource).complete)(api, object, old);
}

/// Whether something but finalizers keeps an object that is being deleted.
pub(crate) fn holds(resource: &Resource, object: &Value) -> bool {
    (hook(resource).holds)(object)
}

/// Seconds a deletion waits, from what the client asked for; `None` for kinds that know no grace.
pub(crate) fn grace_s(resource: &Resource, object: &Value, asked: Option<i64>) -> Option<i64> {
    (hook(resource).grace_s)(object, asked)
}

/// Changes an object that is asked to go, before anything is decided.
pub(crate) fn on_ask(resource: &Resource, object: &mut Value, now: jiff::Timestamp) {
    (hook(resource).on_ask)(object, now);
}

/// Changes an object whose deletion begins.
pub(crate) fn on_mark(resource: &Resource, object: &mut Value) {
    (hook(resource).on_mark)(object);
}

/// Whether a deletion answers with the object.
pub(crate) fn returns_deleted(resource: &Resource) -> bool {
    hook(resource).returns_deleted
}

/// Whether dependents are orphaned unless the client says otherwise.
pub(crate) fn orphans_by_default(resource: &Resource) -> bool {
    hook(resource).orphans
}

/// What to tell a client that deletes without saying what becomes of dependents.
pub(crate) fn orphan_warning(resource: &Resource) -> Option<&'static str> {
    Some(hook(resource).orphan_warning).filter(|text| !text.is_empty())
}

/// Whether something is chosen for objects of this kind when they are claimed.
pub(crate) fn chooses(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "services"
}

/// What a write of this object claims, after filling in what was chosen for it.
pub(crate) async fn on_write(
    api: &Api,
    resource: &Resource,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<Claims, ApiError> {
    let mut claims = match (resource.group.as_ref(), resource.plural.as_ref()) {
        ("", "services") => service::claim(api, object, old).await?,
        _ => Claims::default(),
    };
    crate::admission::quota::claim(api, resource, object, old, &mut claims)?;
    Ok(claims)
}

/// What the deletion of this object gives back.
pub(crate) fn on_delete(api: &Api, resource: &Resource, object: &Value) -> Claims {
    match (resource.group.as_ref(), resource.plural.as_ref()) {
        ("", "services") => service::release(api, object),
        _ => Claims::default(),
    }
}

/// Puts into a new object what only the server knows of its maker.
pub(crate) fn sign(request: &Request, object: &mut Value) {
    let resource = &request.resource;
    if (resource.group.as_ref(), resource.plural.as_ref())
        != ("certificates.k8s.io", "certificatesigningrequests")
    {
        return;
    }
    let user = review::user_info(&request.user);
    for field in ["username", "uid", "groups", "extra"] {
        match user.get(field) {
            Some(value) => object.set_at(&["spec", field], value.clone()),
            None => {
                object.remove_at(&["spec", field]);
            }
        }
    }
}

/// Keeps a write through a subresource of its own kind to what that subresource may touch.
pub(crate) fn prepare_subresource(
    request: &Request,
    object: &mut Value,
    old: &Value,
) -> Result<(), ApiError> {
    match (request.resource.plural.as_ref(), request.subresource.as_str()) {
        ("namespaces", "finalize") => {
            namespace::prepare_finalize(object, old, &request.resource);
            Ok(())
        }
        // The change itself touches nothing else.
        ("pods", "binding") => Ok(()),
        ("pods", "ephemeralcontainers") => {
            pod::prepare_ephemeral(object, old);
            Ok(())
        }
        ("pods", "resize") => {
            pod::prepare_resize(object, old);
            Ok(())
        }
        ("certificatesigningrequests", "approval") => {
            api::strategy::prepare_for_status_update(object, old, &request.resource);
            Ok(())
        }
        _ => Err(ApiError::NoSuchPath),
    }
}

/// Checks a write through a subresource that has rules of its own, beside those of status.
pub(crate) fn check_subresource(
    request: &Request,
    object: &Value,
    old: &Value,
    errors: &mut api::error::FieldErrors,
) {
    match (request.resource.plural.as_ref(), request.subresource.as_str()) {
        ("pods", "ephemeralcontainers") => {
            api::rules::pod_update::ephemeral_containers(object, old, errors);
        }
        ("pods", "resize") => api::rules::pod_update::resize(object, old, errors),
        _ => {}
    }
}
