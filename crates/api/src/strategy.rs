//! What a write may touch: fields the server owns, status against spec, generation.

use crate::catalog::{Generation, Resource};
use crate::meta;
use crate::object::{Map, Value};
use crate::time::{self, Timestamp};

pub(crate) mod service;

/// What the server gives a new object.
#[derive(Clone, Copy, Debug)]
pub struct Birth<'a> {
    /// A fresh UUID.
    pub uid: &'a str,
    /// Now.
    pub now: Timestamp,
    /// Namespace of the request; empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// Five random bytes for `generateName`.
    pub random: [u8; 5],
}

/// Prepares an object for creation: server-owned metadata set, status reset, generation started, name generated.
pub fn prepare_for_create(object: &mut Value, resource: &Resource, birth: Birth<'_>) {
    let generated = meta::name(object).is_empty() && !meta::generate_name(object).is_empty();
    if generated {
        let name = crate::name::generate(meta::generate_name(object), birth.random);
        meta::set(object, "name", name);
    }
    for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"]
    {
        meta::set(object, field, Value::Null);
    }
    if resource.namespaced && meta::namespace(object).is_empty() {
        meta::set(object, "namespace", birth.namespace);
    }
    meta::set(object, "uid", birth.uid);
    meta::set(object, "creationTimestamp", time::format(birth.now));
    if resource.generation != Generation::None {
        meta::set(object, "generation", 1_i64);
    }
    if resource.status_reset && resource.resets_status_on_create {
        object.remove("status");
    }
    if let Some(f) = resource.on_create {
        f(object);
    }
    settle(object, resource);
}

/// Prepares an update of the main resource: server-owned metadata and status taken from `old`, generation counted.
pub fn prepare_for_update(new: &mut Value, old: &Value, resource: &Resource) {
    keep_metadata(new, old, resource);
    if resource.status_reset {
        take(new, old, "status");
    }
    if let Some(f) = resource.on_update {
        f(new, old);
    }
    settle(new, resource);
    if generation_counts(new, old, resource) {
        meta::set(new, "generation", meta::generation(old) + 1);
    }
}

/// Prepares an update through `status`: all but status (and the metadata status writes may touch) taken from `old`.
pub fn prepare_for_status_update(new: &mut Value, old: &Value, resource: &Resource) {
    keep_metadata(new, old, resource);
    let names: Vec<String> = new
        .members()
        .chain(old.members())
        .map(|(k, _)| k.to_owned())
        .filter(|k| k != "metadata" && k != "status")
        .collect();
    for name in names {
        take(new, old, &name);
    }
    if resource.custom {
        let managed = new["metadata"]["managedFields"].clone();
        take(new, old, "metadata");
        meta::set(new, "managedFields", managed);
        return;
    }
    let kept: &[&str] = match resource.plural.as_ref() {
        "pods" => &["ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds"],
        "deployments" => &["labels"],
        _ => &[],
    };
    for field in kept {
        meta::set(new, field, old["metadata"][*field].clone());
    }
    settle(new, resource);
}

/// Takes one top-level member from `old`.
fn take(new: &mut Value, old: &Value, name: &str) {
    match old.get(name) {
        Some(v) => new.set(name, v.clone()),
        None => {
            new.remove(name);
        }
    }
}

/// Canonical form again after fields were dropped.
fn settle(object: &mut Value, resource: &Resource) {
    if !resource.custom {
        crate::defaults::canonicalize(object, &resource.schema);
    }
}

/// Takes what the server owns of metadata from `old`.
pub fn keep_metadata(new: &mut Value, old: &Value, resource: &Resource) {
    if resource.namespaced && meta::namespace(new).is_empty() {
        meta::set(new, "namespace", meta::namespace(old));
    }
    meta::set(new, "selfLink", Value::Null);
    for field in ["uid", "creationTimestamp", "deletionGracePeriodSeconds", "name"] {
        if !new["metadata"].has(field) && old["metadata"].has(field) {
            meta::set(new, field, old["metadata"][field].clone());
        }
    }
    for field in ["generation", "deletionTimestamp"] {
        if field == "generation" || old["metadata"].has(field) {
            meta::set(new, field, old["metadata"][field].clone());
        }
    }
}

fn generation_counts(new: &Value, old: &Value, resource: &Resource) -> bool {
    let annotations = |v: &Value| v["metadata"]["annotations"].clone();
    match resource.generation {
        Generation::None => false,
        Generation::Spec => desired_differs(new, old, resource),
        Generation::SpecAndAnnotations => {
            desired_differs(new, old, resource) || annotations(new) != annotations(old)
        }
    }
}

/// Whether anything but metadata and status differs.
fn desired_differs(new: &Value, old: &Value, resource: &Resource) -> bool {
    let empty = Map::new();
    let (a, b) = (new.as_object().unwrap_or(&empty), old.as_object().unwrap_or(&empty));
    let counts = |k: &str| {
        !(matches!(k, "metadata" | "apiVersion" | "kind")
            || (k == "status" && (resource.status_reset || !resource.custom)))
    };
    let same = |k: &str| a.get(k) == b.get(k);
    !a.keys().chain(b.keys()).filter(|k| counts(k)).all(same)
}

/// What single kinds do when they are created or changed.
pub(crate) mod kinds {
    use super::*;
    use crate::defaults::kinds::TEMPLATE_GENERATION;

