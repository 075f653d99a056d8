//! Rules of metadata, the same for all kinds.

use super::{IMMUTABLE, labels, reasons};
use crate::catalog::{NameRule, Resource, split_api_version};
use crate::error::{FieldErrors, FieldReason};
use crate::meta;
use crate::name;
use crate::object::Value;

/// The most bytes all annotations of an object may have.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Checks metadata by itself.
pub fn validate(resource: &Resource, v: &Value, errs: &mut FieldErrors) {
    let m = &v["metadata"];
    let generate = meta::generate_name(v);
    if !generate.is_empty() {
        let masked = generate.strip_suffix('-').map(|p| format!("{p}a"));
        let text = masked.as_deref().unwrap_or(generate);
        reasons("metadata.generateName", generate, name_reasons(resource, text), errs);
    }
    match meta::name(v) {
        "" => errs.required("metadata.name", "name or generateName is required"),
        n => reasons("metadata.name", n, name_reasons(resource, n), errs),
    }
    let namespace = meta::namespace(v);
    match (resource.namespaced, namespace) {
        (true, "") => errs.required("metadata.namespace", ""),
        (true, ns) => reasons("metadata.namespace", ns, name::dns_label(ns), errs),
        (false, "") => {}
        (false, _) => errs.forbidden("metadata.namespace", "not allowed on this type"),
    }
    super::non_negative("metadata.generation", &m["generation"], errs);
    labels("metadata.labels", &m["labels"], errs);
    annotations(&m["annotations"], errs);
    owner_references(&m["ownerReferences"], errs);
    finalizers(m, resource, errs);
}

fn name_reasons(resource: &Resource, text: &str) -> Vec<String> {
    match resource.name_rule {
        NameRule::Subdomain => name::dns_subdomain(text),
        NameRule::Label => label_without_dots(text),
        NameRule::Label1035 => name::dns_label_1035(text),
        NameRule::PathSegment => name::path_segment(text),
        NameRule::Ip | NameRule::Free => Vec::new(),
    }
}

fn label_without_dots(text: &str) -> Vec<String> {
    if text.contains('.') && name::dns_subdomain(text).is_empty() {
        return vec!["must not contain dots".to_owned()];
    }
    name::dns_label(text)
}

fn annotations(v: &Value, errs: &mut FieldErrors) {
    let mut total = 0;
    for (key, value) in v.members() {
        reasons("metadata.annotations", key, name::qualified(&key.to_lowercase()), errs);
        total += key.len() + value.text().len();
    }
    if total > ANNOTATIONS_BYTES_MAX {
        errs.too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX);
    }
}

fn owner_references(v: &Value, errs: &mut FieldErrors) {
    let mut controller: Option<&Value> = None;
    for o in v.items() {
        owner_reference(o, errs);
        if o["controller"].as_bool() == Some(true) {
            if let Some(first) = controller {
                let text = |o: &Value| format!("{}/{}", o["kind"].text(), o["name"].text());
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                    text(first),
                    text(o)
                );
                errs.push("metadata.ownerReferences", FieldReason::InvalidAs(shown(v), why));
            } else {
                controller = Some(o);
            }
        }
    }
}

fn owner_reference(o: &Value, errs: &mut FieldErrors) {
    let path = "metadata.ownerReferences";
    let api_version = o["apiVersion"].text();
    let (group, version) = split_api_version(api_version);
    let version = if api_version.matches('/').count() > 1 { "" } else { version };
    if version.is_empty() {
        errs.invalid(format!("{path}.apiVersion"), api_version, "version must not be empty");
    }
    for key in ["kind", "name", "uid"] {
        if o[key].text().is_empty() {
            errs.invalid(format!("{path}.{key}"), "", "must not be empty");
        }
    }
    if group.is_empty() && version == "v1" && o["kind"].text() == "Event" {
        let message = "/v1, Kind=Event is disallowed from being an owner";
        errs.push(path, FieldReason::InvalidAs(shown(o), message.to_owned()));
    }
}

/// Fields of metadata in upstream's order; others come behind, by name.
const ORDER: &[&str] = &[
    "manager",
    "operation",
    "apiVersion",
    "time",
    "fieldsType",
    "fieldsV1",
    "subresource",
    "kind",
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "controller",
    "blockOwnerDeletion",
];

/// A part of metadata as upstream's messages show it: JSON in the order of its declaration.
pub(crate) fn shown(v: &Value) -> String {
    match v {
        Value::Array(items) => {
            format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(","))
        }
        Value::Object(map) => {
            let mut fields: Vec<(&str, &Value)> = map.iter().collect();
            let place = |key: &str| ORDER.iter().position(|k| *k == key).unwrap_or(ORDER.len());
            fields.sort_by_key(|(key, _)| place(key));
            let each =
                fields.iter().map(|(key, value)| format!("{}:{}", Value::from(*key), shown(value)));
            format!("{{{}}}", each.collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

fn finalizers(m: &Value, resource: &Resource, errs: &mut FieldErrors) {
    // Custom resources and their definitions ask for a name and no more.
    let any = resource.custom || resource.group == "apiextensions.k8s.io";
    for (i, f) in m["finalizers"].items().iter().enumerate() {
        let text = f.text();
        reasons("metadata.finalizers", text, name::qualified(text), errs);
        let standard = matches!(text, "kubernetes" | "orphan" | "foregroundDeletion");
        if !any && !text.contains('/') && !standard {
            errs.invalid(
                format!("metadata.finalizers[{i}]"),
                text,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
    let both = |f: &str| m["finalizers"].items().iter().any(|x| x.text() == f);
    if both("orphan") && both("foregroundDeletion") {
        errs.invalid(
            "metadata.finalizers",
            m["finalizers"].clone(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
}

/// Checks metadata against what it was.
pub fn validate_update(new: &Value, old: &Value, errs: &mut FieldErrors) {
    let (n, o) = (&new["metadata"], &old["metadata"]);
    labels("metadata.labels", &n["labels"], errs);
    annotations(&n["annotations"], errs);
    owner_references(&n["ownerReferences"], errs);
    if meta::deletion_timestamp(old).is_some() {
        let olds: Vec<&str> = meta::finalizers(old).collect();
        let added: Vec<String> =
            meta::finalizers(new).filter(|f| !olds.contains(f)).map(|f| format!("{f:?}")).collect();
        if !added.is_empty() {
            errs.forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers \
                     []string{{{}}}",
                    added.join(", ")
                ),
            );
        }
    }
    if n["generation"].as_int() < o["generation"].as_int() {
        errs.invalid("metadata.generation", n["generation"].clone(), "must not be decremented");
    }
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        if n[key] != o[key] && !(n[key].is_empty() && o[key].is_empty()) {
            errs.invalid(format!("metadata.{key}"), n[key].clone(), IMMUTABLE);
        }
    }
}
