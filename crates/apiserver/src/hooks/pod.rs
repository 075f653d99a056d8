//! Pods: how long their deletion waits, and what their subresources may touch.

use api::object::Value;

use crate::registry::Api;

const DEFAULT_GRACE_S: i64 = 30;

/// Nothing that the strategy of the kind does not do already.
pub(crate) fn complete(_: &Api, _object: &mut Value, _old: Option<&Value>) {}

/// A pod that no node knows, or that has ended, goes at once; others get the time they asked for.
pub(crate) fn grace_s(pod: &Value, asked: Option<i64>) -> Option<i64> {
    let wanted = asked
        .or_else(|| pod.int_at(&["spec", "terminationGracePeriodSeconds"]))
        .unwrap_or(DEFAULT_GRACE_S);
    // Upstream takes a negative time for the shortest there is.
    let wanted = if wanted < 0 { 1 } else { wanted };
    let scheduled = pod.str_at(&["spec", "nodeName"]).is_some_and(|node| !node.is_empty());
    let ended = matches!(pod.str_at(&["status", "phase"]), Some("Succeeded" | "Failed"));
    Some(if !scheduled || ended { 0 } else { wanted })
}

/// `ephemeralcontainers` writes nothing but that list.
pub(crate) fn prepare_ephemeral(object: &mut Value, old: &Value) {
    keep_only(object, old, &[&["spec", "ephemeralContainers"]]);
}

/// `resize` writes nothing but the containers, whose resources validation lets change.
pub(crate) fn prepare_resize(object: &mut Value, old: &Value) {
    keep_only(object, old, &[&["spec", "containers"], &["spec", "initContainers"]]);
}

fn keep_only(object: &mut Value, old: &Value, paths: &[&[&str]]) {
    let written: Vec<Option<Value>> = paths.iter().map(|path| object.at(path).cloned()).collect();
    let version = api::meta::resource_version(object).to_owned();
    *object = old.clone();
    api::meta::set(object, "resourceVersion", version);
    for (path, value) in paths.iter().zip(written) {
        match value {
            Some(value) => object.set_at(path, value),
            None => {
                object.remove_at(path);
            }
        }
    }
}
