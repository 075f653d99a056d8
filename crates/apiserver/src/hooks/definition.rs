//! Definitions of custom resources: held until the objects of their kind are gone.

use api::crd::names;
use api::object::Value;

/// A definition that is asked to go begins to wait for its objects; see [`crate::custom`].
pub(crate) fn on_ask(object: &mut Value, now: jiff::Timestamp) {
    if api::meta::deletion_timestamp(object).is_some() {
        return;
    }
    let mut finalizers: Vec<Value> = api::meta::finalizers(object).map(Value::from).collect();
    if !finalizers.iter().any(|f| f.text() == names::CLEANUP) {
        finalizers.push(Value::from(names::CLEANUP));
        api::meta::set(object, "finalizers", finalizers);
    }
    let text =
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    names::terminating(object, true, ("InstanceDeletionPending", text), now);
}

/// What holds a definition is its objects, not a time.
pub(crate) fn on_mark(object: &mut Value) {
    object.remove_at(&["metadata", "deletionGracePeriodSeconds"]);
}
