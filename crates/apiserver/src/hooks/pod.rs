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

/// `resize` writes nothing but what containers may use.
pub(crate) fn prepare_resize(object: &mut Value, old: &Value) {
    let written = object["spec"].clone();
    let mut spec = old["spec"].clone();
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).map(Value::items_mut).unwrap_or_default() {
            let twin = written[list].items().iter().find(|c| c["name"] == container["name"]);
            for field in ["resources", "resizePolicy"] {
                match twin.and_then(|c| c.get(field)) {
                    Some(value) => container.set(field, value.clone()),
                    None => {
                        container.remove(field);
                    }
                }
            }
        }
    }
    if let Some(resources) = written.get("resources") {
        spec.set("resources", resources.clone());
    }
    object.set("spec", spec);
    keep_only(object, old, &[&["spec"]]);
}

/// Takes all but `paths` and the record of owners from `old`; a change of the spec counts.
fn keep_only(object: &mut Value, old: &Value, paths: &[&[&str]]) {
    let kept = [["metadata", "resourceVersion"], ["metadata", "managedFields"]];
    let written: Vec<(&[&str], Option<Value>)> = paths
        .iter()
        .copied()
        .chain(kept.iter().map(|path| path.as_slice()))
        .map(|path| (path, object.at(path).cloned()))
        .collect();
    *object = old.clone();
    for (path, value) in written {
        match value {
            Some(value) => object.set_at(path, value),
            None => {
                object.remove_at(path);
            }
        }
    }
    if object["spec"] != old["spec"] {
        api::meta::set(object, "generation", api::meta::generation(old) + 1);
    }
}