    /// Namespaces wait for their content before they go.
    pub(crate) fn namespace_create(v: &mut Value) {
        v.set("status", crate::json!({"phase": "Active"}));
        let name = meta::name(v).to_owned();
        v.set_at(&["metadata", "labels", "kubernetes.io/metadata.name"], name);
        let list = v["spec"]["finalizers"].items();
        if !list.iter().any(|f| f.text() == "kubernetes") {
            let mut list = list.to_vec();
            list.push(Value::from("kubernetes"));
            v.set_at(&["spec", "finalizers"], list);
        }
    }

    /// The spec of a namespace (its finalizers) changes only by `finalize`.
    pub(crate) fn namespace_update(new: &mut Value, old: &Value) {
        take(new, old, "spec");
    }

    /// Pods start as pending with their class of service.
    pub(crate) fn pod_create(v: &mut Value) {
        let class = crate::rules::pod::qos_class(&v["spec"]);
        v.set("status", crate::json!({"phase": "Pending", "qosClass": class}));
        if !v["spec"]["schedulingGates"].is_empty() {
            v.set_at(
                &["status", "conditions"],
                crate::json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates"}]),
            );
        }
    }

    /// Jobs get a selector of their own.
    pub(crate) fn job_create(v: &mut Value) {
        if v["spec"]["manualSelector"].as_bool() == Some(true) {
            return;
        }
        let (uid, name) = (meta::uid(v).to_owned(), meta::name(v).to_owned());
        for (key, value) in [
            ("controller-uid", &uid),
            ("batch.kubernetes.io/controller-uid", &uid),
            ("job-name", &name),
            ("batch.kubernetes.io/job-name", &name),
        ] {
            let path = ["spec", "template", "metadata", "labels", key];
            if v.at(&path).is_none() {
                v.set_at(&path, value);
            }
        }
        let key = "batch.kubernetes.io/controller-uid";
        v.set_at(&["spec", "selector", "matchLabels", key], uid);
        if v["metadata"]["labels"].is_empty() {
            let labels = v["spec"]["template"]["metadata"]["labels"].clone();
            v.set_at(&["metadata", "labels"], labels);
        }
    }

    /// Daemon sets count the changes of their template.
    pub(crate) fn daemon_set_create(v: &mut Value) {
        v.set_at(&["metadata", "annotations", TEMPLATE_GENERATION], "1");
    }

    /// See `daemon_set_create`.
    pub(crate) fn daemon_set_update(new: &mut Value, old: &Value) {
        let count = meta::annotation(old, TEMPLATE_GENERATION).and_then(|n| n.parse::<i64>().ok());
        let changed = new["spec"]["template"] != old["spec"]["template"];
        let count = count.unwrap_or(0) + i64::from(changed);
        new.set_at(&["metadata", "annotations", TEMPLATE_GENERATION], count.to_string());
    }

    /// What is asked to be signed stays.
    pub(crate) fn signing_request_update(new: &mut Value, old: &Value) {
        take(new, old, "spec");
    }

    /// Volumes and claims wait to be bound.
    pub(crate) fn pending(v: &mut Value) {
        v.set("status", crate::json!({"phase": "Pending"}));
    }

    /// A claim waits to be bound; what it is made of is said in both fields that there are for it (KEP-1495).
    pub(crate) fn claim_create(v: &mut Value) {
        pending(v);
        data_sources(v, &Value::Null);
    }

    /// See `claim_create`.
    pub(crate) fn claim_update(new: &mut Value, old: &Value) {
        data_sources(new, &old["spec"]);
    }

    fn data_sources(v: &mut Value, old: &Value) {
        let Some(spec) = v.get_mut("spec") else { return };
        let source = &spec["dataSource"];
        let known = matches!(
            (source["apiGroup"].text(), source["kind"].text()),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        );
        if !known && !old.has("dataSource") && !old.has("dataSourceRef") {
            spec.remove("dataSource");
        }
        let (one, other) = (spec["dataSource"].clone(), spec["dataSourceRef"].clone());
        if !one.is_null() && other.is_null() {
            spec.set("dataSourceRef", one);
        } else if one.is_null() && !other.is_null() && other["namespace"].text().is_empty() {
            let mut one = other;
            one.remove("namespace");
            spec.set("dataSource", one);
        }
    }

    /// A definition knows from the start which names and versions it will serve.
    pub(crate) fn definition_create(v: &mut Value) {
        let stored =
            v["spec"]["versions"].items().iter().find(|x| x["storage"].as_bool() == Some(true));
        let stored: Vec<Value> = stored.map(|x| x["name"].clone()).into_iter().collect();
        if stored.is_empty() {
            return;
        }
        v.set("status", Value::object());
        v.set_at(&["status", "storedVersions"], stored);
    }

    /// Objects may be stored in every version that ever was the one to store.
    pub(crate) fn definition_update(new: &mut Value, _: &Value) {
        let versions = new["spec"]["versions"].items().iter();
        let stored = versions.filter(|x| x["storage"].as_bool() == Some(true)).map(|x| &x["name"]);
        let mut all = new["status"]["storedVersions"].items().to_vec();
        let missing: Vec<Value> = stored.filter(|name| !all.contains(name)).cloned().collect();
        if !missing.is_empty() {
            all.extend(missing);
            new.set_at(&["status", "storedVersions"], all);
        }
    }
}
