//! Metadata of an object: readers and writers over the tree.

use crate::object::Value;

/// `metadata.name`, empty if absent.
pub fn name(v: &Value) -> &str {
    v["metadata"]["name"].text()
}

/// `metadata.generateName`, empty if absent.
pub fn generate_name(v: &Value) -> &str {
    v["metadata"]["generateName"].text()
}

/// `metadata.namespace`, empty if absent.
pub fn namespace(v: &Value) -> &str {
    v["metadata"]["namespace"].text()
}

/// `metadata.uid`, empty if absent.
pub fn uid(v: &Value) -> &str {
    v["metadata"]["uid"].text()
}

/// `metadata.resourceVersion`, empty if absent.
pub fn resource_version(v: &Value) -> &str {
    v["metadata"]["resourceVersion"].text()
}

/// `metadata.generation`, 0 if absent.
pub fn generation(v: &Value) -> i64 {
    v["metadata"]["generation"].as_int().unwrap_or(0)
}

/// `metadata.deletionTimestamp`, if set.
pub fn deletion_timestamp(v: &Value) -> Option<&str> {
    v.str_at(&["metadata", "deletionTimestamp"])
}

/// `metadata.creationTimestamp`, if set.
pub fn creation_timestamp(v: &Value) -> Option<&str> {
    v.str_at(&["metadata", "creationTimestamp"])
}

/// Labels, in key order.
pub fn labels(v: &Value) -> impl Iterator<Item = (&str, &str)> {
    v["metadata"]["labels"].members().map(|(k, v)| (k, v.text()))
}

/// One label.
pub fn label<'a>(v: &'a Value, key: &str) -> Option<&'a str> {
    v.str_at(&["metadata", "labels", key])
}

/// One annotation.
pub fn annotation<'a>(v: &'a Value, key: &str) -> Option<&'a str> {
    v.str_at(&["metadata", "annotations", key])
}

/// Finalizers in order.
pub fn finalizers(v: &Value) -> impl Iterator<Item = &str> {
    v["metadata"]["finalizers"].items().iter().filter_map(Value::as_str)
}

/// Owner references.
pub fn owner_references(v: &Value) -> &[Value] {
    v["metadata"]["ownerReferences"].items()
}

/// The owner that controls the object.
pub fn controller(v: &Value) -> Option<&Value> {
    owner_references(v).iter().find(|o| o["controller"].as_bool() == Some(true))
}

/// The condition of this type.
pub fn condition<'a>(v: &'a Value, kind: &str) -> Option<&'a Value> {
    v["status"]["conditions"].items().iter().find(|c| c["type"].text() == kind)
}

/// Sets or replaces the condition of the same type.
pub fn set_condition(v: &mut Value, condition: Value) {
    let list = v.make_object().entry("status").make_object().entry("conditions");
    if !matches!(list, Value::Array(_)) {
        *list = Value::Array(Vec::new());
    }
    let Some(list) = list.as_array_mut() else { return };
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(old) => *old = condition,
        None => list.push(condition),
    }
}

/// The object's metadata, to change.
pub fn metadata_mut(v: &mut Value) -> &mut Value {
    v.make_object().entry("metadata")
}

/// Sets one metadata field, or drops it when `value` is empty.
pub fn set(v: &mut Value, field: &str, value: impl Into<Value>) {
    let value = value.into();
    let meta = metadata_mut(v).make_object();
    if value.is_empty() {
        meta.remove(field);
    } else {
        meta.insert(field, value);
    }
}

/// Whether two objects differ in nothing but this member of their metadata.
pub fn same_but(a: &Value, b: &Value, field: &str) -> bool {
    let others = |(k, _): &(&str, &Value)| *k != "metadata";
    let kept = |(k, _): &(&str, &Value)| *k != field;
    a.members().filter(others).eq(b.members().filter(others))
        && a["metadata"].members().filter(kept).eq(b["metadata"].members().filter(kept))
}

/// `apiVersion` and `kind`.
pub fn type_meta(v: &Value) -> (&str, &str) {
    (v["apiVersion"].text(), v["kind"].text())
}

/// The object as `PartialObjectMetadata`.
pub fn partial(v: &Value) -> Value {
    let mut out = crate::object::Map::with_capacity(3);
    out.insert("apiVersion", "meta.k8s.io/v1");
    out.insert("kind", "PartialObjectMetadata");
    let mut metadata = v["metadata"].clone();
    // Upstream keeps this count in a field and shows it as an annotation of whole objects only.
    let count = crate::defaults::kinds::TEMPLATE_GENERATION;
    if metadata.remove_at(&["annotations", count]).is_some() && metadata["annotations"].is_empty() {
        metadata.remove("annotations");
    }
    out.insert("metadata", metadata);
    Value::Object(out)
}
