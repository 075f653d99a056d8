//! Namespaces: held by `spec.finalizers` until the namespace controller has emptied them.

use api::catalog::Resource;
use api::object::Value;

use crate::registry::Api;

const LABEL: &str = "kubernetes.io/metadata.name";

/// The label with the namespace's own name, and the finalizer that every namespace begins with.
pub(crate) fn complete(_: &Api, object: &mut Value, old: Option<&Value>) {
    let name = api::meta::name(object).to_owned();
    if !name.is_empty() {
        object.set_at(&["metadata", "labels", LABEL], name);
    }
    if old.is_none() {
        let listed = object.at(&["spec", "finalizers"]).map(Value::items).unwrap_or_default();
        if !listed.iter().any(|f| f.as_str() == Some("kubernetes")) {
            let mut finalizers = listed.to_vec();
            finalizers.push(Value::from("kubernetes"));
            object.set_at(&["spec", "finalizers"], Value::Array(finalizers));
        }
        object.set_at(&["status", "phase"], "Active");
    }
}

/// Whether the namespace still has finalizers of its own.
pub(crate) fn holds(object: &Value) -> bool {
    object.at(&["spec", "finalizers"]).is_some_and(|f| !f.items().is_empty())
}

/// A namespace that is being deleted says so.
pub(crate) fn on_mark(object: &mut Value) {
    if api::meta::deletion_timestamp(object).is_some() {
        // What holds a namespace is its content, not a time.
        object.remove_at(&["metadata", "deletionGracePeriodSeconds"]);
        object.set_at(&["status", "phase"], "Terminating");
    }
}

/// `finalize` writes metadata and `spec.finalizers`, not the status.
pub(crate) fn prepare_finalize(object: &mut Value, old: &Value, resource: &Resource) {
    api::strategy::keep_metadata(object, old, resource);
    object.set("status", old["status"].clone());
    if object["spec"]["finalizers"].is_empty() {
        object.remove_at(&["spec", "finalizers"]);
    }
}
